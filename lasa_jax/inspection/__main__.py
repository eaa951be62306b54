"""What looks inside a run.

    lasa-jax inspect filtering RUN                who was filtered in which layer, over a run that recorded it
    lasa-jax inspect round RUN 12 --variances     a round of a run, computed again and saved to round_12.npz
    lasa-jax inspect robustness round_12.npz      the paper's bound on a saved round
    lasa-jax inspect theorem RUN                  Theorem 1 on a run, whose rounds are computed again
    lasa-jax inspect partition cifar10:alpha=0.1 --output=partition.png

Also `python -m lasa_jax.inspection`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lasa_jax import commandline
from lasa_jax.errors import InputError, count, nearest

if TYPE_CHECKING:  # imported where it is needed, so that --help does not wait for it
    from ml_collections import ConfigDict

    from lasa_jax.workdir import Workdir


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

    run = given.directory
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


def _config_of(workdir: "Workdir") -> "ConfigDict":
    """The config of a run; the files of a user's functions are told before they are imported."""
    from lasa_jax import config as configs
    from lasa_jax import methods

    stored = workdir.config()
    if stored is None:
        raise InputError(f"{workdir.path}: has no config.json, allowed is the directory of a run")
    methods.search_also(Path.cwd())
    config = configs.from_json(stored)
    commandline.tell_user_functions(configs.user_functions(config))
    return config


def _round(given: argparse.Namespace) -> None:
    """Computes a round of a run again, from its last checkpoint before, and saves what the server received."""
    from lasa_jax.data import cache
    from lasa_jax.inspection import replay, rounds, variances
    from lasa_jax.workdir import Workdir

    cache.keep_compiled_programs()
    workdir = Workdir(given.directory, lock=False)
    config = _config_of(workdir)
    path = Path(f"round_{given.index}.npz") if given.output is None else given.output
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
    from lasa_jax import methods
    from lasa_jax.inspection import bound, coefficient, rendering, rounds

    saved = rounds.load_round(given.round)
    radii = {"magnitude_radius": given.magnitude_radius, "direction_radius": given.direction_radius}
    methods.search_also(Path.cwd())
    names = [] if given.rules is None else [name.strip() for name in given.rules.split(",")]
    commandline.tell_user_functions(filter(methods.is_path, names))
    rules = {name: methods.create("aggregator", name, radii if name == "lasa" else {}) for name in names}
    path = rendering.folder(given.round.parent, given.output)
    frame = bound.against_sparsity(saved, noise=given.noise, divergence=given.divergence, **radii)
    made = [bound.as_table(frame)]
    files: dict[str, str | bytes] = {"robustness.csv": rendering.as_csv(frame)}
    if rules:
        of_rules = coefficient.of_rules(saved, rules)
        made.append(coefficient.as_table(of_rules))
        files["coefficients.csv"] = rendering.as_csv(of_rules)
    for table in made:
        rendering.show(table)
    files |= rendering.pictures("robustness", bound.draw_against_sparsity(frame, given.round.name))
    files["robustness.md"] = "\n".join(map(rendering.as_markdown, made))
    files["robustness.tex"] = "\n".join(map(rendering.as_latex, made))
    _write(path, files)


def _theorem(given: argparse.Namespace) -> None:
    """Prints and writes both sides of the paper's Theorem 1 for a run of LASA; its rounds are computed again."""
    from lasa_jax.data import cache
    from lasa_jax.inspection import rendering, theorem
    from lasa_jax.workdir import Workdir

    cache.keep_compiled_programs()
    config = _config_of(Workdir(given.directory, lock=False))
    path = rendering.folder(given.directory, given.output)
    table = theorem.as_table(theorem.of_run(config, every=given.every, log=_say), theorem.notes(config))
    rendering.show(table)
    _write(path, {"theorem.md": rendering.as_markdown(table), "theorem.tex": rendering.as_latex(table)})


