"""FLTrust (Cao, Fang, Liu and Gong, NDSS 2021): the server trains on examples of its own, and trusts who goes its way."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Context, Count, Diagnostics, PyTree, Rows, stateless
from lasa_jax.aggregators.context import needed
from lasa_jax.aggregators.directions import cosines_with, rescaled

_NEEDS = frozenset({"server_update"})


def fltrust() -> Aggregator:
    """The mean of the updates, all as long as the server's own, weighted by how much their direction is the server's.

        t_i = max(0, cos(x_i, g)),    F(Delta) = sum_i t_i * (|g| / |x_i|) * x_i / sum_i t_i

    g is the update that the server trained on its own examples, `context.server_update`; in a run these are
    `config.root_examples` of the training examples, the paper's 100 by default. In a round it takes at most as many of them
    as the median client has: with more local steps than theirs its update would be longer than theirs. Does not use
    `num_malicious`, and stands any number of malicious clients as far as g is good: the result is no longer than g and not
    farther than 90 degrees from it. More is not known of it without assumptions on the loss.

    A client that is zero or not finite has no direction and weight 0. Where nobody is trusted, or g is zero or not finite,
    the result is zero; the paper's formula is 0/0 there. `weight` is t_i / sum of t, that of the rescaled update.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.fltrust()
      >>> updates = {"w": jnp.array([[1.0, 0.0], [9.0, 0.0], [-5.0, 0.0]])}
      >>> known = aggregators.Context(server_update={"w": jnp.array([2.0, 0.0])})
      >>> update, _, info = rule.aggregate(updates, (), key=jax.random.key(0), num_malicious=1, context=known)
      >>> update["w"].tolist(), info.weight["w"].tolist()
      ([2.0, 0.0], [0.5, 0.5, 0.0])
    """

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
        own = needed(context, _NEEDS, "fltrust").server_update
        norms, cosines = cosines_with(rows, own)
        trust = jnp.where(rows.present, jnp.maximum(cosines, 0.0), 0.0)
        everybody = jnp.sum(trust)
        share = trust / jnp.where(everybody > 0, everybody, 1.0)
        units, lengths = rescaled(rows, norms)
        length = ops.tree_norm(own)
        factor = jnp.where(share > 0, share * jnp.where(jnp.isfinite(length), length, 0.0) / lengths, 0.0)
        return units.weighted_sum(factor), state, Diagnostics(jax.tree.map(lambda _: share, rows.stack))

    return Aggregator(stateless, aggregate, _NEEDS)
