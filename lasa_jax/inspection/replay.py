"""One round of a run, computed again to look inside: what the server received, and the models of the clients on the way.

before = replay.before_round(config, 12)
updates, malicious, clients = replay.received(before)

Of a run that was kept: `python -m lasa_jax.inspection round RUN 12`.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from lasa_jax import build, methods
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator
from lasa_jax.data import FederatedDataset
from lasa_jax.errors import InputError, check_number
from lasa_jax.federated import Point, Program, RoundMetrics, State, one_round
from lasa_jax.federated.round import context_of, draw_clients, round_keys, train_clients
from lasa_jax.models import Variables
from lasa_jax.workdir import Workdir

PyTree = Any


class Before(NamedTuple):
    """A run just before a round.

    Attributes:
      program: what is compiled in.
      state: before the round.
      point: numbers of the run.
      data: examples, and this run's partition of them.
      round_index: the round, counted from 1.
      start: the round whose checkpoint was the start, 0 if all rounds were played.
      ruled: the collections of an update that the rule is given.
    """

    program: Program
    state: State
    point: Point
    data: FederatedDataset
    round_index: int
    start: int
    ruled: tuple[str, ...]


def before_round(config: ConfigDict, round_index: int, run: str | os.PathLike[str] | None = None) -> Before:
    """Plays the rounds of a run that come before one, all of them or those since a checkpoint. Nothing is written.

    Clients, batches, attack and rule are those of the run. Sums are rounded differently on other devices than the run's and
    in another program, as this one is: over many rounds a filter may decide otherwise on a client that is on its border.

    Args:
      config: resolved, see `config.resolve`; `config.from_json` gives that of a run.
      round_index: counted from 1, at most `config.rounds`.
      run: a directory of that config; the newest sound checkpoint before the round is the start, if it has one. A run keeps
        its last `keep_checkpoints`.

    Raises:
      InputError: if the round is out of range, the data is missing, or the directory is that of another config or data.
    """
    check_number("round_index", round_index, low=1, high=config.rounds, whole=True)
    stored = {} if run is None else _stored_config(Workdir(run, lock=False), config)
    dataset = methods.dataset(config.dataset, data_dir=config.data_dir, source=config.source)
    if stored.get("source_id") not in (None, dataset.source_id):
        raise InputError(f"{run}: was made from other data of {config.dataset} than is there now")
    built = build.prepare(config, dataset=dataset)
    fed = jax.device_put(FederatedDataset(dataset.train, dataset.test, built.shares))
    state = jax.jit(built.program.init)(built.point)
    done, state = (0, state) if run is None else _last_checkpoint(Workdir(run, lock=False), round_index, state)
    step = jax.jit(functools.partial(one_round, built.program))
    for index in range(done + 1, round_index):
        state, _ = step(state, built.point, fed, jnp.int32(index))
    ruled = ("params",) if config.batch_stats == "separate" else tuple(state.variables)
    return Before(built.program, state, built.point, fed, round_index, done, ruled)


def _stored_config(workdir: Workdir, config: ConfigDict) -> dict[str, Any]:
    """What config.json of a run says, which must be this config."""
    stored = workdir.config()
    if stored is None:
        raise InputError(f"{workdir.path}: has no config.json, allowed is the directory of a run")
    difference = configs.first_difference(configs.without_source(stored), configs.as_json(config))
    if difference is not None:
        raise InputError(f"{workdir.path}: holds another run, {difference}")
    return stored


def _last_checkpoint(workdir: Workdir, round_index: int, start: State) -> tuple[int, State]:
    """The newest state that is kept of the rounds before one, and how many rounds it has seen; else the start."""
    for done in reversed([done for done in workdir.checkpoint_rounds() if done < round_index]):
        state = workdir.restore_checkpoint(done, start)
        if state is not None:
            return done, state
    return 0, start


class Played(NamedTuple):
    """A round that was computed again.

    Attributes:
      updates: what the rule was given, after the attack: NumPy arrays `(n, ...)`.
      whole: what the server received, running statistics too where the rule is not given them.
      malicious: bool `(n,)`.
      clients: int32 `(n,)`, ids in the population.
      update_norm: of what the rule returned, as in the metrics of a run.
    """

    updates: PyTree
    whole: PyTree
    malicious: np.ndarray
    clients: np.ndarray
    update_norm: float


def play(before: Before) -> Played:
    """Computes the round, with a rule that also tells what it was given."""
    program = dataclasses.replace(
        before.program,
        make_aggregator=lambda numbers: _telling(before.program.make_aggregator(numbers)),
        record_filtering=True,
    )
    metrics: RoundMetrics
    after, metrics = jax.device_get(
        jax.jit(functools.partial(one_round, program))(
            before.state, before.point, before.data, jnp.int32(before.round_index)
        )
    )
    _, updates = after.aggregator
    assert metrics.filtering is not None
    ruled = {name: updates[name] for name in before.ruled}
    malicious, clients = np.asarray(metrics.filtering.malicious), np.asarray(metrics.filtering.client)
    return Played(ruled, updates, malicious, clients, float(metrics.update_norm))


def _telling(rule: Aggregator) -> Aggregator:
    """A rule whose state after a round is its own and the updates that it was given."""

    def aggregate(updates: PyTree, state: PyTree, **known: Any) -> tuple[PyTree, PyTree, Any]:
        update, state, info = rule.aggregate(updates, state, **known)
        return update, (state, updates), info

    return Aggregator(rule.init, aggregate, rule.needs)


def received(before: Before) -> tuple[PyTree, np.ndarray, np.ndarray]:
    """What the server received in the round, after the attack.

    Returns:
      Stacked updates, NumPy arrays `(n, ...)`; who is malicious, bool `(n,)`; and their ids in the population, int32 `(n,)`.
    """
    played = play(before)
    return played.updates, played.malicious, played.clients


def local_models(before: Before) -> Variables:
    """The models of the round's clients at the start of each of their epochs, leaves `(epochs, n, ...)`.

    An epoch's batches do not depend on how many epochs follow, so that training is run with 0, 1, 2, ... epochs. Where an
    epoch is a single batch these are all local steps.
    """
    point = before.point._replace(sgd=before.point.sgd._replace(clip_norm=None))
    index = jnp.int32(before.round_index)

    @jax.jit
    def after(epochs: jax.Array, state: State, point: Point, fed: FederatedDataset) -> Variables:
        # Traced, as the bound of a loop may be: one program serves all.
        training = dataclasses.replace(before.program.local_training, epochs=epochs)
        program = dataclasses.replace(before.program, local_training=training)
        attack, keys = program.make_attack(point.attack), round_keys(point.key, index)
        clients = draw_clients(program, point, keys.draw)
        context = context_of(attack.needs, program, state, point, fed, clients, index, key=keys.server)
        begun = attack.begin(state.attack, context)
        trained = train_clients(program, begun, state.variables, point, fed, clients, index, key=keys.train)
        return jax.tree.map(jnp.add, state.variables, trained.updates)

    given = (before.state, point, before.data)
    stages = [after(jnp.int32(epochs), *given) for epochs in range(before.program.local_training.epochs)]
    return jax.tree.map(lambda *models: np.stack(models), *stages)


def local_examples(before: Before) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the round's clients train on: normalised inputs `(n, width, ...)`, labels `(n, width, ...)`, sizes `(n,)`.

    Places from a client's size on are padding. Labels are the true ones, of malicious clients too.
    """
    inputs, labels, sizes = stored_examples(before)
    return jax.device_get(before.program.local_training.dataset.normalise(jnp.asarray(inputs))), labels, sizes


