"""Reads LEAF's JSON (Caldas et al., 2018): `{"users": [...], "user_data": {user: {"x": [...], "y": [...]}}}`.

A source is a folder with `train/*.json[.gz]` and `test/*.json[.gz]`, as LEAF's preprocessing writes them. Marks of operating
systems and editors, as files whose names begin with a dot, are no data.
"""

import gzip
import itertools
import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lasa_jax.data.by_client import ClientExamples
from lasa_jax.errors import InputError, is_mark

Convert = Callable[[list[Any], list[Any]], tuple[np.ndarray, np.ndarray]]

# Of what two files have of the same users. LEAF's own FEMNIST has one to two in a hundred examples in train and test.
_MOST_SHARED = 0.1


def is_leaf(source: Path) -> bool:
    """Whether a path is a folder in LEAF's layout."""
    return (source / "train").is_dir() and (source / "test").is_dir()


def files(source: Path) -> list[Path]:
    """The files that are read, of both parts.

    Raises:
      InputError: if the folder is not in LEAF's layout, or a part has none.
    """
    if not is_leaf(source):
        raise InputError(
            f"config.source = '{source}': must be a folder with train/*.json and test/*.json, as LEAF writes"
        )
    return [file for part in ("train", "test") for file in _files(source / part)]


def _files(folder: Path) -> list[Path]:
    named = (*folder.glob("*.json"), *folder.glob("*.json.gz"))
    found = sorted(file for file in named if file.is_file() and not is_mark(file.name))
    if not found:
        raise InputError(f"config.source: {folder} holds no *.json or *.json.gz")
    return found


def read(source: Path, convert: Convert) -> dict[str, list[ClientExamples]]:
    """All users of all files of both parts; the examples of a user who is in several files are joined.

    Args:
      source: the folder.
      convert: `(x, y) -> (inputs, labels)` of one user; raises ValueError with what is wrong.

    Raises:
      InputError: one line that names the file, and the user where it is about one; or the two files where more than a
        tenth of the examples of their common users are the same: they would be read twice, or be in train and test.
    """
    by_file: dict[Path, dict[str, ClientExamples]] = {}
    parts = {part: _read_part(source / part, convert, by_file) for part in ("train", "test")}
    _check_apart(by_file)
    return parts


def _check_apart(by_file: dict[Path, dict[str, ClientExamples]]) -> None:
    """Raises InputError for the first two files with the same examples of the same users."""
    files_of: dict[str, list[Path]] = defaultdict(list)
    for file, clients in by_file.items():
        for client in clients:
            files_of[client].append(file)
    shared: Counter[tuple[Path, Path]] = Counter()
    sizes: Counter[tuple[Path, Path]] = Counter()
    for client, files in files_of.items():
        keys = {}
        for file in files if len(files) > 1 else ():
            _, inputs, labels = by_file[file][client]
            keys[file] = Counter(x.tobytes() + y.tobytes() for x, y in zip(inputs, labels, strict=True))
        for pair in itertools.combinations(keys, 2):
            one, other = (keys[file] for file in pair)
            shared[pair] += (one & other).total()
            sizes[pair] += min(one.total(), other.total())
    for (first, second), count in shared.items():
        if count > max(1, _MOST_SHARED * sizes[first, second]):  # a single one may be alike by chance
            raise InputError(f"{first} and {second}: have {count} examples of the same clients in common, remove one")


def _read_part(folder: Path, convert: Convert, by_file: dict[Path, dict[str, ClientExamples]]) -> list[ClientExamples]:
    """The users of one part; what each file has goes to `by_file` too."""
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for file in _files(folder):
        content = _parse(file)
        if len(set(map(str, content["users"]))) < len(content["users"]):
            raise InputError(f"{file}: a client is listed twice in 'users'")
        for user in content["users"]:
            try:
                examples = content["user_data"][user]
                x, y = examples["x"], examples["y"]
            except (KeyError, TypeError):
                raise InputError(f"{file}: client {user!r} has no x and y in user_data") from None
            if not isinstance(x, list) or not isinstance(y, list) or len(x) != len(y) or not x:
                raise InputError(f"{file}: client {user!r} must have as many y as x, and at least one")
            try:
                arrays = convert(x, y)
            except (ValueError, OverflowError) as error:
                raise InputError(f"{file}: client {user!r}: {error}") from None
            parts.setdefault(str(user), []).append(arrays)
            by_file.setdefault(file, {})[str(user)] = ClientExamples(str(user), *arrays)
    if not parts:
        raise InputError(f"{folder}: no client in any file")
    joined = {user: [np.concatenate(arrays) for arrays in zip(*found, strict=True)] for user, found in parts.items()}
    return [ClientExamples(user, *joined[user]) for user in sorted(joined)]


def _parse(file: Path) -> dict[str, Any]:
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as stream:
            content = json.load(stream)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise InputError(f"{file}: is not a whole JSON file ({type(error).__name__}: {_first_line(error)})") from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("users"), list)
        or not isinstance(content.get("user_data"), dict)
    ):
        raise InputError(f"{file}: must hold an object with a list 'users' and an object 'user_data'")
    return content


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:100]
