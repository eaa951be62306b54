"""What the server received in one round, and its file.

    save_round("round.npz", Round(*replay.received(before)))
    saved = load_round("round.npz")

`python -m lasa_jax.inspection round RUN 12` writes such a file for a round of a run.
"""

import os
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lasa_jax.aggregators import Aggregator
from lasa_jax.errors import InputError, check_number
from lasa_jax.workdir.records import layer_names

PyTree = Any

_PREFIX = "updates/"


class Round(NamedTuple):
    """What the server received in one round.

    updates: nested dicts of arrays `(n, ...)`. malicious: bool `(n,)`, the truth that the server does not know. clients:
    their ids in the population, int `(n,)`, as in what a run records. noise, divergence: nu and zeta of the theory, see
    `bound.measure`. The last three are None where they are not known.
    """

    updates: PyTree
    malicious: np.ndarray
    clients: np.ndarray | None = None
    noise: float | None = None
    divergence: float | None = None

    def names(self) -> np.ndarray:
        """What the clients are called: their ids, or their rows where those are not known."""
        return np.arange(len(self.malicious)) if self.clients is None else self.clients


def layers(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by readable names in the order of its flattened form: `{"params/conv1/kernel": ...}`."""
    return dict(zip(layer_names(tree), jax.tree.leaves(tree), strict=True))


def as_matrix(updates: PyTree) -> np.ndarray:
    """The updates of all clients as rows, `(n, d)` in float64.

    Args:
      updates: leaves `(n, ...)`.

    Raises:
      InputError: if an entry is not finite: the theory has no such updates.
    """
    leaves = [np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(updates)]
    stack = np.concatenate(leaves, axis=1)
    if not np.isfinite(stack).all():
        raise InputError("updates: hold a NaN or an infinity, allowed are finite numbers")
    return stack


def save_round(path: str | os.PathLike[str], saved: Round) -> None:
    """Writes a round to an .npz file, which appears whole or not at all.

    Args:
      path: the file.
      saved: the round.

    Raises:
      InputError: if the arrays do not have one row per client, or the file cannot be written.
    """
    arrays: dict[str, Any] = {_PREFIX + name: np.asarray(leaf) for name, leaf in layers(saved.updates).items()}
    mask = np.asarray(saved.malicious, bool)
    if mask.ndim != 1 or not arrays or any(x.shape[:1] != mask.shape for x in arrays.values()):
        found = ", ".join(str(x.shape) for x in arrays.values())
        raise InputError(
            f"updates: allowed are arrays with a row for each of {mask.shape} clients, found {found or 'none'}"
        )
    if saved.clients is not None and np.shape(saved.clients) != mask.shape:
        raise InputError(f"clients: allowed is an id for each of {mask.shape} clients, found {np.shape(saved.clients)}")
    for name, value in (("noise", saved.noise), ("divergence", saved.divergence)):
        if value is not None:
            check_number(name, value, low=0, high=sys.float_info.max)
            arrays[name] = np.float64(value)
    if saved.clients is not None:
        arrays["clients"] = np.asarray(saved.clients, np.int64)
    arrays["malicious"] = mask
    path = Path(path)
    check_file(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def check_file(path: Path) -> None:
    """Raises InputError if a file cannot be put there, so that nothing is computed in vain."""
    if path.is_dir() or not path.name or not path.parent.is_dir():
        raise InputError(f"{str(path)!r}: cannot be written, allowed is a file in a folder that is there")


def load_round(path: str | os.PathLike[str]) -> Round:
    """Reads what `save_round` wrote.

    Raises:
      InputError: if the file cannot be read or holds something else.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        # NumPy's own words advise to unpickle what is no archive.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no whole .npz file"
        raise InputError(f"{path}: cannot be read as a saved round ({reason})") from None
    mask, clients, *numbers = (arrays.pop(name, None) for name in ("malicious", "clients", "noise", "divergence"))
    whole = mask is not None and mask.dtype == bool and mask.ndim == 1 and bool(arrays)
    whole = whole and (clients is None or (clients.dtype.kind == "i" and clients.shape == mask.shape))
    whole = whole and all(x is None or (x.dtype.kind == "f" and x.ndim == 0 and 0 <= x < np.inf) for x in numbers)
    if not whole or any(not name.startswith(_PREFIX) or x.shape[:1] != mask.shape for name, x in arrays.items()):
        raise InputError(f"{path}: is no saved round, allowed is what lasa_jax.inspection.rounds.save_round writes")
    updates: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.removeprefix(_PREFIX).split("/")
        table = updates
        for folder in folders:
            table = table.setdefault(folder, {})
        table[last] = array
    noise, divergence = (None if x is None else float(x) for x in numbers)
    return Round(updates, mask, clients, noise, divergence)


def check_needs(name: str, rule: Aggregator) -> None:
    """Raises InputError for a rule that needs to know more than the updates of a saved round."""
    if rule.needs:
        needs = ", ".join(sorted(rule.needs))
        raise InputError(
            f"{name}: needs {needs}, which a saved round does not have; allowed are rules that read updates only"
        )
