"""Environments of a command: homes, languages, terminals, closed output, closed and read-only folders, each listed one once.

A short run of the digits must end with exit code 0 and whole results, or with 2 and one line; never with a traceback.
"""

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from checks.fuzz.failures import Failures

ROOT = Path(__file__).parents[2]
SECONDS = 300
_SETTINGS = {
    "rounds": 1,
    "model": "mlp",
    "num_clients": 4,
    "clients_per_round": 2,
    "client.epochs": 1,
    "aggregator.name": "fedavg",
}
_NOBODY = 65534  # a user without rights: root may do what a closed folder forbids


class Environment(NamedTuple):
    """What a command finds around it.

    Attributes:
      variables: changes of the environment; None removes one. `{place}` is the folder of the case.
      output: "pipe", "terminal" (a pseudo terminal), "closed", "full" (a disk without room) or "broken" (a pipe that is read
        no further).
      closed: which of `home`, `out`, `cwd` nobody may look into.
      read_only: which of these nobody may write to.
      ends: the exit codes that are right. Whatever becomes of the output, the files of the run are there.
    """

    variables: Mapping[str, str | None] = {}
    output: str = "pipe"
    closed: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    ends: tuple[int, ...] = (0,)


ENVIRONMENTS: dict[str, Environment] = {
    "as it is": Environment(),
    "no HOME": Environment({"HOME": None, "XDG_CACHE_HOME": None}),
    "an empty HOME": Environment({"HOME": "", "XDG_CACHE_HOME": None}),
    "a HOME that is not there": Environment({"HOME": "{place}/gone", "XDG_CACHE_HOME": None}),
    "a HOME that is a file": Environment({"HOME": "/etc/hostname", "XDG_CACHE_HOME": None}),
    "a closed HOME": Environment({"XDG_CACHE_HOME": None}, closed=("home",)),
    "a read-only HOME": Environment({"XDG_CACHE_HOME": None}, read_only=("home",)),
    "an empty XDG_CACHE_HOME": Environment({"XDG_CACHE_HOME": ""}),
    "a relative XDG_CACHE_HOME": Environment({"XDG_CACHE_HOME": "cache/here"}),
    "locale C": Environment({"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    "locale POSIX, ASCII": Environment({"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}),
    "a locale that is not there": Environment({"LC_ALL": "xx_YY.KOI8-R", "LANG": "xx_YY.KOI8-R"}),
    "Latin-1": Environment({"PYTHONIOENCODING": "latin-1", "LC_ALL": None, "LANG": None}),
    "a Turkish locale": Environment({"LC_ALL": "tr_TR.UTF-8"}),
    "a terminal": Environment(output="terminal"),
    "a terminal without TERM": Environment({"TERM": None}, output="terminal"),
    "TERM=dumb": Environment({"TERM": "dumb"}, output="terminal"),
    "a TERM that is not known": Environment({"TERM": "vt999"}, output="terminal"),
    "a terminal of 20 columns, ASCII": Environment(
        {"COLUMNS": "20", "LINES": "2", "PYTHONIOENCODING": "ascii"}, output="terminal"
    ),
    "odd COLUMNS": Environment({"COLUMNS": "many", "LINES": "-1"}),
    "colours forced": Environment({"FORCE_COLOR": "1", "NO_COLOR": "1"}),
    "closed output": Environment(output="closed"),
    "output to a full disk": Environment(output="full", ends=(0, 1, 2)),
    "a pipe that is read no further": Environment(output="broken", ends=(0, 1, 2)),
    "a closed folder for the run": Environment(closed=("out",), ends=(2,)),
    "a read-only folder for the run": Environment(read_only=("out",), ends=(2,)),
    "a closed working directory": Environment(closed=("cwd",)),
    "a read-only working directory": Environment(read_only=("cwd",)),
    "no PATH": Environment({"PATH": None}),
    "a TMPDIR that is not there": Environment({"TMPDIR": "{place}/gone"}),
    "an odd TZ": Environment({"TZ": "Nowhere/At_All"}),
    "no USER, another umask": Environment({"USER": None, "LOGNAME": None}),
    "everything at once": Environment(
        {"HOME": None, "XDG_CACHE_HOME": None, "TERM": None, "LC_ALL": "C", "PYTHONUTF8": "0", "PATH": None},
        output="terminal",
        read_only=("cwd",),
    ),
}


def python_of_others() -> str | None:
    """An interpreter that a user without rights may run; None if there is none."""
    for python in (sys.executable, "/usr/bin/python3", f"/usr/bin/python3.{sys.version_info.minor}"):
        if os.path.exists(python) and _as_nobody([python, "-c", "import jax, rich, orbax.checkpoint"], _search()):
            return python
    return None


def _as_nobody(command: list[str], variables: Mapping[str, str]) -> bool:
    if os.geteuid() != 0:
        return True
    try:
        found = subprocess.run(
            command, user=_NOBODY, group=_NOBODY, extra_groups=[], env=dict(variables), capture_output=True
        )
    except (PermissionError, FileNotFoundError):
        return False
    return found.returncode == 0


