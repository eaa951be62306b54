"""The directory of a run: the one place that knows its files, writes them atomically and reads them back.

config.json      the resolved config
metrics.jsonl    a line an evaluated round
summary.json     written last: a run that has it is finished
checkpoints/     round_000010/ by Orbax, and round_000010.json: its manifest with the SHA-256 of every file
accuracy.png     drawn by the report
.lock            held with flock while a process works here, so that a kill leaves nothing stale

The directory of a sweep holds one such directory a run, and

sweep.json       how many runs were in a batch of each program
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from lasa_jax.errors import InputError

PyTree = Any


def _replace(path: Path, text: str) -> None:
    """Writes a file so that at every moment it is either as before or whole."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _finite(value: Any) -> Any:
    """NaN and infinities become null: JSON has none."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def is_finished(path: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a finished run; takes no lock."""
    return (Path(path) / "summary.json").is_file()


class Workdir:
    """An open run directory, locked by this process. Use as a context manager."""

    def __init__(self, path: str | os.PathLike[str], *, lock: bool = True):
        """Creates the directory if needed and locks it.

        Args:
          path: the directory.
          lock: False only reads a directory that is there.

        Raises:
          InputError: if the path is a file, cannot be created, or another process works there.
        """
        self.path = Path(path)
        self._lock: Any = None
        if not lock:
            return
        try:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"--workdir={self.path}: is a file, allowed is a directory")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115  (held until close)
        except OSError as error:
            raise InputError(f"--workdir={self.path}: cannot be used ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise InputError(f"--workdir={self.path}: in use by {holder}") from None
        except OSError as error:
            self._lock.close()
            raise InputError(f"--workdir={self.path}: cannot be locked ({error.strerror}), use a local disk") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()

    def has_results(self) -> bool:
        """Whether anything that a run leaves is here, apart from its config."""
        return any((self.path / name).exists() for name in ("summary.json", "metrics.jsonl", "checkpoints"))

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        if not isinstance(value, dict):
            raise InputError(f"{path}: must hold a JSON object")
        return value

    def config(self) -> dict[str, Any] | None:
        """The resolved config of the run that lives here, None in a new directory."""
        return self._read_json("config.json")

    def write_config(self, text: str) -> None:
        """Stores the resolved config, JSON text."""
        _replace(self.path / "config.json", text)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, None before."""
        return self._read_json("summary.json")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Stores the summary; from then on the run is finished."""
        _replace(self.path / "summary.json", json.dumps(_finite(summary), indent=2) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; what follows a line that a crash cut off is not read."""
        lines: list[dict[str, Any]] = []
        try:
            text = (self.path / "metrics.jsonl").read_text(errors="replace")
        except FileNotFoundError:
            return lines
        for line in text.splitlines():
            try:
                value = json.loads(line)
            except ValueError:
                break
            if not isinstance(value, dict) or not isinstance(value.get("round"), int):
                break
            lines.append(value)
        return lines

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines and waits until they are on the disk."""
        with open(self.path / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(_finite(line)) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def keep_metrics_until(self, last_round: int) -> None:
        """Drops the lines of rounds after `last_round`: rounds that will be computed again."""
        kept = [line for line in self.metrics() if line["round"] <= last_round]
        if (self.path / "metrics.jsonl").exists():
            _replace(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def write_figure(self, name: str, figure: Any) -> None:
        """Stores a matplotlib figure under a file name."""
        part = self.path / f".{name}"
        figure.savefig(part, dpi=150, format=Path(name).suffix[1:])
        os.replace(part, self.path / name)

    def checkpoint_rounds(self) -> list[int]:
        """Rounds of which a checkpoint with its manifest is there, oldest first. Its contents are not yet verified."""
        matches = [re.fullmatch(r"round_(\d+)\.json", path.name) for path in self._checkpoints.glob("round_*.json")]
        return sorted(int(match[1]) for match in matches if match)

    def remove_checkpoints_after(self, last_round: int) -> None:
        """Deletes the checkpoints of later rounds: damaged ones, which would push out good ones that follow."""
        for later in self.checkpoint_rounds():
            if later > last_round:
                self._remove(later)

    def save_checkpoint(self, last_round: int, state: PyTree, *, keep: int) -> None:
        """Writes the state after `last_round`; the manifest comes last, a folder without one is not a checkpoint.

        Args:
          last_round: rounds done.
          state: a pytree of arrays.
          keep: how many checkpoints stay.
        """
        self._checkpoints.mkdir(exist_ok=True)
        folder = self._folder(last_round)
        self._remove(last_round)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder.absolute(), state)
        manifest = {"round": last_round, "files": _digests(folder)}
        _replace(folder.with_suffix(".json"), json.dumps(manifest, indent=2) + "\n")
        for old in self.checkpoint_rounds()[:-keep]:
            self._remove(old)

    def restore_checkpoint(self, last_round: int, template: PyTree) -> PyTree | None:
        """The state after `last_round`, or None if a file of the checkpoint is not what its manifest says.

        Args:
          last_round: one of `checkpoint_rounds()`.
          template: a pytree of arrays or shapes like the state.
        """
        folder = self._folder(last_round)
        try:
            manifest = json.loads(folder.with_suffix(".json").read_text())
            if manifest["round"] != last_round or manifest["files"] != _digests(folder):
                return None
            shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(folder.absolute(), shapes)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _folder(self, last_round: int) -> Path:
        return self._checkpoints / f"round_{last_round:06d}"

    def _remove(self, last_round: int) -> None:
        self._folder(last_round).with_suffix(".json").unlink(missing_ok=True)
        shutil.rmtree(self._folder(last_round), ignore_errors=True)


def read_batch_sizes(workdir: Path) -> dict[str, int]:
    """The sizes of a sweep's batches by program, from its `sweep.json`; empty before the first.

    Raises:
      InputError: if the file is not what `write_batch_sizes` wrote.
    """
    path = workdir / "sweep.json"
    try:
        stored = json.loads(path.read_text())["batch"]
        if not all(isinstance(size, int) and size > 0 for size in stored.values()):
            raise ValueError("sizes are positive integers")
        return stored
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None


def write_batch_sizes(workdir: Path, sizes: Mapping[str, int]) -> None:
    """Keeps the sizes of a sweep's batches beside those that are there, in `sweep.json`."""
    workdir.mkdir(parents=True, exist_ok=True)
    known = {**read_batch_sizes(workdir), **sizes}
    _replace(workdir / "sweep.json", json.dumps({"batch": known}, indent=2, sort_keys=True) + "\n")
