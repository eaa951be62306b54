"""The CSVs of a benchmark: one for each rule, a row for each run, and all that a page is made of."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lasa_jax import methods
from lasa_jax.errors import InputError
from lasa_jax.inspection import rendering
from lasa_jax.leaderboard import declare
from lasa_jax.leaderboard.declare import Entry

_RULE = re.compile(r"[\w.]{1,200}(:\w{1,200})?")  # which is the name of a file, too
_TEXTS = ("settings", "dataset", "rule", "parameters", "attack", "partition", "status", "device", "version", "run")
_SHARES = ("attack_ratio", "accuracy", "malicious_filtered", "benign_kept")
_COUNTS = ("clients_per_round", "seed", "rounds")
SITUATION = ("rule", "attack", "partition", "seed", "clients_per_round")  # what a row is alone with
COLUMNS = (
    *("settings", "dataset", "rule", "parameters", "attack", "attack_ratio", "partition", "clients_per_round", "seed"),
    *(
        "rounds",
        "status",
        "accuracy",
        "malicious_filtered",
        "benign_kept",
        "seconds_per_round",
        "device",
        "version",
        "run",
    ),
)


def of(entry: Entry, summary: Mapping[str, Any], settings: str) -> dict[str, Any]:
    """The row of a run.

    Args:
      entry: of the benchmark.
      summary: of the finished run.
      settings: `declare.settings_id`.

    Returns:
      A value for each of `COLUMNS`: the test accuracy after the last round as a share, 0 where the run diverged; the shares
      of malicious and benign clients that the rule filtered and kept, over rounds and layers, None where there are none.
    """
    config = entry.point.config
    diverged = summary["status"] == "diverged"
    return {
        "settings": settings,
        "dataset": methods.label(config.dataset),
        "rule": entry.rule,
        "parameters": declare.shown(entry.parameters),
        "attack": entry.attack,
        "attack_ratio": config.attack_ratio,
        "partition": entry.partition,
        "clients_per_round": config.clients_per_round,
        "seed": entry.seed,
        "rounds": config.rounds,
        "status": summary["status"],
        "accuracy": 0.0 if diverged else summary["final_test_accuracy"],
        "malicious_filtered": summary["detection"]["malicious_filtered"],
        "benign_kept": summary["detection"]["benign_kept"],
        "seconds_per_round": summary["seconds_per_round"],
        "device": _plain(str(summary.get("device", "unknown"))),
        "version": _plain(str((summary.get("versions") or {}).get("lasa_jax", "unknown"))),  # that ran it, not this one
        "run": entry.point.name,
    }


def _plain(text: str) -> str:
    """A name without what no CSV of ours may hold."""
    return re.sub(r"[^\w.:,/~ +=-]", " ", text)[:200]


def files(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """`{"krum.csv": ...}`: the rows of each rule, in the order in which they come."""
    frame = pd.DataFrame(list(rows), columns=list(COLUMNS))
    return {
        f"{methods.label(str(rule))}.csv": rendering.as_csv(part) for rule, part in frame.groupby("rule", sort=False)
    }


def read(*folders: Path, settings: str | None = None) -> pd.DataFrame:
    """The rows of all CSVs in some folders; a rule that is in several of them is taken from the last.

    Args:
      *folders: each with `RULE.csv`; one that is not there has none.
      settings: what the rows must be of; None takes what the first has.

    Returns:
      A frame with `COLUMNS`, in the order of the names of the files; empty if there is no row.

    Raises:
      InputError: one line that names the file and what is wrong with it.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        found |= {path.name: path for path in sorted(folder.glob("*.csv")) if path.is_file()}
    frames: list[pd.DataFrame] = []
    for name in sorted(found):
        frame = _read(found[name])
        own = sorted(set(frame["settings"]))
        settings = own[0] if settings is None and own else settings
        if own and own != [settings]:
            raise InputError(f"{found[name]}: its runs have other settings ({own[-1]}) than the benchmark ({settings})")
        frames.append(frame)
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    return pd.concat(frames, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    """One CSV, which anybody may have written: every field is checked."""
    try:
        text = path.read_text()
        frame = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no table ({type(error).__name__})") from None
    if missing := [name for name in COLUMNS if name not in frame]:
        raise InputError(f"{path}: has no column {missing[0]!r}")
    frame = frame[list(COLUMNS)].copy()
    for name in _TEXTS:
        able = [bool(_RULE.fullmatch(x)) if name == "rule" else declare.is_name(x) for x in frame[name]]
        _check(path, name, frame[name], able, "a name")
    own = [methods.label(rule) == path.stem for rule in frame["rule"]]
    _check(path, "rule", frame["rule"], own, f"{path.stem}, after which the file is named")
    for name in (*_SHARES, *_COUNTS, "seconds_per_round"):
        numbers = pd.to_numeric(frame[name].where(frame[name] != "", "nan"), errors="coerce")
        high = 1.0 if name in _SHARES else 2.0**53
        inside = numbers.between(0, high) | ((frame[name] == "") & (name not in (*_COUNTS, "accuracy")))
        whole = (numbers % 1 == 0) | (name not in _COUNTS)
        _check(path, name, frame[name], list(inside & whole), "a share" if name in _SHARES else "a number from 0")
        frame[name] = numbers.astype(int) if name in _COUNTS else numbers
    if (again := frame.duplicated(list(SITUATION))).any():
        said = ", ".join(f"{name} = {frame[again].iloc[0][name]}" for name in SITUATION)
        raise InputError(f"{path}: {said}: is there twice; allowed is one row")
    return frame


def _check(path: Path, name: str, values: pd.Series, able: Sequence[bool], allowed: str) -> None:
    for value, is_able in zip(values, able, strict=True):
        if not is_able:
            raise InputError(f"{path}: {name} = {value[:50]!r}: allowed is {allowed}")
