"""What a grid will cost before anything is compiled, and how many runs go through a program together."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasa_jax import config as configs
from lasa_jax import methods
from lasa_jax.errors import InputError, user_path
from lasa_jax.grid import cost
from lasa_jax.grid.declare import Grid, Point, points, programs
from lasa_jax.workdir import Workdir, is_finished, read_batch_sizes


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a grid will cost.

    Attributes:
      points: how many.
      finished: how many of them have a result.
      programs: how many are compiled.
      runs_a_program: the smallest and the largest number of points of one program.
      runs_in_a_batch: the smallest and the largest batch.
      bytes_a_program: memory of the largest program.
      seconds: an estimate, see `plan`.
      compiled_in: numbers of a user's functions that the points vary and that make a program for each value.
    """

    points: int
    finished: int
    programs: int
    runs_a_program: tuple[int, int]
    runs_in_a_batch: tuple[int, int]
    bytes_a_program: int
    seconds: float
    compiled_in: tuple[str, ...] = ()

    def lines(self, *, here: bool = True) -> list[str]:
        """One item per line.

        Args:
          here: whether the sweep runs on this machine; if not, what depends on the machine is left out.
        """

        def between(low: int, high: int) -> str:
            return str(low) if low == high else f"{low} to {high}"

        return [
            f"points: {self.points}",
            f"finished: {self.finished}",
            f"programs: {self.programs}",
            f"runs a program: {between(*self.runs_a_program)}",
            *(f"compiled in: {name}: annotate it as Scalar to share a program" for name in self.compiled_in),
        ] + here * [
            f"runs in a batch: {between(*self.runs_in_a_batch)}",
            f"memory a program: {self.bytes_a_program / 2**20:,.0f} MiB",
            f"estimated time: {duration(self.seconds)}",
        ]


def plan(
    declared: Grid | Sequence[Point], workdir: str | Path, *, batch: int | None = None, threads: int | None = None
) -> Plan:
    """Counts and estimates without compiling anything.

    Memory is the data and, for each run of a batch, a stack of updates, three models, and for each client that trains
    at a time one update more and what backpropagation keeps of a step. Time is that of the runs that are finished where
    there are some; else the operations of local training and evaluation, from XLA's count for one step, at the speed of
    a matrix product measured now, twice that for what else there is. Small models take longer than that. Compiling is
    not counted.

    Args:
      declared, workdir, batch, threads: as in `run`.

    Raises:
      GridError, InputError: as in `run`.
    """
    path = user_path(f"workdir = {str(workdir)!r}", workdir)
    found = points(declared) if isinstance(declared, Grid) else declared
    groups, sizes = programs(found), batch_sizes(found, path, batch=batch)
    left = [point for point in found if not is_finished(path / point.name)]
    measured = [seconds for point in found if (seconds := _seconds(path / point.name)) is not None]
    memory, seconds = 0, 0.0
    rate = cost.operations_a_second()
    at_once = min((cost.threads(point.config) for point in left[:1]), default=1) if threads is None else threads
    for point in left:
        one = cost.of(point.config)
        memory = max(memory, one.data + sizes[point.program] * one.run)
        seconds += sum(measured) / len(measured) / at_once if measured else 2 * one.operations / rate
    members = [len(group) for group in groups.values()]
    return Plan(
        points=len(found),
        finished=len(found) - len(left),
        programs=len(groups),
        runs_a_program=(min(members, default=0), max(members, default=0)),
        runs_in_a_batch=(min(sizes.values(), default=0), max(sizes.values(), default=0)),
        bytes_a_program=memory,
        seconds=seconds,
        compiled_in=tuple(_compiled_in(found)),
    )


def _compiled_in(found: Sequence[Point]) -> list[str]:
    """`norm_gate.factor`: numbers of a user's functions that differ between points and are not traced."""
    values: dict[str, set[Any]] = {}
    for point in found:
        for kind, names in configs.chosen(point.config).items():
            for path in filter(methods.is_path, names):
                _, words = methods.split(kind, path, configs.parameters(point.config, kind, path))
                for name, value in words.items():
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        values.setdefault(f"{methods.settings_name(path)}.{name}", set()).add(value)
    return [name for name, different in values.items() if len(different) > 1]


def batch_sizes(found: Sequence[Point], workdir: str | Path, *, batch: int | None = None) -> dict[str, int]:
    """Runs in a batch, by program: as they were where the sweep was begun, since they decide a result's bits.

    Args:
      found: all points of the sweep, from `points`.
      workdir: the directory of the sweep.
      batch: runs in a batch; if None, one on a CPU, and what the memory holds on an accelerator.

    Raises:
      InputError: if the sweep was begun with another size.
    """
    path = Path(workdir)
    stored = read_batch_sizes(path)
    sizes = {}
    for program, group in programs(found).items():
        size = stored.get(program) or batch or cost.fitting(group[0].config, len(group))
        if batch is not None and size != batch and any(_is_begun(path / point.name) for point in group):
            raise InputError(
                f"--batch={batch}: the results in {path} were made in batches of {size}; leave it out, or "
                "choose another directory"
            )
        sizes[program] = batch or size
    return sizes


def _is_begun(run: Path) -> bool:
    """Whether a run has a result or a checkpoint."""
    return is_finished(run) or bool(Workdir(run, lock=False).checkpoint_rounds())


def _seconds(run: Path) -> float | None:
    """How long a finished run took; None where there is none, or its summary is damaged, which its outcome will say."""
    try:
        summary = Workdir(run, lock=False).summary()
    except InputError:
        return None
    if summary is None or summary["seconds_per_round"] is None:
        return None
    return summary["seconds_per_round"] * summary["rounds"]


def duration(seconds: float) -> str:
    """`"12 min"`: seconds in words, for a line."""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"
