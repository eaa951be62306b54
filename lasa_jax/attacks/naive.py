"""Attacks that need no knowledge: none, sign flip, noise and random (supplement, section C), zero, nan, and label flip."""

import jax
import jax.numpy as jnp

from lasa_jax.attacks.base import (
    Attack,
    PyTree,
    Scalar,
    changed_row,
    checked,
    honest_examples,
    normal_like,
    same_row,
    stateless,
)
from lasa_jax.errors import check_number


def none() -> Attack:
    """No attack: malicious clients are marked, but send what honest training gives."""
    return Attack(stateless, honest_examples, _honest_updates)


def label_flip() -> Attack:
    """Malicious clients train honestly on wrong labels: class c becomes `num_classes - 1 - c`.

    Source: Tolpegin, Truex, Gursoy and Liu, ESORICS 2020; in this form Fang, Cao, Jia and Gong, USENIX Security 2020.
    """

    def poison(
        inputs: jax.Array, labels: jax.Array, *, num_classes: int, key: jax.Array, client: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return inputs, num_classes - 1 - labels

    return Attack(stateless, poison, _honest_updates)


def _honest_updates(
    updates: PyTree,
    state: PyTree,
    malicious: jax.Array,
    *,
    key: jax.Array,
    present: jax.Array | None = None,
    aggregate: object = None,
    context: object = None,
) -> tuple[PyTree, PyTree]:
    checked(updates, malicious, present)
    return updates, state


def sign_flip() -> Attack:
    """Malicious clients send their own honest update times -1, batch statistics too."""
    return changed_row(lambda row, _: jax.tree.map(jnp.negative, row))


def noise(std: Scalar = 0.5) -> Attack:
    """Malicious clients add independent N(0, std^2) noise to every entry of their own honest update.

    Args:
      std: standard deviation, `>= 0`; 0.5 in the supplement. May be traced.
    """
    check_number("std", std, low=0)
    return changed_row(
        lambda row, key: jax.tree.map(lambda x, z: x + jnp.asarray(std, x.dtype) * z, row, normal_like(key, row))
    )


def random(std: Scalar = 0.5) -> Attack:
    """Malicious clients send independent N(0, std^2) values in place of their update.

    Args:
      std: standard deviation, `>= 0`; 0.5 in the supplement. May be traced.
    """
    check_number("std", std, low=0)
    return changed_row(lambda row, key: jax.tree.map(lambda z: jnp.asarray(std, z.dtype) * z, normal_like(key, row)))


def zero() -> Attack:
    """Malicious clients send zeros: they slow an average down, and empty layers break careless rules."""
    return changed_row(lambda row, _: jax.tree.map(jnp.zeros_like, row))


def nan() -> Attack:
    """Malicious clients send NaN everywhere: a rule must not let one through."""
    return same_row(lambda updates, *_: jax.tree.map(lambda x: jnp.full(x.shape[1:], jnp.nan, x.dtype), updates))
