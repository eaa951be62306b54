"""Every attack of ours obeys the laws of `lasa_jax.testing`, and has the property that defines it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import attacks
from lasa_jax.testing import ATTACK_LAWS, NUM_CLIENTS, honest
from lasa_jax.testing import attacks as laws
from lasa_jax.testing.attacks import MALICIOUS, SOME, craft
from lasa_jax.testing.stacks import marked

N = NUM_CLIENTS
KEY = jax.random.key(0)
ATTACKS = {
    "adaptive": attacks.adaptive(num_magnitudes=3, num_refinements=3),
    "alie": attacks.alie(),
    "fang_krum": attacks.fang_krum(),
    "fang_krum, colluders": attacks.fang_krum(knowledge="colluders"),
    "fang_trmean": attacks.fang_trmean(),
    "fang_trmean, official": attacks.fang_trmean(variant="official", knowledge="all"),
    "inf": attacks.inf(),
    "badnets": attacks.badnets(),
    "badnets, boosted": attacks.badnets(boost=3.0),
    "dba": attacks.dba(),
    "ipm": attacks.ipm(),
    "hybrid_sparse": attacks.hybrid_sparse(share=0.1),
    "hybrid_sparse, z_score, searched": attacks.hybrid_sparse(share=0.1, cap="z_score", searched=True),
    "label_flip": attacks.label_flip(),
    "lasa_attack": attacks.lasa_attack(),
    "mimic": attacks.mimic(),
    "min_max": attacks.min_max(),
    "min_max, colluders": attacks.min_max(knowledge="colluders"),
    "min_max, along the mean": attacks.min_max(direction="unit_vec"),
    "min_sum": attacks.min_sum(),
    "min_sum, not squared": attacks.min_sum(squared=False),
    "min_sum_stealthy": attacks.min_sum_stealthy(),
    "mpaf": attacks.mpaf(factor=10.0),
    "nan": attacks.nan(),
    "optimal_alie": attacks.optimal_alie(num_evaluations=4),
    "optimal_ipm": attacks.optimal_ipm(num_evaluations=4),
    "tailored_bulyan": attacks.tailored_bulyan(),
    "poisonedfl": attacks.poisonedfl(),
    "rop": attacks.rop(),
    "neurotoxin": attacks.neurotoxin(),
    "pgd": attacks.pgd(),
    "tailored_krum": attacks.tailored_krum(),
    "tailored_median": attacks.tailored_median(),
    "tailored_median, official": attacks.tailored_median("official", direction="sign"),
    "tailored_multi_krum": attacks.tailored_multi_krum(),
    "tailored_trmean": attacks.tailored_trmean(),
    "zero": attacks.zero(),
    "byzmean": attacks.byzmean(),
    "byzmean, official": attacks.byzmean(variant="official", knowledge="all"),
    "byzmean, on min_max": attacks.byzmean(base="min_max", m1=1),
    "lie": attacks.lie(),
    "lie, colluders": attacks.lie(knowledge="colluders"),
    "noise": attacks.noise(),
    "none": attacks.none(),
    "random": attacks.random(),
    "sign_flip": attacks.sign_flip(),
}
SENDS_HONEST = ("none", "label_flip", *attacks.BACKDOORS)  # without a boost
DRAWN = ("fang_trmean", "noise", "random")
ALONE_HONEST = ("lie, colluders", "min_max, colluders")  # the mean of one row is that row
NUMBERS = {
    "badnets": {"boost": [1.0, 3.0]},
    "byzmean": {"z": [0.1, 0.3], "m1": [1, 2]},
    "fang_trmean": {"b": [2.0, 3.0]},
    "ipm": {"epsilon": [0.1, 0.3]},
    "label_flip": {"source": [1, 2], "target": [3, 4]},
    "hybrid_sparse": {"large_factor": [1.5, 3.0], "z": [0.1, 0.3]},
    "lasa_attack": {"large_factor": [1.5, 3.0], "z": [0.1, 0.3]},
    "lie": {"z": [0.1, 0.3]},
    "mpaf": {"factor": [1.0, 10.0]},
    "noise": {"std": [0.2, 0.4]},
    "random": {"std": [0.2, 0.4], "mean": [0.0, 1.0]},
    "poisonedfl": {"factor": [4.0, 8.0]},
    "rop": {"z": [0.5, 1.0], "angle": [90.0, 200.0], "relocation": [0.0, 0.5], "history": [0.5, 0.9]},
}


def promised(name: str):
    """The laws that an attack obeys beside those of every attack."""
    if name not in ("inf", "nan"):
        yield laws.sends_finite_rows
    if name not in SENDS_HONEST:
        yield functools.partial(laws.sends_other_rows, least=2 if name in ALONE_HONEST else 1)
    if name in DRAWN:
        yield laws.draws_for_each_client
    else:
        yield functools.partial(laws.padding_changes_nothing, absent=(0, 4, 15))


def cases():
    for name in ATTACKS:
        for law in (*ATTACK_LAWS, *promised(name)):
            suffix = ", anywhere" if law not in ATTACK_LAWS and getattr(law, "keywords", {}).get("absent") else ""
            yield pytest.param(name, law, id=f"{getattr(law, 'func', law).__name__}{suffix}-{name}")


def test_every_attack_is_in_the_battery():
    assert sorted({name.split(",")[0] for name in ATTACKS}) == attacks.names()


@pytest.mark.parametrize(("name", "law"), list(cases()))
def test_law(name, law):
    law(ATTACKS[name])


@pytest.mark.parametrize("name", NUMBERS)
def test_one_trace_over_a_grid_of_numbers(name):
    laws.traces_once(attacks.ATTACKS[name], NUMBERS[name])


@pytest.mark.parametrize("name", [name for name, attack in ATTACKS.items() if attack.trigger is None])
def test_labels(name):
    images, labels = jnp.zeros((5, 8, 8, 1), jnp.uint8), jnp.arange(5)
    wanted = labels[::-1] if name == "label_flip" else labels
    known = {"num_classes": 5, "key": jax.random.key(0), "client": jnp.int32(0)}
    np.testing.assert_array_equal(ATTACKS[name].poison(images, labels, **known)[1], wanted)


def test_nan_sends_nothing_else():
    for rows in MALICIOUS.values():
        for x in craft(ATTACKS["nan"], marked(rows)).values():
            assert np.isnan(x[marked(rows)]).all()


@pytest.mark.parametrize("name", SENDS_HONEST)
def test_updates_that_are_not_changed(name):
    jax.tree.map(np.testing.assert_array_equal, craft(ATTACKS[name], SOME), honest())


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lies", {}, "did you mean 'lie'"),
        ("lie", {"zed": 1}, "no parameter 'zed': allowed are z, knowledge"),
        ("lie", {"z": float("nan")}, "z = nan"),
        ("lie", {"knowledge": "nothing"}, "allowed are benign, colluders, all"),
        ("byzmean", {"variant": "other"}, "allowed are paper, official"),
        ("noise", {"std": -1.0}, "allowed is 0 <= std"),
    ],
)
def test_refuses(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        attacks.create(name, **parameters)


@pytest.mark.parametrize(
    ("updates", "malicious", "line"),
    [
        (
            {"w": np.ones((4, 2), np.float32)},
            np.ones(3, bool),
            "malicious: bool[3], allowed is bool[4], one for each client",
        ),
        (
            {"w": np.ones((4, 2), np.float32)},
            [1, 0, 0, 0],
            "malicious: int32[4], allowed is bool[4], one for each client",
        ),
        ({"w": np.ones((4, 2), np.int32)}, np.ones(4, bool), "updates['w']: int32, allowed are floating-point arrays"),
    ],
)
def test_what_is_said_of_a_mask_that_is_none(updates, malicious, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        attacks.lie().craft(updates, (), malicious, key=KEY)


def test_adaptive_must_be_given_the_rule():
    with pytest.raises(ValueError, match="needs the rule"):
        attacks.adaptive().craft(honest(), (), SOME, key=KEY)
