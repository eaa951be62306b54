"""Attacks: what the malicious clients send. One file a family, all of them in `ATTACKS`.

    attack = attacks.byzmean(z=0.5)                             # or attacks.create("byzmean", z=0.5)
    state = attack.init(params)
    updates, state = attack.craft(updates, state, malicious, key=key)

`updates` is any pytree whose leaves have a leading client axis. To add an attack, write it and name it in `ATTACKS`.
"""

from collections.abc import Callable
from typing import Any

from lasa_jax import registry
from lasa_jax.attacks.base import Attack, known_rows, stateless
from lasa_jax.attacks.naive import noise, none, random, sign_flip
from lasa_jax.attacks.statistical import byzmean, lie

ATTACKS: dict[str, Callable[..., Attack]] = {
    "byzmean": byzmean,
    "lie": lie,
    "noise": noise,
    "none": none,
    "random": random,
    "sign_flip": sign_flip,
}


def names() -> list[str]:
    """The attacks that `create` knows, sorted."""
    return sorted(ATTACKS)


def create(name: str, **parameters: Any) -> Attack:
    """Builds an attack by name: `create("lie", z=1.0)` is `lie(z=1.0)`.

    Raises:
      InputError: for an unknown name or parameter, or a value out of range.
    """
    return registry.create("attack", ATTACKS, name, parameters)


__all__ = [
    "ATTACKS",
    "Attack",
    "byzmean",
    "create",
    "known_rows",
    "lie",
    "names",
    "noise",
    "none",
    "random",
    "sign_flip",
    "stateless",
]
