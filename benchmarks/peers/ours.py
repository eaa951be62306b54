"""The round in lasa_jax: the compiled block of `python -m lasa_jax.main`, of one round, with a device for each core."""

import dataclasses

import jax
import jax.numpy as jnp

from benchmarks.peers import given
from lasa_jax import build
from lasa_jax import config as configs
from lasa_jax.federated.evaluation import evaluate
from lasa_jax.main import use_all_cores

NEVER = 1_000_000  # rounds between evaluations


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
    states, points, data = placed.states, placed.points, placed.data
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