def stored_examples(before: Before, clients: jax.Array | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `local_examples` with inputs as they are stored, which training crops before it normalises them.

    Args:
      before: the run.
      clients: ids; those of the round if None.
    """
    ids = clients_of_round(before) if clients is None else clients
    indices, sizes = before.data.partition.indices[ids], before.data.partition.sizes[ids]
    return jax.device_get((before.data.train.inputs[indices], before.data.train.labels[indices], sizes))


def clients_of_round(before: Before) -> jax.Array:
    """Ids of the clients that take part in the round, in the order of their rows: int32 `(n,)`."""
    key = round_keys(before.point.key, jnp.int32(before.round_index)).draw
    return draw_clients(before.program, before.point, key).ids


def example_loss(before: Before) -> Callable[[Variables, jax.Array, jax.Array], jax.Array]:
    """`(variables, input, label) -> loss` of one example, as in local training but without augmentation and dropout.

    Batch statistics are the running ones.
    """
    training = before.program.local_training

    def loss(variables: Variables, one_input: jax.Array, label: jax.Array) -> jax.Array:
        logits, _ = training.model.apply(variables, one_input[None])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label[None])
        counted = training.dataset.counted(label[None], jnp.ones(1, bool))
        return jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.maximum(jnp.sum(counted), 1)

    return loss


def batch_loss(before: Before) -> Callable[..., jax.Array]:
    """`(variables, inputs, labels, real, key) -> loss` of one batch of stored examples, as in local training.

    Batch statistics are those of the batch; the key draws masks of dropout and crops, so that the loss is a function of the
    model. `real` says which of the examples are no padding, bool `(batch,)`.
    """
    training = before.program.local_training

    def loss(variables: Variables, inputs: jax.Array, labels: jax.Array, real: jax.Array, key: jax.Array) -> jax.Array:
        augment_key, dropout_key = jax.random.split(key)
        inputs = training.dataset.normalise(training.dataset.augment(augment_key, inputs))
        inputs = jnp.where(real.reshape((-1,) + (1,) * (inputs.ndim - 1)), inputs, 0)
        logits, _ = training.model.apply(variables, inputs, train=True, key=dropout_key, mask=real)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        counted = training.dataset.counted(labels, real)
        return jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.maximum(jnp.sum(counted), 1)

    return loss
