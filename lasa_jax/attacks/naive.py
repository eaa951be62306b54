"""The naive attacks: none, sign flip, noise and random. Source: supplement, section C."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import Attack, PyTree, Scalar, all_present, honest_labels, normal_like, row_keys, stateless
from lasa_jax.errors import check_number


def none() -> Attack:
    """No attack: malicious clients are marked, but send what honest training gives."""

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
    ) -> tuple[PyTree, PyTree]:
        return updates, state

    return Attack(stateless, honest_labels, craft)


def sign_flip() -> Attack:
    """Malicious clients send their own honest update times -1, batch statistics too."""

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
    ) -> tuple[PyTree, PyTree]:
        which = malicious & all_present(updates, present)
        return ops.replace_rows(lambda row: jax.tree.map(jnp.negative, row), updates, which), state

    return Attack(stateless, honest_labels, craft)


def noise(std: Scalar = 0.5) -> Attack:
    """Malicious clients add independent N(0, std^2) noise to every entry of their own honest update.

    Args:
      std: standard deviation, `>= 0`; 0.5 in the supplement. May be traced.
    """
    check_number("std", std, low=0)
    return _gaussian(std, keep_update=True)


def random(std: Scalar = 0.5) -> Attack:
    """Malicious clients send independent N(0, std^2) values in place of their update.

    Args:
      std: standard deviation, `>= 0`; 0.5 in the supplement. May be traced.
    """
    check_number("std", std, low=0)
    return _gaussian(std, keep_update=False)


def _gaussian(std: Scalar, *, keep_update: bool) -> Attack:
    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
    ) -> tuple[PyTree, PyTree]:
        which = malicious & all_present(updates, present)

        def row(row: PyTree, key: jax.Array) -> PyTree:
            drawn = jax.tree.map(lambda z: std * z, normal_like(key, row))
            return jax.tree.map(jnp.add, row, drawn) if keep_update else drawn

        return ops.replace_rows(row, updates, which, row_keys(key, which.shape[0])), state

    return Attack(stateless, honest_labels, craft)
