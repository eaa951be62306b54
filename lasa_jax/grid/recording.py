"""What a sweep writes of itself before it runs, so that its directory alone says how far it is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lasa_jax import config as configs
from lasa_jax.grid.declare import Point
from lasa_jax.workdir import forget_failures, write_points


def begin(found: Sequence[Point], workdir: Path, mine: Sequence[Point]) -> None:
    """Writes `points.json`, and forgets the failures of the points that run again.

    Args:
      found: all points of the sweep.
      workdir: its directory; made if it is not there.
      mine: the points that run now.

    Raises:
      InputError: if the directory cannot be written.
    """
    told: dict[str, Mapping[str, Any]] = {}
    stored = {point.name: configs.as_json(point.config) for point in found}
    differs = _differences(found, stored)
    for point in found:
        costs = " ".join(part for part in configs.cost_key(point.config) if not part.startswith("rounds="))
        of: dict[str, Any] = {"program": point.program, "costs": costs, "differs": differs[point.name]}
        of["done"] = 0 if point.extends is None else point.extends.config.rounds
        told[point.name] = {**of, "config": stored[point.name]}
    write_points(workdir, told)
    forget_failures(workdir, [point.name for point in mine])


def _differences(found: Sequence[Point], stored: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """`"attack_ratio=0.1 seed=2"` by point: the settings in which it differs from points of the same methods."""
    alike: dict[str, dict[str, dict[str, str]]] = {}
    for point in found:
        fields = {
            field: f"{field.replace('.parameters.', '.')}={x}" for field, x in configs.flatten(stored[point.name])
        }
        alike.setdefault(point.name.rpartition("_")[0], {})[point.name] = fields
    told = {}
    for points in alike.values():
        times = Counter(text for fields in points.values() for text in fields.values())
        for name, fields in points.items():
            told[name] = " ".join(text for text in fields.values() if times[text] < len(points))
    return told
