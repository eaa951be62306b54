"""Links for `chain`: steps in front of a rule that reject clients or map each client's update."""

import math

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Count, Link, PyTree, Rows, Scalar
from lasa_jax.errors import check_number


def reject_nonfinite() -> Link:
    """Drops every client whose update holds a NaN or an infinity anywhere; it is never counted again."""

    def link(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        def finite(row: PyTree) -> jax.Array:
            return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(row)]))

        return rows.accepting(rows.each(finite))

    return link


def clip_to_median_norm() -> Link:
    """Scales every update down to the lower median of the clients' norms.

        row_i <- row_i * min(1, m / norm_i),    m = lower median of norm_1 .. norm_n, norms over the whole update

    A zero update stays zero. Source: LASA's published code, FIDELITY.md, section 2, step 1.
    """

    def link(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        norms = rows.each(ops.tree_norm)
        median = ops.masked_median(norms, rows.present, lower=True)
        scales = jnp.where(norms > median, median / norms, 1.0)
        return rows.mapped(lambda row, scale: jax.tree.map(lambda x: x * scale, row), scales)

    return link


def _is_masked(x: jax.Array) -> bool:
    """Whether a layer of one update takes part in the sparsification: matrices and kernels do, vectors do not."""
    return x.ndim >= 2


def num_kept_entries(params: PyTree, sparsity_level: float) -> int:
    """`int(m * (1 - sparsity_level))` in double precision, m the entries of layers with two or more dimensions.

    Args:
      params: one update's worth of arrays or shapes.
      sparsity_level: share of the m entries that is zeroed.
    """
    return int(sum(math.prod(x.shape) for x in jax.tree.leaves(params) if _is_masked(x)) * (1 - sparsity_level))


def keep_top_k(sparsity_level: Scalar = 0.3, num_kept: Count | None = None) -> Link:
    """Zeroes all but the largest magnitudes of each client's whole update.

        x_j <- x_j if abs(x_j) > t_i else 0,    t_i = the k-th largest magnitude of client i,    k = num_kept

    One threshold a client over all layers with two or more dimensions together; vectors (biases, batch-norm scales) are
    neither counted nor zeroed. The comparison is strict, so k - 1 entries survive, and ties with the threshold go.
    Nothing is zeroed at a sparsity level of exactly 0, everything at k <= 1.
    Source: LASA's published code, FIDELITY.md, section 2, step 2; supplement, section B (SL = 1 - k/d).

    Args:
      sparsity_level: share of the entries that is zeroed, `0 <= sparsity_level <= 1`. A Python number gives
        `k = int(m * (1 - sparsity_level))` in double precision; a traced one is computed in float32, where k can be off
        by about `m / 10**7`.
      num_kept: k itself, in place of the level; may be traced. See `num_kept_entries`.
    """
    check_number("sparsity_level", sparsity_level, low=0, high=1)
    if num_kept is not None:
        check_number("num_kept", num_kept, low=0)

    def link(rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows:
        params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows.stack)
        m = num_kept_entries(params, 0)
        k: Count
        if num_kept is not None:
            k = num_kept
        elif isinstance(sparsity_level, jax.Array):
            k = jnp.floor(m * (1 - sparsity_level)).astype(jnp.int32)
        else:
            k = num_kept_entries(params, sparsity_level)
        if m == 0:
            return rows

        def threshold(row: PyTree) -> jax.Array:
            values = jnp.concatenate([x.ravel() for x in jax.tree.leaves(row) if _is_masked(x)])
            return jnp.where(k >= m, -1.0, ops.magnitude_threshold(values, k))

        def mask(row: PyTree, threshold: jax.Array) -> PyTree:
            return jax.tree.map(lambda x: jnp.where(jnp.abs(x) > threshold, x, 0) if _is_masked(x) else x, row)

        return rows.mapped(mask, rows.each(threshold))

    return link
