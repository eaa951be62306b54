"""Files that are cut off or have a bit flipped."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checks.faults.runs import SINGLE, Count, Runner, again


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


def cut_programs(runner: Runner, whole: Path) -> Count:
    """A kill while JAX writes to its cache of compiled programs leaves half of one: it is compiled anew."""
    cache = runner.new_folder("cache")
    shutil.copytree(runner.cache, cache, dirs_exist_ok=True)
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return again(runner._replace(cache=cache), SINGLE, whole, runner.new_folder("cut") / "work")
