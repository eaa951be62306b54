"""Work on stacked client updates row by row: the three primitives through which everything reads and writes a stack.

A *stack* is a pytree whose leaves have a leading client axis `n`. The primitives decide two things in one place:

* **How many rows at a time.** On a CPU one row at a time stays in cache and is faster; an
  accelerator takes all rows at once.
* **On which device.** Under `jax.set_mesh` with a mesh that has an axis `clients`, each device works on its own rows
  inside `jax.shard_map`, so that nothing but results crosses devices. Without such a mesh the same code runs locally.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lasa_jax.errors import InputError
from lasa_jax.ops.fold import joined
from lasa_jax.ops.statistics import root, wide
from lasa_jax.ops.target import platform

CLIENTS = "clients"  # the mesh axis over which the rows of a stack are sharded
RUNS = "runs"  # the mesh axis over which the runs of one program are sharded

PyTree = Any


def num_shards() -> int:
    """Number of devices over which the client axis is sharded where this is traced (1 without a mesh)."""
    return jax.sharding.get_abstract_mesh().shape.get(CLIENTS, 1)


def one_at_a_time() -> bool:
    """True where rows are best taken one after another (a CPU), False where all together (an accelerator)."""
    return platform() == "cpu"


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` with every digit of float32: accelerators round the operands of a plain product to TF32 or bfloat16.

    Both are float32, or float64 if one of them is, see `wide`.
    """
    kind = wide((a, b))
    a, b = a.astype(kind), b.astype(kind)
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


@jax.custom_batching.custom_vmap
def any_run(flag: jax.Array) -> jax.Array:
    """Whether a flag is set in any run of a batch, bool `()`; the flag itself where runs are not batched.

    The condition of a branch that all runs take together: with a condition for each run, `vmap` would compute both branches
    always. A run still has to select by its own flag, so that its result does not depend on its neighbours.
    """
    return flag


@any_run.def_vmap
def _any_run_of_batch(size: int, batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
    return any_run(jnp.any(flag)), False


def everywhere(tree: PyTree) -> PyTree:
    """The same arrays, whole on every device that shares the clients of a run: for what is small, as numbers of the clients.

    What is computed from them is then computed on every device alike. Left open, the compiler would deal them out over the
    devices, and exchange them in each sort, median and sum over clients.

    Args:
      tree: arrays of any shape; given back as they are where the clients lie on one device.
    """
    if num_shards() == 1:
        return tree
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, PartitionSpec()), tree)


def on_each_shard(
    local: Callable[..., PyTree], operands: tuple[PyTree, ...], out_spec: PartitionSpec, sharded: tuple[bool, ...]
) -> PyTree:
    """Runs `local` on each device's own rows of the operands marked `sharded`; directly if nothing is sharded.

    Numbers of the clients, `(n,)`, are whole on every device before and after.
    """
    shards = num_shards()
    if shards == 1:
        return local(*operands)
    for operand, is_sharded in zip(operands, sharded, strict=True):
        for leaf in jax.tree.leaves(operand):
            if is_sharded and leaf.shape[0] % shards:
                raise ValueError(
                    f"{leaf.shape[0]} rows do not divide over {shards} devices: pad the stack with absent rows"
                )
    operands = jax.tree.map(lambda x: everywhere(x) if jnp.ndim(x) == 1 else x, operands)
    in_specs = tuple(PartitionSpec(CLIENTS) if is_sharded else PartitionSpec() for is_sharded in sharded)
    mapped = jax.shard_map(local, in_specs=in_specs, out_specs=out_spec, axis_names={CLIENTS}, check_vma=False)
    result = mapped(*operands)
    return result if out_spec == PartitionSpec() else _numbers_everywhere(result)


