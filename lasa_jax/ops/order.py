"""Order statistics that XLA does not do well: the k-th largest magnitude of millions of values without sorting them."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lasa_jax.ops import statistics, target
from lasa_jax.ops.fold import fold

_INFINITY = 0x7F800000  # its bit pattern
_MOST_PASSES = 33  # each halves the 31 bits
_SAMPLE = 1 << 15  # values in the sample that brackets the threshold: fits the second-level cache
_SORTED = 1 << 11  # the same on an accelerator: what one kernel of a GPU sorts
_ACROSS = 45  # columns of a sample on a TPU, and about as many rows: a layer of ten classes shows all of them
_FEW = 1 << 14  # values that a GPU sorts sooner than it narrows an interval, whose every step waits for the host
_POINTS = 8  # of a pass on an accelerator: more would take longer to compare than to read

Parts = tuple[jax.Array, ...]


class _Bracket(NamedTuple):
    """Bit patterns with `count(bits > low) >= k > count(bits > high)`, those two counts, and the passes so far."""

    low: jax.Array
    high: jax.Array
    above_low: jax.Array
    above_high: jax.Array
    passes: jax.Array


def magnitude_threshold(values: jax.Array | Sequence[jax.Array], k: jax.Array | int) -> jax.Array:
    """The k-th largest of `abs(values)`, exactly.

    Non-negative floats have the order of their bit patterns, so the threshold is found by narrowing an interval of
    integers: each step counts, in one pass, the values above a few points of it, its middle and some where the threshold is
    expected; four in all, on an accelerator eight, the middles of both halves among them. The first points are others:
    zero and the surroundings of a sample's threshold. About seven passes are usual, five on an accelerator, and 33 the
    most. It stops early when exactly `k - 1` values lie above the upper end. An accelerator sorts where there are at
    most 16,384.

    Args:
      values: floating point, of any shape, or several such arrays whose m entries count together; no NaN. What is wider than
        float32 is rounded to it. They are differentiated as constants.
      k: how many, `1 <= k <= m`; may be traced. `k <= 0` gives infinity, since no value is large enough.

    Returns:
      A float32 scalar. The values strictly above it are at most `k - 1`; ties count together.
    """
    parts = tuple(values) if isinstance(values, Sequence) else (values,)
    return _search(jax.lax.stop_gradient(parts), jnp.asarray(k, jnp.int32))[0]


def _search(parts: Parts, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The threshold and the number of passes over all values that were needed."""
    m = sum(x.size for x in parts)
    rank = jnp.maximum(k, 1)
    if target.platform() != "cpu":
        return _search_in_few_readings(parts, k, rank)
    points = [jnp.int32(0), jnp.int32(_INFINITY >> 1)]  # masses of exact zeros are common: settled in the first pass
    if m > 4 * _SAMPLE:
        stride = m // _SAMPLE
        sample = jnp.concatenate([_every(x, stride) for x in parts])
        expected = rank.astype(jnp.float32) / m * sample.size
        margin = 3.0 * jnp.sqrt(expected * jnp.maximum(1.0 - expected / sample.size, 0.0)) + 2.0
        for place in (expected + margin, expected, expected - margin):
            place = jnp.clip(jnp.round(place), 1, sample.size).astype(jnp.int32)
            points.append(_narrow((sample,), place, _whole(sample.size)).high)
    bracket = _narrow(parts, rank, _probe(parts, rank, _whole(m), points))
    below = [statistics.largest_magnitude(jnp.where(_bits(x) <= bracket.high, x, 0).astype(jnp.float32)) for x in parts]
    return jnp.where(k <= 0, jnp.inf, functools.reduce(jnp.maximum, below)), bracket.passes + 1


