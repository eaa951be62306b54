"""From resolved configs to a simulation on devices: `prepare` builds a run on the host, `place` puts runs on a mesh.

This is where names end. Above it everything is a config; below it, in `federated`, everything is a function or an array.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lasa_jax import aggregators, attacks, data, methods, models
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.data import Dataset, FederatedDataset, Partition, partition
from lasa_jax.errors import InputError, check_number
from lasa_jax.federated import (
    LocalTraining,
    Numbers,
    Point,
    Program,
    Simulation,
    State,
    check_aggregator,
    check_attack,
    make_mesh,
)
from lasa_jax.federated.client import SGD
from lasa_jax.models import Model


class Run(NamedTuple):
    """What one resolved config stands for, on the host.

    Attributes:
      config: resolved.
      dataset: its examples.
      shares: how they are divided over the clients.
      program: what is compiled in.
      point: the numbers of the run.
    """

    config: ConfigDict
    dataset: Dataset
    shares: Partition
    program: Program
    point: Point


class Placed(NamedTuple):
    """Runs of one program on the devices of a mesh, ready for `simulation.compile` and `simulation.block`.

    Attributes:
      simulation: the program and how its rounds are run.
      states: before the first round, leaves `(runs, ...)`.
      points: numbers, leaves `(runs, ...)`.
      data: examples, and the partitions with a leading axis of runs.
    """

    simulation: Simulation
    states: State
    points: Point
    data: FederatedDataset


def simulation(runs: Sequence[ConfigDict], mesh: Mesh | None = None) -> Placed:
    """Builds runs of one program and puts them on devices: `prepare`, then `place`.

    Args:
      runs: resolved configs of one `config.program_key`.
      mesh: from `federated.make_mesh`; all devices for the clients if None.

    Raises:
      InputError: if data is missing, or a config and its data do not fit.
    """
    return place([prepare(config) for config in runs], make_mesh() if mesh is None else mesh)


def place(runs: Sequence[Run], mesh: Mesh, *, init: Callable[[Point], State] | None = None) -> Placed:
    """Puts prepared runs of one program on the devices of a mesh. Where it spans several processes, all call this alike.

    The program, the examples and whatever else runs of one program have in common are those of the first.

    Args:
      runs: from `prepare`.
      mesh: from `federated.make_mesh`.
      init: `points -> states`, compiled before, see `federated.Executables.init`; made from the program if None.
    """
    first = runs[0]
    config = first.config
    block_rounds = -(-config.block_rounds // config.eval_every) * config.eval_every  # whole numbers of evaluations
    made = Simulation(
        first.program,
        rounds=config.rounds,
        eval_every=config.eval_every,
        block_rounds=min(block_rounds, config.rounds),
        eval_batch_size=config.eval_batch_size,
        mesh=mesh,
        deterministic=config.deterministic,
    )
    points = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.point for one in runs))
    apart = made.remembered(points) > 0 and mesh.size > 1 and jax.process_count() == 1
    shares = partition.stack([one.shares for one in runs])
    states = made.init_apart(points) if apart else (made.init if init is None else init)(points)
    placed = made.place(states, points, FederatedDataset(first.dataset.train, first.dataset.test, shares))
    return Placed(made, *placed)


def prepare(
    config: ConfigDict,
    *,
    load: Callable[..., Dataset] = methods.dataset,
    dataset: Dataset | None = None,
    model: Any = None,
    aggregator: Aggregator | None = None,
    attack: Attack | None = None,
) -> Run:
    """Builds one run on the host.

    Args:
      config: resolved.
      load: as `methods.dataset`, for callers that keep what was loaded.
      dataset: loaded as the config says if None.
      model: in place of the one that the config names.
      aggregator: the same.
      attack: the same.

    Raises:
      InputError: if data is missing, or the config and its data do not fit.
    """
    configs.check_sources(config)
    if aggregator is None:
        check_subsets(config)
    if attack is None:
        check_pixels(config)
    if dataset is None:
        dataset = load(config.dataset, data_dir=config.data_dir, source=config.source)
    if dataset.padding_label is not None:
        dataset = dataclasses.replace(dataset, counts_padding=config.get("padding") == "counted")
    shares = partition.divide(
        config.partition, dataset.train.labels, dataset.client_ids, num_clients=config.num_clients, seed=config.seed
    )
    configs.check_clients_per_round(config.clients_per_round, len(shares.sizes))
    _check_numbered(config, dataset, len(shares.sizes))
    built = _model(config, dataset, model)
    program = _program(config, dataset, shares, built, _factories(config, len(shares.sizes), attack, aggregator))
    point = _point(config, dataset, len(shares.sizes), built, attack, aggregator)
    _check_methods(config, dataset, built, program, point, attack, aggregator)
    if "server_update" in program.make_attack(point.attack).needs | program.make_aggregator(point.aggregator).needs:
        point = point._replace(root=_root(config, dataset))
    return Run(config, dataset, shares, program, point)


def check_subsets(config: ConfigDict) -> None:
    """Refuses a rule that would walk through more subsets of a round's clients than it can; the config alone tells.

    Args:
      config: resolved.

    Raises:
      InputError: as `aggregators.check_subsets`.
    """
    rule = config.aggregator.name
    if rule not in aggregators.OF_SUBSETS:
        return
    rows = config.clients_per_round
    if "bucketing" in configs.steps(config):
        rows = -(-rows // configs.parameters(config, "preaggregator", "bucketing")["bucket_size"])
    own = configs.parameters(config, "aggregator", rule).get("assumed_malicious")
    aggregators.check_subsets(rule, rows, _assumed(config) if own is None else own)


def check_pixels(config: ConfigDict) -> None:
    """Refuses a backdoor on text, whose trigger is made of pixels; the config alone tells.

    Args:
      config: resolved.

    Raises:
      InputError: if that is what it is.
    """
    planted = [name for name in (config.attack.name, configs.base_of(config)) if name in attacks.BACKDOORS]
    if planted and data.is_text(config.dataset):
        images = ", ".join(name for name in data.names() if not data.is_text(name))
        raise InputError(
            f"config.attack.name = {config.attack.name!r}: the trigger of {planted[0]} is made of pixels, and "
            f"{config.dataset} is text; allowed is a dataset of images: {images}, or an .npz file of some"
        )


def _check_numbered(config: ConfigDict, dataset: Dataset, num_clients: int) -> None:
    """Raises InputError for a parameter of an attack that numbers a client or a class which is not in the data."""
    for name in configs.chosen(config)["attack"]:
        given = configs.parameters(config, "attack", name)
        for parameter, of in attacks.NUMBERED.get(name, {}).items():
            count = {"clients": num_clients, "classes": dataset.num_classes}[of]
            check_number(f"config.attack.{name}.{parameter}", given.get(parameter, 0), high=count - 1)


def _check_methods(
    config: ConfigDict, dataset: Dataset, model: Model, program: Program, point: Point, attack: Any, aggregator: Any
) -> None:
    """Checks that a rule and an attack that are not ours, given or named by a path, give what they must.

    And that a backdoor of ours takes the dataset.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0))
    examples = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype), dataset.train)
    paths = configs.user_functions(config)
    with methods.naming_the_line(paths):
        # What was given may be no rule at all: it is checked before it is wrapped.
        if aggregator is not None:
            check_aggregator(aggregator, variables, "aggregator")
        elif {config.aggregator.name, *configs.steps(config)} & set(paths):
            where = f"config.aggregator.name = {config.aggregator.name!r}"
            check_aggregator(program.make_aggregator(point.aggregator), variables, where)
        if attack is not None:
            check_attack(attack, variables, examples, "attack", dataset.num_classes)
        elif {config.attack.name, configs.base_of(config)} & {
            *paths,
            *attacks.BACKDOORS,
        }:  # those do not take every dataset
            where = f"config.attack.name = {config.attack.name!r}"
            check_attack(program.make_attack(point.attack), variables, examples, where, dataset.num_classes)


