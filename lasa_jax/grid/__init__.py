"""A declared grid of runs: its points, which of them share a program, what they will cost, and running them.

    Grid(base, [{"aggregator.name": ["lasa", "fedavg"]}, {"attack_ratio": [0.1, 0.2]}, {"seed": [1, 2, 3]}])

has 12 points and 2 programs: rules are compiled in, ratios and seeds are numbers. Points of a program go through its
executable in batches. On an accelerator a batch is as many runs as its memory holds. On a CPU it is one run, and as many
threads as there are cores take one each: small programs do not keep two cores busy.
"""

import dataclasses
import itertools
import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from lasa_jax import config as configs
from lasa_jax import experiment
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables, make_mesh
from lasa_jax.grid import cost
from lasa_jax.workdir import Workdir, is_finished, read_batch_sizes, write_batch_sizes

Axis = Mapping[str, Sequence[Any]]
Settings = Mapping[str, Any]


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
    if not isinstance(grid.axes, list | tuple) or not isinstance(grid.points, list | tuple):
        raise GridError(["Grid: axes and points are lists of dictionaries"])
    if not grid.axes and not grid.points:
        raise GridError(["Grid: has neither axes nor points"])
    for settings in (*grid.axes, *grid.points):
        if not isinstance(settings, Mapping):
            raise GridError([f"Grid: {settings!r} is not a dictionary of fields"])
    for axis in grid.axes:
        fields = ", ".join(axis)
        for field, values in axis.items():
            if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
                raise GridError([f"axis {field}: {values!r} is not a list of values"])
        lengths = {len(values) for values in axis.values()}
        if not axis or 0 in lengths:
            faults[f"axis {fields or '{}'}: is empty"] = None
        elif len(lengths) > 1:
            found = ", ".join(f"{field} {len(values)}" for field, values in axis.items())
            faults[f"axis {fields}: tied fields must have as many values as each other ({found})"] = None
    for field, times in Counter(field for axis in grid.axes for field in axis).items():
        if times > 1:
            faults[f"axis {field}: is in {times} axes, and only the last would count"] = None
    for field in [field for settings in (*grid.axes, *grid.points) for field in settings]:
        try:
            configs.check_fields([field])
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
    except (TypeError, OverflowError) as error:
        raise InputError(f"{', '.join(settings)}: {' '.join(str(error).split())}") from None
    return configs.resolve(config)


def programs(configs_of_points: Sequence[ConfigDict]) -> dict[str, list[ConfigDict]]:
    """The points by `configs.program_key`, in order: each group goes through one executable."""
    groups: dict[str, list[ConfigDict]] = {}
    for config in configs_of_points:
        groups.setdefault(configs.program_key(config), []).append(config)
    return groups


@dataclasses.dataclass(frozen=True)
class Batch:
    """Points that go through one executable together.

    program: their `configs.program_key`. configs: the points. size: runs that the program is compiled for, at least as
    many as there are points.
    """

    program: str
    configs: Sequence[ConfigDict]
    size: int


def batch_sizes(configs_of_points: Sequence[ConfigDict], workdir: Path, *, batch: int | None = None) -> dict[str, int]:
    """Runs in a batch, by program: as they were where the sweep was begun, since they decide a result's bits.

    Args:
      configs_of_points: from `points`.
      workdir: the directory of the sweep.
      batch: runs in a batch; if None, one on a CPU, and what the memory holds on an accelerator.

    Raises:
      InputError: if the sweep was begun with another size.
    """
    stored = read_batch_sizes(workdir)

    def begun(group: Sequence[ConfigDict]) -> bool:
        paths = [workdir / configs.run_name(config) for config in group]
        return any(is_finished(path) or Workdir(path, lock=False).checkpoint_rounds() for path in paths)

    sizes = {}
    for program, group in programs(configs_of_points).items():
        sizes[program] = stored.get(program) or batch or cost.fitting(group)
        if batch is not None and sizes[program] != batch:
            if begun(group):
                raise InputError(
                    f"--batch={batch}: the results in {workdir} were made in batches of {sizes[program]}; leave it out, or "
                    "choose another directory"
                )
            sizes[program] = batch
    return sizes


