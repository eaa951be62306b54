"""Attacks that know the rule: tailored to the trimmed mean, the median, Krum, Multi-Krum and Bulyan.

All send `mean - step * p`, the attacker foreseeing the rule on the rows it knows and copies of the crafted one. Source:
Shejwalkar and Houmansadr, NDSS 2021, section IV (AGR-tailored); p is the standard deviation where nothing else is said.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import at_most
from lasa_jax.aggregators.krum import iterated_selection, krum_scores
from lasa_jax.attacks.base import KNOWLEDGE, Attack, PyTree, known_rows, same_row, simulated_copies
from lasa_jax.attacks.distance import DIRECTIONS, LARGEST_STEP, course, largest_step, measure
from lasa_jax.errors import check_choice

_ATTEMPTS = 24  # of the official search for the median, until the steps are smaller than the resolution
_RESOLUTION = 1e-5
_OFFICIAL_LARGEST = 6.0  # of the official search against Multi-Krum, which begins with 3


def tailored_trmean(variant: str = "paper", knowledge: str = "benign") -> Attack:
    """Moves the trimmed mean as far as it goes, with the smallest step that does.

        row = mean - step * std,    step = smallest with the lowest trimmed mean of (known rows, m copies of row)

    in every coordinate, with m values trimmed at each end. The copies push the trimmed mean down until all of them are
    trimmed, that is until they lie at or below the smallest known value. So no search is needed:

        step = max over coordinates and known rows of (mean - x) / std

    Args:
      variant: "paper" as above. "official" is step = 10: in the official search the first trial always passes and no
        larger step gains (docs/fidelity.md, section 4.1).
      knowledge: whose updates, see `known_rows`. As in the official code: "colluders".
    """
    check_choice("variant", variant, ("paper", "official"))
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        mean, std = ops.mean_and_std(updates, known)
        kind = ops.wide(updates)
        step = jnp.asarray(10, kind)
        if variant == "paper":

            def farthest(row: PyTree, mean: PyTree, std: PyTree) -> jax.Array:
                """The largest number of standard deviations that the row lies below the mean."""
                steps = jax.tree.map(
                    lambda x, m, s: jnp.max(jnp.where(s > 0, m - x, 0) / jnp.where(s > 0, s, 1), initial=0).astype(
                        kind
                    ),
                    row,
                    mean,
                    std,
                )
                return jnp.max(jnp.stack(jax.tree.leaves(steps)))

            farthest_of = ops.map_rows(farthest, updates, shared=(mean, std))
            step = jnp.max(farthest_of, where=known, initial=0.0)
        return jax.tree.map(lambda m, s: m.astype(kind) - step * s.astype(kind), mean, std)

    return same_row(craft_row)


def tailored_krum(knowledge: str = "benign") -> Attack:
    """The farthest row on the line `mean - step * std` that Krum would still choose.

    The idea is that of Fang, Cao, Jia and Gong (USENIX Security 2020), the direction is not: theirs goes against the sign of
    the honest step, equally far in every coordinate; this one goes down, farther where honest clients differ more.

    The attacker runs Krum on the k rows it knows and its m copies, assuming m malicious: the copies are at distance 0 from
    each other, and their distances to the known rows are quadratics in the step, so nothing is read again. The step is the
    largest, to 20 / 2**24 and at most 20, found by halving.

    Args:
      knowledge: whose updates, see `known_rows`.
    """
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        line = measure(updates, known)
        pairs = line.pairwise(updates)
        n = len(known)
        others = jnp.where(jnp.eye(n, dtype=bool) | ~known[None, :], jnp.inf, pairs)
        copies = simulated_copies(knowledge, malicious, present)
        neighbours = jnp.maximum(jnp.sum(known, dtype=jnp.int32) - 2, 1)
        is_copy = jnp.arange(n, dtype=jnp.int32) < copies
        twins = jnp.where(jnp.arange(n, dtype=jnp.int32) < copies - 1, 0.0, jnp.inf).astype(line.a.dtype)

        def krum_chooses(step: jax.Array) -> jax.Array:
            apart = jnp.where(known, line.squared(step), jnp.inf)
            crafted = ops.sum_of_smallest(jnp.concatenate([apart, twins]), neighbours)
            to_copies = jnp.where(is_copy[None, :], apart[:, None], jnp.inf)
            honest = ops.sum_of_smallest(jnp.concatenate([others, to_copies], axis=1), neighbours)
            return crafted <= jnp.min(jnp.where(known, honest, jnp.inf))

        return line.at(largest_step(krum_chooses))

    return same_row(craft_row)


def tailored_median(variant: str = "paper", knowledge: str = "benign", direction: str = "std") -> Attack:
    """Moves the median as far as it goes, with the smallest step that does.

        row = mean - step * p,    step = smallest with the largest |median of (known rows, m copies of row) - mean|

    Of k known values and m copies of v, the value of rank r is v, but no less than the known value of rank r - m and no more
    than that of rank r. So it stands still once v is beyond these in every coordinate, and no search over stacks is needed:

        step = max over coordinates of (mean - value of rank r - m) / p;    where p < 0, of (mean - value of rank r) / p

    Args:
      variant: "paper" as above, for the usual median. "official" searches as the official code does, for the lower median:
        from 10, with steps of 5, 2.5, ..., for what moves it farther than any step before
        (docs/fidelity.md, section 4.3).
      knowledge: whose updates, see `known_rows`.
      direction: p, see `min_max`.

    The step is at most 20: a majority of copies, or an entry of p that is almost 0, would ask for more.
    """
    check_choice("variant", variant, ("paper", "official"))
    check_choice("knowledge", knowledge, KNOWLEDGE)
    check_choice("direction", direction, DIRECTIONS)
    official = variant == "official"

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        copies = simulated_copies(knowledge, malicious, present)
        start, away = course(updates, known, direction)
        kind = ops.wide(updates)
        count = jnp.sum(known, dtype=jnp.int32)
        first = (count + copies - 1) // 2
        last = first if official else (count + copies) // 2

        def of_rank(rank: jax.Array) -> PyTree:
            values = ops.map_columns(_value_of_rank, updates, shared=(known, rank))
            return jax.tree.map(lambda x: x.astype(kind), values)

        low = of_rank(first - copies)
        # With std for p the row goes down everywhere, and the upper end is met by the search only.
        high = of_rank(last) if official or direction != "std" else low
        step = _official_search(start, away, low, high) if official else _smallest_step(start, away, low, high)
        return jax.tree.map(lambda m, p: m.astype(kind) - step * p.astype(kind), start, away)

    return same_row(craft_row)


def _value_of_rank(block: jax.Array, known: jax.Array, rank: jax.Array) -> jax.Array:
    """The known value of that rank in every column, infinite beyond the ends."""
    ordered = ops.sort_clients(block, known)
    count = jnp.sum(known, dtype=jnp.int32)
    value = jnp.take(ordered, jnp.clip(rank, 0, len(known) - 1), axis=0)
    return jnp.where(rank < 0, -jnp.inf, jnp.where(rank >= count, jnp.inf, value))


def _smallest_step(start: PyTree, away: PyTree, low: PyTree, high: PyTree) -> jax.Array:
    """The smallest step, at most 20, at which `start - step * away` is beyond `low` where it goes down, `high` where up."""
    kind = ops.wide((start, low))

    def farthest(start: jax.Array, away: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
        moved = start.astype(kind) - jnp.where(away > 0, low, high)
        away = away.astype(kind)
        return jnp.max(jnp.where(away != 0, moved / jnp.where(away != 0, away, 1), 0), initial=0)

    steps = jax.tree.leaves(jax.tree.map(farthest, start, away, low, high))
    return jnp.clip(jnp.max(jnp.stack(steps)), 0, LARGEST_STEP)


def _official_search(start: PyTree, away: PyTree, low: PyTree, high: PyTree) -> jax.Array:
    """The step that the official search ends with, if a step passes that moves the median farther than all before.

    There it must move it farther than the one before; the median standing still beyond a step, rounding would decide.
    """
    kind = ops.wide((start, low))

    def moved(step: jax.Array) -> jax.Array:
        def of(m: jax.Array, p: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
            m = m.astype(kind)
            return jnp.clip(m - step * p.astype(kind), low, high) - m

        return ops.tree_norm(jax.tree.map(of, start, away, low, high))

    def attempt(width: jax.Array, tried: tuple) -> tuple:
        step, width, best, farthest = tried
        now = moved(step)
        good, goes_on = now > farthest, jnp.abs(step - best) > _RESOLUTION
        best = jnp.where(good & goes_on, step, best)
        farthest = jnp.where(good & goes_on, now, farthest)
        return jnp.where(good, step + width / 2, step - width / 2), width / 2, best, farthest

    first = jnp.asarray(LARGEST_STEP / 2, kind)
    return jax.lax.fori_loop(0, _ATTEMPTS, attempt, (first, first, jnp.zeros((), kind), jnp.full((), -1, kind)))[2]


def tailored_multi_krum(variant: str = "paper", knowledge: str = "benign", direction: str = "std") -> Attack:
    """The farthest row on the line `mean - step * p` of which Multi-Krum would still pick all copies.

    The attacker runs Multi-Krum on the k rows it knows and its m copies, assuming m malicious; see `tailored_krum`.

    Args:
      variant: Multi-Krum's that is foreseen: "paper" picks the best k rows by one scoring, "official" one at a time, see
        `aggregators.multi_krum`.
      knowledge: whose updates, see `known_rows`.
      direction: p, see `min_max`.

    The step is at most 20, in the variant "official" 6, since that search begins with 3; where no step is found, the row is
    the mean.
    """

    def picked(distances: jax.Array, present: jax.Array, copies: jax.Array) -> jax.Array:
        n = jnp.sum(present, dtype=jnp.int32)
        f = at_most((n - 3) // 2, copies)
        if variant == "official":
            in_order = jnp.arange(len(present), dtype=distances.dtype)  # the copies first, as there
            return iterated_selection(distances, present, n - 2 * f - 2, f, 1, in_order)
        scores = krum_scores(distances, n - f - 2)
        to_all = jnp.sum(jnp.where(jnp.isfinite(distances), distances, 0.0), axis=1)
        return jnp.argsort(jnp.lexsort((to_all, scores))).astype(jnp.int32) < n - f

    return _picked_whole(picked, variant, knowledge, direction)


def tailored_bulyan(variant: str = "paper", knowledge: str = "benign", direction: str = "std") -> Attack:
    """The farthest row on the line `mean - step * p` of which Bulyan would still select all copies.

    Args:
      variant: "paper" foresees Bulyan's own selection of n - 2f clients. "official" is `tailored_multi_krum`: the
        official code searches against Multi-Krum here too.
      knowledge: whose updates, see `known_rows`.
      direction: p, see `min_max`.

    The step is at most 20; where no step is found, the row is the mean.
    """
    if variant == "official":
        return tailored_multi_krum(variant, knowledge, direction)

    def picked(distances: jax.Array, present: jax.Array, copies: jax.Array) -> jax.Array:
        n = jnp.sum(present, dtype=jnp.int32)
        f = at_most((n - 3) // 4, copies)
        return iterated_selection(distances, present, n - 2 * f, f, 0)

    return _picked_whole(picked, variant, knowledge, direction)


def _picked_whole(picked: Callable[..., jax.Array], variant: str, knowledge: str, direction: str) -> Attack:
    """The farthest row of which all copies are picked.

    Args:
      picked: `picked(distances, present, copies) -> bool (n,)`, of the squared distances between rows.
      variant, knowledge, direction: see `tailored_multi_krum`.
    """
    check_choice("variant", variant, ("paper", "official"))
    check_choice("knowledge", knowledge, KNOWLEDGE)
    check_choice("direction", direction, DIRECTIONS)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        line = measure(updates, known, direction)
        pairs = line.pairwise(updates)
        copies = simulated_copies(knowledge, malicious, present)
        is_copy = jnp.arange(len(known), dtype=jnp.int32) < copies
        among = jnp.where(is_copy[:, None] & is_copy[None, :], 0.0, jnp.inf).astype(pairs.dtype)
        everybody = jnp.concatenate([is_copy, known])

        def accept(step: jax.Array) -> jax.Array:
            apart = jnp.where(is_copy[:, None] & known[None, :], line.squared(step)[None, :], jnp.inf)
            above, below = jnp.concatenate([among, apart], axis=1), jnp.concatenate([apart.T, pairs], axis=1)
            chosen = picked(jnp.concatenate([above, below]), everybody, copies)
            return jnp.all(chosen[: len(known)] | ~is_copy)

        return line.at(largest_step(accept, _OFFICIAL_LARGEST if variant == "official" else LARGEST_STEP))

    return same_row(craft_row)
