"""Comparative gradient elimination (Gupta, Liu and Vaidya, DSN workshops 2021)."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import (
    Aggregator,
    Count,
    PyTree,
    Rows,
    Selection,
    at_most,
    equal_weights,
    stateless,
)
from lasa_jax.errors import check_number


def cge(assumed_malicious: Count | None = None) -> Aggregator:
    """Drops the f clients of largest norm and averages the rest.

        F(Delta) = mean of the n - f updates of smallest norm

    The paper adds them up; the mean is the same direction. No client that is averaged is longer than the longest benign
    one while no more than f are malicious, but nothing limits its direction: f malicious clients that stay short turn the
    mean by their share. A client whose norm is not finite is never averaged. Of equal norms the client that comes first is
    kept; a zero update always is.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `n - 1`. May be traced.

    Raises:
      InputError: for a number out of range.

    `score` in the diagnostics is the norm.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.cge(assumed_malicious=1)
      >>> updates = {"w": jnp.array([[1.0], [2.0], [3.0], [-100.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.0]
    """
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
        f = at_most(rows.count - 1, num_malicious if assumed_malicious is None else assumed_malicious)
        _, norms = rows.sizes
        score = jnp.where(rows.present & jnp.isfinite(norms), norms, jnp.inf)
        weight = equal_weights(rows, jnp.isfinite(score) & (ops.rank_of(score) < rows.count - f))
        return rows.weighted_sum(weight), state, Selection(weight, f, score)

    return Aggregator(stateless, aggregate)
