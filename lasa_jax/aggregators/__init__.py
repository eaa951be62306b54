"""Aggregation rules: what the server does with the clients' updates. One file a rule, all of them in `RULES`.

    rule = aggregators.lasa(sparsity_level=0.3)                 # or aggregators.create("lasa", sparsity_level=0.3)
    state = rule.init(params)
    update, state, diagnostics = rule.aggregate(updates, state, key=key, num_malicious=0)

`updates` is any pytree whose leaves have a leading client axis. To add a rule, write its file and name it in `RULES`.
"""

from collections.abc import Callable
from typing import Any

from lasa_jax import registry
from lasa_jax.aggregators.base import Aggregator, Diagnostics, Link, Rows, chain, stateless
from lasa_jax.aggregators.fedavg import fedavg
from lasa_jax.aggregators.lasa import FilterDiagnostics, lasa, layer_filter
from lasa_jax.aggregators.links import clip_to_median_norm, keep_top_k, num_kept_entries, reject_nonfinite

RULES: dict[str, Callable[..., Aggregator]] = {
    "fedavg": fedavg,
    "lasa": lasa,
}


def names() -> list[str]:
    """The rules that `create` knows, sorted."""
    return sorted(RULES)


def create(name: str, **parameters: Any) -> Aggregator:
    """Builds a rule by name: `create("lasa", sparsity_level=0.5)` is `lasa(sparsity_level=0.5)`.

    Raises:
      InputError: for an unknown name or parameter, or a value out of range.
    """
    return registry.create("aggregator", RULES, name, parameters)


__all__ = [
    "RULES",
    "Aggregator",
    "Diagnostics",
    "FilterDiagnostics",
    "Link",
    "Rows",
    "chain",
    "clip_to_median_norm",
    "create",
    "fedavg",
    "keep_top_k",
    "lasa",
    "layer_filter",
    "names",
    "num_kept_entries",
    "reject_nonfinite",
    "stateless",
]