def _partition(given: argparse.Namespace) -> None:
    """Draws how a config divides its examples, and prints a few numbers."""
    from lasa_jax import config as configs
    from lasa_jax import methods
    from lasa_jax.data import partition
    from lasa_jax.inspection import shares

    config = commandline.read_config(given.config, given.settings)
    commandline.tell_user_functions(configs.user_functions(config))
    dataset = methods.dataset(config.dataset, data_dir=config.data_dir, source=config.source)
    divided = partition.divide(
        config.partition,
        dataset.train.labels,
        dataset.client_ids,
        num_clients=config.num_clients,
        seed=config.seed,
    )
    counts = shares.class_counts(dataset, divided)
    shares.draw(counts, divided, shares.title(dataset, config.partition), given.output)
    for name, value in shares.describe(counts, divided).items():
        print(f"{name}: {value}")
    print(f"picture: {given.output}")


def _parsers() -> dict[str, commandline.Parser]:
    """The flags of each command."""
    parsers = {name: commandline.Parser(f"inspect {name}", run.__doc__) for name, run in _COMMANDS.items()}
    parser = parsers["filtering"]
    parser.add_path("directory", metavar="RUN", help="directory of one run")
    parser.add_path("--output", metavar="DIR", help="where to write; RUN/report by default")
    parser = parsers["round"]
    parser.add_path("directory", metavar="RUN", help="directory of one run")
    parser.add_argument("index", metavar="ROUND", type=int, help="counted from 1")
    parser.add_path("--output", metavar="FILE", help="where to write; round_ROUND.npz by default")
    parser.add_argument(
        "--variances", action="store_true", help="measure nu and zeta too: epochs * clients² gradients of whole clients"
    )
    parser = parsers["robustness"]
    parser.add_path("round", metavar="ROUND.npz", help="from `round`, or rounds.save_round")
    parser.add_argument("--noise", type=float, help="nu, the variance of stochastic gradients; the round's by default")
    parser.add_argument("--divergence", type=float, help="zeta, that of gradients between clients; the round's too")
    parser.add_argument(
        "--rules", metavar="NAMES", help="rules whose (f, kappa)-robustness is printed too, as lasa,median"
    )
    parser.add_argument("--magnitude_radius", metavar="LAMBDA", type=float, default=1.0, help="of LASA; 1 by default")
    parser.add_argument("--direction_radius", metavar="LAMBDA", type=float, default=1.0, help="of LASA; 1 by default")
    parser.add_path("--output", metavar="DIR", help="where to write; report/ beside the file by default")
    parser = parsers["theorem"]
    parser.add_path("directory", metavar="RUN", help="directory of one run")
    parser.add_argument(
        "--every",
        metavar="ROUNDS",
        type=count,
        default=10,
        help="between those in which mu, nu, zeta and kappa are measured",
    )
    parser.add_path("--output", metavar="DIR", help="where to write; RUN/report by default")
    parser = parsers["partition"]
    parser.add_config(
        "config, FILE.py or FILE.py:NAME=VALUE; --config.FIELD=VALUE changes a setting, as in `lasa-jax run`",
        example="configs/digits.py",
        takes_settings=True,
    )
    parser.add_path("--output", metavar="FILE", default="partition.png", help="the picture; partition.png by default")
    return parsers


_COMMANDS = {
    "filtering": _filtering,
    "round": _round,
    "robustness": _robustness,
    "theorem": _theorem,
    "partition": _partition,
}


def _run(argv: Sequence[str]) -> None:
    parsers, allowed = _parsers(), ", ".join(_COMMANDS)
    if not argv:
        raise InputError(f"lasa-jax inspect: a command is missing, allowed are {allowed}")
    name, *rest = argv
    if name in ("-h", "--help"):
        print(__doc__)
        for parser in parsers.values():
            print(parser.format_help())
        return
    if name not in parsers:
        raise InputError(f"lasa-jax inspect {name}: allowed are {allowed}{nearest(name, parsers)}")
    _COMMANDS[name](parsers[name].read(rest))


def main(argv: Sequence[str] | None = None) -> int:
    """The command `inspect`: exit code 0, or 2 with one line on standard error for bad input.

    Args:
      argv: the arguments; those of this process if None.
    """
    return commandline.exit_code(lambda: _run(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
