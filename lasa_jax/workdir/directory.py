"""The open directory of a run: its config, metrics, summary, filtering and checkpoints."""

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from lasa_jax.errors import InputError
from lasa_jax.workdir import records
from lasa_jax.workdir.checkpoints import Checkpoints
from lasa_jax.workdir.files import parse_json, read_file, replace_file, sync, to_json
from lasa_jax.workdir.forms import wrong_fields
from lasa_jax.workdir.locks import lock_directory

if TYPE_CHECKING:
    import pandas as pd

PyTree = Any


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
        self._checkpoints = Checkpoints(self.path / "checkpoints")
        self._lock: FileLock | None = None
        if not lock:
            return
        try:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"--workdir={self.path}: is a file, allowed is a directory")
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--workdir={self.path}: cannot be used ({error.strerror})") from None
        self._lock = lock_directory(self.path)

    def __enter__(self) -> "Workdir":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()

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
            value = parse_json(read_file(path))
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
        if summary is not None and (wrong := wrong_fields(summary, records.SUMMARY)):
            raise InputError(
                f"{self.path / 'summary.json'}: is not the summary of a run ({', '.join(wrong)}); choose another directory"
            )
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Stores the summary; from then on the run is finished."""
        with self._writing("summary.json"):
            replace_file(self.path / "summary.json", to_json(summary, indent=2))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, up to one that a crash cut off, that has another form, or that repeats a round.

        Raises:
          InputError: if the file is there and cannot be read.
        """
        path = self.path / "metrics.jsonl"
        try:
            return records.parse_lines(read_file(path))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from None

    def append_metrics(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines and waits until they are on the disk."""
        path = self.path / "metrics.jsonl"
        with self._writing(path.name):
            is_new = not path.exists()
            with open(path, "a") as file:
                file.writelines(to_json(line) for line in lines)
                file.flush()
                os.fsync(file.fileno())
            if is_new:
                sync(self.path)

    def keep_metrics_until(self, last_round: int) -> None:
        """Drops the lines of rounds after `last_round`: rounds that will be computed again."""
        kept = [line for line in self.metrics() if line["round"] <= last_round]
        if (self.path / "metrics.jsonl").exists():
            with self._writing("metrics.jsonl"):
                replace_file(self.path / "metrics.jsonl", "".join(to_json(line) for line in kept))

    def write_filtering(self, first_round: int, table: "pd.DataFrame") -> None:
        """Stores the filtering of a block that begins with `first_round`, see `records.filtering_table`."""
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
        return self._checkpoints.rounds()

    def save_checkpoint(self, last_round: int, state: PyTree, *, keep: int) -> None:
        """Writes the state after `last_round`, and keeps so many checkpoints, see `Checkpoints.save`."""
        with self._writing(f"the checkpoint of round {last_round}"):
            self._checkpoints.save(last_round, state, keep=keep)

    def restore_checkpoint(self, last_round: int, template: PyTree) -> PyTree | None:
        """The state after `last_round`, None if the checkpoint is damaged, see `Checkpoints.restore`."""
        return self._checkpoints.restore(last_round, template)

    def has_whole(self, last_round: int) -> bool:
        """Whether the files of a checkpoint are what its manifest says."""
        return self._checkpoints.is_whole(last_round)

    def begin_from(self, other: "Workdir", last_round: int) -> None:
        """Copies what another run has up to a round: metrics, filtering, and last the checkpoint, which makes it count."""
        with self._writing("what the run begins with"):
            lines = [records.as_not_the_last(line) for line in other.metrics() if line["round"] <= last_round]
            replace_file(self.path / "metrics.jsonl", "".join(to_json(line) for line in lines))
            for file in filtering_files(other.path):
                if int(file.stem.removeprefix("round_")) <= last_round:
                    (self.path / "filtering").mkdir(exist_ok=True)
                    replace_file(self.path / "filtering" / file.name, read_file(file))
            self._checkpoints.copy(other._checkpoints, last_round)

    def remove_checkpoints_after(self, last_round: int) -> None:
        """Deletes the checkpoints of later rounds: damaged ones, which would push out good ones that follow."""
        self._checkpoints.remove_after(last_round)