def batches(configs_of_points: Sequence[ConfigDict], workdir: Path, sizes: Mapping[str, int]) -> list[Batch]:
    """The points that have no result yet, program by program, those that are equally far together.

    A batch with fewer points than before keeps its size, so that the points have the same bits.
    """
    found = []
    for program, group in programs(configs_of_points).items():
        left: dict[tuple, list[ConfigDict]] = {}
        for config in group:
            path = workdir / configs.run_name(config)
            if not is_finished(path):
                done = max(Workdir(path, lock=False).checkpoint_rounds(), default=0)
                left.setdefault((config.data_dir, config.source, done), []).append(config)
        size = sizes[program]
        found += [
            Batch(program, alike[at : at + size], size) for alike in left.values() for at in range(0, len(alike), size)
        ]
    return found


class Queue:
    """Batches that wait for a worker: a thread here, an actor of a cluster."""

    def __init__(self, waiting: Sequence[Batch]) -> None:
        self._waiting: dict[str, list[Batch]] = {}
        self._begun: set[str] = set()
        self._lock = threading.Lock()
        for batch in waiting:
            self._waiting.setdefault(batch.program, []).append(batch)

    def __len__(self) -> int:
        return sum(len(group) for group in self._waiting.values())

    def take(self, program: str | None) -> Batch | None:
        """A batch of the program that the worker has compiled; else of one that nobody has begun; else of the longest."""
        with self._lock:
            left = [name for name, group in self._waiting.items() if group]
            if not left:
                return None
            new = [name for name in left if name not in self._begun]
            longest = max(left, key=lambda name: len(self._waiting[name]))
            chosen = program if program in left else new[0] if new else longest
            self._begun.add(chosen)
            return self._waiting[chosen].pop(0)

    def put_back(self, batch: Batch) -> None:
        """Of a worker that was lost."""
        with self._lock:
            self._waiting[batch.program].insert(0, batch)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a grid will cost. Memory and operations are of the largest program; seconds are an estimate, see `plan`."""

    points: int
    finished: int
    programs: int
    runs_a_program: tuple[int, int]
    runs_in_a_batch: tuple[int, int]
    bytes_a_program: int
    seconds: float

    def lines(self, *, here: bool = True) -> list[str]:
        """One item a line; only what does not depend on the machine, unless the sweep runs `here`."""

        def between(low: int, high: int) -> str:
            return str(low) if low == high else f"{low} to {high}"

        return [
            f"points: {self.points}",
            f"finished: {self.finished}",
            f"programs: {self.programs}",
            f"runs a program: {between(*self.runs_a_program)}",
        ] + here * [
            f"runs in a batch: {between(*self.runs_in_a_batch)}",
            f"memory a program: {self.bytes_a_program / 2**20:,.0f} MiB",
            f"estimated time: {_duration(self.seconds)}",
        ]


def plan(found: Sequence[ConfigDict], workdir: Path, sizes: Mapping[str, int], *, threads: int | None = None) -> Plan:
    """Counts and estimates without compiling anything.

    Memory is the data and, for each run of a batch, a stack of updates, three models, and for each client that trains
    at a time one update more and what backpropagation keeps of a step. Time is that of the runs that are finished where
    there are some; else the operations of local training and evaluation, from XLA's count for one step, at the speed of
    a matrix product measured now, twice that for what else there is. Small models take longer than that. Compiling is
    not counted.

    Args:
      found: from `points`. workdir, sizes, threads: as of `run`.
    """
    groups = programs(found)
    left = [config for config in found if not is_finished(workdir / configs.run_name(config))]
    measured = [seconds for config in found if (seconds := _seconds(workdir / configs.run_name(config))) is not None]
    memory, seconds = 0, 0.0
    rate = cost.operations_a_second()
    at_once = min((cost.threads(config) for config in left[:1]), default=1) if threads is None else threads
    for config in left:
        one = cost.of(config)
        memory = max(memory, one.data + sizes[configs.program_key(config)] * one.run)
        seconds += sum(measured) / len(measured) / at_once if measured else 2 * one.operations / rate
    members, together = [len(group) for group in groups.values()], [sizes[program] for program in groups]
    return Plan(
        points=len(found),
        finished=len(found) - len(left),
        programs=len(groups),
        runs_a_program=(min(members, default=0), max(members, default=0)),
        runs_in_a_batch=(min(together, default=0), max(together, default=0)),
        bytes_a_program=memory,
        seconds=seconds,
    )


def _seconds(path: Path) -> float | None:
    """Of a finished run; None where there is none, or its summary is damaged, which is for its outcome to say."""
    try:
        summary = Workdir(path, lock=False).summary()
    except InputError:
        return None
    if summary is None or summary["seconds_per_round"] is None:
        return None
    return summary["seconds_per_round"] * summary["rounds"]


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
    sizes: Mapping[str, int],
    *,
    on_outcome: Callable[[Outcome], None],
    threads: int | None = None,
    log: Callable[[str], None] = print,
) -> Executables:
    """Runs the points that are not finished, each in its own directory; points of a program share one executable.

    A run does not depend on the others: same config, same program, same bits, whatever ran before or beside it. Stopped at
    any moment and started again, finished points are not run again and those that were interrupted go on from their
    checkpoints.

    Args:
      configs_of_points: from `points`.
      workdir: the directory of the sweep; each run is in `workdir / config.run_name(config)`.
      sizes: from `batch_sizes`.
      on_outcome: called after each point, finished ones included. A point that fails is an outcome too.
      threads: batches side by side. If None, one on accelerators and where a CPU is several devices, else the cores.
      log: as of `experiment.run`.

    Returns:
      The programs that were compiled.
    """
    sizes = write_batch_sizes(workdir, sizes)
    todo = batches(configs_of_points, workdir, sizes)
    for outcome in finished(configs_of_points, workdir, log=log):
        on_outcome(outcome)
    shared = Executables()
    if not todo:
        return shared
    waiting, stop = Queue(todo), threading.Event()
    outcomes: queue.Queue[Outcome | None] = queue.Queue()

    def work() -> None:
        program = None
        try:
            while not stop.is_set() and (taken := waiting.take(program)) is not None:
                program = taken.program
                for outcome in run_batch(taken, workdir, executables=shared, log=log, stop=stop):
                    outcomes.put(outcome)
        except experiment.Stopped:
            pass
        finally:
            outcomes.put(None)

    count = min(len(todo), cost.threads(todo[0].configs[0]) if threads is None else threads)
    with ThreadPoolExecutor(count) as pool:
        workers = [pool.submit(work) for _ in range(count)]
        try:
            while count:
                done = outcomes.get()
                if done is None:
                    count -= 1
                else:
                    on_outcome(done)
        finally:
            stop.set()  # after Ctrl-C, each thread stops at the end of its block
    for worker in workers:
        worker.result()
    return shared


def finished(
    configs_of_points: Sequence[ConfigDict], workdir: Path, *, log: Callable[[str], None] = print
) -> list[Outcome]:
    """The outcomes of the points that have a result."""
    paths = ((config, workdir / configs.run_name(config)) for config in configs_of_points)
    known = [(config, path) for config, path in paths if is_finished(path)]
    return _outcomes(known, experiment.run_batch(known, executables=Executables(), log=log))


def run_batch(
    batch: Batch,
    workdir: Path,
    *,
    executables: Executables,
    log: Callable[[str], None] = print,
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Runs one batch on all devices of this process: as many rows of the mesh as divide its size.

    Args:
      batch: from `batches`.
      workdir: the directory of the sweep.
      executables, log, stop: as of `experiment.run_batch`.
    """
    mesh = make_mesh(runs=math.gcd(batch.size, jax.device_count()))
    runs = [(config, workdir / configs.run_name(config)) for config in batch.configs]
    ended = experiment.run_batch(runs, executables=executables, size=batch.size, mesh=mesh, log=log, stop=stop)
    return _outcomes(runs, ended)


def _outcomes(runs: Sequence[tuple[ConfigDict, Path]], ended: Sequence[experiment.Ended]) -> list[Outcome]:
    return [
        Outcome(config, path, None, f"{type(end).__name__}: {' '.join(str(end).split())[:300]}")
        if isinstance(end, Exception)
        else Outcome(config, path, end, None)
        for (config, path), end in zip(runs, ended, strict=True)
    ]
