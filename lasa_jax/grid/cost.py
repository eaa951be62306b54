"""What a run costs, from shapes alone: its memory, its work in a round, and how many runs a machine takes at once."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from lasa_jax import build, methods, ops
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.federated import cards, memory
from lasa_jax.federated.cards import Card
from lasa_jax.federated.evaluation import examples_at_once
from lasa_jax.grid import work
from lasa_jax.grid.work import Work

# A rule and an attack are not traced, which takes seconds for each of them; these are LASA's and ByzMean's on an H100.
_READINGS = 15  # of the stack of updates
_LAUNCHES = 100
_HIDDEN = 2  # a batch grows until its work takes so many times as long as launching its kernels
_CPU_CALL = 1e-5  # seconds of a small operation on a CPU, from rounds of the digits
_COMPILING = {"cpu": 10.0, "gpu": 90.0, "tpu": 90.0}  # seconds of a program, as long as none was measured


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run costs.

    Attributes:
      data: bytes of the examples.
      run: bytes of one run beside them.
      round: work of one round, evaluation in its share.
      precision: of its products.
    """

    data: int
    run: int
    round: Work
    precision: str

    def seconds(self, card: Card, runs: int = 1) -> float:
        """Of a round of one run, where so many go together and share the launches."""
        return self.round.together(runs).seconds(card, self.precision) / runs


_costs: dict[tuple[object, ...], Cost] = {}  # of this process, by what a run's cost depends on


def of(config: ConfigDict, limit: int | None = None) -> Cost:
    """What one run costs on a device of the platform that is compiled for, from shapes alone.

    Args:
      config: resolved.
      limit: bytes that a program may take of a device; as `cards.memory` says of the first one if None.
    """
    limit = cards.memory(jax.devices()[0]) if limit is None else limit
    key = (*configs.cost_key(config), *_methods_key(config), ops.platform(), limit)
    if key not in _costs:
        _costs[key] = _count(config, limit)
    return _costs[key]


def _methods_key(config: ConfigDict) -> list[object]:
    """What two configs share if their methods keep as much, are told as much and are tested as often.

    Most methods keep nothing or a few models: what they keep of a small update says how many. Those that remember each
    client, and those of a user, which may ask for more than that, are named with their parameters.
    """
    chosen, attack = configs.chosen(config), _attack(config)
    of_their_own = [
        f"{name} {sorted(configs.parameters(config, kind, name).items())}"
        for kind, names in chosen.items()
        for name in names
        if methods.is_path(name) or methods.remembers_clients(kind, name)
    ]
    found: list[object] = [attack.trigger is not None, *of_their_own]
    if not any(map(methods.is_path, chosen["attack"])):
        found += _kept(attack)
    rule = config.aggregator.name
    if not (methods.is_path(rule) or methods.remembers_clients("aggregator", rule)):
        found += _kept(methods.create("aggregator", rule, configs.parameters(config, "aggregator", rule)))
    return found


def _kept(method: Attack | Aggregator) -> list[object]:
    """The sizes of what a method keeps of a small update, and what it is told that somebody has to keep."""
    state = jax.eval_shape(method.init, {"small": jax.ShapeDtypeStruct((1000,), jnp.float32)})
    sizes = [x.size * x.dtype.itemsize for x in jax.tree.leaves(state)]
    return [*sizes, *sorted(method.needs & {"last_update", "server_update"})]


def _attack(config: ConfigDict) -> Attack:
    """The attack of a config, for what its parameters say of it."""
    name, base = config.attack.name, configs.base_of(config)
    given = configs.parameters(config, "attack", name)
    if base is not None:
        given["base"] = methods.create("attack", base, configs.parameters(config, "attack", base))
    return methods.create("attack", name, given)


