"""A rule on a saved round once more, with other numbers: who is dropped in which layer. Nothing is trained.

    saved = rounds.load_round("round.npz")
    info = lasa(saved, sparsity_level=0.3, magnitude_radius=2.0)
    rates(info, saved)                                                 # and `drawing` draws it

What a whole run recorded of its own filter: `recorded`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from lasa_jax import aggregators
from lasa_jax.aggregators import Aggregator, FilterDiagnostics
from lasa_jax.errors import check_choice
from lasa_jax.inspection.rounds import PyTree, Round, check_needs, layers


def apply(rule: Aggregator, saved: Round, num_malicious: int | None = None) -> Any:
    """The diagnostics of any rule on a saved round, as NumPy arrays; the rule starts afresh.

    Args:
      rule: for instance `aggregators.dnc()`.
      saved: the round.
      num_malicious: the server's f; the true number if None.

    Raises:
      InputError: for a rule that needs to know more than the updates, which are what is saved.
    """
    check_needs("rule", rule)
    f = int(saved.malicious.sum()) if num_malicious is None else num_malicious
    state = rule.init(jax.tree.map(lambda x: x[0], saved.updates))
    return jax.device_get(jax.jit(_diagnostics, static_argnums=0)(rule, saved.updates, state, f))


def _diagnostics(rule: Aggregator, updates: PyTree, state: PyTree, num_malicious: Any) -> Any:
    return rule.aggregate(updates, state, key=jax.random.key(0), num_malicious=num_malicious)[2]


def lasa(
    saved: Round, *, sparsity_level: float = 0.3, magnitude_radius: float = 1.0, direction_radius: float = 1.0
) -> FilterDiagnostics:
    """LASA's filter on a saved round, compiled once for all numbers. See `aggregators.lasa` for them.

    Raises:
      InputError: for a number out of range.
    """
    aggregators.lasa(sparsity_level, magnitude_radius, direction_radius)  # checks them
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), saved.updates)
    num_kept = aggregators.num_kept_entries(params, sparsity_level)
    return jax.device_get(_lasa(saved.updates, num_kept, float(magnitude_radius), float(direction_radius)))


@jax.jit
def _lasa(updates: PyTree, num_kept: Any, magnitude_radius: Any, direction_radius: Any) -> FilterDiagnostics:
    rule = aggregators.lasa(magnitude_radius=magnitude_radius, direction_radius=direction_radius, num_kept=num_kept)
    return _diagnostics(rule, updates, (), 0)


def table(info: Any, saved: Round) -> pd.DataFrame:
    """Diagnostics of a rule on a round, as a table with a row for each client and layer.

    Columns: client (its id as in what a run records, else its row in the stack), layer, malicious, kept (weight not 0), and
    every field of the diagnostics that has a number for each client and layer: `weight`, and for LASA `norm`, `purity`,
    `magnitude_score`, `direction_score`.
    """
    n = len(saved.malicious)
    names = list(layers(info.weight))
    rows = pd.DataFrame(
        {
            "client": np.tile(saved.names(), len(names)),
            "layer": np.repeat(names, n),
            "malicious": np.tile(saved.malicious, len(names)),
            "kept": layer_rows(info.weight).ravel() != 0,
        }
    )
    for field, value in info._asdict().items():
        leaves = layers(value)
        if list(leaves) == names and all(np.shape(x) == (n,) for x in leaves.values()):
            rows[field] = layer_rows(value).ravel()
    return rows


def layer_rows(tree: PyTree) -> np.ndarray:
    """`(layers, n)` of a pytree with leaves `(n,)`."""
    return np.stack([np.asarray(x) for x in layers(tree).values()])


def rates(info: Any, saved: Round) -> dict[str, float]:
    """Share of malicious clients that were dropped and of benign ones that were kept, over all layers; NaN if none."""
    kept = layer_rows(info.weight) != 0
    dropped, stayed = 1 - kept[:, saved.malicious], kept[:, ~saved.malicious]
    return {
        "malicious_filtered": float(dropped.mean()) if dropped.size else np.nan,
        "benign_kept": float(stayed.mean()) if stayed.size else np.nan,
    }


def rates_against(saved: Round, setting: str, values: Sequence[float], **others: float) -> pd.DataFrame:
    """What changes when one number of LASA moves: a row a value, with `rates`.

    Args:
      saved: the round.
      setting: "sparsity_level", "magnitude_radius" or "direction_radius".
      values: of the setting.
      **others: the two numbers that stay, as in `lasa`.
    """
    check_choice("setting", setting, ("sparsity_level", "magnitude_radius", "direction_radius"))
    return pd.DataFrame(
        [{setting: value, **rates(lasa(saved, **{**others, setting: value}), saved)} for value in values]
    )
