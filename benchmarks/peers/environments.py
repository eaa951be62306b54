"""An environment for each simulator: made once with `venv` and pip, used again while its requirements are the same."""

import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.plan import Peer

NEWEST = 15  # minor version of Python up to which interpreters are looked for


class RefusedError(Exception):
    """What pip says about it, in one line."""


def version(python: str) -> tuple[int, int] | None:
    """Of an interpreter; None if it does not run."""
    try:
        command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return int(found[0]), int(found[1])


def interpreter(oldest: tuple[int, int], more: Sequence[str] = ()) -> str:
    """The first interpreter that is new enough: this one, those given, those on PATH. This one if there is none."""
    on_path = (shutil.which(f"python3.{minor}") for minor in range(oldest[1], NEWEST + 1))
    for python in (sys.executable, *more, *filter(None, on_path)):
        if (version(python) or (0, 0)) >= oldest:
            return python
    return sys.executable


def reason(said: str, requirements: Sequence[str]) -> str:
    """What pip says is wrong, in one line: of versions that it passed over only those that were asked for."""
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    pinned = {requirement.partition("==")[2] for requirement in requirements}
    for index, line in enumerate(lines):
        if found := re.fullmatch(r"(Ignored the following .*?: )(.*)", line):
            versions = found[2].split("; ")
            lines[index] = found[1] + "; ".join(one for one in versions if one.split()[0] in pinned)
    return "; ".join(lines) or "pip failed without a reason"


def python_of(peer: Peer, folder: Path, more: Sequence[str] = ()) -> str:
    """The interpreter of a peer's environment, which is made where it is missing.

    Args:
      peer: whose.
      folder: of all environments.
      more: interpreters beside this one and those on PATH.

    Raises:
      RefusedError: with pip's reason.
    """
    if not peer.environment:
        return sys.executable
    place = folder.resolve() / peer.environment
    python, done = place / "bin" / "python", place / "requirements.txt"
    wanted = "".join(f"{requirement}\n" for requirement in peer.requirements)
    if done.is_file() and done.read_text() == wanted:
        return str(python)
    print(f"making the environment of {peer.name}", flush=True)
    subprocess.run([interpreter(peer.python, more), "-m", "venv", "--clear", str(place)], check=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        shutil.rmtree(place)
        raise RefusedError(reason(result.stderr, peer.requirements))
    done.write_text(wanted)
    return str(python)
