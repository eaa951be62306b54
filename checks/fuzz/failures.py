"""What counts as a failure: anything but a result or one line of `InputError`, within a minute."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lasa_jax.errors import InputError
from lasa_jax.grid import GridError

SECONDS = 60  # that one input may take


class Failures(list):
    """What went wrong, one line each; the first few are shown."""

    def report(self, name: str, tried: int) -> None:
        print(f"{name}: {tried:,} inputs, {len(self)} failures", flush=True)
        for text in self[:20]:
            print(f"  {text}", file=sys.stderr)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raises TimeoutError in the main thread after `SECONDS`."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call returned; and what is wrong if it raised anything but one line of `InputError`."""
    try:
        with time_limit():
            return call(), None
    except GridError as error:  # all faults of a grid, each of them a line
        long = [fault for fault in error.faults if "\n" in fault]
        return error, f"more than one line: {long[0][:200]!r}" if long else None
    except InputError as error:
        return error, None if "\n" not in str(error) else f"more than one line: {str(error)[:200]!r}"
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        return error, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder but locks, by relative path; links and pipes by what they are."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        if path.name != ".lock":
            is_file = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(folder))] = path.read_bytes() if is_file else path.lstat().st_mode
    return found
