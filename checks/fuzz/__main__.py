"""Hostile input of every kind: `python -m checks.fuzz [--stacks=10000] [--mutations=1000]`.

    updates       stacks of client updates through every rule of `aggregators.names()`: is the result finite, and does it
                  stay as near to the benign clients as the rule's docstring says?
    configs       command lines and Python values
    data files    LEAF's JSON, plays, prepared sets, the cache of decoded arrays
    checkpoints   files of a checkpoint: nothing damaged may be restored
    directories   run directories as somebody else may have left them

Anything but a result or one line of `InputError` is a failure, as is a file that is left half-written, and a call that
takes a minute. Prints inputs tried and failures; exit code 1 if there are any.
"""

import argparse
import functools
import sys
from collections.abc import Callable

from checks.fuzz import checkpoints, configs, data_files, directories, updates
from checks.fuzz.failures import Failures

KINDS: dict[str, Callable[[int], tuple[int, Failures]]] = {
    "configs": configs.fuzz,
    "data files": data_files.fuzz,
    "checkpoints": checkpoints.fuzz,
    "directories": directories.fuzz,
}


def main() -> int:
    """Prints inputs tried and failures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=10_000, help="stacks of updates, through every rule")
    parser.add_argument("--seed", type=int, default=0, help="of the stacks")
    parser.add_argument("--mutations", type=int, default=1000, help="of each other kind")
    parser.add_argument("--kinds", nargs="*", default=["updates", *KINDS], choices=["updates", *KINDS])
    given = parser.parse_args()
    kinds: dict[str, Callable[[], tuple[int, Failures]]] = {
        "updates": functools.partial(updates.fuzz, given.stacks, seed=given.seed),
        **{name: functools.partial(fuzz, given.mutations) for name, fuzz in KINDS.items()},
    }
    failed = 0
    for name in given.kinds:
        tried, failures = kinds[name]()
        failures.report(name, tried)
        failed += len(failures)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
