"""Multi-metric selection (Huang, Li, Chen, Shi and Zhang, ICCV 2023)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Count, PyTree, Rows, Scalar, equal_weights, stateless
from lasa_jax.errors import check_number

_SMALLEST = 1e-6  # share of a measure's variance that the others must leave to it


class MetricDiagnostics(NamedTuple):
    """Why multi-metric selection kept a client.

    weight: see `Diagnostics`. measures: `(n, 3)`, sums over the other clients. score: `(n,)`, smaller is better, infinite
    for clients that are absent or not finite.
    """

    weight: PyTree
    measures: jax.Array
    score: jax.Array


def multi_metric(share_kept: Scalar = 0.3) -> Aggregator:
    """Averages the clients that are ordinary in three measures of distance at once.

        t_i = (sum of (1 - cos(x_i, x_j))^2,  sum of |x_i - x_j|_1,  sum of ||x_i| - |x_j||), over the others j
        score_i = t_i^T K^-1 t_i,    K = the covariance of t_1 .. t_n,    F(Delta) = mean over the p n smallest scores

    The score is not centred, as in the paper. The third measure is that of the paper's later code, where the paper has the
    Euclidean distance. It is meant against backdoors; no bound is known, and a minority that moves K decides. A zero update
    is at cosine 0 to all. A client whose update is not finite is not counted.

    Where the other measures leave less than 1e-6 of a measure's variance, as beside a client that is very far out, that
    share is taken for 1e-6. Fewer than four clients, and clients that are the same in all measures, cannot be told apart:
    all of them are averaged. Clients who are kept count alike, whatever their numbers of examples: public code weighs them
    by size, here there is no `weighting`.

    Args:
      share_kept: p, `0 < p <= 1`; at least one client is kept. May be traced.

    Raises:
      InputError: for a number out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.multi_metric(share_kept=0.4)
      >>> updates = {"w": jnp.array([[1.0, 2.0], [1.1, 2.1], [0.9, 2.0], [1.2, 1.9], [-30.0, 9.0]])}
      >>> _, _, info = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> info.weight["w"].tolist()[-1]
      0.0
    """
    check_number("share_kept", share_kept, above=0, high=1)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, MetricDiagnostics]:
        rows = Rows.of(updates, present)
        usable = rows.present & jnp.isfinite(jnp.diagonal(rows.squared_distances))
        measures = jax.lax.stop_gradient(_measures(rows, usable))  # who is kept has no derivative
        score, told_apart = _quadratic_form(measures, usable)
        score = jnp.where(usable, score, jnp.inf)
        wanted = jnp.asarray(share_kept, jnp.float32) * rows.count.astype(jnp.float32)
        count = jnp.maximum(jnp.floor(wanted + 1e-4).astype(jnp.int32), 1)
        weight = equal_weights(rows, usable & ((ops.rank_of(score) < count) | ~told_apart))
        return rows.weighted_sum(weight), state, MetricDiagnostics(weight, measures, score)

    return Aggregator(stateless, aggregate)


def _measures(rows: Rows, usable: jax.Array) -> jax.Array:
    """The three sums of each client over the others, `(n, 3)`; 0 for clients that are not usable."""
    _, norms = rows.sizes
    others = usable[:, None] & usable[None, :] & ~jnp.eye(len(usable), dtype=bool)
    cosine = jnp.where(others, rows.cosine_distances, 0.0) ** 2
    length = jnp.where(others, norms[:, None] - norms[None, :], 0.0)
    each = (cosine, jnp.where(others, _l1_distances(rows.written), 0.0), jnp.abs(length))
    return jnp.stack([jnp.sum(x, axis=1) for x in each], axis=1)


def _l1_distances(stack: PyTree) -> jax.Array:
    """Sums of the absolute differences of all pairs of rows, `(n, n)`, in one reading."""

    def of_block(block: jax.Array) -> jax.Array:
        def to_all(row: jax.Array) -> jax.Array:
            return jnp.sum(jnp.abs(block - row[None]), axis=1)

        return jax.lax.map(to_all, block) if ops.one_at_a_time() else jax.vmap(to_all)(block)

    return ops.sum_columns(of_block, stack)


def _quadratic_form(t: jax.Array, usable: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`t_i^T K^-1 t_i` for the rows of `t`, `(n, 3)`, and whether the clients can be told apart.

    By K = L L^T and |L^-1 t_i|^2. Each measure is divided by its deviation first, which changes nothing in exact numbers
    and keeps float32 in range.
    """
    count = jnp.sum(usable, dtype=jnp.int32)
    deviation = ops.masked_std(t, usable)
    varies = deviation > 0
    here = usable[:, None] & varies[None, :]
    t = jnp.where(here, t / jnp.where(varies, deviation, 1.0)[None, :], 0.0)
    n = jnp.maximum(count, 2).astype(t.dtype)
    centred = jnp.where(here, t - (jnp.sum(t, axis=0) / n)[None, :], 0.0)
    k = ops.product(centred.T, centred) / (n - 1)
    lower: list[list[jax.Array]] = []
    white: list[jax.Array] = []
    for i in range(3):
        row: list[jax.Array] = []
        for j in range(i):
            row.append((k[i, j] - sum(row[m] * lower[j][m] for m in range(j))) / lower[j][j])
        left = jnp.maximum(k[i, i] - sum(x**2 for x in row), _SMALLEST)
        rest = t[:, i] - sum((x * y for x, y in zip(row, white, strict=True)), jnp.zeros_like(t[:, i]))
        white.append(rest / jnp.sqrt(left))
        lower.append([*row, jnp.sqrt(left)])
    return sum((x**2 for x in white), jnp.zeros_like(white[0])), (count >= 4) & jnp.any(varies)
