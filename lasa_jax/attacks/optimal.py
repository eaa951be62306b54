"""A little is enough and inner product manipulation with the factor that moves the server's own rule farthest.

Source: the attacks of Baruch, Baruch and Goldberg (NeurIPS 2019) and of Xie, Koyejo and Gupta (UAI 2019), with the search of
ByzFL's "optimal" versions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import Attack, PyTree, checked, honest_examples, known_rows, stateless
from lasa_jax.errors import check_choice, check_number

_FIRST, _LARGER, _SMALLER = 10.0, 2.0, 0.8  # the first increment of the factor, and what it is multiplied by


def optimal_alie(num_evaluations: int = 20, knowledge: str = "benign") -> Attack:
    """Every malicious client sends `mean + t * std` with the t that moves the rule's result farthest from the mean.

        gain(t) = |F(updates with the row of t) - mean|

    The search: t = 0 first, then t + 10, t + 10 + 20 and so on, the increment doubled, as long as the gain rises. At
    the first that gains nothing, the increment is multiplied by 0.8, and so after every trial from then on.
    So t is never negative: the deviations are added, where `lie` and `alie` subtract them.

    The rule is given to `craft` as `aggregate(updates) -> update`, and is called `num_evaluations` times per round. Against
    a rule whose result the row moves ever on, t grows to 10 * 2^19; a result that is not finite gains nothing.

    Args:
      num_evaluations: of the rule, `>= 1`.
      knowledge: whose mean and standard deviation, "benign" or "all", see `known_rows`. The rule is tried on all updates, so
        that an attacker who knows only its colluders cannot run this search.

    Raises:
      ValueError: from `craft`, if it is not given the rule.
    """
    return _optimal("optimal_alie", num_evaluations, knowledge, lambda t, mean, std: mean + t * std)


def optimal_ipm(num_evaluations: int = 20, knowledge: str = "benign") -> Attack:
    """Every malicious client sends `-t * mean` with the t that moves the rule's result farthest from the mean.

    The search and the arguments are those of `optimal_alie`.

    Args:
      num_evaluations: of the rule, `>= 1`.
      knowledge: whose mean, "benign" or "all".

    Raises:
      ValueError: from `craft`, if it is not given the rule.
    """
    return _optimal("optimal_ipm", num_evaluations, knowledge, lambda t, mean, std: -t * mean)


def _optimal(
    name: str, num_evaluations: int, knowledge: str, entry: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> Attack:
    """The attack whose row is `entry(t, mean, std)` in every entry."""
    check_number("num_evaluations", num_evaluations, low=1, whole=True)
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
            raise ValueError(f"attack {name!r} needs the rule it attacks: craft(..., aggregate=updates -> update)")
        malicious, present = checked(updates, malicious, present)
        kind = ops.wide(updates)
        mean, std = (
            jax.tree.map(lambda x: x.astype(kind), tree)
            for tree in ops.mean_and_std(updates, known_rows(knowledge, malicious, present))
        )

        def sent(rows: PyTree, t: jax.Array) -> PyTree:
            row = jax.tree.map(lambda m, s: entry(t, m, s), mean, std)
            return ops.replace_rows(lambda _: row, rows, malicious)

        def gain(rows: PyTree) -> jax.Array:
            found = ops.tree_norm(jax.tree.map(lambda x, m: x.astype(kind) - m, aggregate(rows), mean))
            return jnp.where(jnp.isfinite(found), found, -jnp.inf)

        def attempt(_: jax.Array, tried: tuple) -> tuple:
            rows, best, farthest, increment, expands = tried
            t = best + increment
            rows = sent(rows, t)
            now = gain(rows)
            good = now > farthest
            factor = jnp.where(good & expands, _LARGER, _SMALLER).astype(kind)
            return rows, jnp.where(good, t, best), jnp.maximum(now, farthest), increment * factor, good & expands

        rows = sent(updates, jnp.zeros((), kind))
        tried = (rows, jnp.zeros((), kind), gain(rows), jnp.asarray(_FIRST, kind), jnp.asarray(True))
        rows, best, *_ = jax.lax.fori_loop(0, num_evaluations - 1, attempt, tried)
        return sent(rows, best), state

    return Attack(stateless, honest_examples, craft)
