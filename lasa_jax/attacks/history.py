"""Attacks over rounds: they follow what the server returned last, and what the global model is and was."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax import ops
from lasa_jax.aggregators import Context
from lasa_jax.aggregators.context import needed
from lasa_jax.attacks.base import (
    KNOWLEDGE,
    Attack,
    PyTree,
    Scalar,
    checked,
    honest_examples,
    known_rows,
    shaped_like,
    stateless,
)
from lasa_jax.attacks.statistical import z_of_a_majority
from lasa_jax.errors import check_choice, check_number


def rop(
    z: Scalar | None = None,
    angle: Scalar = 270.0,
    relocation: Scalar = 1.0,
    history: Scalar = 0.9,
    knowledge: str = "benign",
) -> Attack:
    """Relocated orthogonal perturbation (K. Özfatura, E. Özfatura, Küpçü and Gündüz, IEEE TIFS 2024): a step to the side.

        u   = history * r + (1 - history) * mu          r = what the server returned last, mu = mean of the known updates
        p   = 1 - u <1, u> / <u, u>, to unit length     orthogonal to u; 1 is the vector of ones
        q   = sin(angle) * p + cos(angle) * u / |u|
        row = relocation * r + (1 - relocation) * mu + z * q / |q|

    In the first round, where r is 0, u is mu. Written against centered clipping, which trusts what is near r. The formula of
    the authors' library; there a row is a client's momentum, here it is its update.

    Args:
      z: length of the step, in units of the updates; as `alie` has it if None, which is 0 for a single malicious client. May
        be traced, as the next three.
      angle: in degrees; 270 is orthogonal to u, 180 against it.
      relocation: 1 starts from what the server returned last, 0 from the mean.
      history: the share of what the server returned last in u.
      knowledge: whose mean, see `known_rows`.

    Raises:
      InputError: for a value out of range, and from `craft` without a context that has `last_update`.
    """
    for name, value in (("z", 0.0 if z is None else z), ("angle", angle)):
        check_number(name, value)
    check_number("relocation", relocation, low=0, high=1)
    check_number("history", history, low=0, high=1)
    check_choice("knowledge", knowledge, KNOWLEDGE)
    needs = frozenset({"last_update"})

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree]:
        malicious, present = checked(updates, malicious, present)
        kind = ops.wide(updates)
        last = _as_type(needed(context, needs, "rop").last_update, kind)
        known = known_rows(knowledge, malicious, present).astype(kind)
        mean = _as_type(ops.weighted_sum(known / jnp.maximum(jnp.sum(known), 1), updates), kind)
        share, start, degrees = (jnp.asarray(x, kind) for x in (history, relocation, angle))
        moved = ops.tree_norm(last) > 0
        along = _unit(jax.tree.map(lambda r, m: jnp.where(moved, share * r + (1 - share) * m, m), last, mean))
        summed = sum((ops.total(x) for x in jax.tree.leaves(along)), jnp.zeros((), kind))
        aside = _unit(jax.tree.map(lambda u: 1 - u * summed, along))
        sine, cosine = jnp.sin(jnp.deg2rad(degrees)), jnp.cos(jnp.deg2rad(degrees))
        step = _unit(jax.tree.map(lambda p, u: sine * p + cosine * u, aside, along))
        length = (z_of_a_majority(malicious, present) if z is None else jnp.asarray(z)).astype(kind)
        row = jax.tree.map(lambda r, m, q: start * r + (1 - start) * m + length * q, last, mean, step)
        return ops.replace_rows(lambda _: row, updates, malicious), state

    return Attack(stateless, honest_examples, craft, needs=needs)


class Consistency(NamedTuple):
    """What the attacker of `poisonedfl` remembers.

    Attributes:
      sign: int8, -1 or 1 in every coordinate, 0 until they are drawn.
      row: what was sent last, the mean of it.
      factor: its length, in lengths of the global step.
      tested: the global model after the last round with a test.
      keeps: whether that was the round before, whose model is still to be kept, bool.
    """

    sign: PyTree
    row: PyTree
    factor: jax.Array
    tested: PyTree
    keeps: jax.Array


def poisonedfl(factor: Scalar = 8.0, test_every: int = 50, sign: PyTree = None) -> Attack:
    """PoisonedFL (Xie, Fang and Gong, CVPR 2025): every round the same random direction, sized after what the server does.

        v   = |g - a |g| / |a||, to unit length      g = the global step before, a = the row before; by coordinate
        row = c |g| v s                              s = a random sign in every coordinate, drawn once

    It knows no benign client's update. In rounds 1 + test_every, 1 + 2 test_every, ... before anything is sent, the attacker
    counts the coordinates in which the global model moved with s since the last such round, or round 1; where it did not
    move, in which it is on the side of s. If these are fewer than the 99 % point of Binomial(d, 1/2), the server resists,
    and c falls to 0.7 c, but not below 0.5. While the global model has not moved, as in round 1, honest updates are sent,
    and a is their mean over the malicious clients.

    Args:
      factor: c at the start; 8 in the authors' scripts. May be traced.
      test_every: rounds between tests, `>= 1`.
      sign: s, a pytree like one update; drawn from the key of the first round if None.

    Raises:
      InputError: for a value out of range, a sign that is not shaped as the updates, and from `craft` without a context that
        has `params`, `last_update` and `round_index`.
    """
    check_number("factor", factor, low=0)
    check_number("test_every", test_every, low=1, whole=True)
    needs = frozenset({"params", "last_update", "round_index"})

    def init(params: PyTree) -> Consistency:
        zeros = jax.tree.map(jnp.zeros_like, params)
        given = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.int8), params)
        if sign is not None:
            given = jax.tree.map(lambda s: jnp.sign(jnp.asarray(s)).astype(jnp.int8), shaped_like(sign, params, "sign"))
        copied = jax.tree.map(jnp.copy, params)
        return Consistency(given, zeros, jnp.asarray(factor, jnp.float32), copied, jnp.asarray(False))

    def craft(
        updates: PyTree,
        state: Consistency,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: Context | None = None,
    ) -> tuple[PyTree, Consistency]:
        malicious, present = checked(updates, malicious, present)
        kind = ops.wide(updates)
        params, last, round_index = (getattr(needed(context, needs, "poisonedfl"), name) for name in _SEEN)
        tested = jax.tree.map(lambda new, old: jnp.where(state.keeps, new, old), params, state.tested)

        signs = _drawn_once(state.sign, key)
        moved = ops.tree_norm(last) > 0
        round_index = jnp.asarray(round_index, jnp.int32)
        tests = (round_index - 1) % test_every == 0
        size = sum(x.size for x in jax.tree.leaves(params))
        resists = _count_along(signs, params, tested) < upper_point(size)
        lower = jnp.float32(0.7) * state.factor
        weaker = moved & tests & (round_index > 1) & resists & (lower >= 0.5)
        scale = jnp.where(weaker, lower, state.factor)

        # Hidden from the compiler: where the state is a constant, it makes a NaN of the norm of zeros.
        step, sent = _as_type(last, kind), _as_type(jax.lax.optimization_barrier(state.row), kind)
        length = ops.tree_norm(step)
        ratio = length / (ops.tree_norm(sent) + 1e-9)
        apart = jax.tree.map(lambda g, a: jnp.abs(g - a * ratio), step, sent)
        size_of_row = scale.astype(kind) * length / (ops.tree_norm(apart) + 1e-9)
        row = jax.tree.map(lambda v, s: size_of_row * v * s.astype(kind), apart, signs)

        def send(own: PyTree) -> PyTree:
            return jax.tree.map(lambda x, a: jnp.where(moved, a, x.astype(kind)), own, row)

        def own_mean() -> PyTree:
            chosen = malicious.astype(kind)
            return _as_type(ops.weighted_sum(chosen / jnp.maximum(jnp.sum(chosen), 1), updates), kind)

        honest = jax.lax.cond(ops.any_run(~moved), own_mean, lambda: row)
        kept = jax.tree.map(lambda a, h, like: jnp.where(moved, a, h).astype(like.dtype), row, honest, state.row)
        crafted = ops.replace_rows(send, updates, malicious)
        return crafted, Consistency(signs, kept, scale, tested, tests)

    return Attack(init, honest_examples, craft, needs=needs)


_SEEN = ("params", "last_update", "round_index")


def _drawn_once(sign: PyTree, key: jax.Array) -> PyTree:
    """The signs of the state, or random ones where they are 0 everywhere."""
    leaves, structure = jax.tree.flatten(sign)
    missing = ~jnp.any(jnp.stack([jnp.any(x != 0) for x in leaves]))

    def draw() -> list[jax.Array]:
        keys = jax.random.split(key, len(leaves))
        return [jax.random.rademacher(k, x.shape, jnp.int8) for k, x in zip(keys, leaves, strict=True)]

    drawn = jax.lax.cond(ops.any_run(missing), draw, lambda: leaves)
    return jax.tree.unflatten(structure, [jnp.where(missing, new, x) for new, x in zip(drawn, leaves, strict=True)])


def _count_along(sign: PyTree, params: PyTree, tested: PyTree) -> jax.Array:
    """The number of coordinates in which the model moved with the signs; of one that did not move its own sign counts."""

    def count(s: jax.Array, now: jax.Array, before: jax.Array) -> jax.Array:
        way = jnp.where(now == before, now, jnp.where(now > before, 1, -1).astype(now.dtype))
        return jnp.sum(jnp.sign(way).astype(jnp.int8) == s, dtype=jnp.int32)

    leaves = zip(jax.tree.leaves(sign), jax.tree.leaves(params), jax.tree.leaves(tested), strict=True)
    return sum((count(*leaf) for leaf in leaves), jnp.int32(0))


@functools.cache
def upper_point(size: int) -> int:
    """The 99 % point of Binomial(size, 1/2): the smallest k with P(X <= k) >= 0.99, computed on the host."""
    middle = size // 2
    counts = np.arange(middle, min(size, middle + 10 * math.isqrt(size) + 10) + 1)
    log_middle = math.lgamma(size + 1) - math.lgamma(middle + 1) - math.lgamma(size - middle + 1) - size * math.log(2)
    steps = np.log((size - counts[:-1]) / (counts[:-1] + 1))
    chance = np.exp(
        log_middle + np.concatenate([[0.0], np.cumsum(steps)])
    )  # of each count; what is beyond is below 1e-80
    beyond = np.cumsum(chance[::-1])[::-1] - chance  # P(X > k)
    return int(counts[np.argmax(beyond <= 0.01)])


def mpaf(factor: Scalar = 1e6, base: PyTree = None) -> Attack:
    """MPAF (Cao and Gong, CVPR workshops 2022): every malicious client pulls the global model w to a model of no use.

        row = factor * (base - w)

    It knows no other client's update.

    Args:
      factor: 10^6 in the paper. May be traced.
      base: a pytree like one update; the run's own initial model if None, with which zeros are sent in round 1.

    Raises:
      InputError: for a base that is not shaped as the updates, and from `craft` without a context that has `params`.
    """
    check_number("factor", factor)
    needs = frozenset({"params"})

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(
            lambda b, like: jnp.array(b, like.dtype),
            params if base is None else shaped_like(base, params, "base"),
            params,
        )

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree]:
        malicious, _ = checked(updates, malicious, present)
        kind = ops.wide(updates)
        times = jnp.asarray(factor, kind)
        params = needed(context, needs, "mpaf").params
        row = jax.tree.map(lambda b, w: times * (b.astype(kind) - w.astype(kind)), state, params)
        return ops.replace_rows(lambda _: row, updates, malicious), state

    return Attack(init, honest_examples, craft, needs=needs)


def _unit(row: PyTree) -> PyTree:
    """The row to unit length, zeros where it is zero."""
    length = ops.tree_norm(row)
    return jax.tree.map(lambda x: jnp.where(length > 0, x, 0) / jnp.where(length > 0, length, 1), row)


def _as_type(tree: PyTree, kind: jnp.dtype) -> PyTree:
    return jax.tree.map(lambda x: x.astype(kind), tree)
