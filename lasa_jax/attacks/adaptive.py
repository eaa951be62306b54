"""An attack that is given the server's rule and searches, layer by layer, for what moves its result most."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import Attack, PyTree, checked, honest_examples, known_rows, stateless
from lasa_jax.errors import check_choice, check_number

_SMALLEST, _LARGEST = 0.1, 10.0  # magnitudes tried first, in units of the spread of a layer
_FACTORS = (1.0, 1.3, 0.8, 1.1, 0.92)  # steps of the refinement, over and over
OBJECTIVES = ("descent", "distance")


def adaptive(
    objective: str = "descent", num_magnitudes: int = 8, num_refinements: int = 10, knowledge: str = "benign"
) -> Attack:
    """Every malicious client sends one row that was found by trying the actual rule on it.

        row_l = mean_l + g_l * d_l      for every layer l, |d_l| = |std_l|
        d_l one of: against the mean (-mean_l),  down (-std_l),  against the signs (-sign(mean_l) * std_l)

    First the same direction and magnitude g in all layers: `num_magnitudes` between 0.1 and 10 in each direction. Then
    every layer takes the direction and magnitude that gained most there, and its magnitude is varied from there on as long
    as the layer gains. What gained most over all layers together, on the actual rule, is sent. The gain of a layer is

        descent:   <mean_l - F_l, mean_l>      how much of the honest step is taken back
        distance:  |F_l - mean_l|^2            how far the result is moved

    The rule is given to `craft` as `aggregate(updates) -> update`, and is called
    `3 * num_magnitudes + num_refinements` times per round.

    Args:
      objective: "descent" or "distance".
      num_magnitudes, num_refinements: of the search, `>= 1`.
      knowledge: whose mean and standard deviation, "benign" or "all", see `known_rows`. The rule is tried on all updates, so
        that an attacker who knows only its colluders cannot run this search.

    Source: this project; in the spirit of the AGR-tailored attacks of Shejwalkar and Houmansadr (NDSS 2021).

    Raises:
      ValueError: from `craft`, if it is not given the rule.
    """
    check_choice("objective", objective, OBJECTIVES)
    check_number("num_magnitudes", num_magnitudes, low=1)
    check_number("num_refinements", num_refinements, low=1)
    check_choice("knowledge", knowledge, ("benign", "all"))

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: Callable[[PyTree], PyTree] | None = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree]:
        if aggregate is None:
            raise ValueError("attack 'adaptive' needs the rule it attacks: craft(..., aggregate=updates -> update)")
        malicious, present = checked(updates, malicious, present)
        kind = ops.wide(updates)
        mean, std = ops.mean_and_std(updates, known_rows(knowledge, malicious, present))
        means, structure = jax.tree.flatten(jax.tree.map(lambda x: x.astype(kind), mean))
        stds = [x.astype(kind) for x in jax.tree.leaves(std)]
        directions = [_directions(m, s) for m, s in zip(means, stds, strict=True)]

        def row_of(direction: jax.Array, magnitude: jax.Array) -> PyTree:
            moved = [m + g * d[i] for m, d, i, g in zip(means, directions, direction, magnitude, strict=True)]
            return jax.tree.unflatten(structure, moved)

        def gains(result: PyTree) -> jax.Array:
            pairs = zip(jax.tree.leaves(result), means, strict=True)
            if objective == "distance":
                return jnp.stack([ops.tree_dot(f.astype(kind) - m, f.astype(kind) - m) for f, m in pairs])
            return jnp.stack([ops.tree_dot(m - f.astype(kind), m) for f, m in pairs])

        def attempt(carry: tuple, trial: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[tuple, None]:
            """Tries one direction and magnitude in all layers, or each layer's best so far times a factor."""
            crafted, layers, whole = carry
            uniform, direction, magnitude = trial
            direction = jnp.where(uniform, direction, layers[1])
            magnitude = jnp.where(uniform, magnitude, magnitude * layers[2])
            row = row_of(direction, magnitude)
            crafted = ops.replace_rows(lambda _: row, crafted, malicious)
            gain = gains(aggregate(crafted))
            gain = jnp.where(jnp.isfinite(gain), gain, -jnp.inf)
            new = (gain, direction, magnitude)
            layers = jax.tree.map(lambda x, y: jnp.where(gain > layers[0], x, y), new, layers)
            total = jnp.sum(gain)
            whole = jax.tree.map(lambda x, y: jnp.where(total > whole[0], x, y), (total, direction, magnitude), whole)
            return (crafted, layers, whole), None

        count = len(means)
        nothing = (jnp.full(count, -jnp.inf, kind), jnp.zeros(count, jnp.int32), jnp.zeros(count, kind))
        carry = (updates, nothing, (jnp.asarray(-jnp.inf, kind), *nothing[1:]))
        magnitudes = jnp.geomspace(_SMALLEST, _LARGEST, num_magnitudes, dtype=kind)
        factors = jnp.resize(jnp.array(_FACTORS, kind), (num_refinements,))
        trials = (
            jnp.arange(3 * num_magnitudes + num_refinements, dtype=jnp.int32) < 3 * num_magnitudes,
            jnp.concatenate(
                [jnp.repeat(jnp.arange(3, dtype=jnp.int32), num_magnitudes), jnp.zeros(num_refinements, jnp.int32)]
            ),
            jnp.concatenate([jnp.tile(magnitudes, 3), factors]),
        )
        (crafted, _, (_, direction, magnitude)), _ = jax.lax.scan(attempt, carry, trials)
        row = row_of(direction, magnitude)
        return ops.replace_rows(lambda _: row, crafted, malicious), state

    return Attack(stateless, honest_examples, craft)


def _directions(mean: jax.Array, std: jax.Array) -> jax.Array:
    """The directions tried in one layer, each as long as the standard deviation: `(3, ...)`."""
    spread = ops.tree_norm(std)

    def as_long(x: jax.Array) -> jax.Array:
        return x * (spread / jnp.maximum(ops.tree_norm(x), 1e-30))

    return jnp.stack([as_long(-mean), -std, as_long(-jnp.sign(mean) * std)])
