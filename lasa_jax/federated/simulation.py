"""Blocks of whole rounds as one compiled program, for one run or many that differ in numbers only."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lasa_jax import ops
from lasa_jax.data import Examples, FederatedDataset
from lasa_jax.federated import cards, memory
from lasa_jax.federated.evaluation import Evaluation, evaluate
from lasa_jax.federated.fairness import worst_tenth
from lasa_jax.federated.round import one_round
from lasa_jax.federated.types import Point, Program, RoundMetrics, State


class BlockMetrics(NamedTuple):
    """Metrics of a block, leaves `(runs, block_rounds, ...)`; entries of rounds beyond the last mean nothing.

    Attributes:
      rounds: as each round reported.
      test: of the rounds that were evaluated; those of the others mean nothing.
      worst_tenth: see `fairness.worst_tenth`, of the last round; None where `Program.measures_clients` is not set.
    """

    rounds: RoundMetrics
    test: Evaluation
    worst_tenth: jax.Array | None = None


def is_evaluated(index: int | jax.Array, eval_every: int, rounds: int) -> Any:
    """Whether the model is evaluated after a round, counted from 1; that of the last round always is."""
    return (index % eval_every == 0) | (index == rounds)


def make_mesh(devices: Sequence[jax.Device] | None = None, *, runs: int = 1) -> Mesh:
    """A mesh with axes `runs` and `clients`.

    Args:
      devices: all devices if None.
      runs: devices along the `runs` axis; the others share the clients of each run.

    Raises:
      ValueError: if `runs` does not divide the number of devices.
    """
    devices = list(jax.devices()) if devices is None else list(devices)
    if len(devices) % runs:
        raise ValueError(f"{len(devices)} devices do not divide into {runs} rows of a mesh")
    shape = (runs, len(devices) // runs)
    return jax.make_mesh(shape, (ops.RUNS, ops.CLIENTS), axis_types=(AxisType.Auto,) * 2, devices=devices)


def _put(tree: Any, shardings: Any) -> Any:
    """Arrays that this process holds whole, each laid out as its sharding says."""
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(put, tree, shardings)


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def compiler_options(deterministic: bool) -> dict[str, str | bool] | None:
    """What the compiler is told beside the program, for the platform that is compiled for.

    On a GPU several kernels add in an order that differs from time to time, and the compiler chooses kernels by timing them.
    `deterministic` leaves out the former and does not do the latter. A CPU and a TPU have neither.
    """
    if not deterministic or ops.platform() != "gpu":
        return None
    return {"xla_gpu_deterministic_ops": True, "xla_gpu_exclude_nondeterministic_ops": True}


@dataclasses.dataclass(frozen=True, eq=False)
class Simulation:
    """Runs of one program on a mesh. Everything has a leading `runs` axis; a single run is a grid of one.

    Attributes:
      program: what is compiled in.
      rounds: of a whole run.
      eval_every: rounds between evaluations; the last round is always evaluated.
      block_rounds: rounds of one dispatch.
      eval_batch_size: test examples at a time; None: see `evaluation.examples_at_once`.
      mesh: see `make_mesh`.
      deterministic: see `compiler_options`.
      memory_limit: bytes that a program may take of each device; as `cards.memory` says if None.
    """

    program: Program
    rounds: int
    eval_every: int
    block_rounds: int
    eval_batch_size: int | None
    mesh: Mesh
    deterministic: bool = False
    memory_limit: int | None = None

    def evaluated_rounds(self) -> list[int]:
        """The rounds after which the model is evaluated, counted from 1."""
        return [index for index in range(1, self.rounds + 1) if is_evaluated(index, self.eval_every, self.rounds)]

    def init(self, points: Point) -> State:
        """States before the first round, leaves `(runs, ...)`, on one device of this process."""
        return jax.jit(jax.vmap(self.program.init))(points)

    def init_apart(self, points: Point) -> State:
        """The same on the devices where they will lie, for what is remembered by client and no device could hold alone."""

        def init(points: Point) -> State:
            return ops.padded(jax.vmap(self.program.init)(points), 1, self.mesh.shape[ops.CLIENTS])

        return jax.jit(init, out_shardings=self._owned(jax.eval_shape(init, points)))(points)

    def block(
        self, states: State, points: Point, data: FederatedDataset, start: jax.Array
    ) -> tuple[State, BlockMetrics]:
        """Rounds `start + 1 .. start + block_rounds` of every run; rounds beyond the last change nothing.

        A pure function, to be traced under the mesh; `compile` makes the executable.

        Args:
          states: leaves `(runs, ...)`.
          points: leaves `(runs, ...)`.
          data: examples without a runs axis, the partition with one.
          start: rounds already done.

        Returns:
          The states after the block, and `BlockMetrics`.
        """

        runs = 1 if ops.one_at_a_time() else jax.tree.leaves(states)[0].shape[0] // self.mesh.shape[ops.RUNS]

        def tested(state: State, point: Point, test: Examples) -> Evaluation:
            batch_size = self.eval_batch_size
            return evaluate(self.program, state, test, batch_size, runs=runs, attack=point.attack)

        def served(state: State, point: Point, data: FederatedDataset) -> jax.Array:
            return worst_tenth(self.program, state, point, data, self.eval_batch_size, runs=runs)

        def one_run(
            state: State, point: Point, partition: Any, train: Examples, test: Examples, start: jax.Array
        ) -> tuple[State, BlockMetrics]:
            run_data = FederatedDataset(train, test, partition)
            # No NaN, which `jax_debug_nans` would take for a failure.
            shapes = jax.eval_shape(tested, state, point, test)
            untested = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            def step(state: State, index: jax.Array) -> tuple[State, BlockMetrics]:
                state, metrics = one_round(self.program, state, point, run_data, index)
                due = is_evaluated(index, self.eval_every, self.rounds)
                return state, BlockMetrics(metrics, lax.cond(due, lambda: tested(state, point, test), lambda: untested))

            def step_with_clients(state: State, index: jax.Array) -> tuple[State, BlockMetrics]:
                state, metrics = step(state, index)
                if self.program.measures_clients:
                    measured, nothing = lambda: served(state, point, run_data), lambda: jnp.float32(0)
                    metrics = metrics._replace(worst_tenth=lax.cond(index == self.rounds, measured, nothing))
                return state, metrics

            def step_or_skip(state: State, index: jax.Array) -> tuple[State, BlockMetrics]:
                shapes = jax.eval_shape(step_with_clients, state, index)[1]
                nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
                skip = lambda state, _: (state, nothing)  # noqa: E731
                return lax.cond(index <= self.rounds, step_with_clients, skip, state, index)

            return lax.scan(step_or_skip, state, start + 1 + jnp.arange(self.block_rounds, dtype=jnp.int32))

        return self._over_runs(one_run)((states, points, data.partition), (data.train, data.test, start))

    def compile(self, states: State, points: Point, data: FederatedDataset) -> tuple[jax.stages.Compiled, float]:
        """The executable of `block`, with the states donated, and the seconds it took to trace and compile.

        Where `client_chunk` is open on an accelerator, as many clients train at a time as fit its memory. Shapes with a
        sharding do in place of arrays: a mesh of devices that are only described can be compiled for.

        Raises:
          DoesNotFit: one line with the numbers, if the program takes more memory than a device has.
        """
        began = time.perf_counter()
        device = self._device()
        limit = self._limit(device)
        owned = NamedSharding(self.mesh, PartitionSpec(ops.RUNS))
        start = jax.ShapeDtypeStruct((), jnp.int32)  # an array would be put on the mesh's devices

        def with_chunk(chunk: int | None) -> jax.stages.Compiled:
            made = dataclasses.replace(self, program=dataclasses.replace(self.program, client_chunk=chunk))
            jitted = jax.jit(made.block, donate_argnums=0, out_shardings=(self._owned(states), owned))
            options = compiler_options(self.deterministic)
            return jitted.lower(states, points, data, start).compile(compiler_options=options)

        with ops.compiling_for(device.platform):
            runs = 1 if ops.one_at_a_time() else len(points.assumed_malicious) // self.mesh.shape[ops.RUNS]
            chunk = self._chunk(states, points, data, limit, runs)
            with jax.set_mesh(self.mesh):
                executable = memory.compile_to_fit(
                    with_chunk, chunk, limit, self.program, runs=runs, device=device.device_kind
                )
        return executable, time.perf_counter() - began

    def _kept_apart(self, node: Any) -> Any:
        """What is remembered by client, each device its part; anything else as it is."""
        if not ops.is_by_client(node):
            return node
        return dataclasses.replace(node, rows=lax.with_sharding_constraint(node.rows, PartitionSpec(None, ops.CLIENTS)))

    def remembered(self, points: Point) -> int:
        """Bytes on each device of what rule and attack remember of each client of the population, before it is made.

        Args:
          points: numbers of the runs, leaves `(runs, ...)`.

        Raises:
          DoesNotFit: if that is too much, which takes no compiler to know.
        """
        states = jax.eval_shape(jax.vmap(self.program.init), points)
        runs, shards = (self.mesh.shape[axis] for axis in (ops.RUNS, ops.CLIENTS))
        remembered = memory.remembered(states, shards, axis=1) // runs
        if remembered:
            device = self._device()
            memory.check_remembered(remembered, self.program.num_clients, self._limit(device), device.device_kind)
        return remembered

    def _device(self) -> jax.Device:
        """A device of the mesh, of this process where it has one."""
        devices = list(self.mesh.devices.flat)
        return next((one for one in devices if one.process_index == jax.process_index()), devices[0])

    def _limit(self, device: jax.Device) -> int:
        return cards.memory(device) if self.memory_limit is None else self.memory_limit

    def _chunk(self, states: State, points: Point, data: FederatedDataset, limit: int, runs: int) -> int | None:
        """Clients to train at a time, as estimated; as set where it is, or where they train one after another anyway."""
        if self.program.client_chunk is not None or ops.one_at_a_time():
            return self.program.client_chunk
        examples, partition = (
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
            for tree in ((data.train, data.test), data.partition)
        )
        count = len(data.partition.sizes)
        by_client = memory.remembered(states, self.mesh.shape[ops.CLIENTS], axis=1) // count
        # Not under the mesh: devices that are only described hold no constant.
        found = memory.footprint(self.program, by_client, memory.carried(states, points, count))
        with jax.set_mesh(self.mesh):
            return memory.estimated_at_once(
                self.program,
                found,
                limit,
                examples=examples,
                partition=partition // count,
                runs=runs,
            )

    def place(self, states: State, points: Point, data: FederatedDataset) -> tuple[State, Point, FederatedDataset]:
        """Puts what the runs own along the `runs` axis of the mesh, and the examples on every device.

        Where the mesh spans several processes, each has the same arrays and puts its own part on its own devices.
        """
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        examples = (data.train, data.test)
        train, test = _put(examples, jax.tree.map(lambda _: everywhere, examples))
        states, points, partition = self.place_runs((states, points, data.partition))
        return states, points, FederatedDataset(train, test, partition)

    def place_runs(self, owned: Any) -> Any:
        """Puts what the runs own, leaves `(runs, ...)`, along the `runs` axis of the mesh; memory by client along both."""
        owned = ops.padded(owned, 1, self.mesh.shape[ops.CLIENTS])
        return _put(owned, self._owned(owned))

    def _owned(self, owned: Any) -> Any:
        """The sharding of each array that the runs own."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), ops.specs(owned, ops.RUNS), is_leaf=_is_spec)

    def _over_runs(self, fn: Callable[..., Any]) -> Callable[[tuple, tuple], Any]:
        """Maps `fn(*owned, *shared)` over the runs axis of what is owned, each row of the mesh its own runs.

        Nothing crosses the rows: inside of the `shard_map` no collective has their axis. Devices of a row share the clients
        of its runs, by the primitives of `ops`. Runs of one row follow one another on a CPU and go together on an
        accelerator. A single one is unwrapped, since a batch axis of one would turn branches into both.
        """

        runs, everywhere = PartitionSpec(ops.RUNS), PartitionSpec()
        # To JAX the runs' axis is the compiler's again, though nothing uses it: a function inside of the `shard_map` over
        # clients, nested in this one, may close over arrays from outside only where no axis is manual there.
        auto = self.mesh.abstract_mesh

        def local(owned: tuple, shared: tuple) -> Any:
            with jax.sharding.use_abstract_mesh(auto):
                owned, shared = jax.sharding.reshard((owned, shared), NamedSharding(auto, everywhere))
                return of_a_row(jax.tree.map(self._kept_apart, owned, is_leaf=ops.is_by_client), shared)

        def of_a_row(owned: tuple, shared: tuple) -> Any:
            if jax.tree.leaves(owned)[0].shape[0] == 1:
                result = fn(*jax.tree.map(lambda x: x[0], owned), *shared)
                return jax.tree.map(lambda x: x[None], result)
            if ops.one_at_a_time():
                return lax.map(lambda own: fn(*own, *shared), owned)
            return jax.vmap(lambda *own: fn(*own, *shared))(*owned)

        return jax.shard_map(local, in_specs=(runs, everywhere), out_specs=runs, axis_names={ops.RUNS}, check_vma=False)
