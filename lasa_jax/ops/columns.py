"""Work on stacked client updates column by column: sorting across clients, distances between clients, mixing of clients.

A column is one coordinate of all clients. Columns are read in blocks that stay in cache; where the rows lie on several
devices, each device swaps its rows of a block for its share of the columns, so that no second stack is written. Copied
are leaves smaller than a block, and what is left of the others after whole blocks.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from lasa_jax.ops.rows import CLIENTS, any_run, everywhere, num_shards, on_each_shard, one_at_a_time, product
from lasa_jax.ops.statistics import root, wide
from lasa_jax.ops.target import platform

PyTree = Any


def _block_width(n: int, columns: int, *, summed: bool) -> int:
    """Most columns of a block of n rows of one run: on a CPU it stays in cache, else it is a small part of memory.

    Products want longer rows than sorting, but no longer than float32 can add up without losing digits. On an accelerator a
    block is a tenth of the columns, or 4,096; but a sort is many launches on a GPU, so there its blocks are large.
    """
    if not summed and platform() == "gpu":
        return max(16, 2**28 // (4 * n))
    if not one_at_a_time():
        return max(16, min(2**26 // (4 * n), max(columns // 10, 4096)))
    return max(16, min(2**20 // (4 * n), 4096) if summed else 2**17 // (4 * n))


def map_columns(fn: Callable[..., PyTree], stack: PyTree, *, shared: tuple[PyTree, ...] = ()) -> PyTree:
    """`fn` of every column of a stack: one read of the stack, and one update written for each array that `fn` returns.

    Args:
      fn: `fn(block, *shared)` with a block `(n, width)` to `(width,)` or a tuple of such, each column for itself.
      stack: leaves `(n, ...)`.
      shared: pytrees given to `fn` whole; it must not close over arrays.

    Returns:
      A pytree like one row, leaves `(...)`, in the dtypes of the stack; a tuple of them where `fn` returns a tuple.
    """
    return _over_columns(fn, stack, shared, summed=False)


def sum_columns(fn: Callable[..., PyTree], stack: PyTree, *, shared: tuple[PyTree, ...] = ()) -> PyTree:
    """Sum over blocks of columns of `fn(block, *shared)`, a pytree of fixed shapes. Padding columns are all zero."""
    return _over_columns(fn, stack, shared, summed=True)


def _over_columns(fn: Callable[..., PyTree], stack: PyTree, shared: tuple[PyTree, ...], *, summed: bool) -> PyTree:
    leaves, structure = jax.tree.flatten(stack)
    n, shards, kind = leaves[0].shape[0], num_shards(), wide(leaves)

    def local(leaves: list[jax.Array], shared: tuple[PyTree, ...]) -> PyTree:
        # Blocks of like width, so that the last is not nearly empty.
        share = -(-sum(x.size // len(x) for x in leaves) // shards)  # of the columns
        blocks = max(1, -(-share // _block_width(n, share, summed=summed)))
        width = max(16, -(-share // (16 * blocks)) * 16)
        loops, unpack = _blocks([_lines(x, width * shards) for x in leaves], width * shards, kind)

        def work(block: jax.Array) -> PyTree:
            if shards > 1:
                block = lax.all_to_all(block, CLIENTS, split_axis=1, concat_axis=0, tiled=True)
            return fn(block, *shared)

        if summed:
            total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: work(loops[0][0](0))))
            for fetch, count in loops:
                add = lambda i, total, fetch=fetch: jax.tree.map(jnp.add, total, work(fetch(i)))  # noqa: E731
                total = lax.fori_loop(0, count, add, total)
            return lax.psum(total, CLIENTS) if shards > 1 else total
        parts = [
            lax.map(lambda i, fetch=fetch: work(fetch(i)), jnp.arange(count, dtype=jnp.int32)) for fetch, count in loops
        ]
        return jax.tree.map(lambda *parts: unpack(_gathered(parts)), *parts)

    result = on_each_shard(local, (leaves, shared), PartitionSpec(), (True, False))
    if summed:
        return result

    def shaped(result: list[jax.Array]) -> PyTree:
        rows = [x.reshape(like.shape[1:]).astype(like.dtype) for x, like in zip(result, leaves, strict=True)]
        return jax.tree.unflatten(structure, rows)

    return tuple(map(shaped, result)) if isinstance(result, tuple) else shaped(result)


def _gathered(parts: tuple[jax.Array, ...]) -> jax.Array:
    """What each device made of its share of the columns of all blocks, `(blocks, width)`, as one vector on every device."""
    done, shards = jnp.concatenate([x.ravel() for x in parts]), num_shards()
    if shards == 1:
        return done
    done = lax.all_gather(done, CLIENTS)
    ends = np.cumsum([x.size for x in parts])[:-1]
    shared_out = zip(jnp.split(done, ends, axis=1), parts, strict=True)
    return jnp.concatenate([x.reshape(shards, *like.shape).swapaxes(0, 1).ravel() for x, like in shared_out])


def _lines(leaf: jax.Array, width: int) -> jax.Array:
    """A leaf as a matrix `(n, columns)`; on a TPU as `(n, lines, columns of a line)`, lines being its last axis.

    There arrays lie in tiles of their last two axes, and a matrix would be a copy of the leaf. So it is where a line is
    longer than a block of `width` columns, or too few lines fit into one to be dealt out over the devices.
    """
    last = leaf.shape[-1] if leaf.ndim > 2 and platform() == "tpu" else 1
    fits = 1 < last <= width // _dealt_out(last)
    return leaf.reshape(leaf.shape[0], -1, *([last] if fits else []))


def _dealt_out(columns: int) -> int:
    """The fewest lines of so many columns that give each device of the mesh as many columns."""
    return num_shards() // math.gcd(num_shards(), columns)


def _lines_of_block(leaf: jax.Array, width: int) -> int:
    """How many lines of a leaf, or columns of a matrix, a block has; of lines as many that few are left over."""
    if leaf.ndim == 2:
        return width
    lines, columns = leaf.shape[1:]
    blocks, together = -(-lines * columns // width), _dealt_out(columns)
    at_most = lines // blocks if blocks > 1 else width // columns
    return max(1, at_most // together) * together


def _blocks(
    leaves: list[jax.Array], width: int, kind: jnp.dtype
) -> tuple[list[tuple[Callable[[Any], jax.Array], int]], Callable[[jax.Array], list[jax.Array]]]:
    """Divides leaves, as `_lines` makes them, into blocks `(n, w)` of a type, w at most `width`.

    Returns:
      Loops, each `fetch(i)` for its i-th block and the number of blocks: on a CPU one for all leaves, which is compiled
      once; elsewhere one for each leaf, since a branch by the index would stop the device and copy the leaf. And `unpack`,
      which turns the results of all blocks, in one vector, into a vector for each leaf. What is left of a leaf after whole
      blocks is copied together with the other leaves' rests.
    """
    n = leaves[0].shape[0]
    taken = [_lines_of_block(x, width) for x in leaves]  # by a block
    whole = [x.shape[1] // lines for x, lines in zip(leaves, taken, strict=True)]
    ends = [count * lines for count, lines in zip(whole, taken, strict=True)]
    rests = [x[:, end:].reshape(n, -1).astype(kind) for x, end in zip(leaves, ends, strict=True)]
    rest_sizes = [x.shape[1] for x in rests]
    rest = jnp.concatenate([*rests, jnp.zeros((n, -sum(rest_sizes) % width), kind)], axis=1)
    sources, taken = [*leaves, rest], [*taken, width]
    counts = [*whole, rest.shape[1] // width]
    used = [s for s, count in enumerate(counts) if count]

    def fetch_from(s: int, at: Any) -> jax.Array:
        return lax.dynamic_slice_in_dim(sources[s], at, taken[s], axis=1).reshape(n, -1).astype(kind)

    def fetch(i: Any) -> jax.Array:
        branch_of = np.repeat(np.arange(len(used)), [counts[s] for s in used])
        start_of = np.concatenate([np.arange(counts[s], dtype=np.int32) * taken[s] for s in used])
        branches = [functools.partial(fetch_from, s) for s in used]
        return lax.switch(jnp.asarray(branch_of)[i], branches, jnp.asarray(start_of)[i])

    loops: list[tuple[Callable[[Any], jax.Array], int]] = [(fetch, sum(counts))]
    if not one_at_a_time():
        loops = [(lambda i, s=s: fetch_from(s, i * taken[s]), counts[s]) for s in used]  # type: ignore[misc]

    def unpack(results: jax.Array) -> list[jax.Array]:
        sizes = [end * math.prod(x.shape[2:]) for end, x in zip(ends, leaves, strict=True)]
        *firsts, last = jnp.split(results, np.cumsum(sizes))
        *seconds, _ = jnp.split(last, np.cumsum(rest_sizes))
        return [jnp.concatenate(pair) for pair in zip(firsts, seconds, strict=True)]

    return loops, unpack


def sort_clients(block: jax.Array, present: jax.Array) -> jax.Array:
    """Sorts every column over the clients present, NaN as the largest: `(n, width)` to the same.

    The first `sum(present)` rows of the result are the present values in order; infinity follows. On a CPU by Batcher's
    odd-even merge network, looped by stages so that it compiles at once for any n; on an accelerator by `jnp.sort`.
    """
    block = jnp.where(present[:, None] & ~jnp.isnan(block), block, jnp.inf)
    n = block.shape[0]
    if n == 1 or not one_at_a_time():
        return jnp.sort(block, axis=0, stable=False)  # a stable one carries an index along
    partner, takes_lower = (jnp.asarray(x) for x in _merge_network(n))

    def stage(s: jax.Array, x: jax.Array) -> jax.Array:
        other = x[partner[s]]
        return jnp.where(takes_lower[s][:, None], jnp.minimum(x, other), jnp.maximum(x, other))

    return lax.fori_loop(0, partner.shape[0], stage, block)


@functools.cache
def _merge_network(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Batcher's odd-even merge sort of n values (Knuth, TAOCP 3, algorithm 5.2.2M).

    Returns:
      For each stage and each row the row it is compared with, itself if with none, int32 `(stages, n)`; and whether it
      keeps the smaller of the two, bool `(stages, n)`.
    """
    partners, lowers = [], []
    p = 1
    while p < n:
        k = p
        while k >= 1:
            partner, lower = np.arange(n), np.ones(n, bool)
            for start in range(k % p, n - k, 2 * k):
                for i in range(start, min(start + k, n - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        partner[i], partner[i + k], lower[i + k] = i + k, i, False
            partners.append(partner)
            lowers.append(lower)
            k //= 2
        p *= 2
    return np.stack(partners).astype(np.int32), np.stack(lowers)


def average_of_ranks(ordered: jax.Array, first: jax.Array, count: jax.Array) -> jax.Array:
    """Mean of the values of rank `first .. first + count - 1` of every column; 0 if count is 0.

    Args:
      ordered: `(n, width)`, sorted by column.
      first, count: int32, scalars or `(width,)`.
    """
    rank = jnp.arange(ordered.shape[0], dtype=jnp.int32)[:, None]
    first, count = (jnp.atleast_1d(x)[None] for x in (first, count))
    inside = (rank >= first) & (rank < first + count)
    # Divided before it is added, so that the sum stays in the range of float32.
    return jnp.sum(jnp.where(inside, ordered / jnp.maximum(count, 1).astype(ordered.dtype), 0.0), axis=0)


@jax.custom_jvp
def gram(stack: PyTree, present: jax.Array, center: jax.Array) -> jax.Array:
    """Inner products of all pairs of clients, measured from one of them: `(n, n)` of type `wide`.

        gram_ij = (x_i - c) . (x_j - c)

    Accumulated over blocks of columns: one read of the stack and no second one. What all clients share does not cancel in
    differences of the result, since c has it too.

    Args:
      stack: leaves `(n, ...)`.
      present: bool `(n,)`.
      center: index of the row c, which should be an ordinary one.

    Returns:
      For clients that are absent, not finite, or so far away that a squared distance leaves float32, infinity on the
      diagonal and 0 beside it; these are constants where it is differentiated.
    """
    return usable_gram(_products(stack, center), present)


def _products(stack: PyTree, center: jax.Array) -> jax.Array:
    """Inner products of the rows, measured from the row `center`: `(n, n)`."""

    # What is not finite spoils its own row and column of the product only, and shows on the diagonal.
    def products(block: jax.Array, center: jax.Array) -> jax.Array:
        moved = block - block[center][None]
        return product(moved, moved.T)

    result = sum_columns(products, stack, shared=(center,))
    return (result + result.T) / 2


@gram.defjvp
def _gram_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    stack, present, center = primals
    result = gram(stack, present, center)
    near = jnp.isfinite(jnp.diagonal(result))
    # What is not finite would spoil all derivatives: 0 * NaN is NaN.
    clean, change = (
        jax.tree.map(lambda x: jnp.where(near.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0), tree)
        for tree in (stack, tangents[0])
    )
    _, slope = jax.jvp(lambda x: _products(x, center), (clean,), (change,))
    return result, jnp.where(near[:, None] & near[None, :], slope, 0)


def usable_gram(products: jax.Array, usable: jax.Array) -> jax.Array:
    """A Gram matrix in which only the clients that are usable, and near enough, are left; see `gram`."""
    near = usable & (jnp.diagonal(products) < jnp.finfo(products.dtype).max / 8)
    return jnp.where(
        near[:, None] & near[None, :], products, jnp.diag(jnp.where(near, 0.0, jnp.inf).astype(products.dtype))
    )


def squared_distances(gram: jax.Array) -> jax.Array:
    """Squared Euclidean distances between all pairs of clients, from their Gram matrix: `(n, n)` of its type.

        |x_i - x_j|^2 = gram_ii + gram_jj - 2 gram_ij

    Returns:
      Infinite in rows and columns of clients that are not usable there; on the diagonal infinite for those and exactly 0
      for the others.
    """
    squares = jnp.diagonal(gram)
    near = jnp.isfinite(squares)
    finite = jnp.where(near, squares, 0.0)
    distances = jnp.maximum(finite[:, None] + finite[None, :] - 2 * gram, 0.0)
    distances = jnp.where(jnp.eye(len(squares), dtype=bool), 0.0, distances)
    return jnp.where(near[:, None] & near[None, :], distances, jnp.inf)


def cosine_distances(distances: jax.Array, norms: jax.Array) -> jax.Array:
    """One less the cosine of the angle between all pairs of clients: `(n, n)`, from 0 to 2.

        1 - cos_ij = (|x_i - x_j|^2 - (|x_i| - |x_j|)^2) / (2 |x_i| |x_j|)

    In this form directions that are nearly the same keep their digits.

    Args:
      distances: squared, `(n, n)`, as `squared_distances` gives them.
      norms: `(n,)`.

    Returns:
      1 beside a row of zeros, 0 on the diagonal, infinite in rows and columns of clients that are not usable.
    """
    usable = jnp.isfinite(jnp.diagonal(distances))
    has_direction = usable & jnp.isfinite(norms) & (norms > 0)
    lengths = jnp.where(has_direction, norms, 1.0)
    # A quotient and a product at a time, so that nothing leaves float32 that a norm has not left, and (i, j) is (j, i).
    apart = root(jnp.where(usable[:, None] & usable[None, :], distances, 0.0))
    longer = lengths[:, None] - lengths[None, :]
    twice = (apart / lengths[:, None]) * (apart / lengths[None, :])
    twice = twice - (longer / lengths[:, None]) * (longer / lengths[None, :])
    directions = has_direction[:, None] & has_direction[None, :]
    result = jnp.where(directions, jnp.clip(twice / 2, 0.0, 2.0), 1.0)
    result = jnp.where(jnp.eye(len(norms), dtype=bool), 0.0, result)
    return jnp.where(usable[:, None] & usable[None, :], result, jnp.inf)


def mix_rows(mixing: jax.Array, stack: PyTree) -> PyTree:
    """Every row replaced by a weighted sum of rows: `y_i = sum_j mixing_ij * x_j`, where a weight of zero selects nothing.

    Args:
      mixing: `(n, n)`.
      stack: leaves `(n, ...)`.

    Returns:
      A new stack. A row that takes part of a value that is not finite is NaN there; no other row is.
    """

    def local(by_source: jax.Array, leaves: list[jax.Array]) -> list[jax.Array]:
        return [_mix(by_source.T, x) if x.size else x for x in leaves]

    leaves, structure = jax.tree.flatten(stack)
    done = on_each_shard(local, (everywhere(mixing.T), leaves), PartitionSpec(CLIENTS), (True, True))
    return jax.tree.unflatten(structure, done)


def _mix(mixing: jax.Array, leaf: jax.Array) -> jax.Array:
    """`mixing @ leaf` in blocks of columns; with shards, `mixing` has this device's columns and the result its rows."""
    shards = num_shards()
    m, kind = leaf.size // len(leaf), wide((mixing, leaf))
    width = min(m, _block_width(mixing.shape[0], m, summed=True))
    flat = _lines(leaf, width)
    lines, at_once = flat.shape[1], width // math.prod(flat.shape[2:])
    taken = (mixing != 0).astype(kind)

    def mixed(start: jax.Array) -> jax.Array:
        block = lax.dynamic_slice_in_dim(flat, start, at_once, axis=1).reshape(len(leaf), -1).astype(kind)
        finite = jnp.isfinite(block)
        total = product(mixing, jnp.where(finite, block, 0.0))
        # Blocks without NaN are spared the second product; devices may differ in this, so what they exchange is outside.
        spoilt = lax.cond(
            any_run(~jnp.all(finite)),
            lambda: product(taken, (~finite).astype(kind)),
            lambda: jnp.zeros_like(total),
        )
        if shards > 1:
            total, spoilt = (lax.psum_scatter(x, CLIENTS, tiled=True) for x in (total, spoilt))
        return jnp.where(spoilt > 0, jnp.nan, total).astype(leaf.dtype)

    def write(i: jax.Array, out: jax.Array) -> jax.Array:
        start = jnp.minimum(i * at_once, lines - at_once)  # the last block overlaps the one before
        block = mixed(start).reshape(len(out), at_once, *flat.shape[2:])
        return lax.dynamic_update_slice_in_dim(out, block, start, axis=1)

    out = jnp.zeros((mixing.shape[0] // shards, *flat.shape[1:]), leaf.dtype)
    return lax.fori_loop(0, -(-lines // at_once), write, out).reshape(out.shape[0], *leaf.shape[1:])
