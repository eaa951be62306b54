"""Trains every pair of an attack and a rule: `python -m benchmarks.pairs [--config=configs/digits.py] [--output=FILE]`.

All pairs are one compiled program: which attack and which rule is a number, and `lax.switch` picks their code. Each cell
is the run that `python -m lasa_jax.main --config=FILE --config.attack.name=A --config.aggregator.name=R` makes. Prints
Markdown tables of final test accuracies in percent, in whose means divergence counts 0; `diverged` where the update of a
round was not finite, and exit code 1 if a rule diverged whose docstring does not say that it may. Rules with too many
subsets are refused in a line and have a dash. With backdoors among the attacks another table says how often their
triggers work in the end: `--attacks=badnets,dba,neurotoxin,pgd --participation=fixed`. With `--cells=FILE` nothing that has
ended is lost; two processes of one device each, one for each half of the rules, share it.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lasa_jax import aggregators, attacks, build
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator, Context, Diagnostics
from lasa_jax.attacks import Attack
from lasa_jax.commandline import call
from lasa_jax.data import FederatedDataset
from lasa_jax.errors import InputError, check_choice
from lasa_jax.federated import Simulation, make_mesh

MAY_DIVERGE = (
    "fedavg",
    "meamed",
    "median",
    "robust_learning_rate",
    "sparsefed",
    "trimmed_mean",
)  # under NaN, see their docstrings


def one_rule(rules: list[Aggregator], index: jax.Array) -> Aggregator:
    """The rule of that index; its state is the tuple of the states of all."""

    def aggregate(
        updates: Any, states: tuple, context: Context | None = None, **settings: Any
    ) -> tuple[Any, tuple, Diagnostics]:
        def branch(i: int) -> Any:
            def run(updates: Any, states: tuple) -> tuple[Any, tuple, Diagnostics]:
                update, state, info = rules[i].aggregate(updates, states[i], **settings, **rules[i].knowing(context))
                return update, (*states[:i], state, *states[i + 1 :]), Diagnostics(info.weight)

            return run

        return jax.lax.switch(index, [branch(i) for i in range(len(rules))], updates, states)

    needs = frozenset().union(*(rule.needs for rule in rules))
    return Aggregator(lambda params: tuple(rule.init(params) for rule in rules), aggregate, needs)


def one_attack(those: list[Attack], index: jax.Array) -> Attack:
    """The attack of that index; its state is the tuple of the states of all."""

    def craft(
        updates: Any,
        begun: tuple[tuple, tuple],
        malicious: jax.Array,
        context: Context | None = None,
        **settings: Any,
    ) -> tuple[Any, tuple]:
        states, now = begun  # as the round found them, which is how it must leave them; as it began with them

        def branch(i: int) -> Any:
            def run(updates: Any, states: tuple) -> tuple[Any, tuple]:
                updates, state = those[i].craft(updates, now[i], malicious, **settings, **those[i].knowing(context))
                return updates, (*states[:i], state, *states[i + 1 :])

            return run

        return jax.lax.switch(index, [branch(i) for i in range(len(those))], updates, states)

    def poison(inputs: jax.Array, labels: jax.Array, **known: Any) -> tuple[jax.Array, jax.Array]:
        return jax.lax.switch(index, [lambda x, y, a=a: a.poison(x, y, **known) for a in those], inputs, labels)

    def constrain(params: Any, start: Any, begun: tuple[tuple, tuple]) -> Any:
        held = [lambda p, i=i: those[i].constrain(p, start, begun[1][i]) for i in range(len(those))]
        return jax.lax.switch(index, held, params)

    def shown(inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def nothing(inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            return inputs, labels, jnp.zeros(labels.shape, bool)

        return jax.lax.switch(index, [attack.trigger or nothing for attack in those], inputs, labels)

    def begin(states: tuple, context: Context) -> tuple[tuple, tuple]:
        return states, tuple(attack.begin(state, context) for attack, state in zip(those, states, strict=True))

    return Attack(
        lambda params: tuple(attack.init(params) for attack in those),
        poison,
        craft,
        constrain=constrain
        if any(attack.constrain is not attacks.unconstrained for attack in those)
        else attacks.unconstrained,
        begin=begin,
        trigger=shown if any(attack.trigger for attack in those) else None,
        needs=frozenset().union(*(attack.needs for attack in those)),
    )


def load(path: str, attack: str, rule: str, settings: Mapping[str, Any]) -> ConfigDict:
    """The resolved config of one pair."""
    config = call(path, "get_config")
    config.update_from_flattened_dict({**settings, "attack.name": attack, "aggregator.name": rule})
    return configs.resolve(config)


class Cell(NamedTuple):
    """One pair after the last round, in percent; NaN where it diverged, and where the attack has no trigger."""

    accuracy: float
    success: float


Cells = Mapping[tuple[str, str], Cell]  # by rule and attack


class Record:
    """The cells on disk, a CSV: what is in it is not run again, and several processes may add to it.

    path: the file, or None to keep nothing.
    settings: what all its runs share. A file of other settings is refused.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]):
        self.path, self.head = path, f"# {json.dumps(settings, sort_keys=True)}\nrule,attack,accuracy,success\n"
        if path is not None and not path.exists():
            path.write_text(self.head)
        if path is not None and not path.read_text().startswith(self.head):
            raise InputError(
                f"--cells={path}: made with other settings; it must begin with {self.head.splitlines()[0]}"
            )

    def read(self) -> dict[tuple[str, str], Cell]:
        if self.path is None:
            return {}
        rows = [line.split(",") for line in self.path.read_text()[len(self.head) :].splitlines()]
        return {(rule, attack): Cell(float(accuracy), float(success)) for rule, attack, accuracy, success in rows}

    def add(self, rule: str, attack: str, cell: Cell) -> None:
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(f"{rule},{attack},{cell.accuracy:.4f},{cell.success:.4f}\n")


