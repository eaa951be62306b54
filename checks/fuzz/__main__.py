"""Hostile input of every kind: `python -m checks.fuzz [--seed=0] [--stacks=10000] [--mutations=1000] [--kinds NAME ...]`.

    updates       stacks of client updates through every rule of `aggregators.names()`: is the result finite, and does it
                  stay as near to the benign clients as the rule's docstring says?
    attacks       updates and masks through every attack: what it sends by its definition, and nobody else touched
    wrong inputs  masks and updates that are none, through every attack and rule
    settings      the values of every setting of the table in many spellings
    axes          axes of a grid of every type
    configs       command lines and Python values
    data files    LEAF's JSON, plays, prepared sets, the cache of decoded arrays
    strays        folders and texts with what editors and operating systems leave in them
    checkpoints   files of a checkpoint: nothing damaged may be restored
    directories   run directories as somebody else may have left them
    environments  homes, languages, terminals, closed output, closed and read-only folders: each of a list once

Anything but a right result or one line of `InputError` is a failure, as is a file that is left half-written, and a call
that takes a minute. Prints the commit, the day, and for each kind inputs tried and failures; exit code 1 if there are any.
"""

import argparse
import contextlib
import datetime
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax

from checks.fuzz import (
    attacks,
    axes,
    checkpoints,
    configs,
    data_files,
    directories,
    environments,
    settings,
    strays,
    updates,
)
from checks.fuzz.failures import Failures

Fuzz = Callable[..., tuple[int, Failures]]
# By kind, whether its inputs are stacks, and what tries so many of them.
KINDS: dict[str, tuple[bool, Fuzz]] = {
    "updates": (True, updates.fuzz),
    "attacks": (True, attacks.fuzz),
    "wrong inputs": (True, attacks.fuzz_wrong_inputs),
    "settings": (False, settings.fuzz),
    "axes": (False, axes.fuzz),
    "configs": (False, configs.fuzz),
    "data files": (False, data_files.fuzz),
    "strays": (False, strays.fuzz),
    "checkpoints": (False, checkpoints.fuzz),
    "directories": (False, directories.fuzz),
    "environments": (False, environments.fuzz),
}


def commit() -> str:
    """The commit of this tree, with a mark if something is changed; "unknown" outside of a checkout."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, check=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> int:
    """Prints inputs tried and failures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=10_000, help="inputs of updates, attacks and wrong inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--mutations", type=int, default=1000, help="inputs of each other kind; environments has a list of its own"
    )
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    given = parser.parse_args()
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"commit {commit()}, {today}, seed {given.seed}, JAX {jax.__version__}", flush=True)
    failed = 0
    for name in given.kinds:
        of_stacks, fuzz = KINDS[name]
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS tells what it prepares
            tried, failures = fuzz(given.stacks if of_stacks else given.mutations, seed=given.seed)
        failures.report(name, tried)
        failed += len(failures)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
