"""Functions of anybody's from arrays to an array, called with arrays of NumPy, PyTorch or JAX."""

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lasa_jax.errors import InputError, check_choice
from lasa_jax.methods import FAILURES

LIBRARIES = ("numpy", "torch", "jax")
_OF_ANOTHER_LIBRARY = (TypeError, AttributeError)
_RAISED = (*FAILURES, Warning)


class Foreign(NamedTuple):
    """A function that is called with arrays of one library and answers in NumPy.

    Attributes:
      function: what was given.
      library: of `LIBRARIES`.
      takes: what it takes by name beside its first argument, and the name that its own signature has for it.
    """

    function: Callable[..., Any]
    library: str
    takes: Mapping[str, str]

    def __call__(self, first: np.ndarray, **others: np.ndarray) -> np.ndarray | str:
        """The result in float64, or one line about what was raised. Arguments that it does not take are left out."""
        taken = {self.takes[name]: to_library(x, self.library) for name, x in others.items() if name in self.takes}
        try:
            return _quietly(self.function, to_library(first, self.library), taken)
        except _RAISED as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def changes(self, first: np.ndarray, **others: np.ndarray) -> bool:
        """Whether a call changes an array that it is given, its first or another."""
        given = to_library(first, self.library)
        taken = {self.takes[name]: to_library(x, self.library) for name, x in others.items() if name in self.takes}
        try:
            _quietly(self.function, given, taken)
        except _RAISED:
            return False
        pairs = [(given, first), *((taken[self.takes[name]], x) for name, x in others.items() if name in self.takes)]
        return any(not np.array_equal(to_numpy(y), np.asarray(x, np.float64), equal_nan=True) for y, x in pairs)


def foreign(
    function: Callable[..., Any],
    sample: Mapping[str, np.ndarray],
    names: Mapping[str, Collection[str]],
    library: str | None = None,
) -> Foreign:
    """Finds out how a function wants to be called.

    Args:
      function: of an array, and by name of others.
      sample: arguments on which it is tried; the first is given by its place.
      names: of each argument but the first, what a signature may call it.
      library: "numpy", "torch" or "jax". If None, the first of them that the function takes: one that raises TypeError
        or AttributeError is tried with the next. PyTorch is tried only where it has been imported.

    Raises:
      InputError: for what cannot be called, another library, or one that is not installed.
    """
    if not callable(function):
        raise InputError(f"fn = {function!r}: allowed is a function from arrays to an array")
    takes = {name: found for name, called in names.items() if (found := _parameter(function, called))}
    if library is not None:
        check_choice("arrays", library, LIBRARIES)
        if library == "torch":
            _torch()
        return Foreign(function, library, takes)
    first, *others = sample
    for candidate in LIBRARIES:
        if candidate == "torch" and "torch" not in sys.modules:
            continue
        taken = {takes[name]: to_library(sample[name], candidate) for name in others if name in takes}
        try:
            _quietly(function, to_library(sample[first], candidate), taken)
        except _OF_ANOTHER_LIBRARY:
            continue
        except _RAISED:
            pass
        return Foreign(function, candidate, takes)
    return Foreign(function, "numpy", takes)


def to_library(x: np.ndarray, library: str) -> Any:
    """A copy of a NumPy array as an array of the library."""
    if library == "torch":
        return _torch().as_tensor(x.copy())
    return jnp.asarray(x) if library == "jax" else x.copy()


def to_numpy(x: Any) -> np.ndarray:
    """An array of any of the libraries, on any device and of any floating type, in float64."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, np.float64)


def _quietly(function: Callable[..., Any], first: Any, taken: Mapping[str, Any]) -> np.ndarray:
    """What it gives; a division by zero is seen in the result and needs no warning."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return to_numpy(function(first, **taken))


def _parameter(function: Callable[..., Any], called: Collection[str]) -> str | None:
    """Its name for an argument, of those allowed. The first parameter is the rows, whatever it is called."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function of C
        return None
    if parameters and parameters[0].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        parameters = parameters[1:]
    by_name = {x.name for x in parameters if x.kind in (x.POSITIONAL_OR_KEYWORD, x.KEYWORD_ONLY)}
    return next((name for name in called if name in by_name), None)


@functools.cache
def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise InputError("arrays = 'torch': PyTorch is not installed; allowed are numpy, jax") from None
