"""SignGuard (Xu, Huang, Song and Lan, ICDCS 2022): a norm band, and clustering by sign statistics."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Count, PyTree, Rows, Scalar, equal_weights, stateless
from lasa_jax.aggregators.preaggregators import clip_factors
from lasa_jax.errors import check_choice, check_number

_MEAN_SHIFT_STEPS = 300


class SignDiagnostics(NamedTuple):
    """Why SignGuard kept a client.

    weight: see `Diagnostics`. norm: `(n,)`. features: `(n, 3)`, shares of positive, zero and negative signs over their
    largest; a fourth of `signguard_sim`. in_band, in_cluster: bool `(n,)`, the two filters.
    """

    weight: PyTree
    norm: jax.Array
    features: jax.Array
    in_band: jax.Array
    in_cluster: jax.Array


def signguard(
    lower: Scalar = 0.1,
    upper: Scalar = 3.0,
    coordinate_fraction: float = 0.1,
    variant: str = "paper",
    window_start: Count | None = None,
) -> Aggregator:
    """Averages the clients whose norm is ordinary and whose signs are like those of the largest cluster.

        band    = {i : lower * m < |x_i| < upper * m},    m = median of the norms
        cluster = the largest that mean shift finds among (share of +, share of 0, share of -) on a part of the coordinates
        F(Delta) = mean over band and cluster of x_i * min(1, m / |x_i|)

    Does not use `num_malicious`. A client whose norm is not finite is outside the band. Where band and cluster have
    nobody in common, the band is averaged (the official code gives NaN). The result is no longer than m, so while the
    benign clients are the majority, no longer than the longest of theirs; as in the official code no longer than upper * m.

    Args:
      lower, upper: the band, in median norms, `0 <= lower < upper`. May be traced.
      coordinate_fraction: share of the coordinates whose signs are looked at, `0 < coordinate_fraction <= 1`.
      variant: "paper" draws the coordinates at random and clips the members; "official" takes one window of consecutive
        coordinates, starts the mean shift at bins, and averages the members as they are
        (docs/fidelity.md, section 3.1).
      window_start: first coordinate of the window in the order of the flattened tree, in place of the draw.

    Raises:
      InputError: for a number out of range.
    """
    check_number("lower", lower, low=0)
    check_number("upper", upper, above=0)
    if not any(isinstance(x, jax.core.Tracer) for x in (lower, upper)):
        check_number("upper", upper, above=float(lower))
    check_number("coordinate_fraction", coordinate_fraction, above=0, high=1)
    check_choice("variant", variant, ("paper", "official"))

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, SignDiagnostics]:
        rows = Rows.of(updates, present)
        params = jax.tree.map(lambda x: x[0], rows.stack)
        part = looked_at(params, key, coordinate_fraction, variant, window_start)
        norm, signs = rows.each(lambda row, part: (ops.tree_norm(row), sign_counts(row, part)), part)
        norm = jnp.where(jnp.isfinite(norm), norm, jnp.inf)
        median, in_band = norm_band(norm, rows.present, lower, upper)
        features = sign_shares(signs, rows.present)
        in_cluster = largest_cluster(features, rows.present, binned=variant == "official")
        kept = jnp.where(jnp.any(in_band & in_cluster), in_band & in_cluster, in_band)
        weight = equal_weights(rows, kept)
        if variant == "paper":
            clip = clip_factors(norm, median)
            weight = jax.tree.map(lambda w: w * clip, weight)
        return rows.weighted_sum(weight), state, SignDiagnostics(weight, norm, features, in_band, in_cluster)

    return Aggregator(stateless, aggregate)


def looked_at(params: PyTree, key: jax.Array, fraction: float, variant: str, start: Count | None) -> PyTree:
    """True in the coordinates whose signs count: a window where the variant or its start say so, else drawn ones."""
    if variant == "official" or start is not None:
        return _window(params, key, fraction, start)
    return _random_part(params, key, fraction)


def norm_band(norm: jax.Array, present: jax.Array, lower: Scalar, upper: Scalar) -> tuple[jax.Array, jax.Array]:
    """The median of the norms, and who is in the band around it, bool `(n,)`."""
    median = ops.masked_median(norm, present)
    low, high = (jnp.asarray(share, norm.dtype) * median for share in (lower, upper))
    return median, present & (norm > low) & (norm < high)


def sign_shares(signs: jax.Array, present: jax.Array) -> jax.Array:
    """Shares of the signs over their largest, `(n, 3)`, of their counts; 0 for absent clients."""
    shares = jnp.where(present[:, None], signs / jnp.maximum(jnp.sum(signs, axis=1, keepdims=True), 1), 0.0)
    return shares / (jnp.max(shares, axis=0, keepdims=True) + 1e-8)


def _window(params: PyTree, key: jax.Array, fraction: float, start: Count | None) -> PyTree:
    """True in one window of consecutive coordinates of the flattened tree."""
    leaves, structure = jax.tree.flatten(params)
    d = sum(x.size for x in leaves)
    width = max(int(fraction * d), 1)
    if start is not None:
        check_number("window_start", start, low=0, high=d - width, whole=True)
    first = (
        jax.random.randint(key, (), 0, max(d - width, 1), jnp.int32) if start is None else jnp.asarray(start, jnp.int32)
    )
    masks, offset = [], 0
    for x in leaves:
        at = offset + jnp.arange(x.size, dtype=jnp.int32).reshape(x.shape)
        masks.append((at >= first) & (at < first + width))
        offset += x.size
    return jax.tree.unflatten(structure, masks)


def _random_part(params: PyTree, key: jax.Array, fraction: float) -> PyTree:
    """True in a share of the coordinates, drawn without replacement."""
    leaves, structure = jax.tree.flatten(params)
    ends = np.cumsum([x.size for x in leaves])
    draws = jax.random.uniform(key, (int(ends[-1]),), jnp.float32)
    chosen = draws >= ops.magnitude_threshold(draws, max(int(fraction * ends[-1]), 1))
    parts = jnp.split(chosen, ends[:-1])
    return jax.tree.unflatten(structure, [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)])


def sign_counts(row: PyTree, part: PyTree) -> jax.Array:
    """How many of the looked-at entries of one update are positive, zero and negative, float32 `(3,)`."""
    pairs = zip(jax.tree.leaves(row), jax.tree.leaves(part), strict=True)
    signs = [ops.counts((x > 0) & here, (x == 0) & here, (x < 0) & here) for x, here in pairs]
    return jnp.stack([sum(leaf) for leaf in zip(*signs, strict=True)]).astype(jnp.float32)


def largest_cluster(points: jax.Array, present: jax.Array, *, binned: bool = False) -> jax.Array:
    """Members of the largest cluster that mean shift with a flat kernel finds: `(n, k)` and `(n,)` to bool `(n,)`.

    Every point moves to the mean of the points within the bandwidth until it moves by less than a thousandth of it. Of
    the places where they end, those with most points come first and take away the others within the bandwidth; each point
    belongs to the nearest place that is left, or to none if it is farther than the bandwidth. The bandwidth is the mean
    over points of the distance to the `n // 2`-th nearest, itself included.

    Args:
      points: `(n, k)`.
      present: bool `(n,)`.
      binned: what moves is not every point but every bin of a grid as wide as the bandwidth that has a point, from its
        middle: fewer starts, which may end in other places. Where no two points share a bin the points move.

    Source: Comaniciu and Meer, IEEE PAMI 2002; the choices are those of scikit-learn's `MeanShift(cluster_all=False,
    bin_seeding=binned)` and `estimate_bandwidth(quantile=0.5)`, which the tests compare with.
    """
    points, n = jax.lax.stop_gradient(points), len(points)  # who belongs to a cluster has no derivative
    count = jnp.sum(present, dtype=jnp.int32)

    def apart(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum((a[:, None] - b[None, :]) ** 2, axis=-1))

    between = jnp.where(present[:, None] & present[None, :], apart(points, points), jnp.inf)
    nearest = jnp.sort(between, axis=1, stable=False)[:, jnp.maximum(count // 2, 1) - 1]
    bandwidth = jnp.sum(jnp.where(present, nearest, 0.0)) / jnp.maximum(count, 1).astype(points.dtype)

    def within(places: jax.Array) -> jax.Array:
        return (apart(places, points) <= bandwidth) & present[None, :]

    def shift(carry: tuple) -> tuple:
        places, moving, index = carry
        near = within(places).astype(points.dtype)
        size = jnp.sum(near, axis=1, keepdims=True)
        moved = jnp.where(size > 0, ops.product(near, points) / jnp.maximum(size, 1), places)
        moved = jnp.where(moving[:, None], moved, places)
        far = jnp.sqrt(jnp.sum((moved - places) ** 2, axis=1)) > 1e-3 * bandwidth
        return moved, moving & far, index + 1

    seeds, starts = _bins(points, present, bandwidth) if binned else (points, present)
    start = (seeds, starts, jnp.int32(0))
    places, _, _ = jax.lax.while_loop(lambda c: jnp.any(c[1]) & (c[2] < _MEAN_SHIFT_STEPS), shift, start)
    size = jnp.sum(within(places), axis=1, dtype=jnp.int32)
    starts = starts & (size > 0)  # the middle of a bin may be far from all points
    size = jnp.where(starts, size, -1)
    order = jnp.lexsort((*places.T[::-1], size))[::-1]  # by size, then by the place itself, descending
    places, is_place = places[order], starts[order]
    close = apart(places, places) <= bandwidth
    before = close & (jnp.arange(n)[None, :] < jnp.arange(n)[:, None])  # [i, j]: j comes first and is close

    def thin(carry: tuple) -> tuple:
        # A place is left if nothing before it can take it away any more; many are decided in each step.
        left, open_ = carry
        new = open_ & ~jnp.any(before & open_[None, :], axis=1)
        return left | new, open_ & ~new & ~jnp.any(before & new[None, :], axis=1)

    left, _ = jax.lax.while_loop(lambda c: jnp.any(c[1]), thin, (jnp.zeros(n, bool), is_place))
    distance = jnp.where(left[None, :], apart(points, places), jnp.inf)
    label = jnp.argmin(distance, axis=1)
    belongs = present & (jnp.min(distance, axis=1) <= bandwidth)
    members = jnp.sum((label[:, None] == jnp.arange(n)[None, :]) & belongs[:, None], axis=0)
    return belongs & (label == jnp.argmax(members))


def _bins(points: jax.Array, present: jax.Array, width: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Middles of the bins of the points, `(n, k)`, and which of them count: one for each bin, bool `(n,)`."""
    bins = jnp.round(points / jnp.where(width > 0, width, 1.0))
    place = jnp.arange(len(points), dtype=jnp.int32)
    shared = jnp.all(bins[:, None] == bins[None, :], axis=-1) & present[:, None] & present[None, :]
    starts = present & ~jnp.any(shared & (place[None, :] < place[:, None]), axis=1)
    alone = (width == 0) | jnp.all(starts == present)  # no two share a bin
    return jnp.where(alone, points, bins * width), jnp.where(alone, present, starts)
