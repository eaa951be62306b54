"""Makes faults on real runs and counts what they cost: `python -m checks.faults [--quick]`.

Every run and sweep is a process of its own on the digits, with a few clients and rounds. A fault is made, the same command
is started again, and the end is compared with a run that was left alone: the same model bit for bit (`parameters_sha256`),
the same metrics but for the seconds. A line a fault:

    FAULT: survived / lost / duplicated = N / 0 / 0

survived counts faults after which all of that held, lost the results that were missing or other, duplicated those that
were there twice. Exit code 1 if anything was lost or duplicated.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "rounds": 6,
    "num_clients": 8,
    "clients_per_round": 4,
    "client.epochs": 1,
    "block_rounds": 1,
    "checkpoint_every": 1,
    "aggregator.name": "median",
    "attack.name": "lie",
}
SINGLE = ("lasa_jax.main", "--config=configs/digits.py", *(f"--config.{k}={v}" for k, v in SETTINGS.items()))
GRID = f"""
from lasa_jax.config import paper
from lasa_jax.grid import Grid


def get_grid(dataset):
    base = paper(dataset)
    base.update_from_flattened_dict({SETTINGS | {"rounds": 3}!r})
    return Grid(base, [{{"aggregator.name": ["fedavg", "median"]}}, {{"attack_ratio": [0.1, 0.3]}}, {{"seed": [1, 2, 3]}}])
"""

# What a process is doing when it is killed, and the longest that a kill waits for, in seconds.
PHASES = {
    "compilation": 2.0,
    "a block": 0.05,
    "a metrics write": 0.003,
    "a checkpoint write": 0.15,
    "a summary write": 0.003,
}


class Count(NamedTuple):
    """Faults survived, results lost, results duplicated; `note` says what was done, where there is a choice."""

    survived: int = 0
    lost: int = 0
    duplicated: int = 0
    note: str = ""

    def __add__(self, other: "Count") -> "Count":  # type: ignore[override]
        sums = (a + b for a, b in zip(self[:3], other[:3], strict=True))
        return Count(*sums, self.note or other.note)


# --- the process that dies ---------------------------------------------------------------------------------------------


def victim(phase: str, nth: int, delay: float, module: str, arguments: list[str]) -> None:
    """Runs a module as a program and kills it `delay` seconds after it began a phase for the `nth` time."""
    from lasa_jax.federated import Simulation
    from lasa_jax.workdir import Workdir

    began, inside = 0, False

    def die() -> None:
        time.sleep(delay)
        if inside:
            os.write(2, b"killed inside\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def begin() -> None:
        nonlocal began, inside
        began, inside = began + 1, True
        if began == nth:
            threading.Thread(target=die, daemon=True).start()

    def watch(owner: type, name: str, *, is_phase: bool, starts_block: bool = False) -> None:
        """The phase lasts as long as the method runs; a block from where it returns to where the next thing begins."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args: Any, **options: Any) -> Any:
            nonlocal inside
            inside = False
            if is_phase:
                begin()
            result = original(*args, **options)
            inside = False
            if starts_block:
                begin()
            return result

        setattr(owner, name, watched)

    in_block = phase == "a block"
    watch(Simulation, "compile", is_phase=phase == "compilation", starts_block=in_block)
    watch(Workdir, "append_metrics", is_phase=phase == "a metrics write", starts_block=in_block)
    watch(Workdir, "save_checkpoint", is_phase=phase == "a checkpoint write", starts_block=in_block)
    watch(Workdir, "write_summary", is_phase=phase == "a summary write")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


# --- runs and what is left of them -------------------------------------------------------------------------------------


