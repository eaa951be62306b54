"""Locks by `filelock`, which holds them with flock: the system lets go of them when a process ends, even by SIGKILL."""

import contextlib
import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from lasa_jax.errors import InputError

_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of network disks


def file_lock(path: Path) -> FileLock:
    """The lock of a file, for a `with` block that waits for it."""
    # Where flock is missing, filelock would fall back to a soft lock, which a kill leaves stale.
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def lock_directory(path: Path) -> FileLock:
    """Locks the directory of a run by its file `.lock`, and writes there who holds it.

    Raises:
      InputError: if another process holds it, which is named, or the directory cannot be locked.
    """
    file = path / ".lock"
    lock = file_lock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"--workdir={path}: in use by {_holder(file)}") from None
    except OSError as error:
        advice = ", use a local disk" if error.errno in _NO_FLOCK else ""
        raise InputError(f"--workdir={path}: cannot be locked ({error.strerror}){advice}") from None
    with contextlib.suppress(OSError):  # on a full disk the name of the holder is missing, the lock holds
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return lock


def _holder(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip() or "another process"
    except OSError:
        return "another process"
