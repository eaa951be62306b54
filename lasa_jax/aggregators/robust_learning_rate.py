"""Robust learning rate (Özdayi, Kantarcioglu and Gel, AAAI 2021)."""

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
    stateless,
)
from lasa_jax.aggregators.sizes import mean_weights, needs_of, sizes_of
from lasa_jax.errors import check_choice, check_number

_BASES = ("mean", "weighted_mean", "median", "sign")


def robust_learning_rate(threshold: Scalar = 8.0, base: str = "mean") -> Aggregator:
    """Turns the server's step around in the coordinates in which too few clients agree on a sign.

        s_j = |sum over i of sign(x_ij)|,    F(Delta)_j = a_j if s_j >= theta, else -a_j

    a is the mean of the updates, their lower median, or the sign of the sum of their signs. Made against backdoors: there
    the malicious clients want what the others do not. No bound against clients that send anything is known, and the mean
    of any of them is not bounded: where an entry is not finite, the mean is not. A NaN has the sign 0, and counts as the
    largest value in the median. With theta = 0 the result is a itself; a theta above n turns all of it around.

    Args:
      threshold: theta, clients, `>= 0`. The authors use 4 of 10 and 8 of 40. May be traced.
      base: "mean", "median" or "sign"; "weighted_mean", which is the paper's, weighs clients by their examples and needs
        `sizes` in the context. Signs count the same for all.

    Raises:
      InputError: for a value out of range.

    `weight` is the share of each client in the mean, 1/n where they count the same.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.robust_learning_rate(threshold=3.0)
      >>> updates = {"w": jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, -6.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [2.0, 1.0]
    """
    check_number("threshold", threshold, low=0)
    check_choice("base", base, _BASES)
    weighting = "size" if base == "weighted_mean" else "equal"
    needs = needs_of(weighting)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, Diagnostics]:
        rows = Rows.of(updates, present)
        weight = mean_weights(rows, rows.present, sizes_of(rows, weighting, context, "robust_learning_rate"))

        def combined(block: jax.Array, present: jax.Array, share: jax.Array, signs: jax.Array) -> jax.Array:
            if base == "median":
                n = jnp.sum(present, dtype=jnp.int32)
                return ops.average_of_ranks(ops.sort_clients(block, present), (n - 1) // 2, jnp.minimum(n, 1))
            if base == "sign":
                return jnp.sign(signs)
            # Divided before it is added, so that the sum stays in the range of float32.
            return jnp.sum(jnp.where(share[:, None] > 0, block * share[:, None], 0.0), axis=0)

        def signed(block: jax.Array, present: jax.Array, share: jax.Array, threshold: jax.Array) -> jax.Array:
            signs = jnp.where(present[:, None] & ~jnp.isnan(block), jnp.sign(block), 0.0)
            signs = jnp.sum(signs, axis=0)
            found = combined(block, present, share, signs)
            return jnp.where(jnp.abs(signs) >= threshold.astype(signs.dtype), found, -found)

        share = jax.tree.leaves(weight)[0]
        update = rows.columns(signed, share, jnp.asarray(threshold, jnp.float32))
        return update, state, Diagnostics(weight)

    return Aggregator(stateless, aggregate, needs)
