"""Attacks that need no knowledge: none, sign flip, noise, random (supplement, section C), zero, nan, inf and label flip."""

import jax
import jax.numpy as jnp

from lasa_jax.attacks.base import (
    Attack,
    Count,
    PyTree,
    Scalar,
    changed_row,
    checked,
    honest_examples,
    normal_like,
    same_row,
    stateless,
)
from lasa_jax.errors import InputError, check_number


def none() -> Attack:
    """No attack: malicious clients are marked, but send what honest training gives."""
    return Attack(stateless, honest_examples, _honest_updates)


def label_flip(source: Count | None = None, target: Count | None = None) -> Attack:
    """Malicious clients train honestly on wrong labels: class c becomes `num_classes - 1 - c`, or one class another.

    Source: Tolpegin, Truex, Gursoy and Liu, ESORICS 2020, who flip one class to another; of all classes Fang, Cao, Jia and
    Gong, USENIX Security 2020.

    Args:
      source, target: examples of class `source` get the label `target`, all others keep theirs; both `>= 0`. Without them
        every class is flipped. May be traced.

    Raises:
      InputError: for a value out of range, one without the other, or twice the same.
    """
    if (source is None) != (target is None):
        name, other = ("source", "target") if target is None else ("target", "source")
        given = source if target is None else target
        raise InputError(f"{name} = {given}: allowed is both {name} and {other}, or neither")
    if source is None or target is None:

        def flip_all(
            inputs: jax.Array, labels: jax.Array, *, num_classes: int, key: jax.Array, client: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return inputs, num_classes - 1 - labels

        return Attack(stateless, flip_all, _honest_updates)
    for name, value in (("source", source), ("target", target)):
        check_number(name, value, low=0, whole=True)
    if not isinstance(source, jax.Array) and not isinstance(target, jax.Array) and source == target:
        raise InputError(f"target = {target}: allowed is another class than source = {source}")
    pair = source, target

    def flip_one(
        inputs: jax.Array, labels: jax.Array, *, num_classes: int, key: jax.Array, client: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        for name, value in zip(("source", "target"), pair, strict=True):
            check_number(name, value, high=num_classes - 1)
        labels = jnp.asarray(labels)
        old, new = (jnp.asarray(value, labels.dtype) for value in pair)
        return inputs, jnp.where(labels == old, new, labels)

    return Attack(stateless, flip_one, _honest_updates)


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


def random(std: Scalar = 0.5, mean: Scalar = 0.0) -> Attack:
    """Malicious clients send independent N(mean, std^2) values in place of their update.

    Args:
      std: standard deviation, `>= 0`; 0.5 in the supplement. May be traced.
      mean: of every value; 0 in the supplement. May be traced.
    """
    check_number("std", std, low=0)
    check_number("mean", mean)

    def drawn(row: PyTree, key: jax.Array) -> PyTree:
        def of(z: jax.Array) -> jax.Array:
            return jnp.asarray(mean, z.dtype) + jnp.asarray(std, z.dtype) * z

        return jax.tree.map(of, normal_like(key, row))

    return changed_row(drawn)


def zero() -> Attack:
    """Malicious clients send zeros: they slow an average down, and empty layers break careless rules."""
    return changed_row(lambda row, _: jax.tree.map(jnp.zeros_like, row))


def nan() -> Attack:
    """Malicious clients send NaN everywhere: a rule must not let one through."""
    return same_row(lambda updates, *_: jax.tree.map(lambda x: jnp.full(x.shape[1:], jnp.nan, x.dtype), updates))


def inf() -> Attack:
    """Malicious clients send infinity everywhere: as `nan`, but it compares, and is the largest value of its coordinate."""
    return same_row(lambda updates, *_: jax.tree.map(lambda x: jnp.full(x.shape[1:], jnp.inf, x.dtype), updates))
