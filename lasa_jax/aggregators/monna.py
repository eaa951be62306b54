"""Nearest-neighbour averaging around a trusted update (Farhadkhani, Guerraoui, Gupta, Hoang and others, ICML 2023)."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import (
    Aggregator,
    Context,
    Count,
    PyTree,
    Rows,
    Selection,
    at_most,
    equal_weights,
    stateless,
)
from lasa_jax.aggregators.context import needed
from lasa_jax.errors import check_number


def monna(trusted: Count | None = None, assumed_malicious: Count | None = None) -> Aggregator:
    """Averages the n - f clients that are nearest to an update that is trusted (MoNNA).

        F(Delta) = mean of the n - f clients with the smallest |x_i - g|,    g the server's own update

    Meant for peers, each of which trusts itself. While no more than f clients are malicious, no client that is averaged is
    farther from g than the farthest benign one, so neither is the result, whatever f is. It is worth nothing where g is not
    to be trusted. Of equal distances the client that comes first is kept. A client whose update is not finite is never
    averaged; where g is not finite nobody is, and the update is zero.

    Args:
      trusted: None takes the server's own update as g, which needs `server_update` in the context. A number takes the
        client at that place of the stack, itself among the n - f; where it is absent nobody is averaged. May be traced.
      assumed_malicious: f; the server's `num_malicious` if None, at most `n - 1`. May be traced.

    Raises:
      InputError: for a number out of range.

    `score` in the diagnostics is the distance to g.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.monna(assumed_malicious=1)
      >>> context = aggregators.Context(server_update={"w": jnp.array([2.0])})
      >>> rows, state = {"w": jnp.array([[1.0], [2.0], [3.0], [9.0]])}, rule.init({"w": jnp.zeros(1)})
      >>> update, _, _ = rule.aggregate(rows, state, key=jax.random.key(0), num_malicious=0, context=context)
      >>> update["w"].tolist()
      [2.0]
    """
    if trusted is not None:
        check_number("trusted", trusted, low=0, whole=True)
    if assumed_malicious is not None:
        check_number("assumed_malicious", assumed_malicious, low=0, whole=True)
    needs = frozenset({"server_update"} if trusted is None else ())

    def reference(rows: Rows, context: Context | None) -> tuple[PyTree, jax.Array]:
        """g, and whether it is there."""
        if trusted is None:
            return needed(context, needs, "monna").server_update, jnp.asarray(True)
        n = len(rows.present)
        check_number("trusted", trusted, low=0, high=n - 1, whole=True)
        chosen = rows.present & (jnp.arange(n, dtype=jnp.int32) == jnp.asarray(trusted, jnp.int32))
        return rows.weighted_sum(chosen.astype(rows.dtype)), jnp.any(chosen)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, Selection]:
        rows = Rows.of(updates, present)
        f = at_most(rows.count - 1, num_malicious if assumed_malicious is None else assumed_malicious)
        g, is_there = jax.lax.stop_gradient(reference(rows, context))  # who is near has no derivative
        distance = rows.each(lambda row, g: ops.tree_norm(jax.tree.map(_less, row, g)), g)
        score = jnp.where(rows.present & is_there & jnp.isfinite(distance), distance, jnp.inf)
        weight = equal_weights(rows, jnp.isfinite(score) & (ops.rank_of(score) < rows.count - f))
        return rows.weighted_sum(weight), state, Selection(weight, f, score)

    return Aggregator(stateless, aggregate, needs)


def _less(x: jax.Array, y: jax.Array) -> jax.Array:
    """x - y in the type in which it is measured."""
    kind = ops.wide((x, y))
    return x.astype(kind) - y.astype(kind)
