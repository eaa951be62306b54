"""The programs that are compiled: rounds, steps of large models, every rule and attack on 100 updates of the MNIST CNN."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from lasa_jax import aggregators, attacks, build, models, ops
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.data import Dataset, Examples, FederatedDataset, load
from lasa_jax.federated import make_mesh
from lasa_jax.testing import built_in, known

CLIENTS = 100
# Model, shape of an example, classes, clients together, examples of a batch.
STEPS: dict[str, tuple[str, tuple[int, ...], int, int, int]] = {
    "small_cnn": ("small_cnn", (8, 8, 1), 10, 30, 24),
    "cnn": ("cnn", (28, 28, 1), 10, 100, 10),
    "resnet18": ("resnet18", (32, 32, 3), 10, 25, 64),
    "lstm": ("lstm", (80,), 90, 100, 4),
}
# Of the sets that are not read: shape of an image, training and test images, mean, deviation, how images are cropped.
_SETS: dict[str, Any] = {
    "mnist": ((28, 28, 1), 60_000, 10_000, (33.3,), (78.6,), None),
    "cifar10": ((32, 32, 3), 50_000, 10_000, (125.3, 123.0, 113.9), (51.6, 50.8, 51.3), "constant"),
}


class Made(NamedTuple):
    """What a program was compiled to.

    Attributes:
      compiled: the executable for devices that are described.
      stack: bytes of the stack of updates, or of the models that train, on one device.
    """

    compiled: jax.stages.Compiled
    stack: int


class Program(NamedTuple):
    """A function and the shapes that it is compiled for, to be traced inside `ops.compiling_for`.

    Attributes:
      jitted: the function.
      arguments: shapes with a sharding.
      stack: as in `Made`.
    """

    jitted: Any
    arguments: tuple[Any, ...]
    stack: int


class Item(NamedTuple):
    """A row of the table.

    Attributes:
      devices: how many it is compiled for.
      make: compiles it for these devices.
      dataset: of a block of rounds; it says how many steps a client takes.
      rule: that it has, whose loops were counted.
    """

    devices: int
    make: Callable[[Sequence[jax.Device]], Made]
    dataset: str | None = None
    rule: str | None = None

    def steps(self) -> int | None:
        """Steps of local training of a client in an epoch, None where there is none."""
        if self.dataset is None:
            return None
        config = configs.paper(self.dataset)
        images = len(load("digits").train.labels) if self.dataset == "digits" else _SETS[self.dataset][1]
        return math.ceil(images / config.num_clients / config.client.batch_size)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _shapes(tree: Any, sharding: Any, lead: tuple[int, ...] = ()) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype, sharding=sharding), tree)


def _dataset(name: str) -> Dataset:
    """The digits; for the others arrays of zeros with the shapes of the true set, and labels in turn."""
    if name == "digits":
        return load("digits")
    shape, train, test, mean, std, crop = _SETS[name]

    def examples(count: int) -> Examples:
        return Examples(np.zeros((count, *shape), np.uint8), np.arange(count, dtype=np.int32) % 10)

    return Dataset(name, 10, examples(train), examples(test), mean, std, crop)


def block(name: str, devices: Sequence[jax.Device], *, runs: int = 1, rows: int = 1) -> Made:
    """A block of one round at the paper's settings: LASA against ByzMean, evaluated.

    Args:
      name: of the dataset.
      devices: that are compiled for.
      runs: in the program.
      rows: of the mesh, which share the runs.
    """
    config = configs.paper(name)
    config.update_from_flattened_dict(
        {"fidelity": "official", "attack.name": "byzmean", "block_rounds": 1, "eval_every": 1}
    )
    run = build.prepare(configs.resolve(config), dataset=_dataset(name))
    placed = build.place([run] * runs, make_mesh(jax.devices("cpu")[:1]))
    mesh = Mesh(np.array(devices).reshape(rows, -1), (ops.RUNS, ops.CLIENTS), axis_types=(AxisType.Auto,) * 2)
    simulation = dataclasses.replace(placed.simulation, mesh=mesh)
    owned, everywhere = NamedSharding(mesh, PartitionSpec(ops.RUNS)), NamedSharding(mesh, PartitionSpec())
    data = FederatedDataset(
        _shapes(placed.data.train, everywhere),
        _shapes(placed.data.test, everywhere),
        _shapes(placed.data.partition, owned),
    )
    states, points = _shapes(placed.states, owned), _shapes(placed.points, owned)
    compiled, _ = simulation.compile(states, points, data)
    models_of_all = run.program.clients_per_round * _bytes(placed.states.variables)
    return Made(compiled, models_of_all // len(devices))


def step(
    name: str, shape: tuple[int, ...], classes: int, clients: int, batch: int, place: Any, *, form: str = "auto"
) -> Program:
    """The gradient of one batch of clients together, at training's precision; `form` as `ops.convolving_by` takes it."""
    model = models.create(name, num_classes=classes, input_shape=shape)
    variables = jax.eval_shape(model.init, jax.random.key(0))

    def gradient(variables: Any, inputs: jax.Array, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            seen = jnp.ones(batch, bool)
            logits, _ = model.apply({**variables, "params": params}, inputs, train=True, key=key, mask=seen)
            return jnp.mean(jax.nn.log_softmax(logits)[..., 0])

        with jax.default_matmul_precision("tensorfloat32"), ops.convolving_by(form):
            return jax.grad(loss)(variables["params"])

    stacked = _shapes(variables, place, (clients,))
    inputs = jax.ShapeDtypeStruct((clients, batch, *shape), jnp.float32, sharding=place)
    return Program(jax.jit(jax.vmap(gradient)), (stacked, inputs, _key(place, (clients,))), _bytes(stacked))


def _key(place: Any, lead: tuple[int, ...] = ()) -> Any:
    return _shapes(jax.eval_shape(lambda: jax.random.key(0)), place, lead)


def rule(made: Aggregator, one: Any, place: Any) -> Program:
    """One aggregation by a rule, of 100 updates like `one`."""
    stack, state = _shapes(one, place, (CLIENTS,)), _shapes(jax.eval_shape(made.init, one), place)
    assumed = jax.ShapeDtypeStruct((), jnp.int32, sharding=place)
    present = jax.ShapeDtypeStruct((CLIENTS,), bool, sharding=place)

    context = _shapes(jax.eval_shape(functools.partial(known, made), stack), place)

    def aggregate(updates: Any, state: Any, key: Any, assumed: Any, present: Any, context: Any) -> Any:
        return made.aggregate(updates, state, key=key, num_malicious=assumed, present=present, **context)

    return Program(jax.jit(aggregate), (stack, state, _key(place), assumed, present, context), _bytes(stack))


def attack(made: Attack, one: Any, place: Any) -> Program:
    """One crafting by an attack, which may write over the stack; an adaptive one is given the average as the rule."""
    stack, state = _shapes(one, place, (CLIENTS,)), _shapes(jax.eval_shape(made.init, one), place)
    mask = jax.ShapeDtypeStruct((CLIENTS,), bool, sharding=place)
    average, context = aggregators.fedavg(), _shapes(jax.eval_shape(functools.partial(known, made), stack), place)

    def craft(updates: Any, state: Any, key: Any, malicious: Any, present: Any, context: Any) -> Any:
        def aggregate(sent: Any) -> Any:
            return average.aggregate(sent, (), key=key, num_malicious=CLIENTS // 5, present=present)[0]

        return made.craft(updates, state, malicious, key=key, present=present, aggregate=aggregate, **context)

    return Program(jax.jit(craft, donate_argnums=0), (stack, state, _key(place), mask, mask, context), _bytes(stack))


def update() -> Any:
    """The shapes of one update of the MNIST CNN, 1.66 million entries."""
    model = models.create("cnn", num_classes=10, input_shape=(28, 28, 1))
    return jax.eval_shape(model.init, jax.random.key(0))


def items() -> dict[str, Item]:
    """All programs by name, those of rounds first."""

    def rounds(name: str, devices: int = 1, *, runs: int = 1, rows: int = 1) -> Item:
        return Item(devices, functools.partial(block, name, runs=runs, rows=rows), name, "lasa")

    def alone(make: Callable[[Any], Program], rule: str | None = None) -> Item:
        def compiled(devices: Sequence[jax.Device]) -> Made:
            with ops.compiling_for(devices[0].platform):
                program = make(SingleDeviceSharding(devices[0]))
                return Made(program.jitted.lower(*program.arguments).compile(), program.stack)

        return Item(1, compiled, rule=rule)

    one = update()
    found = {
        "digits": rounds("digits"),
        "digits, 16 runs": rounds("digits", runs=16),
        "mnist": rounds("mnist"),
        "mnist, 4 devices": rounds("mnist", 4),
        "digits, 4 runs, mesh 2 x 2": rounds("digits", 4, runs=4, rows=2),
        "resnet18, step of 25 x 64": alone(functools.partial(step, *STEPS["resnet18"])),
        "resnet18, grouped": alone(functools.partial(step, *STEPS["resnet18"], form="grouped")),
        "lstm, step of 100 x 4": alone(functools.partial(step, *STEPS["lstm"])),
        "cifar10": rounds("cifar10"),
    }
    for name in ("lasa", *(name for name in aggregators.names() if name != "lasa")):
        found[f"rule {name}"] = alone(functools.partial(rule, built_in(name), one), rule=name)
    for name in attacks.names():
        found[f"attack {name}"] = alone(functools.partial(attack, attacks.create(name), one))
    return found