def simulate(
    path: str, those: Sequence[str], against: Sequence[str], settings: Mapping[str, Any], kept: Record
) -> Cells:
    """Every pair of one of those attacks and a rule, none of a rule that is refused. Prints each as it comes."""
    for rule in against:
        check_choice("--rules", rule, aggregators.names())
    for attack in those:
        check_choice("--attacks", attack, attacks.names())
    base, dataset, shares, plain, _ = build.prepare(load(path, "none", "fedavg", settings))
    runs = {attack: build.prepare(load(path, attack, "fedavg", settings), dataset=dataset) for attack in those}
    for rule in against:
        try:
            runs[rule] = build.prepare(load(path, "none", rule, settings), dataset=dataset)
        except InputError as error:
            print(error, flush=True)
    names = [rule for rule in against if rule in runs]
    points = {name: run.point for name, run in runs.items()}
    made = [runs[name].program.make_attack(points[name].attack) for name in those]
    rules = [runs[name].program.make_aggregator(points[name].aggregator) for name in names]
    program = dataclasses.replace(
        plain,
        make_attack=lambda numbers: one_attack(made, numbers["index"]),
        make_aggregator=lambda numbers: one_rule(rules, numbers["index"]),
    )
    simulation = Simulation(program, base.rounds, base.rounds, base.rounds, base.eval_batch_size, make_mesh())
    fed = FederatedDataset(dataset.train, dataset.test, jax.tree.map(lambda x: x[None], shares))
    root = next((run.point.root for run in runs.values() if len(run.point.root)), ())
    executable, found = None, kept.read()
    for rule in names:
        for attack in those:
            if (rule, attack) in found:
                continue
            sgd = points[rule].sgd
            point = points[attack]._replace(
                sgd=sgd._replace(clip_norm=jnp.float32(jnp.inf) if sgd.clip_norm is None else sgd.clip_norm),
                attack={"index": jnp.int32(those.index(attack))},
                aggregator={"index": jnp.int32(names.index(rule))},
                root=root,
            )
            point = jax.tree.map(lambda x: x[None], point)
            states, point, placed = simulation.place(simulation.init(point), point, fed)
            if executable is None:
                executable, seconds = simulation.compile(states, point, placed)
                print(f"compiled in {seconds:.0f} s", flush=True)
            began = time.perf_counter()
            _, metrics = executable(states, point, placed, jnp.int32(0))
            finite = bool(np.isfinite(metrics.rounds.update_norm).all())
            test = metrics.test
            success = np.nan if made[those.index(attack)].trigger is None else float(test.success[0, -1])
            cell = Cell(100 * float(test.reported.accuracy[0, -1]), 100 * success) if finite else Cell(np.nan, np.nan)
            found[rule, attack] = cell
            kept.add(rule, attack, cell)
            print(f"{rule}, {attack}: {shown(cell)}, {time.perf_counter() - began:.1f} s", flush=True)
    return found


