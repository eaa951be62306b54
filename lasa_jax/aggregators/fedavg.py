"""Federated averaging (McMahan, Moore, Ramage, Hampson and Agüera y Arcas, AISTATS 2017).

F(Delta) = (Delta_1 + ... + Delta_n) / n, or sum_i n_i Delta_i / sum_i n_i with n_i examples of client i
"""

import jax

from lasa_jax.aggregators.base import Aggregator, Context, Count, Diagnostics, PyTree, Rows, stateless
from lasa_jax.aggregators.sizes import mean_weights, needs_of, sizes_of


def fedavg(weighting: str = "equal") -> Aggregator:
    """The plain mean of the clients present, as in the official code (docs/fidelity.md, section 3.1): not robust.

    One client moves the result anywhere, and one that sends NaN makes it NaN; the rule's definition does not scrub it.

    Args:
      weighting: "equal", or "size": by the number of a client's examples, as in the paper.

    Raises:
      InputError: for another word.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.fedavg()
      >>> updates = {"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.0, 4.0]
    """
    needs = needs_of(weighting)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, Diagnostics]:
        rows = Rows.of(updates, present)
        weight = mean_weights(rows, rows.present, sizes_of(rows, weighting, context, "fedavg"))
        return rows.weighted_sum(weight), state, Diagnostics(weight)

    return Aggregator(stateless, aggregate, needs)
