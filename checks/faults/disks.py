"""Disks that are full, and files that may not grow."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from checks.faults.runs import SINGLE, Count, Runner, again, is_one_line


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs of 4 MiB. PermissionError where none can be mounted."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, pages_left: int) -> Path:
    """A file that leaves room for so many pages of 4 KiB."""
    path = folder / "filler"
    path.write_bytes(b"")
    with path.open("ab") as file:
        file.write(b"\0" * (shutil.disk_usage(folder).free // 4096 - pages_left) * 4096)
    return path


def full_disk(runner: Runner, whole: Path, pages: list[int], *, checkpoint_every: int, expects: str) -> Count:
    """Disks with room for some pages: the run says so in one line, and goes on where there is room again."""
    total = Count(note="tmpfs")
    command = (*SINGLE, f"--config.checkpoint_every={checkpoint_every}")
    for left in pages:
        folder = runner.new_folder("full")
        with small_disk(folder):
            filler = fill(folder, left)
            for _ in range(2):  # started again while the disk is full it still loses nothing
                code, _, error = runner.run((*command, f"--workdir={folder / 'work'}"))
                if code != 2 or not is_one_line(error, expects, "No space left on device"):
                    print(
                        f"{left} pages: exit code {code}, expected {expects!r} in one line:\n{error}", file=sys.stderr
                    )
                    total += Count(lost=1)
            filler.unlink()
            total += again(runner, command, whole, folder / "work")
        folder.rmdir()
    return total


def file_size_limit(runner: Runner, whole: Path, limits: list[int], *, checkpoint_every: int, expects: str) -> Count:
    """RLIMIT_FSIZE: no file may be longer, which TensorStore and Python meet in the middle of a write."""
    total = Count(note="RLIMIT_FSIZE")
    command = (*SINGLE, f"--config.checkpoint_every={checkpoint_every}")
    for limit in limits:
        path = runner.new_folder("limit") / "work"
        # By prlimit, since Python would set it in a fork, of which JAX warns once it has started.
        limited = ("env", "JAX_ENABLE_COMPILATION_CACHE=false", "prlimit", f"--fsize={limit}")
        code, _, error = runner.run((*command, f"--workdir={path}"), before=limited)
        last = error.strip().splitlines()[-1] if error.strip() else ""
        if code != 2 or not is_one_line(last, expects, "File too large"):
            print(f"{limit} bytes: exit code {code}, expected {expects!r} in:\n{error}", file=sys.stderr)
            total += Count(lost=1)
        total += again(runner, command, whole, path)
    return total
