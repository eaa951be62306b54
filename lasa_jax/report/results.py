"""Run directories to data frames: every run below a directory, read through `workdir` and checked before it is believed."""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lasa_jax.config import UNIDENTIFYING, flatten
from lasa_jax.errors import InputError, user_path
from lasa_jax.report import refused
from lasa_jax.report.directories import FILES, one_line, run_directories
from lasa_jax.workdir import Workdir

_LARGEST_FILE = 2**28  # bytes; a hundred times what a long run writes
_LARGEST_COUNT = 2**53
_TEXT = re.compile(r"[\w.:,/~ +-]{0,200}")  # what names of methods, datasets and variants are made of
_REQUIRED = ("dataset", "model", "fidelity", "aggregator.name", "attack.name", "attack_ratio", "seed", "rounds")
_BEST = ("best_test_accuracy", "best_test_accuracy_with_padding", "best_test_accuracy_without_padding")
_FINAL = ("final_test_accuracy", "final_attack_success")
_LINE_SHARES = ("test_accuracy", "attack_success")
_LINE_NUMBERS = (*_LINE_SHARES, "test_loss", "train_loss", "seconds_per_round")


@dataclasses.dataclass(frozen=True)
class Results:
    """The finished runs below a directory.

    runs: a row a run: `run` (its path below the directory), every field of its config by the config's own name (a parameter
      of the selected method as `aggregator.sparsity_level`), and of its summary `status`, `worst_tenth_accuracy` (NaN where
      clients differ by chance only), `best_test_accuracy`,
      `best_test_accuracy_with_padding` and `best_test_accuracy_without_padding` (NaN where a dataset has no padding),
      `final_test_accuracy`, `final_attack_success` (NaN
      under an attack without a trigger), `last_round`, `seconds_per_round`, `device`, `malicious_filtered`, `benign_kept`
      and, where it is known, `num_parameters`, `test_labels` (how many the accuracy is a share of), `machine`, `began`
      and `ended` (seconds of that machine's clock), and `alone`, see there. Shares are in [0, 1].
    lines: a row a run and evaluated round: `run`, `round`, `test_accuracy`, `attack_success`, `test_loss`,
      `train_loss`, `seconds_per_round`, and since the line before, counted in pairs of a client and a layer: `malicious`,
      `benign`, `malicious_filtered`, `benign_filtered`.
    layers: a row a run and layer: `run`, `layer`, and over all rounds the shares `malicious_filtered`, `benign_kept`.
    fields: the columns of `runs` that are settings.
    left_out: one line for everything that was found and could not be used, or only in part.
    refused: the flat configs of points of sweeps that no machine could run, see `report.refused`.
    """

    runs: pd.DataFrame
    lines: pd.DataFrame
    layers: pd.DataFrame
    fields: tuple[str, ...]
    left_out: tuple[str, ...]
    refused: tuple[Mapping[str, Any], ...] = ()

    def only(self, runs: pd.DataFrame) -> "Results":
        """The results of some of the runs."""
        lines = self.lines[self.lines["run"].isin(runs["run"])]
        layers = self.layers[self.layers["run"].isin(runs["run"])]
        return dataclasses.replace(self, runs=runs, lines=lines, layers=layers)


def load(directory: str | os.PathLike[str]) -> Results:
    """Reads every finished run at or below a directory, in the order of their paths.

    A run that is not finished, or of which a file is damaged, is left out with one line, and the others are read. Links are
    not followed, and those that lead outside of the directory are named. A run that is there twice counts once.

    Raises:
      InputError: if there is no such directory, or no finished run in it.
    """
    root = user_path(str(directory), directory)
    if not root.is_dir():
        raise InputError(f"{root}: is not a directory")
    left_out: list[str] = []
    runs: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    layers: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    twice: list[str] = []
    fields: dict[str, None] = {}  # a set that keeps its order
    for path in run_directories(root.resolve(), left_out):
        name = one_line(str(path.relative_to(root.resolve())))
        try:
            found = _read_run(path, name)
        except (InputError, OSError, RecursionError) as error:
            reason = str(error).replace(f"{path}{os.sep}", "") or type(error).__name__
            left_out.append(one_line(f"{name}: {reason}, left out"))
            continue
        config, summary, its_layers = found
        identity = json.dumps(
            {key: str(value) for key, value in config.items() if key not in (*UNIDENTIFYING, "record_filtering")},
            sort_keys=True,
        )
        if identity in seen:
            twice.append(f"{name} is {seen[identity]}")
            continue
        seen[identity] = name
        fields |= dict.fromkeys(config)
        runs.append({"run": name, **config, **summary})
        layers += its_layers
        try:
            lines += _read_lines(path, name, summary["last_round"])
        except (InputError, OSError, RecursionError) as error:
            reason = str(error) or type(error).__name__
            left_out.append(one_line(f"{name}: metrics.jsonl: {reason}, in the tables but not in what goes by round"))
    if twice:
        left_out.append(one_line(f"found again and counted once: {len(twice)}; the first: {twice[0]}"))
    if not runs:
        why = f" ({len(left_out)} left out; the first: {left_out[0]})" if left_out else ""
        raise InputError(f"{root}: has no finished run, which is a directory with config.json and summary.json{why}")
    frame = pd.DataFrame(runs, dtype=object)
    numbers = [*_BEST, *_FINAL, "worst_tenth_accuracy", "seconds_per_round", "malicious_filtered", "benign_kept"]
    numbers += ["num_parameters", "attack_ratio", "test_labels", "began", "ended"]
    frame = frame.astype(dict.fromkeys(numbers, float))
    frame["alone"] = alone(frame)
    line_columns = ["run", "round", *_LINE_NUMBERS, *_COUNTS]
    return Results(
        runs=frame,
        lines=pd.DataFrame(lines, columns=line_columns),
        layers=pd.DataFrame(layers, columns=["run", "layer", "malicious_filtered", "benign_kept"]),
        fields=tuple(fields),
        left_out=tuple(left_out),
        refused=tuple(refused.points(root.resolve(), _flat)),
    )


