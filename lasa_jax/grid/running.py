"""Running the points of a grid that have no result yet, in batches that share a program.

On an accelerator a batch is as many runs as its memory holds and keep it at work. On a CPU it is one run, and as many
threads as there are cores take one each: small programs do not keep two cores busy.
"""

import contextlib
import dataclasses
import math
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from lasa_jax import experiment, track
from lasa_jax.errors import InputError, user_path
from lasa_jax.federated import DoesNotFit, Executables, make_mesh
from lasa_jax.grid import cost
from lasa_jax.grid.declare import Grid, Point, points, programs
from lasa_jax.grid.planning import batch_sizes, is_begun, refusals
from lasa_jax.grid.recording import begin
from lasa_jax.workdir import InUseError, Workdir, is_finished, read_batch_sizes, write_batch_sizes, write_failure

Metrics = tuple[str, int, Mapping[str, Any]]  # the name of a point, the round, what a line of metrics.jsonl has
OnMetrics = Callable[[str, int, Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a point.

    Attributes:
      point: the point.
      path: its run directory.
      summary: as stored in summary.json; None if it failed.
      error: the error that it ended with; None if it has a result.
    """

    point: Point
    path: Path
    summary: Mapping[str, Any] | None
    error: str | None


def run(
    declared: Grid | Sequence[Point],
    workdir: str | Path,
    *,
    only: Collection[str] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    tensorboard: bool = False,
    on_metrics: OnMetrics | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    executables: Executables | None = None,
    log: Callable[[str], None] = print,
) -> list[Outcome]:
    """Runs the points that are not finished, each in its own directory; points of a program share one executable.

    A run does not depend on the others: same config, same program, same bits, whatever ran before or beside it. Stopped at
    any moment and started again, finished points are not run again and those that were interrupted go on from their
    checkpoints.

    Args:
      declared: a grid, or points from `points`.
      workdir: the directory of the sweep; each run is in `workdir / point.name`.
      only: names of the points to run, where others of the sweep run elsewhere; all if None.
      batch: runs in a batch; if None, see `cost.fitting`.
      threads: batches side by side. If None, one on accelerators and where a CPU is several devices, else the cores.
      tensorboard: whether each run writes to `tb/` in its directory too.
      on_metrics: `on_metrics(point.name, round, metrics)`, called for each evaluated round once its line of metrics.jsonl is
        on the disk, in the thread of the caller. What it raises ends the sweep: batches stop at the end of their block, and
        the same call goes on.
      on_outcome: called after each point, finished ones included. A point that fails is an outcome too.
      executables: programs compiled before, to which those compiled now are added; `len` counts them.
      log: as in `experiment.run`.

    Returns:
      The outcomes of the points that it was to run, in their order.

    Raises:
      GridError: for a grid that `points` refuses.
      InputError: if the sweep was begun with another batch, or its directory cannot be used.
    """
    if tensorboard:
        track.check_installed()
    path = user_path(f"workdir = {str(workdir)!r}", workdir)
    found = points(declared) if isinstance(declared, Grid) else declared
    # By all points of the sweep, so that every task of a cluster takes the same sizes.
    sizes = write_batch_sizes(path, batch_sizes(found, path, batch=batch))
    mine = [point for point in found if only is None or point.name in only]
    begin(found, path, mine)
    shared = Executables() if executables is None else executables
    outcomes: dict[str, Outcome] = {}

    def note(outcome: Outcome) -> None:
        outcomes[outcome.point.name] = outcome
        if on_outcome is not None:
            on_outcome(outcome)

    for outcome in finished(mine, path, log=log):
        note(outcome)
    todo = [
        batch for batch in batches(mine, path, sizes) if not {point.name for point in batch.points} <= outcomes.keys()
    ]
    if todo:
        refused = refusals(mine)  # each fails by itself when its turn comes
        able = [point.config for batch in todo for point in batch.points if point.name not in refused]
        at_once = min((cost.threads(config) for config in able[:1]), default=1) if threads is None else threads
        count = min(len(todo), at_once)
        _run_in_threads(Queue(todo), path, count, shared, note, log, tensorboard=tensorboard, on_metrics=on_metrics)
    return [outcomes[point.name] for point in mine]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Points that go through one executable together.

    Attributes:
      program: that of each of them.
      points: the points.
      size: runs that the program is compiled for, at least as many as there are points.
      begun: whether a point of the program has a result or a checkpoint: then the size, which decides bits, stays.
    """

    program: str
    points: Sequence[Point]
    size: int
    begun: bool = False


def batches(found: Sequence[Point], workdir: str | Path, sizes: Mapping[str, int]) -> list[Batch]:
    """The points that have no result yet, program by program, those that are equally far together.

    A batch with fewer points than before keeps its size, so that the points have the same bits.

    Args:
      found: from `points`.
      workdir: the directory of the sweep.
      sizes: from `batch_sizes`.
    """
    cut = []
    for program, group in programs(found).items():
        left: dict[tuple, list[Point]] = {}
        begun = any(is_begun(Path(workdir), point) for point in group)
        for point in group:
            path = Path(workdir) / point.name
            if not is_finished(path):
                done = max(Workdir(path, lock=False).checkpoint_rounds(), default=0)
                left.setdefault((point.config.data_dir, point.config.source, done), []).append(point)
        size = sizes[program]
        cut += [
            Batch(program, alike[at : at + size], size, begun)
            for alike in left.values()
            for at in range(0, len(alike), size)
        ]
    return cut


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
        """Returns the batch of a worker that was lost; it is the next of its program."""
        with self._lock:
            self._waiting[batch.program].insert(0, batch)


def _run_in_threads(
    waiting: Queue,
    workdir: Path,
    count: int,
    executables: Executables,
    on_outcome: Callable[[Outcome], None],
    log: Callable[[str], None],
    *,
    tensorboard: bool,
    on_metrics: OnMetrics | None,
) -> None:
    """Empties the queue with so many threads; outcomes and metrics are handed on in the thread of the caller."""
    stop = threading.Event()
    ended: queue.Queue[Outcome | Metrics | None] = queue.Queue()  # None: a thread has nothing left

    def hand_on(run: str, index: int, metrics: Mapping[str, Any]) -> None:
        ended.put((run, index, metrics))

    def work() -> None:
        program = None
        try:
            while not stop.is_set() and (taken := waiting.take(program)) is not None:
                program = taken.program
                for outcome in run_together(
                    taken,
                    workdir,
                    executables=executables,
                    tensorboard=tensorboard,
                    on_metrics=None if on_metrics is None else hand_on,
                    log=log,
                    stop=stop,
                ):
                    ended.put(outcome)
        except experiment.Stopped:
            pass
        finally:
            ended.put(None)

    with ThreadPoolExecutor(count) as pool:
        workers = [pool.submit(work) for _ in range(count)]
        try:
            while count:
                told = ended.get()
                if told is None:
                    count -= 1
                elif isinstance(told, Outcome):
                    on_outcome(told)
                elif on_metrics is not None:
                    on_metrics(*told)
        finally:
            stop.set()  # after Ctrl-C, each thread stops at the end of its block
    for worker in workers:
        worker.result()


def finished(found: Sequence[Point], workdir: str | Path, *, log: Callable[[str], None] = print) -> list[Outcome]:
    """The outcomes of the points that have a result.

    Args:
      found: from `points`.
      workdir: the directory of the sweep.
      log: as in `experiment.run`.
    """
    outcomes = []
    for point in found:
        path = Path(workdir) / point.name
        if is_finished(path):
            try:
                outcomes.append(Outcome(point, path, experiment.finished(point.config, path, log), None))
            except InputError as error:
                outcomes.append(Outcome(point, path, None, _one_line(error)))
    return outcomes


def run_together(
    batch: Batch,
    workdir: str | Path,
    *,
    executables: Executables,
    tensorboard: bool = False,
    on_metrics: OnMetrics | None = None,
    log: Callable[[str], None] = print,
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Runs one batch on all devices of this process: as many rows of the mesh as divide its size.

    Where the compiled program of a batch does not fit the memory, half as many runs go together from then on, unless
    results were made in batches of that size.

    Args:
      batch: from `batches`.
      workdir: the directory of the sweep.
      tensorboard: whether each run writes to `tb/` in its directory too.
      executables, on_metrics, log, stop: as in `experiment.run_batch`.
    """
    path = Path(workdir)
    with contextlib.ExitStack() as opened:
        told = [] if on_metrics is None else [on_metrics]
        if tensorboard:
            told.append(opened.enter_context(track.boards(path)))

        def tell(run: str, index: int, metrics: Mapping[str, Any]) -> None:
            for hook in told:
                hook(run, index, metrics)

        return _run_together(batch, path, executables, tell, log, stop)


def _run_together(
    batch: Batch,
    path: Path,
    executables: Executables,
    on_metrics: OnMetrics,
    log: Callable[[str], None],
    stop: threading.Event | None,
) -> list[Outcome]:
    """Does what `run_together` says."""
    size = min(batch.size, read_batch_sizes(path).get(batch.program, batch.size))
    left, outcomes = _extended(batch, path, size)
    while left:
        rows = math.gcd(size, jax.device_count())
        runs = [(point, path / point.name) for point in left[:size]]
        ended = experiment.run_batch(
            [(point.config, at) for point, at in runs],
            executables=executables,
            size=size,
            mesh=make_mesh(runs=rows),
            on_metrics=on_metrics,
            log=log,
            stop=stop,
        )
        too_much = [end for end in ended if isinstance(end, DoesNotFit)]
        if too_much and size > 1 and not batch.begun:
            size = size // rows // 2 * rows or size // 2
            log(f"{path}: {size} runs go together from here on: {too_much[0]}")
            write_batch_sizes(path, {batch.program: size})
            continue
        for (point, at), end in zip(runs, ended, strict=True):
            outcomes.append(_failed(point, path, end) if isinstance(end, Exception) else Outcome(point, at, end, None))
        left = left[size:]
    return outcomes


def _extended(batch: Batch, workdir: Path, size: int) -> tuple[list[Point], list[Outcome]]:
    """The points of a batch that can be run, longer ones from where the old run ended; and outcomes of the others."""
    left: list[Point] = []
    outcomes: list[Outcome] = []
    for point in batch.points:
        try:
            if point.extends is not None:
                experiment.extend(workdir / point.extends.name, point.config, workdir / point.name, batch=size)
            left.append(point)
        except (InputError, OSError) as error:
            outcomes.append(_failed(point, workdir, error))
    return left, outcomes


def _failed(point: Point, workdir: Path, error: Exception) -> Outcome:
    """The outcome of a point that failed; the error is kept for who asks how the sweep is, but not if others run it."""
    if not isinstance(error, InUseError):
        write_failure(workdir, point.name, _one_line(error))
    return Outcome(point, workdir / point.name, None, _one_line(error))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
