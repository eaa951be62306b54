"""One round: draw clients, train them, attack, aggregate, step, report. `one_round` is the whole of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators import Context
from lasa_jax.attacks import unconstrained
from lasa_jax.data import FederatedDataset
from lasa_jax.federated import memory
from lasa_jax.federated.types import Clients, Filtering, Point, Program, RoundKeys, RoundMetrics, State, Trained
from lasa_jax.models import Variables


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
    attack, rule = program.make_attack(point.attack), program.make_aggregator(point.aggregator)
    keys = round_keys(point.key, round_index)

    clients = draw_clients(program, point, keys.draw)

    needs = attack.needs | rule.needs
    context = context_of(needs, program, state, point, data, clients, round_index, key=keys.server)
    attack_state = attack.begin(state.attack, context)

    trained = train_clients(program, attack_state, state.variables, point, data, clients, round_index, key=keys.train)

    def aggregate(rows: Any, key: jax.Array) -> tuple[Any, Any, Any]:
        f, present = point.assumed_malicious, clients.present
        known = rule.knowing(context)
        return rule.aggregate(rows, state.aggregator, key=key, num_malicious=f, present=present, **known)

    updates, attack_state = attack.craft(
        trained.updates,
        attack_state,
        clients.malicious,
        key=keys.attack,
        present=clients.present,
        # The attacker knows the rule and its state, but cannot foresee the server's draws.
        aggregate=lambda rows: aggregate(rows, keys.rehearse)[0],
        **attack.knowing(context),
    )

    update, rule_state, info = aggregate(updates, keys.aggregate)

    variables = jax.tree.map(jnp.add, state.variables, update)

    filtered = jnp.stack([weight == 0 for weight in jax.tree.leaves(info.weight)])  # (layers, n)
    benign = clients.present & ~clients.malicious
    metrics = RoundMetrics(
        train_loss=jnp.mean(trained.losses, where=clients.present),
        malicious=jnp.sum(clients.malicious, dtype=jnp.int32),
        benign=jnp.sum(benign, dtype=jnp.int32),
        malicious_filtered=jnp.sum(filtered & clients.malicious[None], axis=1, dtype=jnp.int32),
        benign_filtered=jnp.sum(filtered & benign[None], axis=1, dtype=jnp.int32),
        update_norm=ops.tree_norm(update),
        step_waste=trained.step_waste,
        assumed_malicious=jnp.asarray(getattr(info, "num_malicious", -1), jnp.int32),
        filtering=filtering_of(clients, info) if program.record_filtering else None,
    )
    last_update = update if "last_update" in needs else ()
    return State(variables, attack_state, rule_state, last_update), metrics


def round_keys(key: jax.Array, round_index: jax.Array) -> RoundKeys:
    """The run's key, folded with the round, then with each use."""
    of_round = jax.random.fold_in(key, round_index)
    return RoundKeys(*(jax.random.fold_in(of_round, use) for use in range(len(RoundKeys._fields))))


def draw_clients(program: Program, point: Point, key: jax.Array) -> Clients:
    """Draws the clients of a round without replacement: uniformly, or a fixed number of malicious ones, see `Program`."""
    order = jnp.argsort(jax.random.bits(key, (program.num_clients,), jnp.uint32)).astype(jnp.int32)
    if program.participation == "fixed":
        malicious = point.malicious[order]
        order = order[_fixed_number_first(malicious, point.participating, program.clients_per_round, key=key)]
    ids = order[: program.clients_per_round]
    padding = -program.clients_per_round % ops.num_shards()
    present = jnp.arange(program.clients_per_round + padding, dtype=jnp.int32) < program.clients_per_round
    ids = jnp.pad(ids, (0, padding))
    return Clients(*ops.everywhere((ids, point.malicious[ids] & present, present)))


def _fixed_number_first(malicious: jax.Array, f: jax.Array, clients_per_round: int, *, key: jax.Array) -> jax.Array:
    """Places in a random order of the population: those of its first f malicious and first benign clients come first.

    Args:
      malicious: bool `(num_clients,)`, in that order.
      f: how many malicious ones take part.
      clients_per_round: how many in all.
      key: of the draw. Those who take part come in random order, so that a row says nothing.
    """
    among_its_own = jnp.where(
        malicious, jnp.cumsum(malicious, dtype=jnp.int32), jnp.cumsum(~malicious, dtype=jnp.int32)
    )
    chosen = among_its_own <= jnp.where(malicious, f, clients_per_round - f)
    other_key = jax.random.fold_in(key, len(malicious))  # beyond the numbers that were drawn with the key itself
    draws = jax.random.bits(other_key, malicious.shape, jnp.uint32) >> 1  # below that of the others
    return jnp.argsort(jnp.where(chosen, draws, jnp.uint32(0xFFFFFFFF)), stable=True)


