"""Processes that are killed, that meet on one directory, or whose clock is wrong."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from checks.faults.runs import SINGLE, Count, Runner, again, compare, is_one_line
from checks.faults.victim import PHASES


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