def _numbers_everywhere(tree: PyTree) -> PyTree:
    """Brings the leaves `(n,)` to every device, those of one type in one exchange."""
    leaves, structure = jax.tree.flatten(tree)
    numbers = [i for i, x in enumerate(leaves) if x.ndim == 1]
    for dtype in dict.fromkeys(leaves[i].dtype for i in numbers):
        alike = [i for i in numbers if leaves[i].dtype == dtype]
        for i, x in zip(alike, everywhere(jnp.stack([leaves[i] for i in alike])), strict=True):
            leaves[i] = x
    return jax.tree.unflatten(structure, leaves)


def map_rows(
    fn: Callable[..., PyTree],
    *stacks: PyTree,
    shared: tuple[PyTree, ...] = (),
    at_once: int | None = None,
    cost: jax.Array | None = None,
) -> PyTree:
    """`fn(row, ..., *shared)` of every client.

    Args:
      fn: a function of one row of each stack (leaves `(...)`) and of what is shared, returning a pytree.
      *stacks: pytrees with leaves `(n, ...)`.
      shared: pytrees that all clients get whole, on every device. What `fn` closes over is shared too, but JAX lets it
        only be read element by element there.
      at_once: rows computed together; None lets the platform choose (one on a CPU, all on an accelerator).
      cost: `(n,)`, how long each row takes where that differs. Rows of like cost are then computed together, since a loop
        inside `fn` runs as long as the slowest of them needs; the results stay where they were.

    Returns:
      The results, stacked: leaves `(n, ...)`, each row on the device of its client; leaves `(n,)` whole on every device.

    Raises:
      ValueError: if the rows do not divide over the devices of the mesh.
    """

    count = len(stacks)

    def local(*operands: PyTree) -> PyTree:
        stacks, shared, cost = operands[:count], operands[count:-1], operands[-1]
        n = jax.tree.leaves(stacks)[0].shape[0]
        batch = rows_at_once(n, at_once)
        if batch == n:
            return jax.vmap(lambda *rows: fn(*rows, *shared))(*stacks)
        if batch == 1 or cost is None:
            return lax.map(lambda rows: fn(*rows, *shared), stacks, batch_size=None if batch == 1 else batch)
        return _map_groups(lambda rows: fn(*rows, *shared), stacks, jnp.argsort(-cost, stable=True), batch)

    sharded = (True,) * count + (False,) * len(shared) + (True,)
    return on_each_shard(local, (*stacks, *shared, cost), PartitionSpec(CLIENTS), sharded)


def rows_at_once(n: int, at_once: int | None) -> int:
    """How many of `n` rows on a device are computed together."""
    return min(n, (1 if one_at_a_time() else n) if at_once is None else at_once)


def _map_groups(fn: Callable[[PyTree], PyTree], stacks: PyTree, order: jax.Array, batch: int) -> PyTree:
    """`fn` of rows, `batch` neighbours in `order` at a time; every result is written to its own place."""
    n = len(order)
    pick = lambda at: jax.tree.map(lambda x: x[at], stacks)  # noqa: E731
    one = jax.eval_shape(fn, jax.eval_shape(pick, jnp.int32(0)))
    out = jax.tree.map(lambda x: jnp.zeros((n, *x.shape), x.dtype), one)

    def group(index: jax.Array, out: PyTree) -> PyTree:
        # The last group, of the cheapest rows, overlaps the one before: some are computed twice, to the same result.
        members = lax.dynamic_slice(order, (jnp.minimum(index * batch, n - batch),), (batch,))
        return jax.tree.map(lambda x, y: x.at[members].set(y), out, jax.vmap(fn)(pick(members)))

    return lax.fori_loop(0, -(-n // batch), group, out)


def replace_rows(fn: Callable[..., PyTree], stack: PyTree, which: jax.Array, *others: PyTree) -> PyTree:
    """Replaces the rows marked by `which` with `fn(row, ...)`; the other rows are not touched.

    On a CPU only the marked rows are computed, and the stack is updated in place where its buffer is free.

    Args:
      fn: a function of one row of the stack and one row of each of `others`, returning the new row.
      stack: leaves `(n, ...)`.
      which: bool `(n,)`.
      *others: pytrees with leaves `(n, ...)`, given to `fn` row by row.
    """

    def local(stack: PyTree, which: jax.Array, *others: PyTree) -> PyTree:
        def row(i: jax.Array, stack: PyTree) -> PyTree:
            at_i = lambda tree: jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), tree)  # noqa: E731
            new = _row_like(fn(at_i(stack), *(at_i(other) for other in others)), stack)
            return jax.tree.map(lambda x, y: lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), i, 0), stack, new)

        if one_at_a_time():
            order = jnp.argsort(~which, stable=True)
            count = jnp.sum(which, dtype=jnp.int32)
            return lax.fori_loop(0, count, lambda j, stack: row(order[j], stack), stack)
        new = jax.vmap(lambda row, *rest: _row_like(fn(row, *rest), stack))(stack, *others)
        return jax.tree.map(lambda x, y: jnp.where(_column(which, x), y.astype(x.dtype), x), stack, new)

    return on_each_shard(local, (stack, which, *others), PartitionSpec(CLIENTS), (True,) * (2 + len(others)))


