"""Names to functions: which rules and attacks there are, what their parameters are, and how one is built.

The annotation of a parameter says what it is to a compiled program. `Scalar` and `Count` may be traced, so that runs which
differ in them share a program; `int`, `float`, `bool` and `str` are compiled in.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from lasa_jax import aggregators, attacks
from lasa_jax.errors import InputError, call_named, find_named
from lasa_jax.federated import Numbers

TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {"aggregator": aggregators.RULES, "attack": attacks.ATTACKS}


class Parameter(NamedTuple):
    """A parameter of a rule or an attack.

    Attributes:
      default: of the signature.
      kind: `int`, `float`, `bool` or `str`; None for an array, which callers from Python may give and a config may not.
      traced: whether a number of it is data of the compiled program.
    """

    default: Any
    kind: type | None
    traced: bool


def find(kind: str, name: str) -> Callable[..., Any]:
    """The function of a rule (`kind` "aggregator") or an attack ("attack").

    Raises:
      InputError: if there is none of that name.
    """
    try:
        return find_named(kind, TABLES[kind], name)
    except InputError as error:
        raise InputError(f"config.{kind}.name: {error}") from None


@functools.cache
def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a rule or an attack, by name."""
    hints = typing.get_type_hints(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kinds = (hints[name], *typing.get_args(hints[name]))
        kind = next((kind for kind in (bool, int, float, str) if kind in kinds), None)
        found[name] = Parameter(parameter.default, kind, kind is not None and jax.Array in kinds)
    return found


def numbers(kind: str, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the chosen parameters that are data of the compiled program."""
    known = parameters(find(kind, name))
    return {parameter: value for parameter, value in chosen.items() if known[parameter].traced}


def words(kind: str, name: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the chosen parameters that are compiled in."""
    known = parameters(find(kind, name))
    return {parameter: value for parameter, value in chosen.items() if not known[parameter].traced}


def create(kind: str, name: str, chosen: Mapping[str, Any]) -> Any:
    """The rule or the attack with these parameters.

    Raises:
      InputError: for an unknown name or parameter, or a value out of range.
    """
    return call_named(kind, TABLES[kind], name, chosen)


def factory(kind: str, name: str, compiled_in: Mapping[str, Any]) -> Callable[[Numbers], Any]:
    """`numbers -> rule` or `numbers -> attack`, with the parameters that are compiled in."""
    return lambda traced: create(kind, name, {**compiled_in, **traced})
