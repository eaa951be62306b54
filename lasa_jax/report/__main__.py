"""The command line of reports.

python -m lasa_jax.report DIR              tables and figures of the runs below DIR, written to DIR/report
python -m lasa_jax.report compare DIR      the paper's numbers beside those of DIR
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lasa_jax import commandline
from lasa_jax.errors import InputError
from lasa_jax.inspection import rendering


def _say(text: str) -> None:
    """One line beside the report."""
    print(text, file=sys.stderr)


def _tables(given: argparse.Namespace) -> None:
    """Prints the tables of the runs below a directory, and writes tables and figures."""
    from lasa_jax.report import figures, output, tables

    path = rendering.folder(Path(given.directory), given.output)
    found = _groups(given)
    made = {group.folder: [*tables.tables(group), *filter(None, [tables.detection_table(group)])] for group in found}
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
    from lasa_jax.report import compare, output

    path = rendering.folder(Path(given.directory), given.output)
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
    """The groups of the selected runs; what was left out, and what tells groups apart, is a line each."""
    from lasa_jax.report import groups, results

    found = results.load(given.directory)
    for line in found.left_out:
        _say(line)
    made, difference = groups.split(results.select(found, given.where))
    if difference is not None:
        _say(difference)
    return made


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The command line, and the names of its commands; that of `tables` may be left out."""
    parser = commandline.Parser(
        prog="python -m lasa_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("tables", _tables), ("compare", _compare)):
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        command.add_argument("directory", metavar="DIR", help="of runs and sweeps, at any depth")
        command.add_argument("--output", metavar="DIR", help="where to write; DIR/report by default")
        command.add_argument(
            *("--where", "-w"),
            metavar="FIELD=VALUE",
            action="append",
            default=[],
            help="only such runs, as dataset=digits",
        )
        command.set_defaults(run=run)
    return parser, list(commands.choices)


def main(argv: Sequence[str]) -> int:
    """Runs a command; exit code 0, or 2 with one line on standard error for bad input."""
    parser, names = _parser()
    if not argv or argv[0] not in (*names, "-h", "--help"):
        argv = ["tables", *argv]
    try:
        given, rest = parser.parse_known_args(argv)
        if "directory" in given and not Path(given.directory).is_dir():
            others = ", ".join(name for name in names if name != "tables")
            raise InputError(f"{given.directory}: is not a directory, and no command: allowed are DIR, {others}")
        if rest:
            raise InputError(f"{rest[0]}: is not an option of {given.command}; see --help")
        given.run(given)
    except InputError as error:
        _say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _say("stopped")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