class Runner(NamedTuple):
    """Starts processes. folder: where all is kept. cache: compiled programs."""

    folder: Path
    cache: Path

    def start(self, command: tuple[str, ...], *, before: tuple[str, ...] = (), **options: Any) -> subprocess.Popen:
        environment = {**os.environ, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(self.cache), "COLUMNS": "120"}
        return subprocess.Popen(
            [*before, sys.executable, "-m", *command],
            cwd=ROOT,
            env={**environment, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, command: tuple[str, ...], **options: Any) -> tuple[int, str, str]:
        """Exit code, output and errors."""
        process = self.start(command, **options)
        out, error = process.communicate(timeout=600)
        return process.returncode, out, error

    def new_folder(self, name: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


def rounds_of(run: Path) -> list[str]:
    """The lines of a run's metrics without the seconds, as text; a line that is no JSON as it is."""
    lines = []
    for text in (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []:
        with contextlib.suppress(ValueError):
            text = json.dumps({**json.loads(text), "seconds_per_round": 0})
        lines.append(text)
    return lines


def compare(whole: Path, after: Path) -> Count:
    """What is missing or other in a run, or a folder of runs, and what is there twice."""
    wanted = {run.parent.relative_to(whole) for run in whole.rglob("summary.json")}
    there = {run.parent.relative_to(after) for run in after.rglob("config.json")}
    lost, duplicated = len(wanted - there), len(there - wanted)
    for run in wanted & there:
        old, new = rounds_of(whole / run), rounds_of(after / run)
        lost += len(set(old) ^ set(new))
        duplicated += len(new) - len(set(new))
        summaries = [json.loads((path / run / "summary.json").read_text()) for path in (whole, after)]
        same = ("status", "rounds", "parameters_sha256", "best_test_accuracy", "detection", "config_id")
        lost += any(summaries[0][field] != summaries[1][field] for field in same)
    return Count(int(lost + duplicated == 0), lost, duplicated)


def again(runner: Runner, command: tuple[str, ...], whole: Path, workdir: Path, *, says: str = "", **options) -> Count:
    """Starts the same command again to its end, and compares."""
    code, out, error = runner.run((*command, f"--workdir={workdir}"), **options)
    if code or says not in out or "Traceback" in error:
        print(f"exit code {code}, {says!r} expected in:\n{out}\n{error}", file=sys.stderr)
        return Count(lost=1)
    return compare(whole, workdir)


# --- faults ------------------------------------------------------------------------------------------------------------


def kills(runner: Runner, command: tuple[str, ...], whole: Path, phase: str, number: int, seed: int) -> Count:
    """Kills in one phase, up to three times in a directory before it is left to finish."""
    chance = random.Random(f"{phase} {seed}")
    most_runs = len(list(whole.rglob("summary.json")))
    total, inside, killed = Count(), 0, 0
    while killed < number:
        path = runner.new_folder("killed")
        if phase == "compilation":  # nothing is compiled yet, so that compiling takes as long as it takes
            runner = runner._replace(cache=path / "xla")
        faults = 0
        for _ in range(min(3, number - killed)):
            rounds = 1 if phase == "a summary write" or phase == "compilation" else 3
            nth = chance.randint(1, rounds * (most_runs if phase != "compilation" else min(2, most_runs)))
            delay = chance.uniform(0, PHASES[phase])
            arms = ("checks.faults", "victim", phase, str(nth), str(delay))
            code, _, error = runner.run((*arms, *command, f"--workdir={path / 'work'}"))
            if code != -signal.SIGKILL:
                break  # finished before it got there
            inside += "killed inside" in error
            faults += 1
        killed += faults
        if not (path / "work").exists():
            (path / "work").mkdir()
        outcome = again(runner, command, whole, path / "work")
        total += outcome._replace(survived=outcome.survived * faults)
        shutil.rmtree(path)
    return total._replace(note=f"{inside} of {killed} hit inside")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs of 4 MiB. PermissionError where none can be mounted."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, pages_left: int) -> Path:
    """A file that leaves room for so many pages of 4 KiB."""
    path = folder / "filler"
    path.write_bytes(b"")
    with path.open("ab") as file:
        file.write(b"\0" * (shutil.disk_usage(folder).free // 4096 - pages_left) * 4096)
    return path


def full_disk(runner: Runner, whole: Path, pages: list[int], *, checkpoint_every: int, expects: str) -> Count:
    """Disks with room for some pages: the run says so in one line, and goes on where there is room again."""
    total = Count(note="tmpfs")
    command = (*SINGLE, f"--config.checkpoint_every={checkpoint_every}")
    for left in pages:
        folder = runner.new_folder("full")
        with small_disk(folder):
            filler = fill(folder, left)
            for _ in range(2):  # started again while the disk is full it still loses nothing
                code, _, error = runner.run((*command, f"--workdir={folder / 'work'}"))
                if code != 2 or not is_one_line(error, expects, "No space left on device"):
                    print(
                        f"{left} pages: exit code {code}, expected {expects!r} in one line:\n{error}", file=sys.stderr
                    )
                    total += Count(lost=1)
            filler.unlink()
            total += again(runner, command, whole, folder / "work")
        folder.rmdir()
    return total


def is_one_line(error: str, *parts: str) -> bool:
    """Whether what a process wrote to standard error is one line, `error: ...`, with these parts."""
    lines = error.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("error: ") and all(part in lines[0] for part in parts)


def file_size_limit(runner: Runner, whole: Path, limits: list[int], *, checkpoint_every: int, expects: str) -> Count:
    """RLIMIT_FSIZE: no file may be longer, which TensorStore and Python meet in the middle of a write."""
    total = Count(note="RLIMIT_FSIZE")
    command = (*SINGLE, f"--config.checkpoint_every={checkpoint_every}")
    for limit in limits:
        path = runner.new_folder("limit") / "work"
        # By prlimit, since Python would set it in a fork, of which JAX warns once it has started.
        limited = ("env", "JAX_ENABLE_COMPILATION_CACHE=false", "prlimit", f"--fsize={limit}")
        code, _, error = runner.run((*command, f"--workdir={path}"), before=limited)
        last = error.strip().splitlines()[-1] if error.strip() else ""
        if code != 2 or not is_one_line(last, expects, "File too large"):
            print(f"{limit} bytes: exit code {code}, expected {expects!r} in:\n{error}", file=sys.stderr)
            total += Count(lost=1)
        total += again(runner, command, whole, path)
    return total


def unfinished(runner: Runner, whole: Path) -> Path:
    """A copy of a run as if killed before its summary was written."""
    path = runner.new_folder("copy") / "work"
    shutil.copytree(whole, path)
    (path / "summary.json").unlink()
    return path


def damaged_checkpoint(runner: Runner, whole: Path, number: int, damage: Callable[[bytearray, Any], None]) -> Count:
    """One file of the newest checkpoint is damaged: the run says so and goes on from the one before."""
    total, chance = Count(), random.Random(0)
    for _ in range(number):
        path = unfinished(runner, whole)
        newest = max(path.glob("checkpoints/round_*.json")).with_suffix("")
        file = chance.choice(sorted(file for file in newest.rglob("*") if file.is_file()))
        content = bytearray(file.read_bytes())
        damage(content, chance)
        file.write_bytes(content)
        total += again(runner, SINGLE, whole, path, says="damaged, trying the one before")
    return total


def cut(content: bytearray, chance: random.Random) -> None:
    """Truncates."""
    del content[chance.randrange(len(content)) :]


def flip(content: bytearray, chance: random.Random) -> None:
    """Flips one bit."""
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def cut_metrics(runner: Runner, whole: Path, number: int) -> Count:
    """The metrics end in the middle of a line."""
    total, chance = Count(), random.Random(1)
    for _ in range(number):
        path = unfinished(runner, whole)
        content = (path / "metrics.jsonl").read_bytes()
        (path / "metrics.jsonl").write_bytes(content[: chance.randrange(1, len(content) - 1)])
        total += again(runner, SINGLE, whole, path)
    return total


def two_processes(runner: Runner, whole: Path, number: int) -> Count:
    """A second process is refused with the first one's process id and host; the first one finishes."""
    total = Count()
    for _ in range(number):
        path = runner.new_folder("two") / "work"
        first = runner.start((*SINGLE, f"--workdir={path}"))
        while first.poll() is None and not (path / "config.json").exists():
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        code, _, error = runner.run((*SINGLE, f"--workdir={path}"))
        first.send_signal(signal.SIGCONT)
        first.communicate(timeout=600)
        if code != 2 or not is_one_line(error, f"in use by process {first.pid} on {os.uname().nodename}"):
            print(f"the second process: exit code {code}\n{error}", file=sys.stderr)
            total += Count(lost=1)
        total += compare(whole, path)
    return total


def clock_set_back(runner: Runner, whole: Path, number: int) -> Count:
    """Killed in a block, then all files are from next year; under faketime, where it is there, the clock is wrong too."""
    faketime = shutil.which("faketime")
    total = Count(note="changed in the future" + (", process under faketime -400d" if faketime else ""))
    for nth in range(3, 3 + number):
        path = runner.new_folder("clock") / "work"
        runner.run(("checks.faults", "victim", "a block", str(nth), "0.01", *SINGLE, f"--workdir={path}"))
        later = time.time() + 400 * 86400
        for file in path.rglob("*"):
            os.utime(file, (later, later))
        total += again(runner, SINGLE, whole, path, before=(faketime, "-f", "-400d") if faketime else ())
    return total


def cut_programs(runner: Runner, whole: Path) -> Count:
    """A kill while JAX writes to its cache of compiled programs leaves half of one: it is compiled anew."""
    cache = runner.new_folder("cache")
    shutil.copytree(runner.cache, cache, dirs_exist_ok=True)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return again(runner._replace(cache=cache), SINGLE, whole, runner.new_folder("cut") / "work")


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


def main() -> int:
    """Prints a line a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few of each: under five minutes")
    parser.add_argument("--jobs", type=int, default=2, help="faults made at the same time")
    given = parser.parse_args()
    total = Count()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        runner = Runner(Path(folder), Path(folder) / "xla")
        made = [(name, pool.submit(make)) for name, make in faults(runner, QUICK if given.quick else FULL)]
        for name, future in made:
            count = future.result()
            note = f"  ({count.note})" if count.note else ""
            print(f"{name}: survived / lost / duplicated = {' / '.join(map(str, count[:3]))}{note}", flush=True)
            total += count
    print(f"all: survived / lost / duplicated = {' / '.join(map(str, total[:3]))}, {time.monotonic() - began:.0f} s")
    return int(total.lost + total.duplicated > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["victim"]:
        victim(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5], sys.argv[6:])
    else:
        sys.exit(main())
