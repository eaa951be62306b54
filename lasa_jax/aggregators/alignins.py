"""AlignIns (Xu, Zhang and Hu, CVPR 2025): direction alignment inspection, against backdoors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Context, Count, PyTree, Rows, Scalar, stateless
from lasa_jax.aggregators.context import needed
from lasa_jax.aggregators.directions import cosines_with
from lasa_jax.aggregators.lasa import mz_scores
from lasa_jax.aggregators.preaggregators import clip_factors
from lasa_jax.aggregators.sizes import mean_weights, needs_of, sizes_of
from lasa_jax.errors import check_number


class AlignmentDiagnostics(NamedTuple):
    """Why AlignIns kept a client.

    weight: see `Diagnostics`; that of the update as it came, its clip included. alignment: `(n,)`, TDA. sign_alignment:
    `(n,)`, MPSA. alignment_score, sign_score: their MZ-scores.
    """

    weight: PyTree
    alignment: jax.Array
    sign_alignment: jax.Array
    alignment_score: jax.Array
    sign_score: jax.Array


def alignins(
    alignment_radius: Scalar = 1.0,
    sign_radius: Scalar = 1.0,
    top_share: float = 0.3,
    weighting: str = "equal",
) -> Aggregator:
    """Averages the clients whose direction and whose principal signs are ordinary, clipped to their median norm.

        TDA_i  = cos(x_i, w)                               w the global model, `context.params`
        p      = sign(sum over i of sign(x_i))             the principal signs
        MPSA_i = share of the k largest magnitudes of x_i at which sign(x_ij) = p_j,    k = int(top_share * d)
        S      = {i : MZ(TDA)_i < alignment_radius and MZ(MPSA)_i < sign_radius},    MZ(v)_i = |v_i - median(v)| / std(v)
        F(Delta) = mean over S of x_i * min(1, c / |x_i|),    c = lower median of the norms of S

    Does not use `num_malicious`. Magnitudes that tie with the k-th largest count too. A client that is not finite is in none
    of this. Where nobody is left the result is zero: so it is where all clients are the same, since std is 0 then, and with
    two clients and radii of 1. The result is no longer than c; S is an honest majority only where the two scores tell the
    others apart, and no bound is known. With sizes a few large clients can be most of S.

    Args:
      alignment_radius: `> 0`. May be traced.
      sign_radius: `> 0`. May be traced.
      top_share: share of the coordinates whose signs are looked at, `0 < top_share <= 1`; one at least.
      weighting: "equal", or "size", by the number of a client's examples, as in the authors' code.

    Raises:
      InputError: for a number out of range, or another word.
    """
    check_number("alignment_radius", alignment_radius, above=0)
    check_number("sign_radius", sign_radius, above=0)
    check_number("top_share", top_share, above=0, high=1)
    needs = needs_of(weighting) | {"params"}

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, AlignmentDiagnostics]:
        rows = Rows.of(updates, present)
        known = needed(context, needs, "alignins")
        norms, alignment = cosines_with(rows, known.params)
        usable = rows.present & jnp.isfinite(norms)

        counted = jax.tree.map(lambda _: usable.astype(rows.dtype), rows.stack)
        signs = rows.mapped(lambda row, _: jax.tree.map(jnp.sign, row), norms).weighted_sum(counted)
        principal = jax.tree.map(jnp.sign, signs)
        size = sum(x.size for x in jax.tree.leaves(principal))
        k = max(int(top_share * size), 1)
        agreeing, looked_at = rows.each(lambda row, principal: _agreement(row, principal, k), principal)
        sign_alignment = agreeing.astype(rows.dtype) / jnp.maximum(looked_at, 1).astype(rows.dtype)

        scores = mz_scores(jnp.stack([alignment, sign_alignment], axis=1), usable)
        radii = jnp.stack([jnp.asarray(radius, rows.dtype) for radius in (alignment_radius, sign_radius)])
        kept = usable & jnp.all(scores < radii[None], axis=1)
        clip = clip_factors(norms, jnp.where(jnp.any(kept), ops.masked_median(norms, kept, lower=True), 0.0))
        share = mean_weights(rows, kept, sizes_of(rows, weighting, context, "alignins"))
        weight = jax.tree.map(lambda w: jnp.where(kept, w * clip, 0.0), share)
        info = AlignmentDiagnostics(weight, alignment, sign_alignment, scores[:, 0], scores[:, 1])
        return rows.weighted_sum(weight), state, info

    return Aggregator(stateless, aggregate, needs)


def _agreement(row: PyTree, principal: PyTree, k: int) -> tuple[jax.Array, jax.Array]:
    """At how many of its k largest magnitudes one update has the principal sign, and how many these are: int32."""
    leaves = jax.tree.leaves(row)
    limit = ops.magnitude_threshold(leaves, k)
    agreeing, looked_at = jnp.int32(0), jnp.int32(0)
    for x, p in zip(leaves, jax.tree.leaves(principal), strict=True):
        large = jnp.abs(x).astype(jnp.float32) >= limit
        both = ops.counts(large & (jnp.sign(x) == p.astype(x.dtype)), large)
        agreeing, looked_at = agreeing + both[0], looked_at + both[1]
    return agreeing, looked_at
