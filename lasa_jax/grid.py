"""A declared grid of runs: its points, which of them share a program, what they will cost, and running them.

    Grid(base, [{"aggregator.name": ["lasa", "fedavg"]}, {"attack_ratio": [0.1, 0.2]}, {"seed": [1, 2, 3]}])

has 12 points and 2 programs: rules are compiled in, ratios and seeds are numbers.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lasa_jax import config as configs
from lasa_jax import data, experiment
from lasa_jax.errors import InputError
from lasa_jax.federated import make_mesh
from lasa_jax.workdir import Workdir, is_finished

_COSTLY = ("dataset", "model", "client", "clients_per_round", "num_clients", "rounds")  # what a run's cost depends on

Axis = Mapping[str, Sequence[Any]]
Settings = Mapping[str, Any]

# What can go wrong in one point without the others being wrong: its input, its files, its memory, its numbers.
_POINT_FAILURES = (InputError, OSError, RuntimeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid before it is checked.

    base: the config that every point starts from. axes: each a mapping from fields to values; the fields of one axis are
    tied and change together, and the points are the product of the axes. points: settings of single points beside them.
    """

    base: ConfigDict
    axes: Sequence[Axis] = ()
    points: Sequence[Settings] = ()


class GridError(InputError):
    """All faults of a grid, one a line."""

    def __init__(self, faults: Sequence[str]):
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def points(grid: Grid) -> list[ConfigDict]:
    """The resolved configs of a grid, in the order of its axes, without those that describe the same run twice.

    Raises:
      GridError: for unknown fields, empty axes, tied axes of different lengths, and values that a config refuses.
    """
    faults: dict[str, None] = {}  # a set that keeps its order
    for axis in grid.axes:
        fields = ", ".join(axis)
        lengths = {len(values) for values in axis.values()}
        if not axis or 0 in lengths:
            faults[f"axis {fields or '{}'}: is empty"] = None
        elif len(lengths) > 1:
            found = ", ".join(f"{field} {len(values)}" for field, values in axis.items())
            faults[f"axis {fields}: tied fields must have as many values as each other ({found})"] = None
    for field in [field for settings in (*grid.axes, *grid.points) for field in settings]:
        try:
            configs.check_field(field)
        except InputError as error:
            faults[str(error)] = None
    if faults:
        raise GridError(list(faults))
    resolved: dict[str, ConfigDict] = {}
    for settings in [*_product(grid.axes), *grid.points]:
        try:
            config = resolve(grid.base, settings)
            resolved.setdefault(configs.identity(config), config)
        except InputError as error:
            faults[str(error)] = None
    if faults:
        raise GridError(list(faults))
    return list(resolved.values())


