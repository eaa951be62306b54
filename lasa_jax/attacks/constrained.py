"""Backdoors whose clients hold their local models back, so that the update passes for honest or lasts longer."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators import Context
from lasa_jax.aggregators.base import Count
from lasa_jax.aggregators.context import needed
from lasa_jax.aggregators.preaggregators import share_kept
from lasa_jax.attacks.backdoors import planted, square
from lasa_jax.attacks.base import Attack, PyTree, Scalar
from lasa_jax.errors import check_number

_OF_NEUROTOXIN = frozenset({"last_update"})


def neurotoxin(
    target: Count = 0,
    share: Scalar = 0.3,
    boost: Scalar = 1.0,
    free_share: Scalar = 0.95,
    size: int = 3,
    margin: int = 0,
    value: Scalar | None = None,
) -> Attack:
    """`badnets` trained only on the coordinates that the server moved least in the round before.

        free_j = |u_j| < t,   u = what the rule returned last,   t = the k-th largest |u_j|,   k = int(d (1 - free_share))
        after every local step: w_j <- w_j if free_j else its value in the global model

    Resetting a coordinate after every step is the same as masking its gradient. Where the server moved nothing, as before
    the first round, all are free; where it moved fewer than k coordinates, those that it did not move. Everything of an
    update counts, running statistics too unless they are kept apart.

    Source: Zhang, Panda, Song, Yang, Mahoney, Mittal, Ramchandran and Gonzalez, Neurotoxin, ICML 2022, which masks the top
    1 to 5 %. No bound on the harm is known.

    Args:
      target, share, boost, size, margin, value: as in `badnets`.
      free_share: share of the coordinates that may change, `0 <= free_share <= 1`. May be traced; k is computed in double
        precision for a Python number, in float32 for a traced one.

    Raises:
      InputError: as `badnets`; from `begin`, without the last update.
    """
    check_number("free_share", free_share, low=0, high=1)
    backdoor = planted(square(size, margin), target=target, share=share, boost=boost, value=value)

    def begin(state: tuple[()], context: Context) -> PyTree:
        last = needed(context, _OF_NEUROTOXIN, "neurotoxin").last_update
        leaves = jax.tree.leaves(last)
        threshold = ops.magnitude_threshold(leaves, share_kept(sum(x.size for x in leaves), free_share))
        return jax.tree.map(lambda x: (jnp.abs(x).astype(jnp.float32) < threshold) | (x == 0), last)

    def constrain(params: PyTree, start: PyTree, free: PyTree) -> PyTree:
        return jax.tree.map(jnp.where, free, params, start)

    def craft(updates: PyTree, free: PyTree, malicious: jax.Array, **known: object) -> tuple[PyTree, tuple[()]]:
        return backdoor.craft(updates, (), malicious, **known)[0], ()  # the mask lasts for a round

    return backdoor._replace(craft=craft, constrain=constrain, begin=begin, needs=_OF_NEUROTOXIN)


def pgd(
    target: Count = 0,
    share: Scalar = 0.3,
    boost: Scalar = 1.0,
    radius: Scalar = 0.5,
    size: int = 3,
    margin: int = 0,
    value: Scalar | None = None,
) -> Attack:
    """`badnets` whose clients stay near the global model, so that a rule which looks at norms finds nothing.

        after every local step: w <- w_0 + (w - w_0) min(1, radius / |w - w_0|),    w_0 the global model

    Source: Sun, Kairouz, Suresh and McMahan, Can you really backdoor federated learning?, 2019; Wang, Sreenivasan, Rajput,
    Vishwakarma, Agarwal, Sohn, Lee and Papailiopoulos, Attack of the tails, NeurIPS 2020. No bound on the harm is known.

    Args:
      target, share, boost, size, margin, value: as in `badnets`; the boost comes after the projection.
      radius: of the ball, `> 0`, in the units of the model; honest updates of the digits have norms of 0.2 to 1.1. May be
        traced.

    Raises:
      InputError: as `badnets`.
    """
    check_number("radius", radius, above=0)
    backdoor = planted(square(size, margin), target=target, share=share, boost=boost, value=value)

    def constrain(params: PyTree, start: PyTree, state: tuple[()]) -> PyTree:
        moved = jax.tree.map(jnp.subtract, params, start)
        norm = ops.tree_norm(moved)
        limit = jnp.asarray(radius).astype(norm.dtype)
        factor = limit / jnp.maximum(norm, limit)

        def back(x: jax.Array, start: jax.Array, moved: jax.Array) -> jax.Array:
            # What is inside stays to the last bit.
            return jnp.where(norm <= limit, x, start + factor.astype(x.dtype) * moved)

        return jax.tree.map(back, params, start, moved)

    return backdoor._replace(constrain=constrain)
