"""How many clusters some numbers on a line have, by the gap statistic (Tibshirani, Walther and Hastie, JRSS B 2001).

Clusters are those of k-means with the smallest sum of squares, found exactly: on a line they are intervals, and the best
division of the first j numbers follows from those of fewer numbers.
"""

import math

import jax
import jax.numpy as jnp

MOST_CLUSTERS = 7
REFERENCES = 10


def two_groups(values: jax.Array, which: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether some numbers fall into more than one cluster, bool `()`; and which are in the upper one of two, bool `(n,)`.

    Args:
      values: `(n,)`.
      which: bool `(n,)`, the numbers that count.
      key: of the reference sets, ten of as many uniform draws as numbers count.
    """
    count = jnp.sum(which, dtype=jnp.int32)
    low, high = jnp.min(jnp.where(which, values, jnp.inf)), jnp.max(jnp.where(which, values, -jnp.inf))
    scaled = jnp.where(which & (high > low), (values - low) / jnp.where(high > low, high - low, 1.0), 0.0)
    ordered = _in_order(scaled, which)
    within = sums_of_squares(ordered, count)
    # In this order absent rows at the end change no draw.
    draws = jax.random.uniform(key, (len(values), REFERENCES), values.dtype).T
    counted = jnp.arange(len(values), dtype=jnp.int32) < count
    references = jax.vmap(lambda x: sums_of_squares(_in_order(x, counted), count))(draws)
    threshold = ordered[_upper_start(ordered, count)]
    return num_clusters(within, references) > 1, which & (scaled >= threshold) & (high > low)


def num_clusters(within: jax.Array, references: jax.Array) -> jax.Array:
    """The smallest k with gap_k - gap_(k+1) + s_(k+1) >= 0, int32; the most, 7, if there is none.

        gap_k = ln(mean over references of W*_k) - ln W_k,    s_k = sqrt(1 + 1 / references) * std of ln W*_k

    with the population standard deviation. A k that fits exactly is taken; one that the references fit exactly too, since
    there are so few numbers, is passed over.

    Args:
      within: `(7,)`, W_k, the sum of squares within k clusters.
      references: `(references, 7)`, W*_k, the same of uniform draws.
    """
    exact, usable = within <= 0, jnp.all(references > 0, axis=0)
    logs = jnp.log(jnp.where(usable[None], references, 1.0))
    gap = jnp.log(jnp.mean(jnp.where(usable[None], references, 1.0), axis=0)) - jnp.log(jnp.where(exact, 1.0, within))
    deviation = jnp.std(logs, axis=0) * math.sqrt(1 + 1 / references.shape[0])
    enough = (gap[:-1] - gap[1:] + deviation[1:] >= 0) & ~exact[1:]
    enough = enough | exact[:-1] | ~usable[1:]
    return jnp.where(jnp.any(enough), jnp.argmax(enough) + 1, len(within)).astype(jnp.int32)


def sums_of_squares(ordered: jax.Array, count: jax.Array) -> jax.Array:
    """Smallest sum of squared distances to the means of at most k clusters, for k = 1 to 7: `(7,)`.

    Args:
      ordered: `(n,)`, rising up to `count`; what follows may be anything finite.
      count: how many numbers there are.
    """
    costs = _costs(ordered)
    last = jnp.maximum(count - 1, 0)
    best, found = costs[:, 0], []
    for _ in range(MOST_CLUSTERS):
        found.append(jnp.where(count > 0, best[last], 0.0))
        best = jnp.min(_before(best) + costs, axis=1)
    return jnp.stack(found)


def _upper_start(ordered: jax.Array, count: jax.Array) -> jax.Array:
    """Where the upper one of the two best clusters begins, at least 1 where there are two numbers: int32 `()`."""
    costs = _costs(ordered)
    last = jnp.maximum(count - 1, 0)
    divided = (_before(costs[:, 0]) + costs)[last]
    return jnp.argmin(divided.at[0].set(jnp.where(count > 1, jnp.inf, divided[0]))).astype(jnp.int32)


def _before(best: jax.Array) -> jax.Array:
    """In column i the cost of the numbers before i: `(n,)` to `(1, n)`."""
    return jnp.concatenate([jnp.zeros(1, best.dtype), best[:-1]])[None]


def _costs(ordered: jax.Array) -> jax.Array:
    """Sum of squared distances to their mean of the numbers i to j, in row j and column i; infinite for i > j."""
    place = jnp.arange(len(ordered), dtype=jnp.int32)

    def add(carry: tuple[jax.Array, jax.Array], j: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        mean, squares = carry  # of the numbers i to j - 1: sums of squares that do not cancel
        size = (j - place + 1).astype(ordered.dtype)
        off = ordered[j] - mean
        moved = mean + off / jnp.maximum(size, 1)
        begun = place <= j
        squares = jnp.where(begun, squares + off * (ordered[j] - moved), 0.0)
        return (jnp.where(begun, moved, 0.0), squares), jnp.where(begun, squares, jnp.inf)

    zeros = jnp.zeros_like(ordered)
    return jax.lax.scan(add, (zeros, zeros), place)[1]


def _in_order(values: jax.Array, which: jax.Array) -> jax.Array:
    """The numbers that count in order, then zeros."""
    ordered = jnp.sort(jnp.where(which, values, jnp.inf), stable=False)
    return jnp.where(jnp.isfinite(ordered), ordered, 0.0)