def _row_like(row: PyTree, stack: PyTree) -> PyTree:
    """The row, if it is shaped like one of the stack: JAX would write a larger one over its neighbours."""

    def check(x: jax.Array, rows: jax.Array) -> jax.Array:
        if jnp.shape(x) != rows.shape[1:]:
            raise InputError(
                f"row: has the shape {jnp.shape(x)}, allowed is {rows.shape[1:]}, without the axis of clients"
            )
        return x

    return jax.tree.map(check, row, stack)


def weighted_sum(
    weights: PyTree, stack: PyTree, *others: PyTree, row_map: Callable[..., PyTree] | None = None
) -> PyTree:
    """Sum over clients of weight times row, where a weight of zero *selects nothing* instead of multiplying.

        result = sum over {i : w_i != 0} of w_i * row_map(row_i)

    `0 * NaN` is NaN; a client with weight zero must not be able to do anything, so its row is never multiplied.

    Args:
      weights: `(n,)`, or a pytree like the stack with leaves `(n,)`, one weight a client and layer.
      stack: leaves `(n, ...)`.
      *others: pytrees with leaves `(n, ...)`, given to `row_map` row by row; only beside one.
      row_map: applied to each row before it is added; the mapped stack is never written to memory.

    Returns:
      A pytree like one row, leaves `(...)`, added in float32 (float64 where a leaf is float64) and returned in the dtypes of
      the stack. Devices exchange one partial sum of this size.
    """
    total = weighted_total(weights, stack, *others, row_map=row_map)
    return jax.tree.map(lambda x, like: x.astype(like.dtype), total, stack)


