"""Attacks built from the mean and standard deviation of honest updates: Lie, ALIE and inner product.

All standard deviations are unbiased (divide by the count less one), and 0 for a single row.
"""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import KNOWLEDGE, Attack, PyTree, Scalar, known_rows, same_row
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


def lie_row(updates: PyTree, known: jax.Array, z: Scalar) -> PyTree:
    """`mean - z * std` over the rows marked by `known`."""
    mean, std = ops.mean_and_std(updates, known)
    kind = ops.wide(updates)
    return jax.tree.map(lambda m, s: m.astype(kind) - jnp.asarray(z, kind) * s.astype(kind), mean, std)
