"""Statistics over the clients that are present; counts and sums over millions of entries, exact or with bounded error."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lasa_jax.ops.fold import fold, reduced
from lasa_jax.ops.target import platform

_BLOCK = 1024


def wide(tree: object) -> jnp.dtype:
    """The type in which the numbers of some arrays are added and measured: float32; float64 if one of them is float64."""
    has_doubles = any(jnp.result_type(x) == jnp.float64 for x in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if has_doubles else jnp.float32)


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """Square root, with the derivative 0 at 0 and at infinity, where that of `jnp.sqrt` cannot be used."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    result = root(*primals)
    smooth = (result > 0) & jnp.isfinite(result)
    return result, jnp.where(smooth, tangents[0], 0) / jnp.where(smooth, 2 * result, 1)


def counts(*masks: jax.Array) -> tuple[jax.Array, ...]:
    """Numbers of true entries of two or more bool arrays of one shape: int32 scalars, one pass over what they compare."""
    return _reduced([mask.astype(jnp.int32) for mask in masks], "add")


def largest_magnitude(x: jax.Array) -> jax.Array:
    """Maximum of `abs(x)`, 0 if x is empty and NaN if any entry is: a scalar of x's dtype, in one pass for float32."""
    if x.dtype != jnp.float32 or x.size == 0 or platform() != "cpu":
        return jnp.max(jnp.abs(x), initial=0)
    bits = lax.bitcast_convert_type(jnp.abs(x), jnp.int32)  # in the order of the magnitudes, NaN above infinity
    bits = bits.reshape(tuple(size for size in x.shape if size > 1) or 1)
    count = bits.shape[0]
    pieces = next((p for p in (2, 3, 5, 7) if count % p == 0), 2)  # equal ones, and what is left
    whole = count // pieces * pieces
    largest = functools.reduce(lax.max, _reduced(jnp.split(bits[:whole], pieces), "max"))
    return lax.bitcast_convert_type(lax.max(largest, jnp.max(bits[whole:], initial=0)), jnp.float32)


def _reduced(operands: Sequence[jax.Array], operation: str) -> tuple[jax.Array, ...]:
    """Reduces each of several integer arrays of one shape to a scalar, from 0, in one pass over what they are made of.

    XLA's CPU compiler turns the reduction of one array into a tree of windows and writes the array to memory first; that
    of several together is one loop, three times as fast, as long as no index has to be taken apart: no array is flattened.
    """
    return reduced(operands, (operation,) * len(operands), range(operands[0].ndim))


def total(x: jax.Array) -> jax.Array:
    """Sum of all entries in two levels, so that the float32 rounding error grows with sqrt(size), not with size.

    Blocks of 1,024 entries are summed first, then the sums: 11 million entries are off by less than 1e-5 relative.
    """
    if platform() != "cpu":
        return jnp.sum(x)  # which they add up in a tree
    flat = x.ravel()
    whole = flat.size // _BLOCK * _BLOCK
    if whole < 2 * _BLOCK:
        return jnp.sum(flat)
    return jnp.sum(jnp.sum(flat[:whole].reshape(-1, _BLOCK), axis=1)) + jnp.sum(flat[whole:])


def tree_dot(a: object, b: object) -> jax.Array:
    """Sum of the products of all entries of two updates, a scalar; float32, see `wide`."""
    kind = wide((a, b))
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum((total(x.astype(kind) * y.astype(kind)) for x, y in pairs), jnp.zeros((), kind))


def tree_norm(row: object) -> jax.Array:
    """Euclidean norm over all leaves of one update, see `tree_size`; infinite only where it is beyond float32."""
    return tree_size(row)[1]


@jax.custom_jvp
def tree_size(row: Any) -> tuple[jax.Array, jax.Array]:
    """Largest magnitude, NaN if any entry is, and Euclidean norm over all leaves of one update: scalars of type `wide`.

    The largest magnitude is differentiated as a constant. The derivative of the norm is `row / norm`, and 0 for a row
    whose norm is zero, or not finite.
    """
    kind = wide(row)
    leaves = [x.astype(kind) for x in jax.tree.leaves(row)]
    if platform() != "cpu":
        return _sizes(leaves, by_leaf=False)
    largest = jnp.max(jnp.stack([largest_magnitude(x) for x in leaves]))
    down, up = _scales(largest)
    return largest, up * jnp.sqrt(sum((total(jnp.square(x * down)) for x in leaves), jnp.zeros((), kind)))


@tree_size.defjvp
def _tree_size_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[tuple, tuple]:
    (row,), (change,) = primals, tangents
    largest, norm = tree_size(row)
    return (largest, norm), (jnp.zeros_like(largest), _slope(row, norm, change))


def _slope(row: Any, norm: jax.Array, change: Any) -> jax.Array:
    """How the norm of a row moves with a change of the row."""
    has_direction = jnp.isfinite(norm) & (norm >= jnp.finfo(norm.dtype).tiny)
    divisor = jnp.where(has_direction, norm, 1)
    unit = jax.tree.map(lambda x: jnp.where(has_direction, x.astype(norm.dtype), 0) / divisor, row)
    return jnp.where(has_direction, tree_dot(unit, change), 0)


