"""Pre-aggregators for `chain`: steps in front of a rule that reject clients, map each update, or mix the updates."""

import math

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Count, PreAggregator, PyTree, Rows, Scalar, at_most, scale
from lasa_jax.errors import check_number


def reject_nonfinite() -> PreAggregator:
    """Drops every client whose update holds a NaN or an infinity anywhere; it is never counted again."""

    def step(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        largest, _ = rows.sizes
        return rows.accepting(jnp.isfinite(largest))

    return step


def clip_to_median_norm() -> PreAggregator:
    """Scales every update down to the lower median of the clients' norms.

        row_i <- row_i * min(1, m / norm_i),    m = lower median of norm_1 .. norm_n, norms over the whole update

    A zero update stays zero. Source: LASA's official code, docs/fidelity.md, section 2.1.
    """

    def step(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        _, norms = rows.sizes
        median = ops.masked_median(norms, rows.present, lower=True)
        return rows.mapped(scale, clip_factors(norms, median))

    return step


@jax.custom_jvp
def clip_factors(norms: jax.Array, limit: jax.Array) -> jax.Array:
    """min(1, limit / norm), `(n,)`, and 1 for a norm that is NaN. Those of norms that are not finite are constants."""
    longer = norms > limit
    return jnp.where(longer, limit / jnp.where(longer, norms, 1.0), 1.0)


@clip_factors.defjvp
def _clip_factors_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (norms, limit), (of_norms, of_limit) = primals, tangents
    factors = clip_factors(norms, limit)
    # In this form no square of a small norm is divided by.
    moves = (norms > limit) & jnp.isfinite(norms) & (norms >= jnp.finfo(norms.dtype).tiny)
    return factors, jnp.where(moves, of_limit - factors * of_norms, 0) / jnp.where(moves, norms, 1)


def clip_to_norm(clip_norm: Scalar = 1.0, quantile: Scalar | None = None, noise: Scalar | None = None) -> PreAggregator:
    """Scales every update down to a norm, and adds noise to it where told.

        row_i <- row_i * min(1, limit / norm_i) + noise * g_i,    g_i standard normal

    A row whose norm is not finite has no direction and becomes zero.

    Args:
      clip_norm: limit, `> 0`, where there is no quantile (static clipping). May be traced.
      quantile: limit is this quantile of the round's norms that are finite, between two of them in proportion,
        `0 <= quantile <= 1`. Andrew, Thakkar, McMahan and Ramaswamy, NeurIPS 2021, move a limit towards the quantile over
        the rounds; here each round has its own, and nothing is carried over. May be traced.
      noise: standard deviation of what is added to each coordinate of each clipped row, `>= 0`, drawn from the round's key
        by the place of the row; a mean of n rows then has noise / sqrt(n). None: nothing is drawn. May be traced.

    Raises:
      InputError: for a number out of range.
    """
    check_number("clip_norm", clip_norm, above=0)
    if quantile is not None:
        check_number("quantile", quantile, low=0, high=1)
    if noise is not None:
        check_number("noise", noise, low=0)

    def step(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        _, norms = rows.sizes
        finite = jnp.isfinite(norms)
        if quantile is None:
            factors = 1 / jnp.maximum(norms / jnp.asarray(clip_norm, rows.dtype), 1)
        else:
            factors = clip_factors(norms, _quantile(norms, rows.present & finite, quantile))
        clipped = rows.mapped(_clip, jnp.where(finite, factors, 0.0))
        if noise is None:
            return clipped
        deviation = jnp.full(len(norms), noise, rows.dtype)
        return clipped.mapped(_with_noise, (jax.random.split(key, len(norms)), deviation))

    return step


def arc(assumed_malicious: Count | None = None) -> PreAggregator:
    """Scales the longest updates down to the next shorter one (adaptive robust clipping).

        row_i <- row_i * min(1, c / norm_i),    c = the (k + 1)-th largest norm,    k = floor(2 (f / n) (n - f))

    Source: Allouah, Guerraoui, Gupta, Jellouli, Rizk and Stephan, ICLR 2025. An (f, kappa)-robust rule behind it stays one,
    with a slightly larger kappa. With f = 0 nothing happens, and a zero update stays zero. A row whose norm is not finite
    has no direction and becomes zero.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be traced.
    """
    if assumed_malicious is not None:
        check_number("assumed_malicious", assumed_malicious, low=0, whole=True)

    def step(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        _, norms = rows.sizes
        n = rows.count
        f = at_most((n - 1) // 2, num_malicious if assumed_malicious is None else assumed_malicious)
        finite = jnp.isfinite(norms)
        ordered = jnp.sort(jnp.where(rows.present & finite, norms, 0.0), descending=True, stable=False)
        # Norms that are not finite are the largest.
        beyond = jnp.sum(rows.present & ~finite, dtype=jnp.int32)
        k = jnp.maximum(2 * f * (n - f) // jnp.maximum(n, 1) - beyond, 0)
        factors = clip_factors(norms, ordered[jnp.minimum(k, len(norms) - 1)])

        def clip(row: PyTree, factor: jax.Array) -> PyTree:
            return jax.tree.map(lambda x: jnp.where(factor > 0, x.astype(factor.dtype) * factor, 0), row)

        return rows.mapped(clip, jnp.where(finite, factors, 0.0))

    return step


def _clip(row: PyTree, scale: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(scale > 0, x.astype(scale.dtype) * scale, 0), row)


def _with_noise(row: PyTree, numbers: tuple[jax.Array, jax.Array]) -> PyTree:
    """One update and standard normal numbers times a deviation, which depend on its key only."""
    key, deviation = numbers
    leaves, structure = jax.tree.flatten(row)
    draws = [jax.random.normal(jax.random.fold_in(key, i), x.shape, deviation.dtype) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, [x + deviation * draw for x, draw in zip(leaves, draws, strict=True)])


def _quantile(norms: jax.Array, which: jax.Array, quantile: Scalar) -> jax.Array:
    """A quantile of the norms that count, in proportion between two of them; 0 if none does."""
    count = jnp.sum(which, dtype=jnp.int32)
    ordered = jnp.sort(jnp.where(which, norms, jnp.inf), stable=False)
    ordered = jnp.where(jnp.isfinite(ordered), ordered, 0.0)
    place = jnp.asarray(quantile, norms.dtype) * jnp.maximum(count - 1, 0).astype(norms.dtype)
    lower = jnp.floor(place).astype(jnp.int32)
    share = place - lower.astype(norms.dtype)
    low, high = ordered[lower], ordered[jnp.minimum(lower + 1, jnp.maximum(count - 1, 0))]
    return low + share * (high - low)


def nearest_neighbour_mixing(assumed_malicious: Count | None = None) -> PreAggregator:
    """Replaces every update by the mean of the n - f updates nearest to it, itself included (NNM).

        row_i <- 1 / (n - f) * sum of row_j over the n - f rows j nearest to row_i

    Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan, AISTATS 2023, algorithm 2. A client whose update is
    not finite has no neighbours and is not counted again.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be traced.
    """
    if assumed_malicious is not None:
        check_number("assumed_malicious", assumed_malicious, low=0, whole=True)

    def step(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        f = at_most((rows.count - 1) // 2, num_malicious if assumed_malicious is None else assumed_malicious)
        distances = rows.squared_distances
        usable = jnp.isfinite(jnp.diagonal(distances))
        near = usable[:, None] & usable[None, :] & (ops.rank_of(distances) < rows.count - f)
        return rows.mixed(_means(near, rows.dtype), usable)

    return step


def bucketing(bucket_size: Count = 2) -> PreAggregator:
    """Replaces the updates by the means of random buckets of them: `ceil(n / bucket_size)` rows are left.

        row_b <- mean of the rows of bucket b,    buckets of s rows in a random order

    Source: Karimireddy, He and Jaggi, ICLR 2022, algorithm 1 (s-bucketing).

    Args:
      bucket_size: s, clients a bucket, `>= 1`; the last bucket has what is left. May be traced.
    """
    check_number("bucket_size", bucket_size, low=1, whole=True)

    def step(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        n = len(rows.present)
        draws = jnp.where(rows.present, jax.random.bits(key, (n,), jnp.uint32) >> 1, jnp.uint32(0xFFFFFFFF))
        bucket = ops.rank_of(draws) // jnp.asarray(bucket_size, jnp.int32)  # of each client
        member = (jnp.arange(n, dtype=jnp.int32)[:, None] == bucket[None, :]) & rows.present[None, :]
        return rows.mixed(_means(member, rows.dtype), jnp.any(member, axis=1))

    return step


def _means(members: jax.Array, kind: jnp.dtype) -> jax.Array:
    """The mixing whose rows are means of the marked clients, bool `(n, n)` to the same; zeros where none is marked."""
    sizes = jnp.maximum(jnp.sum(members, axis=1, keepdims=True, dtype=jnp.int32), 1)
    return members.astype(kind) / sizes.astype(kind)


def _is_masked(x: jax.Array) -> bool:
    """Whether a layer of one update takes part in the sparsification: matrices and kernels do, vectors do not."""
    return x.ndim >= 2


def num_kept_entries(params: PyTree, sparsity_level: float) -> int:
    """`int(m * (1 - sparsity_level))` in double precision, m the entries of layers with two or more dimensions.

    Args:
      params: one update's worth of arrays or shapes.
      sparsity_level: share of the m entries that is zeroed.
    """
    m = sum(math.prod(x.shape) for x in jax.tree.leaves(params) if _is_masked(x))
    return int(share_kept(m, float(sparsity_level)))


def share_kept(count: int, sparsity_level: Scalar) -> Count:
    """`int(count * (1 - sparsity_level))`, in double precision for a Python number, in float32 for a traced one."""
    if isinstance(sparsity_level, jax.Array):
        return jnp.floor(count * (1 - sparsity_level.astype(jnp.float32))).astype(jnp.int32)
    return int(count * (1 - sparsity_level))


def keep_top_k(sparsity_level: Scalar = 0.3, num_kept: Count | None = None) -> PreAggregator:
    """Zeroes all but the largest magnitudes of each client's whole update.

        x_j <- x_j if abs(x_j) > t_i else 0,    t_i = the k-th largest magnitude of client i,    k = num_kept

    One threshold per client over all layers with two or more dimensions together; vectors (biases, batch-norm scales) are
    neither counted nor zeroed. The comparison is strict, so k - 1 entries survive, and ties with the threshold go.
    Nothing is zeroed at a sparsity level of exactly 0, everything at k <= 1.
    Source: LASA's official code, docs/fidelity.md, section 2.1; supplement, section B (SL = 1 - k/d).

    Args:
      sparsity_level: share of the entries that is zeroed, `0 <= sparsity_level <= 1`. A Python number gives
        `k = int(m * (1 - sparsity_level))` in double precision; a traced one is computed in float32, where k can be off
        by about `m / 10**7`.
      num_kept: k itself, in place of the level; may be traced. See `num_kept_entries`.
    """
    check_number("sparsity_level", sparsity_level, low=0, high=1)
    if num_kept is not None:
        check_number("num_kept", num_kept, low=0, whole=True)

    def step(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows.stack)
        m = num_kept_entries(params, 0)
        k = share_kept(m, sparsity_level) if num_kept is None else num_kept
        if m == 0:
            return rows

        def masked(row: PyTree) -> list[jax.Array]:
            leaves = [x for x in jax.tree.leaves(row) if _is_masked(x)]
            if not ops.one_at_a_time():
                return leaves
            # Joined, one row fits a CPU's cache. Leaf by leaf: with `concatenate`, each entry would look for its leaf.
            values, start = jnp.zeros(m, ops.wide(row)), 0
            for x in leaves:
                values, start = values.at[start : start + x.size].set(x.ravel().astype(values.dtype)), start + x.size
            return [values]

        def mask(row: PyTree, threshold: jax.Array) -> PyTree:
            def keep(x: jax.Array) -> jax.Array:
                return jnp.where(jnp.abs(x).astype(jnp.float32) > threshold, x, 0) if _is_masked(x) else x

            return jax.tree.map(keep, row)

        threshold = jnp.where(jnp.asarray(k) >= m, -1.0, rows.threshold(masked, k))
        return rows.mapped(mask, threshold)

    return step
