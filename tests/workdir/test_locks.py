"""Locks: one holder, who is named, and nothing stale."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from lasa_jax.errors import InputError
from lasa_jax.workdir import Workdir, holder, is_held
from lasa_jax.workdir.locks import file_lock, lock_directory

HOLD = """
import sys, time
from pathlib import Path
from lasa_jax.workdir.locks import lock_directory
lock = lock_directory(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_second_holder_is_refused(tmp_path):
    with Workdir(tmp_path), pytest.raises(InputError, match=rf"in use by process {os.getpid()} on "):
        Workdir(tmp_path)
    Workdir(tmp_path).close()  # released


def test_a_killed_process_leaves_nothing_stale(tmp_path):
    """It is named while it lives; after SIGKILL the directory is free."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        for _ in range(2):  # who is refused does not wipe out the name
            with pytest.raises(InputError, match=f"in use by process {process.pid} on {socket.gethostname()}"):
                lock_directory(tmp_path)
        assert is_held(tmp_path)
        assert holder(tmp_path) == f"process {process.pid} on {socket.gethostname()}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert is_held(tmp_path) is False
    lock_directory(tmp_path).release()


def test_who_looks_at_a_lock_keeps_nobody_out(tmp_path, monkeypatch):
    """As if a run began at the very moment in which its lock is looked at."""
    lock_directory(tmp_path).release()
    (tmp_path / ".lock").touch()
    refused = []
    flock = fcntl.flock

    def while_it_is_looked_at(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        monkeypatch.setattr(fcntl, "flock", flock)
        thread.start()
        time.sleep(0.05)

    def begin() -> None:
        try:
            lock_directory(tmp_path).release()
        except InputError as error:
            refused.append(error)

    thread = threading.Thread(target=begin)
    monkeypatch.setattr(fcntl, "flock", while_it_is_looked_at)
    assert is_held(tmp_path) is False
    thread.join()
    assert not refused


def test_a_link_in_place_of_the_lock(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="cannot be locked"):
        lock_directory(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_disk_without_flock_is_said_to_be_one(tmp_path, monkeypatch):
    """A lock of another kind, that a kill would leave stale, is not taken."""

    def missing(*_: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(InputError, match=r"cannot be locked \(Function not implemented\), use a local disk"):
        lock_directory(tmp_path)


def test_a_lock_is_waited_for(tmp_path):
    first = file_lock(tmp_path / ".lock")
    with first:
        assert first.is_locked
    with file_lock(tmp_path / ".lock"):
        assert not first.is_locked