def alone(runs: pd.DataFrame) -> pd.Series:
    """Whether each run had its machine for itself, among all these: True, False, or None if it does not say when it ran.

    A run goes from `began` to `ended`, compiling included. Two of the same machine that overlap shared it: side by side in
    one program, in two threads, or in two processes.

    Args:
      runs: with `machine`, `began` and `ended`, as in `Results.runs`; all that are known, of any settings and device.
    """
    found = pd.Series(True, index=runs.index, dtype=object)
    for _, part in runs.groupby("machine"):
        ordered = part.dropna(subset=["began", "ended"]).sort_values(["began", "ended"])
        latest, last = -math.inf, None
        for index, began, ended in zip(ordered.index, ordered["began"], ordered["ended"], strict=True):
            if began < latest:
                found[index] = found[last] = False
            if ended > latest:
                latest, last = ended, index
    found[runs["ended"].isna() | runs["began"].isna()] = None
    return found


def select(results: Results, conditions: Sequence[str]) -> Results:
    """The runs that fulfil every condition `field=value`, such as `dataset=digits` or `aggregator.name=lasa`.

    Raises:
      InputError: if a condition is no such pair, no run has the field, or none has the value.
    """
    for condition in conditions:
        field, equals, text = condition.partition("=")
        if not equals:
            raise InputError(f"--where={condition}: allowed is FIELD=VALUE, for instance dataset=digits")
        if field not in results.fields:
            raise InputError(
                f"--where={condition}: no run has the field {field!r}; fields are {', '.join(results.fields)}"
            )
        column = results.runs[field]
        kept = results.runs[column.map(lambda value, text=text: _is(value, text))]
        if kept.empty:
            there = ", ".join(sorted({str(value) for value in column[column.notna()]}))
            raise InputError(f"--where={condition}: no run has that value; there are {there}")
        alike = tuple(point for point in results.refused if _is(point.get(field), text))
        results = dataclasses.replace(results.only(kept), refused=alike)
    return results


