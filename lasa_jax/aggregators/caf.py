"""Covariance-bound agnostic filter (Allouah, Guerraoui and Stephan, ICML 2025)."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Count, PyTree, Rows, Selection, at_most, stateless
from lasa_jax.errors import check_number

_MOST_STEPS = 1000  # each takes the farthest client away, or shrinks everybody by how much farther it is


def caf(assumed_malicious: Count | None = None) -> Aggregator:
    """Takes weight from the clients that stick out along the direction of largest spread, and keeps the tightest mean.

        c_i = 1;    while sum of c_i > n - 2f:
            mu = sum of c_i x_i / sum of c_i,    (lambda, v) = top eigenpair of the covariance around mu with weights c_i
            if lambda is the smallest so far: F(Delta) = mu
            tau_i = <v, x_i - mu>^2,    c_i <- c_i (1 - tau_i / max of tau)

    Nobody has to know a bound on the benign clients' covariance. The eigenpair is exact, from the inner products of the
    clients; public implementations take one or three power steps from a start of their own, so their result is another.
    The largest tau is taken over all clients, those of weight 0 too, so a step need not set another weight to 0, and the
    paper's bound by the benign covariance's largest eigenvalue is not exact. The loop also ends where a step changes no
    weight in float32, as for identical clients, and after 1,000 steps. A client whose update is not finite has weight 0
    from the start.

    Args:
      assumed_malicious: f; the server's `num_malicious` if None, at most `(n - 1) // 2`. May be traced.

    Raises:
      InputError: for a number out of range.

    `weight` in the diagnostics is that of the mean which is the result; `score` is the last tau over its largest.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.caf(assumed_malicious=1)
      >>> updates = {"w": jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [1000.0, 0.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> bool(jnp.max(jnp.abs(update["w"])) < 1e-3)
      True
    """
    if assumed_malicious is not None:
        check_number("assumed_malicious", assumed_malicious, low=0, whole=True)

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree, Selection]:
        rows = Rows.of(updates, present)
        f = at_most((rows.count - 1) // 2, num_malicious if assumed_malicious is None else assumed_malicious)
        share, tau = filtered(rows, rows.count - 2 * f)
        weight = jax.tree.map(lambda _: share, rows.stack)
        return rows.weighted_sum(weight), state, Selection(weight, f, tau)

    return Aggregator(stateless, aggregate)


def filtered(rows: Rows, least: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shares of the clients in the tightest mean, `(n,)`, and the last tau over its largest, infinite if not usable.

    Args:
      rows: as read.
      least: the sum of weights at which the filter ends, int32.
    """
    usable = jnp.isfinite(jnp.diagonal(rows.gram))
    gram = jnp.where(usable[:, None] & usable[None, :], rows.gram, 0.0)
    gram = jax.lax.stop_gradient(gram)  # shares are constants where the result is differentiated
    kind = gram.dtype

    def step(carry: tuple) -> tuple:
        c, smallest, best, _, _, index = carry
        share = c / jnp.maximum(jnp.sum(c), 1.0)  # more than that is left, see `goes_on`
        of_mean = ops.product(gram, share)
        around = gram - of_mean[:, None] - of_mean[None, :] + jnp.sum(share * of_mean)
        root = jnp.sqrt(share)
        spread, u = ops.top_eigenpair(root[:, None] * around * root[None, :])
        # v = sum of root_i u_i (x_i - mu) / sqrt(spread), so <v, x_j - mu> needs inner products only.
        along = jnp.where(usable, jnp.abs(ops.product(around, root * u)), 0.0)
        farthest = jnp.max(along)
        down = jnp.where(farthest > 1e18, 2.0**-64, 1.0)  # the reciprocal of 1e38 alone would be flushed to zero
        ratio = along * down / jnp.where(farthest > 0, farthest * down, 1.0)
        tau = jnp.where((along == farthest) & (farthest > 0), 1.0, jnp.minimum(ratio**2, 1.0))
        left = c * (1 - tau)
        best = jnp.where(spread < smallest, share, best)
        return left, jnp.minimum(spread, smallest), best, tau, jnp.any(left != c), index + 1

    def goes_on(carry: tuple) -> jax.Array:
        c, *_, moved, index = carry
        return (jnp.sum(c) > least.astype(kind)) & moved & (index < _MOST_STEPS)

    everybody = usable.astype(kind)
    even = everybody / jnp.maximum(jnp.sum(everybody), 1.0)
    start = (everybody, jnp.asarray(jnp.inf, kind), even, jnp.zeros_like(even), jnp.asarray(True), jnp.int32(0))
    _, _, best, tau, _, _ = jax.lax.while_loop(goes_on, step, start)
    return best, jnp.where(usable, tau, jnp.inf)
