"""Runs and sweeps as processes of their own, and the comparison of what is left of them."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
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


class Count(NamedTuple):
    """Faults survived, results lost, results duplicated; `note` says what was done, where there is a choice."""

    survived: int = 0
    lost: int = 0
    duplicated: int = 0
    note: str = ""

    def __add__(self, other: "Count") -> "Count":  # type: ignore[override]
        sums = (a + b for a, b in zip(self[:3], other[:3], strict=True))
        return Count(*sums, self.note or other.note)


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


def again(
    runner: Runner, command: tuple[str, ...], whole: Path, workdir: Path, *, says: str = "", **options: Any
) -> Count:
    """Starts the same command again to its end, and compares."""
    code, out, error = runner.run((*command, f"--workdir={workdir}"), **options)
    if code or says not in out or "Traceback" in error:
        print(f"exit code {code}, {says!r} expected in:\n{out}\n{error}", file=sys.stderr)
        return Count(lost=1)
    return compare(whole, workdir)


def is_one_line(error: str, *parts: str) -> bool:
    """Whether what a process wrote to standard error is one line, `error: ...`, with these parts."""
    lines = error.strip().splitlines()
    return len(lines) == 1 and lines[0].startswith("error: ") and all(part in lines[0] for part in parts)
