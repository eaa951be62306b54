"""Coordinate-wise rules: trimmed mean and median (Yin, Chen, Ramchandran and Bartlett, ICML 2018, definitions 1 and 2)."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import (
    Aggregator,
    Assumed,
    Count,
    Diagnostics,
    PyTree,
    Rows,
    at_most,
    equal_weights,
    stateless,
)
from lasa_jax.errors import check_choice, check_number


def trimmed_mean(num_trimmed: Count | None = None, variant: str = "paper") -> Aggregator:
    """Drops the f smallest and the f largest values of every coordinate and averages the rest.

        F(Delta)_j = mean of the n - 2f middle values of Delta_1j, ..., Delta_nj

    Stays within the values of the benign clients if at most f are malicious. NaN counts as the largest value: where more
    than f clients send it, the result is infinite, and a run diverges. `weight` is 1/n for every client: the rule drops
    values, not clients.

    Args:
      num_trimmed: f, values dropped at each end; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be
        traced.
      variant: "paper" as above; "official" drops 10 at each end whatever n is (docs/fidelity.md, section 3.1).

    Raises:
      InputError: for a value out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.trimmed_mean(num_trimmed=1)
      >>> updates = {"w": jnp.array([[1.0], [2.0], [3.0], [100.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.5]
    """
    check_choice("variant", variant, ("paper", "official"))
    if num_trimmed is not None:
        check_number("num_trimmed", num_trimmed, low=0, whole=True)
    elif variant == "official":
        num_trimmed = 10

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, Assumed]:
        rows = Rows.of(updates, present)
        f = at_most((rows.count - 1) // 2, num_malicious if num_trimmed is None else num_trimmed)

        def middle(block: jax.Array, present: jax.Array, f: jax.Array) -> jax.Array:
            return ops.average_of_ranks(ops.sort_clients(block, present), f, jnp.sum(present, dtype=jnp.int32) - 2 * f)

        return rows.columns(middle, f), state, Assumed(equal_weights(rows, rows.present), f)

    return Aggregator(stateless, aggregate)


def median() -> Aggregator:
    """The median of every coordinate; for an even n the mean of the two middle values.

    Stays within the values of the benign clients as long as they are the majority. NaN counts as the largest value: where
    half of the clients or more send it, the result is infinite.

    `weight` is 1/n for every client. The official code has two medians but its training loop uses neither.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.median()
      >>> updates = {"w": jnp.array([[1.0], [2.0], [100.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.0]
    """

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

        def middle(block: jax.Array, present: jax.Array) -> jax.Array:
            n = jnp.sum(present, dtype=jnp.int32)
            return ops.average_of_ranks(ops.sort_clients(block, present), (n - 1) // 2, jnp.where(n > 0, 2 - n % 2, 0))

        return rows.columns(middle), state, Diagnostics(equal_weights(rows, rows.present))

    return Aggregator(stateless, aggregate)
