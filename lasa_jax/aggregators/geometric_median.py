"""The geometric median by the smoothed Weiszfeld algorithm (Pillutla, Kakade and Harchaoui, IEEE TSP 2022, "RFA")."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Aggregator, Context, Count, Diagnostics, PyTree, Rows, Scalar, stateless
from lasa_jax.aggregators.sizes import needs_of, sizes_of
from lasa_jax.errors import check_choice, check_number

_CONVERGED = 1e-7  # largest change of a weight, of weights that add up to 1, times how far out its row is


def geometric_median(
    smoothing: Scalar = 1e-6,
    max_iterations: int = 100,
    refinements: int | None = None,
    variant: str = "paper",
    weighting: str = "equal",
) -> Aggregator:
    """The point with the smallest sum of distances to all clients' updates.

        F(Delta) = argmin over z of sum_i a_i * |x_i - z|,    a_i = 1
        z <- sum_i w_i x_i / sum_i w_i,    w_i = a_i / max(smoothing, |x_i - z|)

    The steps start at the mean, in which clients that are far out count less. They end once no weight moves by more than
    1e-7 (those of clients far out: by less), or after `max_iterations`. Every z is a weighted mean, so its distances
    follow from the inner products of the clients, and the stack is not read again in the steps. Clients whose update is
    not finite, or farther away than float32 can say, have weight 0.

    With b < n/2 clients malicious, the median (`refinements=0`) is within 2 (n - b) / (n - 2b) * R of the benign clients'
    mean c, R the largest distance of one of them from c: the sum of distances is no larger at the median than at c.
    With sizes the share of the examples that malicious clients hold, or claim, takes the place of b / n: a few large clients
    can be more than half.

    Args:
      smoothing: smallest distance that is divided by, `> 0`. May be traced.
      max_iterations: largest number of steps of each run, `>= 1`.
      refinements: how often the run is repeated with a_i multiplied by exp(-|x_i - z|), which takes far clients out; 0 if
        None. The official code does so twice except on CIFAR (docs/fidelity.md, section 3.1). Where all are far and the
        exponentials vanish, the last z stays; the official code gives NaN.
      variant: "paper" as above; "official" has `refinements=2` if None.
      weighting: "equal" as above; "size": a_i is the number of the client's examples, as in the paper.

    Raises:
      InputError: for a number out of range, or another word.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.geometric_median()
      >>> updates = {"w": jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=0)
      >>> update["w"].tolist()
      [0.5, 0.5]
    """
    check_number("smoothing", smoothing, above=0)
    check_number("max_iterations", max_iterations, low=1, whole=True)
    check_choice("variant", variant, ("paper", "official"))
    repeats = {"paper": 0, "official": 2}[variant] if refinements is None else refinements
    check_number("refinements", repeats, low=0, high=100, whole=True)
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
        usable = jnp.isfinite(jnp.diagonal(rows.gram))
        gram = jnp.where(usable[:, None] & usable[None, :], rows.gram, 0.0)
        apart = ops.squared_distances(rows.gram) > 0
        norms, smallest = ops.root(jnp.diagonal(gram)), jnp.asarray(smoothing, rows.dtype)
        radius = ops.masked_median(norms, usable, lower=True)
        # In distances of the nearer half; of the next client where that half is one point. Where most clients are, what is
        # finer than the smoothing does not count. Without a unit a far client's weight of 1e-8 would pass for none.
        beyond = ops.masked_median(norms, usable)
        unit = jnp.where(radius > 0, radius, jnp.where(beyond > 0, beyond, smallest))
        outwards = jnp.maximum(norms / unit, 1.0)

        def distances(w: jax.Array) -> jax.Array:
            """From every client to the weighted mean of the clients with weights w, which add up to 1."""
            # |x_i - z| = |sum_j w_j (x_j - x_i)|. Without the clients at x_i itself the terms are small where z is near it,
            # so that nothing cancels: a median that starts at a client, as under ByzMean, must not seem to stay there.
            others = jnp.where(apart, w[None, :], 0.0)
            product = ops.product(others, gram)
            share = jnp.sum(others, axis=1, keepdims=True)
            inner = product - jnp.diagonal(product)[:, None] - share * (gram - jnp.diagonal(gram)[:, None])
            return ops.root(jnp.maximum(jnp.sum(others * inner, axis=1), 0.0))

        def normalised(w: jax.Array) -> jax.Array:
            w = jnp.where(usable, w, 0.0)
            return w / jnp.where(jnp.sum(w) > 0, jnp.sum(w), 1.0)

        def weiszfeld(a: jax.Array) -> jax.Array:
            """The weights, adding up to 1, whose weighted mean is the median with client weights a."""

            def improved(w: jax.Array) -> jax.Array:
                return normalised(a / jnp.maximum(distances(w), smallest))

            def search(_: Callable[[jax.Array], jax.Array], start: jax.Array) -> jax.Array:
                def step(carry: tuple) -> tuple:
                    w, _, index = carry
                    new = improved(w)
                    return new, jnp.max(jnp.abs(new - w) * outwards) > _CONVERGED, index + 1

                carry = (start, jnp.asarray(True), jnp.int32(0))
                return jax.lax.while_loop(lambda c: c[1] & (c[2] < max_iterations), step, carry)[0]

            # Differentiated as the solution of w = improved(w), not through the steps.
            start = normalised(a / jnp.maximum(outwards / 4, 1.0))
            return jax.lax.custom_root(lambda w: w - improved(w), start, search, _solve)

        sizes = sizes_of(rows, weighting, context, "geometric_median")
        a = normalised(jnp.ones(len(usable), rows.dtype) if sizes is None else sizes)
        w = weiszfeld(a)
        for _ in range(repeats):
            scaled = normalised(a * jnp.exp(-distances(w)))
            vanished = jnp.sum(scaled) == 0
            a = jnp.where(vanished, a, scaled)
            w = jnp.where(vanished, w, weiszfeld(a))
        weight = jax.tree.map(lambda _: w, rows.stack)
        return rows.weighted_sum(weight), state, Diagnostics(weight)

    return Aggregator(stateless, aggregate, needs)


def _solve(linear: Callable[[jax.Array], jax.Array], wanted: jax.Array) -> jax.Array:
    """The smallest x with `linear(x)` nearest to what is wanted: where the median is not unique, there are many."""
    matrix = jax.vmap(linear, out_axes=1)(jnp.eye(len(wanted), dtype=wanted.dtype))
    return ops.product(jnp.linalg.pinv(matrix), wanted)
