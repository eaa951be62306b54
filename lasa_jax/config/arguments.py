"""What may follow the colon of `--config=FILE:NAME=VALUE`, for a config file and for a sweep."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lasa_jax.config.by_dataset import paper
from lasa_jax.errors import InputError, whole_number

_MOST_SEEDS = 1000

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
        _divide_by(config, name, value)


def _divide_by(config: ConfigDict, name: str, value: Any) -> None:
    config.partition.name, setting, _ = _PARTITION_ARGUMENTS[name]
    config.partition[setting] = value


class SweepArgument(NamedTuple):
    """What the argument of a sweep asks for, see `read_sweep`.

    Attributes:
      base: the paper's settings of the dataset with `fidelity=official`, and the partition and the source that are named.
      seeds: 1 to N.
      stealthy: whether the stealthy Min-Sum takes part.
      more: what other words of the sweep's own say.
    """

    base: ConfigDict
    seeds: list[int]
    stealthy: bool
    more: dict[str, Any]

    def attacks(self, *names: str) -> list[str]:
        """These attacks; the stealthy Min-Sum, if it takes part, is in the place of Min-Sum or last."""
        if not self.stealthy:
            return list(names)
        if "min_sum" not in names:
            return [*names, "min_sum_stealthy"]
        return ["min_sum_stealthy" if name == "min_sum" else name for name in names]


def read_sweep(
    argument: str,
    *,
    alpha: float | None = None,
    seeds: int = 3,
    more: Mapping[str, Callable[[str], Any]] | None = None,
) -> SweepArgument:
    """Reads what follows the colon of a sweep: a dataset, and words separated by commas.

        digits,alpha=0.1,seeds=5,stealthy

    | word | what it does |
    | --- | --- |
    | `alpha=`, `shards=`, `gamma=`, `quantity=` | the partition, as in `set_partition` |
    | `iid` | the paper's even partition, where the sweep has another one by default |
    | `source=` | `config.source`: the raw form of FEMNIST or Shakespeare, needed once |
    | `seeds=N` | seeds 1 to N |
    | `stealthy` | the stealthy Min-Sum in place of Min-Sum; beside its attacks in a sweep without Min-Sum |

    Args:
      argument: the dataset comes first; the digits if there is none.
      alpha: of the Dirichlet partition that the sweep has by default; None for the paper's even one. Sets whose clients
        are natural keep them.
      seeds: N, where the argument does not say it.
      more: further words of the sweep's own, as `parse_argument` takes them.

    Raises:
      InputError: for another dataset, another word, a value that is none, more than one partition, or a partition of a set
        whose clients are natural.
    """
    dataset, _, rest = argument.partition(",")
    if "=" in dataset or dataset in ("iid", "stealthy"):
        dataset, rest = "digits", argument
    base = paper(dataset)
    base.fidelity = "official"
    partitions = {name: convert for name, (_, _, convert) in _PARTITION_ARGUMENTS.items()} | {"iid": flag}
    others: dict[str, Callable[[str], Any]] = {"source": str, "seeds": _seeds, "stealthy": flag}
    others |= more or {}
    chosen = parse_argument(rest, {**partitions, **others})
    divided = [name for name in chosen if name in partitions]
    if divided and base.partition.name == "natural":
        raise InputError(
            f"--config=FILE:{argument}: {dataset} has clients of its own, so {divided[0]!r} is not for it; allowed are "
            f"{', '.join(others)}"
        )
    if len(divided) > 1:
        raise InputError(f"--config=FILE:{argument}: allowed is one of {', '.join(partitions)}")
    for name in divided:
        if name != "iid":
            _divide_by(base, name, chosen[name])
    if not divided and alpha is not None and base.partition.name != "natural":
        _divide_by(base, "alpha", alpha)
    base.source = chosen.get("source")
    of_the_sweep = {name: chosen[name] for name in more or {} if name in chosen}
    return SweepArgument(base, list(range(1, chosen.get("seeds", seeds) + 1)), "stealthy" in chosen, of_the_sweep)


def flag(text: str) -> bool:
    """A word without a value."""
    if text:
        raise ValueError(text)
    return True


def _seeds(text: str) -> int:
    """How many seeds."""
    number = whole_number(text)
    if not 1 <= number <= _MOST_SEEDS:
        raise ValueError(text)
    return number


_ALLOWED: dict[Callable[[str], Any], str] = {
    whole_number: "a whole number",
    _seeds: f"a whole number from 1 to {_MOST_SEEDS}",
    flag: "the word alone",
}


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
            kind = _ALLOWED.get(allowed[name], "a number")
            raise InputError(f"--config=FILE:{argument}: {name} = {value!r}, allowed is {kind}") from None
    return values
