"""Attacks that stay as near to the honest updates as those are to each other: Min-Max and Min-Sum.

Source: Shejwalkar and Houmansadr, NDSS 2021, section IV; supplement, section C. Both send `mean - step * std` with the
largest step within a bound. The squared distance of that row to an honest one is a quadratic in the step,

    |x_j - mean + step * std|^2 = a_j + 2 b_j * step + c * step^2

so that the search for the step works on n numbers and never reads the updates again.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import KNOWLEDGE, Attack, PyTree, known_rows, same_row
from lasa_jax.errors import check_choice

LARGEST_STEP = 20.0  # of the official search, which starts at 10 with steps of 10 / 2 ** k
_HALVINGS = 24


def min_max(knowledge: str = "benign") -> Attack:
    """Min-Max: no honest row is farther away from the crafted one than honest rows are from each other.

        row = mean - step * std,    step = largest with max_j |x_j - row| <= max_ij |x_i - x_j|

    Args:
      knowledge: whose updates, see `known_rows`. As in the official code: "colluders".

    The step is at most 20. Where fewer than two rows are known the deviation is 0, and the row is the mean.
    """
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        line = measure(updates, known)
        pairs = jnp.where(known[:, None] & known[None, :], line.pairwise(updates), 0.0)
        return line.at(largest_step(lambda step: jnp.max(line.squared(step)) <= jnp.max(pairs)))

    return same_row(craft_row)


def min_sum(squared: bool = True, knowledge: str = "benign") -> Attack:
    """Min-Sum: the distances of the crafted row to all honest ones add up to no more than those of the worst honest row.

        row = mean - step * std,    step = largest with sum_j |x_j - row|^2 <= max_i sum_j |x_i - x_j|^2

    Args:
      squared: False sums plain distances, which is the supplement's wording.
      knowledge: whose updates, see `known_rows`. As in the official code: "colluders".
    """
    return _min_sum(jnp.max, squared, knowledge)


def min_sum_stealthy(squared: bool = True, knowledge: str = "benign") -> Attack:
    """Min-Sum with the *smallest* sum of distances of an honest row as its bound.

    The supplement uses it on all datasets but MNIST; the official code never runs it (docs/fidelity.md).

    Args:
      squared, knowledge: see `min_sum`. With plain distances the mean itself can lie outside the bound: it is sent then.
    """
    return _min_sum(jnp.min, squared, knowledge)


def _min_sum(choose: Callable[..., jax.Array], squared: bool, knowledge: str) -> Attack:
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        line = measure(updates, known)
        if squared:
            # sum_j |x_i - x_j|^2 = k |x_i - mean|^2 + sum_j |x_j - mean|^2: no distance between two rows is needed.
            sums = jnp.sum(known, dtype=jnp.int32).astype(line.a.dtype) * line.a + jnp.sum(line.a)
        else:
            sums = jnp.sum(jnp.sqrt(jnp.where(known[None, :], line.pairwise(updates), 0.0)), axis=1)
        bound = choose(sums, where=known, initial=jnp.inf if choose is jnp.min else 0.0)

        def within(step: jax.Array) -> jax.Array:
            distances = line.squared(step)
            return jnp.sum(distances if squared else jnp.sqrt(distances)) <= bound

        return line.at(largest_step(within))

    return same_row(craft_row)


class Line(NamedTuple):
    """The rows `mean - step * std`, and how far they are from the known rows.

    known: bool `(n,)`. a: `|x_j - mean|^2`, b: `(x_j - mean) . std`, both `(n,)` and 0 for other rows. c: `|std|^2`.
    """

    mean: PyTree
    std: PyTree
    known: jax.Array
    a: jax.Array
    b: jax.Array
    c: jax.Array

    def at(self, step: jax.Array) -> PyTree:
        """The row of that step."""
        kind = self.a.dtype
        return jax.tree.map(lambda m, s: m.astype(kind) - step.astype(kind) * s.astype(kind), self.mean, self.std)

    def squared(self, step: jax.Array) -> jax.Array:
        """Squared distances of that row to the known rows, `(n,)`; 0 for other rows."""
        step = step.astype(self.a.dtype)
        distances = self.a + 2 * step * self.b + step**2 * self.c
        return jnp.where(self.known, jnp.maximum(distances, 0.0), 0.0)

    def pairwise(self, updates: PyTree) -> jax.Array:
        """Squared distances between the known rows, `(n, n)`; infinite for others."""
        center = jnp.argmin(jnp.where(self.known, self.a, jnp.inf))
        return ops.squared_distances(ops.gram(updates, self.known, center))


def measure(updates: PyTree, known: jax.Array) -> Line:
    """The line of an attack whose statistics are over the rows `known`; three passes over the updates."""
    mean, std = ops.mean_and_std(updates, known)

    def from_mean(row: PyTree, mean: PyTree, std: PyTree) -> tuple[jax.Array, jax.Array]:
        moved = jax.tree.map(jnp.subtract, row, mean)
        return ops.tree_dot(moved, moved), ops.tree_dot(moved, std)

    a, b = ops.map_rows(from_mean, updates, shared=(mean, std))
    return Line(mean, std, known, jnp.where(known, a, 0.0), jnp.where(known, b, 0.0), ops.tree_dot(std, std))


def largest_step(accept: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest step between 0 and 20 that is accepted, to 1e-6, if what is accepted is an interval from 0; else 0.

    Args:
      accept: of a step, whether it is within the bound; called a fixed number of times.
    """

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        good = accept(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.float32(0), jnp.float32(LARGEST_STEP)))[0]
