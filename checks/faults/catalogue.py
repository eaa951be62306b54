"""All faults by name, and how often each is made."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from checks.faults.damage import cut, cut_metrics, cut_programs, damaged_checkpoint, flip
from checks.faults.disks import file_size_limit, full_disk
from checks.faults.processes import clock_set_back, kills, two_processes
from checks.faults.runs import GRID, SINGLE, Count, Runner
from checks.faults.victim import PHASES


class Amounts(NamedTuple):
    """How often each fault is made. kills: in single runs and in sweeps, each phase."""

    kills: tuple[int, int]
    disks: int
    checkpoints: int
    metrics: int


FULL, QUICK = Amounts((12, 8), 4, 10, 10), Amounts((1, 0), 1, 1, 1)


def faults(runner: Runner, amounts: Amounts, *, sweeps: bool = True) -> Iterator[tuple[str, Callable[[], Count]]]:
    """What is done, by name; the runs that are left alone come first."""
    whole, whole_sweep = runner.folder / "whole", runner.folder / "whole-sweep"
    (runner.folder / "grid.py").write_text(GRID)
    sweep = ("launch.sweep", f"--config={runner.folder / 'grid.py'}:digits")
    for command, path, number in [(SINGLE, whole, 1), (sweep, whole_sweep, 12)][: 1 + sweeps]:
        code, out, error = runner.run((*command, f"--workdir={path}"))
        if code or len(list(path.rglob("summary.json"))) != number:
            raise SystemExit(f"the run that is left alone failed:\n{out}\n{error}")
    for phase in PHASES:
        yield (
            f"SIGKILL in {phase} of a run",
            functools.partial(kills, runner, SINGLE, whole, phase, amounts.kills[0], 0),
        )
        if sweeps and (number := amounts.kills[1] or phase in ("a checkpoint write", "a summary write")):
            yield (
                f"SIGKILL in {phase} of a 12-run sweep",
                functools.partial(kills, runner, sweep, whole_sweep, phase, int(number), 1),
            )
    disk = functools.partial(full_disk, runner, whole)
    later = [45, 60, 75, 90][: amounts.disks]  # room for a first checkpoint, or none
    yield "disk full in a checkpoint", functools.partial(disk, later, checkpoint_every=1, expects="the checkpoint of")
    small = [2, 3][: amounts.disks]
    yield "disk full in the metrics", functools.partial(disk, small, checkpoint_every=100, expects="metrics.jsonl")
    limit = functools.partial(file_size_limit, runner, whole)
    yield (
        "file too large in a checkpoint",
        functools.partial(limit, [40_000, 20_000][: amounts.disks], checkpoint_every=1, expects="the checkpoint of"),
    )
    yield (
        "file too large in the metrics",
        functools.partial(limit, [4_000, 2_000][: amounts.disks], checkpoint_every=100, expects="metrics.jsonl"),
    )
    damaged = functools.partial(damaged_checkpoint, runner, whole, amounts.checkpoints)
    yield "newest checkpoint truncated", functools.partial(damaged, cut)
    yield "newest checkpoint with a bit flipped", functools.partial(damaged, flip)
    yield "metrics cut in the middle of a line", functools.partial(cut_metrics, runner, whole, amounts.metrics)
    yield "two processes on one directory", functools.partial(two_processes, runner, whole, min(2, amounts.disks))
    yield "clock set back", functools.partial(clock_set_back, runner, whole, min(2, amounts.disks))
    yield "compiled programs cut off", functools.partial(cut_programs, runner, whole)
