"""Attacks that stay as near to the honest updates as those are to each other: Min-Max and Min-Sum.

Source: Shejwalkar and Houmansadr, NDSS 2021, section IV; supplement, section C. Both send `mean - step * p` with the
largest step within a bound, p a direction. The squared distance of that row to an honest one is a quadratic in the step,

    |x_j - mean + step * p|^2 = a_j + 2 b_j * step + c * step^2

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
DIRECTIONS = ("std", "unit_vec", "sign")
_HALVINGS = 24


def min_max(knowledge: str = "benign", direction: str = "std") -> Attack:
    """Min-Max: no honest row is farther away from the crafted one than honest rows are from each other.

        row = mean - step * p,    step = largest with max_j |x_j - row| <= max_ij |x_i - x_j|

    Args:
      knowledge: whose updates, see `known_rows`. As in the official code: "colluders".
      direction: p. "std": the standard deviation of each coordinate; "unit_vec": mean / |mean|; "sign": sign(mean).

    The step is at most 20, whatever the length of p: with "unit_vec" and large updates that limit can be what is sent.
    Where fewer than two rows are known, the row is the mean.
    """
    check_choice("knowledge", knowledge, KNOWLEDGE)
    check_choice("direction", direction, DIRECTIONS)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        line = measure(updates, known, direction)
        pairs = jnp.where(known[:, None] & known[None, :], line.pairwise(updates), 0.0)
        return line.at(largest_step(lambda step: jnp.max(line.squared(step)) <= jnp.max(pairs)))

    return same_row(craft_row)


def min_sum(squared: bool = True, knowledge: str = "benign", direction: str = "std") -> Attack:
    """Min-Sum: the distances of the crafted row to all honest ones add up to no more than those of the worst honest row.

        row = mean - step * p,    step = largest with sum_j |x_j - row|^2 <= max_i sum_j |x_i - x_j|^2

    Args:
      squared: False sums plain distances, which is the supplement's wording.
      knowledge: whose updates, see `known_rows`. As in the official code: "colluders".
      direction: p, see `min_max`.
    """
    return _min_sum(jnp.max, squared, knowledge, direction)


def min_sum_stealthy(squared: bool = True, knowledge: str = "benign", direction: str = "std") -> Attack:
    """Min-Sum with the *smallest* sum of distances of an honest row as its bound.

    The supplement uses it on all datasets but MNIST; the official code never runs it (docs/fidelity.md, section 4.1).

    Args:
      squared, knowledge, direction: see `min_sum`. With plain distances the mean itself can lie outside the bound: it is
        sent then.
    """
    return _min_sum(jnp.min, squared, knowledge, direction)


def _min_sum(choose: Callable[..., jax.Array], squared: bool, knowledge: str, direction: str) -> Attack:
    check_choice("knowledge", knowledge, KNOWLEDGE)
    check_choice("direction", direction, DIRECTIONS)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        line = measure(updates, known, direction)
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
    """The rows `start - step * direction`, and how far they are from the known rows.

    known: bool `(n,)`. a: `|x_j - start|^2`, b: `(x_j - start) . direction`, both `(n,)` and 0 for other rows.
    c: `|direction|^2`.
    """

    start: PyTree
    direction: PyTree
    known: jax.Array
    a: jax.Array
    b: jax.Array
    c: jax.Array

    def at(self, step: jax.Array) -> PyTree:
        """The row of that step."""
        kind, step = self.a.dtype, step.astype(self.a.dtype)
        return jax.tree.map(lambda m, p: m.astype(kind) - step * p.astype(kind), self.start, self.direction)

    def squared(self, step: jax.Array) -> jax.Array:
        """Squared distances of that row to the known rows, `(n,)`; 0 for other rows."""
        step = step.astype(self.a.dtype)
        distances = self.a + 2 * step * self.b + step**2 * self.c
        return jnp.where(self.known, jnp.maximum(distances, 0.0), 0.0)

    def pairwise(self, updates: PyTree) -> jax.Array:
        """Squared distances between the known rows, `(n, n)`; infinite for others."""
        center = jnp.argmin(jnp.where(self.known, self.a, jnp.inf))
        return ops.squared_distances(ops.gram(updates, self.known, center))


def measure(updates: PyTree, known: jax.Array, direction: str = "std") -> Line:
    """The line from the mean of the rows `known` along one of `DIRECTIONS`; three passes, two without std."""
    return line_from(*course(updates, known, direction), updates, known)


def course(updates: PyTree, known: jax.Array, direction: str) -> tuple[PyTree, PyTree]:
    """The mean of the rows `known` and one of `DIRECTIONS`; where the mean is zero, "unit_vec" and "sign" are zero too."""
    mean, std = ops.mean_and_std(updates, known)  # what is not used is not computed where this is compiled
    kind = ops.wide(updates)
    if direction == "unit_vec":
        length = jnp.maximum(ops.tree_norm(mean), jnp.finfo(kind).tiny)
        return mean, jax.tree.map(lambda m: m.astype(kind) / length, mean)
    return mean, jax.tree.map(jnp.sign, mean) if direction == "sign" else std


def line_from(start: PyTree, direction: PyTree, updates: PyTree, known: jax.Array) -> Line:
    """The rows `start - step * direction`, both like one update, measured from the rows `known`; one pass."""

    def from_start(row: PyTree, start: PyTree, direction: PyTree) -> tuple[jax.Array, jax.Array]:
        moved = jax.tree.map(jnp.subtract, row, start)
        return ops.tree_dot(moved, moved), ops.tree_dot(moved, direction)

    a, b = ops.map_rows(from_start, updates, shared=(start, direction))
    c = ops.tree_dot(direction, direction)
    return Line(start, direction, known, jnp.where(known, a, 0.0), jnp.where(known, b, 0.0), c)


def largest_step(accept: Callable[[jax.Array], jax.Array], largest: float = LARGEST_STEP) -> jax.Array:
    """The largest step that is accepted, to 1e-6, if what is accepted is an interval from 0; 0 if none is.

    Args:
      accept: of a step, whether it is within the bound; called a fixed number of times, first with half of `largest`.
      largest: where the search ends.
    """

    def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        good = accept(middle)
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    return jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.float32(0), jnp.float32(largest)))[0]
