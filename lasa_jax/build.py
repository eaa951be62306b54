"""What a resolved config stands for: the partition, the compiled program, its numbers, and the simulation of them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lasa_jax import aggregators, models
from lasa_jax import config as configs
from lasa_jax.data import Dataset, partition
from lasa_jax.data.partition import Partition
from lasa_jax.errors import InputError, check_number
from lasa_jax.federated import LocalTraining, Point, Program, Simulation
from lasa_jax.federated.client import SGD


def make_program(config: ConfigDict, dataset: Dataset, shares: Partition) -> Program:
    """What a resolved config compiles in; the partition says how many clients there are.

    Raises:
      InputError: if more clients are drawn a round than there are.
    """
    num_clients = len(shares.sizes)
    configs.check_clients_per_round(config.clients_per_round, num_clients)
    rank = models.input_rank(config.model)
    if rank != len(dataset.input_shape):
        raise InputError(
            f"config.model = {config.model!r}: takes {'images' if rank == 3 else 'sequences'}, and an example of "
            f"{config.dataset!r} has the shape {dataset.input_shape}"
        )
    model = models.create(config.model, num_classes=dataset.num_classes, input_shape=dataset.input_shape)
    client = config.client
    return Program(
        local_training=LocalTraining(
            model,
            dataset,
            client.epochs,
            client.batch_size,
            client.decay_every,
            clips_parameters_only=config.batch_stats == "separate",
            precision=client.precision,
        ),
        num_clients=num_clients,
        clients_per_round=config.clients_per_round,
        client_chunk=config.client_chunk,
        ragged=len(np.unique(-(-shares.sizes // client.batch_size))) > 1,
        batch_stats=config.batch_stats,
        attack=(config.attack.name, configs.words(config.attack.parameters)),
        aggregator=(config.aggregator.name, configs.words(config.aggregator.parameters)),
        record_filtering=config.record_filtering,
    )


def make_simulation(config: ConfigDict, dataset: Dataset, shares: Partition, mesh: Mesh) -> Simulation:
    """The simulation of a resolved config; blocks are whole numbers of evaluations."""
    blocks = -(-config.block_rounds // config.eval_every) * config.eval_every
    program = make_program(config, dataset, shares)
    return Simulation(
        program,
        config.rounds,
        config.eval_every,
        min(blocks, config.rounds),
        config.eval_batch_size,
        mesh,
        config.deterministic,
    )


def make_point(config: ConfigDict, program: Program) -> Point:
    """The numbers of one run. Everything random on the host is a function of the seed."""
    order = np.random.default_rng([config.seed, 0]).permutation(program.num_clients)
    malicious = np.zeros(program.num_clients, bool)
    if config.attack.name != "none":  # without attack everybody is benign
        malicious[order[: _share(config.attack_ratio, program.num_clients)]] = True
    assumed = config.aggregator.assumed_malicious
    client = config.client
    aggregator = configs.numbers(config.aggregator.parameters)
    if "sparsity_level" in aggregator:
        # The number of entries that are kept is an integer computed in double precision, see aggregators.keep_top_k.
        num_kept = functools.partial(
            aggregators.NUM_KEPT[config.aggregator.name],
            program.ruled(jax.eval_shape(program.local_training.model.init, jax.random.key(0))),
        )
        aggregator.setdefault("num_kept", num_kept(aggregator.pop("sparsity_level")))
        field = f"config.aggregator.{config.aggregator.name}.num_kept"
        check_number(field, aggregator["num_kept"], high=num_kept(0.0))
    numbers: Any = Point(
        key=jax.random.key(config.seed),
        malicious=jnp.asarray(malicious),
        assumed_malicious=jnp.asarray(
            _share(config.attack_ratio, config.clients_per_round) if assumed is None else assumed
        ),
        sgd=SGD(client.learning_rate, client.momentum, client.learning_rate_decay, client.clip_norm),
        attack=configs.numbers(config.attack.parameters),
        aggregator=aggregator,
    )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if isinstance(x, float) else jnp.asarray(x), numbers)


def make_partition(config: ConfigDict, dataset: Dataset) -> Partition:
    """How a resolved config divides the training examples over clients."""
    return partition.divide(
        config.partition,
        dataset.train.labels,
        dataset.client_ids,
        num_clients=config.num_clients,
        seed=config.seed,
    )


def _share(ratio: float, n: int) -> int:
    """`floor(ratio * n)`, not thrown off by 0.29 * 100 = 28.999999999999996."""
    return int(ratio * n + 1e-9)
