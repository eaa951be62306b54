"""The files of a sweep's directory: the points it was asked for, the sizes of its batches, and what ended failed points."""

import contextlib
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from lasa_jax.errors import InputError
from lasa_jax.workdir.files import parse_json, read_file, replace_file, to_json
from lasa_jax.workdir.forms import Form, is_count, is_text, wrong_fields
from lasa_jax.workdir.locks import file_lock

_NAME = re.compile(r"[\w.-]*\w[\w.-]*")  # of a run's directory: one step below the sweep's, never `..`

# What a sweep knows of a point before it has begun, in `points.json`.
PLANNED: Form = {
    "program": is_text,
    "costs": is_text,
    "config": lambda value: isinstance(value, dict) and is_count(value.get("rounds")),
}


def read_batch_sizes(workdir: Path) -> dict[str, int]:
    """The sizes of a sweep's batches by program, from its `sweep.json`; empty before the first.

    Raises:
      InputError: if the file is not what `write_batch_sizes` wrote.
    """
    path = workdir / "sweep.json"
    try:
        stored = parse_json(read_file(path))["batch"]
        if not all(isinstance(size, int) and size > 0 for size in stored.values()):
            raise ValueError("sizes are positive integers")
        return stored
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None


def write_batch_sizes(workdir: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Keeps the sizes of a sweep's batches in `sweep.json` in place of older ones, and returns all that are there.

    Raises:
      InputError: if the directory cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with file_lock(workdir / ".sweep.lock"):  # the jobs of a cluster start together
            known = {**read_batch_sizes(workdir), **sizes}
            replace_file(workdir / "sweep.json", to_json({"batch": dict(sorted(known.items()))}, indent=2))
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error.strerror})") from None
    return known


def read_points(workdir: Path) -> dict[str, dict[str, Any]]:
    """What `write_points` wrote; empty where no sweep was begun.

    Raises:
      InputError: if `points.json` is not that.
    """
    path = workdir / "points.json"
    try:
        stored = parse_json(read_file(path))["points"]
        for name, planned in stored.items():
            if not _NAME.fullmatch(name) or not isinstance(planned, dict) or wrong_fields(planned, PLANNED):
                raise ValueError(f"{name[:100]!r} is no point")
        return stored
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None


def write_points(workdir: Path, points: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps what a sweep was asked for in `points.json`, in place of what it was asked for before.

    Args:
      workdir: the directory of the sweep; made if it is not there.
      points: by the name of the run directory: `program` and `costs`, two texts that points share which go through one
        program, or take as long as each other but for their methods; and `config`, resolved, as JSON.

    Raises:
      InputError: if the directory cannot be written.
    """
    path, text = workdir / "points.json", to_json({"points": points})
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with file_lock(workdir / ".sweep.lock"):  # the jobs of a cluster start together
            with contextlib.suppress(OSError):
                if read_file(path) == text.encode():
                    return
            replace_file(path, text)
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error.strerror})") from None


def read_failure(workdir: Path, name: str) -> str | None:
    """The error that a point ended with when it ran last; None if it did not fail, or runs again."""
    try:
        error = parse_json(read_file(_failure(workdir, name)))["error"]
        return error if isinstance(error, str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_failure(workdir: Path, name: str, error: str) -> None:
    """Keeps the error of a point in `failed/NAME.json`, for who asks how the sweep is."""
    with contextlib.suppress(OSError):  # on a full disk the sweep goes on, and tells of the error when it ends
        _failure(workdir, name).parent.mkdir(exist_ok=True)
        replace_file(_failure(workdir, name), to_json({"error": error}))


def forget_failures(workdir: Path, names: Collection[str]) -> None:
    """Removes what earlier attempts at these points ended with."""
    with contextlib.suppress(OSError):
        for name in names:
            _failure(workdir, name).unlink(missing_ok=True)


def _failure(workdir: Path, name: str) -> Path:
    return workdir / "failed" / f"{name}.json"
