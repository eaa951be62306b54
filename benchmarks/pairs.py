"""Trains every pair of an attack and a rule: `python -m benchmarks.pairs [--config=configs/digits.py] [--output=FILE]`.

All pairs are one compiled program: which attack and which rule is a number, and `lax.switch` picks their code. Each cell
is the run that `python -m lasa_jax.main --config=FILE --config.attack.name=A --config.aggregator.name=R` makes. Prints a
Markdown table of final test accuracies in percent; `diverged` where the update of a round was not finite, and exit code 1
if a rule diverged whose docstring does not say that it may. Rules with too many subsets are left out, and marked.
"""

import argparse
import dataclasses
import importlib.util
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lasa_jax import aggregators, attacks, build
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator, Context, Diagnostics
from lasa_jax.attacks import Attack
from lasa_jax.data import FederatedDataset
from lasa_jax.errors import InputError
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

    def begin(states: tuple, context: Context) -> tuple[tuple, tuple]:
        return states, tuple(attack.begin(state, context) for attack, state in zip(those, states, strict=True))

    return Attack(
        lambda params: tuple(attack.init(params) for attack in those),
        poison,
        craft,
        constrain=constrain,
        begin=begin,
        needs=frozenset().union(*(attack.needs for attack in those)),
    )


def load(path: str, attack: str, rule: str, settings: Mapping[str, Any]) -> ConfigDict:
    """The resolved config of one pair."""
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(None)
    config.update_from_flattened_dict({**settings, "attack.name": attack, "aggregator.name": rule})
    return configs.resolve(config)


def simulate(path: str, settings: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Final test accuracy of every pair, by (rule, attack); NaN where it diverged, none where it is refused.

    Prints each as it comes.
    """
    base, dataset, shares, plain, _ = build.prepare(load(path, "none", "fedavg", settings))
    runs = {
        attack: build.prepare(load(path, attack, "fedavg", settings), dataset=dataset) for attack in attacks.names()
    }
    for rule in aggregators.names():
        try:
            runs[rule] = build.prepare(load(path, "none", rule, settings), dataset=dataset)
        except InputError as error:
            print(error, flush=True)
    names = [rule for rule in aggregators.names() if rule in runs]
    points = {name: run.point for name, run in runs.items()}
    those = [runs[name].program.make_attack(points[name].attack) for name in attacks.names()]
    rules = [runs[name].program.make_aggregator(points[name].aggregator) for name in names]
    program = dataclasses.replace(
        plain,
        make_attack=lambda numbers: one_attack(those, numbers["index"]),
        make_aggregator=lambda numbers: one_rule(rules, numbers["index"]),
    )
    simulation = Simulation(program, base.rounds, base.rounds, base.rounds, base.eval_batch_size, make_mesh())
    fed = FederatedDataset(dataset.train, dataset.test, jax.tree.map(lambda x: x[None], shares))
    executable, accuracies = None, {}
    root = next((run.point.root for run in runs.values() if len(run.point.root)), ())  # the same for all that need it
    for rule in names:
        for attack in attacks.names():
            sgd = points[rule].sgd
            point = points[attack]._replace(
                sgd=sgd._replace(clip_norm=jnp.float32(jnp.inf) if sgd.clip_norm is None else sgd.clip_norm),
                attack={"index": jnp.int32(attacks.names().index(attack))},
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
            accuracies[rule, attack] = 100 * float(metrics.test.reported.accuracy[0, -1]) if finite else float("nan")
            shown = f"{accuracies[rule, attack]:.1f} %" if finite else "diverged"
            print(f"{rule}, {attack}: {shown}, {time.perf_counter() - began:.1f} s", flush=True)
    return accuracies


def table(accuracies: Mapping[tuple[str, str], float]) -> str:
    """Attacks down, rules across."""
    rules, those = aggregators.names(), attacks.names()
    lines = ["| attack | " + " | ".join(rules) + " |", "| --- |" + " --- |" * len(rules)]
    for attack in those:
        cells = (_cell(accuracies.get((rule, attack))) for rule in rules)
        lines.append(f"| {attack} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(accuracy: float | None) -> str:
    """Of a pair; only rules of subsets are refused."""
    if accuracy is None:
        return "too many subsets"
    return "diverged" if np.isnan(accuracy) else f"{accuracy:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="configs/digits.py")
    parser.add_argument("--fidelity", choices=("paper", "official"))
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, help="a file for the table")
    given = parser.parse_args()
    chosen = {name: value for name in ("fidelity", "rounds") if (value := getattr(given, name)) is not None}
    found = simulate(given.config, chosen)
    result = table(found)
    print(result)
    if given.output is not None:
        given.output.write_text(result + "\n")
    sys.exit(any(np.isnan(accuracy) and rule not in MAY_DIVERGE for (rule, _), accuracy in found.items()))
