"""One round of a run under other rules and other attacks: the same clients and training, and what would have come of it.

before = replay.before_round(config, 12)
of_rules(before, {"lasa": aggregators.lasa(), "median": aggregators.median()})     # the accuracy after the round
of_attack(before, attacks.lie, [0.5, 1.0, 2.0])                                    # the round at three strengths
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from lasa_jax.aggregators import Aggregator, parameters_only
from lasa_jax.attacks import Attack
from lasa_jax.errors import InputError
from lasa_jax.federated.evaluation import evaluate
from lasa_jax.federated.round import context_of, draw_clients, round_keys
from lasa_jax.inspection.replay import Before, play
from lasa_jax.inspection.rounds import Round

PyTree = Any


def of_rules(before: Before, rules: Mapping[str, Aggregator]) -> pd.DataFrame:
    """The test accuracy that each rule would have had after the round, if the run had gone on with it for this one round.

    Clients are trained once. Every rule starts afresh and is given the server's own f. A rule that refuses the round, as
    one that would walk over too many subsets or one that needs examples of the server, has no accuracy. Where the run keeps
    running statistics from its rule, they are kept from these too, and averaged by their weights.

    Args:
      before: the run.
      rules: by name.

    Returns:
      A row for each rule in their order: `rule`; `accuracy`, a share; `error`, its squared distance to the mean of the
      benign updates; `malicious_filtered`, `benign_kept` as in `filtering.rates`; and `refused`, why it has no accuracy, or
      empty.
    """
    played = play(before)
    program, state, index = before.program, before.state, jnp.int32(before.round_index)
    keys = round_keys(before.point.key, index)
    clients = draw_clients(program, before.point, keys.draw)
    tested = jax.jit(lambda state: evaluate(program, state, before.data.test).reported.accuracy)
    rows = []
    truth = jax.tree.map(lambda x: x[~played.malicious].mean(axis=0, dtype=np.float64), played.updates)
    apart = before.ruled != tuple(state.variables)
    for name, plain in rules.items():
        rule = parameters_only(plain) if apart else plain
        row: dict[str, Any] = {"rule": name, "accuracy": np.nan, "error": np.nan}
        row |= {"malicious_filtered": np.nan, "benign_kept": np.nan, "refused": ""}
        try:
            _check_known(before, rule)
            context = context_of(rule.needs, program, state, before.point, before.data, clients, index, key=keys.server)
            first = rule.init(jax.tree.map(lambda x: x[0], played.whole))
            known = {"num_malicious": before.point.assumed_malicious, **rule.knowing(context)}

            @jax.jit
            def apply(updates: PyTree, rule: Any = rule, first: Any = first, known: Any = known) -> tuple[Any, Any]:
                update, _, info = rule.aggregate(updates, first, key=keys.aggregate, **known)
                return update, info.weight

            update, weight = jax.device_get(apply(played.whole))
        except InputError as error:
            rows.append({**row, "refused": str(error)})
            continue
        errors = jax.tree.map(lambda x, y: float(((x - y) ** 2).sum()), _part(update, before), truth)
        after = {**state.variables, **jax.tree.map(jnp.add, {key: state.variables[key] for key in update}, update)}
        test = float(tested(state._replace(variables=after)))
        kept = np.stack([np.asarray(x) != 0 for x in jax.tree.leaves(_part(weight, before))])
        row |= {"accuracy": test, "error": sum(jax.tree.leaves(errors))}
        row |= {"malicious_filtered": _mean(~kept[:, played.malicious])}
        rows.append({**row, "benign_kept": _mean(kept[:, ~played.malicious])})
    return pd.DataFrame(rows)


def _part(tree: Mapping[str, PyTree], before: Before) -> PyTree:
    """The collections that the rule is given."""
    return {name: tree[name] for name in before.ruled}


def _check_known(before: Before, rule: Aggregator) -> None:
    """Raises InputError for a rule that needs what the run did not keep for its own."""
    if "server_update" in rule.needs and len(before.point.root) == 0:
        raise InputError("needs server_update, allowed are runs with config.root_examples above 0")
    if "last_update" in rule.needs and not jax.tree.leaves(before.state.last_update):
        raise InputError("needs last_update, allowed are runs of a rule or attack that needs it too")


def _mean(mask: np.ndarray) -> float:
    return float(mask.mean()) if mask.size else np.nan


def honest(before: Before) -> Round:
    """What the clients of the round would have sent without an attack, and who of them is malicious."""

    def without(attack: Attack) -> Attack:
        return attack._replace(craft=lambda updates, state, malicious, **known: (updates, state))

    def make(numbers: Any) -> Attack:
        return without(before.program.make_attack(numbers))

    played = play(before._replace(program=dataclasses.replace(before.program, make_attack=make)))
    return Round(played.updates, played.malicious, played.clients)


def of_attack(honest: Round, make: Callable[[Any], Attack], strengths: Sequence[float]) -> list[Round]:
    """The round under an attack at several strengths, compiled once. Every attack starts afresh.

    Args:
      honest: from `honest`.
      make: the attack at a strength, which is traced, for instance `attacks.lie`.
      strengths: of the attack.

    Raises:
      InputError: for an attack that needs to know more than the updates.
    """
    params = jax.tree.map(lambda x: x[0], honest.updates)
    key = jax.random.key(0)

    @jax.jit
    def crafted(updates: PyTree, strength: jax.Array) -> PyTree:
        attack = make(strength)
        if attack.needs:
            needs = ", ".join(sorted(attack.needs))
            raise InputError(f"attack: needs {needs}; allowed are attacks that read updates only")
        return attack.craft(updates, attack.init(params), honest.malicious, key=key)[0]

    sent = [jax.device_get(crafted(honest.updates, jnp.float32(strength))) for strength in strengths]
    return [honest._replace(updates=updates) for updates in sent]
