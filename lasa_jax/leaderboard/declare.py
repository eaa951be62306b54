"""What a benchmark is: rules by attacks by partitions by seeds, declared in a file, and the points that it makes."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from lasa_jax import commandline, methods
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.grid import Grid, Point, points

NO_ATTACK = "none"
BASELINE = "fedavg"  # without attack; what every run is paired with

Parameters = Mapping[str, Any]  # of a rule, by their names
Chosen = Mapping[tuple[str, str], Parameters]  # by rule and partition


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What is run. Every rule meets no attack and every attack, in every partition, with every seed.

    Attributes:
      name: of its files.
      base: what all runs start from.
      rules: names, or paths `package.module:function`.
      attacks: names, without `none`, which is always run.
      partitions: settings by the name that the page shows.
      seeds: of the runs.
      clients: of a round, for rules that cannot take as many as the others. They are paired with FedAvg at as many, and not
        ranked.
      candidates: where parameters are chosen, those of each rule beside its defaults.
      validation: where parameters are chosen, the path of a dataset that has no test example.
      validation_seed: of the runs that choose; none of `seeds`.
    """

    name: str
    base: ConfigDict
    rules: Sequence[str]
    attacks: Sequence[str]
    partitions: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    clients: Mapping[str, int] = dataclasses.field(default_factory=dict)
    candidates: Mapping[str, Sequence[Parameters]] = dataclasses.field(default_factory=dict)
    validation: str | None = None
    validation_seed: int = 0


class Entry(NamedTuple):
    """One run of a benchmark: rule, attack, partition and seed as they are declared, the rule's parameters, the point."""

    rule: str
    attack: str
    partition: str
    seed: int
    parameters: Parameters
    point: Point


def load(benchmark: str) -> Benchmark:
    """The benchmark of a file, from its `get_benchmark(edition)`.

    Args:
      benchmark: `"FILE.py:EDITION"`; the edition is `all` if none is named. A file that is not here is looked up in the
        package.

    Raises:
      InputError: if there is no such file or edition, or the file fails.
    """
    declared = commandline.call(benchmark, "get_benchmark", default="all")
    if not isinstance(declared, Benchmark):
        name = benchmark.partition(":")[0]
        raise InputError(
            f"--config={name}: get_benchmark gives {type(declared).__name__}, allowed is a "
            "lasa_jax.leaderboard.declare.Benchmark"
        )
    for what in ("rules", "attacks", "partitions", "seeds"):
        if not getattr(declared, what):
            raise InputError(f"benchmark {declared.name}: has no {what}")
    for text in (declared.name, *declared.partitions):
        if not is_name(text) or "/" in text:
            raise InputError(
                f"benchmark {declared.name}: {text!r} is no name; allowed are letters, digits, spaces, .:,+-_="
            )
    return declared


def shown(parameters: Parameters) -> str:
    """`clip_radius=0.5 steps=3`."""
    return " ".join(f"{name}={value}" for name, value in parameters.items())


def is_name(text: str) -> bool:
    """Whether a text may stand in a CSV: letters, digits, spaces and . : , / ~ + = - _, no more than 200."""
    return re.fullmatch(r"[\w.:,/~ +=-]{0,200}", text) is not None


def grid_of(benchmark: Benchmark) -> Grid:
    """The runs as a sweep, for `lasa-jax sweep` on a cluster.

    Raises:
      InputError: if parameters are chosen first, which takes two sweeps.
    """
    if benchmark.validation is not None:
        raise InputError(f"benchmark {benchmark.name}: chooses parameters first, which only `lasa-jax benchmark` does")
    return Grid(benchmark.base, points=[settings for _, settings in _declarations(benchmark, {}, baseline=True)])


def entries(benchmark: Benchmark, chosen: Chosen | None = None, *, baseline: bool = True) -> list[Entry]:
    """The runs of a benchmark, rule by rule.

    Args:
      benchmark: declared.
      chosen: parameters in place of a rule's defaults.
      baseline: whether FedAvg without attack is run too, where it is not among the rules.

    Raises:
      GridError: as `grid.points`.
      InputError: if two runs are the same.
    """
    first = dataclasses.replace(benchmark, seeds=benchmark.seeds[:1])
    made = _declarations(first, chosen or {}, baseline=baseline)
    found = points(Grid(benchmark.base, points=[settings for _, settings in made]))
    if len(found) != len(made) or len(set(benchmark.seeds)) != len(benchmark.seeds):
        raise InputError(f"benchmark {benchmark.name}: declares a run twice")
    return [
        Entry(rule, attack, partition, seed, parameters, _with_seed(point, seed))
        for (rule, attack, partition, _, parameters), point in zip((label for label, _ in made), found, strict=True)
        for seed in benchmark.seeds
    ]


