"""LASA: layer-adaptive sparsified model aggregation (Xu, Zhang and Hu, WACV 2025).

    0. drop clients with a value that is not finite           reject_nonfinite
    1. scale every update down to the median norm             clip_to_median_norm
    2. keep the top k magnitudes of each update               keep_top_k
    3. layer by layer, keep the clients whose norm and sign   layer_filter
       purity are near the median, and average them

Steps and constants are those of the official code (docs/fidelity.md, section 2), with guards where it breaks: step 0
also drops infinities, a zero update is not scaled, and a layer of zeros has purity 0.5, so that no client can switch
the filter off for everybody by sending one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import (
    Aggregator,
    Context,
    Count,
    Diagnostics,
    PyTree,
    Rows,
    Scalar,
    chain,
    stateless,
)
from lasa_jax.aggregators.preaggregators import clip_to_median_norm, keep_top_k, reject_nonfinite
from lasa_jax.aggregators.sizes import mean_weights, needs_of, shares, sizes_of
from lasa_jax.errors import check_choice, check_number


class FilterDiagnostics(NamedTuple):
    """Why each client was kept or dropped in each layer: pytrees like the updates with leaves `(n,)`.

    weight: 1 / |S| for the clients kept, 0 for the others. norm, purity: of the clipped and sparsified layer.
    magnitude_score, direction_score: their MZ-scores. Entries of absent clients mean nothing but for `weight`.
    """

    weight: PyTree
    norm: PyTree
    purity: PyTree
    magnitude_score: PyTree
    direction_score: PyTree


def lasa(
    sparsity_level: Scalar = 0.3,
    magnitude_radius: Scalar = 1.0,
    direction_radius: Scalar = 1.0,
    num_kept: Count | None = None,
    granularity: str = "layer",
    weighting: str = "equal",
) -> Aggregator:
    """Clips, sparsifies and filters client updates layer by layer. Does not use `num_malicious`.

    Every layer of the result is no longer than the median norm of the whole updates, so while the benign clients are the
    majority, no longer than the longest of theirs.

    Args:
      sparsity_level: share of the entries zeroed before filtering, SL = 1 - k/d, `0 <= sparsity_level <= 1`.
      magnitude_radius: lambda_m, largest MZ-score of a layer's norm that is kept (exclusive), `> 0`.
      direction_radius: lambda_d, the same for the layer's sign purity.
      num_kept: k in place of the sparsity level, see `keep_top_k`.
      granularity: "layer"; "model" or "coordinate" for the ablations, see `layer_filter`.
      weighting: "equal"; or "size", by the number of a client's examples, see `layer_filter`. The bound above stays, but a
        few large clients can be most of a layer.

    The numbers may be traced. Supplement, section B: 0.3 and 1.0 / 1.0 on CIFAR, a magnitude radius of 2.0 elsewhere. The
    other ablations: `sparsity_level=0` does not sparsify, a radius of infinity switches one of the two filters off.

    Raises:
      InputError: for a number out of range, or another word.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.lasa(sparsity_level=0.0, magnitude_radius=2.0)
      >>> updates = {"w": jax.random.uniform(jax.random.key(0), (8, 2, 3)).at[0].multiply(-1)}  # client 0 flips its signs
      >>> update, _, info = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=1)
      >>> info.weight["w"][0].item(), bool((update["w"] > 0).all())
      (0.0, True)
    """
    return chain(
        reject_nonfinite(),
        clip_to_median_norm(),
        keep_top_k(sparsity_level, num_kept),
        layer_filter(magnitude_radius, direction_radius, granularity, weighting),
    )


def layer_filter(
    magnitude_radius: Scalar = 1.0,
    direction_radius: Scalar = 1.0,
    granularity: str = "layer",
    weighting: str = "equal",
) -> Aggregator:
    """Averages, in each layer, the clients whose norm and sign purity have an MZ-score below the radii.

        purity_i = 0.5 * (1 + sum(sign(x_i)) / sum(abs(sign(x_i)))),    0.5 for a layer of zeros
        score(s)_i = abs(s_i - median(s)) / std(s)                      usual median, population std, inf if std is 0
        S = {i : score(norm)_i < magnitude_radius and score(purity)_i < direction_radius},    all clients if S is empty
        F(Delta) = mean of x_i over S

    Source: supplement, sections 2 and F.2; LASA's official code, docs/fidelity.md, section 2.1 (its factor
    (1 - sparsity) on the purity cancels in the score). Where all clients agree in one of the two, as in the official
    code, nobody is filtered in that layer. A radius of infinity switches a filter off.

    Args:
      magnitude_radius, direction_radius: `> 0`. May be traced.
      granularity: what x_i is: a "layer" of client i; its whole update, "model"; or one "coordinate". The last two are the
        paper's ablations. Coordinate-wise, `weight` is that of a mean of all, and there are no scores to show.
      weighting: "equal", or "size": clients of S count by the number of their examples.
    """
    check_number("magnitude_radius", magnitude_radius, above=0)
    check_number("direction_radius", direction_radius, above=0)
    check_choice("granularity", granularity, ("layer", "model", "coordinate"))
    needs = needs_of(weighting)
    radii = (magnitude_radius, direction_radius)

    def coordinate_wise(block: jax.Array, present: jax.Array, radii: Any, sizes: jax.Array | None) -> jax.Array:
        purity = 0.5 * (1 + jnp.sign(block))
        kept = _kept(mz_scores(jnp.abs(block), present), mz_scores(purity, present), radii, present[:, None])
        if sizes is not None:
            return jnp.sum(jnp.where(kept, block * shares(kept, sizes), 0.0), axis=0)
        count = jnp.maximum(jnp.sum(kept, axis=0, keepdims=True, dtype=jnp.int32), 1)
        return jnp.sum(jnp.where(kept, block / count.astype(block.dtype), 0.0), axis=0)

    def measured(row: PyTree) -> jax.Array:
        if granularity == "layer":
            return jnp.stack([ops.leaf_norms(row), _purities(row)])
        whole = jnp.stack([ops.tree_norm(row), _purity(row)])
        return jnp.tile(whole[:, None], len(jax.tree.leaves(row)))

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, Diagnostics | FilterDiagnostics]:
        rows = Rows.of(updates, present)
        sizes = sizes_of(rows, weighting, context, "lasa")
        if granularity == "coordinate":
            everybody = mean_weights(rows, rows.present, sizes)
            return rows.columns(coordinate_wise, radii, sizes), state, Diagnostics(everybody)
        # All layers together, (n, 2, layers): one sort instead of one for each layer and measure.
        by_layer = rows.each(measured)
        score = mz_scores(by_layer, rows.present)
        kept = _kept(score[:, 0], score[:, 1], radii, rows.present[:, None])
        count = jnp.maximum(jnp.sum(kept, axis=0, keepdims=True, dtype=jnp.int32), 1)
        share = jnp.where(kept, 1 / count.astype(rows.dtype), 0.0) if sizes is None else shares(kept, sizes)
        structure = jax.tree.structure(rows.stack)
        info = FilterDiagnostics(
            *(
                jax.tree.unflatten(structure, [x[:, layer] for layer in range(x.shape[1])])
                for x in (share, by_layer[:, 0], by_layer[:, 1], score[:, 0], score[:, 1])
            )
        )
        return rows.weighted_sum(info.weight), state, info

    return Aggregator(stateless, aggregate, needs)


def mz_scores(values: jax.Array, present: jax.Array) -> jax.Array:
    """MZ-scores over the clients present, `(n, ...)` to the same: infinite where all values are equal."""
    distance = values - ops.masked_median(values, present)[None]
    std = ops.masked_std(distance, present)[None]  # of the distances: exactly 0 where all values are equal
    return jnp.where(std > 0, jnp.abs(distance) / jnp.where(std > 0, std, 1.0), jnp.inf)


def _kept(
    magnitude_score: jax.Array, direction_score: jax.Array, radii: tuple[Scalar, Scalar], present: jax.Array
) -> jax.Array:
    """The set S, bool like the scores; everybody present where it would be empty."""
    kept = present
    for score, radius in zip((magnitude_score, direction_score), radii, strict=True):
        limit = jnp.asarray(radius, score.dtype)
        kept = kept & ((score < limit) | jnp.isinf(limit))
    return jnp.where(jnp.any(kept, axis=0, keepdims=True), kept, present)


def _purities(row: PyTree) -> jax.Array:
    """Positive direction purity of each layer, `(layers,)`."""
    leaves = jax.tree.leaves(row)
    if ops.platform() != "gpu":
        return jnp.stack([_purity(x) for x in leaves])
    kind = ops.wide(row)

    def signs(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (x > 0).astype(jnp.int32), (x < 0).astype(jnp.int32)

    positive, negative = ops.fold([x.astype(kind) for x in leaves], signs, ("add", "add"), by_leaf=True)
    return _share_positive(positive, negative, kind)


def _purity(part: PyTree) -> jax.Array:
    """Positive direction purity of a layer or a whole update, a scalar between 0 and 1."""
    signs = [ops.counts(x > 0, x < 0) for x in jax.tree.leaves(part)]
    positive, negative = (sum(leaf) for leaf in zip(*signs, strict=True))
    return _share_positive(positive, negative, ops.wide(part))


def _share_positive(positive: jax.Array, negative: jax.Array, kind: jnp.dtype) -> jax.Array:
    difference, count = positive - negative, jnp.maximum(positive + negative, 1)
    return 0.5 * (1 + difference.astype(kind) / count.astype(kind))
