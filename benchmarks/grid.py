"""What a grid gains over one process for each point.

    python -m benchmarks.grid [--config=configs/sweeps/figure1.py:digits,iid]

Runs points spread over a sweep in a process each, and all points of a few of its programs in one process, one run at a time
and as `launch.sweep` does. Nothing is compiled before. Prints a Markdown table with what the whole sweep would
take each way.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.federated import Executables

_ONE = """
import json, sys
from ml_collections import ConfigDict
from lasa_jax import experiment
with open(sys.argv[1]) as file:
    experiment.run(ConfigDict(json.load(file)), sys.argv[2], log=lambda text: None)
"""


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly spread, the first and the last included."""
    return [items[round(i * (len(items) - 1) / max(1, count - 1))] for i in range(count)]


def alone(points: Sequence[grid.Point], folder: Path) -> float:
    """Seconds of one process for each point."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    began = time.perf_counter()
    for point in points:
        path = folder / point.name
        (path.with_suffix(".json")).write_text(configs.to_json(point.config))
        subprocess.run([sys.executable, "-c", _ONE, path.with_suffix(".json"), path], check=True, env=environment)
    return time.perf_counter() - began


def together(points: Sequence[grid.Point], folder: Path, threads: int | None) -> tuple[float, Executables]:
    """Seconds of one process for all, and its programs."""
    began, compiled = time.perf_counter(), Executables()
    for outcome in grid.run(points, folder, threads=threads, executables=compiled, log=lambda text: None):
        if outcome.error is not None:
            raise RuntimeError(outcome.error)
    return time.perf_counter() - began, compiled


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/sweeps/figure1.py:digits,iid")
    parser.add_argument("--points", type=int, default=20, help="that run in a process of their own")
    parser.add_argument("--programs", type=int, default=2, help="whose points run together, all of them")
    given = parser.parse_args()
    found = grid.points(grid.load(given.config))
    groups = list(grid.programs(found).values())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = spread(found, given.points)
        seconds = alone(chosen, Path(folder))
        rows.append(("a process a point", len(chosen), seconds, seconds / len(chosen) * len(found), len(chosen)))
    several = spread(groups, given.programs)
    for name, threads in (("one process, a run at a time", 1), ("one process, as launch.sweep does", None)):
        with tempfile.TemporaryDirectory() as folder:
            points = [point for group in several for point in group]
            seconds, compiled = together(points, Path(folder), threads)
            rows.append((name, len(points), seconds, seconds / len(several) * len(groups), len(compiled)))
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores, JAX {jax.__version__}\n")
    print(
        f"| how | points | seconds | all {len(found)} points, min | programs compiled |\n| --- | --- | --- | --- | --- |"
    )
    for name, count, seconds, whole, compiled in rows:
        print(f"| {name} | {count} | {seconds:.0f} | {whole / 60:.0f} | {compiled} |")


if __name__ == "__main__":
    main()
