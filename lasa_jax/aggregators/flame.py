"""FLAME (Nguyen, Rieger, Chen, Yalame and others, USENIX Security 2022): one cluster of directions, clipping and noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Context, Count, PyTree, Rows, Scalar, equal_weights, stateless
from lasa_jax.aggregators.context import needed
from lasa_jax.aggregators.preaggregators import clip_factors
from lasa_jax.errors import check_choice, check_number

_CLUSTERED = ("models", "updates")


class FlameDiagnostics(NamedTuple):
    """Why FLAME kept a client.

    weight: see `Diagnostics`. norm: `(n,)`. in_cluster: bool `(n,)`. height: `()`, the cosine distance at which the cluster
    is complete, infinite if it never is.
    """

    weight: PyTree
    norm: jax.Array
    in_cluster: jax.Array
    height: jax.Array


def flame(clustered: str = "models", noise_factor: Scalar = 0.001) -> Aggregator:
    """Averages the first cluster of directions that has more than half of the clients, clipped, and adds noise.

        D_ij = 1 - cos(w + x_i, w + x_j),    w the global model
        C = the first connected component with floor(n / 2) + 1 clients, joining clients in order of rising D_ij
        F(Delta) = mean over C of x_i * min(1, S / |x_i|) + N(0, (lambda S)^2),    S = median of |x_1| .. |x_n|

    C is what HDBSCAN finds with a smallest cluster of floor(n / 2) + 1 and one neighbour, as in the paper: two such
    clusters cannot be disjoint. Mostly it has just above half of the clients. The result without noise is no longer than S,
    so while the benign clients are the majority, no longer than the longest of theirs; no bound on its direction is known. A
    zero update has no direction: as a model it is w, as an update at distance 1 from all. A client whose update is not
    finite joins nobody; where fewer than floor(n / 2) + 1 are finite, all of these are averaged.

    Args:
      clustered: "models" as above, which needs `params` in the context; "updates" takes D_ij between x_i and x_j, as some
        public implementations do.
      noise_factor: lambda, `>= 0`; 0 for no noise. 0.001 is the paper's for images. May be traced.

    Raises:
      InputError: for a value out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.flame(clustered="updates", noise_factor=0.0)
      >>> updates = {"w": jnp.array([[3.0, 4.0], [4.0, 3.0], [3.0, 3.9], [-40.0, 9.0]])}
      >>> _, _, info = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> info.in_cluster.tolist()
      [True, True, True, False]
    """
    check_choice("clustered", clustered, _CLUSTERED)
    check_number("noise_factor", noise_factor, low=0)
    needs = frozenset({"params"} if clustered == "models" else ())

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, FlameDiagnostics]:
        rows = Rows.of(updates, present)
        norm = _norms(rows)
        if clustered == "models":
            # Models are as far apart as their updates, so only their norms are measured.
            distances = ops.cosine_distances(
                rows.squared_distances, _norms(rows, needed(context, needs, "flame").params)
            )
        else:
            distances = rows.cosine_distances
        in_cluster, height = majority_component(distances, rows.present)
        limit = ops.masked_median(norm, rows.present)
        factors = clip_factors(norm, limit)
        weight = jax.tree.map(lambda w: w * factors, equal_weights(rows, in_cluster))
        deviation = jnp.where(jnp.isfinite(limit), jnp.asarray(noise_factor, limit.dtype) * limit, 0.0)
        update = _noised(rows.weighted_sum(weight), key, deviation)
        return update, state, FlameDiagnostics(weight, norm, in_cluster, height)

    return Aggregator(stateless, aggregate, needs)


def _norms(rows: Rows, added: PyTree = None) -> jax.Array:
    """Norms of the rows, or of their sums with a tree like one of them, `(n,)`; infinite for what is not finite."""
    if added is None:
        _, norms = rows.sizes
    else:

        def moved(x: jax.Array, y: jax.Array) -> jax.Array:
            kind = ops.wide((x, y))
            return x.astype(kind) + y.astype(kind)

        norms = rows.each(lambda row, added: ops.tree_norm(jax.tree.map(moved, row, added)), added)
    return jnp.where(jnp.isfinite(norms), norms, jnp.inf)


def majority_component(distances: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first connected component of more than half of the clients, as they are joined in order of rising distance.

    Args:
      distances: `(n, n)`, 0 on the diagonal; infinite in rows and columns of clients that join nobody.
      present: bool `(n,)`, who counts for the half.

    Returns:
      Bool `(n,)`, who is in it, and the distance that completed it, `()`. Where no component is so large, all clients that
      can be joined, and infinity.
    """
    distances = jax.lax.stop_gradient(distances)  # who is in it has no derivative
    able = present & jnp.isfinite(jnp.diagonal(distances))

    def through(client: jax.Array, heights: jax.Array) -> jax.Array:
        """The largest distance on the best path between any two, by way of the clients up to this one."""
        return jnp.minimum(heights, jnp.maximum(heights[:, client][:, None], heights[client][None, :]))

    heights = jnp.where(able[:, None] & able[None, :], distances, jnp.inf)
    heights = jax.lax.fori_loop(0, len(present), through, heights)
    half = jnp.sum(present, dtype=jnp.int32) // 2
    complete = jnp.sort(heights, axis=1, stable=False)[:, jnp.minimum(half, len(present) - 1)]
    first = jnp.argmin(complete)
    return able & ((heights[first] <= complete[first]) | jnp.isinf(complete[first])), complete[first]


def _noised(update: PyTree, key: jax.Array, deviation: jax.Array) -> PyTree:
    """The update with Gaussian noise of that deviation on every entry."""
    leaves, structure = jax.tree.flatten(update)
    keys = jax.random.split(key, len(leaves))

    def noised(x: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, x.shape, deviation.dtype)
        return (x.astype(deviation.dtype) + deviation * noise).astype(x.dtype)

    return jax.tree.unflatten(structure, [noised(x, key) for x, key in zip(leaves, keys, strict=True)])
