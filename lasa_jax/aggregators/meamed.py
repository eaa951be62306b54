"""Mean around median (Xie, Koyejo and Gupta, 2018, arXiv 1802.10116)."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Assumed, Count, PyTree, Rows, at_most, equal_weights, stateless
from lasa_jax.aggregators.krum import nearest_window
from lasa_jax.errors import check_number


def meamed(assumed_malicious: Count | None = None) -> Aggregator:
    """Averages, in every coordinate, the n - f values nearest to their median.

        F(Delta)_j = mean of the n - f values among Delta_1j, ..., Delta_nj nearest to m_j,    m_j their median

    For an even n the median is the mean of the two middle values; with f = 0 the result is the mean. While no more than f
    clients are malicious, a value that is averaged is no farther from the median than some benign one, and the median lies
    within the benign values. NaN counts as the largest value; where more than f values of a coordinate are not finite, the
    result may not be. `weight` is 1/n for every client: the rule drops values, not clients.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be traced.

    Raises:
      InputError: for a number out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.meamed(assumed_malicious=1)
      >>> updates = {"w": jnp.array([[1.0], [2.0], [3.0], [4.0], [100.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.5]
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
    ) -> tuple[PyTree, PyTree, Assumed]:
        rows = Rows.of(updates, present)
        f = at_most((rows.count - 1) // 2, num_malicious if assumed_malicious is None else assumed_malicious)

        def around_median(block: jax.Array, present: jax.Array, f: jax.Array) -> jax.Array:
            ordered, count = ops.sort_clients(block, present), jnp.sum(present, dtype=jnp.int32)
            median = ordered[jnp.maximum(count - 1, 0) // 2] / 2 + ordered[count // 2] / 2
            return ops.average_of_ranks(ordered, nearest_window(ordered, count, median, count - f), count - f)

        return rows.columns(around_median, f), state, Assumed(equal_weights(rows, rows.present), f)

    return Aggregator(stateless, aggregate)
