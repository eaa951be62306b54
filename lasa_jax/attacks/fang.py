"""Directed deviation: against the trimmed mean and the median, and against Krum.

Source: Fang, Cao, Jia and Gong, USENIX Security 2020, section 4. Both push the global model against the signs s of the way
it would go. Here everything is an update: the model that the clients received is the origin.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.krum import krum_scores
from lasa_jax.attacks.base import (
    KNOWLEDGE,
    Attack,
    PyTree,
    Scalar,
    checked,
    honest_examples,
    known_rows,
    row_keys,
    same_row,
    stateless,
)
from lasa_jax.attacks.distance import Line, line_from
from lasa_jax.errors import check_choice, check_number

_VARIANTS = ("paper", "official")
_MOST_HALVINGS = 160  # from the largest float32 to the smallest step: so that no input is a hang


def fang_trmean(b: Scalar = 2.0, variant: str = "paper", knowledge: str = "benign") -> Attack:
    """Against the trimmed mean and the median: values just beyond those of the known clients, on the wrong side.

        s = sign(sum of the known x_i),    lo, hi = smallest and largest known value,    in every coordinate

        s > 0:  in [lo / b, lo] if lo > 0, else in [b lo, lo]
        s < 0:  in [hi, b hi] if hi > 0, else in [hi, hi / b]
        s = 0:  0

    An attacker who knows its colluders only estimates the values of the others, with mean and std of its own:

        s = sign(mean),    s > 0:  in [mean - 4 std, mean - 3 std],    s < 0:  in [mean + 3 std, mean + 4 std]

    Args:
      b: how far beyond, `> 1`; 2 in the paper. May be traced.
      variant: "paper" draws each value of each malicious client in its interval. "official" sends the far end for all; with
        "colluders" the middle, and the std divides by the count.
      knowledge: whose updates, see `known_rows`. As in the official code: "all" or "colluders".

    Raises:
      InputError: for a value out of range.
    """
    check_number("b", b, above=1)
    check_choice("variant", variant, _VARIANTS)
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree]:
        malicious, present = checked(updates, malicious, present)
        known = known_rows(knowledge, malicious, present)
        guess = _around_the_mean if knowledge == "colluders" else _beyond_the_extremes
        first, last = guess(updates, known, jnp.asarray(b, ops.wide(updates)), variant)

        def drawn(row: PyTree, key: jax.Array) -> PyTree:
            keys = jax.random.split(key, len(jax.tree.leaves(row)))
            keys = jax.tree.unflatten(jax.tree.structure(row), list(keys))

            def between(key: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
                return x + jax.random.uniform(key, x.shape, x.dtype) * (y - x)

            return jax.tree.map(between, keys, first, last)

        if variant == "official":
            return ops.replace_rows(lambda _: last, updates, malicious), state
        return ops.replace_rows(drawn, updates, malicious, row_keys(key, len(malicious))), state

    return Attack(stateless, honest_examples, craft)


def _beyond_the_extremes(updates: PyTree, known: jax.Array, b: jax.Array, variant: str) -> tuple[PyTree, PyTree]:
    """The near and the far end of each coordinate's interval, one update each."""

    def ends(block: jax.Array, known: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        among = known[:, None]
        sign = jnp.sign(jnp.sum(jnp.where(among, block, 0), axis=0))
        low = jnp.min(jnp.where(among, block, jnp.inf), axis=0)
        high = jnp.max(jnp.where(among, block, -jnp.inf), axis=0)
        near = jnp.where(sign > 0, low, jnp.where(sign < 0, high, 0))
        far = jnp.where((near > 0) == (sign > 0), near / b, near * b)
        return (near, far) if variant == "paper" else (far,)

    found = ops.map_columns(ends, updates, shared=(known, b))  # both in one reading
    near, far = (jax.tree.map(lambda x: x.astype(b.dtype), row) for row in (found[0], found[-1]))
    return near, far


def _around_the_mean(updates: PyTree, known: jax.Array, b: jax.Array, variant: str) -> tuple[PyTree, PyTree]:
    """3 and 4 standard deviations from the mean; 3.5 for "official", whose std divides by the count."""
    mean, std = ops.mean_and_std(updates, known)
    count = jnp.sum(known, dtype=jnp.int32).astype(b.dtype)
    scale = ops.root(jnp.maximum(count - 1, 0) / jnp.maximum(count, 1)) if variant == "official" else 1.0

    def away(times: float) -> PyTree:
        return jax.tree.map(
            lambda m, s: m.astype(b.dtype) - jnp.sign(m).astype(b.dtype) * (times * scale * s.astype(b.dtype)),
            mean,
            std,
        )

    return away(3.0), away(3.5 if variant == "official" else 4.0)


def fang_krum(variant: str = "paper", knowledge: str = "benign") -> Attack:
    """Against Krum: the same row from all malicious clients, as far against the signs as Krum still picks it.

        row = -step * s,    s = sign of the row that Krum would pick of the known ones, or of the mean of the colluders' own

    The attacker runs Krum on the benign rows and f copies of the row, and halves the step until a copy is picked or the step
    is at most 1e-5. An attacker who knows its colluders only runs it on their own rows and c copies, told that c are
    malicious, for c = 1, 2, ... f - 1 until a copy is picked.

    Args:
      variant: "paper" starts from a bound: with m known rows, f copies, and d entries

            min_i (sum of the m - f - 2 smallest |x_i - x_j|) / ((m - f - 1) sqrt(d)) + max_i |x_i - mean| / sqrt(d)

        "official" starts from 1, and with "colluders" stops at 2e-5.
      knowledge: whose updates, see `known_rows`. As in the official code: "all" or "colluders". With "all" only s is taken
        from all; the copies stand beside the benign rows.

    Fang et al. also add a random offset of norm up to 0.01 to the copies; none is added here. Of equal scores the copies
    come first beside the benign rows, last beside the colluders' own: rows that are nearest to each other have equal ones.
    So the copy of a single colluder that knows itself only is never picked.
    """
    check_choice("variant", variant, _VARIANTS)
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        alone = knowledge == "colluders"
        known = known_rows(knowledge, malicious, present)
        faced = known if alone else known_rows("benign", malicious, present)
        f = jnp.maximum(jnp.sum(malicious, dtype=jnp.int32), 1)
        count = jnp.sum(known, dtype=jnp.int32)
        kind = ops.wide(updates)
        share = known.astype(kind) / jnp.maximum(count, 1).astype(kind)
        mean = ops.weighted_sum(share, updates)
        apart = jnp.where(known, ops.map_rows(_distance, updates, shared=(mean,)), jnp.inf)
        pairs = ops.squared_distances(ops.gram(updates, known, jnp.argmin(apart)))
        towards = mean
        if not alone:
            scores = krum_scores(pairs, jnp.maximum(count - f - 2, 1))
            picked = jnp.arange(len(known), dtype=jnp.int32) == jnp.argmin(scores).astype(jnp.int32)
            towards = ops.weighted_sum(picked.astype(kind), updates)
        zero = jax.tree.map(jnp.zeros_like, towards)
        line = line_from(zero, jax.tree.map(jnp.sign, towards), updates, faced)
        pairs = jnp.where(faced[:, None] & faced[None, :], pairs, jnp.inf)
        apart = jnp.where(faced, apart, -jnp.inf)
        entries = sum(x.size for x in jax.tree.leaves(towards))
        least = 2e-5 if alone and variant == "official" else 1e-5

        def search(copies: jax.Array) -> tuple[jax.Array, jax.Array]:
            start = jnp.ones((), kind) if variant == "official" else _upper_bound(pairs, apart, copies, entries)
            return _halved(lambda step: _krum_picks(line, pairs, copies, step, not alone), start, least)

        if not alone:
            return line.at(search(f)[0])

        def more(tried: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            return (tried[0] + 1, *search(tried[0] + 1))

        first = (jnp.int32(1), *search(jnp.int32(1)))
        return line.at(jax.lax.while_loop(lambda tried: ~tried[2] & (tried[0] < f - 1), more, first)[1])

    return same_row(craft_row)


def _distance(row: PyTree, mean: PyTree) -> jax.Array:
    return ops.tree_norm(jax.tree.map(jnp.subtract, row, mean))


def _upper_bound(pairs: jax.Array, apart: jax.Array, copies: jax.Array, entries: int) -> jax.Array:
    """The first step of the variant "paper", see `fang_krum`; 0 where one row is known.

    Args:
      pairs: squared distances between the rows, `(n, n)`; infinite for rows that are not known.
      apart: `|x_i - mean|`, `(n,)`; -infinity for rows that are not known.
      copies: f.
      entries: d.
    """
    known = apart >= 0
    m = jnp.sum(known, dtype=jnp.int32)
    others = jnp.where(jnp.eye(len(known), dtype=bool) | ~known[None, :], jnp.inf, jnp.sqrt(pairs))
    neighbours = jnp.clip(m - copies - 2, 0, m - 1)
    nearest = jnp.min(jnp.where(known, ops.sum_of_smallest(others, neighbours), jnp.inf))
    divisor = jnp.maximum(m - copies - 1, 1).astype(apart.dtype)
    return (nearest / divisor + jnp.max(apart)) / jnp.asarray(entries, apart.dtype) ** 0.5


def _krum_picks(line: Line, pairs: jax.Array, copies: jax.Array, step: jax.Array, ties: bool) -> jax.Array:
    """Whether Krum, told how many copies there are, picks one of them beside the rows that the line is measured from.

    Args:
      line, pairs, copies, step: see `fang_krum`.
      ties: whether the copies come first where scores are equal.
    """
    n, known = len(line.known), line.known
    place = jnp.arange(n, dtype=jnp.int32)
    neighbours = jnp.maximum(jnp.sum(known, dtype=jnp.int32) - 2, 1)
    apart = jnp.where(known, line.squared(step), jnp.inf)
    twins = jnp.where(place < copies - 1, 0.0, jnp.inf).astype(apart.dtype)
    crafted = ops.sum_of_smallest(jnp.concatenate([apart, twins]), neighbours)
    others = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, pairs)
    to_copies = jnp.where((place < copies)[None, :], apart[:, None], jnp.inf)
    honest = ops.sum_of_smallest(jnp.concatenate([others, to_copies], axis=1), neighbours)
    best = jnp.min(jnp.where(known, honest, jnp.inf))
    return crafted <= best if ties else crafted < best


def _halved(accept: Callable[[jax.Array], jax.Array], start: jax.Array, least: float) -> tuple[jax.Array, jax.Array]:
    """The first of `start, start / 2, start / 4, ...` that is accepted or at most `least`, and whether it is accepted."""

    def halve(tried: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        return tried[0] / 2, accept(tried[0] / 2), tried[2] + 1

    def goes_on(tried: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return ~tried[1] & (tried[0] > least) & (tried[2] < _MOST_HALVINGS)

    return jax.lax.while_loop(goes_on, halve, (start, accept(start), jnp.int32(0)))[:2]