def _model(config: ConfigDict, dataset: Dataset, given: Any) -> Model:
    """The model that was given, or that the config names; it is checked that it takes the dataset's examples."""
    named = methods.imported("model", config.model) if methods.is_path(config.model) else config.model
    return models.for_dataset(
        named if given is None else given,
        setting=f"config.model = {config.model!r}" if given is None else "model",
        dataset=dataset.name,
        example=dataset.example,
        label_shape=dataset.label_shape,
        num_classes=dataset.num_classes,
    )


Factories = tuple[Callable[[Numbers], Attack], Callable[[Numbers], Aggregator]]


def _factories(config: ConfigDict, num_clients: int, attack: Attack | None, aggregator: Aggregator | None) -> Factories:
    """What makes the attack and the rule inside a trace: those that were given, or those that the config names.

    They are called with the traced numbers of `_point`, so that runs which differ in these share a program. One that
    remembers the population, and so has a parameter `num_clients`, is told its size.
    """

    def named(kind: str, name: str) -> Callable[[Numbers], Any]:
        numbers, compiled_in = methods.split(kind, name, configs.parameters(config, kind, name))
        if methods.remembers_clients(kind, name):
            given = {**numbers, **compiled_in}.get("num_clients", num_clients)
            check_number(
                f"config.{configs.GROUPS[kind]}.{methods.settings_name(name)}.num_clients", given, low=num_clients
            )
            compiled_in = {"num_clients": num_clients, **compiled_in}
        return methods.factory(kind, name, compiled_in)

    base = configs.base_of(config)
    make_attack = named("attack", config.attack.name) if attack is None else lambda _: attack
    if attack is None and base is not None:
        make_attack = _on_base(make_attack, named("attack", base))
    steps = [(methods.settings_name(name), named("preaggregator", name)) for name in configs.steps(config)]
    make_rule = named("aggregator", config.aggregator.name)

    def make_aggregator(numbers: Numbers) -> Aggregator:
        rule = make_rule(numbers["rule"]) if aggregator is None else aggregator
        before = [make(numbers["steps"][name]) for name, make in steps]
        return aggregators.chain(*before, rule) if before else rule

    if not _statistics_apart(config):
        return make_attack, make_aggregator
    return (
        lambda numbers: attacks.parameters_only(make_attack(numbers)),
        lambda numbers: aggregators.parameters_only(make_aggregator(numbers)),
    )


