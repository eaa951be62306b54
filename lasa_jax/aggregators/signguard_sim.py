"""SignGuard-Sim (Xu, Huang, Song and Lan, ICDCS 2022): SignGuard with one more feature, the cosine similarity."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Count, PyTree, Rows, Scalar, equal_weights
from lasa_jax.aggregators.preaggregators import clip_factors
from lasa_jax.aggregators.signguard import (
    SignDiagnostics,
    largest_cluster,
    looked_at,
    norm_band,
    sign_counts,
    sign_shares,
)
from lasa_jax.errors import check_choice, check_number


class SimilarityState(NamedTuple):
    """What SignGuard-Sim carries from round to round.

    last: the result of the round before, zeros in the first. rounds: int32, how many there were.
    """

    last: PyTree
    rounds: jax.Array


def signguard_sim(
    lower: Scalar = 0.1,
    upper: Scalar = 3.0,
    coordinate_fraction: float = 0.1,
    rounds_by_pairs: Count = 3,
    variant: str = "paper",
    window_start: Count | None = None,
) -> Aggregator:
    """Averages the clients of ordinary norm in the largest cluster of sign statistics and similarity.

        band    = {i : lower * m < |x_i| < upper * m},    m = median of the norms
        q_i     = cos(x_i, last result); in the first rounds the lower median over j of cos(x_i, x_j), of itself 0
        cluster = the largest that mean shift finds among (share of +, share of 0, share of -, s_i)
        s_i     = min(max(q_i, 0), r) / (5 r),    r = lower median of q_1 .. q_n
        F(Delta) = mean over band and cluster of x_i * min(1, m / |x_i|)

    Does not use `num_malicious`. Shares of signs, NaN and an empty cluster: see `signguard`. A row that is zero has the
    similarity 0. Where r is negative, all have the same s. The result is no longer than m, so while the benign clients are
    the majority, no longer than the longest of theirs.

    Args:
      lower, upper: the band, in median norms, `0 <= lower < upper`. May be traced.
      coordinate_fraction: share of the coordinates whose signs are looked at, `0 < coordinate_fraction <= 1`.
      rounds_by_pairs: how many rounds compare clients with each other, `>= 0`; 3 as in the authors' code. May be traced.
      variant: "paper" draws the coordinates at random; "official" takes one window of consecutive coordinates, starts the
        mean shift at bins, and clips to the lower median (docs/fidelity.md, section 3.5).
      window_start: first coordinate of the window in the order of the flattened tree, in place of the draw.

    Raises:
      InputError: for a number out of range.
    """
    check_number("lower", lower, low=0)
    check_number("upper", upper, above=0)
    if not any(isinstance(x, jax.core.Tracer) for x in (lower, upper)):
        check_number("upper", upper, above=float(lower))
    check_number("coordinate_fraction", coordinate_fraction, above=0, high=1)
    check_number("rounds_by_pairs", rounds_by_pairs, low=0, whole=True)
    check_choice("variant", variant, ("paper", "official"))
    official = variant == "official"

    def init(params: PyTree) -> SimilarityState:
        return SimilarityState(jax.tree.map(jnp.zeros_like, params), jnp.int32(0))

    def aggregate(
        updates: PyTree,
        state: SimilarityState,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, SimilarityState, SignDiagnostics]:
        rows = Rows.of(updates, present)
        part = looked_at(jax.tree.map(lambda x: x[0], rows.stack), key, coordinate_fraction, variant, window_start)

        def measured(row: PyTree, part: PyTree, direction: PyTree) -> tuple[jax.Array, jax.Array, jax.Array]:
            return ops.tree_norm(row), sign_counts(row, part), ops.tree_dot(row, direction)

        norm, signs, along = rows.each(measured, part, _direction(state.last))
        norm = jnp.where(jnp.isfinite(norm), norm, jnp.inf)
        median, in_band = norm_band(norm, rows.present, lower, upper)
        by_pairs = state.rounds < jnp.asarray(rounds_by_pairs, jnp.int32)
        similarity = _similarity(rows, norm, along, by_pairs)
        features = jnp.concatenate([sign_shares(signs, rows.present), similarity[:, None].astype(signs.dtype)], axis=1)
        in_cluster = largest_cluster(features, rows.present, binned=official)
        kept = jnp.where(jnp.any(in_band & in_cluster), in_band & in_cluster, in_band)
        clip = clip_factors(norm, ops.masked_median(norm, rows.present, lower=True) if official else median)
        weight = jax.tree.map(lambda w: w * clip, equal_weights(rows, kept))
        update = rows.weighted_sum(weight)
        info = SignDiagnostics(weight, norm, features, in_band, in_cluster)
        return update, SimilarityState(update, state.rounds + 1), info

    return Aggregator(init, aggregate)


def _direction(last: PyTree) -> PyTree:
    """The last result at length 1; zeros where it is zero."""
    length = ops.tree_norm(last)
    return jax.tree.map(lambda x: x.astype(length.dtype) / jnp.where(length > 0, length, 1.0), last)


def _similarity(rows: Rows, norm: jax.Array, along: jax.Array, by_pairs: jax.Array) -> jax.Array:
    """The fourth feature of each client, `(n,)`, 0 for clients that are absent or not finite.

    Args:
      rows: as read.
      norm: `(n,)`, infinite for what is not finite.
      along: `(n,)`, inner products with the direction of the last result.
      by_pairs: whether clients are compared with each other, bool `()`.
    """

    def of_pairs() -> jax.Array:
        apart = ops.cosine_distances(dataclasses.replace(rows).squared_distances, norm)  # nothing is kept from a branch
        usable = rows.present & jnp.isfinite(jnp.diagonal(apart))
        cosines = jnp.where(jnp.eye(len(norm), dtype=bool), 0.0, 1 - apart)
        return jnp.where(usable, ops.masked_median(cosines, usable, lower=True), 0.0)

    usable = rows.present & jnp.isfinite(norm)
    of_last = jnp.where(usable & (norm > 0), along / jnp.where(norm > 0, norm, 1.0), 0.0)
    of_last = jnp.where(jnp.isfinite(of_last), of_last, 0.0)
    pairs = jax.lax.cond(ops.any_run(by_pairs), of_pairs, lambda: jnp.zeros_like(of_last))
    q = jnp.where(by_pairs, pairs, of_last)
    middle = ops.masked_median(q, usable, lower=True)
    middle = jnp.where(jnp.any(usable), middle, 0.0)
    return jnp.where(usable, jnp.minimum(jnp.maximum(q, 0.0), middle) / (5 * middle + 1e-8), 0.0)
