"""What makes two runs the same, two runs one program, and two runs cost the same; and a config as JSON."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lasa_jax import methods
from lasa_jax.config.settings import (
    AXIS,
    COSTLY,
    GROUPS,
    NUMBER,
    UNIDENTIFYING,
    all_settings,
    chosen,
    flatten,
    parameters,
    with_role,
)


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A resolved config as plain values that JSON can hold; infinities become strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return plain(config.to_dict())


def to_json(config: ConfigDict) -> str:
    """A resolved config as JSON text."""
    return json.dumps(as_json(config), indent=2, sort_keys=True) + "\n"


def run_name(config: ConfigDict) -> str:
    """`digits_lasa_byzmean_1a2b3c4d5e6f`: a name that the same settings always have, and no others."""
    dataset = config.dataset.rpartition("/")[2].removesuffix(".npz")
    names = (dataset, config.aggregator.name, config.attack.name)
    return "_".join([*(re.sub(r"[^\w.]+", "-", name).strip("-") for name in names), identity(config)])


def identity(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that two resolved configs share only if they describe the same run.

    The id of the data's source, which a run adds to its config when it has read the data, is no part of it.
    """
    kept = {field: value for field, value in flatten(without_source(as_json(config))) if field not in UNIDENTIFYING}
    return _digest(kept)


def without_source(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON without the id of its data's source, which a run adds when it has read the data."""
    return {name: value for name, value in stored.items() if name != "source_id"}


def as_flags(config: ConfigDict) -> dict[str, Any]:
    """The settings of a resolved config by the names that flags have: `{"aggregator.lasa.sparsity_level": 0.3}`.

    Those of methods that are not selected are left out. Given to `--config.NAME=VALUE` beside the same config file they
    make the same run.
    """
    selected, fields = chosen(config), dict(flatten(config.to_dict()))
    known = all_settings(selected)
    for kind, names in selected.items():
        for name in names:
            group, own = f"{GROUPS[kind]}.{methods.settings_name(name)}.", parameters(config, kind, name)
            fields |= {field: own.get(field.removeprefix(group)) for field in known if field.startswith(group)}
    if fields["client.clip_norm"] is None:
        fields["client.clip_norm"] = math.inf  # as a setting None leaves it to the fidelity
    found = {name: value for name, value in sorted(fields.items()) if name in known and value != ""}
    return {name: value for name, value in found.items() if value is not None or known[name].optional}


def program_key(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that two resolved configs share if they differ in nothing but the numbers of a run.

    Runs of the same key go through the same executable, where their arrays have the same shapes.
    """
    numbers = with_role(NUMBER, AXIS)
    kept: dict[str, Any] = {
        field: value
        for field, value in flatten(without_source(as_json(config)))
        if field not in (*UNIDENTIFYING, *numbers) and ".parameters" not in field
    }
    kept["client.clip_norm"] = config.client.clip_norm is not None  # whether there is a clip is compiled in
    for kind, names in chosen(config).items():
        for name in names:
            traced, compiled_in = methods.split(kind, name, parameters(config, kind, name))
            kept[f"{kind} {name}"] = [sorted(traced), compiled_in]  # which numbers are given is compiled in
    return _digest(kept)


def cost_key(config: ConfigDict) -> tuple[str, ...]:
    """What two resolved configs share if their runs take as long and need as much memory, their methods left aside."""
    fields = dict(flatten(config.to_dict()))
    return tuple(f"{name}={fields[name]}" for name in COSTLY if name in fields)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first field in which two resolved configs, read from JSON, differ, with both values; None if they agree."""
    left, right = dict(flatten(old)), dict(flatten(new))
    for field in sorted(left.keys() | right.keys()):
        if field not in UNIDENTIFYING and left.get(field) != right.get(field):
            return f"config.{field} is {left.get(field)!r} there and {right.get(field)!r} here"
    return None