def context_of(
    needs: frozenset[str],
    program: Program,
    state: State,
    point: Point,
    data: FederatedDataset,
    clients: Clients,
    round_index: jax.Array,
    *,
    key: jax.Array,
) -> Context:
    """What rule and attack need to know beside the updates, and nothing else.

    Args:
      needs: fields of `Context`.
      program, state, point, data, clients, round_index: of the round.
      key: `RoundKeys.server`.
    """

    def server_update() -> Variables:
        # At most as many of its examples as a client of the round has: with more steps its update is longer than theirs.
        width = min(len(point.root), data.partition.indices.shape[-1])
        order_key, training_key = jax.random.split(key)
        sizes = _sizes(clients, data).astype(jnp.float32)
        size = jnp.minimum(ops.masked_median(sizes, clients.present), width).astype(jnp.int32)
        settings = {"indices": jax.random.permutation(order_key, point.root)[:width], "size": size, "key": training_key}
        return program.local_training(state.variables, point.sgd, data.train, round_index, **settings)[0]

    fields = {
        "params": lambda: state.variables,
        "sizes": lambda: _sizes(clients, data),
        "ids": lambda: clients.ids,
        "server_update": server_update,
        "last_update": lambda: state.last_update,
        "round_index": lambda: round_index,
    }
    return Context(**{name: fields[name]() for name in sorted(needs)})


def _sizes(clients: Clients, data: FederatedDataset) -> jax.Array:
    """Examples of each client of the round, 0 in absent rows."""
    return jnp.where(clients.present, data.partition.sizes[clients.ids], 0)


def train_clients(
    program: Program,
    attack_state: Any,
    variables: Variables,
    point: Point,
    data: FederatedDataset,
    clients: Clients,
    round_index: jax.Array,
    *,
    key: jax.Array,
) -> Trained:
    """Local training of the clients of a round, each device its own share of them.

    Args:
      program: what is compiled in.
      attack_state: of the attack, which may poison what malicious clients train on and hold them back.
      variables: the global model.
      point: numbers of the run.
      data: examples, and this run's partition of them.
      clients: from `draw_clients`.
      round_index: counted from 1.
      key: `RoundKeys.train`.
    """
    training = program.local_training
    num_classes = training.dataset.num_classes

    constrains = program.make_attack(point.attack).constrain is not unconstrained

    # What is `shared` is not closed over; why, `ops.map_rows` says.
    def train(indices: Any, size: Any, key: Any, client: Any, is_malicious: Any, *shared: Any) -> Any:
        numbers, attack_state, *begun = shared
        attack = program.make_attack(numbers)

        def poison(inputs: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            poisoned = attack.poison(inputs, labels, num_classes=num_classes, key=key, client=client)
            return jax.tree.map(functools.partial(jnp.where, is_malicious), poisoned, (inputs, labels))

        def constrain(model: Variables, start: Variables) -> Variables:
            held = attack.constrain(model, start, attack_state)
            return jax.tree.map(functools.partial(jnp.where, is_malicious), held, model)

        settings = {"indices": indices, "size": size, "key": key, "poison": poison}
        return training(*begun, **settings, constrain=constrain if constrains else None)

    sizes = _sizes(clients, data)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(clients.ids)
    steps = training.epochs * (-(-sizes // training.batch_size))
    at_once = memory.most_at_once(program)
    updates, losses = ops.map_rows(
        train,
        data.partition.indices[clients.ids],
        sizes,
        keys,
        clients.ids,
        clients.malicious,
        shared=(point.attack, attack_state if constrains else (), variables, point.sgd, data.train, round_index),
        at_once=at_once,
        cost=steps if program.ragged else None,
    )
    return Trained(updates, losses, _step_waste(steps, at_once) if program.ragged else jnp.float32(1))


def _step_waste(steps: jax.Array, at_once: int | None) -> jax.Array:
    """Steps that the groups of `ops.map_rows` take, all as long as their longest, over the steps that are needed."""
    on_device = steps.reshape(ops.num_shards(), -1)
    rows = on_device.shape[1]
    batch = ops.rows_at_once(rows, at_once)
    starts = jnp.minimum(jnp.arange(-(-rows // batch), dtype=jnp.int32) * batch, rows - batch)
    longest = jnp.sort(on_device, axis=1, descending=True, stable=False)[:, starts]
    needed = jnp.maximum(jnp.sum(steps, dtype=jnp.int32), 1)
    return (batch * jnp.sum(longest, dtype=jnp.int32)).astype(jnp.float32) / needed.astype(jnp.float32)


def filtering_of(clients: Clients, info: Any) -> Filtering:
    """The record of a round, from the diagnostics of the rule."""
    n = len(clients.present)
    structure: Any = jax.tree.structure(info.weight)
    fields = {
        name: jnp.stack(jax.tree.leaves(value)).astype(jnp.float32)
        for name, value in info._asdict().items()
        if structure == jax.tree.structure(value) and all(jnp.shape(x) == (n,) for x in jax.tree.leaves(value))
    }
    return Filtering(jnp.where(clients.present, clients.ids, -1), clients.malicious, fields)