def _on_base(make: Callable[[Numbers], Attack], make_base: Callable[[Numbers], Attack]) -> Callable[[Numbers], Attack]:
    """Makes an attack that builds on another one, whose numbers are under "base"."""
    return lambda numbers: make({**numbers, "base": make_base(numbers["base"])})


def _statistics_apart(config: ConfigDict) -> bool:
    """Whether running statistics are kept from rule, attack and the clients' own clip."""
    return config.batch_stats == "separate"


def _program(config: ConfigDict, dataset: Dataset, shares: Partition, model: Model, factories: Factories) -> Program:
    """What is compiled in; the partition says how many clients there are."""
    client = config.client
    make_attack, make_aggregator = factories
    ragged = config.partition.name in partition.RAGGED  # whatever the seed: it is compiled in
    return Program(
        local_training=LocalTraining(
            model,
            dataset,
            epochs=client.epochs,
            batch_size=client.batch_size,
            decay_every=client.decay_every,
            clips_parameters_only=_statistics_apart(config),
            precision=client.precision,
            convolution=client.convolution,
            ragged=ragged,
        ),
        make_attack=make_attack,
        make_aggregator=make_aggregator,
        num_clients=len(shares.sizes),
        clients_per_round=config.clients_per_round,
        client_chunk=config.client_chunk,
        ragged=ragged,
        participation=config.participation,
        measures_clients=config.partition.name not in partition.ALIKE,
        record_filtering=config.record_filtering,
    )