def _product(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """One dictionary of settings a point; nothing where there is no axis."""
    if not axes:
        return []
    rows = [[dict(zip(axis, values, strict=True)) for values in zip(*axis.values(), strict=True)] for axis in axes]
    return [{field: value for part in parts for field, value in part.items()} for parts in itertools.product(*rows)]


def resolve(base: ConfigDict, settings: Settings) -> ConfigDict:
    """One point: the base with these settings, resolved. Parameters of methods that are not selected are left out."""
    config = ConfigDict(base.to_dict())
    try:
        config.update_from_flattened_dict(dict(settings))
    except TypeError as error:
        raise InputError(f"{', '.join(settings)}: {' '.join(str(error).split())}") from None
    return configs.resolve(config)


def programs(configs_of_points: Sequence[ConfigDict]) -> dict[str, list[ConfigDict]]:
    """The points by `experiment.program_key`, in order: each group goes through one executable."""
    groups: dict[str, list[ConfigDict]] = {}
    for config in configs_of_points:
        groups.setdefault(experiment.program_key(config), []).append(config)
    return groups


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a grid will cost. Memory and operations are of the largest program; seconds are an estimate, see `plan`."""

    points: int
    finished: int
    programs: int
    runs_a_program: tuple[int, int]
    bytes_a_program: int
    seconds: float

    def lines(self) -> list[str]:
        """One item a line."""
        low, high = self.runs_a_program
        return [
            f"points: {self.points}",
            f"finished: {self.finished}",
            f"programs: {self.programs}",
            f"runs a program: {low}" if low == high else f"runs a program: {low} to {high}",
            f"memory a program: {self.bytes_a_program / 2**20:,.0f} MiB",
            f"estimated time: {_duration(self.seconds)}",
        ]


def plan(grid: Grid, workdir: Path) -> Plan:
    """Counts and estimates without compiling anything.

    Memory is the data, one stack of updates, one update more a client that trains, and three models. Time is that of the
    runs that are finished where there are some; else the operations of local training and evaluation, from XLA's count for
    one step, at the speed of a matrix product measured now, twice that for what else there is. Small models take longer than
    that. Compiling is not counted.
    """
    found = points(grid)
    groups = programs(found)
    left = [config for config in found if not is_finished(workdir / configs.run_name(config))]
    measured = [
        summary["seconds_per_round"] * summary["rounds"]
        for config in found
        if config not in left and (summary := Workdir(workdir / configs.run_name(config), lock=False).summary())
    ]
    memory, seconds = 0, 0.0
    rate = _operations_a_second()
    costs: dict[tuple, tuple[int, float]] = {}
    for config in left:
        key = tuple(str(config[name]) for name in _COSTLY)
        if key not in costs:
            costs[key] = _cost(config)
        bytes_needed, operations = costs[key]
        memory = max(memory, bytes_needed)
        seconds += sum(measured) / len(measured) if measured else 2 * operations / rate
    sizes = [len(group) for group in groups.values()]
    return Plan(
        points=len(found),
        finished=len(found) - len(left),
        programs=len(groups),
        runs_a_program=(min(sizes), max(sizes)) if sizes else (0, 0),
        bytes_a_program=memory,
        seconds=seconds,
    )


def _cost(config: ConfigDict) -> tuple[int, float]:
    """Bytes and floating-point operations of one run."""
    dataset = data.load(config.dataset, data_dir=config.data_dir, source=config.source)
    shares = experiment.make_partition(config, dataset)
    program = experiment.make_program(config, dataset, shares)
    model, training = program.local_training.model, program.local_training
    variables = jax.eval_shape(model.init, jax.random.key(0))
    model_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(variables))
    batch = jax.ShapeDtypeStruct((training.batch_size, *dataset.input_shape), jnp.float32)

    def step(params: Any, inputs: jax.Array) -> Any:
        apply = lambda p: jnp.sum(model.apply({**variables_of(params), "params": p}, inputs)[0])  # noqa: E731
        return jax.grad(apply)(params["params"])

    def variables_of(params: Any) -> Any:
        return {name: value for name, value in params.items() if name != "params"}

    analysis = jax.jit(step).lower(variables, batch).cost_analysis() or {}
    a_step = float(analysis.get("flops", 0.0))
    steps = training.epochs * float(jnp.mean(jnp.ceil(jnp.asarray(shares.sizes) / training.batch_size)))
    evaluations = math.ceil(config.rounds / config.eval_every) * len(dataset.test.labels) / training.batch_size / 3
    operations = a_step * (config.rounds * config.clients_per_round * steps + evaluations)
    at_once = config.clients_per_round if config.client_chunk is None else config.client_chunk
    at_once = 1 if jax.default_backend() == "cpu" and config.client_chunk is None else at_once
    arrays = (*dataset.train, *dataset.test, *shares)
    return sum(x.nbytes for x in arrays) + model_bytes * (config.clients_per_round + at_once + 3), operations


def _operations_a_second() -> float:
    """Of a float32 matrix product of moderate size, the fastest of three."""
    x = jnp.ones((512, 512))
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(product(x))
        best = min(best, time.perf_counter() - began)
    return 2 * 512**3 / best


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a point: its config and directory, its summary, or the error that it ended with."""

    config: ConfigDict
    path: Path
    summary: Mapping[str, Any] | None
    error: str | None


def run(
    configs_of_points: Sequence[ConfigDict],
    workdir: Path,
    *,
    on_outcome: Callable[[Outcome], None],
    log: Callable[[str], None] = print,
) -> experiment.Executables:
    """Runs the points that are not finished, one after another, program by program, each in its own directory.

    Runs of a program share one executable. A run is what it is alone: same config, same program, same bits, whatever ran
    before it. Stopped at any moment and started again, finished points are not run again and the one that was
    interrupted goes on from its checkpoint.

    Args:
      configs_of_points: from `points`.
      workdir: the directory of the sweep; each run is in `workdir / config.run_name(config)`.
      on_outcome: called after each point, finished ones included. A point that fails is an outcome too.
      log: as of `experiment.run`.

    Returns:
      The programs that were compiled.
    """
    shared = experiment.Executables()
    mesh = make_mesh()
    for group in programs(configs_of_points).values():
        for config in group:
            path = workdir / configs.run_name(config)
            try:
                summary = experiment.run(config, path, mesh=mesh, executables=shared, log=log)
                on_outcome(Outcome(config, path, summary, None))
            except _POINT_FAILURES as error:
                on_outcome(Outcome(config, path, None, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return shared
