"""The command line of inspection.

python -m lasa_jax.inspection filtering RUN                who was filtered in which layer, over a run that recorded it
python -m lasa_jax.inspection round RUN 12 --variances     a round of a run, computed again and saved to round_12.npz
python -m lasa_jax.inspection robustness round_12.npz      the paper's bound on a saved round
python -m lasa_jax.inspection partition --config=configs/cifar10.py:alpha=0.1 --output=partition.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from lasa_jax import commandline
from lasa_jax.errors import InputError

_OUTPUT = flags.DEFINE_string("output", "partition.png", "file of the picture")


def _say(text: str) -> None:
    """One line beside the result."""
    print(text, file=sys.stderr)


def _write(path: Path, files: dict[str, str | bytes]) -> None:
    from lasa_jax.inspection import rendering

    rendering.write(path, files)
    print(f"inspection: {path}: {', '.join(sorted(files))}")


def _filtering(given: argparse.Namespace) -> None:
    """Prints and draws who was filtered in which layer over a run with --config.record_filtering=true."""
    from lasa_jax.inspection import recorded, rendering

    run = Path(given.directory)
    table = recorded.load(run)
    path = rendering.folder(run, given.output)
    rendering.show(recorded.as_table(table))
    files: dict[str, str | bytes] = {
        "filtering.csv": rendering.as_csv(recorded.by_round(table)),
        "filtering_clients.csv": rendering.as_csv(recorded.by_client(table)),
    }
    files |= rendering.pictures("filtering_rounds", recorded.draw_rounds(table, run.name))
    files |= rendering.pictures("filtering_clients", recorded.draw_clients(table, run.name))
    _write(path, files)


def _round(given: argparse.Namespace) -> None:
    """Computes a round of a run again, from its last checkpoint before, and saves what the server received."""
    from lasa_jax import config as configs
    from lasa_jax.data import cache
    from lasa_jax.inspection import replay, rounds, variances
    from lasa_jax.workdir import Workdir

    cache.keep_compiled_programs()
    workdir = Workdir(given.directory, lock=False)
    stored = workdir.config()
    if stored is None:
        raise InputError(f"{given.directory}: has no config.json, allowed is the directory of a run")
    config = configs.from_json(stored)
    path = Path(f"round_{given.index}.npz" if given.output is None else given.output)
    rounds.check_file(path)
    before = replay.before_round(config, given.index, given.directory)
    _say(f"played from the {f'checkpoint of round {before.start}' if before.start else 'beginning'}")
    played = replay.play(before)
    saved = rounds.Round(played.updates, played.malicious, played.clients)
    rounds.save_round(path, saved)
    if given.variances:
        found = variances.round_variances(before, saved.malicious)
        rounds.save_round(path, saved._replace(noise=found.nu, divergence=found.zeta))
    recorded = {line["round"]: line["update_norm"] for line in workdir.metrics()}.get(given.index)
    _say(_compared(played.update_norm, recorded))
    print(f"round {given.index}: {int(saved.malicious.sum())} of {len(saved.malicious)} clients malicious: {path}")


def _compared(norm: float, recorded: float | None) -> str:
    """Whether a round came out as in its run, by the norm of its update."""
    told = f"norm of the round's update {norm:.6g}"
    if recorded is None:
        return f"{told}; the run has not recorded its own, since the round was not evaluated"
    if abs(norm - recorded) <= 1e-3 * abs(recorded):
        return f"{told}, as in the run"
    return f"{told}, {recorded:.6g} in the run: with other versions, devices or rounding the two have parted"


def _robustness(given: argparse.Namespace) -> None:
    """Prints and writes the paper's bound and the error of LASA on a saved round against the sparsity level.

    With --rules prints the (f, kappa)-robustness coefficient of rules on it too.
    """
    from lasa_jax import aggregators
    from lasa_jax.inspection import bound, coefficient, rendering, rounds

    saved = rounds.load_round(given.round)
    radii = {"magnitude_radius": given.magnitude_radius, "direction_radius": given.direction_radius}
    rules = {
        name: aggregators.create(name, **(radii if name == "lasa" else {}))
        for name in (() if given.rules is None else map(str.strip, given.rules.split(",")))
    }
    path = rendering.folder(Path(given.round).parent, given.output)
    frame = bound.against_sparsity(saved, noise=given.noise, divergence=given.divergence, **radii)
    made = [bound.as_table(frame)]
    files: dict[str, str | bytes] = {"robustness.csv": rendering.as_csv(frame)}
    if rules:
        of_rules = coefficient.of_rules(saved, rules)
        made.append(coefficient.as_table(of_rules))
        files["coefficients.csv"] = rendering.as_csv(of_rules)
    for table in made:
        rendering.show(table)
    files |= rendering.pictures("robustness", bound.draw_against_sparsity(frame, Path(given.round).name))
    files["robustness.md"] = "\n".join(map(rendering.as_markdown, made))
    files["robustness.tex"] = "\n".join(map(rendering.as_latex, made))
    _write(path, files)


def _partition(rest: Sequence[str]) -> None:
    """Draws how a config divides its examples, and prints a few numbers."""
    from lasa_jax import methods
    from lasa_jax.data import partition
    from lasa_jax.inspection import shares

    if list(rest) != ["partition"]:
        raise InputError(f"python -m lasa_jax.inspection {' '.join(rest)}: allowed is partition")
    config = commandline.resolved_config()
    dataset = methods.dataset(config.dataset, data_dir=config.data_dir, source=config.source)
    divided = partition.divide(
        config.partition,
        dataset.train.labels,
        dataset.client_ids,
        num_clients=config.num_clients,
        seed=config.seed,
    )
    counts = shares.class_counts(dataset, divided)
    shares.draw(counts, divided, shares.title(dataset, config.partition), _OUTPUT.value)
    for name, value in shares.describe(counts, divided).items():
        print(f"{name}: {value}")
    print(f"picture: {_OUTPUT.value}")


def _parser() -> argparse.ArgumentParser:
    parser = commandline.Parser(
        prog="python -m lasa_jax.inspection",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    command = add("filtering", _filtering)
    command.add_argument("directory", metavar="RUN", help="directory of one run")
    command.add_argument("--output", metavar="DIR", help="where to write; RUN/report by default")
    command = add("round", _round)
    command.add_argument("directory", metavar="RUN", help="directory of one run")
    command.add_argument("index", metavar="ROUND", type=int, help="counted from 1")
    command.add_argument("--output", metavar="FILE", help="where to write; round_ROUND.npz by default")
    command.add_argument(
        "--variances", action="store_true", help="measure nu and zeta too: epochs * clients² gradients of whole clients"
    )
    command = add("robustness", _robustness)
    command.add_argument("round", metavar="ROUND.npz", help="from `round`, or rounds.save_round")
    command.add_argument("--noise", type=float, help="nu, the variance of stochastic gradients; the round's by default")
    command.add_argument("--divergence", type=float, help="zeta, that of gradients between clients; the round's too")
    command.add_argument(
        "--rules", metavar="NAME,NAME", help="whose (f, kappa)-robustness coefficients are printed too"
    )
    command.add_argument("--magnitude_radius", type=float, default=1.0)
    command.add_argument("--direction_radius", type=float, default=1.0)
    command.add_argument("--output", metavar="DIR", help="where to write; report/ beside the file by default")
    commands.add_parser("partition", help=_partition.__doc__, add_help=False)  # listed here, read by `run`
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs a command other than `partition`; exit code 0, or 2 with one line on standard error for bad input."""
    try:
        given = _parser().parse_args(argv)
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
