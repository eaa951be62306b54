"""One round: draw clients, train them, attack, aggregate, move the global model."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import aggregators, attacks, ops
from lasa_jax.data import Examples, FederatedDataset
from lasa_jax.federated.client import SGD, LocalTraining
from lasa_jax.models import Variables

# Every random draw is a function of (seed, round, client): the run's key, folded with the round, then with its use, then
# with the client or, for crafted rows, the place among the clients of the round, which the seed and round decide.
_SAMPLE, _TRAIN, _ATTACK, _AGGREGATE, _REHEARSE = range(5)


class State(NamedTuple):
    """What a run carries from round to round: the global model and what its attack and its rule remember."""

    variables: Variables
    attack: Any
    aggregator: Any


class Point(NamedTuple):
    """The numbers of one run, all of them data of the compiled program.

    key: the run's random key. malicious: bool `(num_clients,)`, who is compromised. assumed_malicious: the server's f.
    sgd: numbers of local training. attack, aggregator: numeric parameters by name.
    """

    key: jax.Array
    malicious: jax.Array
    assumed_malicious: jax.Array
    sgd: SGD
    attack: dict[str, jax.Array]
    aggregator: dict[str, jax.Array]


class RoundMetrics(NamedTuple):
    """What one round reports, all on the device.

    train_loss: mean over the clients of the round, malicious ones included (they train honestly first).
    malicious, benign: how many took part. malicious_filtered, benign_filtered: int32 `(layers,)`, how many of them had
    weight 0 in each layer, layers in the order of the flattened variables. update_norm: of the aggregate.
    """

    train_loss: jax.Array
    malicious: jax.Array
    benign: jax.Array
    malicious_filtered: jax.Array
    benign_filtered: jax.Array
    update_norm: jax.Array


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled in: everything that is not a number of a `Point`.

    local_training: of one client. num_clients, clients_per_round: population, and drawn each round. client_chunk:
    clients trained together, None for the platform's choice. attack, aggregator: name and parameters that are words.
    """

    local_training: LocalTraining
    num_clients: int
    clients_per_round: int
    client_chunk: int | None
    attack: tuple[str, Mapping[str, Any]]
    aggregator: tuple[str, Mapping[str, Any]]

    def methods(self, point: Point) -> tuple[attacks.Attack, aggregators.Aggregator]:
        """The attack and the rule of a run, with its numbers."""
        attack_name, attack_words = self.attack
        rule_name, rule_words = self.aggregator
        attack = attacks.create(attack_name, **attack_words, **point.attack)
        return attack, aggregators.create(rule_name, **rule_words, **point.aggregator)

    def init(self, point: Point) -> State:
        """The state before the first round."""
        variables = self.local_training.model.init(jax.random.fold_in(point.key, 0))
        attack, rule = self.methods(point)
        return State(variables, attack.init(variables), rule.init(variables))


def draw_clients(key: jax.Array, num_clients: int, clients_per_round: int) -> jax.Array:
    """Ids of the clients of a round, uniform without replacement: int32 `(clients_per_round,)`."""
    return jnp.argsort(jax.random.bits(key, (num_clients,)))[:clients_per_round].astype(jnp.int32)


def train_clients(
    program: Program, state: State, point: Point, data: FederatedDataset, round_index: jax.Array
) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """Local training of the clients of a round, each device its own share of them.

    Returns:
      Stacked updates, leaves `(n, ...)`; losses `(n,)`; who is malicious, bool `(n,)`; and who is present, bool `(n,)`:
      n is `clients_per_round` rounded up to a multiple of the devices, and the rows beyond it are absent.
    """
    key = jax.random.fold_in(point.key, round_index)
    ids = draw_clients(jax.random.fold_in(key, _SAMPLE), program.num_clients, program.clients_per_round)
    padding = -program.clients_per_round % ops.num_shards()
    present = jnp.arange(program.clients_per_round + padding) < program.clients_per_round
    ids = jnp.pad(ids, (0, padding))
    attack, _ = program.methods(point)
    malicious = point.malicious[ids] & present

    def train(
        indices: jax.Array,
        size: jax.Array,
        key: jax.Array,
        is_malicious: jax.Array,
        variables: Variables,
        sgd: SGD,
        examples: Examples,
        round_index: jax.Array,
    ) -> tuple[Variables, jax.Array]:
        num_classes = program.local_training.dataset.num_classes

        def relabel(labels: jax.Array) -> jax.Array:
            return jnp.where(is_malicious, attack.poison_labels(labels, num_classes), labels)

        return program.local_training(
            variables, sgd, examples, round_index, indices=indices, size=size, key=key, relabel=relabel
        )

    sizes = jnp.where(present, data.partition.sizes[ids], 0)
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, _TRAIN)))(ids)
    updates, losses = ops.map_rows(
        train,
        data.partition.indices[ids],
        sizes,
        keys,
        malicious,
        shared=(state.variables, point.sgd, data.train, round_index),
        at_once=program.client_chunk,
    )
    return updates, losses, malicious, present


def one_round(
    program: Program, state: State, point: Point, data: FederatedDataset, round_index: jax.Array
) -> tuple[State, RoundMetrics]:
    """One round as a pure function.

    Args:
      program: what is compiled in.
      state: of the run, before the round.
      point: numbers of the run.
      data: examples, and this run's partition of them.
      round_index: counted from 1.

    Returns:
      The state after the round, and what it reports.
    """
    attack, rule = program.methods(point)
    key = jax.random.fold_in(point.key, round_index)
    updates, losses, malicious, present = train_clients(program, state, point, data, round_index)

    def aggregate(updates: Any, use: int = _AGGREGATE) -> Any:
        return rule.aggregate(
            updates,
            state.aggregator,
            key=jax.random.fold_in(key, use),
            num_malicious=point.assumed_malicious,
            present=present,
        )

    updates, attack_state = attack.craft(
        updates,
        state.attack,
        malicious,
        key=jax.random.fold_in(key, _ATTACK),
        present=present,
        aggregate=lambda updates: aggregate(updates, _REHEARSE)[0],  # the attacker cannot foresee the server's draws
    )
    update, rule_state, diagnostics = aggregate(updates)
    variables = jax.tree.map(jnp.add, state.variables, update)

    filtered = jnp.stack([weight == 0 for weight in jax.tree.leaves(diagnostics.weight)])  # (layers, n)
    benign = present & ~malicious
    metrics = RoundMetrics(
        train_loss=jnp.mean(losses, where=present),
        malicious=jnp.sum(malicious, dtype=jnp.int32),
        benign=jnp.sum(benign, dtype=jnp.int32),
        malicious_filtered=jnp.sum(filtered & malicious, axis=1, dtype=jnp.int32),
        benign_filtered=jnp.sum(filtered & benign, axis=1, dtype=jnp.int32),
        update_norm=ops.tree_norm(update),
    )
    return State(variables, attack_state, rule_state), metrics
