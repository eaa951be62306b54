"""Checkpoints of a run: written by Orbax, each with a manifest that has the SHA-256 of its files and is checked before use.

Not Orbax's CheckpointManager: it removes an old checkpoint before the manifest of the new one is there to check it by.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lasa_jax.errors import is_mark
from lasa_jax.workdir.files import delete, parse_json, read_file, replace_file, sync

if TYPE_CHECKING:  # who reads a directory restores nothing
    import orbax.checkpoint as ocp

PyTree = Any
_orbax = threading.Lock()  # Orbax numbers its operations per process: saved side by side, two checkpoints lose files
_OVERHEAD = 2**17  # bytes of Orbax's own files, rounded up to disk blocks


class Checkpoints:
    """The checkpoints of one run in their folder: `round_000010/` and its manifest `round_000010.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rounds(self) -> list[int]:
        """Rounds of which a checkpoint with its manifest is there, oldest first. Its contents are not yet verified."""
        matches = [re.fullmatch(r"round_(\d{6,7})\.json", path.name) for path in self.folder.glob("round_*.json")]
        return sorted(int(match[1]) for match in matches if match)

    def save(self, last_round: int, state: PyTree, *, keep: int) -> None:
        """Writes the state after `last_round`; the manifest comes last, a folder without one is not a checkpoint.

        Args:
          last_round: rounds done.
          state: a pytree of arrays.
          keep: how many checkpoints stay.

        Raises:
          OSError: if the disk is full or fails; earlier checkpoints are still there.
        """
        path = self._path(last_round)
        self.folder.mkdir(exist_ok=True)
        self._keep_only(set(self.rounds()) - {last_round})  # what a kill left goes first
        try:
            _check_space(self.folder, state)
            with _orbax, _checkpointer() as checkpointer:
                checkpointer.save(path.absolute(), state)
            for written in (*path.rglob("*"), path, self.folder, self.folder.parent):
                sync(written)
            manifest = {"round": last_round, "files": _digests(path)}
            replace_file(self._manifest(last_round), json.dumps(manifest, indent=2) + "\n")
        except (OSError, ValueError) as error:  # TensorStore reports a full disk as a ValueError
            self._keep_only(set(self.rounds()) - {last_round})  # which makes room
            raise error if isinstance(error, OSError) else OSError(_last_reason(error)) from None
        self._keep_only(set(self.rounds()[-keep:]))

    def restore(self, last_round: int, template: PyTree) -> PyTree | None:
        """The state after `last_round`, or None if a file of the checkpoint is not what its manifest says.

        Args:
          last_round: one of `rounds()`.
          template: a pytree of arrays or shapes like the state.
        """
        path = self._path(last_round)
        if not self.is_whole(last_round):
            return None
        try:
            import orbax.checkpoint as ocp  # half a second that a command which restores nothing should not wait for

            shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
            with _orbax, _checkpointer() as checkpointer:
                return checkpointer.restore(path.absolute(), shapes)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_whole(self, last_round: int) -> bool:
        """Whether the files of a checkpoint are what its manifest says."""
        path = self._path(last_round)
        try:
            manifest = parse_json(read_file(self._manifest(last_round)))
            return not path.is_symlink() and manifest["round"] == last_round and manifest["files"] == _digests(path)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def copy(self, other: "Checkpoints", last_round: int) -> None:
        """Copies a checkpoint of another run, its manifest last, which is what makes it one."""
        self.folder.mkdir(exist_ok=True)
        path = self._path(last_round)
        delete(path)
        shutil.copytree(other._path(last_round), path)
        for written in (*path.rglob("*"), path, self.folder, self.folder.parent):
            sync(written)
        replace_file(self._manifest(last_round), read_file(other._manifest(last_round)))

    def remove_after(self, last_round: int) -> None:
        """Deletes the checkpoints of later rounds: damaged ones, which would push out good ones that follow."""
        for later in self.rounds():
            if later > last_round:
                self._remove(later)

    def _path(self, last_round: int) -> Path:
        return self.folder / f"round_{last_round:06d}"

    def _manifest(self, last_round: int) -> Path:
        return self._path(last_round).with_suffix(".json")

    def _remove(self, last_round: int) -> None:
        delete(self._manifest(last_round))  # first: then it is no checkpoint any more
        delete(self._path(last_round))

    def _keep_only(self, rounds: Collection[int]) -> None:
        """Removes all checkpoints but those of these rounds, and what a process left that was stopped while it wrote one."""
        for old in set(self.rounds()) - set(rounds):
            self._remove(old)
        kept = {path for last_round in rounds for path in (self._path(last_round), self._manifest(last_round))}
        for path in set(self.folder.iterdir()) - kept:
            delete(path)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path; OSError if there is anything else than files and folders.

    Marks of systems are left out, which appear by themselves where somebody looks into a folder.
    """
    return {
        str(path.relative_to(folder)): hashlib.sha256(read_file(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if (path.is_symlink() or not path.is_dir()) and not any(map(is_mark, path.relative_to(folder).parts))
    }


def _checkpointer() -> "ocp.StandardCheckpointer":
    """Orbax for this process alone: where several share a run, it would wait for the others."""
    import orbax.checkpoint as ocp  # half a second that a command which saves nothing should not wait for

    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=here, active_processes={here}, barrier_sync_key_prefix="lasa_jax"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=alone)


def _check_space(folder: Path, state: PyTree) -> None:
    """Raises the OSError of a full disk if a state cannot fit: TensorStore finds out too, in two hundred lines."""
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) + _OVERHEAD
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _last_reason(error: ValueError) -> str:
    """`"No space left on device"` of TensorStore's long message, else all of it."""
    text = " ".join(str(error).split())
    match = re.search(r"([^:]+) \[os_error_code='\d+'\]", text)
    return match[1].strip() if match else text
