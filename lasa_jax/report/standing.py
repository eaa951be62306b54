"""How far the runs of a directory are, read from its files alone, also while a sweep works there.

A run is *running* while a process holds the lock of its directory. The system lets go of the lock when the process ends,
however it ends. Locks of another machine may not be seen here: such a run counts as running as long as something was written
in its directory lately. Points that the sweep was asked for and that are not running, finished or failed are *waiting*.
"""

import contextlib
import dataclasses
import re
import socket
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lasa_jax import commandline
from lasa_jax.errors import InputError, user_path
from lasa_jax.report.directories import one_line, run_directories
from lasa_jax.workdir import Workdir, holder, is_held, read_batch_sizes, read_failure, read_points

STATES = ("finished", "running", "waiting", "failed")
_HEARD = 600.0  # seconds after which a run of another machine, of which nothing is heard, no longer counts as running


@dataclasses.dataclass(frozen=True)
class Standing:
    """How far one run is.

    Attributes:
      name: its path below the directory that was asked for.
      path: its directory.
      state: one of `STATES`.
      note: of a failed run why; of one that has begun how far it is; empty if there is nothing to say.
      config: resolved, as JSON; empty if it cannot be read.
      summary: of a finished run.
      rounds: how many it shall have.
      done: the last round that is in its metrics.
      seconds: of one of its rounds, as measured; None before the first.
      program: a text that runs of one program share.
      costs: a text that runs share whose rounds take as long but for their methods.
      batch: how many runs of its program go together.
      differs: in which settings it differs from runs of the same methods.
    """

    name: str
    path: Path
    state: str
    note: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    summary: dict[str, Any] | None = None
    rounds: int = 0
    done: int = 0
    seconds: float | None = None
    program: str = ""
    costs: str = ""
    batch: int = 1
    differs: str = ""


def load(directory: Path) -> tuple[list[Standing], list[str]]:
    """The runs at or below a directory: those that sweeps were asked for, in their order, then all others.

    Args:
      directory: of a run, a sweep, or several.

    Returns:
      The runs, and one line for what could not be looked at.

    Raises:
      InputError: if there is no run and no sweep, or a sweep's own files are damaged.
    """
    root = user_path(str(directory), directory)
    if not root.is_dir():
        raise InputError(f"{root}: is not a directory")
    root = root.resolve()
    left_out: list[str] = []
    planned: dict[Path, dict[str, Any]] = {}
    for sweep in run_directories(root, left_out, ("points.json",)):
        sizes = read_batch_sizes(sweep)
        for name, of in read_points(sweep).items():
            planned[sweep / name] = {**of, "batch": max(1, _count(sizes.get(of["program"])))}
    found = [*planned, *(path for path in run_directories(root, left_out) if path not in planned)]
    if not found:
        raise InputError(f"{directory}: holds neither a sweep nor a run")
    return [_of(path, one_line(str(path.relative_to(root))), planned.get(path)) for path in found], [
        *dict.fromkeys(left_out)
    ]


def _of(path: Path, name: str, planned: dict[str, Any] | None) -> Standing:
    """How far one run is. Args: planned: what its sweep knew of it before it began, None if it is of no sweep."""
    of = planned or {}
    known = Standing(
        *(name if name != "." else path.name, path, "failed", "", of.get("config", {})),
        done=_count(of.get("done")),
        program=of.get("program", ""),
        costs=of.get("costs", ""),
        batch=of.get("batch", 1),
        differs=one_line(str(of.get("differs", ""))),
    )
    if path.is_symlink():
        return dataclasses.replace(known, note="is a link, which is not followed")
    workdir = Workdir(path, lock=False)
    held = is_held(path)  # asked first: a run that ends after this has its summary by then
    try:
        config, summary = workdir.config() or known.config, workdir.summary()
        lines = [] if summary is not None else workdir.metrics()
    except InputError as error:
        return dataclasses.replace(known, note=one_line(str(error)))
    known = dataclasses.replace(known, config=config, rounds=_count(config.get("rounds")))
    if summary is not None:
        note = "" if summary["status"] == "finished" else f"{summary['status']} in round {summary['rounds']}"
        measured = summary["seconds_per_round"]
        return dataclasses.replace(
            known, state="finished", note=one_line(note), summary=summary, done=summary["rounds"], seconds=measured
        )
    if lines:
        seconds = sum(line["seconds_per_round"] for line in lines) / len(lines)
        known = dataclasses.replace(known, done=_count(lines[-1]["round"]), seconds=seconds)
    state, note = _unfinished(known, workdir, held)
    return dataclasses.replace(known, state=state, note=one_line(note))


def _unfinished(run: Standing, workdir: Workdir, held: bool | None) -> tuple[str, str]:
    """State and note of a run without a summary. Args: held: whether a process works on it, as `is_held` says."""
    who = holder(run.path)
    error, progress = read_failure(run.path.parent, run.path.name), f"round {run.done} of {run.rounds}"
    if held:
        return "running", f"{progress}, {who or 'another process'}"
    here = re.fullmatch(r"process \d+ on (.*)", who or "")
    if error is None and here and (held is None or here[1] != socket.gethostname()):
        silent = _silent(run.path)
        a_block = _count(run.config.get("block_rounds")) * run.batch * (run.seconds or 0.0)
        if silent <= max(_HEARD, 3 * a_block):
            return "running", f"{progress}, {who}, last written {commandline.duration(silent)} ago"
        return "waiting", f"nothing written for {commandline.duration(silent)}, {progress}, {who}"
    if error is not None:
        return "failed", error
    return "waiting", f"stopped, {progress}" if workdir.has_results() else ""


def _count(value: Any) -> int:
    """A count in a file that may be anybody's: one that is none, or that no float holds, is 0."""
    return value if isinstance(value, int) and 0 <= value < 2**53 else 0


def _silent(path: Path) -> float:
    """Seconds since something was last written in a run's directory, by the clock of this machine."""
    written = [0.0]
    for name in (".lock", "config.json", "metrics.jsonl", "checkpoints"):
        with contextlib.suppress(OSError):  # it may go while it is looked at
            written.append((path / name).stat().st_mtime)
    return max(0.0, time.time() - max(written))


def seconds_left(runs: Sequence[Standing]) -> float | None:
    """Seconds until all runs are finished, if as many batches go on side by side as now, or one if none does.

    A round takes what measured rounds of the same program took; else those of runs that cost alike but for their methods;
    else those of all. Compiling is not counted. None before the first measured round.
    """
    measured: dict[str, list[float]] = {}
    for run in runs:
        if run.seconds is not None:
            for key in {run.program, run.costs, ""}:
                measured.setdefault(key, []).append(run.seconds)
    if not measured:
        return None
    total = 0.0
    for run in runs:
        if run.state in ("running", "waiting"):
            rounds = next(measured[key] for key in (run.program, run.costs, "") if key in measured)
            total += (run.rounds - run.done) * sum(rounds) / len(rounds)
    running = Counter((run.program, run.batch) for run in runs if run.state == "running")
    return total / max(1, sum(-(-count // batch) for (_, batch), count in running.items()))
