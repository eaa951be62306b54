"""Reads recordings of the official code: the full set beside the checkout if it is there, else the copy in tests/golden."""

import contextlib
import json
import math
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

COPY = Path(__file__).parent
FULL = Path(__file__).parents[3] / "shared" / "golden"
LAYERS = json.loads((COPY / "layers.json").read_text())


class Recording:
    """One file: arrays by key, and the layer table that turns flat updates into a pytree."""

    def __init__(self, path: Path):
        self.name = path.stem
        self.arrays = np.load(path)
        info = LAYERS[path.name]
        self.n, self.f, self.layers = info["n"], info["f"], info["layers"]

    def __contains__(self, key: str) -> bool:
        return key in self.arrays.files

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def variants(self, suffix: str) -> list[str]:
        """Variants that have an array of this name."""
        return sorted({key[: -len(suffix) - 1] for key in self.arrays.files if key.endswith("/" + suffix)})

    def updates(self, variant: str) -> np.ndarray:
        """What the clients send in a variant, `(n, d)`."""
        x = self["honest"].copy()
        at = self[f"{variant}/rows_at"]
        if len(at):
            x[at] = self[f"{variant}/rows"][self[f"{variant}/rows_of"]]
        return x

    def tree(self, flat: np.ndarray) -> dict[str, jax.Array]:
        """Flat vectors `(..., d)` as a pytree of layers `(..., *shape)`."""
        return {
            name: jnp.asarray(flat[..., start:stop].reshape(flat.shape[:-1] + tuple(shape)))
            for name, shape, _, start, stop in self.layers
        }

    def leaves(self, flat: np.ndarray) -> list[jax.Array]:
        """The same layers as a list, whose flattened order is the recorded one: for recorded coordinates."""
        return [
            jnp.asarray(flat[..., a:b].reshape(flat.shape[:-1] + tuple(shape))) for _, shape, _, a, b in self.layers
        ]

    def flat(self, tree: dict[str, jax.Array]) -> np.ndarray:
        """The inverse of `tree` for one update."""
        return np.concatenate([np.ravel(tree[name]) for name, *_ in self.layers])

    def real(self) -> np.ndarray:
        """Coordinates that are not an integer counter, which is no part of an update here, bool `(d,)`."""
        mask = np.ones(self["honest"].shape[1], bool)
        for _, _, dtype, start, stop in self.layers:
            mask[start:stop] = dtype.startswith("float")
        return mask


def recordings() -> list[Recording]:
    """All recordings at hand."""
    folder = FULL if FULL.is_dir() else COPY
    return [Recording(path) for path in sorted(folder.glob("*.npz"))]


class Difference(NamedTuple):
    """How far numbers are from the recorded ones, at the entry that uses most of its tolerance.

    Attributes:
      largest: |ours - recorded| there.
      allowed: the tolerance there.
    """

    largest: float
    allowed: float

    @property
    def used(self) -> float:
        """Of the tolerance: at most 1 is within it."""
        if not self.largest:
            return 0.0
        return self.largest / self.allowed if self.allowed and math.isfinite(self.largest) else math.inf


_noted: ContextVar[list[Difference] | None] = ContextVar("noted", default=None)


@contextlib.contextmanager
def noting() -> Iterator[list[Difference]]:
    """Within it, in this thread, every comparison by `assert_near` adds its difference to the list."""
    differences: list[Difference] = []
    token = _noted.set(differences)
    try:
        yield differences
    finally:
        _noted.reset(token)


def assert_near(actual: Any, wanted: Any, rtol: float = 1e-7, atol: float = 0.0, err_msg: str = "") -> None:
    """`np.testing.assert_allclose`: `|actual - wanted| <= atol + rtol * |wanted|` everywhere, NaN being equal to NaN."""
    if (differences := _noted.get()) is not None:
        differences.append(_difference(np.asarray(actual, float), np.asarray(wanted, float), rtol, atol))
    np.testing.assert_allclose(actual, wanted, rtol=rtol, atol=atol, err_msg=err_msg)


def _difference(actual: np.ndarray, wanted: np.ndarray, rtol: float, atol: float) -> Difference:
    with np.errstate(all="ignore"):  # infinities
        same = (actual == wanted) | (np.isnan(actual) & np.isnan(wanted))
        off = np.where(same, 0.0, np.abs(actual - wanted))
        off = np.where(np.isnan(off), np.inf, off)  # a number where none is recorded, or the reverse
        allowed = np.broadcast_to(atol + rtol * np.abs(wanted), off.shape)
        used = np.where(np.isinf(off), np.inf, np.where(off > 0, off / allowed, 0.0))
    if not used.size:
        return Difference(0.0, atol)
    at = np.unravel_index(np.argmax(used), used.shape)
    return Difference(float(off[at]), float(allowed[at]))
