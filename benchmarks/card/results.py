"""The JSON file of a part: what was measured, item by item, and on what."""

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jaxlib

from benchmarks.card.items import Facts
from benchmarks.roofline import machine
from lasa_jax.errors import InputError
from lasa_jax.federated import cards
from lasa_jax.workdir.files import parse_json, replace_file, to_json

ROOT = Path(__file__).parents[2]
# What must be the same for results to stand in one file.
_SAME = ("part", "small", "sources", "device", "jax", "flags")


class Results:
    """What is known of the items of a part, written after each.

    An item is `{...facts, "done": true}` once all of it is measured; until then it has what is known, or an `error`.
    """

    def __init__(self, path: Path, head: Mapping[str, Any], items: Mapping[str, Facts]) -> None:
        """Args: path: of the file. head: from `header`. items: facts by name."""
        self._path, self.head, self.items = path, head, dict(items)

    @classmethod
    def begin(cls, path: Path, head: Mapping[str, Any], *, anew: bool) -> "Results":
        """Goes on with the file where it is there, unless `anew`.

        Raises:
          InputError: if the file is no such file, or was made on another device, of another version or of another part.
        """
        if anew or not path.exists():
            return cls(path, head, {})
        found = cls.read(path)
        for field in _SAME:
            if found.head.get(field) != head[field]:
                raise InputError(
                    f"--out={path}: has {field} {found.head.get(field)!r}, and this is {head[field]!r}; --anew starts anew"
                )
        return cls(path, head, found.items)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The file as it is.

        Raises:
          InputError: if it is missing, or no such file.
        """
        try:
            stored = parse_json(path.read_bytes())
        except FileNotFoundError:
            raise InputError(f"--out={path}: no such file") from None
        except (OSError, ValueError) as error:
            raise InputError(f"--out={path}: is no result of benchmarks.card ({error})") from None
        if not isinstance(stored, dict) or not all(isinstance(stored.get(key), dict) for key in ("head", "items")):
            raise InputError(f"--out={path}: is no result of benchmarks.card (it has no head and items)")
        return cls(path, stored["head"], stored["items"])

    def is_done(self, name: str) -> bool:
        """Whether all of an item is measured."""
        return self.items.get(name, {}).get("done", False)

    def add(self, name: str, facts: Facts) -> None:
        """Enters what is known of an item, in place of what was, and writes the file."""
        self.items[name] = facts
        replace_file(self._path, to_json({"head": self.head, "items": self.items}, indent=1))


def header(part: str, *, small: bool, commit: str | None) -> dict[str, Any]:
    """What was measured on what.

    Args:
      part: which.
      small: whether at a small size.
      commit: as the user says, for a copy without git; asked of git if None.
    """
    device = jax.devices()[0]
    return {
        "part": part,
        "small": small,
        "commit": _commit() if commit is None else commit,
        "sources": sources(),
        "device": device.device_kind,
        "platform": device.platform,
        "runtime": " ".join(device.client.platform_version.split()),
        "memory_limit": cards.memory(device),
        "machine": machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def _commit() -> str | None:
    """The commit that is checked out, with a plus if a file that git tracks was changed since; None without git."""
    try:
        git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
        head = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def sources() -> str:
    """Twelve hexadecimal digits of the SHA-256 of the Python files that are measured, with their names."""
    digest = hashlib.sha256()
    for folder in ("lasa_jax", "benchmarks", "tests/golden"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
