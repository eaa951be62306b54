"""The directory of a run: the one place that knows its files, writes them atomically and reads them back.

config.json      the resolved config
metrics.jsonl    a line an evaluated round
summary.json     written last: a run that has it is finished
checkpoints/     round_000010/ by Orbax, and round_000010.json: its manifest with the SHA-256 of every file
filtering/       round_000001.parquet: what the rule made of each client from that round on, a file a block; if recorded
accuracy.png     drawn by the report
.lock            held with flock while a process works here, so that a kill leaves nothing stale

The directory of a sweep holds one such directory a run, and

sweep.json       how many runs were in a batch of each program

Nothing here is believed because it is here: text is JSON of the form that is written, links and devices are not read, and
a checkpoint counts only if its files have the SHA-256 of its manifest. docs/reliability.md says what that survives.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import stat
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pandas as pd

from lasa_jax.errors import InputError

PyTree = Any
_orbax = threading.Lock()  # Orbax numbers its operations per process: saved side by side, two checkpoints lose files
_CHECKPOINT_OVERHEAD = 2**17  # bytes of Orbax's own files, rounded up to disk blocks


def _sync(path: Path) -> None:
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
    _sync(path.parent)


def read_file(path: Path) -> bytes:
    """A file's content; OSError for a link, which may lead anywhere, and for a pipe or device, which may never end."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("is not a file")
        return file.read()


def _parse(text: bytes) -> Any:
    """The value of a JSON text in UTF-8; ValueError for anything else, NaN and infinity included."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text.decode(), parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


Check = Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_mapping(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(check(item) for item in value.values())


def _is_record(fields: Mapping[str, Check]) -> Check:
    return lambda value: isinstance(value, dict) and not _wrong_fields(value, fields)


def _wrong_fields(value: Mapping[str, Any], fields: Mapping[str, Check]) -> list[str]:
    """Fields that are missing or of another type; a value may have more."""
    return [name for name, check in fields.items() if name not in value or not check(value[name])]


# What must be in a line of metrics.jsonl, and in summary.json.
_LINE: dict[str, Check] = {
    "round": lambda value: _is_count(value) and value > 0,
    **dict.fromkeys(("malicious", "benign"), _is_count),
    **dict.fromkeys(("malicious_filtered", "benign_filtered"), _is_mapping(_is_count)),
    **dict.fromkeys(("test_accuracy", "test_loss", "train_loss", "update_norm", "step_waste"), _or_null(_is_number)),
    "assumed_malicious": _or_null(_is_count),
    "seconds_per_round": _is_number,
}
_RATES: dict[str, Check] = dict.fromkeys(("malicious_filtered", "benign_kept"), _or_null(_is_number))
_SUMMARY: dict[str, Check] = {
    **dict.fromkeys(("status", "parameters_sha256"), _is_text),
    **dict.fromkeys(("rounds", "seed"), _is_count),
    **dict.fromkeys(("best_test_accuracy", "final_test_accuracy", "seconds_per_round"), _or_null(_is_number)),
    "best_round": _or_null(_is_count),
    "compile_seconds": _is_number,
    "detection": _is_record({**_RATES, "layers": _is_mapping(_is_record(_RATES))}),
}


def _finite(value: Any) -> Any:
    """NaN and infinities become null: JSON has none."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path; OSError if there is anything else than files and folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(read_file(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or not path.is_dir()
    }


def _checkpointer() -> ocp.StandardCheckpointer:
    """Orbax for this process alone: where several share a run, it would wait for the others."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix="lasa_jax"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _check_space(folder: Path, state: PyTree) -> None:
    """Raises the OSError of a full disk if a state cannot fit: TensorStore finds out too, in two hundred lines."""
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) + _CHECKPOINT_OVERHEAD
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _last_reason(error: ValueError) -> str:
    """`"No space left on device"` of TensorStore's long message, else all of it."""
    text = " ".join(str(error).split())
    match = re.search(r"([^:]+) \[os_error_code='\d+'\]", text)
    return match[1].strip() if match else text