def _point(
    config: ConfigDict,
    dataset: Dataset,
    num_clients: int,
    model: Model,
    attack: Attack | None,
    aggregator: Aggregator | None,
) -> Point:
    """The numbers of one run. Everything random on the host is a function of the seed.

    A rule or an attack that was given has its numbers already.
    """
    order = np.random.default_rng([config.seed, 0]).permutation(num_clients)
    malicious = np.zeros(num_clients, bool)
    if attack is not None or config.attack.name != "none":  # without attack everybody is benign
        malicious[order[: _share(config.attack_ratio, num_clients)]] = True
    of_a_round = _share(config.attack_ratio, config.clients_per_round)

    def of(kind: str, name: str) -> dict[str, Any]:
        return _numbers(config, kind, name, model, dataset)

    of_steps = {methods.settings_name(name): of("preaggregator", name) for name in configs.steps(config)}
    base = configs.base_of(config)
    of_base = {} if base is None else {"base": of("attack", base)}
    of_rule = {} if aggregator is not None else of("aggregator", config.aggregator.name)
    client = config.client
    numbers: Any = Point(
        key=jax.random.key(config.seed),
        malicious=jnp.asarray(malicious),
        assumed_malicious=jnp.asarray(_assumed(config)),
        sgd=SGD(client.learning_rate, client.momentum, client.learning_rate_decay, client.clip_norm),
        attack={} if attack is not None else {**of("attack", config.attack.name), **of_base},
        aggregator={"steps": of_steps, "rule": of_rule},
        participating=(of_a_round if malicious.any() else 0) if config.participation == "fixed" else (),
    )

    kinds = {float: jnp.float32, int: jnp.int32}  # whether or not JAX is told to use 64 bits
    return jax.tree.map(lambda x: jnp.asarray(x, kinds.get(type(x))), numbers)


def _root(config: ConfigDict, dataset: Dataset) -> jax.Array:
    """The training examples that the server has too, drawn at random from all: int32 `(root_examples,)`."""
    total = len(dataset.train.labels)
    check_number("config.root_examples", config.root_examples, high=total)
    drawn = np.random.default_rng([config.seed, 1]).choice(total, config.root_examples, replace=False)
    return jnp.asarray(drawn, jnp.int32)


def _numbers(config: ConfigDict, kind: str, name: str, model: Model, dataset: Dataset) -> dict[str, Any]:
    """The numbers of a method, a sparsity level as the number of entries that are kept.

    That is an integer computed in double precision, see `aggregators.keep_top_k`. The value of a trigger that is left open
    is one of the images, see `attacks.trigger_value`.
    """
    numbers, _ = methods.split(kind, name, configs.parameters(config, kind, name))
    if name in aggregators.NUM_KEPT:
        variables = jax.eval_shape(model.init, jax.random.key(0))
        seen = {"params": variables["params"]} if _statistics_apart(config) else variables
        level = numbers.pop("sparsity_level")
        numbers.setdefault("num_kept", aggregators.NUM_KEPT[name](seen, level))
        most = aggregators.NUM_KEPT[name](seen, 0.0)
        check_number(f"config.{configs.GROUPS[kind]}.{name}.num_kept", numbers["num_kept"], high=most)
    if kind == "attack" and name in attacks.BACKDOORS:
        check_number(f"config.attack.{name}.target", numbers["target"], high=dataset.num_classes - 1)
        numbers.setdefault("value", attacks.trigger_value(dataset.train.inputs))
    return numbers


def _assumed(config: ConfigDict) -> int:
    """How many clients of a round the server takes for malicious."""
    given = config.aggregator.assumed_malicious
    return _share(config.attack_ratio, config.clients_per_round) if given is None else given


def _share(ratio: float, n: int) -> int:
    """`floor(ratio * n)`, not thrown off by 0.29 * 100 = 28.999999999999996."""
    return int(ratio * n + 1e-9)
