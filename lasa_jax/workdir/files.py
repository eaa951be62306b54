"""Files that are whole or as before whatever happens, and that are read with care; JSON in and out."""

import json
import math
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sync(path: Path) -> None:
    """Waits until a file, or the names in a directory, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a file so that at every moment, a loss of power included, it is either as before or whole."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # of a crash, or a link that somebody left
    with open(part, "xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync(path.parent)


def read_file(path: Path) -> bytes:
    """A file's content; OSError for a link, which may lead anywhere, and for a pipe or device, which may never end."""

    def opener(name: str, flags: int) -> int:  # what it opened is closed even where `open` finds a directory
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    with open(path, "rb", opener=opener) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("is not a file")
        return file.read()


def delete(path: Path) -> None:
    """Deletes what is there, if anything: a folder with all that is in it, a file, or a link but not where it leads."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def parse_json(text: bytes) -> Any:
    """The value of a JSON text in UTF-8; ValueError for anything else, NaN and infinity included."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text.decode(), parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text with a line end; NaN and infinities become null, since JSON has none."""
    return json.dumps(_finite(value), indent=indent) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
