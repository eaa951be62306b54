"""Whether a program fits its device: an estimate from shapes chooses, and the compiled program's own analysis decides."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.errors import InputError
from lasa_jax.federated.types import Point, Program, State

# Of ragged clients of like size that train together: with sizes like FEMNIST's about a tenth of the steps is waste.
_GROUPS = 8
# Of a device's memory, for clients that train: more of them at once gain nothing where one step is work enough.
_FOR_TRAINING = 0.25
_ESTIMATED = 0.8  # of the memory that an estimate may fill


class DoesNotFit(InputError):  # noqa: N818  (it is what its line says)
    """A program needs more memory than its devices have."""


class Footprint(NamedTuple):
    """Bytes that a program needs, from shapes alone.

    Attributes:
      model: one tree of variables.
      client: one client while it trains: model, velocity, gradient and update, and what backpropagation keeps of a step.
      remembered: what rule and attack keep of each client of the population, this device's part of it.
      carried: what a run carries beside the model and that, and what the server trains, see `carried`.
    """

    model: int
    client: int
    remembered: int = 0
    carried: int = 0

    def of(self, *, rows: int, examples: int, partition: int, at_once: int, runs: int = 1) -> int:
        """What one device needs for a block of rounds.

        Args:
          rows: clients of a round on it.
          examples: bytes of all examples, which every device has.
          partition: bytes of the partition of one run.
          at_once: clients that train together.
          runs: that go together on the device.
        """
        stack = rows * self.model
        # The stack of updates beside what trains, and later beside what a rule makes of it, at most once more.
        working = stack + max(stack, at_once * self.client)
        state = 2 * (self.remembered + self.carried)  # a round writes it anew beside the old one
        return examples + runs * (partition + state + 3 * self.model + working)


def footprint(program: Program, by_client: int = 0, beside: int = 0) -> Footprint:
    """The footprint of a program in the forms of the platform that is compiled for.

    Args:
      program: what is compiled in.
      by_client: as `remembered` says.
      beside: as `carried` says.
    """
    training = program.local_training
    model = training.model
    variables = jax.eval_shape(model.init, jax.random.key(0))
    example = training.dataset.example
    inputs = jax.ShapeDtypeStruct((training.batch_size, *example.shape), example.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def kept(variables: Any, inputs: jax.Array, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            seen = jnp.ones(training.batch_size, bool)
            return jnp.sum(model.apply({**variables, "params": params}, inputs, train=True, key=key, mask=seen)[0])

        return jax.vjp(loss, variables["params"])[1]

    one = (variables, inputs, key)
    if ops.one_at_a_time() or program.client_chunk == 1:
        of_a_step = _bytes(jax.eval_shape(kept, *one))
    else:  # clients together take other forms than one alone
        two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), one)
        of_a_step = _bytes(jax.eval_shape(jax.vmap(kept), *two)) // 2
    wide = 2 if training.precision == "float64" else 1
    size = _bytes(variables)
    return Footprint(size, wide * (4 * size + of_a_step), by_client, beside)


def _bytes(tree: Any) -> int:
    return sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    )


def remembered(state: Any, shards: int = 1, axis: int = 0) -> int:
    """Bytes on each of some devices that share the clients of what a state has of each client of the population.

    Args:
      state: of a run, arrays or shapes.
      shards: devices that share the clients.
      axis: of the clients, behind axes of runs.
    """
    nodes = [node for node in jax.tree.leaves(state, is_leaf=ops.is_by_client) if ops.is_by_client(node)]
    return sum(_bytes(node.rows) // node.rows.shape[axis] * -(-node.count // shards) for node in nodes)


def carried(state: State, point: Point, runs: int = 1) -> int:
    """Bytes that a run carries from round to round beside the model and what `remembered` counts.

    Momenta, FLDetector's pairs, the server's last update, masks; and in a round the update that the server trains itself.

    Args:
      state: arrays or shapes.
      point: numbers of the run; it has root data where the server trains.
      runs: whose state and numbers these are, one behind the other.
    """
    nodes = jax.tree.leaves((state.attack, state.aggregator, state.last_update), is_leaf=ops.is_by_client)
    of_server = _bytes(state.variables) if jax.tree.leaves(point.root) else 0
    return (_bytes([node for node in nodes if not ops.is_by_client(node)]) + of_server) // runs


def check_remembered(needs: int, num_clients: int, limit: int, device: str) -> None:
    """Raises DoesNotFit if a device cannot hold its part of what rule and attack remember of each client.

    Args:
      needs: bytes on each device.
      num_clients: size of the population.
      limit: bytes that a program may take.
      device: its kind, for the error.
    """
    if needs > limit:
        raise DoesNotFit(
            f"config.num_clients = {num_clients}: what the rule or the attack remembers of each client takes "
            f"{needs / 1e9:.2f} GB of each device, and a program may take {limit / 1e9:.2f} GB of {device}; allowed is what "
            "fits: fewer clients, a smaller model, fewer layers where the rule has features=..., or more devices"
        )


def rows_on_device(program: Program) -> int:
    """Clients of a round on each device of the mesh."""
    return -(-program.clients_per_round // ops.num_shards())


def most_at_once(program: Program) -> int:
    """Clients that train together on a device where memory is no question: as set, else all, an eighth where ragged."""
    rows = rows_on_device(program)
    if program.client_chunk is not None:
        return min(rows, program.client_chunk)
    if ops.one_at_a_time():
        return 1
    return max(1, -(-program.clients_per_round // (_GROUPS * ops.num_shards()))) if program.ragged else rows


def estimated_at_once(
    program: Program, found: Footprint, limit: int, *, examples: int, partition: int, runs: int = 1
) -> int:
    """Clients that train together on a device of so much memory, as estimated: as set, or one on a CPU, else what fits.

    Args:
      program: what is compiled in.
      found: its `footprint`.
      limit: bytes that the program may take.
      examples, partition, runs: as in `Footprint.of`.
    """
    most = most_at_once(program)
    if program.client_chunk is not None or most == 1:
        return most
    rows = rows_on_device(program)
    beside = (
        found.of(rows=rows, examples=examples, partition=partition, at_once=0, runs=runs) - runs * rows * found.model
    )
    free = min(_FOR_TRAINING * limit, _ESTIMATED * limit - beside)
    return evenly(rows, max(1, min(most, int(free // (runs * found.client)))))


def evenly(rows: int, most: int) -> int:
    """Rows in a group: a divisor of `rows` if one is near, since what is left over is compiled a second time."""
    divisor = max(size for size in range(1, min(rows, most) + 1) if rows % size == 0)
    return divisor if 3 * divisor >= most else -(-rows // -(-rows // most))


def needed(executable: jax.stages.Compiled) -> int:
    """Bytes of one device that a compiled program takes; 0 where the compiler does not say."""
    told = executable.memory_analysis()
    if told is None:
        return 0
    whole = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes  # donated: once
    return whole + told.temp_size_in_bytes + told.generated_code_size_in_bytes


def compile_to_fit(
    compile_with: Callable[[int | None], jax.stages.Compiled],
    chunk: int | None,
    limit: int,
    program: Program,
    *,
    runs: int,
    device: str,
) -> jax.stages.Compiled:
    """Compiles with so many clients at a time, and with half as many or fewer until the program fits.

    Args:
      compile_with: compiles with a chunk of clients.
      chunk: to begin with; None where they train one after another anyway.
      limit: bytes that the program may take.
      program: what is compiled in; the chunk that a user has chosen is the only one.
      runs: that go together on a device, for the error.
      device: its kind, for the error.

    Raises:
      DoesNotFit: if one client at a time, or what the user has chosen, is too much.
    """
    is_set = program.client_chunk is not None
    while True:
        try:
            executable = compile_with(chunk)
            needs = needed(executable)
            if needs <= limit:
                return executable
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            needs = _told(str(error)) or limit + 1
        if is_set or chunk in (None, 1):
            raise DoesNotFit(_refusal(chunk, needs, limit, runs=runs, is_set=is_set, device=device))
        assert chunk is not None
        chunk = evenly(rows_on_device(program), max(1, min(chunk // 2, chunk * limit // needs)))


def _told(error: str) -> int | None:
    """The bytes that a compiler says that a program needs: "Used 19.50G of 15.75G", "temporaries (20.94G) exceeds"."""
    match = re.search(r"(?:[Uu]sed |temporaries \()([\d.]+)([KMGT])", error)
    return int(float(match[1]) * 1024 ** (1 + "KMGT".index(match[2]))) if match else None


def _refusal(chunk: int | None, needs: int, limit: int, *, runs: int, is_set: bool, device: str) -> str:
    clients = "one client at a time" if chunk in (None, 1) else f"{chunk} clients at a time"
    batch = f" and {runs} runs side by side" if runs > 1 else ""
    less = "fewer, None for what fits, " if is_set and chunk != 1 else ""
    return (
        f"config.client_chunk = {chunk if is_set else None}: {clients}{batch} need {needs / 1e9:.2f} GB on each device, and "
        f"a program may take {limit / 1e9:.2f} GB of {device}; allowed is what fits: {less}a smaller model, "
        f"client.batch_size, eval_batch_size or clients_per_round, or more devices"
    )
