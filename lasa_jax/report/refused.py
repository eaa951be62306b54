"""The points of a sweep that no machine could run: their rule walks over subsets of the clients, and there are too many.

Such a point is refused before it is compiled, and the sweep goes on. Tables mark its cell, so that it is not taken for one
that is still to come.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lasa_jax.errors import InputError
from lasa_jax.report.directories import run_directories
from lasa_jax.workdir import read_failure, read_points

TOO_MANY = "too many subsets"  # what is said of them, and what tables show


def points(root: Path, flat: Callable[[Mapping[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """The flat configs of the points of sweeps below a directory that were refused for the number of subsets.

    What cannot be read is no such point: `results.load` names it.

    Args:
      root: where to look.
      flat: from a stored config to its fields, which raises InputError for what is none.
    """
    found = []
    for sweep in run_directories(root, [], ("points.json",)):
        try:
            planned = read_points(sweep)
        except InputError:
            continue
        for name, point in planned.items():
            if TOO_MANY in (read_failure(sweep, name) or ""):
                try:
                    found.append(flat(point["config"]))
                except InputError:
                    continue
    return found
