"""The command line of reports.

python -m lasa_jax.report DIR                            tables and figures of the runs below DIR, written to DIR/report
python -m lasa_jax.report compare DIR                    the paper's numbers beside those of DIR
python -m lasa_jax.inspection filtering RUN                  who was filtered in which layer, over a run that recorded it
python -m lasa_jax.inspection round RUN 12 --variances       a round of a run, computed again and saved to round_12.npz
python -m lasa_jax.inspection robustness round_12.npz        the paper's bound on a saved round
python -m lasa_jax.inspection partition --config=configs/cifar10.py:alpha=0.1 --output=partition.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from lasa_jax import commandline, data
from lasa_jax.data import partition
from lasa_jax.errors import InputError
from lasa_jax.inspection import shares as picture

_OUTPUT = flags.DEFINE_string("output", "partition.png", "file of the picture")
_PIPED_WIDTH = 200  # characters, where there is no terminal to fit


def _say(text: str) -> None:
    """One line beside the report."""
    print(text, file=sys.stderr)


def _tables(given: argparse.Namespace) -> None:
    """Prints the tables of the runs below a directory, and writes tables and figures."""
    from lasa_jax.report import figures, output, tables

    path = output.folder(Path(given.directory), given.output)
    found = _groups(given)
    made = {group.folder: [*tables.tables(group), *filter(None, [tables.detection_table(group)])] for group in found}
    console = _console()
    for group in found:
        for table in made[group.folder]:
            console.print(tables.as_rich(table))
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
    from lasa_jax.report import compare, output, tables

    path = output.folder(Path(given.directory), given.output)
    found = _groups(given)
    console = _console()
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
        console.print(tables.as_rich(table))
        place = f"{group.folder}/" if group.folder else ""
        files[f"{place}compare.md"] = tables.as_markdown(table)
        files[f"{place}compare.csv"] = compared.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    if not files:
        raise InputError(f"{given.directory}: none of its runs is in the paper's tables")
    output.write(path, files, own=("compare.md", "compare.csv"))
    print(f"report: {path}: {', '.join(sorted(files))}")


def _robustness(given: argparse.Namespace) -> None:
    """Prints and writes the paper's bound and the error of LASA on a saved round against the sparsity level.

    With --rules prints the (f, kappa)-robustness coefficient of rules on it too.
    """
    from lasa_jax import aggregators
    from lasa_jax.inspection import filtering, robustness
    from lasa_jax.report import figures, output, tables

    saved = filtering.load_round(given.round)
    radii = {"magnitude_radius": given.magnitude_radius, "direction_radius": given.direction_radius}
    rules = {
        name: aggregators.create(name, **(radii if name == "lasa" else {}))
        for name in (() if given.rules is None else map(str.strip, given.rules.split(",")))
    }
    path = output.folder(Path(given.round).parent, given.output)
    frame = robustness.against_sparsity(
        saved,
        noise=given.noise,
        divergence=given.divergence,
        **radii,
    )
    made = [robustness.as_table(frame)]
    files: dict[str, str | bytes] = {}
    if rules:
        of_rules = robustness.coefficients(saved, rules)
        made.append(robustness.coefficients_table(of_rules))
        files["coefficients.csv"] = of_rules.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    for table in made:
        _console().print(tables.as_rich(table))
    drawn = robustness.draw_against_sparsity(frame, Path(given.round).name)
    files |= {f"robustness.{kind}": figures.as_bytes(drawn, kind) for kind in ("png", "svg")}
    files["robustness.csv"] = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    files["robustness.md"] = "\n".join(map(tables.as_markdown, made))
    files["robustness.tex"] = "\n".join(map(tables.as_latex, made))
    output.write(path, files, own=())
    print(f"report: {path}: {', '.join(sorted(files))}")


def _round(given: argparse.Namespace) -> None:
    """Computes a round of a run again, from its last checkpoint before, and saves what the server received."""
    from lasa_jax import config as configs
    from lasa_jax.data import cache
    from lasa_jax.inspection import filtering, replay, robustness
    from lasa_jax.workdir import Workdir

    cache.keep_compiled_programs()
    workdir = Workdir(given.directory, lock=False)
    stored = workdir.config()
    if stored is None:
        raise InputError(f"{given.directory}: has no config.json, allowed is the directory of a run")
    config = configs.from_json(stored)
    path = Path(f"round_{given.index}.npz" if given.output is None else given.output)
    filtering.check_file(path)
    before = replay.before_round(config, given.index, given.directory)
    _say(f"played from the {f'checkpoint of round {before.start}' if before.start else 'beginning'}")
    saved = filtering.Round(*replay.received(before))
    filtering.save_round(path, saved)
    if given.variances:
        found = robustness.round_variances(before, saved.malicious)
        filtering.save_round(path, saved._replace(noise=found.nu, divergence=found.zeta))
    _say(_compared(before, {line["round"]: line["update_norm"] for line in workdir.metrics()}.get(given.index)))
    print(f"round {given.index}: {int(saved.malicious.sum())} of {len(saved.malicious)} clients malicious: {path}")


def _compared(before: Any, recorded: float | None) -> str:
    """Whether a round came out as in its run, by the norm of its update."""
    from lasa_jax.inspection import replay

    norm = replay.update_norm(before)
    told = f"norm of the round's update {norm:.6g}"
    if recorded is None:
        return f"{told}; the run has not recorded its own, since the round was not evaluated"
    if abs(norm - recorded) <= 1e-3 * abs(recorded):
        return f"{told}, as in the run"
    return f"{told}, {recorded:.6g} in the run: with other versions, devices or rounding the two have parted"


def _filtering(given: argparse.Namespace) -> None:
    """Prints and draws who was filtered in which layer over a run with --config.record_filtering=true."""
    from lasa_jax.inspection import recorded
    from lasa_jax.report import figures, output, tables

    run = Path(given.directory)
    table = recorded.load(run)
    path = output.folder(run, given.output)
    shares = recorded.rates(table)
    _console().print(tables.as_rich(recorded.as_table(table)))
    drawn = {
        "filtering_rounds": recorded.draw_rounds(table, run.name),
        "filtering_clients": recorded.draw_clients(table, run.name),
    }
    files: dict[str, str | bytes] = {
        f"{name}.{kind}": figures.as_bytes(picture, kind) for name, picture in drawn.items() for kind in ("png", "svg")
    }
    for name, frame in (("filtering.csv", shares), ("filtering_clients.csv", recorded.by_client(table))):
        files[name] = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    output.write(path, files, own=())
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


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)


def _draw_partition() -> None:
    """Draws how a config divides its examples, and prints a few numbers."""
    config = commandline.resolved_config()
    dataset = data.load(config.dataset, data_dir=config.data_dir, source=config.source)
    shares = partition.divide(
        config.partition,
        dataset.train.labels,
        dataset.client_ids,
        num_clients=config.num_clients,
        seed=config.seed,
    )
    counts = picture.class_counts(dataset, shares)
    picture.draw(counts, shares, picture.title(dataset, config.partition), _OUTPUT.value)
    for name, value in picture.describe(counts, shares).items():
        print(f"{name}: {value}")
    print(f"picture: {_OUTPUT.value}")


def _partition(rest: Sequence[str]) -> None:
    if list(rest) != ["partition"]:
        raise InputError(f"python -m lasa_jax.report {' '.join(rest)}: allowed is partition")
    _draw_partition()


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
    command = commands.add_parser(
        "filtering", help=_filtering.__doc__, description=_filtering.__doc__, allow_abbrev=False
    )
    command.add_argument("directory", metavar="RUN", help="directory of one run")
    command.add_argument("--output", metavar="DIR", help="where to write; RUN/report by default")
    command.set_defaults(run=_filtering)
    command = commands.add_parser("round", help=_round.__doc__, description=_round.__doc__, allow_abbrev=False)
    command.add_argument("directory", metavar="RUN", help="directory of one run")
    command.add_argument("index", metavar="ROUND", type=int, help="counted from 1")
    command.add_argument("--output", metavar="FILE", help="where to write; round_ROUND.npz by default")
    command.add_argument(
        "--variances", action="store_true", help="measure nu and zeta too: epochs * clients² gradients of whole clients"
    )
    command.set_defaults(run=_round)
    command = commands.add_parser(
        "robustness", help=_robustness.__doc__, description=_robustness.__doc__, allow_abbrev=False
    )
    command.add_argument("round", metavar="ROUND.npz", help="from `round`, or filtering.save_round")
    command.add_argument("--noise", type=float, help="nu, the variance of stochastic gradients; the round's by default")
    command.add_argument("--divergence", type=float, help="zeta, that of gradients between clients; the round's too")
    command.add_argument(
        "--rules", metavar="NAME,NAME", help="whose (f, kappa)-robustness coefficients are printed too"
    )
    command.add_argument("--magnitude_radius", type=float, default=1.0)
    command.add_argument("--direction_radius", type=float, default=1.0)
    command.add_argument("--output", metavar="DIR", help="where to write; report/ beside the file by default")
    command.set_defaults(run=_robustness)
    commands.add_parser("partition", help=_draw_partition.__doc__, add_help=False)
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
    if sys.argv[1:2] == ["partition"]:  # settings of a config are flags of absl
        commandline.entry_point(_partition)
    else:
        sys.exit(main(sys.argv[1:]))
