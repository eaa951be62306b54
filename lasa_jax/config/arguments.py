"""What may follow the colon of `--config=FILE:NAME=VALUE`."""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lasa_jax.errors import InputError, whole_number

# For each name the partition and the setting of it that NAME stands for.
_PARTITION_ARGUMENTS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "alpha": ("dirichlet", "alpha", float),
    "shards": ("shards", "classes_per_client", whole_number),
    "gamma": ("gamma_similarity", "gamma", float),
    "quantity": ("quantity_skew", "alpha", float),
}


def set_partition(config: ConfigDict, argument: str | None) -> None:
    """Chooses the partition that a config's argument names: `alpha=0.1`, `shards=2`, `gamma=0.5`, `quantity=1.0`.

    Raises:
      InputError: for another name, a value that is no number, or more than one of them.
    """
    types = {name: convert for name, (_, _, convert) in _PARTITION_ARGUMENTS.items()}
    chosen = parse_argument(argument, types)
    if len(chosen) > 1:
        raise InputError(f"--config=FILE:{argument}: allowed is one of {', '.join(types)}")
    for name, value in chosen.items():
        config.partition.name, setting, _ = _PARTITION_ARGUMENTS[name]
        config.partition[setting] = value


def parse_argument(argument: str | None, allowed: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Reads the part of `--config=FILE:ARGUMENT` after the colon: `name=value` pairs separated by commas.

    Args:
      argument: for instance `"alpha=0.5"`; None or empty gives no pairs.
      allowed: for each name the type that its value is converted to.

    Raises:
      InputError: for another name or a value that does not convert.
    """
    values = {}
    for pair in filter(None, (argument or "").split(",")):
        name, _, value = pair.partition("=")
        if name not in allowed:
            known = f"allowed are {', '.join(allowed)}" if allowed else "this file takes no argument"
            raise InputError(f"--config=FILE:{argument}: {name!r} is not known, {known}")
        try:
            values[name] = allowed[name](value)
        except (ValueError, OverflowError):
            kind = "a whole number" if allowed[name] is whole_number else "a number"
            raise InputError(f"--config=FILE:{argument}: {name} = {value!r}, allowed is {kind}") from None
    return values
