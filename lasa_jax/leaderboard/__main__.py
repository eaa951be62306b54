"""Runs a benchmark of rules, writes one CSV for each rule, and makes the page of the CSVs.

    lasa-jax benchmark digits --quick --workdir=DIR          six rules, four attacks, one seed: minutes
    lasa-jax benchmark digits --workdir=DIR --output=OUT     all rules, eight attacks, three seeds, IID and not: hours
    lasa-jax benchmark digits --workdir=DIR --rule=my_rules:norm_gate --beside=OUT
    lasa-jax benchmark digits --output=OUT --page            the page again, from its CSVs alone

Editions follow the name after a colon: digits:all, digits:quick, digits:adaptive (attacks that search against the rule
itself), digits:tuned (parameters chosen on held-out training examples against the worst attack); and the same of mnist.

Also `python -m lasa_jax.leaderboard`. Prints the plan first: points, programs, time; `--dry_run` stops there. Started again,
it runs what is missing, days later too. Exit code 0 if every run has a result, 1 if one failed, 2 for bad input, 130 after
Ctrl-C.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lasa_jax import commandline
from lasa_jax.errors import InputError, count

if TYPE_CHECKING:  # they take seconds to import, which --help should not wait for
    from lasa_jax import grid
    from lasa_jax.leaderboard.declare import Benchmark, Chosen


def _parser() -> commandline.Parser:
    """The flags of a benchmark."""
    parser = commandline.Parser("benchmark", __doc__)
    parser.add_config(
        "benchmark, FILE.py or FILE.py:EDITION, or a name of the package's configs/benchmarks/", example="digits"
    )
    parser.add_path("--workdir", metavar="DIR", help="directory of the runs")
    parser.add_argument("--quick", action="store_true", help="the edition `quick`")
    parser.add_argument(
        "--rule",
        metavar="NAME",
        action="append",
        default=[],
        help="only this rule, a name or package.module:function; may be given again",
    )
    parser.add_path("--beside", metavar="DIR", help="where CSVs of other rules lie, as an earlier --output")
    parser.add_path("--output", metavar="DIR", help="where CSVs and page go; DIR/benchmark of the runs by default")
    parser.add_argument("--dry_run", "--plan", action="store_true", help="only print the plan")
    parser.add_argument("--page", action="store_true", help="only make the page of the CSVs that are there")
    parser.add_argument("--threads", metavar="N", type=count, help="runs side by side; on a CPU the cores, else 1")
    return parser


def _run(argv: Sequence[str] | None) -> int:
    given = _parser().read(argv)
    if given.workdir is None and not given.page:
        raise InputError("--workdir: is missing; allowed is a directory for the runs")
    idle = {"--rule": given.rule, "--threads": given.threads, "--dry_run": given.dry_run} if given.page else {}
    if said := [flag for flag, value in idle.items() if value]:
        raise InputError(
            f"{said[0]}: has no effect with --page, which runs nothing; allowed are --quick, --workdir, --beside, --output"
        )
    if given.output is None:
        if given.workdir is None:
            raise InputError("--output: is missing; --page makes the page of the CSVs that are there")
        given.output = given.workdir / "benchmark"
    return _benchmark(given)


def _benchmark(given: argparse.Namespace) -> int:
    """Plans and runs a benchmark; returns the exit code."""
    from lasa_jax import config as configs
    from lasa_jax import grid
    from lasa_jax.data import cache
    from lasa_jax.leaderboard import declare, rows

    name, colon, edition = given.config.partition(":")
    if given.quick and colon and edition != "quick":
        raise InputError(f"--quick: is an edition, and --config={given.config} names another")
    config = f"{name}:quick" if given.quick else given.config
    declared = declare.load(config)
    settings = declare.settings_id(declared)
    folders = [path / declared.name for path in (given.beside, given.output) if path is not None]
    if given.beside is not None and not folders[0].is_dir():
        raise InputError(f"--beside={given.beside}: has no folder {declared.name}, which CSVs of this benchmark lie in")
    known = rows.read(*folders, settings=settings)
    if given.page:
        return _write(given.output, declared, config, known)
    if given.rule:
        declared = declare.of_rules(declared, given.rule)
    commandline.tell_of_idle_gpu()
    cache.keep_compiled_programs()  # before anything is compiled
    chosen, failed = _chosen(declared, given)
    found = declare.entries(declared, chosen, baseline=not _has_baseline(declared, known))
    points = [entry.point for entry in found]
    commandline.tell_user_functions(path for one in points for path in configs.user_functions(one.config))
    print("\n".join(grid.plan(points, given.workdir, threads=given.threads).lines()), flush=True)
    if given.dry_run:
        return 0
    made = _Rows(declared, found, known, given.output, settings)
    failed |= _points(points, given.workdir, given.threads, made.add)
    ended = made.all()
    if failed and ended.empty:  # each has said why
        print("no run has a result, so that there is no page", file=sys.stderr)
        return 1
    return max(_write(given.output, declared, config, ended), int(failed))


def _has_baseline(declared: "Benchmark", known: Any) -> bool:
    """Whether FedAvg without attack is there with as many clients as each rule has, and every seed and partition."""
    from lasa_jax.leaderboard import declare

    clean = known[(known["rule"] == declare.BASELINE) & (known["attack"] == declare.NO_ATTACK)]
    there = set(zip(clean["clients_per_round"], clean["partition"], clean["seed"], strict=True))
    clients = {declared.clients.get(rule, declared.base.clients_per_round) for rule in declared.rules}
    return there >= {(n, p, seed) for n in clients for p in declared.partitions for seed in declared.seeds}


def _chosen(declared: "Benchmark", given: argparse.Namespace) -> "tuple[Chosen, bool]":
    """Parameters of the rules, where they are chosen first, and whether a run failed; prints those that are no defaults."""
    from lasa_jax import grid
    from lasa_jax.leaderboard import declare, tuning

    if declared.validation is None:
        return {}, False
    trials = declare.on_validation(declared)
    points = list({entry.point.name: entry.point for entry in trials}.values())
    if not points:
        return {}, False
    place = given.workdir / "validation"
    print(
        "\n".join(["on held-out training examples:", *grid.plan(points, place, threads=given.threads).lines(), "then:"])
    )
    if given.dry_run:
        return {}, False
    accuracies: dict[str, float] = {}

    def add(outcome: "grid.Outcome") -> None:
        if outcome.summary is not None:
            diverged = outcome.summary["status"] == "diverged"
            accuracies[outcome.point.name] = 0.0 if diverged else outcome.summary["final_test_accuracy"]

    failed = _points(points, place, given.threads, add)
    chosen = tuning.choose(trials, accuracies)
    for (rule, partition), parameters in chosen.items():
        print(f"chosen: {rule}, {partition}: {declare.shown(parameters)}")
    return chosen, failed


def _points(
    points: Sequence["grid.Point"], workdir: Path, threads: int | None, add: Callable[["grid.Outcome"], None]
) -> bool:
    """Runs what is missing, says how far it is, hands on every outcome; returns whether a run failed."""
    from lasa_jax import grid

    failed, done, new, began = False, 0, 0, time.monotonic()
    finished = {outcome.point.name for outcome in grid.finished(points, workdir, log=lambda text: None)}

    def show(outcome: "grid.Outcome") -> None:
        nonlocal failed, done, new
        done += 1
        add(outcome)
        if outcome.summary is None:
            failed = True
            print(f"{outcome.path}: failed: {outcome.error}", file=sys.stderr, flush=True)
        elif outcome.point.name not in finished:
            new += 1
            config, accuracy = outcome.point.config, outcome.summary["final_test_accuracy"]
            said = outcome.summary["status"] if accuracy is None else f"{100 * accuracy:.1f} %"
            left = commandline.duration((time.monotonic() - began) / new * (len(points) - done))
            line = f"{done}/{len(points)} {config.aggregator.name} {config.attack.name} {said}, {left} left"
            print(line, file=sys.stderr, flush=True)

    grid.run(points, workdir, threads=threads, on_outcome=show, log=lambda text: None)
    return failed


class _Rows:
    """The rows of the runs that ended. The CSV of a rule is written when its last run ends."""

    def __init__(self, declared: "Benchmark", found: Sequence[Any], known: Any, output: Path, settings: str) -> None:
        self._entries = {entry.point.name: entry for entry in found}
        self._left = {
            rule: {one.point.name for one in found if one.rule == rule} for rule in {one.rule for one in found}
        }
        self._own, self._folder, self._settings = set(declared.rules), output / declared.name, settings
        self._known = known
        self._ended: dict[str, dict[str, Any]] = {}

    def add(self, outcome: "grid.Outcome") -> None:
        """Takes the outcome of a run."""
        from lasa_jax.inspection import rendering
        from lasa_jax.leaderboard import rows

        entry = self._entries[outcome.point.name]
        if outcome.summary is not None:
            self._ended[outcome.point.name] = rows.of(entry, outcome.summary, self._settings)
        self._left[entry.rule].discard(outcome.point.name)
        if not self._left[entry.rule]:
            ended = self.all()
            rendering.write(self._folder, rows.files(ended[ended["rule"] == entry.rule].to_dict("records")))

    def all(self) -> Any:
        """Those that were known, without those of rules that were run now, and those that ended, as they were declared."""
        import pandas as pd

        from lasa_jax.leaderboard import rows

        ended = [self._ended[name] for name in self._entries if name in self._ended]
        names, now = {row["run"] for row in ended}, {row["rule"] for row in ended} & self._own
        situations = {tuple(row[name] for name in rows.SITUATION) for row in ended}
        there = zip(*(self._known[name] for name in rows.SITUATION), strict=True)
        again = pd.Series([one in situations for one in there], self._known.index, bool)
        kept = self._known[~self._known["rule"].isin(now) & ~self._known["run"].isin(names) & ~again]
        return pd.DataFrame([*kept.to_dict("records"), *ended], columns=list(self._known.columns))


def _write(output: Path, declared: "Benchmark", config: str, found: Any) -> int:
    """Writes CSVs and page, which has the command with `config`; returns the exit code."""
    from lasa_jax.inspection import rendering
    from lasa_jax.leaderboard import page, rows

    if found.empty:
        raise InputError(f"{output / declared.name}: has no row of a run yet")
    csvs = rows.files(found.to_dict("records"))
    rendering.write(output / declared.name, csvs)
    # Read again: the page is made of what the CSVs say, whoever makes it.
    made, missing = page.files(rows.read(output / declared.name), declared.name, config)
    rendering.write(output, made)
    for line in missing:
        print(line, file=sys.stderr)
    print(f"benchmark: {output}: {', '.join(sorted(made))}, {len(csvs)} CSVs in {declared.name}/")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command `benchmark`; returns the exit code.

    Args:
      argv: the arguments; those of this process if None.
    """
    return commandline.exit_code(lambda: _run(argv), stopped="stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
