"""What the registries of rules and attacks share: names, parameters with their defaults, and building by name."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from lasa_jax.errors import InputError


def find(kind: str, functions: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    """The function of that name; InputError with the allowed names, and the nearest, if there is none."""
    if name not in functions:
        close = difflib.get_close_matches(str(name), list(functions), 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"{kind} {name!r} is not known: allowed are {', '.join(sorted(functions))}{hint}")
    return functions[name]


def parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a rule or an attack, by name; each has a default and an annotation."""
    return dict(inspect.signature(function).parameters)


def create(kind: str, functions: Mapping[str, Callable[..., Any]], name: str, arguments: Mapping[str, Any]) -> Any:
    """Calls the function of that name; InputError if it takes no such argument."""
    function = find(kind, functions, name)
    known = parameters(function)
    for argument in arguments:
        if argument not in known:
            allowed = ", ".join(known) or "none"
            raise InputError(f"{kind} {name!r} has no parameter {argument!r}: allowed are {allowed}")
    return function(**arguments)
