"""Attacks built from the mean and standard deviation of honest updates: Lie, ALIE, inner product and ByzMean.

All standard deviations are unbiased (divide by the count less one), and 0 for a single row.
"""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import (
    KNOWLEDGE,
    Attack,
    PyTree,
    Scalar,
    checked,
    honest_examples,
    known_rows,
    same_row,
    stateless,
)
from lasa_jax.errors import check_choice, check_number


def lie(z: Scalar = 0.5, knowledge: str = "benign") -> Attack:
    """A little is enough (Baruch, Baruch and Goldberg, NeurIPS 2019): every malicious client sends the same row

        beta = mean - z * std        coordinate-wise, over the rows the attacker knows

    Args:
      z: how many standard deviations from the mean; 0.5 in the supplement (section C). May be traced.
      knowledge: whose updates the statistics are taken from, see `known_rows`. As in the official code: "colluders".
    """
    check_number("z", z)
    check_choice("knowledge", knowledge, KNOWLEDGE)
    return same_row(lambda u, malicious, present: lie_row(u, known_rows(knowledge, malicious, present), z))


def alie(knowledge: str = "benign") -> Attack:
    """A little is enough with the z of its own paper (Baruch et al., NeurIPS 2019, algorithm 3).

        s = floor(n / 2 + 1) - f,    z = largest with Phi(z) <= (n - f - s) / (n - f),    row = mean - z * std

    s benign clients must be farther out than the malicious, for these to be part of a majority. z is 0 where that is more
    than half of the benign, as for a single malicious client, and at most 4, where none is needed: the malicious are
    the majority themselves.

    Args:
      knowledge: whose updates the statistics are taken from, see `known_rows`.
    """
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        z = z_of_a_majority(malicious, present)
        return lie_row(updates, known_rows(knowledge, malicious, present), z)

    return same_row(craft_row)


def z_of_a_majority(malicious: jax.Array, present: jax.Array) -> jax.Array:
    """The z of `alie`, float32: so far out that the malicious and the benign beyond them are a majority; between 0 and 4."""
    n, f = jnp.sum(present, dtype=jnp.int32), jnp.sum(malicious, dtype=jnp.int32)
    benign = jnp.maximum(n - f, 1)
    share = (benign - (n // 2 + 1 - f)).astype(jnp.float32) / benign.astype(jnp.float32)
    return jnp.clip(jax.scipy.special.ndtri(jnp.clip(share, 0.5, 1.0)), 0.0, 4.0)


def ipm(epsilon: Scalar = 0.5, knowledge: str = "benign") -> Attack:
    """Inner product manipulation (Xie, Koyejo and Gupta, UAI 2019): every malicious client sends `-epsilon * mean`.

    Args:
      epsilon: 0.5 if not given; small values hide near zero, large ones turn an average around. May be traced.
      knowledge: whose mean, see `known_rows`.
    """
    check_number("epsilon", epsilon)
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft_row(updates: PyTree, malicious: jax.Array, present: jax.Array) -> PyTree:
        known = known_rows(knowledge, malicious, present)
        kind = ops.wide(updates)
        count = jnp.maximum(jnp.sum(known, dtype=jnp.int32), 1).astype(kind)
        return ops.weighted_sum(jnp.where(known, -jnp.asarray(epsilon, kind) / count, 0.0), updates)

    return same_row(craft_row)


def byzmean(z: Scalar = 0.5, variant: str = "paper", knowledge: str = "benign") -> Attack:
    """ByzMean (Xu, Huang, Song and Lan, ICDCS 2022) with Lie as its base: makes the plain mean equal to a Lie row.

        beta  = mean - z * std                               sent by the first m1 = floor(f / 2) malicious clients
        gamma = ((n - m1) * beta - sum of benign) / m2       sent by the other m2 = f - m1

    so that the mean over all n rows is beta.

    Args:
      z: of the Lie row; 0.5 in the supplement (section C). May be traced.
      variant: "paper" is the above. "official" is what the official code sends (docs/fidelity.md): all f rows are
        `((n - f - m1) * beta - sum of all n honest rows) / m2`, the Lie row itself if f = 1.
      knowledge: whose updates beta is taken from, see `known_rows`. As in the official code: "all".
    """
    check_number("z", z)
    check_choice("variant", variant, ("paper", "official"))
    check_choice("knowledge", knowledge, KNOWLEDGE)

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree]:
        malicious, present = checked(updates, malicious, present)
        n, f = jnp.sum(present, dtype=jnp.int32), jnp.sum(malicious, dtype=jnp.int32)
        m1 = f // 2
        m2 = jnp.maximum(f - m1, 1)
        beta = lie_row(updates, known_rows(knowledge, malicious, present), z)
        if variant == "paper":
            coefficient, summed = n - m1, present & ~malicious
            sends_beta = malicious & (jnp.cumsum(malicious, dtype=jnp.int32) <= m1)
        else:
            coefficient, summed = n - f - m1, present
            sends_beta = malicious & (f == 1)
        kind = ops.wide(updates)
        total = ops.weighted_sum(summed.astype(kind), updates)
        coefficient, divisor = coefficient.astype(kind), m2.astype(kind)
        gamma = jax.tree.map(lambda b, s: (coefficient * b - s.astype(kind)) / divisor, beta, total)

        def row(_: PyTree, is_beta: jax.Array) -> PyTree:
            return jax.tree.map(lambda b, g: jnp.where(is_beta, b, g), beta, gamma)

        return ops.replace_rows(row, updates, malicious, sends_beta), state

    return Attack(stateless, honest_examples, craft)


def lie_row(updates: PyTree, known: jax.Array, z: Scalar) -> PyTree:
    """`mean - z * std` over the rows marked by `known`."""
    mean, std = ops.mean_and_std(updates, known)
    kind = ops.wide(updates)
    return jax.tree.map(lambda m, s: m.astype(kind) - jnp.asarray(z, kind) * s.astype(kind), mean, std)