def shown(cell: Cell) -> str:
    """One pair in words; the success only of an attack with a trigger."""
    if np.isnan(cell.accuracy):
        return "diverged"
    return f"{cell.accuracy:.1f} %" + ("" if np.isnan(cell.success) else f", success {cell.success:.1f} %")


def table(found: Cells, those: Sequence[str], rules: Sequence[str], measure: str, width: int = 8) -> str:
    """Rules down, attacks across, so many to a table. Args: measure: a field of `Cell`."""
    parts = []
    for start in range(0, len(those), width):
        some = those[start : start + width]
        lines = ["| rule | " + " | ".join(some) + " |", "| --- |" + " ---: |" * len(some)]
        for rule in rules:
            lines.append(
                f"| {rule} | " + " | ".join(_cell(found.get((rule, attack)), measure) for attack in some) + " |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def worst(found: Cells, those: Sequence[str], rules: Sequence[str]) -> str:
    """For each rule its accuracy without attack, its mean over the attacks, and the three that leave it least."""
    lines = [
        "| rule | no attack | mean | lowest | second | third |",
        "| --- | ---: | ---: | --- | --- | --- |",
    ]
    against = [name for name in those if name != "none"]
    for rule in rules:
        had = {name: np.nan_to_num(found[rule, name].accuracy) for name in against if (rule, name) in found}
        if had:
            least = sorted(had, key=lambda name: had[name])[:3]
            shown = " | ".join(f"{_cell(found[rule, name], 'accuracy')} {name}" for name in least)
            clean = _cell(found.get((rule, "none")), "accuracy")
            lines.append(f"| {rule} | {clean} | {np.mean(list(had.values())):.1f} | {shown} |")
    return "\n".join(lines)


def _cell(cell: Cell | None, measure: str) -> str:
    if cell is None:
        return "-"
    value = getattr(cell, measure)
    return "diverged" if np.isnan(value) else f"{value:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--attacks", type=lambda text: text.split(","), default=attacks.names(), help="NAME,NAME")
    parser.add_argument("--rules", type=lambda text: text.split(","), default=aggregators.names(), help="NAME,NAME")
    parser.add_argument("--fidelity", choices=("paper", "official"))
    parser.add_argument("--participation", choices=("drawn", "fixed"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--num_clients", type=int)
    parser.add_argument("--clients_per_round", type=int)
    parser.add_argument(
        "--cells", type=Path, help="a CSV that keeps each cell as it ends; what is in it is not run again"
    )
    parser.add_argument("--output", type=Path, help="a file for the tables")
    given = parser.parse_args()
    names = ("fidelity", "participation", "rounds", "num_clients", "clients_per_round")
    chosen = {name: value for name in names if (value := getattr(given, name)) is not None}
    try:
        record = Record(given.cells, {"config": given.config, **chosen})
        cells = simulate(given.config, given.attacks, given.rules, chosen, record)
    except InputError as error:
        sys.exit(str(error))
    result = "\n\n".join(
        (worst(cells, given.attacks, given.rules), table(cells, given.attacks, given.rules, "accuracy"))
    )
    planted = [name for name in given.attacks if attacks.create(name).trigger is not None]
    if planted:
        result += f"\n\n{table(cells, planted, given.rules, 'success')}"
    print(result)
    if given.output is not None:
        given.output.write_text(result + "\n")
    sys.exit(any(np.isnan(cell.accuracy) and rule not in MAY_DIVERGE for (rule, _), cell in cells.items()))
