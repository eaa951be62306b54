"""Divide and conquer (Shejwalkar and Houmansadr, NDSS 2021, section VI, algorithm 2)."""

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax import ops
from lasa_jax.aggregators.base import (
    Aggregator,
    Count,
    PyTree,
    Rows,
    Scalar,
    Selection,
    at_most,
    equal_weights,
    is_finite,
    stateless,
)
from lasa_jax.errors import check_choice, check_number

_LARGE = 1 << 16  # entries of a leaf that is not joined with others
_DEFAULTS = {"paper": (5, 10_000), "official": (1, 1_000)}


def dnc(
    num_iterations: int | None = None,
    num_coordinates: int | None = None,
    filter_fraction: Scalar = 1.0,
    assumed_malicious: Count | None = None,
    variant: str = "paper",
    coordinates: jax.Array | None = None,
) -> Aggregator:
    """Drops the clients that stick out most along the direction of largest spread, and averages the rest.

    Each iteration draws r of the d coordinates without replacement and takes the clients there as the rows of X:

        C = X - mean of the rows of X,    v = top right singular vector of C,    score_i = (C_i . v)^2

    and drops the floor(c * f) largest scores. Clients that every iteration keeps are averaged; no client if none is left.
    A client whose update is not finite has an infinite score in every iteration.

    While no more than f clients are malicious and all of them send the same, and where a client is left (one is if all
    coordinates are drawn, since the iterations agree then), the result is within (1 + r) D of every benign client, D the
    largest distance between two of those and r = n sqrt(n - b) / ((n - 2b) sqrt(b)) for b malicious ones. For malicious
    updates that differ there is no such factor: one that is very far out takes the direction v for itself, and another,
    nearly at right angles to it and less far, is not seen.

    Args:
      num_iterations: of the above, 1 to 1,000; 5 if None.
      num_coordinates: r; all of them if the update has fewer; 10,000 if None.
      filter_fraction: c, `>= 0`. May be traced.
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be traced.
      variant: "paper" as above. "official" has one iteration over 1,000 coordinates if None; the vector that the
        official code projects on is not the singular vector but depends on the linear-algebra library, and is not
        reproduced (docs/fidelity.md, section 3.1).
      coordinates: int32 `(r,)` in place of every draw, in the order of the flattened tree: to replay a recorded one.

    `score` in the diagnostics is the largest over the iterations, in units of the squared largest entry of X.

    Raises:
      InputError: for a number out of range.
    """
    check_choice("variant", variant, tuple(_DEFAULTS))
    by_default = _DEFAULTS[variant]
    iterations = by_default[0] if num_iterations is None else num_iterations
    drawn = by_default[1] if num_coordinates is None else num_coordinates
    check_number("num_iterations", iterations, low=1, high=1000, whole=True)
    check_number("num_coordinates", drawn, low=1, whole=True)
    check_number("filter_fraction", filter_fraction, low=0)
    if assumed_malicious is not None:
        check_number("assumed_malicious", assumed_malicious, low=0, whole=True)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, Selection]:
        rows = Rows.of(updates, present)
        usable = rows.present & rows.each(is_finite)
        f = at_most((rows.count - 1) // 2, num_malicious if assumed_malicious is None else assumed_malicious)
        dropped = jnp.floor(jnp.asarray(filter_fraction, jnp.float32) * f.astype(jnp.float32) + 1e-4)
        kept_count = rows.count - dropped.astype(jnp.int32)
        d = sum(x[0].size for x in jax.tree.leaves(rows.stack))
        if coordinates is not None:
            check_number("coordinates", coordinates, low=0, high=d - 1)

        def draw(key: jax.Array) -> jax.Array:
            # In another order the scores round otherwise, and of equal ones each iteration would drop others.
            return jnp.arange(d, dtype=jnp.int32) if drawn >= d else ops.sample_without_replacement(key, d, drawn)

        def iteration(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            chosen = draw(key) if coordinates is None else coordinates
            x = jax.lax.stop_gradient(rows.each(_gather, chosen))  # of the scores only their order counts
            score = jnp.where(usable, _outlier_scores(x, usable), jnp.inf)
            return usable & (ops.rank_of(score) < kept_count), score

        keys = jax.random.split(key, iterations)
        kept, scores = jax.lax.map(iteration, keys) if ops.one_at_a_time() else jax.vmap(iteration)(keys)
        weight = equal_weights(rows, jnp.all(kept, axis=0))
        return rows.weighted_sum(weight), state, Selection(weight, f, jnp.max(scores, axis=0))

    return Aggregator(stateless, aggregate)


def _gather(row: PyTree, coordinates: jax.Array) -> jax.Array:
    """Values of one update at coordinates of the flattened tree, `(r,)`."""
    leaves = [leaf.astype(ops.wide(row)) for leaf in jax.tree.leaves(row)]
    ends = np.cumsum([leaf.size for leaf in leaves]).tolist()
    large = [(leaf, end - leaf.size) for leaf, end in zip(leaves, ends, strict=True) if leaf.size >= _LARGE]
    # Small leaves are joined, so that a coordinate is looked for in few places.
    others = jnp.concatenate([leaf.ravel() for leaf in leaves if leaf.size < _LARGE] + [jnp.zeros(1, ops.wide(row))])
    before = sum(jnp.where(coordinates >= start, leaf.size, 0) for leaf, start in large)  # entries of large leaves
    values = others[jnp.clip(coordinates - before, 0, others.size - 1)]
    for leaf, start in large:
        inside = (coordinates >= start) & (coordinates < start + leaf.size)
        place = jnp.clip(coordinates - start, 0, leaf.size - 1)
        # Flat, a layer would be copied on a TPU, where arrays lie in tiles of their last two axes.
        found = leaf[jnp.unravel_index(place, leaf.shape)] if ops.platform() == "tpu" else leaf.ravel()[place]
        values = jnp.where(inside, found, values)
    return values


def _outlier_scores(x: jax.Array, usable: jax.Array) -> jax.Array:
    """Squared projections of the centred rows of x on its top right singular vector: `(n, r)` to `(n,)`."""
    x = jnp.where(usable[:, None], x, 0.0)
    # So that no square leaves float32. In two steps: the reciprocal of 1e38 alone would be flushed to zero.
    x = x * jnp.where(jnp.max(jnp.abs(x)) > 1e18, 1e-20, 1.0)
    x = x / jnp.maximum(jnp.max(jnp.abs(x)), 1e-30)
    x = x - x[jnp.argmax(usable)][None]  # identical rows become exactly zero: their scores are equal, not rounding
    x = jnp.where(usable[:, None], x, 0.0)
    mean = jnp.sum(x / jnp.maximum(jnp.sum(usable, dtype=jnp.int32), 1).astype(x.dtype), axis=0)
    centred = jnp.where(usable[:, None], x - mean[None], 0.0)
    # C v = sigma u, and the left singular vector u is an eigenvector of the small matrix C C^T.
    largest, u = ops.top_eigenpair(ops.product(centred, centred.T))
    return largest * u**2