def _count(config: ConfigDict, limit: int) -> Cost:
    _, dataset, shares, program, point = build.prepare(config)
    model, training = program.local_training.model, program.local_training
    state = jax.eval_shape(program.init, point)
    found = memory.footprint(program, memory.remembered(state), memory.carried(state, point))
    examples, partition = sum(x.nbytes for x in (*dataset.train, *dataset.test)), sum(x.nbytes for x in shares)
    at_once = memory.estimated_at_once(program, found, limit, examples=examples, partition=partition)
    clients = program.clients_per_round
    needs = found.of(rows=clients, examples=0, partition=partition, at_once=at_once)

    variables = jax.eval_shape(model.init, jax.random.key(0))

    def batch(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *dataset.example.shape), dataset.example.dtype)

    def forward(variables: Any, inputs: jax.Array) -> jax.Array:
        return model.apply(variables, inputs)[0]

    def step(variables: Any, inputs: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            seen = jnp.ones(training.batch_size, bool)
            rest = {**variables, "params": params}
            return jnp.sum(model.apply(rest, inputs, train=True, key=jax.random.key(0), mask=seen)[0])

        return jax.grad(loss)(variables["params"])

    steps = int(training.epochs) * float(np.mean(np.ceil(np.asarray(shares.sizes) / training.batch_size)))
    together = (variables, batch(training.batch_size))
    if at_once > 1:
        together = jax.tree.map(lambda x: jax.ShapeDtypeStruct((at_once, *x.shape), x.dtype), together)
    each = work.of(jax.vmap(step) if at_once > 1 else step, *together)
    # The optimiser reads and writes weights, velocities and gradients.
    each = each.plus(Work(5 * at_once * found.model, 0, len(jax.tree.leaves(variables))))
    trained = each.times(steps * clients / at_once)
    tested_at_once = config.eval_batch_size or examples_at_once(program, variables, dataset.test)
    tested = work.of(forward, variables, batch(tested_at_once)).times(-(-len(dataset.test.labels) // tested_at_once))
    tested = tested.times(1 if _attack(config).trigger is None else 2)  # once with the trigger
    served = Work(_READINGS * clients * found.model, 0, _LAUNCHES)
    whole = trained.plus(served).plus(tested.times(1 / config.eval_every))
    if program.measures_clients:  # once, at the end
        own = len(dataset.train.labels) / len(dataset.test.labels)
        whole = whole.plus(tested.times(own / config.rounds))
    return Cost(examples, needs, whole, training.precision)


def fitting(
    config: ConfigDict, count: int, *, devices: Sequence[jax.Device] | None = None, limit: int | None = None
) -> int:
    """Runs in a batch: one on a CPU; else as many as the memory holds, but no more than keep the device at work.

    Small kernels take as long to launch as to run, and runs that go together share the launches. Once their work takes
    twice as long as the launches a larger batch gains little. It is a whole number for each row of the mesh.

    Args:
      config: of one of them.
      count: how many runs the program has.
      devices: all of them if None.
      limit: bytes that a program may take of a device; as `cards.memory` says if None.
    """
    devices = jax.devices() if devices is None else devices
    if devices[0].platform == "cpu":
        return 1
    limit = cards.memory(devices[0]) if limit is None else limit
    card = cards.of(devices[0])
    with ops.compiling_for(devices[0].platform):
        one = of(config, limit)
    held = int((0.8 * limit - one.data) // one.run)
    useful = math.ceil(_HIDDEN * one.round.launches * card.launch / one.round.busy(card, one.precision))
    rows = max(rows for rows in range(1, len(devices) + 1) if len(devices) % rows == 0 and rows <= max(1, count))
    return rows * max(1, min(held, useful, -(-count // rows)))


def threads(config: ConfigDict) -> int:
    """Batches to run side by side: on one CPU device as many as there are cores and half the memory holds; else 1."""
    if ops.platform() != "cpu" or jax.device_count() > 1:
        return 1
    one = of(config)
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int((half - one.data) // one.run)))


def compiling() -> float:
    """Seconds that a program takes to compile, about, where none was measured."""
    return _COMPILING[ops.platform()]


def card_here() -> Card:
    """The figures of this process's devices together; those of a CPU are measured now."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        one = cards.of(device)
        count = jax.device_count()
        products = {name: count * rate for name, rate in one.products.items()}
        return Card(count * one.memory, count * one.bandwidth, products, one.launch)
    square, large = jnp.ones((512, 512)), [jnp.ones(2**22)]
    product, grow = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1, donate_argnums=0)

    def move() -> jax.Array:
        large[0] = grow(large[0])  # in place: fresh pages would be what is measured
        return large[0]

    operations = 2 * 512**3 / _fastest(lambda: product(square))
    bandwidth = 2 * large[0].nbytes / _fastest(move)
    products = {"float32": operations, "tf32": operations, "bfloat16": operations / 2, "float64": operations / 2}
    return Card(cards.memory(device), bandwidth, products, _CPU_CALL)


def _fastest(run: Callable[[], jax.Array]) -> float:
    """Seconds of the fastest of three calls after the first, which compiles."""
    jax.block_until_ready(run())
    best = math.inf
    for _ in range(3):
        began = time.perf_counter()
        jax.block_until_ready(run())
        best = min(best, time.perf_counter() - began)
    return best
