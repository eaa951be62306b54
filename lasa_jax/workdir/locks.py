"""Locks by `filelock`, which holds them with flock: the system lets go of them when a process ends, even by SIGKILL."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from lasa_jax.errors import InputError
from lasa_jax.workdir.files import read_file

_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of network disks
_PROBED = 0.2  # seconds after which a lock is not only looked at, see `is_held`


class InUseError(InputError):
    """Another process works in the directory of a run. A sweep reports it, but keeps no failure of that run."""


def file_lock(path: Path) -> FileLock:
    """The lock of a file, for a `with` block that waits for it."""
    # Where flock is missing, filelock would fall back to a soft lock, which a kill leaves stale.
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def lock_directory(path: Path) -> FileLock:
    """Locks the directory of a run by its file `.lock`, and writes there who holds it.

    Raises:
      InUseError: if another process holds it, which is named.
      InputError: if the directory cannot be locked.
    """
    file = path / ".lock"
    lock = file_lock(file)
    try:
        lock.acquire(timeout=_PROBED, poll_interval=0.01)
    except Timeout:
        raise InUseError(f"--workdir={path}: in use by {holder(path) or 'another process'}") from None
    except OSError as error:
        advice = ", use a local disk" if error.errno in _NO_FLOCK else ""
        raise InputError(f"--workdir={path}: cannot be locked ({error.strerror}){advice}") from None
    with contextlib.suppress(OSError):  # on a full disk the name of the holder is missing, the lock holds
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return lock


def holder(path: Path) -> str | None:
    """`"process 12 on node7"`: who locked the directory of a run last; None if nobody did, or nobody is named."""
    try:
        return read_file(path / ".lock").decode(errors="replace").strip() or None
    except OSError:
        return None


def is_held(path: Path) -> bool | None:
    """Whether a process works in the directory of a run; None where the system does not say.

    The lock is looked at for an instant with a shared one, which `lock_directory` waits for. On a network disk whose locks
    other machines do not see, False means no more than that none of this machine holds it.
    """
    try:
        descriptor = os.open(path / ".lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False
