"""Whole rounds of the paper's simulations, on data made in their shapes: LASA against ByzMean, and one step of training."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.blocks import seeds
from benchmarks.card import made, tables
from benchmarks.card.items import Facts, Item, Prepared, memory_of, once, seconds, with_peak
from lasa_jax import build, data
from lasa_jax import config as configs
from lasa_jax.data import Dataset
from lasa_jax.federated import make_mesh

PRECISIONS = ("tf32", "float32")
# Of a step alone: nothing but local training costs time.
_STEP = {"attack.name": "none", "aggregator.name": "fedavg", "client.epochs": 1}


class Rounds(NamedTuple):
    """What is timed.

    Attributes:
      dataset: whose settings it has.
      load: makes the data, in the small size or the real one.
      settings: in place of the paper's.
      small: settings of the small size.
      runs: of one program.
      block: rounds of one dispatch.
      evaluated: whether rounds are evaluated, as often as the dataset's config says.
    """

    dataset: str
    load: Callable[[bool], Dataset]
    settings: Mapping[str, Any]
    small: Mapping[str, Any]
    runs: int = 1
    block: int = 1
    evaluated: bool = True


def _digits(small: bool) -> Dataset:
    return data.load("digits")


def _images(name: str, train: int, small: bool) -> Dataset:
    return made.images(name, 80, 20) if small else made.images(name, train, 10_000)


def _roles(pieces: int | None, small: bool) -> Dataset:
    return made.roles(6, 8, pieces=4) if small else made.roles(715, 4000, pieces=pieces)


_FEW: Mapping[str, Any] = {"clients_per_round": 4, "client.epochs": 1, "client.batch_size": 4}
_FEWER = {**_FEW, "num_clients": 4}
_FEWEST = {"clients_per_round": 2, "num_clients": 4, "client.batch_size": 2, "client.epochs": 1}
ROUNDS = {
    "digits": Rounds("digits", _digits, {}, _FEW, block=10),
    "digits, 16 runs": Rounds("digits", _digits, {}, _FEW, runs=16, block=10),
    "mnist": Rounds("mnist", functools.partial(_images, "mnist", 60_000), {}, _FEWER, block=5),
    "shakespeare, a step": Rounds("shakespeare", functools.partial(_roles, 4), _STEP, _FEW, evaluated=False),
    "shakespeare": Rounds("shakespeare", functools.partial(_roles, None), {}, _FEW, block=5),
    "cifar10, a step": Rounds("cifar10", functools.partial(_images, "cifar10", 6400), _STEP, _FEWEST, evaluated=False),
    "cifar10": Rounds("cifar10", functools.partial(_images, "cifar10", 50_000), {}, _FEWEST),
}


def items(small: bool) -> list[Item]:
    """Every simulation in every precision."""
    found = []
    for name, rounds in ROUNDS.items():
        load = once(functools.partial(rounds.load, small))
        for precision in PRECISIONS:
            prepare = functools.partial(_prepare, rounds, load, precision, small)
            found.append(Item(f"{name}, {precision}", prepare))
    return found


def _placed(rounds: Rounds, dataset: Dataset, precision: str, small: bool) -> build.Placed:
    """The simulation on the first device."""
    settings = {"fidelity": "official", "attack.name": "byzmean", **rounds.settings, **(rounds.small if small else {})}
    config = configs.updated(configs.paper(rounds.dataset), {**settings, "client.precision": precision})
    run = build.prepare(configs.resolve(config), dataset=dataset)
    placed = build.place(seeds(run, rounds.runs), make_mesh(jax.devices()[:1]))
    never = 1_000_000  # no round of the block: neither the last, nor one that is evaluated
    every = placed.simulation.eval_every if rounds.evaluated else never
    simulation = dataclasses.replace(placed.simulation, rounds=never + 1, eval_every=every, block_rounds=rounds.block)
    return placed._replace(simulation=simulation)


def _prepare(rounds: Rounds, load: Callable[[], Dataset], precision: str, small: bool) -> Prepared:
    """Compiles a block of rounds; the next one goes on from its model, as rounds of the same numbers."""
    simulation, states, points, fed = _placed(rounds, load(), precision, small)
    executable, compile_seconds = simulation.compile(states, points, fed)
    count = rounds.block * rounds.runs
    facts = {"compile_seconds": compile_seconds, **memory_of(executable), "rounds": rounds.block, "runs": rounds.runs}
    return Prepared(facts, lambda: with_peak(lambda: _measure(executable, states, points, fed, count)))


def _measure(executable: jax.stages.Compiled, states: Any, points: Any, fed: Any, count: int) -> Facts:
    start = np.int32(0)

    def block() -> Any:
        nonlocal states
        states, metrics = executable(states, points, fed, start)
        return metrics

    found = seconds(block, most_calls=1, most_seconds=20)
    metrics = block()
    each = {name: found[name] / count for name in ("seconds", "low", "high")}
    return {**found, **each, "finite": bool(np.isfinite(metrics.rounds.update_norm).all())}


def table(found: tables.Items) -> list[str]:
    """A line for each simulation and precision."""
    columns = {
        "ms for each run's round, median (quartiles)": tables.milliseconds,
        "compile, s": tables.compile_seconds,
        "program needs, GB": tables.gigabytes("needed_bytes"),
        "temporaries, GB": tables.gigabytes("temporary_bytes"),
        "device's peak, GB": tables.gigabytes("peak_bytes"),
        "finite": lambda facts: "yes" if facts["finite"] else "no",
    }
    return tables.by_item(found, columns, "round")
