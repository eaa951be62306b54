"""What a run costs, from shapes alone: its memory, its operations, and how many runs a machine takes at once."""

import dataclasses
import math
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from lasa_jax import build
from lasa_jax import config as configs


@dataclasses.dataclass(frozen=True)
class Cost:
    """data: bytes of the examples. run: bytes of one run beside them. operations: floating-point, of one run."""

    data: int
    run: int
    operations: float


_costs: dict[tuple[str, ...], Cost] = {}  # of this process, by what a run's cost depends on


def of(config: ConfigDict) -> Cost:
    """What one run costs, from shapes alone."""
    key = configs.cost_key(config)
    if key not in _costs:
        _costs[key] = _count(config)
    return _costs[key]


def _count(config: ConfigDict) -> Cost:
    _, dataset, shares, program, _ = build.prepare(config)
    model, training = program.local_training.model, program.local_training
    variables = jax.eval_shape(model.init, jax.random.key(0))
    model_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(variables))
    batch = jax.ShapeDtypeStruct((training.batch_size, *dataset.example.shape), dataset.example.dtype)

    def loss(variables: Any, inputs: jax.Array) -> jax.Array:
        return jnp.sum(model.apply(variables, inputs)[0])

    def step(variables: Any, inputs: jax.Array) -> Any:
        return jax.grad(lambda params: loss({**variables, "params": params}, inputs))(variables["params"])

    analysis = jax.jit(step).lower(variables, batch).cost_analysis() or {}
    a_step = float(analysis.get("flops", 0.0))
    steps = training.epochs * float(jnp.mean(jnp.ceil(jnp.asarray(shares.sizes) / training.batch_size)))
    evaluations = math.ceil(config.rounds / config.eval_every) * len(dataset.test.labels) / training.batch_size / 3
    operations = a_step * (config.rounds * config.clients_per_round * steps + evaluations)
    at_once = config.clients_per_round if config.client_chunk is None else config.client_chunk
    at_once = 1 if jax.default_backend() == "cpu" and config.client_chunk is None else at_once
    # What backpropagation keeps of one step, an upper bound: XLA may keep less.
    kept = jax.eval_shape(lambda p, x: jax.vjp(lambda p: loss(p, x), p)[1], variables, batch)
    kept_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
    owned = (
        sum(x.nbytes for x in shares) + model_bytes * (config.clients_per_round + at_once + 3) + kept_bytes * at_once
    )
    return Cost(sum(x.nbytes for x in (*dataset.train, *dataset.test)), owned, operations)


def fitting(config: ConfigDict, count: int) -> int:
    """Runs in a batch: one on a CPU; else what 80 % of the devices' memory hold, a whole number for each row of the mesh.

    Args:
      config: of one of them.
      count: how many runs the program has.
    """
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return 1
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    one = of(config)
    on_a_device = max(1, int((0.8 * limit - one.data) // one.run))
    rows = max(rows for rows in range(1, len(devices) + 1) if len(devices) % rows == 0 and rows <= max(1, count))
    return rows * min(on_a_device, -(-count // rows))


def threads(config: ConfigDict) -> int:
    """Batches to run side by side: on one CPU device as many as there are cores and half the memory holds; else 1."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 1
    one = of(config)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int((memory - one.data) // one.run)))


def operations_a_second() -> float:
    """Of a float32 matrix product of moderate size, the fastest of three."""
    x = jnp.ones((512, 512))
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(product(x))
        best = min(best, time.perf_counter() - began)
    return 2 * 512**3 / best
