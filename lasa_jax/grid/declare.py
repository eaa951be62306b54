"""What a grid is: axes and single points, declared in Python or in a sweep's file, and resolved to `Point`s."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lasa_jax import commandline, experiment
from lasa_jax import config as configs
from lasa_jax.errors import InputError

Axis = Mapping[str, Sequence[Any]]
Settings = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A grid before it is checked.

    Attributes:
      base: the config that every point starts from.
      axes: each a mapping from fields to values, in a list or an array with one axis. The fields of one axis are tied and
        change together; the points are the product of the axes.
      points: settings of single points beside them.
    """

    base: ConfigDict
    axes: Sequence[Axis] = ()
    points: Sequence[Settings] = ()


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a grid.

    Attributes:
      config: resolved.
      name: the name of its run directory, `config.run_name(config)`.
      program: `config.program_key(config)`; points with the same one go through one executable.
      extends: the point with fewer rounds whose finished run it goes on from, see `extended`.
    """

    config: ConfigDict
    name: str
    program: str
    extends: "Point | None" = None


class GridError(InputError):
    """All faults of a grid, one per line."""

    def __init__(self, faults: Sequence[str]):
        super().__init__("\n".join(faults))
        self.faults = list(faults)


def points(declared: Grid) -> list[Point]:
    """The points of a grid, in the order of its axes, without those that describe the same run twice.

    Raises:
      GridError: for unknown fields, empty axes, tied axes of different lengths, values that a config refuses, and fields
        that have no effect in a point, as those of a rule that it does not select.
    """
    found: dict[str, Point] = {}
    for point in _points(declared, {}):
        found.setdefault(point.name, point)
    return list(found.values())


def extended(declared: Grid, rounds: int) -> list[Point]:
    """The points of a grid with more rounds, each of which goes on from the finished run of the point as declared.

    Args:
      declared: the grid that was run.
      rounds: how many each shall have in all.

    Raises:
      GridError: as `points`.
      InputError: if a point has as many rounds already, or has another setting that depends on them.
    """
    before, after = _points(declared, {}), _points(declared, {"rounds": rounds})
    found: dict[str, Point] = {}
    for old, new in sorted(zip(before, after, strict=True), key=lambda pair: -pair[0].config.rounds):
        experiment.check_extends(old.config, new.config)
        found.setdefault(new.name, dataclasses.replace(new, extends=old))  # from the longest of them
    return [found[name] for name in dict.fromkeys(point.name for point in after)]


def _points(declared: Grid, also: Settings) -> list[Point]:
    """The points of a grid, each as often as it is declared, with some more settings.

    Raises:
      GridError: as `points`.
    """
    _check_form(declared)
    declared = dataclasses.replace(declared, axes=[_as_lists(axis) for axis in declared.axes])
    if faults := list(dict.fromkeys(_faults(declared))):
        raise GridError(faults)
    found: list[Point] = []
    refused: dict[str, None] = {}  # a set that keeps its order
    on_axes = {field for axis in declared.axes for field in axis}
    for declaration in [*_product(declared.axes), *declared.points]:
        settings = {**declaration, **also}
        try:
            config = configs.resolve(configs.updated(declared.base, settings), list(settings))
        except InputError as error:
            way_out = "; points= sets it where it has an effect" if _of_what_is_not_selected(error, on_axes) else ""
            refused[f"{error}{way_out}"] = None
            continue
        found.append(Point(config, configs.run_name(config), configs.program_key(config)))
    if refused:
        raise GridError(list(refused))
    return found


def _of_what_is_not_selected(error: InputError, fields: Collection[str]) -> bool:
    """Whether an error is about the setting of one of these fields, of a method that the point does not select."""
    field = re.match(r"config\.([\w.]+)", str(error))
    return field is not None and field[1] in fields and "selected" in str(error)


def _check_form(declared: Grid) -> None:
    """Raises GridError for the first thing that is not a list or a dictionary where one is needed."""
    if not isinstance(declared.axes, list | tuple) or not isinstance(declared.points, list | tuple):
        raise GridError(["Grid: axes and points are lists of dictionaries"])
    if not declared.axes and not declared.points:
        raise GridError(["Grid: has neither axes nor points"])
    for settings in (*declared.axes, *declared.points):
        if not isinstance(settings, Mapping):
            raise GridError([f"Grid: {settings!r} is not a dictionary of fields"])
    for axis in declared.axes:
        for field, values in axis.items():
            is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
            if not is_list and not (_is_array(values) and np.ndim(values) == 1):
                raise GridError([f"axis {field}: {' '.join(repr(values).split())[:100]} is not a list of values"])


def _is_array(values: Any) -> bool:
    """Whether this is an array of NumPy, JAX, pandas or the like."""
    return hasattr(values, "__array__") and not isinstance(values, np.generic)


def _as_lists(axis: Axis) -> Axis:
    """An axis whose values are those of Python, where they were an array."""
    return {field: np.asarray(values).tolist() if _is_array(values) else values for field, values in axis.items()}


def _faults(declared: Grid) -> Iterator[str]:
    """What is wrong with the axes and the names of the fields."""
    for axis in declared.axes:
        fields = ", ".join(axis)
        lengths = {len(values) for values in axis.values()}
        if not axis or 0 in lengths:
            yield f"axis {fields or '{}'}: is empty"
        elif len(lengths) > 1:
            found = ", ".join(f"{field} {len(values)}" for field, values in axis.items())
            yield f"axis {fields}: tied fields must have as many values as each other ({found})"
    for field, times in Counter(field for axis in declared.axes for field in axis).items():
        if times > 1:
            yield f"axis {field}: is in {times} axes, and only the last would count"
    try:
        selected = _selected(declared)
        for field in _fields(declared):
            try:
                configs.check_fields([field], selected)
            except InputError as error:
                yield str(error)
    except InputError as error:  # a user's function that cannot be imported
        yield str(error)


def _fields(declared: Grid) -> list[str]:
    """The fields that the axes and the single points set."""
    return list(dict.fromkeys(field for settings in (*declared.axes, *declared.points) for field in settings))


def _selected(declared: Grid) -> dict[str, list[str]]:
    """The names of the methods that any point of a grid selects, by kind."""
    names = {kind: list(found) for kind, found in configs.chosen(declared.base).items()}
    for kind, group in configs.GROUPS.items():
        fields = ["preaggregators.names" if kind == "preaggregator" else f"{group}.name"]
        for field in (*fields, *(configs.BASES if kind == "attack" else ())):
            values = [value for axis in declared.axes for value in axis.get(field, ())]
            values += [settings[field] for settings in declared.points if field in settings]
            words = [str(value) for value in values if value is not None]
            names[kind] += [name.strip() for word in words for name in word.split(",") if name.strip()]
    return names


def _product(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """One dictionary of settings for each point; nothing where there is no axis."""
    if not axes:
        return []
    rows = [[dict(zip(axis, values, strict=True)) for values in zip(*axis.values(), strict=True)] for axis in axes]
    return [{field: value for part in parts for field, value in part.items()} for parts in itertools.product(*rows)]


def resolve(base: ConfigDict, settings: Settings) -> ConfigDict:
    """A resolved config: the base with these settings, without the parameters of methods that are not selected.

    Args:
      base: as in `Grid`.
      settings: values by field, for instance `{"aggregator.name": "lasa", "seed": 2}`.

    Raises:
      InputError: for a value that the config refuses.
    """
    return configs.resolve(configs.updated(base, settings))


def programs(found: Sequence[Point]) -> dict[str, list[Point]]:
    """The points by their program, in order."""
    groups: dict[str, list[Point]] = {}
    for point in found:
        groups.setdefault(point.program, []).append(point)
    return groups


def load(sweep: str) -> Grid:
    """The grid of a sweep's file, from its `get_grid(dataset)`.

    Args:
      sweep: `"FILE.py:DATASET"`; the digits if no dataset is named. A file that is not here is looked up in the package.

    Raises:
      InputError: if there is no such file or function, or the file fails.
    """
    declared = commandline.call(sweep, "get_grid", default="digits")
    if not isinstance(declared, Grid):
        name = sweep.partition(":")[0]
        raise InputError(f"--config={name}: get_grid gives {type(declared).__name__}, allowed is a lasa_jax.grid.Grid")
    return declared
