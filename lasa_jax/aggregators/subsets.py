"""Rules that average the best of all subsets of n - f clients: minimum diameter and smallest largest eigenvalue.

Both are exact and walk through all C(n, f) subsets, a group of them at a time, in lexicographic order. The number of
clients that are dropped stays a number of the program. `build` refuses more than `MOST_SUBSETS` before anything is compiled.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax import ops
from lasa_jax.aggregators.base import (
    Aggregator,
    Count,
    PyTree,
    Rows,
    Scalar,
    Selection,
    at_most,
    equal_weights,
    stateless,
)
from lasa_jax.errors import InputError, check_number

MOST_SUBSETS = 200_000  # 177,100 subsets of 19 out of 25 clients
_AT_ONCE = 256  # subsets of a group, at most
_ENTRIES = 2**17  # of the matrices of a group together
_RANGE = 2**31 - 1

Measure = Callable[[jax.Array, jax.Array], jax.Array]  # of chosen clients, bool (n,), and a matrix (n, n)


def mda(assumed_malicious: Count | None = None) -> Aggregator:
    """Averages the n - f clients that lie closest together (minimum diameter averaging).

        S = the subset of n - f clients with the smallest max of |x_i - x_j| over i, j in S,    F(Delta) = mean over S

    Source: El Mhamdi, Guerraoui, Guirguis, Hoang and Rouault, PODC 2020; the estimator is Rousseeuw's, 1985. While no more
    than f < n / 2 clients are malicious, S has no larger diameter than the benign clients and shares one with them, so the
    result is within twice that diameter of every benign client. A client whose update is not finite is in none; where fewer
    than n - f are finite, all of these are averaged.

    Of equal subsets the first in lexicographic order is taken, as in public implementations. Subsets that share their
    farthest pair are equal, so the order of the clients counts.

    Time grows with C(n, f): 177,100 subsets at n = 25 and f = 6, and 5 * 10^20 at n = 100 and f = 20, which does not end.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be traced.

    Raises:
      InputError: for a number out of range.

    `score` in the diagnostics is each client's largest distance to a client of S.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.mda(assumed_malicious=1)
      >>> updates = {"w": jnp.array([[1.0], [2.0], [3.0], [100.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.0]
    """

    def diameter(chosen: jax.Array, distances: jax.Array) -> jax.Array:
        return jnp.max(jnp.where(chosen[:, None] & chosen[None, :], distances, 0.0))

    def to_farthest(chosen: jax.Array, distances: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.max(jnp.where(chosen[None, :], distances, 0.0), axis=1))

    return _best_subset(assumed_malicious, lambda rows: (rows.squared_distances, 1.0), diameter, to_farthest)


def smea(assumed_malicious: Count | None = None) -> Aggregator:
    """Averages the n - f clients whose spread is smallest in the direction in which it is largest.

        S = the subset of n - f clients with the smallest lambda_max of C_S,    F(Delta) = mean over S
        C_S = 1 / |S| * sum of (x_i - mu_S)(x_i - mu_S)^T over i in S

    Source: Allouah, Guerraoui, Gupta, Pinot and Stephan, ICML 2023 (smallest maximum eigenvalue averaging). For f < n / 2
    its squared error is at most `4 f / (n - f) * (1 + f / (n - 2f))^2` times the benign clients' largest eigenvalue, so it
    does not grow with the number of coordinates as that of rules for each coordinate does. C_S has the non-zero
    eigenvalues of `H G_S H / |S|`, G_S the inner products of the clients of S and H = I - 1/|S|. Ties, updates that are
    not finite and time: see `mda`; a subset takes 20 times as long.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be traced.

    Raises:
      InputError: for a number out of range.

    `score` in the diagnostics is each client's distance to the mean of S.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.smea(assumed_malicious=1)
      >>> updates = {"w": jnp.array([[1.0], [2.0], [3.0], [100.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.0]
    """

    def products(rows: Rows) -> tuple[jax.Array, jax.Array]:
        gram = jnp.where(jnp.isfinite(rows.gram), rows.gram, 0.0)
        far = jnp.max(jnp.diagonal(gram)) > 1e18  # scaled down, so that no sum of products leaves float32
        return gram * jnp.where(far, 2.0**-64, 1.0), jnp.where(far, 2.0**32, 1.0)

    def largest_eigenvalue(chosen: jax.Array, gram: jax.Array) -> jax.Array:
        return ops.top_eigenpair(_centred(chosen, gram))[0] / _size(chosen, gram)

    def to_mean(chosen: jax.Array, gram: jax.Array) -> jax.Array:
        share = chosen.astype(gram.dtype) / _size(chosen, gram)
        of_mean = ops.product(gram, share)
        squares = jnp.diagonal(gram) - 2 * of_mean + jnp.sum(share * of_mean)
        return jnp.sqrt(jnp.maximum(squares, 0.0))

    return _best_subset(assumed_malicious, products, largest_eigenvalue, to_mean)


def _size(chosen: jax.Array, like: jax.Array) -> jax.Array:
    """How many are chosen, at least 1, as a number of another array's type."""
    return jnp.maximum(jnp.sum(chosen, dtype=jnp.int32), 1).astype(like.dtype)


def _centred(chosen: jax.Array, gram: jax.Array) -> jax.Array:
    """Inner products of the chosen clients, each measured from their mean: `(n, n)`, 0 for the others."""
    both = chosen[:, None] & chosen[None, :]
    inside = jnp.where(both, gram, 0.0)
    mean = jnp.sum(inside, axis=1) / _size(chosen, gram)
    whole = jnp.sum(jnp.where(chosen, mean, 0.0)) / _size(chosen, gram)
    return jnp.where(both, inside - mean[:, None] - mean[None, :] + whole, 0.0)


def _best_subset(
    assumed_malicious: Count | None,
    matrix_of: Callable[[Rows], tuple[jax.Array, Scalar]],
    measure: Measure,
    score: Measure,
) -> Aggregator:
    """The mean over the subset of n - f clients with the smallest measure.

    Args:
      assumed_malicious: f.
      matrix_of: of rows to the matrix `(n, n)` that is measured, and what scores of it are multiplied by.
      measure: `(chosen, matrix) -> scalar`, `chosen` bool `(n,)`.
      score: `(chosen, matrix) -> (n,)`, for the diagnostics.
    """
    if assumed_malicious is not None:
        check_number("assumed_malicious", assumed_malicious, low=0, whole=True)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, Selection]:
        rows = Rows.of(updates, present)
        f = at_most((rows.count - 1) // 2, num_malicious if assumed_malicious is None else assumed_malicious)
        usable = rows.present & jnp.isfinite(jnp.diagonal(rows.squared_distances))
        matrix, unit = matrix_of(rows)
        matrix = jax.lax.stop_gradient(matrix)  # who is chosen has no derivative
        kept = jnp.minimum(rows.count - f, jnp.sum(usable, dtype=jnp.int32))
        chosen = smallest(lambda chosen: measure(chosen, matrix), usable, kept)
        weight = equal_weights(rows, chosen)
        scores = jnp.where(usable, score(chosen, matrix) * unit, jnp.inf)
        return rows.weighted_sum(weight), state, Selection(weight, f, scores)

    return Aggregator(stateless, aggregate)


def smallest(measure: Callable[[jax.Array], jax.Array], usable: jax.Array, size: jax.Array) -> jax.Array:
    """The subset of `size` usable clients with the smallest measure, the first in lexicographic order: bool `(n,)`.

    Args:
      measure: `chosen -> scalar`, `chosen` bool `(n,)`. NaN is taken for infinity.
      usable: bool `(n,)`.
      size: at most the number that is usable, int32. May be traced.
    """
    n = len(usable)
    at_once = max(1, min(_AT_ONCE, _ENTRIES // n**2))
    choose = jnp.asarray(_binomials(n))
    order = jnp.argsort(~usable, stable=True)
    count = jnp.sum(usable, dtype=jnp.int32)
    number = choose[count, size]
    places = jnp.arange(n, dtype=jnp.int32)

    def subset(index: jax.Array) -> jax.Array:
        """The subset of that place: a client is in it if the place is among those of the subsets that it begins."""

        def decide(carry: tuple[jax.Array, jax.Array], place: jax.Array) -> tuple[tuple, jax.Array]:
            index, left = carry
            beginning = jnp.where(left > 0, choose[jnp.maximum(count - 1 - place, 0), jnp.maximum(left - 1, 0)], 0)
            taken = (place < count) & (left > 0) & (index < beginning)
            return (jnp.where(taken, index, index - beginning), left - taken.astype(jnp.int32)), taken

        _, taken = jax.lax.scan(decide, (index, size), places)
        return jnp.zeros(n, bool).at[order].set(taken)

    def group(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        first, best, chosen = carry
        indices = first + jnp.arange(at_once, dtype=jnp.int32)
        subsets = jax.vmap(subset)(jnp.minimum(indices, number - 1))
        measured = jax.vmap(measure)(subsets)
        measured = jnp.where((indices < number) & ~jnp.isnan(measured), measured, jnp.inf)
        at = jnp.argmin(measured)
        better = measured[at] < best
        return first + at_once, jnp.where(better, measured[at], best), jnp.where(better, subsets[at], chosen)

    start = (jnp.int32(0), jnp.asarray(jnp.inf, jax.eval_shape(measure, usable).dtype), usable)
    return jax.lax.while_loop(lambda carry: carry[0] < number, group, start)[2]


@functools.cache
def _binomials(n: int) -> np.ndarray:
    """`[m, k]`: subsets of k out of m, no more than an int32 can say: int32 `(n + 1, n + 1)`."""
    table = np.zeros((n + 1, n + 1), np.int64)
    table[:, 0] = 1
    for m in range(1, n + 1):
        table[m, 1:] = np.minimum(table[m - 1, 1:] + table[m - 1, :-1], _RANGE)
    return table.astype(np.int32)


def check_subsets(name: str, n: int, f: int) -> None:
    """Refuses what would not end.

    Args:
      name: of the rule.
      n: rows that it is given: the clients of a round, or the buckets that they are mixed to.
      f: how many of them it drops.

    Raises:
      InputError: if there are more than `MOST_SUBSETS` subsets.
    """
    f = min(max(f, 0), max(n - 1, 0) // 2)
    if (subsets := math.comb(n, f)) > MOST_SUBSETS:
        raise InputError(
            f"config.aggregator.name = {name!r}: too many subsets, {subsets:.1e} of {n - f} out of {n} clients; allowed are "
            f"{MOST_SUBSETS:,}: fewer clients_per_round, or a smaller assumed_malicious"
        )
