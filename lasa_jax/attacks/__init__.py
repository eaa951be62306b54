"""Attacks: what the malicious clients send. One file a family, all of them in `ATTACKS`.

    attack = attacks.byzmean(z=0.5)                             # or attacks.create("byzmean", z=0.5)
    state = attack.init(params)
    updates, state = attack.craft(updates, state, malicious, key=key)

`updates` is any pytree whose leaves have a leading client axis. To add an attack, write it and name it in `ATTACKS`.
"""

from collections.abc import Callable
from typing import Any

from lasa_jax.attacks.adaptive import adaptive
from lasa_jax.attacks.backdoors import badnets, dba, trigger_value
from lasa_jax.attacks.base import (
    Attack,
    changed_row,
    checked,
    honest_examples,
    known_rows,
    same_row,
    stateless,
    unconstrained,
)
from lasa_jax.attacks.constrained import neurotoxin, pgd
from lasa_jax.attacks.distance import min_max, min_sum, min_sum_stealthy
from lasa_jax.attacks.mimic import mimic
from lasa_jax.attacks.naive import label_flip, nan, noise, none, random, sign_flip, zero
from lasa_jax.attacks.parameters_only import parameters_only
from lasa_jax.attacks.statistical import alie, byzmean, ipm, lie
from lasa_jax.attacks.tailored import tailored_krum, tailored_trmean
from lasa_jax.errors import call_named

ATTACKS: dict[str, Callable[..., Attack]] = {
    "adaptive": adaptive,
    "alie": alie,
    "badnets": badnets,
    "byzmean": byzmean,
    "dba": dba,
    "ipm": ipm,
    "label_flip": label_flip,
    "lie": lie,
    "mimic": mimic,
    "min_max": min_max,
    "min_sum": min_sum,
    "min_sum_stealthy": min_sum_stealthy,
    "nan": nan,
    "neurotoxin": neurotoxin,
    "noise": noise,
    "none": none,
    "pgd": pgd,
    "random": random,
    "sign_flip": sign_flip,
    "tailored_krum": tailored_krum,
    "tailored_trmean": tailored_trmean,
    "zero": zero,
}

# Those whose trigger is pixels: they aim at a label, and have a value that a run takes from its images.
BACKDOORS = ("badnets", "dba", "neurotoxin", "pgd")


def names() -> list[str]:
    """The attacks that `create` knows, sorted."""
    return sorted(ATTACKS)


def create(name: str, **parameters: Any) -> Attack:
    """Builds an attack by name: `create("lie", z=1.0)` is `lie(z=1.0)`.

    Raises:
      InputError: for an unknown name or parameter, or a value out of range.
    """
    return call_named("attack", ATTACKS, name, parameters)


__all__ = [
    "ATTACKS",
    "BACKDOORS",
    "Attack",
    "adaptive",
    "alie",
    "badnets",
    "byzmean",
    "changed_row",
    "checked",
    "create",
    "dba",
    "honest_examples",
    "ipm",
    "known_rows",
    "label_flip",
    "lie",
    "mimic",
    "min_max",
    "min_sum",
    "min_sum_stealthy",
    "names",
    "nan",
    "neurotoxin",
    "noise",
    "none",
    "parameters_only",
    "pgd",
    "random",
    "same_row",
    "sign_flip",
    "stateless",
    "tailored_krum",
    "tailored_trmean",
    "trigger_value",
    "unconstrained",
    "zero",
]
