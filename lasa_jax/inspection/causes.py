"""Why LASA dropped a client in a layer: its norm, its signs, both, or a number that is not finite.

info = filtering.lasa(saved, magnitude_radius=2.0)
causes.of(info, saved, magnitude_radius=2.0)           # (layers, n), places in CAUSES
"""

from typing import Any

import jax
import numpy as np
import pandas as pd

from lasa_jax.aggregators import FilterDiagnostics
from lasa_jax.errors import InputError
from lasa_jax.inspection.filtering import layer_rows
from lasa_jax.inspection.rounds import Round

CAUSES = ("kept", "norm", "sign", "both", "not finite")
# Of Okabe and Ito, and light grey for what is kept; none is the blue or the orange of benign and malicious clients.
_NOT_FINITE = CAUSES.index("not finite")
COLOURS = ("#E8E8E8", "#E69F00", "#56B4E9", "#882255", "#222222")


def of(
    info: FilterDiagnostics, saved: Round, *, magnitude_radius: float = 1.0, direction_radius: float = 1.0
) -> np.ndarray:
    """The cause for each layer and client, int `(layers, n)`: places in `CAUSES`.

    A client is kept where its weight is not 0, also where its scores reach a radius: LASA keeps everybody in a layer in
    which nobody would be left.

    Args:
      info: from `filtering.lasa`.
      saved: the round.
      magnitude_radius, direction_radius: that `info` was computed with.
    """
    finite = np.ones(len(saved.malicious), bool)
    for leaf in jax.tree.leaves(saved.updates):
        finite &= np.isfinite(np.asarray(leaf)).reshape(len(finite), -1).all(axis=1)
    scores = layer_rows(info.magnitude_score), layer_rows(info.direction_score)
    return _causes(layer_rows(info.weight) != 0, *scores, magnitude_radius, direction_radius, finite[None])


def of_recorded(recorded: pd.DataFrame, *, magnitude_radius: float = 1.0, direction_radius: float = 1.0) -> pd.Series:
    """The cause in each row of what a run of LASA recorded: places in `CAUSES`.

    A client whose update is not finite is dropped in all layers, and its scores mean nothing: where a layer dropped it with
    both scores below their radii, that is the cause in all layers of the round.

    Args:
      recorded: from `recorded.load`.
      magnitude_radius, direction_radius: of the run.

    Raises:
      InputError: if a rule without scores recorded it.
    """
    lacking = [name for name in ("magnitude_score", "direction_score") if name not in recorded]
    if lacking:
        raise InputError(f"recorded: has no {lacking[0]}, allowed is what a run of lasa recorded")
    magnitude, direction = (recorded[name].to_numpy(float) for name in ("magnitude_score", "direction_score"))
    kept = recorded["kept"].to_numpy(bool)
    cause = _causes(kept, magnitude, direction, magnitude_radius, direction_radius, True)
    found = pd.Series(cause, index=recorded.index)
    bad = (found == _NOT_FINITE).groupby([recorded["round"], recorded["client"]]).transform("any")
    return found.mask(bad, _NOT_FINITE).rename("cause")


def _causes(
    kept: Any, magnitude: Any, direction: Any, magnitude_radius: float, direction_radius: float, finite: Any
) -> Any:
    by_norm = ~(magnitude < magnitude_radius) & np.isfinite(magnitude_radius)
    by_sign = ~(direction < direction_radius) & np.isfinite(direction_radius)
    cause = np.where(by_norm & by_sign, 3, np.where(by_sign, 2, np.where(by_norm, 1, _NOT_FINITE)))
    return np.where(kept, 0, np.where(finite, cause, _NOT_FINITE))


def counts(cause: np.ndarray, malicious: np.ndarray) -> pd.DataFrame:
    """How many cells, pairs of a client and a layer, have each cause: rows `CAUSES`, columns `malicious` and `benign`.

    Args:
      cause: `(layers, n)`, from `of`.
      malicious: bool `(n,)`.
    """
    parts = {"malicious": cause[:, malicious], "benign": cause[:, ~malicious]}
    found = {who: np.bincount(part.ravel(), minlength=len(CAUSES)) for who, part in parts.items()}
    return pd.DataFrame(found, index=pd.Index(CAUSES, name="cause"))
