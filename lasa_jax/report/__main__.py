"""Tables and figures of run directories.

    lasa-jax report DIR              tables and figures of the runs below DIR, written to DIR/report
    lasa-jax report DIR --lost=0.2   a rule breaks where a fifth of its accuracy without attack is lost
    lasa-jax report compare DIR      the paper's numbers beside those of DIR

Also `python -m lasa_jax.report`. It reads directories only, and imports nobody's module.
"""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence

from lasa_jax import commandline
from lasa_jax.errors import InputError, user_path


def _say(text: str) -> None:
    """One line beside the report."""
    print(text, file=sys.stderr)


def _tables(given: argparse.Namespace) -> None:
    """Prints the tables of the runs below a directory, and writes tables and figures."""
    from lasa_jax.inspection import rendering
    from lasa_jax.report import figures, measures, output, tables

    path = rendering.folder(given.directory, given.output)
    found = [dataclasses.replace(group, lost=given.lost) for group in _groups(given)]
    made = {
        group.folder: [
            *tables.tables(group),
            *measures.tables(group),
            *filter(None, [tables.detection_table(group)]),
        ]
        for group in found
    }
    for group in found:
        for table in made[group.folder]:
            rendering.show(table)
        if idle := figures.left_out_of_detection(group):
            at = f"at {100 * group.ratio:g} % malicious"
            _say(f"not in detection.png, since no client has weight 0 in a layer {at}: {', '.join(idle)}")
    files, missing = output.make(found, made)
    for line in missing:
        _say(line)
    output.write(path, files)
    print(f"report: {path}: {', '.join(sorted(files))}")


def _compare(given: argparse.Namespace) -> None:
    """Prints and writes the paper's numbers beside those of the runs below a directory."""
    from lasa_jax.inspection import rendering
    from lasa_jax.report import compare, output

    path = rendering.folder(given.directory, given.output)
    found = _groups(given)
    files: dict[str, str | bytes] = {}
    for group in found:
        try:
            compared = compare.compare(group)
        except InputError as error:
            if len(found) == 1:
                raise
            _say(str(error))
            continue
        table = compare.as_table(group, compared)
        rendering.show(table)
        place = f"{group.folder}/" if group.folder else ""
        files[f"{place}compare.md"] = rendering.as_markdown(table)
        files[f"{place}compare.csv"] = rendering.as_csv(compared)
    if not files:
        raise InputError(f"{given.directory}: none of its runs is in the paper's tables")
    output.write(path, files, own=("compare.md", "compare.csv"))
    print(f"report: {path}: {', '.join(sorted(files))}")


def _groups(given: argparse.Namespace) -> list:
    """The groups of the selected runs; prints one line for each that was left out, and for what tells groups apart."""
    from lasa_jax.report import groups, results

    found = results.load(given.directory)
    for line in found.left_out:
        _say(line)
    made, difference = groups.split(results.select(found, given.where))
    if difference is not None:
        _say(difference)
    return made


def _share(text: str) -> float:
    """A number between 0 and 1, both excluded, as the type of a flag."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < 1:
            return number
    raise argparse.ArgumentTypeError(f"{text!r}: allowed is a number between 0 and 1")


def _parser() -> commandline.Parser:
    """The flags of a report."""
    parser = commandline.Parser("report", __doc__)
    parser.usage = "lasa-jax report [compare] DIR [--output DIR] [--where FIELD=VALUE] [--lost SHARE]"
    parser.add_argument("words", metavar="DIR", nargs="+", help="of runs and sweeps, at any depth")
    parser.add_path("--output", metavar="DIR", help="where to write; DIR/report by default")
    parser.add_argument(
        *("--where", "-w"),
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="only such runs, as dataset=digits; may be given again",
    )
    parser.add_argument(
        "--lost",
        metavar="SHARE",
        type=_share,
        default=0.1,
        help="of its accuracy without attack, that a rule has lost at its breaking point; 0.1 by default",
    )
    return parser


def _run(argv: Sequence[str] | None) -> None:
    given = _parser().read(argv)
    command = _COMMANDS.get(given.words[0]) if len(given.words) > 1 else None
    if command is None:
        command, (given.directory, *more) = _tables, given.words
    else:
        given.directory, *more = given.words[1:]
    given.directory = user_path(given.directory or "DIR", given.directory)
    if not given.directory.is_dir():
        raise InputError(f"{given.directory}: is not a directory, and no command: allowed are DIR, compare")
    if more:
        raise InputError(f"{more[0]}: a report is of one directory, allowed are DIR and compare DIR")
    command(given)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `report`: exit code 0, or 2 with one line on standard error for bad input.

    Args:
      argv: the arguments; those of this process if None.
    """
    return commandline.exit_code(lambda: _run(argv))


_COMMANDS = {"tables": _tables, "compare": _compare}

if __name__ == "__main__":
    sys.exit(main())
