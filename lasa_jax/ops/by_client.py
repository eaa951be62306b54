"""What is remembered of each client of the population, by its id, and the rows of it that a round needs.

On a mesh it lies on the devices that share the clients of a run, each its part of the ids. Where their number does not
divide the population, rows that nobody reads fill it up; `padded` and `unpadded` are for whoever puts it there or writes it
down.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from lasa_jax.ops.rows import CLIENTS, num_shards, on_each_shard

PyTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByClient:
    """One array of a rule's or an attack's state with a row for each client of the population.

    Attributes:
      rows: `(population, ...)`, or longer; the population has `count` clients.
      count: clients of the population.
    """

    rows: Any
    count: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def zeros(cls, count: int, like: Any) -> "ByClient":
        """A row of zeros, shaped like one array, for each of `count` clients."""
        return cls(jnp.zeros((count, *like.shape), like.dtype), count)


def is_by_client(node: object) -> bool:
    """Whether a node of a state is a `ByClient`, for `jax.tree.map(..., is_leaf=is_by_client)`."""
    return isinstance(node, ByClient)


def padded(state: PyTree, axis: int, shards: int) -> PyTree:
    """A state in which every `ByClient` is filled up with zeros to a multiple of the devices.

    Args:
      state: of a rule or an attack, or a larger tree.
      axis: of the clients, behind axes of runs.
      shards: devices that share the clients.
    """

    def pad(node: Any) -> Any:
        if not is_by_client(node):
            return node
        widths = [(0, 0)] * node.rows.ndim
        widths[axis] = (0, -node.count % shards + node.count - node.rows.shape[axis])
        return node if widths[axis] == (0, 0) else dataclasses.replace(node, rows=jnp.pad(node.rows, widths))

    return jax.tree.map(pad, state, is_leaf=is_by_client)


def unpadded(state: PyTree, axis: int = 0) -> PyTree:
    """The inverse of `padded`."""

    def cut(node: Any) -> Any:
        if not is_by_client(node) or node.rows.shape[axis] == node.count:
            return node
        return dataclasses.replace(node, rows=lax.slice_in_dim(node.rows, 0, node.count, axis=axis))

    return jax.tree.map(cut, state, is_leaf=is_by_client)


def specs(tree: PyTree, runs: str) -> PyTree:
    """The `PartitionSpec` of every leaf: its leading axis over `runs`, clients of a `ByClient` over the devices of a row."""

    def spec(node: Any) -> Any:
        if not is_by_client(node):
            return PartitionSpec(runs)
        return dataclasses.replace(node, rows=PartitionSpec(runs, CLIENTS))

    return jax.tree.map(spec, tree, is_leaf=is_by_client)


def take_clients(memory: PyTree, ids: jax.Array) -> PyTree:
    """The rows of some clients, as a stack: leaves `(n, ...)`, each row on the device of its place.

    Args:
      memory: a pytree of `ByClient`.
      ids: int32 `(n,)`, clients of the population.
    """
    shards = num_shards()

    def local(tables: list[jax.Array], ids: jax.Array) -> list[jax.Array]:
        if shards == 1:
            return [table[ids] for table in tables]
        return [lax.psum_scatter(_held(table, ids), CLIENTS, tiled=True) for table in tables]

    tables, structure = _tables(memory)
    return jax.tree.unflatten(structure, on_each_shard(local, (tables, ids), PartitionSpec(CLIENTS), (True, False)))


def reading_clients(memory: PyTree, ids: jax.Array) -> tuple[PyTree, PyTree, Callable[[PyTree, PyTree], PyTree]]:
    """The rows of some clients for a function of one client at a time, which reads them where they lie.

    Args:
      memory: a pytree of `ByClient`.
      ids: int32 `(n,)`, clients of the population.

    Returns:
      What such a function is given row by row, what is shared by all rows, and `read(mine, shared)`, a row like the memory.
      On one device nothing is copied; over several the rows are brought to their places, a stack as `take_clients` writes.
    """
    if num_shards() > 1:
        return take_clients(memory, ids), (), lambda mine, _: mine
    tables, structure = _tables(memory)
    return ids, tables, lambda at, tables: jax.tree.unflatten(structure, [table[at] for table in tables])


def put_clients(memory: PyTree, ids: jax.Array, which: jax.Array, stack: PyTree) -> PyTree:
    """The memory with the rows of some clients replaced; what the others have is not touched.

    Args:
      memory: a pytree of `ByClient`.
      ids: int32 `(n,)`, clients of the population; those that are marked differ.
      which: bool `(n,)`, the clients whose rows are replaced.
      stack: leaves `(n, ...)`, like the memory.
    """
    shards = num_shards()

    def local(tables: list[jax.Array], rows: list[jax.Array], ids: jax.Array, which: jax.Array) -> list[jax.Array]:
        if shards > 1:
            rows = [lax.all_gather(x, CLIENTS, tiled=True) for x in rows]
        count = tables[0].shape[0]
        at = ids - _first(count)
        at = jnp.where(which & (at >= 0) & (at < count), at, count)  # beyond the end: dropped
        return [t.at[at].set(x.astype(t.dtype), mode="drop") for t, x in zip(tables, rows, strict=True)]

    tables, structure = _tables(memory)
    operands = (tables, jax.tree.leaves(stack), ids, which)
    changed = on_each_shard(local, operands, PartitionSpec(CLIENTS), (True, True, False, False))
    counts = [node.count for node in jax.tree.leaves(memory, is_leaf=is_by_client)]
    return jax.tree.unflatten(structure, [ByClient(x, count) for x, count in zip(changed, counts, strict=True)])


def _tables(memory: PyTree) -> tuple[list[jax.Array], Any]:
    """The arrays of a pytree of `ByClient`, and its structure with an array in place of each."""
    nodes, structure = jax.tree.flatten(memory, is_leaf=is_by_client)
    return [node.rows for node in nodes], structure


def _first(count: int) -> jax.Array:
    """The first id of this device's part, where each has `count` of them."""
    return count * lax.axis_index(CLIENTS).astype(jnp.int32) if num_shards() > 1 else jnp.int32(0)


def _held(table: jax.Array, ids: jax.Array) -> jax.Array:
    """The rows of the clients that this device has, zeros for the others: `(n, ...)`."""
    count = table.shape[0]
    at = ids - _first(count)
    here = ((at >= 0) & (at < count)).reshape((-1,) + (1,) * (table.ndim - 1))
    return jnp.where(here, table[jnp.clip(at, 0, count - 1)], jnp.zeros((), table.dtype))
