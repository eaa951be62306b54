"""SparseFed (Panda, Mahloujifar, Bhagoji, Chakraborty and Mittal, AISTATS 2022, algorithm 1)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Count, Diagnostics, PyTree, Rows, Scalar, equal_weights
from lasa_jax.aggregators.preaggregators import share_kept
from lasa_jax.errors import check_choice, check_number


class SparseFedState(NamedTuple):
    """What the server carries over: momentum of the mean updates, and what the top-k has held back so far."""

    momentum: PyTree
    error: PyTree


def sparsefed(
    sparsity_level: Scalar = 0.3, momentum: Scalar = 0.9, num_kept: Count | None = None, variant: str = "paper"
) -> Aggregator:
    """Sends the largest coordinates of the mean with momentum, and keeps the rest for later rounds.

        u <- momentum * u + mean of x_i,    e <- e + u,    F = top k of e by magnitude,    e <- e - F

    Clients are clipped before they send (`config.client.clip_norm`); put `clip_to_norm` in front where they are not. Not
    robust by itself: one client moves the result anywhere, and one that sends NaN makes it NaN, from then on.

    Args:
      sparsity_level: share of all d coordinates that is held back, `0 <= sparsity_level <= 1`; k = int(d * (1 - level)) in
        double precision for a Python number, in float32 for a traced one.
      momentum: `0 <= momentum < 1`. May be traced. The official variant, which forgets, does not use it.
      num_kept: k itself, in place of the level; may be traced.
      variant: "paper" as above; "official" forgets u and e every round, so that F is the top k of the mean (see
        docs/fidelity.md, section 3.3).

    Raises:
      InputError: for a number out of range.
    """
    check_number("sparsity_level", sparsity_level, low=0, high=1)
    check_number("momentum", momentum, low=0, below=1)
    check_choice("variant", variant, ("paper", "official"))
    if num_kept is not None:
        check_number("num_kept", num_kept, low=0, whole=True)

    def init(params: PyTree) -> SparseFedState | tuple[()]:
        if variant == "official":
            return ()
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SparseFedState(zeros, jax.tree.map(jnp.copy, zeros))

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, Diagnostics]:
        rows = Rows.of(updates, present)
        weight = equal_weights(rows, rows.present)
        total = rows.weighted_sum(weight)
        if variant == "paper":
            momenta = jax.tree.map(lambda u, x: jnp.asarray(momentum, u.dtype) * u + x, state.momentum, total)
            total = jax.tree.map(jnp.add, state.error, momenta)
        d = sum(x.size for x in jax.tree.leaves(total))
        k = share_kept(d, sparsity_level) if num_kept is None else num_kept
        flat = jnp.concatenate([x.ravel().astype(jnp.float32) for x in jax.tree.leaves(total)])
        threshold = ops.magnitude_threshold(flat, k)
        update = jax.tree.map(lambda x: jnp.where(jnp.abs(x).astype(jnp.float32) < threshold, 0, x), total)
        if variant == "paper":
            state = SparseFedState(momenta, jax.tree.map(jnp.subtract, total, update))
        return update, state, Diagnostics(weight)

    return Aggregator(init, aggregate)


def num_kept_of_all(params: PyTree, sparsity_level: float) -> int:
    """`int(d * (1 - sparsity_level))` in double precision, d all entries of one update's worth of arrays or shapes."""
    return int(share_kept(sum(math.prod(x.shape) for x in jax.tree.leaves(params)), float(sparsity_level)))
