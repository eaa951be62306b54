"""A Hessian from the last steps and changes of gradients, in the compact form of L-BFGS (Byrd, Nocedal and Schnabel, 1994).

    B v = c v - [c S, Y] M^-1 [c S' v; Y' v],    M = [[c S' S, L], [L', -D]]

with the pairs as columns, oldest first, A = S' Y, L strictly below the diagonal of A, D its diagonal, and c = (y's) / (s's)
of the newest pair.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops

PyTree = Any


class Pairs(NamedTuple):
    """The last pairs, each in a slot that the next but so many takes.

    Attributes:
      steps: s, leaves `(window, ...)`.
      changes: y, leaves `(window, ...)`.
      known: int32, pairs so far.
    """

    steps: PyTree
    changes: PyTree
    known: jax.Array

    @classmethod
    def none(cls, window: int, like: PyTree) -> "Pairs":
        """No pairs yet, in the type in which they are measured."""
        kind = ops.wide(like)
        steps, changes = (jax.tree.map(lambda x: jnp.zeros((window, *x.shape), kind), like) for _ in range(2))
        return cls(steps, changes, jnp.int32(0))

    def with_pair(self, step: PyTree, change: PyTree, is_one: jax.Array) -> "Pairs":
        """The pairs and one more, where it is one; of more than the window the oldest goes."""
        slot = self.known % len(jax.tree.leaves(self.steps)[0])

        def put(slots: jax.Array, new: jax.Array) -> jax.Array:
            return slots.at[slot].set(jnp.where(is_one, new.astype(slots.dtype), slots[slot]))

        steps, changes = jax.tree.map(put, self.steps, step), jax.tree.map(put, self.changes, change)
        return Pairs(steps, changes, self.known + is_one.astype(jnp.int32))


def hessian_times(pairs: Pairs, vector: PyTree) -> PyTree:
    """B v, a pytree like v in the type of the pairs; zeros without a pair, and where M cannot be inverted."""
    window = len(jax.tree.leaves(pairs.steps)[0])
    place = jnp.arange(window, dtype=jnp.int32)
    count = jnp.minimum(pairs.known, window)
    in_order = (jnp.where(pairs.known > window, pairs.known, 0) + place) % window  # oldest first
    there = place < count
    both = there[:, None] & there[None, :]

    def by_age(products: jax.Array) -> jax.Array:
        return jnp.where(both, products[in_order][:, in_order], 0.0)

    along = by_age(_products(pairs.steps, pairs.changes))
    squares = by_age(_products(pairs.steps, pairs.steps))
    newest = jnp.maximum(count - 1, 0)
    c = along[newest, newest] / jnp.where(squares[newest, newest] > 0, squares[newest, newest], 1.0)
    lower = jnp.tril(along, -1)
    diagonal = jnp.diag(jnp.where(there, jnp.diagonal(along), -1.0))
    free = jnp.diag(jnp.where(there, 0.0, 1.0))  # slots without a pair: a row of the unit matrix
    matrix = jnp.block([[c * squares + free, lower], [lower.T, -diagonal]])
    sides = [jnp.where(there, _times(slots, vector)[in_order], 0.0) for slots in (pairs.steps, pairs.changes)]
    # Scaled to a diagonal of ones, as far as it has any: pairs differ in length by orders of magnitude.
    size = jnp.sqrt(jnp.abs(jnp.diagonal(matrix)))
    by = jnp.where(size > 0, size, 1.0)
    solved = _solve(matrix / by[:, None] / by[None, :], jnp.concatenate([c * sides[0], sides[1]]) / by) / by
    of_steps, of_changes = (jnp.zeros_like(part).at[in_order].set(part) for part in jnp.split(solved, 2))
    usable = (count > 0) & (squares[newest, newest] > 0) & jnp.all(jnp.isfinite(solved))

    def combined(v: jax.Array, s: jax.Array, y: jax.Array) -> jax.Array:
        taken = ops.product(c * of_steps, s.reshape(window, -1)) + ops.product(of_changes, y.reshape(window, -1))
        return jnp.where(usable, c * v.astype(s.dtype) - taken.reshape(v.shape), 0.0)

    return jax.tree.map(combined, vector, pairs.steps, pairs.changes)


def _products(a: PyTree, b: PyTree) -> jax.Array:
    """Inner products of the vectors in the slots of two pytrees: `(window, window)`."""
    parts = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(ops.product(x.reshape(len(x), -1), y.reshape(len(y), -1).T) for x, y in parts)  # type: ignore[return-value]


def _times(slots: PyTree, vector: PyTree) -> jax.Array:
    """Inner products of the vectors in the slots with one vector: `(window,)`."""
    return _products(slots, jax.tree.map(lambda x, s: x[None].astype(s.dtype), vector, slots))[:, 0]


def _solve(matrix: jax.Array, side: jax.Array) -> jax.Array:
    """x with `matrix @ x = side`, by elimination with pivots; not finite where the matrix is singular.

    Of some twenty rows: a library's solver would run on the host's terms on a GPU.
    """
    place = jnp.arange(len(side), dtype=jnp.int32)

    def eliminate(k: jax.Array, system: jax.Array) -> jax.Array:
        pivot = jnp.argmax(jnp.where(place >= k, jnp.abs(system[:, k]), -1.0))
        upper, chosen = system[k], system[pivot]
        system = system.at[pivot].set(upper).at[k].set(chosen)
        row = system[k] / system[k, k]
        system = system - jnp.where(place == k, 0.0, system[:, k])[:, None] * row[None]
        return system.at[k].set(row)

    return jax.lax.fori_loop(0, len(side), eliminate, jnp.concatenate([matrix, side[:, None]], axis=1))[:, -1]
