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
_GROUPS = 8  # of ragged clients of like size: with sizes like FEMNIST's about a tenth of the steps is waste


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


class Filtering(NamedTuple):
    """What the rule made of each client of a round, where `Program.record_filtering` is set.

    client: int32 `(n,)`, ids, -1 in rows that are absent. malicious: bool `(n,)`. fields: by name `(layers, n)`, the weight
    and whatever else the rule's diagnostics have of each client and layer; layers in the order of the flattened variables,
    NaN in those that the rule does not see.
    """

    client: jax.Array
    malicious: jax.Array
    fields: dict[str, jax.Array]


class RoundMetrics(NamedTuple):
    """What one round reports, all on the device.

    train_loss: mean over the clients of the round, malicious ones included (they train honestly first).
    malicious, benign: how many took part. malicious_filtered, benign_filtered: int32 `(layers,)`, how many of them had
    weight 0 in each layer, layers in the order of the flattened variables. update_norm: of what the rule returned.
    step_waste: steps of local training that were computed over those that were needed, since clients that train together
    all take as many as the longest of them. assumed_malicious: the f that the rule used after its own limit, -1 if it has
    none. filtering: None unless it is recorded.
    """

    train_loss: jax.Array
    malicious: jax.Array
    benign: jax.Array
    malicious_filtered: jax.Array
    benign_filtered: jax.Array
    update_norm: jax.Array
    step_waste: jax.Array
    assumed_malicious: jax.Array
    filtering: Filtering | None


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled in: everything that is not a number of a `Point`.

    local_training: of one client. num_clients, clients_per_round: population, and drawn each round. client_chunk:
    clients trained together, None for the platform's choice. ragged: whether clients differ in their numbers of steps.
    batch_stats: "aggregate" leaves running statistics in the update that the rule sees, "separate" takes them out. attack,
    aggregator: name and parameters that are words. record_filtering: whether each round reports `Filtering`.
    """

    local_training: LocalTraining
    num_clients: int
    clients_per_round: int
    client_chunk: int | None
    ragged: bool
    batch_stats: str
    attack: tuple[str, Mapping[str, Any]]
    aggregator: tuple[str, Mapping[str, Any]]
    record_filtering: bool = False

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
        return State(variables, attack.init(variables), rule.init(self.ruled(variables)))

    def ruled(self, variables: Variables) -> Variables:
        """The part of an update that the rule is given."""
        return {"params": variables["params"]} if self.batch_stats == "separate" else variables

    def clients_at_once(self) -> int | None:
        """Clients trained together on a device: as set, else an eighth where they are ragged and all may go at once."""
        if self.client_chunk is None and self.ragged and not ops.one_at_a_time():
            return max(1, -(-self.clients_per_round // (_GROUPS * ops.num_shards())))
        return self.client_chunk


def draw_clients(key: jax.Array, num_clients: int, clients_per_round: int) -> jax.Array:
    """Ids of the clients of a round, uniform without replacement: int32 `(clients_per_round,)`."""
    return jnp.argsort(jax.random.bits(key, (num_clients,)))[:clients_per_round].astype(jnp.int32)


def clients_of_round(program: Program, point: Point, round_index: jax.Array) -> jax.Array:
    """Ids of the clients that take part in a round, in the order of their rows: int32 `(clients_per_round,)`."""
    key = jax.random.fold_in(point.key, round_index)
    return draw_clients(jax.random.fold_in(key, _SAMPLE), program.num_clients, program.clients_per_round)


def train_clients(
    program: Program, state: State, point: Point, data: FederatedDataset, round_index: jax.Array
) -> tuple[Any, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Local training of the clients of a round, each device its own share of them.

    Returns:
      Stacked updates, leaves `(n, ...)`; losses `(n,)`; who is malicious, bool `(n,)`; who is present, bool `(n,)`: n is
      `clients_per_round` rounded up to a multiple of the devices, and the rows beyond it are absent; and the step waste.
    """
    key = jax.random.fold_in(point.key, round_index)
    ids = clients_of_round(program, point, round_index)
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
    training = program.local_training
    steps = training.epochs * (-(-sizes // training.batch_size))
    at_once = program.clients_at_once()
    updates, losses = ops.map_rows(
        train,
        data.partition.indices[ids],
        sizes,
        keys,
        malicious,
        shared=(state.variables, point.sgd, data.train, round_index),
        at_once=at_once,
        cost=steps if program.ragged else None,
    )
    return updates, losses, malicious, present, _step_waste(steps, at_once, program.ragged)


def _step_waste(steps: jax.Array, at_once: int | None, ragged: bool) -> jax.Array:
    """Steps that the groups of `ops.map_rows` take, all as long as their longest, over the steps that are needed."""
    if not ragged:
        return jnp.float32(1)
    on_device = steps.reshape(ops.num_shards(), -1)
    rows = on_device.shape[1]
    batch = ops.rows_at_once(rows, at_once)
    starts = jnp.minimum(jnp.arange(-(-rows // batch)) * batch, rows - batch)
    longest = jnp.sort(on_device, axis=1, descending=True)[:, starts]
    return batch * jnp.sum(longest) / jnp.maximum(jnp.sum(steps), 1)


class Received(NamedTuple):
    """What reaches the server in a round, rows as of `train_clients`.

    updates: after the attack, what the rule is given, leaves `(n, ...)`. batch_stats: running statistics where they are kept
    from the rule, else None; malicious clients send those of their honest training. malicious, present: bool `(n,)`.
    losses: of local training, `(n,)`. step_waste: see `RoundMetrics`.
    """

    updates: Any
    batch_stats: Any
    malicious: jax.Array
    present: jax.Array
    losses: jax.Array
    step_waste: jax.Array


def receive(
    program: Program, state: State, point: Point, data: FederatedDataset, round_index: jax.Array
) -> tuple[Received, Any]:
    """The first half of a round: clients train and the malicious ones attack. Arguments as of `one_round`.

    Returns:
      What reaches the server, and the state of the attack after it.
    """
    attack, _ = program.methods(point)
    updates, losses, malicious, present, waste = train_clients(program, state, point, data, round_index)
    # The attacker cannot foresee the server's draws.
    rehearse = functools.partial(_aggregate, program, state, point, round_index, present=present, use=_REHEARSE)
    crafted, attack_state = attack.craft(
        program.ruled(updates),
        state.attack,
        malicious,
        key=jax.random.fold_in(jax.random.fold_in(point.key, round_index), _ATTACK),
        present=present,
        aggregate=lambda updates: rehearse(updates)[0],
    )
    statistics = updates.get("batch_stats") if program.batch_stats == "separate" else None
    return Received(crafted, statistics, malicious, present, losses, waste), attack_state


def _aggregate(
    program: Program,
    state: State,
    point: Point,
    round_index: jax.Array,
    updates: Any,
    present: jax.Array,
    use: int = _AGGREGATE,
) -> tuple[Any, Any, Any]:
    """The rule's update, its state after it, and its diagnostics."""
    _, rule = program.methods(point)
    return rule.aggregate(
        updates,
        state.aggregator,
        key=jax.random.fold_in(jax.random.fold_in(point.key, round_index), use),
        num_malicious=point.assumed_malicious,
        present=present,
    )


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
    received, attack_state = receive(program, state, point, data, round_index)
    malicious, present, losses = received.malicious, received.present, received.losses
    update, rule_state, info = _aggregate(program, state, point, round_index, received.updates, present)
    weights, update_norm = info.weight, ops.tree_norm(update)
    if received.batch_stats is not None:
        stats, shares = _averaged_statistics(received.batch_stats, weights)
        update, weights = {**update, "batch_stats": stats}, {**weights, "batch_stats": shares}
    variables = jax.tree.map(jnp.add, state.variables, update)

    filtered = jnp.stack([weight == 0 for weight in jax.tree.leaves(weights)])  # (layers, n)
    benign = present & ~malicious
    metrics = RoundMetrics(
        train_loss=jnp.mean(losses, where=present),
        malicious=jnp.sum(malicious, dtype=jnp.int32),
        benign=jnp.sum(benign, dtype=jnp.int32),
        malicious_filtered=jnp.sum(filtered & malicious, axis=1, dtype=jnp.int32),
        benign_filtered=jnp.sum(filtered & benign, axis=1, dtype=jnp.int32),
        update_norm=update_norm,
        step_waste=received.step_waste,
        assumed_malicious=jnp.asarray(getattr(info, "num_malicious", -1), jnp.int32),
        filtering=_filtering(program, point, round_index, received, info, weights)
        if program.record_filtering
        else None,
    )
    return State(variables, attack_state, rule_state), metrics


def _filtering(
    program: Program, point: Point, round_index: jax.Array, received: Received, info: Any, weights: Any
) -> Filtering:
    """The record of a round: `weights` is the weight in all layers, `info` what the rule says of those that it saw."""
    n = len(received.present)
    ids = clients_of_round(program, point, round_index)
    ids = jnp.where(received.present, jnp.pad(ids, (0, n - len(ids))), -1)
    unseen = {name: tree for name, tree in weights.items() if name not in info.weight}
    unknown = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan), unseen)
    fields: dict[str, Any] = {"weight": weights}
    seen: Any = jax.tree.structure(info.weight)
    for name, value in info._asdict().items():
        alike = seen == jax.tree.structure(value)
        if name != "weight" and alike and all(x.shape == (n,) for x in jax.tree.leaves(value)):
            fields[name] = {**value, **unknown}
    stacked = {name: jnp.stack(jax.tree.leaves(tree)).astype(jnp.float32) for name, tree in fields.items()}
    return Filtering(ids, received.malicious, stacked)


def _averaged_statistics(statistics: Any, weight: Any) -> tuple[Any, Any]:
    """Running statistics averaged by the weight that a client had in the layers of the update, on average over these.

    A client whose statistics are not finite counts for nothing: the rule, which does not see them, cannot reject it.

    Returns:
      The averages, and each client's weight in every leaf.
    """
    finite = ops.map_rows(aggregators.is_finite, statistics)
    mean = jnp.mean(jnp.stack(jax.tree.leaves(weight)), axis=0)
    share = jnp.where(finite, mean, 0.0)
    share = share / jnp.where(jnp.sum(share) > 0, jnp.sum(share), 1.0)
    return ops.weighted_sum(share, statistics), jax.tree.map(lambda _: share, statistics)