def _is(value: Any, text: str) -> bool:
    """Whether a setting has the value that a user typed: `0.30` is 0.3."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return value == float(text)
        except ValueError:
            return False
    return str(value) == text


def _read_run(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """The flat config of a run, what its summary says, and the detection rates of its layers.

    Raises:
      InputError: if the run is not finished or a file is not as it must be.
    """
    for file in FILES:
        if (path / file).exists() and not (path / file).is_file():
            raise InputError(f"{file} is not a file")
        if (path / file).exists() and (path / file).stat().st_size > _LARGEST_FILE:
            raise InputError(f"{file} is larger than {_LARGEST_FILE / 2**20:.0f} MiB")
    workdir = Workdir(path, lock=False)
    summary = workdir.summary()
    if summary is None:
        rounds = (workdir.config() or {}).get("rounds")
        done = max((line["round"] for line in workdir.metrics()), default=0)
        raise InputError(f"is not finished (round {done} of {rounds})")
    stored = workdir.config()
    if stored is None:
        raise InputError("has a summary.json but no config.json")
    config = _flat(stored)
    if summary["status"] not in ("finished", "diverged"):
        raise InputError(f"summary.json: status = {summary['status']!r}: allowed are finished, diverged")
    detection = summary["detection"]  # the work directory has checked its form
    device = summary.get("device", "unknown")
    if not isinstance(device, str):
        raise InputError(f"summary.json: device = {device!r}: allowed is text")
    result = {
        "status": summary["status"],
        **{name: _share(summary, name) for name in _BEST},
        **{name: _share(summary, name) for name in _FINAL},
        "last_round": int(_number(summary, "rounds", high=_LARGEST_COUNT, whole=True)),
        "seconds_per_round": _number(summary, "seconds_per_round", optional=True),
        "num_parameters": _number(summary, "num_parameters", high=_LARGEST_COUNT, optional=True),
        "test_labels": _number(summary, "test_labels", high=_LARGEST_COUNT, optional=True) or math.nan,
        "device": one_line(device),
        "machine": one_line(str(summary.get("machine", ""))),
        "began": _number(summary, "ended", optional=True) - _number(summary, "total_seconds", optional=True),
        "ended": _number(summary, "ended", optional=True),
        "malicious_filtered": _share(detection, "malicious_filtered"),
        "benign_kept": _share(detection, "benign_kept"),
        "worst_tenth_accuracy": _share(summary, "worst_tenth_accuracy"),
    }
    layers = []
    for layer, rates in detection["layers"].items():
        shares = {kind: _share(rates, kind) for kind in ("malicious_filtered", "benign_kept")}
        layers.append({"run": name, "layer": one_line(layer), **shares})
    return config, result, layers


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """`{"aggregator.sparsity_level": 0.3, ...}` of a stored config.

    Raises:
      InputError: if a field that every run has is missing, or a value is not what a config may hold.
    """
    flat = {}
    for field, value in flatten(config):
        if value in ("inf", "-inf"):
            value = float(value)
        if isinstance(value, Mapping):  # the parameters of a method that has none
            continue
        if isinstance(value, list):
            value = " ".join(map(str, value))
        if isinstance(value, str) and field not in (*UNIDENTIFYING, "source_id") and not _TEXT.fullmatch(value):
            raise InputError(
                f"config.json: {field} = {value!r}: allowed are letters, digits, spaces and . : , / ~ + - _"
            )
        if not _TEXT.fullmatch(field):
            raise InputError(f"config.json: {field!r} is not the name of a setting")
        flat[field.replace(".parameters.", ".")] = value
    for field in _REQUIRED:
        if field not in flat:
            raise InputError(f"config.json: {field} is missing")
    return _checked(_with_sources(flat))


def _with_sources(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The SHA-256 of the files of a user's functions as a setting of what they are: two versions are two variants."""
    kept = {field: value for field, value in flat.items() if not field.startswith("sources.")}
    for field in ("aggregator.name", "attack.name", "preaggregators.names", "dataset", "model"):
        names = str(flat.get(field)).split(",")
        found = [str(flat[key])[:8] for name in names if (key := f"sources.{name.replace('.', '/')}") in flat]
        if found:
            kept[f"{field.partition('.')[0]}.source"] = " ".join(found)
    return kept


def _checked(flat: dict[str, Any]) -> dict[str, Any]:
    """The settings that reports rely on, with the types that they must have."""
    for field in ("dataset", "model", "fidelity", "aggregator.name", "attack.name"):
        if not isinstance(flat[field], str) or not flat[field]:
            raise InputError(f"config.json: {field} = {flat[field]!r}: allowed is a name")
    _number(flat, "attack_ratio", high=1, file="config.json")
    _number(flat, "seed", high=_LARGEST_COUNT, whole=True, file="config.json")
    _number(flat, "rounds", high=_LARGEST_COUNT, whole=True, file="config.json")
    return flat


_COUNTS = ("malicious", "benign", "malicious_filtered", "benign_filtered")


def _read_lines(path: Path, name: str, last_round: int) -> list[dict[str, Any]]:
    """The metrics of a finished run as rows of `Results.lines`.

    Raises:
      InputError: if a line lacks something or lines are missing at the end.
    """
    rows = []
    for line in Workdir(path, lock=False).metrics():
        row: dict[str, Any] = {"run": name, "round": line["round"]}
        for kind in _LINE_NUMBERS:
            value = line.get(kind)
            row[kind] = (
                math.nan
                if value is None
                else _number(line, kind, high=1 if kind in _LINE_SHARES else math.inf, file=f"round {line['round']}")
            )
        for kind in ("malicious", "benign"):
            filtered = line[f"{kind}_filtered"]
            count = _number(line, kind, high=_LARGEST_COUNT, whole=True, file=f"round {line['round']}")
            row[kind] = count * len(filtered)
            row[f"{kind}_filtered"] = sum(
                _number(filtered, layer, high=count, whole=True, file=f"round {line['round']}") for layer in filtered
            )
        rows.append(row)
    if last_round and (not rows or rows[-1]["round"] != last_round):
        raise InputError(f"ends at round {rows[-1]['round'] if rows else 0} of {last_round}")
    return rows


def _number(
    values: Mapping[str, Any],
    name: str,
    *,
    high: float = math.inf,
    whole: bool = False,
    optional: bool = False,
    file: str = "summary.json",
) -> float:
    """The value if it is a number in `[0, high]`, NaN for a null that is allowed."""
    value = values.get(name)
    if value is None and optional:
        return math.nan
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 <= value <= high:
        bound = f" up to {high:g}" if high < _LARGEST_COUNT else ""
        raise InputError(f"{file}: {name} = {value!r}: allowed is a {'whole ' if whole else ''}number from 0{bound}")
    return value


def _share(values: Mapping[str, Any], name: str) -> float:
    return _number(values, name, high=1, optional=True)
