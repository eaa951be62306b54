"""A wrapper that keeps the running statistics of batch norm from a rule, in the manner of `optax.masked`."""

from typing import Any

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Context, Count, PyTree, Rows, is_finite


def parameters_only(rule: Aggregator) -> Aggregator:
    """Gives a rule the parameters of the updates only; everything beside them is averaged with the weights it gave.

        w_i = mean over the layers of the parameters of client i's weight, 0 if its statistics are not finite
        statistics = sum of w_i * statistics_i / sum of w_i

    An update is a dict of collections, `{"params": ..., "batch_stats": ...}`. Without a second collection the wrapper
    changes nothing. A client whose statistics are not finite counts for nothing: the rule, which does not see them,
    cannot reject it. In the diagnostics the weight of a statistic is the share w_i / sum of w; what else a rule says
    of each layer is NaN there.

    Args:
      rule: any rule. Pre-aggregators go inside: `parameters_only(chain(pre, rule))`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.parameters_only(aggregators.krum())
      >>> rows = jnp.array([[0.0], [0.1], [0.2], [9.0]])
      >>> updates = {"params": {"w": rows}, "batch_stats": {"mean": rows + 1}}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=1)
      >>> bool(jnp.allclose(update["batch_stats"]["mean"], update["params"]["w"] + 1))
      True
    """

    def init(params: PyTree) -> PyTree:
        return rule.init(_parameters(params))

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, Any]:
        if isinstance(updates, Rows):
            raise TypeError("parameters_only(rule): pre-aggregators go inside, parameters_only(chain(pre, rule))")
        update, state, info = rule.aggregate(
            _parameters(updates),
            state,
            key=key,
            num_malicious=num_malicious,
            present=present,
            **rule.knowing(None if context is None else context.parameters_only()),
        )
        rest = {name: rows for name, rows in updates.items() if name != "params"}
        if not rest:
            return update, state, info
        finite = ops.map_rows(is_finite, rest)
        mean = jnp.mean(jnp.stack(jax.tree.leaves(info.weight)), axis=0)
        share = jnp.where(finite, mean, 0.0)
        share = share / jnp.where(jnp.sum(share) > 0, jnp.sum(share), 1.0)
        unknown = jax.tree.map(lambda _: jnp.full(share.shape, jnp.nan, share.dtype), rest)
        by_layer = {
            name: {**value, **unknown}
            for name, value in info._asdict().items()
            if name != "weight" and _is_by_layer(value, info)
        }
        by_layer["weight"] = {**info.weight, **jax.tree.map(lambda _: share, rest)}
        return {**update, **ops.weighted_sum(share, rest)}, state, info._replace(**by_layer)

    return Aggregator(init, aggregate, rule.needs)


def _parameters(tree: PyTree) -> PyTree:
    return {"params": tree["params"]}


def _is_by_layer(value: PyTree, info: Any) -> bool:
    """Whether a field of the diagnostics has a number for each client and layer, as `weight` has."""
    structure: Any = jax.tree.structure(info.weight)
    shapes = {x.shape for x in jax.tree.leaves(info.weight)}
    return structure == jax.tree.structure(value) and all(jnp.shape(x) in shapes for x in jax.tree.leaves(value))