def _with_seed(point: Point, seed: int) -> Point:
    """The same point with another seed; to resolve its config anew takes a tenth of a second."""
    config = ConfigDict(point.config.to_dict() | {"seed": seed})
    return dataclasses.replace(point, config=config, name=configs.run_name(config))


def on_validation(benchmark: Benchmark) -> list[Entry]:
    """The runs that choose parameters: every candidate under every attack, without a test example.

    Raises:
      GridError, InputError: as `entries`.
    """
    made: list[Entry] = []
    for rule in benchmark.rules:
        candidates = benchmark.candidates.get(rule, ())
        for partition in benchmark.partitions if candidates else ():  # a rule without any keeps its defaults
            there = _held_out(benchmark, rule, partition)
            for parameters in ({}, *candidates):
                found = entries(there, {(rule, partition): parameters}, baseline=False)
                made += [one for one in found if one.attack != NO_ATTACK]
    return made


def _held_out(benchmark: Benchmark, rule: str, partition: str) -> Benchmark:
    """The benchmark of one rule and partition on the validation set, all else being as on the dataset itself.

    What `fidelity` decides by the dataset's name (and the rule's) is decided before the name changes.
    """
    alone = dataclasses.replace(benchmark, rules=(rule,), partitions={partition: benchmark.partitions[partition]})
    client = entries(dataclasses.replace(alone, attacks=()), baseline=False)[0].point.config.client
    settings = {
        "dataset": benchmark.validation,
        "client.learning_rate_decay": client.learning_rate_decay,
        "client.clip_norm": math.inf if client.clip_norm is None else client.clip_norm,  # None would leave it open
    }
    base = configs.updated(benchmark.base, settings)
    return dataclasses.replace(alone, base=base, seeds=(benchmark.validation_seed,))


def of_rules(benchmark: Benchmark, rules: Sequence[str]) -> Benchmark:
    """The same benchmark for some rules only, which need not be among its own.

    Args:
      benchmark: declared.
      rules: names, or paths.

    Raises:
      InputError: for a rule that there is not.
    """
    for rule in rules:
        methods.find("aggregator", rule)
    return dataclasses.replace(benchmark, rules=tuple(dict.fromkeys(rules)))


def settings_id(benchmark: Benchmark) -> str:
    """Twelve hexadecimal digits that runs of one table share: of FedAvg without attack, in the first partition."""
    partition, seed = next(iter(benchmark.partitions.values())), benchmark.seeds[0]
    config = ConfigDict(benchmark.base.to_dict())
    settings = {**partition, "aggregator.name": BASELINE, "attack.name": NO_ATTACK, "seed": seed}
    return configs.identity(configs.resolve(configs.updated(config, settings)))


_Label = tuple[str, str, str, int, Parameters]


def _declarations(benchmark: Benchmark, chosen: Chosen, *, baseline: bool) -> list[tuple[_Label, dict[str, Any]]]:
    """Each run and its settings, and FedAvg without attack with as many clients as each rule has."""
    made: list[tuple[_Label, dict[str, Any]]] = []

    def add(rule: str, attack: str, partition: str, seed: int, clients: int | None) -> None:
        parameters = chosen.get((rule, partition), {})
        settings = {"aggregator.name": rule, "attack.name": attack, "seed": seed, **benchmark.partitions[partition]}
        settings |= {f"aggregator.{methods.settings_name(rule)}.{name}": value for name, value in parameters.items()}
        settings |= {} if clients is None else {"clients_per_round": clients}
        made.append(((rule, attack, partition, seed, parameters), settings))

    for rule in benchmark.rules:
        for partition in benchmark.partitions:
            for attack in (NO_ATTACK, *benchmark.attacks):
                for seed in benchmark.seeds:
                    add(rule, attack, partition, seed, benchmark.clients.get(rule))
    paired = dict.fromkeys(benchmark.clients.get(rule) for rule in benchmark.rules) if baseline else {}
    for clients in paired:
        if BASELINE not in benchmark.rules or clients is not None:
            for partition in benchmark.partitions:
                for seed in benchmark.seeds:
                    add(BASELINE, NO_ATTACK, partition, seed, clients)
    return made