def is_finished(path: str | os.PathLike[str]) -> bool:
    """Whether a directory holds a finished run; takes no lock."""
    return (Path(path) / "summary.json").is_file()


def filtering_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files of the filtering that a run recorded, oldest rounds first; none behind a link, which may lead anywhere."""
    folder = Path(path) / "filtering"
    found = () if folder.is_symlink() else folder.glob("round_*.parquet")
    return sorted(
        (file for file in found if re.fullmatch(r"round_\d{6,7}", file.stem)), key=lambda file: int(file.stem[6:])
    )


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
        with contextlib.suppress(OSError):  # on a full disk the name of the holder is missing, the lock holds
            os.ftruncate(self._lock.fileno(), 0)
            os.write(self._lock.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.close()

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Turns what a full or failing disk raises into one line; what was there before is still there."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            raise InputError(
                f"--workdir={self.path}: {name} cannot be written ({reason}); nothing is lost, the same command goes on "
                f"from the last checkpoint"
            ) from None

    def has_results(self) -> bool:
        """Whether anything that a run leaves is here, apart from its config."""
        return any(
            (self.path / name).exists() for name in ("summary.json", "metrics.jsonl", "checkpoints", "filtering")
        )

    def _read_json(self, name: str) -> dict[str, Any] | None:
        path = self.path / name
        try:
            value = _parse(read_file(path))
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
        with self._writing("config.json"):
            replace_file(self.path / "config.json", text)

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, None before.

        Raises:
          InputError: if the file is there and is no summary of a run.
        """
        summary = self._read_json("summary.json")
        if summary is not None and (wrong := _wrong_fields(summary, _SUMMARY)):
            raise InputError(
                f"{self.path / 'summary.json'}: is not the summary of a run ({', '.join(wrong)}); choose another directory"
            )
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Stores the summary; from then on the run is finished."""
        with self._writing("summary.json"):
            replace_file(self.path / "summary.json", json.dumps(_finite(summary), indent=2) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, up to one that a crash cut off, that has another form, or that repeats a round.

        Raises:
          InputError: if the file is there and cannot be read.
        """
        path = self.path / "metrics.jsonl"
        lines: list[dict[str, Any]] = []
        try:
            content = read_file(path)
        except FileNotFoundError:
            return lines
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from None
        for text in content.split(b"\n"):
            try:
                line = _parse(text)
            except ValueError:
                break
            if not isinstance(line, dict) or _wrong_fields(line, _LINE):
                break
            if lines and line["round"] <= lines[-1]["round"]:
                break
            if line["malicious_filtered"].keys() != line["benign_filtered"].keys():
                break
            if lines and line["malicious_filtered"].keys() != lines[0]["malicious_filtered"].keys():
                break
            lines.append(line)
        return lines

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines and waits until they are on the disk."""
        path = self.path / "metrics.jsonl"
        with self._writing(path.name):
            is_new = not path.exists()
            with open(path, "a") as file:
                file.writelines(json.dumps(_finite(line)) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                _sync(self.path)

    def keep_metrics_until(self, last_round: int) -> None:
        """Drops the lines of rounds after `last_round`: rounds that will be computed again."""
        kept = [line for line in self.metrics() if line["round"] <= last_round]
        if (self.path / "metrics.jsonl").exists():
            with self._writing("metrics.jsonl"):
                replace_file(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def write_filtering(self, first_round: int, table: pd.DataFrame) -> None:
        """Stores the filtering of a block that begins with `first_round`, see `records.filtering`."""
        content = io.BytesIO()
        table.to_parquet(content, engine="pyarrow", compression="zstd", index=False)
        with self._writing(f"the filtering of round {first_round}"):
            folder = self.path / "filtering"
            if folder.is_symlink():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            folder.mkdir(exist_ok=True)
            replace_file(folder / f"round_{first_round:06d}.parquet", content.getvalue())

    def keep_filtering_until(self, last_round: int) -> None:
        """Drops the filtering of blocks after `last_round`: rounds that will be computed again."""
        with self._writing("filtering"):
            for path in filtering_files(self.path):
                if int(path.stem.removeprefix("round_")) > last_round:
                    path.unlink()

    def write_figure(self, name: str, figure: Any) -> None:
        """Stores a matplotlib figure under a file name."""
        part = self.path / f".{name}"
        figure.savefig(part, dpi=150, format=Path(name).suffix[1:])
        os.replace(part, self.path / name)

    def checkpoint_rounds(self) -> list[int]:
        """Rounds of which a checkpoint with its manifest is there, oldest first. Its contents are not yet verified."""
        matches = [re.fullmatch(r"round_(\d{6,7})\.json", path.name) for path in self._checkpoints.glob("round_*.json")]
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
        folder = self._folder(last_round)
        with self._writing(f"the checkpoint of round {last_round}"):
            self._checkpoints.mkdir(exist_ok=True)
            self._keep_only(set(self.checkpoint_rounds()) - {last_round})  # what a kill left goes first
            try:
                _check_space(self._checkpoints, state)
                with _orbax, _checkpointer() as checkpointer:
                    checkpointer.save(folder.absolute(), state)
                for path in (*folder.rglob("*"), folder, self._checkpoints, self.path):
                    _sync(path)
                manifest = {"round": last_round, "files": _digests(folder)}
                replace_file(self._manifest(last_round), json.dumps(manifest, indent=2) + "\n")
            except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
                self._keep_only(set(self.checkpoint_rounds()) - {last_round})  # which makes room
                raise error if isinstance(error, OSError) else OSError(_last_reason(error)) from None
            self._keep_only(set(self.checkpoint_rounds()[-keep:]))

    def restore_checkpoint(self, last_round: int, template: PyTree) -> PyTree | None:
        """The state after `last_round`, or None if a file of the checkpoint is not what its manifest says.

        Args:
          last_round: one of `checkpoint_rounds()`.
          template: a pytree of arrays or shapes like the state.
        """
        folder = self._folder(last_round)
        try:
            manifest = _parse(read_file(self._manifest(last_round)))
            if manifest["round"] != last_round or manifest["files"] != _digests(folder):
                return None
            shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
            with _orbax, _checkpointer() as checkpointer:
                return checkpointer.restore(folder.absolute(), shapes)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _folder(self, last_round: int) -> Path:
        return self._checkpoints / f"round_{last_round:06d}"

    def _manifest(self, last_round: int) -> Path:
        return self._folder(last_round).with_suffix(".json")

    def _remove(self, last_round: int) -> None:
        _delete(self._manifest(last_round))  # first: then it is no checkpoint any more
        _delete(self._folder(last_round))

    def _keep_only(self, rounds: Collection[int]) -> None:
        """Removes all checkpoints but those of these rounds, and what a process left that was stopped while it wrote one."""
        for old in set(self.checkpoint_rounds()) - set(rounds):
            self._remove(old)
        kept = {path for last_round in rounds for path in (self._folder(last_round), self._manifest(last_round))}
        for path in set(self._checkpoints.iterdir()) - kept:
            _delete(path)


def _delete(path: Path) -> None:
    """Whatever is there, if anything: a folder with what is in it, a file, a link but not where it leads."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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


def write_batch_sizes(workdir: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Keeps the sizes of a sweep's batches in `sweep.json` in place of older ones, and returns all that are there.

    Raises:
      InputError: if the directory cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with open(workdir / ".sweep.lock", "a") as lock:  # the jobs of a cluster start together
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = {**read_batch_sizes(workdir), **sizes}
            replace_file(workdir / "sweep.json", json.dumps({"batch": known}, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error.strerror})") from None
    return known