def _search_in_few_readings(parts: Parts, k: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same with few kernels: a sample that is sorted at once, and more points in each of fewer readings."""
    if target.platform() == "gpu":  # where layers are joined
        parts = tuple(x.astype(jnp.float32) for x in parts)
    m = sum(x.size for x in parts)
    if m == 0:
        return jnp.where(k <= 0, jnp.inf, jnp.float32(0)), jnp.int32(0)
    if m <= _FEW:
        ordered = jnp.sort(jnp.concatenate([_bits(x.ravel()) for x in parts]), descending=True, stable=False)
        return jnp.where(k <= 0, jnp.inf, lax.bitcast_convert_type(ordered[rank - 1], jnp.float32)), jnp.int32(1)
    stride = -(-m // _SORTED)
    sample = jnp.concatenate([_bits(_spread(x, stride)) for x in parts])[:_SORTED]
    sample, size = jnp.sort(sample, descending=True, stable=False), sample.shape[0]
    expected = rank.astype(jnp.float32) / m * size
    margin = 3.0 * jnp.sqrt(expected * jnp.maximum(1.0 - expected / size, 0.0)) + 2.0
    places = expected + margin * np.linspace(-1, 1, _POINTS - 1, dtype=np.float32)
    place = jnp.clip(jnp.round(places), 1, size).astype(jnp.int32)
    points = jnp.concatenate([jnp.zeros(1, jnp.int32), sample[place - 1]])  # masses of exact zeros are common
    start, spread = _whole(m), jnp.asarray(np.linspace(-1, 1, _POINTS - 3, dtype=np.float32))

    def above(points: jax.Array) -> list[jax.Array]:
        # Tied to the points of this pass, or a TPU's compiler writes the bits, the same in all passes, before the loop.
        values, points = lax.optimization_barrier((parts, points)) if target.platform() == "tpu" else (parts, points)

        def terms(x: jax.Array) -> tuple[jax.Array, ...]:
            return tuple((_bits(x) > points[i]).astype(jnp.int32) for i in range(_POINTS))

        return list(fold(values, terms, ("add",) * _POINTS))

    def step(carry: tuple[_Bracket, jax.Array]) -> tuple[_Bracket, jax.Array]:
        bracket, points = carry
        bracket = _narrowed(bracket, rank, list(points), above(points))
        # Where many values are equal, counts tell no place among them: there the middles of both halves narrow it further.
        quarter = (bracket.high - bracket.low) // 4
        quarters = jnp.stack([bracket.low + quarter, bracket.high - quarter])
        return bracket, jnp.concatenate([_points(bracket, rank, spread), quarters])

    bracket, _ = lax.while_loop(lambda carry: _unknown(carry[0], rank), step, (start, points))

    def below(x: jax.Array) -> tuple[jax.Array]:
        return (jnp.where(_bits(x) <= bracket.high, jnp.abs(x.astype(jnp.float32)), 0),)

    return jnp.where(k <= 0, jnp.inf, fold(parts, below, ("max",))[0]), bracket.passes + 1


def _bits(values: jax.Array) -> jax.Array:
    """The bit patterns of magnitudes, int32, in their order."""
    return lax.bitcast_convert_type(jnp.abs(values.astype(jnp.float32)), jnp.int32)


def _every(values: jax.Array, stride: int) -> jax.Array:
    """Every `stride`-th value, a vector."""
    flat = values.ravel()
    whole = flat.size // stride
    return flat[: whole * stride].reshape(whole, stride)[:, 0]


def _spread(values: jax.Array, stride: int) -> jax.Array:
    """About every `stride`-th value, a vector; on a TPU, which copies what is flattened, those of some rows and columns."""
    if target.platform() != "tpu" or values.ndim < 2 or values.size == 0:
        return values.ravel()[::stride]
    rows = values.reshape(-1, values.shape[-1])
    across = max(1, min(rows.shape[1] // _ACROSS, stride))
    return rows[:: -(-stride // across), ::across].ravel()


def _whole(count: int) -> _Bracket:
    """The interval of all finite values and infinity, for `count` values."""
    return _Bracket(jnp.int32(-1), jnp.int32(_INFINITY), jnp.int32(count), jnp.int32(0), jnp.int32(0))


def _probe(parts: Parts, k: jax.Array, bracket: _Bracket, points: Sequence[jax.Array]) -> _Bracket:
    """Narrows the bracket with one pass: the counts of values above each of a few points."""
    # The bits are made here, not before the loop: there they would be a copy of all values.
    by_part = [statistics.counts(*(bits > at for at in points)) for bits in map(_bits, parts)]
    counts = [functools.reduce(jnp.add, part) for part in zip(*by_part, strict=True)]
    return _narrowed(bracket, k, points, counts)


def _narrowed(bracket: _Bracket, k: jax.Array, points: Sequence[jax.Array], counts: Sequence[jax.Array]) -> _Bracket:
    """The bracket after a pass that counted the values above each of some points."""
    for at, above in zip(points, counts, strict=True):
        raises = (above >= k) & (at > bracket.low)
        lowers = (above < k) & (at < bracket.high)
        bracket = _Bracket(
            jnp.where(raises, at, bracket.low),
            jnp.where(lowers, at, bracket.high),
            jnp.where(raises, above, bracket.above_low),
            jnp.where(lowers, above, bracket.above_high),
            bracket.passes,
        )
    return bracket._replace(passes=bracket.passes + 1)


def _narrow(parts: Parts, k: jax.Array, bracket: _Bracket) -> _Bracket:
    """Probes until the bracket is one wide or exactly `k - 1` values lie above it."""

    def step(bracket: _Bracket) -> _Bracket:
        shares = jnp.asarray([-1, 0, 1], jnp.float32)
        return _probe(parts, k, bracket, list(_points(bracket, k, shares)))

    return lax.while_loop(lambda bracket: _unknown(bracket, k), step, bracket)


def _unknown(bracket: _Bracket, k: jax.Array) -> jax.Array:
    """Whether the bracket is still to be narrowed."""
    wide = (bracket.high - bracket.low > 1) & (bracket.above_high != k - 1)
    return wide & (bracket.passes < _MOST_PASSES)  # never reached: so that an error here is no hang


def _points(bracket: _Bracket, k: jax.Array, spread: jax.Array) -> jax.Array:
    """The points of the next pass, int32: the bracket's middle, and those where the threshold is expected.

    Interpolation in the value, where the distribution is near uniform over a short interval: the place of the threshold
    among the `inside` values, and `spread` times three standard deviations away from it.
    """
    low, high = (lax.bitcast_convert_type(jnp.maximum(b, 0), jnp.float32) for b in (bracket.low, bracket.high))
    inside = (bracket.above_low - bracket.above_high).astype(jnp.float32)
    share = ((bracket.above_low - k).astype(jnp.float32) + 0.5) / inside
    margin = (3.0 * jnp.sqrt(inside * share * (1 - share)) + 0.5) / inside
    guesses = lax.bitcast_convert_type(low + (high - low) * jnp.clip(share + margin * spread, 0, 1), jnp.int32)
    middle = bracket.low + (bracket.high - bracket.low) // 2
    within = (guesses > bracket.low) & (guesses < bracket.high)  # not so if `high` is infinite
    return jnp.concatenate([middle[None], jnp.where(within, guesses, middle)])


def rank_of(values: jax.Array) -> jax.Array:
    """The place of each entry along the last axis if they were sorted, of equal ones the first first: int32."""
    return jnp.argsort(jnp.argsort(values, axis=-1, stable=True), axis=-1).astype(jnp.int32)


def sample_without_replacement(key: jax.Array, population: int, count: int) -> jax.Array:
    """`count` different integers of `0 .. population - 1`, every set equally likely: int32 `(count,)`, in no order.

    From a large population the first `count` different ones of somewhat more draws, enough that there being too few is
    less likely than 2^-64. A small one is put in a random order.

    Raises:
      ValueError: if `count` exceeds the population.
    """
    if count > population:
        raise ValueError(f"count = {count}: allowed are at most {population}")
    if population <= 8 * count + 64:
        return jnp.argsort(jax.random.bits(key, (population,), jnp.uint32))[:count].astype(jnp.int32)
    repeated = count * count // (2 * population)  # so many are expected
    draws = jax.random.randint(key, (count + 4 * repeated + 64,), 0, population, dtype=jnp.int32)
    order = jnp.argsort(draws, stable=True)
    ordered = draws[order]
    is_first = jnp.zeros(len(draws), bool).at[order].set(jnp.diff(ordered, prepend=jnp.int32(-1)) != 0)
    return draws[jnp.flatnonzero(is_first, size=count)]
