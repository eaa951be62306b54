"""Attacks that know the rule: tailored to the trimmed mean and to Krum.

Both send `mean - step * std`, the attacker foreseeing the rule on the rows it knows and copies of the crafted one. Source:
Shejwalkar and Houmansadr, NDSS 2021, section IV (AGR-tailored), with the direction of its inverse standard deviation.
"""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import KNOWLEDGE, Attack, PyTree, known_rows, same_row, simulated_copies
from lasa_jax.attacks.distance import largest_step, measure
from lasa_jax.errors import check_choice


def tailored_trmean(variant: str = "paper", knowledge: str = "benign") -> Attack:
    """Moves the trimmed mean as far as it goes, with the smallest step that does.

        row = mean - step * std,    step = smallest with the lowest trimmed mean of (known rows, m copies of row)

    in every coordinate, with m values trimmed at each end. The copies push the trimmed mean down until all of them are
    trimmed, that is until they lie at or below the smallest known value. So no search is needed:

        step = max over coordinates and known rows of (mean - x) / std

    Args:
      variant: "paper" as above. "official" is step = 10: in the official search the first trial always passes and no
        larger step gains (docs/fidelity.md).
      knowledge: whose updates, see `known_rows`. As in the official code: "colluders".
    """
    check_choice("variant", variant, ("paper", "official"))
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        mean, std = ops.mean_and_std(updates, known)
        kind = ops.wide(updates)
        step = jnp.asarray(10, kind)
        if variant == "paper":

            def farthest(row: PyTree, mean: PyTree, std: PyTree) -> jax.Array:
                """The largest number of standard deviations that the row lies below the mean."""
                steps = jax.tree.map(
                    lambda x, m, s: jnp.max(jnp.where(s > 0, m - x, 0) / jnp.where(s > 0, s, 1), initial=0).astype(
                        kind
                    ),
                    row,
                    mean,
                    std,
                )
                return jnp.max(jnp.stack(jax.tree.leaves(steps)))

            farthest_of = ops.map_rows(farthest, updates, shared=(mean, std))
            step = jnp.max(farthest_of, where=known, initial=0.0)
        return jax.tree.map(lambda m, s: m.astype(kind) - step * s.astype(kind), mean, std)

    return same_row(craft_row)


def tailored_krum(knowledge: str = "benign") -> Attack:
    """The farthest row on the line `mean - step * std` that Krum would still choose.

    The idea is that of Fang, Cao, Jia and Gong (USENIX Security 2020), the direction is not: theirs goes against the sign of
    the honest step, equally far in every coordinate; this one goes down, farther where honest clients differ more.

    The attacker runs Krum on the k rows it knows and its m copies, assuming m malicious: the copies are at distance 0 from
    each other, and their distances to the known rows are quadratics in the step, so nothing is read again. The step is the
    largest, to 20 / 2**24 and at most 20, found by halving.

    Args:
      knowledge: whose updates, see `known_rows`.
    """
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        line = measure(updates, known)
        pairs = line.pairwise(updates)
        n = len(known)
        others = jnp.where(jnp.eye(n, dtype=bool) | ~known[None, :], jnp.inf, pairs)
        copies = simulated_copies(knowledge, malicious, present)
        neighbours = jnp.maximum(jnp.sum(known, dtype=jnp.int32) - 2, 1)
        is_copy = jnp.arange(n, dtype=jnp.int32) < copies
        twins = jnp.where(jnp.arange(n, dtype=jnp.int32) < copies - 1, 0.0, jnp.inf).astype(line.a.dtype)

        def krum_chooses(step: jax.Array) -> jax.Array:
            apart = jnp.where(known, line.squared(step), jnp.inf)
            crafted = ops.sum_of_smallest(jnp.concatenate([apart, twins]), neighbours)
            to_copies = jnp.where(is_copy[None, :], apart[:, None], jnp.inf)
            honest = ops.sum_of_smallest(jnp.concatenate([others, to_copies], axis=1), neighbours)
            return crafted <= jnp.min(jnp.where(known, honest, jnp.inf))

        return line.at(largest_step(krum_chooses))

    return same_row(craft_row)
