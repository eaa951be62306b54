"""Order statistics that XLA does not do well: the k-th largest magnitude of millions of values without sorting them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_INFINITY = 0x7F800000  # its bit pattern
_SAMPLE = 1 << 15  # values in the sample that brackets the threshold: fits the second-level cache


class _Bracket(NamedTuple):
    """Bit patterns with `count(bits > low) >= k > count(bits > high)`, those two counts, the passes so far, and whether
    the last one at least halved the interval."""

    low: jax.Array
    high: jax.Array
    above_low: jax.Array
    above_high: jax.Array
    passes: jax.Array
    halved: jax.Array


def magnitude_threshold(values: jax.Array, k: jax.Array | int) -> jax.Array:
    """The k-th largest of `abs(values)`, exactly.

    Non-negative floats have the order of their bit patterns, so the threshold is found by narrowing an interval of
    integers: each step counts, in one pass, the values above a point of it. A sample gives the first interval; then steps
    interpolate while that at least halves the interval and bisect where it does not, so that about ten passes are usual
    and 64 the most. It stops early when exactly `k - 1` values lie above the upper end.

    Args:
      values: float32 `(m,)`, no NaN.
      k: how many, `1 <= k <= m`; may be traced. `k <= 0` gives infinity, since no value is large enough.

    Returns:
      A float32 scalar. The values strictly above it are at most `k - 1`; ties count together.
    """
    return _search(values, jnp.asarray(k, jnp.int32))[0]


def _search(values: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The threshold and the number of passes over all values that were needed."""
    if values.dtype != jnp.float32:
        raise TypeError(f"magnitude_threshold: values are {values.dtype}, float32 is needed")
    bits = lax.bitcast_convert_type(jnp.abs(values), jnp.int32)
    m = bits.size
    whole = _whole(m)
    bracket = _probe(bits, k, whole, jnp.int32(0))  # masses of exact zeros are common: settle them in one pass
    if m > 4 * _SAMPLE:
        stride = m // _SAMPLE
        sample = bits[: stride * _SAMPLE].reshape(_SAMPLE, stride)[:, 0]
        rank = k.astype(jnp.float32) / m * _SAMPLE
        margin = 3.0 * jnp.sqrt(rank * jnp.maximum(1.0 - rank / _SAMPLE, 0.0)) + 2.0
        unknown = ~_done(bracket, k)
        for at in (rank + margin, rank - margin):
            place = jnp.clip(jnp.round(at), 1, _SAMPLE).astype(jnp.int32)
            guess = _narrow(sample, place, _whole(_SAMPLE)).high
            inside = unknown & (guess > bracket.low) & (guess < bracket.high)
            bracket = lax.cond(inside, lambda b, g: _probe(bits, k, b, g), lambda b, g: b, bracket, guess)
    bracket = _narrow(bits, k, bracket)
    threshold = jnp.max(jnp.where(bits <= bracket.high, bits, 0))
    threshold = lax.bitcast_convert_type(jnp.where(k <= 0, _INFINITY, threshold), jnp.float32)
    return threshold, bracket.passes + 1


def _whole(count: int) -> _Bracket:
    """The interval of all finite values and infinity, for `count` values."""
    return _Bracket(
        jnp.int32(-1), jnp.int32(_INFINITY), jnp.int32(count), jnp.int32(0), jnp.int32(0), jnp.asarray(False)
    )


def _done(bracket: _Bracket, k: jax.Array) -> jax.Array:
    return (bracket.high - bracket.low <= 1) | (bracket.above_high == k - 1)


def _probe(bits: jax.Array, k: jax.Array, bracket: _Bracket, at: jax.Array) -> _Bracket:
    """Narrows the bracket with one pass: the count of values above `at`."""
    above = jnp.sum(bits > at, dtype=jnp.int32)
    enough = above >= k
    low, high = jnp.where(enough, at, bracket.low), jnp.where(enough, bracket.high, at)
    return _Bracket(
        low,
        high,
        jnp.where(enough, above, bracket.above_low),
        jnp.where(enough, bracket.above_high, above),
        bracket.passes + 1,
        high - low <= (bracket.high - bracket.low + 1) // 2,
    )


def _narrow(bits: jax.Array, k: jax.Array, bracket: _Bracket) -> _Bracket:
    """Probes until the bracket is one wide or exactly `k - 1` values lie above it."""

    def step(bracket: _Bracket) -> _Bracket:
        middle = bracket.low + (bracket.high - bracket.low) // 2
        # Interpolation in the value, where the distribution is near linear over a short interval.
        low, high = (lax.bitcast_convert_type(jnp.maximum(b, 0), jnp.float32) for b in (bracket.low, bracket.high))
        share = (bracket.above_low - k + 1) / (bracket.above_low - bracket.above_high)
        value = low + (high - low) * share
        guess = lax.bitcast_convert_type(value, jnp.int32)
        use = bracket.halved & jnp.isfinite(high) & (guess > bracket.low) & (guess < bracket.high)
        return _probe(bits, k, bracket, jnp.where(use, guess, middle))

    return lax.while_loop(lambda b: ~_done(b, k), step, bracket)


def sample_without_replacement(key: jax.Array, population: int, count: int) -> jax.Array:
    """`count` different integers of `0 .. population - 1`, every set equally likely: int32 `(count,)`, in no order.

    Floyd's algorithm (Bentley, CACM 30, 1987): `count` draws, where shuffling would touch the whole population.
    """
    if count == population:
        return jnp.arange(population, dtype=jnp.int32)
    tops = jnp.arange(population - count, population, dtype=jnp.int32)
    draws = jax.random.randint(key, (count,), 0, tops + 1, dtype=jnp.int32)

    def add(i: jax.Array, chosen: jax.Array) -> jax.Array:
        return chosen.at[i].set(jnp.where(jnp.any(chosen == draws[i]), tops[i], draws[i]))

    return lax.fori_loop(0, count, add, jnp.full(count, -1, jnp.int32))
