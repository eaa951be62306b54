"""Asks a card what it does: PART is golden, round, rules, convolution or precision.

    python -m benchmarks.card rules --out=rules.json             # goes on where it was cut off
    python -m benchmarks.card rules --out=rules.json --table     # what is there, as a Markdown table

golden compares every rule and attack with the recorded vectors of the official code, and runs the digits again and again;
round times whole rounds; rules times rules and attacks on 100 updates of 1.66 million entries; convolution times the forms
of `client.convolution`; precision times products, training and rules, beside their errors. One device is used, the first.

Programs are compiled in as many threads as there are cores before anything is timed. The file is written after every item.
Needs no network and no data but what is here: images and texts are made from a seed in the shapes of the real ones.
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from benchmarks.card import results, running, tables
from lasa_jax import commandline
from lasa_jax.errors import InputError, check_number, find_named

PARTS = ("golden", "round", "rules", "convolution", "precision")


def _parser() -> commandline.Parser:
    parser = commandline.Parser("", __doc__)
    parser.prog = "python -m benchmarks.card"
    parser.add_argument("part", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--small", action="store_true", help="at a size for trying it out, also without a card")
    parser.add_path("--out", metavar="FILE", help="where results are kept; card-PART.json if not given")
    parser.add_argument("--anew", action="store_true", help="measures all again, in place of what the file has")
    parser.add_argument("--only", metavar="WORD", default="", help="the items whose names have this word")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing more is begun (8)")
    parser.add_argument("--commit", metavar="TEXT", help="of a copy without git, for the file")
    parser.add_argument("--table", action="store_true", help="prints the file as a table, and measures nothing")
    return parser


def _run(argv: Sequence[str] | None) -> int:
    given = _parser().read(argv)
    find_named("PART", dict.fromkeys(PARTS, len), given.part)
    check_number("--minutes", given.minutes, above=0)
    path = Path(f"card-{given.part}.json") if given.out is None else given.out
    part = importlib.import_module(f"benchmarks.card.{given.part}")
    if given.table:
        return _print(part, results.Results.read(path))
    items = [item for item in part.items(given.small) if given.only in item.name]
    if not items:
        raise InputError(f"--only={given.only}: is in no name of the part {given.part!r}")
    head = results.header(given.part, small=given.small, commit=given.commit)
    kept = results.Results.begin(path, head, anew=given.anew)
    print(f"{head['machine']}; {len(items)} items; {path}", flush=True)
    failed, missed = running.run(items, kept, minutes=given.minutes, log=lambda text: print(text, flush=True))
    _print(part, kept)
    wrong = [f"{item.name}: {line}" for item in items for line in kept.items.get(item.name, {}).get("wrong", [])]
    print("\n".join(["", *wrong]), end="")
    if failed or missed:
        print(f"\n{failed} items failed and {missed} were not reached: the same command goes on with them")
    return 1 if failed or missed or wrong else 0


def _print(part: ModuleType, kept: results.Results) -> int:
    order = [item.name for item in part.items(kept.head["small"])]
    found = {name: kept.items[name] for name in order if name in kept.items}
    print("\n".join(["", tables.heading(kept.head), "", *part.table(found)]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code: 1 if an item failed, was not reached, or is not as recorded."""
    return commandline.exit_code(lambda: _run(argv), stopped="stopped; the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
