"""Rules that bound what one client can add: norm-clipped mean and centered clipping."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Count, Diagnostics, PyTree, Rows, Scalar, chain
from lasa_jax.aggregators.fedavg import fedavg
from lasa_jax.aggregators.preaggregators import clip_to_norm
from lasa_jax.errors import check_number


def norm_clipped_mean(clip_norm: Scalar = 1.0, weighting: str = "equal") -> Aggregator:
    """The mean of updates scaled down to a fixed norm (Sun, Kairouz, Suresh and McMahan, 2019, section 4).

        F(Delta) = mean of x_i * min(1, clip_norm / |x_i|)

    A client can move the result by no more than `clip_norm / n`; one whose norm is not finite counts as zero. The result is
    never longer than `clip_norm`. With sizes it can move the result by its share of all examples.

    Args:
      clip_norm: largest norm that is left as it is, `> 0`. May be traced.
      weighting: "equal", or "size": by the number of a client's examples.

    Raises:
      InputError: for a number out of range, or another word.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.norm_clipped_mean(clip_norm=5.0)
      >>> updates = {"w": jnp.array([[3.0, 4.0], [30.0, 40.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [3.0, 4.0]
    """
    return chain(clip_to_norm(clip_norm), fedavg(weighting))


def centered_clipping(clip_radius: Scalar = 10.0, num_iterations: int = 1) -> Aggregator:
    """The mean of updates clipped to a ball around the last result (Karimireddy, He and Jaggi, ICML 2021, section 4).

        v <- v + mean of (x_i - v) * min(1, clip_radius / |x_i - v|)

    `num_iterations` times, from the result of the round before, zero in the first round. A client can move v by no more
    than `clip_radius / n` a step, and all together by no more than `clip_radius`; one at a distance that is not finite does
    not move it. `weight` is that of the last step, min(1, clip_radius / |x_i - v|) / n.

    Args:
      clip_radius: `> 0`. May be traced.
      num_iterations: steps a round, 1 to 100.

    Raises:
      InputError: for a number out of range.
    """
    check_number("clip_radius", clip_radius, above=0)
    check_number("num_iterations", num_iterations, low=1, high=100, whole=True)

    def init(params: PyTree) -> PyTree:
        return jax.tree.map(jnp.zeros_like, params)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, Diagnostics]:
        rows = Rows.of(updates, present)
        center, radius = state, jnp.asarray(clip_radius, rows.dtype)
        n = jnp.maximum(rows.count, 1).astype(rows.dtype)
        for _ in range(num_iterations):
            distance = rows.each(lambda row, v: ops.tree_norm(jax.tree.map(_less, row, v)), center)
            counted = rows.present & jnp.isfinite(distance)
            share = jnp.where(counted, 1 / jnp.maximum(distance / radius, 1), 0.0) / n
            kept = 1 - jnp.sum(share)
            moved = jax.tree.map(
                lambda v, x, kept=kept: kept * v.astype(kept.dtype) + x.astype(kept.dtype),
                center,
                rows.weighted_sum(share),
            )
            center = jax.tree.map(lambda v, like: v.astype(like.dtype), moved, state)
        weight = jax.tree.map(lambda _: share, rows.stack)
        return center, center, Diagnostics(weight)

    return Aggregator(init, aggregate)


def _less(x: jax.Array, y: jax.Array) -> jax.Array:
    """x - y in the type in which it is measured: one of them may come scaled, in float32."""
    kind = ops.wide((x, y))
    return x.astype(kind) - y.astype(kind)
