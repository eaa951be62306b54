"""The round in lasa_jax: the compiled block of `python -m lasa_jax.main`, of one round, with a device for each core."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers import given
from lasa_jax import build
from lasa_jax import config as configs
from lasa_jax.federated.evaluation import evaluate
from lasa_jax.main import use_all_cores

NEVER = 1_000_000  # rounds between evaluations


def first_params(like: Any) -> Any:
    """The weights that all begin with in our layout, channels last and inputs first; placed as `like`, with a runs axis."""
    weights = given.first_weights()
    conv = lambda name: weights[name].transpose(2, 3, 1, 0)  # noqa: E731
    flat = weights["dense1.weight"].reshape(512, 64, 7, 7).transpose(2, 3, 1, 0).reshape(-1, 512)
    kernels = {"conv1": conv("conv1.weight"), "conv2": conv("conv2.weight"), "dense1": flat}
    kernels |= {"dense2": weights["dense2.weight"].T}
    params = {name: {"kernel": kernel, "bias": weights[f"{name}.bias"]} for name, kernel in kernels.items()}
    return jax.tree.map(lambda old, new: jax.device_put(new[None], old.sharding), like, params)


def main() -> None:
    """Prints the line of JSON."""
    work = given.parse()
    use_all_cores(min(work.clients, work.workers))
    config = configs.paper("mnist")
    config.update_from_flattened_dict(
        {
            "dataset": str(work.data),
            "partition.name": "natural",
            "num_clients": None,
            "clients_per_round": work.clients,
            "client.epochs": 1,
            "client.batch_size": work.batch,
            "client.learning_rate": given.LEARNING_RATE,
            "client.learning_rate_decay": 1.0,
            "client.momentum": 0.0,
            "aggregator.name": "fedavg",
            "attack.name": "none",
        }
    )
    placed = build.simulation([configs.resolve(config)])
    simulation = dataclasses.replace(placed.simulation, rounds=NEVER, eval_every=NEVER, block_rounds=1)
    points, data = placed.points, placed.data
    variables = placed.states.variables
    states = placed.states._replace(variables={**variables, "params": first_params(variables["params"])})
    executable, _ = simulation.compile(states, points, data)

    @jax.jit
    def tested(states: object) -> jax.Array:
        state = jax.tree.map(lambda x: x[0], states)
        return evaluate(simulation.program, state, data.test, simulation.eval_batch_size)[0]

    with jax.set_mesh(simulation.mesh):
        before = float(tested(states))
        clock = given.Clock()
        clock.note()
        for index in range(given.WARM_UP + work.rounds):
            states, _ = jax.block_until_ready(executable(states, points, data, jnp.int32(index)))
            clock.note()
        after = float(tested(states))
    given.report(work, clock, before, after, ["lasa_jax", "jax"])


if __name__ == "__main__":
    main()