def weighted_total(
    weights: PyTree, stack: PyTree, *others: PyTree, row_map: Callable[..., PyTree] | None = None
) -> PyTree:
    """`weighted_sum` in the types in which it is added, shaped like what `row_map` returns: for counts and squares.

    Above 256 bfloat16 holds every second whole number only; float32 holds all up to 16 million.
    """
    one_for_all = jax.tree_util.all_leaves([weights])
    weight_tree = jax.tree.map(lambda _: weights, stack) if one_for_all else weights
    read = row_map if row_map is not None else lambda row: row

    def local(weights: PyTree, stack: PyTree, *others: PyTree) -> PyTree:
        if one_at_a_time():
            row = jax.tree.map(lambda x: x[0], (stack, *others))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), jax.eval_shape(lambda r: read(*r), row))

            def add(first: jax.Array, total: PyTree, count: int) -> PyTree:
                for i in range(count):
                    w, *row = jax.tree.map(
                        lambda x, at=first + i: lax.dynamic_index_in_dim(x, at, keepdims=False),
                        (weights, stack, *others),
                    )
                    total = jax.tree.map(lambda a, w, x: a + _times(w, x), total, w, read(*row))
                return total

            # Four rows for each time the sum is read and written; a map is not worth being compiled four times.
            n, group = jax.tree.leaves(weights)[0].shape[0], 4 if row_map is None else 1
            total = lax.fori_loop(0, n // group, lambda i, total: add(i * group, total, group), zeros)
            total = add(jnp.int32(n // group * group), total, n % group)
        else:
            total = _joined_sum(weights, jax.vmap(read)(stack, *others))
        return lax.psum(total, CLIENTS) if num_shards() > 1 else total

    operands = (weight_tree, stack, *others)
    return on_each_shard(local, operands, PartitionSpec(), (True,) * len(operands))


def _joined_sum(weights: PyTree, stack: PyTree) -> PyTree:
    """Weight times row, summed over rows; on a GPU small leaves are one, so that they need few kernels."""
    leaves, structure = jax.tree.flatten(stack)
    by_leaf = jax.tree.leaves(weights)
    small = joined([x.size for x in leaves]) if platform() == "gpu" else [False] * len(leaves)
    n = leaves[0].shape[0]
    total = [
        None if is_small else jnp.sum(_times(_column(w, x), x), axis=0)
        for w, x, is_small in zip(by_leaf, leaves, small, strict=True)
    ]
    places = [place for place, is_small in enumerate(small) if is_small]
    # By type, since a sum of doubles is one of doubles.
    for kind in dict.fromkeys(wide(leaves[place]) for place in places):
        alike = [place for place in places if wide(leaves[place]) == kind]
        rows = jnp.concatenate([leaves[place].reshape(n, -1).astype(kind) for place in alike], axis=1)
        sizes = [leaves[place].size // n for place in alike]
        spread = [jnp.broadcast_to(by_leaf[p][:, None], (n, size)) for p, size in zip(alike, sizes, strict=True)]
        each = jnp.concatenate(spread, axis=1)
        ends = jnp.split(jnp.sum(_times(each, rows), axis=0), np.cumsum(sizes)[:-1])
        for place, part in zip(alike, ends, strict=True):
            total[place] = part.reshape(leaves[place].shape[1:])
    return jax.tree.unflatten(structure, total)


def _times(weight: jax.Array, x: jax.Array) -> jax.Array:
    """Weight times value in the type in which it is added, 0 where the weight is, and there without a derivative."""
    kind = wide(x)
    weight, selected = weight.astype(kind), weight != 0
    return jnp.where(selected, weight * jnp.where(selected, x.astype(kind), 0), 0)


def mean_and_std(stack: PyTree, which: jax.Array) -> tuple[PyTree, PyTree]:
    """Mean and unbiased standard deviation of every coordinate over the clients marked by `which`.

        mean = sum_i x_i / m,    std = sqrt(sum_i (x_i - mean)^2 / (m - 1)),    m = the number marked

    Two passes over the stack, since the one-pass form cancels. The std of one row is 0, and both are 0 if none is marked.

    Args:
      stack: leaves `(n, ...)`.
      which: bool `(n,)`; rows that are not marked may hold anything.
    """
    count, chosen = jnp.sum(which, dtype=jnp.int32), which.astype(wide(stack))
    mean = weighted_sum(chosen / jnp.maximum(count, 1).astype(chosen.dtype), stack)
    share = chosen / jnp.maximum(count - 1, 1).astype(chosen.dtype)

    def squared(row: PyTree) -> PyTree:  # in the type in which it is added: 300 squared is beyond float16
        return jax.tree.map(lambda x, m: (x.astype(wide(x)) - m.astype(wide(m))) ** 2, row, mean)

    variance = weighted_total(share, stack, row_map=squared)
    return mean, jax.tree.map(lambda x, like: root(x).astype(like.dtype), variance, stack)


def _column(weights: jax.Array, leaf: jax.Array) -> jax.Array:
    """`(n,)` reshaped so that it broadcasts against a leaf `(n, ...)`."""
    return weights.reshape(weights.shape + (1,) * (leaf.ndim - 1))
