"""Every setting of the table in many spellings: read as what it says, or refused in one line that names it."""

import math
import random
from typing import Any

from checks.fuzz.failures import Failures, outcome
from checks.fuzz.mutations import WORDS
from lasa_jax import commandline
from lasa_jax.config.settings import Setting, all_settings
from lasa_jax.data import partition
from lasa_jax.errors import InputError

OTHERS = [
    *WORDS,
    "1e2",
    "1e-3",
    "60.0",
    "+5",
    " 7",
    "1,5",
    "1.",
    ".5",
    "1_0",
    "0b11",
    "\u0661\u0662",
    "\u00bd",
    "\u22121",
    "null",
    "none",
]
OTHERS += [
    "yes",
    "on",
    "TRUE",
    "False",
    "0",
    "nan",
    "-0",
    "1e17",
    "2147483648",
    "inf",
    '"lasa"',
    "lasa ",
    "LASA",
    "\ufeff1",
]
# What a value of the data or of another setting may not contradict.
_BEYOND = ("dataset", "data_dir", "source", "model", "num_clients", "clients_per_round", "padding")


def selecting(field: str) -> dict[str, str]:
    """The settings without which a field has no effect, as texts by field."""
    group, *rest = field.split(".")
    if group == "partition" and rest != ["name"]:
        return {"partition.name": next(name for name, own in partition.SETTINGS.items() if rest[0] in own)}
    if group in ("aggregator", "attack") and len(rest) == 2:
        return {f"{group}.name": rest[0]}
    return {"preaggregators.names": rest[0]} if group == "preaggregators" and len(rest) == 2 else {}


def meant(text: str, kind: type) -> Any:
    """What a text says, if it is a value of a kind in any usual spelling; None if it is none."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is str:
            return text
        number = float(text)
        return number if kind is float or number == math.floor(number) else None
    except (KeyError, ValueError, OverflowError):
        return None


def spellings(value: Any) -> list[str]:
    """Texts that must all be read as a value."""
    if isinstance(value, bool):
        return [str(value), str(value).lower(), str(value).upper()]
    if isinstance(value, int | float) and math.isfinite(value):
        return [str(value), f"{float(value)!r}", f"{value:.17e}", f"+{value}" if value >= 0 else str(value)]
    return [str(value)]


def stored(config: Any, field: str) -> Any:
    """The value of a field in a resolved config, where parameters are kept under their method."""
    group, *rest = field.split(".")
    table = config.to_dict()[group]
    if group == "preaggregators" and len(rest) == 2:
        return table["parameters"][rest[0]].get(rest[1])
    if group in ("aggregator", "attack") and len(rest) == 2:
        return table["parameters"].get(rest[1])
    for name in rest:
        table = table[name]
    return table


def wrong_value(config: Any, field: str, setting: Setting, text: str) -> str | None:
    """How the value that was read is not the one that a text says; None if it is."""
    found, says = stored(config, field), meant(text, setting.kind)
    if text == "None" and setting.optional:
        return None
    if field == "client.clip_norm" and says == math.inf:  # no clip is stored as None
        return None if found is None else f"{found!r} for inf"
    if says is None or type(found) is not setting.kind or found != says:
        return f"read as {found!r}"
    if _bounded(setting) and not (
        setting.allowed.get("low", -math.inf) <= found <= setting.allowed.get("high", math.inf)
        and not found <= setting.allowed.get("above", math.nan)
        and not found >= setting.allowed.get("below", math.nan)
    ):
        return f"{found!r} is out of range"
    return None


def _bounded(setting: Setting) -> bool:
    return isinstance(setting.allowed, dict) and setting.kind in (int, float)


def one_line_of(field: str, error: InputError) -> str | None:
    """What is wrong with a refusal: it must name the setting, or another of its method that it contradicts."""
    table, _, name = field.rpartition(".")
    named = name in str(error) or (table and f"config.{table}." in str(error))
    return None if named else f"refused without its name: {str(error)[:150]}"


def fuzz(count: int, seed: int = 0) -> tuple[int, Failures]:
    """Fields by turns, so that each has its share; a third are spellings of the default, which must be taken."""
    failures, known = Failures(), all_settings()
    fields = list(known)
    for index in range(count):
        chance = random.Random(seed * 10**9 + index)
        field = fields[index % len(fields)]
        setting = known[field]
        right = setting.default not in (None, "") and chance.random() < 0.4
        text = chance.choice(spellings(setting.default)) if right else chance.choice(_candidates(setting, chance))
        given = {**selecting(field), field: text}
        config, wrong = outcome(lambda g=given: commandline.read_config("digits", g))
        if wrong is None and isinstance(config, InputError):
            wrong = one_line_of(field, config)
            if right and field not in _BEYOND:
                wrong = f"refused, though it is the default: {str(config)[:150]}"
        elif wrong is None and "by_fidelity" not in text:
            wrong = wrong_value(config, field, setting, text)
        if wrong is not None:
            failures.append(f"setting {index}, --config.{field}={text[:60]!r}: {wrong}")
    return count, failures


def _candidates(setting: Setting, chance: random.Random) -> list[str]:
    """Texts near the bounds and words of a setting, and any others."""
    if isinstance(setting.allowed, tuple):
        words = [word for name in setting.allowed for word in (name, name.upper(), f" {name}", f"{name},", name[:-1])]
        return [*words, *OTHERS] if words else OTHERS
    near = [str(value + step) for value in setting.allowed.values() for step in (-1, 0, 1) if abs(value) < 1e9]
    drawn = [f"{10 ** chance.uniform(-4, 4):.3g}", str(chance.randrange(100)), f"{chance.randrange(100)}.0"]
    return [*near, *drawn, *OTHERS]
