"""Rules that trust clients with near neighbours: Krum, Multi-Krum and Bulyan.

All need the squared distances of all pairs only, see `Rows.squared_distances`. A client whose update is not finite, or
farther away than float32 can say, is at an infinite distance from everybody; a client with an infinite score is never
selected, and where nobody has a finite one the update is zero.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import (
    Aggregator,
    Count,
    PyTree,
    Rows,
    Selection,
    at_most,
    equal_weights,
    stateless,
)
from lasa_jax.errors import InputError, check_choice, check_number

_VARIANTS = ("paper", "official")


def krum(assumed_malicious: Count | None = None, variant: str = "paper") -> Aggregator:
    """The one client that is nearest to its n - f - 2 nearest others (Blanchard et al., NeurIPS 2017, section 4).

        score_i = sum of |x_i - x_j|^2 over the n - f - 2 clients j nearest to i,    F(Delta) = x_i of the smallest score

    While no more than f clients are malicious, the result is within (1 + r) D of every benign one, where D is the largest
    distance between two of them and r = sqrt((n - f - 2) / (n - 2f - 1)): the score of x_i is at most that of a benign
    client, (n - f - 2) D^2, and n - 2f - 1 of the distances in it are to benign clients.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 3) // 2`. May be traced.
      variant: "paper" as above; "official" assumes f = 10 and sums one neighbour fewer (docs/fidelity.md, section 3.1).

    Raises:
      InputError: for a number out of range.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.krum(assumed_malicious=1)
      >>> updates = {"w": jnp.array([[1.0], [1.1], [1.3], [1.6], [100.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> round(update["w"].item(), 3)
      1.1
    """
    return _krum(assumed_malicious, variant, lambda n, f: jnp.int32(1))


def multi_krum(
    assumed_malicious: Count | None = None, num_selected: Count | None = None, variant: str = "paper"
) -> Aggregator:
    """The mean of the m clients with the best Krum scores (Blanchard et al., NeurIPS 2017, section 5).

    With m = n - f each of them is as near to the benign clients as Krum's one, so their mean is too, see `krum`.

    Args:
      assumed_malicious: f, see `krum`.
      num_selected: m, `>= 1`; n - f if None. May be traced. The official variant has its own.
      variant: "paper" scores once. "official" assumes f = 10, sums one neighbour fewer, and picks one client at a time,
        scoring the rest again, while more than 2f + 2 remain: 78 of 100, 3 of 25 (docs/fidelity.md, section 3.1).

    Raises:
      InputError: for a value out of range.
    """
    if num_selected is not None:
        check_number("num_selected", num_selected, low=1, whole=True)
        if variant == "official":
            raise InputError(
                f"num_selected = {num_selected}: the variant 'official' selects n - 2f - 2 clients; leave it out"
            )
    if variant == "official":
        return _krum(assumed_malicious, variant, lambda n, f: n - 2 * f - 2)
    return _krum(assumed_malicious, variant, lambda n, f: n - f if num_selected is None else num_selected)


def _krum(
    assumed_malicious: Count | None, variant: str, num_selected: Callable[[jax.Array, jax.Array], Count]
) -> Aggregator:
    """Selection by Krum score; `num_selected(n, f)` says how many are averaged."""
    assumed_malicious = _assumed(assumed_malicious, variant, official=10)

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
        f = at_most((rows.count - 3) // 2, num_malicious if assumed_malicious is None else assumed_malicious)
        count = num_selected(rows.count, f)
        fewer = int(variant == "official")
        score = krum_scores(rows.squared_distances, rows.count - f - 2 - fewer)
        if variant == "official":
            chosen = iterated_selection(rows.squared_distances, rows.present, count, f, fewer)
        else:
            to_all = jnp.sum(jnp.where(jnp.isfinite(rows.squared_distances), rows.squared_distances, 0.0), axis=1)
            # Of equal scores the smaller sum of all distances first.
            place = jnp.argsort(jnp.lexsort((to_all, score))).astype(jnp.int32)
            chosen = jnp.isfinite(score) & (place < jnp.asarray(count, jnp.int32))
        weight = equal_weights(rows, chosen)
        return rows.weighted_sum(weight), state, Selection(weight, f, score)

    return Aggregator(stateless, aggregate)


def krum_scores(distances: jax.Array, neighbours: Count) -> jax.Array:
    """Sum of the squared distances to the nearest others, `(n,)`; infinite for clients that are absent or not finite.

    Args:
      distances: squared, `(n, n)`, as `ops.squared_distances` gives them.
      neighbours: how many of the nearest others are counted.
    """
    others = jnp.where(jnp.eye(len(distances), dtype=bool), jnp.inf, distances)
    return jnp.where(jnp.isfinite(jnp.diagonal(distances)), ops.sum_of_smallest(others, neighbours), jnp.inf)


def iterated_selection(
    distances: jax.Array, present: jax.Array, count: Count, f: Count, fewer: int, first: jax.Array | None = None
) -> jax.Array:
    """Picks `count` clients one at a time, each the best by Krum among those that remain: bool `(n,)`.

    With r remaining, the r - f - 2 - `fewer` nearest others count; at least one where `fewer` is 0, and of equal scores the
    smaller sum of all distances wins: else the order of the clients would decide. `first`, `(n,)`, decides in its
    place where it is given, the smallest first.
    """
    distances = jax.lax.stop_gradient(distances)  # who is picked has no derivative
    usable = jnp.isfinite(jnp.diagonal(distances))
    others = jnp.where(jnp.eye(len(distances), dtype=bool), jnp.inf, distances)
    nearest = jnp.argsort(others, axis=1)  # sorted once: what remains of a sorted row is sorted
    ordered = jnp.take_along_axis(others, nearest, axis=1)

    def pick(_: jax.Array, remaining: jax.Array) -> jax.Array:
        here = remaining[nearest]
        left = jnp.sum(remaining, dtype=jnp.int32)
        neighbours = jnp.minimum(jnp.maximum(left - f - 2 - fewer, 1 - fewer), left - 1)
        counted = here & (jnp.cumsum(here, axis=1, dtype=jnp.int32) <= neighbours)
        score = jnp.where(remaining & usable, jnp.sum(jnp.where(counted, ordered, 0.0), axis=1), jnp.inf)
        to_all = jnp.sum(jnp.where(here & jnp.isfinite(ordered), ordered, 0.0), axis=1)
        best = jnp.argmin(jnp.where(score <= jnp.min(score), to_all if first is None else first, jnp.inf))
        return remaining.at[best].set(remaining[best] & ~jnp.isfinite(score[best]))

    return present & ~jax.lax.fori_loop(0, count, pick, present)


def bulyan(assumed_malicious: Count | None = None, variant: str = "paper") -> Aggregator:
    """Selects n - 2f clients by Krum and averages, in each coordinate, their n - 4f values nearest to their median.

        S = n - 2f clients, each the best by Krum among those not selected yet
        F(Delta)_j = mean of the n - 4f values Delta_ij, i in S, nearest to their median

    Source: El Mhamdi, Guerraoui and Rouault, ICML 2018, section 4. Needs n >= 4f + 3: at the LASA paper's own setting, 25
    malicious of 100, it can assume no more than 24. While no more than f clients are malicious, a value leaves the range of
    the benign values of its coordinate by no more than the width of that range: their median lies inside, and of the
    values selected enough are benign that none of the nearest is farther away.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 3) // 4`, as in the official code `(n -
        1) // 4`. May be traced.
      variant: "paper" as above. "official" assumes f = 5, sums one neighbour fewer, and of the values sorted by distance
        to the lower median drops the f *nearest* too (docs/fidelity.md, section 3.1).

    Raises:
      InputError: for a number out of range.

    `weight` shows the selected clients; a value of theirs may still be dropped in a coordinate.
    """
    assumed_malicious = _assumed(assumed_malicious, variant, official=5)
    official = variant == "official"

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
        n = rows.count
        f = at_most(
            (n - 1 if official else n - 3) // 4, num_malicious if assumed_malicious is None else assumed_malicious
        )
        distances = rows.squared_distances
        chosen = iterated_selection(distances, rows.present, n - 2 * f, f, fewer=int(official))
        score = krum_scores(distances, n - f - 2 - int(official))

        def around_median(block: jax.Array, _: jax.Array, chosen: jax.Array, f: jax.Array) -> jax.Array:
            ordered = ops.sort_clients(block, chosen)
            count = jnp.sum(chosen, dtype=jnp.int32)
            low, high = ordered[jnp.maximum(count - 1, 0) // 2], ordered[count // 2]
            center = low if official else low / 2 + high / 2
            kept = jnp.maximum(count - (f if official else 2 * f), 0)
            first = nearest_window(ordered, count, center, kept)
            if not official:
                return ops.average_of_ranks(ordered, first, kept)
            inner = nearest_window(ordered, count, center, f)  # the f nearest lie together inside the others
            below = ops.average_of_ranks(ordered, first, inner - first) * (inner - first).astype(block.dtype)
            after = first + kept - inner - f
            above = ops.average_of_ranks(ordered, inner + f, after) * after.astype(block.dtype)
            return (below + above) / jnp.maximum(kept - f, 1).astype(below.dtype)

        update = rows.columns(around_median, chosen, f)
        return update, state, Selection(equal_weights(rows, chosen), f, score)

    return Aggregator(stateless, aggregate)


def nearest_window(ordered: jax.Array, count: jax.Array, center: jax.Array, width: Count) -> jax.Array:
    """First rank of the `width` values nearest to `center`, which are neighbours in sorted order: int32 `(columns,)`.

    Args:
      ordered: `(n, columns)`, sorted; the first `count` rows are values.
      center: `(columns,)`.
      width: at most `count`; may be traced.
    """
    n = len(ordered)
    after = jax.lax.dynamic_slice_in_dim(jnp.concatenate([ordered, ordered]), width, n, axis=0)
    # The window moves on as long as the value behind it is nearer than its first one; once it is not, it never is again.
    center = center[None]
    moves = (jnp.arange(n, dtype=jnp.int32)[:, None] + width < count) & (center - ordered > after - center)
    return jnp.sum(moves, axis=0, dtype=jnp.int32)


def _assumed(assumed_malicious: Count | None, variant: str, official: int) -> Count | None:
    """Checks both arguments; the official code assumes a fixed number."""
    check_choice("variant", variant, _VARIANTS)
    if assumed_malicious is not None:
        check_number("assumed_malicious", assumed_malicious, low=0, whole=True)
        return assumed_malicious
    return official if variant == "official" else None