def leaf_norms(row: Any) -> jax.Array:
    """Euclidean norm of each leaf of one update, `(leaves,)`, see `tree_size`."""
    if platform() == "cpu":
        return jnp.stack([tree_norm(x) for x in jax.tree.leaves(row)])
    return _leaf_norms(row)


@jax.custom_jvp
def _leaf_norms(row: Any) -> jax.Array:
    kind = wide(row)
    return _sizes([x.astype(kind) for x in jax.tree.leaves(row)], by_leaf=True)[1]


@_leaf_norms.defjvp
def _leaf_norms_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (row,), (change,) = primals, tangents
    norms = _leaf_norms(row)
    pairs = zip(jax.tree.leaves(row), norms, jax.tree.leaves(change), strict=True)
    return norms, jnp.stack([_slope(x, norm, moved) for x, norm, moved in pairs])


def _sizes(leaves: list[jax.Array], *, by_leaf: bool) -> tuple[jax.Array, jax.Array]:
    """Largest magnitude and norm of all entries, or of each leaf, in one reading: sums are made at all three scales.

    On a CPU a second reading, when the largest is known, costs less than two more sums.
    """
    _, small = _range(leaves[0].dtype)
    scales = (small, 1.0, 1 / small)

    def terms(x: jax.Array) -> tuple[jax.Array, ...]:
        return (jnp.abs(x), *(jnp.square(x * scale) for scale in scales))

    largest, *squares = fold(leaves, terms, ("max", "add", "add", "add"), by_leaf=by_leaf)
    down, up = _scales(largest)
    norm = jnp.sqrt(squares[1])
    for scale, square in ((small, squares[0]), (1 / small, squares[2])):
        norm = jnp.where(down == scale, up * jnp.sqrt(square), norm)
    return largest, norm


def _range(kind: jnp.dtype) -> tuple[float, float]:
    """Largest magnitude whose squares can be added without a scale, and the power of two for what is larger."""
    return (1e150, 2.0**-600) if kind == jnp.float64 else (1e15, 2.0**-80)


def _scales(largest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A power of two and its inverse that bring extreme magnitudes to where sums of 10 million squares are in range.

    Powers of two, since the reciprocal of a number above 1e38 is flushed to zero. Zeros have no scale: of those that a
    compiler knows it squares scale and zeros apart, and infinity times 0 is NaN.
    """
    limit, small = _range(largest.dtype)
    low, mid, high = (jnp.asarray(x, largest.dtype) for x in (small, 1.0, 1 / small))
    tiny = (largest < 1 / limit) & (largest > 0)
    return (
        jnp.where(largest > limit, low, jnp.where(tiny, high, mid)),
        jnp.where(largest > limit, high, jnp.where(tiny, low, mid)),
    )


def masked_median(values: jax.Array, present: jax.Array, *, lower: bool = False) -> jax.Array:
    """Median over the clients present: `(n, ...)` and `(n,)` to `(...)`; NaN if nobody is present.

    Args:
      values: `(n, ...)`; entries of absent clients may hold anything.
      present: bool `(n,)`.
      lower: for an even number present take the smaller of the two middle values instead of their mean.
    """
    count = jnp.sum(present, dtype=jnp.int32)
    mask = present.reshape(present.shape + (1,) * (values.ndim - 1))
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), axis=0, stable=False)
    low = jnp.take(ordered, jnp.maximum(count - 1, 0) // 2, axis=0)
    high = low if lower else jnp.take(ordered, count // 2, axis=0)
    return jnp.where(count > 0, low / 2 + high / 2, jnp.nan)


def masked_std(values: jax.Array, present: jax.Array) -> jax.Array:
    """Population standard deviation (divide by the number present) over clients, `(n, ...)` to `(...)`; 0 for one."""
    mask = present.reshape(present.shape + (1,) * (values.ndim - 1))
    count = jnp.maximum(jnp.sum(present, dtype=jnp.int32), 1).astype(values.dtype)
    down, up = _scales(jnp.max(jnp.where(mask, jnp.abs(values), 0), axis=0))
    scaled = jnp.where(mask, values, 0) * down[None]
    mean = jnp.sum(scaled, axis=0) / count
    return up * root(jnp.sum(jnp.where(mask, (scaled - mean[None]) ** 2, 0), axis=0) / count)


def sum_of_smallest(values: jax.Array, count: int | jax.Array) -> jax.Array:
    """Sum of the `count` smallest values along the last axis; `count` may be traced, and exceed the number of values."""
    ordered = jnp.sort(values, axis=-1, stable=False)
    place = jnp.arange(values.shape[-1], dtype=jnp.int32).reshape((1,) * (values.ndim - 1) + (-1,))
    return jnp.sum(jnp.where(place < jnp.asarray(count, jnp.int32), ordered, 0.0), axis=-1)
