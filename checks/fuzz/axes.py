"""Axes of every type: a point for each value, plain in its config, or one line for each fault."""

import collections
import decimal
import enum
import fractions
import json
import random
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pandas as pd

from checks.fuzz.failures import Failures, outcome
from checks.fuzz.mutations import JUNK
from checks.fuzz.settings import selecting, stored
from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.config.settings import all_settings
from lasa_jax.errors import InputError


class Three(enum.IntEnum):
    """What some take for numbers."""

    ONE = 1
    TWO = 2


_KINDS: dict[type, tuple[str, ...]] = {
    int: ("int8", "uint8", "int16", "int32", "int64", "uint64", "float32", "float64", "bool", "object", "str"),
    float: ("float16", "float32", "float64", "int32", "object", "str", "complex64"),
    bool: ("bool", "object", "int8", "str"),
    str: ("str", "object", "bytes"),
}
_HOLDERS: tuple[Callable[[list], Any], ...] = (
    list,
    tuple,
    np.array,
    np.array,
    np.array,
    jnp.array,
    pd.Series,
    pd.Index,
    set,
    iter,
    collections.deque,
    lambda values: dict.fromkeys(values).keys(),
    lambda values: (value for value in values),
    lambda values: [values],
    lambda values: [np.array(value) for value in values],
    lambda values: np.array([values]),
    lambda values: np.array(values)[:, None],
    lambda values: values[0],
    lambda values: "".join(map(str, values)),
)
ODD = [
    decimal.Decimal("0.5"),
    fractions.Fraction(1, 2),
    Three.TWO,
    np.str_("krum"),
    np.bool_(True),
    np.datetime64("now"),
]
ODD += [np.array(3), np.array([3]), jnp.int32(3), jnp.float32(0.5), b"krum", range(3), object(), print, float, 1j]


def values_of(field: str, kind: type, chance: random.Random) -> list[Any]:
    """Values that a field may take, a few of them alike."""
    if field in ("aggregator.name", "attack.name"):
        return [chance.choice(["krum", "median"] if field[1] == "g" else ["lie", "zero"]) for _ in range(3)]
    if kind is str:
        return ["paper", "official"]
    if kind is bool:
        return [True, False]
    return [1, 2, 2] if kind is int else [0.25, 0.5, 0.75]


def fuzz(count: int, seed: int = 0) -> tuple[int, Failures]:
    """A field, values of it as some type, in some holder; one in five has something odd among them."""
    failures, known = Failures(), all_settings()
    fields = list(known)
    for index in range(count):
        chance = random.Random(seed * 10**9 + index)
        field = fields[index % len(fields)]
        kind = known[field].kind
        values: list[Any] = values_of(field, kind, chance)
        if chance.random() < 0.6:
            cast, _ = outcome(lambda v=values, k=kind, c=chance: list(np.array(v).astype(c.choice(_KINDS[k]))))
            values = cast if isinstance(cast, list) else values
        if chance.random() < 0.2:
            values[chance.randrange(len(values))] = chance.choice([*ODD, *JUNK])
        try:
            axis = chance.choice(_HOLDERS)(values)
        except (TypeError, ValueError, OverflowError, NotImplementedError):  # not every holder takes every type
            axis = values
        shown = f"axis {index}, {field}: {type(axis).__name__} {repr(axis)[:80]}"
        base = configs.paper("digits")
        points, wrong = outcome(
            lambda b=base, f=field, a=axis: grid.points(
                grid.Grid(b, [{f: a}, *({n: [v]} for n, v in selecting(f).items())])
            )
        )
        if wrong is None:
            wrong = (
                _wrong_refusal(points, field) if isinstance(points, InputError) else _wrong_points(points, field, axis)
            )
        if wrong is not None:
            failures.append(f"{shown}: {wrong}")
    return count, failures


def _wrong_refusal(error: InputError, field: str) -> str | None:
    """A refusal names the field, or that its values belong to what is not there."""
    table, _, name = field.rpartition(".")
    lines = getattr(error, "faults", [str(error)])
    unnamed = [line for line in lines if name not in line and not (table and f"config.{table}." in line)]
    return f"refused without its name: {unnamed[0][:150]}" if unnamed else None


def _wrong_points(points: list[grid.Point], field: str, axis: Any) -> str | None:
    """There is a point for each different value of the axis, which its config has as Python and JSON know it."""
    if field == "client.clip_norm":
        return None
    wanted = [value.item() if hasattr(value, "item") else value for value in axis]
    found = [stored(point.config, field) for point in points]
    if any(type(value) not in (int, float, bool, str, type(None)) for value in found):
        return f"is {type(found[0]).__name__} in the config"
    json.dumps([configs.as_json(point.config) for point in points])
    if None in wanted or "by_fidelity" in wanted:
        return None
    different = list(dict.fromkeys(wanted))
    if field in ("data_dir", "source", "checkpoint_every", "keep_checkpoints"):  # they identify no run
        return None if len(points) == 1 else f"{len(points)} points"
    return None if found == different else f"gives {found}"
