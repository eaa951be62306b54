"""What a grid will cost before anything is compiled, and how many runs go through a program together."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lasa_jax import build, commandline, methods
from lasa_jax import config as configs
from lasa_jax.errors import InputError, user_path
from lasa_jax.grid import cost
from lasa_jax.grid.declare import Grid, Point, points, programs
from lasa_jax.workdir import Workdir, is_finished, read_batch_sizes, records


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
      refused: why points cannot be run, for each reason one line that counts them.
    """

    points: int
    finished: int
    programs: int
    runs_a_program: tuple[int, int]
    runs_in_a_batch: tuple[int, int]
    bytes_a_program: int
    seconds: float
    compiled_in: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

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
            f"runs in a program: {between(*self.runs_a_program)}",
            *(f"compiled in: {name}: annotate it as Scalar to share a program" for name in self.compiled_in),
            *(f"cannot be run: {reason}" for reason in self.refused),
        ] + here * [
            f"runs in a batch: {between(*self.runs_in_a_batch)}",
            f"memory of a program: {self.bytes_a_program / 2**20:,.0f} MiB",
            f"estimated time: {commandline.duration(self.seconds)}, compiling included",
        ]


def plan(
    declared: Grid | Sequence[Point], workdir: str | Path, *, batch: int | None = None, threads: int | None = None
) -> Plan:
    """Counts and estimates without compiling anything.

    Memory is the data and, for each run of a batch, a stack of updates, three models, and what a rule makes of the stack
    or clients need that train at a time, see `federated.memory`.

    Time is that of the rounds that are left and of compiling. A round takes what rounds of the same program took in this
    directory on the same device; else those of runs that cost alike but for their methods; else what the bytes and products
    of training and evaluation, counted from shapes, take by the device's data sheet, or on a CPU by what is measured now.
    Each program that is left is compiled once, as long as those that were.

    Points that cannot be run, see `refusals`, cost nothing.

    Args:
      declared, workdir, batch, threads: as in `run`.

    Raises:
      GridError, InputError: as in `run`.
    """
    path = user_path(f"workdir = {str(workdir)!r}", workdir)
    found = points(declared) if isinstance(declared, Grid) else declared
    groups, sizes = programs(found), batch_sizes(found, path, batch=batch)
    reasons = refusals(found)
    left = [point for point in found if not is_finished(path / point.name) and point.name not in reasons]
    at_once = min((cost.threads(point.config) for point in left[:1]), default=1) if threads is None else threads
    bytes_of = [one.data + sizes[point.program] * one.run for point in left for one in (cost.of(point.config),)]
    members = [len(group) for group in groups.values()]
    return Plan(
        points=len(found),
        finished=sum(is_finished(path / point.name) for point in found),
        programs=len(groups),
        runs_a_program=(min(members, default=0), max(members, default=0)),
        runs_in_a_batch=(min(sizes.values(), default=0), max(sizes.values(), default=0)),
        bytes_a_program=max(bytes_of, default=0),
        seconds=_seconds(found, left, path, sizes, at_once),
        compiled_in=tuple(_compiled_in(found)),
        refused=tuple(f"{count} points, {reason}" for reason, count in Counter(reasons.values()).items()),
    )


def refusals(found: Sequence[Point]) -> dict[str, str]:
    """Why points cannot be run, by their names, as far as their configs tell. The others of a sweep go on without them."""
    reasons = {}
    for point in found:
        try:
            build.check_subsets(point.config)
            build.check_pixels(point.config)
        except InputError as error:
            reasons[point.name] = str(error)
    return reasons


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
      batch: runs in a batch; if None, see `cost.fitting`.

    Raises:
      InputError: if the sweep was begun with another size.
    """
    path = Path(workdir)
    stored = read_batch_sizes(path)
    sizes, refused = {}, refusals(found)
    for program, group in programs(found).items():
        before = group[0].extends
        known = stored.get(program if before is None else before.program)
        able = [point for point in group if point.name not in refused]
        size = stored.get(program) or known or batch or (cost.fitting(able[0].config, len(able)) if able else 1)
        if batch is not None and size != batch and any(is_begun(path, point) for point in group):
            raise InputError(
                f"--batch={batch}: the results in {path} were made in batches of {size}; leave it out, or "
                "choose another directory"
            )
        sizes[program] = batch or size
    return sizes


def is_begun(workdir: Path, point: Point) -> bool:
    """Whether a point of a sweep has a result or a checkpoint, or goes on from one that has."""
    return point.extends is not None or is_finished(workdir / point.name) or _rounds_done(workdir, point) > 0


def _rounds_done(workdir: Path, point: Point) -> int:
    """The round of the checkpoint that a point goes on from; 0 if there is none."""
    done = max(Workdir(workdir / point.name, lock=False).checkpoint_rounds(), default=0)
    return max(done, 0 if point.extends is None else point.extends.config.rounds)


def _seconds(
    found: Sequence[Point], left: Sequence[Point], workdir: Path, sizes: Mapping[str, int], at_once: int
) -> float:
    """What the points that are left will take, `at_once` batches side by side, see `plan`."""
    if not left:
        return 0.0
    rounds: dict[Any, list[float]] = {}  # seconds of a round of one run, by program and by what a run costs
    compiled: list[float] = []
    for point in found:
        for run in _recording(point):
            seconds, compiling = _recorded(workdir / run)
            compiled += [compiling] if compiling else []
            if seconds is not None:
                for key in (point.program, configs.cost_key(point.config)):
                    rounds.setdefault(key, []).append(seconds)
    card, total = None, 0.0
    for point in left:
        config = point.config
        measured = rounds.get(point.program) or rounds.get(configs.cost_key(config))
        if measured:
            a_round = sum(measured) / len(measured) / at_once
        else:
            card = cost.card_here() if card is None else card
            a_round = cost.of(config).seconds(card, sizes[point.program])
        total += (config.rounds - _rounds_done(workdir, point)) * a_round
    each = sum(compiled) / len(compiled) if compiled else cost.compiling()
    return total + each * len({point.program for point in left}) / at_once


def _recording(point: Point) -> list[str]:
    """The directories whose rounds take as long as those of a point: its own, and that of the run it goes on from."""
    return [point.name, *([] if point.extends is None else [point.extends.name])]


def _recorded(run: Path) -> tuple[float | None, float]:
    """Seconds of a round of a run, None if it has none; and of compiling, 0 if it did not compile.

    A damaged directory has none, which its outcome will say; and what another kind of device did counts for nothing.
    """
    workdir = Workdir(run, lock=False)
    try:
        summary = workdir.summary()
        lines = workdir.metrics() if summary is None else []
    except InputError:
        return None, 0.0
    if summary is not None and summary.get("device") == records.device():
        return summary["seconds_per_round"], summary["compile_seconds"]
    if not lines:
        return None, 0.0
    return sum(line["seconds_per_round"] for line in lines) / len(lines), 0.0