def _search() -> dict[str, str]:
    """Where an interpreter finds this tree and what it needs, also that of another installation."""
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("-packages"))])}


@contextlib.contextmanager
def _place(environment: Environment) -> Iterator[Path]:
    """A folder with `home`, `out` and `cwd`, as closed as the environment says, of the user that the command has."""
    place = Path(tempfile.mkdtemp())
    try:
        for name in ("home", "out", "cwd"):
            (place / name).mkdir()
            if os.geteuid() == 0:
                os.chown(place / name, _NOBODY, _NOBODY)
        place.chmod(0o755)
        for name in environment.read_only:
            (place / name).chmod(0o555)
        for name in environment.closed:
            (place / name).chmod(0o000)
        yield place
    finally:
        for name in ("home", "out", "cwd"):
            (place / name).chmod(0o755)
        shutil.rmtree(place)


def _run(python: str, environment: Environment, place: Path) -> tuple[int, str]:
    """Exit code of the command there, and what it wrote, as far as that can be read."""
    variables: dict[str, Any] = {**os.environ, **_search(), "HOME": str(place / "home"), "JAX_PLATFORMS": "cpu"}
    variables |= {"XDG_CACHE_HOME": str(place / "home" / "cache"), "TERM": "xterm-256color", "JAX_NUM_CPU_DEVICES": "1"}
    variables.pop("XLA_FLAGS", None)
    variables.pop("FORCE_COLOR", None)
    for name, value in environment.variables.items():
        variables[name] = None if value is None else value.format(place=place)
    settings = [f"--config.{field}={value}" for field, value in _SETTINGS.items()]
    command = [python, "-m", "lasa_jax", "run", "digits", *settings, f"--workdir={place / 'out' / 'run'}"]
    user: dict[str, Any] = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    started: dict[str, Any] = {
        "env": {name: value for name, value in variables.items() if value is not None},
        "cwd": place / "cwd",
        "stdin": subprocess.DEVNULL,
        **user,
    }
    shell = ["/bin/sh", "-c", "exec " + " ".join(f"'{part}'" for part in command)]
    if environment.output == "terminal":
        return _on_a_terminal(shell, started)
    if environment.output == "closed":
        done = subprocess.run([*shell[:2], shell[2] + " >&- 2>&-"], timeout=SECONDS, **started)
        return done.returncode, ""
    if environment.output == "full":
        with open("/dev/full", "wb") as full:
            done = subprocess.run(shell, stdout=full, stderr=subprocess.PIPE, timeout=SECONDS, **started)
        return done.returncode, done.stderr.decode(errors="replace")
    if environment.output == "broken":
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(shell, stdout=write, stderr=subprocess.PIPE, timeout=SECONDS, **started)
        os.close(write)
        return done.returncode, done.stderr.decode(errors="replace")
    done = subprocess.run(shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, **started)
    return done.returncode, done.stdout.decode(errors="replace")


def _on_a_terminal(shell: list[str], started: dict[str, Any]) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    with subprocess.Popen(shell, stdout=theirs, stderr=theirs, **started) as process:
        os.close(theirs)
        parts = []
        with contextlib.suppress(OSError):  # a terminal that nobody writes to any more
            while part := os.read(ours, 65536):
                parts.append(part)
        code = process.wait(timeout=SECONDS)
    os.close(ours)
    return code, b"".join(parts).decode(errors="replace")


def wrong(environment: Environment, code: int, text: str, place: Path) -> str | None:
    """What is wrong with how a command ended; None if nothing is."""
    last = " ".join(text.split()[-40:])
    if "Traceback" in text:
        return f"traceback, exit code {code}: {last}"
    if code not in environment.ends:
        return f"exit code {code}, right are {environment.ends}: {last}"
    if code == 2 and "error: " not in text:
        return f"exit code 2 without a line: {last}"
    summary = place / "out" / "run" / "summary.json"
    finished = summary.is_file() and json.loads(summary.read_text())["status"] == "finished"
    return None if finished or environment.ends == (2,) else f"exit code {code} without results: {last}"


def fuzz(count: int, seed: int = 0, names: Sequence[str] = tuple(ENVIRONMENTS)) -> tuple[int, Failures]:
    """The first `count` of these, as a user without rights where this is root. Nothing here is drawn."""
    failures, python = Failures(), python_of_others()
    if python is None:
        failures.append("environments: no interpreter that a user without rights may run: not tried")
        return 0, failures
    tried = 0
    for name in names[:count]:
        environment = ENVIRONMENTS[name]
        with _place(environment) as place:
            try:
                code, text = _run(python, environment, place)
            except PermissionError:
                print(f"environments: {name}: needs root, not tried", file=sys.stderr)
                continue
            except subprocess.TimeoutExpired:
                failures.append(f"{name}: still at it after {SECONDS} s")
                continue
            if (what := wrong(environment, code, text, place)) is not None:
                failures.append(f"{name}: {what}")
            tried += 1
    return tried, failures
