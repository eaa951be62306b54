"""Reductions over the layers of one update in one reading: on a GPU in few kernels, however many layers there are.

A kernel that reduces a layer of millions of entries is followed by one that reduces what its blocks made, and so is one that
reduces a bias: eight layers measured apart are two dozen launches for one reading. Here blocks of all layers are reduced
to a number each, those of small layers together, and then all these numbers at once. A TPU reduces each layer as it lies
in its memory, in tiles of the last two axes; a block would be a copy of the layer for each thing that is made of it.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lasa_jax.ops.target import platform

_WIDTH = 1024  # entries of a block
_SMALL = 16  # layers of less than this part of all entries are joined
_FEW = 1 << 16  # entries in all that are joined
_OPERATIONS = {"add": lax.add, "max": lax.max}

Terms = Callable[[jax.Array], tuple[jax.Array, ...]]


def fold(
    leaves: Sequence[jax.Array], terms: Terms, operations: Sequence[str], *, by_leaf: bool = False
) -> tuple[jax.Array, ...]:
    """Reduces, from 0, what is made of each entry of some arrays, in the form that suits a GPU or a TPU.

    Args:
      leaves: arrays of one type and any shapes, at least one.
      terms: of an array some of its shape, entry by entry; of 0 each is 0.
      operations: "add" or "max", one for each term.
      by_leaf: gives the numbers of each array for itself.

    Returns:
      For each term a scalar, or `(leaves,)`. On a GPU sums are those of blocks of 1,024 entries, summed. Of no entry each
      is 0.
    """
    if platform() == "tpu":
        numbers = [reduced(terms(x), operations, range(x.ndim)) for x in leaves]
        if by_leaf:
            return tuple(jnp.stack(each) for each in zip(*numbers, strict=True))
        return _together(numbers, operations)
    blocks = _blocks(leaves)
    if not blocks:
        shape = (len(leaves),) if by_leaf else ()
        return tuple(jnp.zeros(shape, x.dtype) for x in terms(jnp.zeros(0, leaves[0].dtype)))
    parts = [(reduced(terms(matrix), operations, (1,)), owner) for matrix, owner in blocks]
    if len(parts) == 2:  # of more, joining them would take a kernel for each term
        (first, owner), (second, other) = parts
        joint = tuple(jnp.concatenate(pair) for pair in zip(first, second, strict=True))
        parts = [(joint, np.concatenate([owner, other]))]
    if by_leaf:
        of_leaf = np.arange(len(leaves), dtype=np.int32)[:, None]
        parts = [
            (tuple(jnp.where(owner[None, :] == of_leaf, x[None, :], jnp.zeros((), x.dtype)) for x in numbers), owner)
            for numbers, owner in parts
        ]
    return _together([reduced(numbers, operations, (numbers[0].ndim - 1,)) for numbers, _ in parts], operations)


def _together(parts: Sequence[tuple[jax.Array, ...]], operations: Sequence[str]) -> tuple[jax.Array, ...]:
    """The numbers of several parts as those of one."""
    by_term = zip(operations, zip(*parts, strict=True), strict=True)
    return tuple(functools.reduce(_OPERATIONS[name], numbers) for name, numbers in by_term)


def joined(sizes: Sequence[int]) -> list[bool]:
    """Which of some layers, of so many entries, are small enough to be joined; none where it would be one alone."""
    whole = sum(sizes)
    small = [whole < _FEW or _SMALL * size < whole or size < _WIDTH for size in sizes]
    return small if sum(small) > 1 else [False] * len(small)


def _blocks(leaves: Sequence[jax.Array]) -> list[tuple[jax.Array, np.ndarray]]:
    """Matrices `(blocks, width)` with all entries once, and zeros; and of which leaf each block is, int32."""
    small = joined([x.size for x in leaves])
    found: list[tuple[jax.Array, np.ndarray]] = []
    rests: list[jax.Array] = []
    owners: list[np.ndarray] = []
    for index, (x, is_small) in enumerate(zip(leaves, small, strict=True)):
        flat = x.ravel()
        whole = 0 if is_small else flat.size // _WIDTH
        if whole:
            found.append((flat[: whole * _WIDTH].reshape(whole, _WIDTH), np.full(whole, index, np.int32)))
        rest = flat[whole * _WIDTH :]
        if rest.size:
            rests.append(jnp.pad(rest, (0, -rest.size % _WIDTH)))
            owners.append(np.full(-(-rest.size // _WIDTH), index, np.int32))
    if rests:
        found.append((jnp.concatenate(rests).reshape(-1, _WIDTH), np.concatenate(owners)))
    return found


def reduced(operands: Sequence[jax.Array], operations: Sequence[str], axes: Sequence[int]) -> tuple[jax.Array, ...]:
    """Several arrays of one shape reduced along axes, each from 0 by its own operation, in one pass."""
    zeros = tuple(jnp.zeros((), x.dtype) for x in operands)
    both = lambda a, b: tuple(_OPERATIONS[name](x, y) for name, x, y in zip(operations, a, b, strict=True))  # noqa: E731
    return tuple(lax.reduce(tuple(operands), zeros, both, tuple(axes)))
