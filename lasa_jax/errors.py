"""The one error that a user is shown without a traceback, and the checks of what users give that raise it."""

import argparse
import contextlib
import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np


class InputError(ValueError):
    """A setting, a file or a directory is not as it must be: one line that names it, its value and what is allowed."""


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Raises InputError unless `low <= value <= high` and `above < value < below`, and `value` is an integer if `whole`.

    Infinity passes where no bound excludes it, NaN never does. A traced array has no value yet and passes.
    """
    if isinstance(value, jax.core.Tracer):
        return
    bounds = [f"{low:g} <= "] * (low > -math.inf) + [f"{above:g} < "] * (above > -math.inf)
    bounds += ["{}"] + [f" <= {high:g}"] * (high < math.inf) + [f" < {below:g}"] * (below < math.inf)
    allowed = "".join(bounds).format(name) if len(bounds) > 1 else "any number"
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} = {value!r}: allowed is {allowed}") from None
    # Positive form, so that NaN fails.
    good = (numbers >= low) & (numbers <= high) & ~np.isnan(numbers)
    good &= (numbers > above) | (above == -math.inf)
    good &= (numbers < below) | (below == math.inf)
    if whole:
        allowed = f"{allowed}, a whole number"
        good &= numbers == np.floor(numbers)
    if not good.all():
        raise InputError(f"{name} = {value!r}: allowed is {allowed}")


def whole_number(text: str) -> int:
    """The integer that a text stands for, `"100"` or `"1e2"`.

    Raises:
      ValueError: for any other text.
      OverflowError: for infinity.
    """
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if number != int(number):
            raise
        return int(number)


def count(text: str) -> int:
    """A whole number from 1 on, as the type of a flag."""
    with contextlib.suppress(ValueError, OverflowError):
        if (number := whole_number(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: allowed is a whole number from 1 on")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises InputError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise InputError(f"{name} = {value!r}: allowed are {', '.join(allowed)}")


def user_path(label: str, path: str | os.PathLike[str]) -> Path:
    """The path that a user gave, `~` being the home directory; what it names need not be there.

    Args:
      label: what was given and where, as `"--workdir=~/runs"`: how the error begins.
      path: as given.

    Raises:
      InputError: for an empty path, and one that the system does not let us look at: a closed folder, a name that is too
        long, a file where a folder should be.
    """
    if not os.fspath(path):
        raise InputError(f"{label}: is empty, allowed is a path")
    try:
        found = Path(path).expanduser()
        found.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:  # a byte of zero is a ValueError, no home a RuntimeError
        raise InputError(f"{label}: cannot be used ({getattr(error, 'strerror', None) or error})") from None
    return found


def is_mark(name: str) -> bool:
    """Whether a file or folder of this name is a mark of an operating system, an editor or a network disk, and no data."""
    return name.startswith((".", "~$")) or name in ("Thumbs.db", "ehthumbs.db", "desktop.ini", "__MACOSX", "@eaDir")


def nearest(name: object, names: Iterable[str], prefix: str = "") -> str:
    """`" (did you mean 'krum'?)"` for the name that is most like this one; empty if none is."""
    close = difflib.get_close_matches(str(name), list(names), 1)
    return f" (did you mean {prefix}{close[0] if prefix else repr(close[0])}?)" if close else ""


def find_named(kind: str, functions: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    """The function of that name; InputError with the allowed names, and the nearest, if there is none."""
    if name not in functions:
        allowed = ", ".join(sorted(functions))
        raise InputError(f"{kind} {name!r} is not known: allowed are {allowed}{nearest(name, functions)}")
    return functions[name]


def call_named(kind: str, functions: Mapping[str, Callable[..., Any]], name: str, arguments: Mapping[str, Any]) -> Any:
    """Calls the function of that name; InputError if it takes no such argument."""
    function = find_named(kind, functions, name)
    known = inspect.signature(function).parameters
    for argument in arguments:
        if argument not in known:
            allowed = ", ".join(known) or "none"
            raise InputError(f"{kind} {name!r} has no parameter {argument!r}: allowed are {allowed}")
    return function(**arguments)
