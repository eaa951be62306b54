"""Federated averaging (McMahan, Moore, Ramage, Hampson and Agüera y Arcas, AISTATS 2017), unweighted.

F(Delta) = (Delta_1 + ... + Delta_n) / n
"""

import jax

from lasa_jax.aggregators.base import Aggregator, Count, Diagnostics, PyTree, Rows, equal_weights, stateless


def fedavg() -> Aggregator:
    """The plain mean of the clients present, as in the official code (docs/fidelity.md): not robust.

    One client moves the result anywhere, and one that sends NaN makes it NaN; the rule's definition does not scrub it.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.fedavg()
      >>> updates = {"w": jnp.array([[1.0, 2.0], [3.0, 6.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.0, 4.0]
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
        weight = equal_weights(rows, rows.present)
        return rows.weighted_sum(weight), state, Diagnostics(weight)

    return Aggregator(stateless, aggregate)
