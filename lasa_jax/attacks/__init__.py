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
from lasa_jax.attacks.byzmean import BASES, byzmean
from lasa_jax.attacks.constrained import neurotoxin, pgd
from lasa_jax.attacks.distance import min_max, min_sum, min_sum_stealthy
from lasa_jax.attacks.fang import fang_krum, fang_trmean
from lasa_jax.attacks.history import mpaf, poisonedfl, rop
from lasa_jax.attacks.mimic import mimic
from lasa_jax.attacks.naive import inf, label_flip, nan, noise, none, random, sign_flip, zero
from lasa_jax.attacks.optimal import optimal_alie, optimal_ipm
from lasa_jax.attacks.parameters_only import parameters_only
from lasa_jax.attacks.sparse import hybrid_sparse, lasa_attack
from lasa_jax.attacks.statistical import alie, ipm, lie
from lasa_jax.attacks.tailored import (
    tailored_bulyan,
    tailored_krum,
    tailored_median,
    tailored_multi_krum,
    tailored_trmean,
)
from lasa_jax.errors import call_named

ATTACKS: dict[str, Callable[..., Attack]] = {
    "adaptive": adaptive,
    "alie": alie,
    "badnets": badnets,
    "byzmean": byzmean,
    "dba": dba,
    "fang_krum": fang_krum,
    "fang_trmean": fang_trmean,
    "hybrid_sparse": hybrid_sparse,
    "inf": inf,
    "ipm": ipm,
    "label_flip": label_flip,
    "lasa_attack": lasa_attack,
    "lie": lie,
    "mimic": mimic,
    "min_max": min_max,
    "min_sum": min_sum,
    "min_sum_stealthy": min_sum_stealthy,
    "mpaf": mpaf,
    "nan": nan,
    "neurotoxin": neurotoxin,
    "noise": noise,
    "none": none,
    "optimal_alie": optimal_alie,
    "optimal_ipm": optimal_ipm,
    "pgd": pgd,
    "poisonedfl": poisonedfl,
    "random": random,
    "rop": rop,
    "sign_flip": sign_flip,
    "tailored_bulyan": tailored_bulyan,
    "tailored_krum": tailored_krum,
    "tailored_median": tailored_median,
    "tailored_multi_krum": tailored_multi_krum,
    "tailored_trmean": tailored_trmean,
    "zero": zero,
}

# Parameters that are the number of a client or of a class: the data says how many there are.
NUMBERED: dict[str, dict[str, str]] = {
    "label_flip": {"source": "classes", "target": "classes"},
    "mimic": {"client": "clients"},
}


WITH_BASE = ("byzmean",)  # attacks with a parameter `base`, another attack that they build on
BASES.update({name: attack for name, attack in ATTACKS.items() if name not in WITH_BASE})
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
    "NUMBERED",
    "WITH_BASE",
    "Attack",
    "adaptive",
    "alie",
    "badnets",
    "byzmean",
    "changed_row",
    "checked",
    "create",
    "dba",
    "fang_krum",
    "fang_trmean",
    "honest_examples",
    "hybrid_sparse",
    "inf",
    "ipm",
    "known_rows",
    "label_flip",
    "lasa_attack",
    "lie",
    "mimic",
    "min_max",
    "min_sum",
    "min_sum_stealthy",
    "mpaf",
    "names",
    "nan",
    "neurotoxin",
    "noise",
    "none",
    "optimal_alie",
    "optimal_ipm",
    "parameters_only",
    "pgd",
    "poisonedfl",
    "random",
    "rop",
    "same_row",
    "sign_flip",
    "stateless",
    "tailored_bulyan",
    "tailored_krum",
    "tailored_median",
    "tailored_multi_krum",
    "tailored_trmean",
    "trigger_value",
    "unconstrained",
    "zero",
]
