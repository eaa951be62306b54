"""Every aggregation rule of ours obeys the laws of `lasa_jax.testing`, and is what its definition in NumPy says.

A new rule is added to `RULES` with its own definition and with what it promises beside the laws.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

from lasa_jax import aggregators, ops
from lasa_jax.errors import InputError
from lasa_jax.federated import make_mesh
from lasa_jax.testing import (
    NUM_CLIENTS,
    RULE_LAWS,
    SHAPES,
    assert_close,
    built_in,
    honest,
    promises,
    rules,
)
from lasa_jax.testing.promises import stands_as_many_as, stands_bad_rows, with_bad_rows
from tests.aggregators import definitions, geometry, informed

KEY = jax.random.key(0)


class Case(NamedTuple):
    """A rule of ours, as the battery tries it.

    make: the rule.
    definition: in float64 NumPy.
    promises: the laws that it obeys beside those of every rule.
    numbers: hyper-parameters that may be traced, by name, with values that lie on no decision boundary.
    breaks: laws of every rule that it does not obey; its docstring says why.
    """

    make: Callable[..., aggregators.Aggregator]
    definition: Callable[..., dict]
    promises: tuple[Callable[[aggregators.Aggregator], None], ...]
    numbers: dict[str, list]
    breaks: tuple[Callable[[aggregators.Aggregator], None], ...] = ()


def stands(limit: int) -> functools.partial:
    return functools.partial(stands_as_many_as, limit=limit)


AGREES, SCALES, TRANSLATES = promises.agrees, promises.scales, promises.translates
ROBUST = (AGREES, promises.is_finite, stands_bad_rows)
ROBUST_MEAN = (*ROBUST, SCALES, TRANSLATES)
NEAR_ONE = (AGREES, SCALES, TRANSLATES, promises.is_finite, functools.partial(stands_bad_rows, near=0.8))  # one client
RULES = {
    "fedavg": Case(aggregators.fedavg, definitions.fedavg, (AGREES, SCALES, TRANSLATES), {}),
    # Radii other than 1: with two clients every score is exactly 1, and rounding would decide.
    "lasa": Case(
        functools.partial(aggregators.lasa, magnitude_radius=1.3, direction_radius=1.2),
        definitions.lasa,
        (*ROBUST, SCALES, stands(7)),
        {"magnitude_radius": [0.8, 1.7, 3.0], "direction_radius": [0.9, 1.4, 4.0]},
    ),
    "trimmed_mean": Case(
        aggregators.trimmed_mean, definitions.trimmed_mean, (*ROBUST_MEAN, stands(7)), {"num_trimmed": [0, 2, 7]}
    ),
    "median": Case(aggregators.median, definitions.median, (*ROBUST_MEAN, stands(7)), {}),
    "krum": Case(aggregators.krum, definitions.krum, (*NEAR_ONE, stands(6)), {"assumed_malicious": [0, 2, 5]}),
    "multi_krum": Case(
        aggregators.multi_krum,
        definitions.multi_krum,
        (*ROBUST_MEAN, stands(6)),
        {"assumed_malicious": [0, 2, 5], "num_selected": [1, 7, 16]},
    ),
    "bulyan": Case(aggregators.bulyan, definitions.bulyan, (*ROBUST_MEAN, stands(3)), {"assumed_malicious": [0, 1, 3]}),
    "geometric_median": Case(
        aggregators.geometric_median,
        definitions.geometric_median,
        (*ROBUST_MEAN, stands(7)),
        {"smoothing": [1e-6, 1.0, 5.0]},
    ),
    "dnc": Case(aggregators.dnc, definitions.dnc, (*ROBUST_MEAN, stands(7)), {"filter_fraction": [0.4, 1.1, 2.1]}),
    "signguard": Case(
        functools.partial(aggregators.signguard, coordinate_fraction=1.0),
        definitions.signguard,
        (*ROBUST, SCALES, stands(7)),
        {"lower": [0.95, 0.1, 0.5], "upper": [1.01, 1.1, 3.0]},
    ),
    "sparsefed": Case(
        aggregators.sparsefed,
        definitions.sparsefed,
        (AGREES, SCALES),
        {"num_kept": [5, 50, 107], "momentum": [0.0, 0.5, 0.9]},
    ),
    "norm_clipped_mean": Case(
        functools.partial(aggregators.norm_clipped_mean, clip_norm=5.0),
        definitions.clipped,
        ROBUST,
        {"clip_norm": [1.0, 5.5, 20.0]},
    ),
    "centered_clipping": Case(
        functools.partial(aggregators.centered_clipping, clip_radius=5.0),
        definitions.clipped,
        ROBUST,
        {"clip_radius": [1.0, 5.5, 20.0]},
    ),
    "meamed": Case(aggregators.meamed, geometry.meamed, (*ROBUST_MEAN, stands(7)), {"assumed_malicious": [0, 2, 7]}),
    "cge": Case(aggregators.cge, geometry.cge, (*ROBUST, SCALES, stands(7)), {"assumed_malicious": [0, 2, 9]}),
    "mda": Case(
        aggregators.mda,
        geometry.mda,
        (*ROBUST_MEAN, stands(7)),
        {"assumed_malicious": [0, 2, 5]},
        breaks=(rules.order_does_not_matter,),
    ),
    "smea": Case(aggregators.smea, geometry.smea, (*ROBUST_MEAN, stands(7)), {"assumed_malicious": [0, 2, 5]}),
    "caf": Case(aggregators.caf, geometry.caf, (*ROBUST_MEAN, stands(7)), {"assumed_malicious": [0, 2, 7]}),
    # Thresholds between two sums of signs. One client alone is below the default one, so many equal ones are not like it.
    "robust_learning_rate": Case(
        aggregators.robust_learning_rate, geometry.robust_learning_rate, (SCALES,), {"threshold": [0.0, 2.5, 9.5]}
    ),
    "multi_metric": Case(
        aggregators.multi_metric, geometry.multi_metric, (*ROBUST, SCALES), {"share_kept": [0.1, 0.4, 1.0]}
    ),
    "flame": Case(functools.partial(aggregators.flame, noise_factor=0.0), geometry.flame, (*ROBUST, stands(7)), {}),
    "monna": Case(aggregators.monna, geometry.monna, (*ROBUST, stands(12)), {"assumed_malicious": [0, 2, 9]}),
    "signguard_sim": Case(
        functools.partial(aggregators.signguard_sim, coordinate_fraction=1.0),
        geometry.signguard_sim,
        (*ROBUST, SCALES, stands(7)),
        {"lower": [0.95, 0.1, 0.5], "upper": [1.01, 1.1, 3.0]},
    ),
    "fltrust": Case(aggregators.fltrust, informed.fltrust_by_definition, (*ROBUST, stands(12)), {}),
    # As for LASA, no radius of 1.
    "alignins": Case(
        functools.partial(aggregators.alignins, alignment_radius=1.3, sign_radius=1.2),
        informed.alignins_by_definition,
        (promises.is_finite, stands_bad_rows, SCALES),
        {"alignment_radius": [0.8, 1.7, 3.0], "sign_radius": [0.9, 1.4, 4.0]},
    ),
    "foolsgold": Case(
        functools.partial(aggregators.foolsgold, num_clients=NUM_CLIENTS),
        informed.foolsgold_by_definition,
        (promises.is_finite,),
        {},
        breaks=(rules.writes_no_second_stack,),  # what it remembers of the round's clients is one
    ),
    "fldetector": Case(
        functools.partial(aggregators.fldetector, num_clients=NUM_CLIENTS),
        informed.fldetector_by_definition,
        (AGREES, SCALES, TRANSLATES, promises.is_finite),
        {"start_round": [1, 2, 50]},
        breaks=(rules.writes_no_second_stack,),  # as foolsgold
    ),
}

# What the definitions call their numbers, where the rules have another word.
RENAMED = {
    "magnitude_radius": "magnitude",
    "direction_radius": "direction",
    "clip_norm": "limit",
    "clip_radius": "limit",
}
WITH_DEFAULTS = (rules.keeps_dtypes, rules.writes_no_second_stack)


@functools.cache
def built(name: str) -> aggregators.Aggregator:
    return RULES[name].make()


def laws():
    for name, case in RULES.items():
        obeyed = [law for law in RULE_LAWS if law not in case.breaks]
        for law in (*obeyed, *case.promises, functools.partial(promises.follows, definition=case.definition)):
            yield pytest.param(name, law, id=f"{getattr(law, 'func', law).__name__}-{name}")


def test_every_rule_is_in_the_battery():
    assert sorted(RULES) == aggregators.names()


@pytest.mark.parametrize(("name", "law"), list(laws()))
def test_law(name, law):
    law(built_in(name) if law in WITH_DEFAULTS else built(name))


@pytest.mark.parametrize("name", [name for name, case in RULES.items() if case.numbers])
def test_one_trace_over_a_grid_of_numbers(name):
    def definition(updates: dict, **numbers: float) -> dict:
        return RULES[name].definition(updates, **{RENAMED.get(key, key): value for key, value in numbers.items()})

    promises.traces_once(RULES[name].make, RULES[name].numbers, definition)


@pytest.mark.parametrize("name", ["fedavg", "robust_learning_rate", "sparsefed"])
def test_a_rule_that_is_not_robust_hides_nothing(name):
    """NaN, infinities, zeros and huge values come out as the definition has them."""
    for content in (np.nan, np.inf, -np.inf, 0.0, 1e38, "one huge entry"):
        updates = with_bad_rows(content)
        with np.errstate(all="ignore"):
            wanted = RULES[name].definition(updates)
        update, _ = rules.run(built(name), updates)
        for layer in SHAPES:
            np.testing.assert_allclose(np.ravel(update[layer]), wanted[layer], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("updates", "present", "line"),
    [
        ({}, None, "updates: no entries, allowed is"),
        ({"w": np.ones((0, 3))}, None, "updates: no entries, allowed is"),
        ({"w": np.ones((4, 0))}, None, "updates: no entries, allowed is"),
        ({"w": np.ones((4, 3)), "steps": np.ones((4, 1), np.int32)}, None, "updates['steps']: int32, allowed are"),
        ({"b": np.ones((4, 3)), "w": np.ones((5, 3))}, None, "updates['w']: shape (5, 3), allowed is (n, ...)"),
        ({"b": np.ones((4, 3)), "w": np.float32(1)}, None, "updates['w']: shape (), allowed is (n, ...)"),
        ({"w": np.ones((4, 3))}, np.ones(3, bool), "present: bool[3], allowed is bool[4]"),
        ({"w": np.ones((4, 3))}, np.ones(4, np.int32), "present: int32[4], allowed is bool[4]"),
        ({"w": np.array(["x"] * 4)}, None, "updates['w']: <U1, allowed are floating-point arrays"),
        ({"w": "x"}, None, "updates['w']: <U1, allowed are floating-point arrays"),
        ({"w": np.ones((4, 3))}, list("yyyn"), "present: <U1[4], allowed is bool[4]"),
    ],
)
def test_what_is_said_of_a_stack_that_is_none(updates, present, line):
    with pytest.raises(InputError, match=re.escape(line)):
        aggregators.Rows.of(updates, present)


class TestLASA:
    """What is particular to LASA."""

    @pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9])
    def test_sparsity_levels(self, sparsity):
        rule = aggregators.lasa(sparsity_level=sparsity, magnitude_radius=1.5, direction_radius=1.2)
        for seed in range(5):
            actual, _ = rules.run(rule, honest(seed))
            assert_close(actual, definitions.lasa(honest(seed), sparsity=sparsity, magnitude=1.5))

    def test_number_kept_is_the_sparsity_level(self):
        params = jax.tree.map(lambda x: x[0], honest())
        assert aggregators.num_kept_entries(params, 0.3) == int((30 + 72) * (1 - 0.3))
        by_level, _ = rules.run(aggregators.lasa(0.3), honest())
        by_number, _ = rules.run(aggregators.lasa(num_kept=aggregators.num_kept_entries(params, 0.3)), honest())
        assert_close(by_level, by_number, atol=0)
        by_traced_level = jax.jit(lambda level: rules.eager(aggregators.lasa(level), honest())[0])(0.3)
        assert_close(by_traced_level, by_level)

    def test_one_zero_layer_does_not_switch_the_filter_off(self):
        """In the official code it does, for everybody: any attacker can do it (docs/fidelity.md, section 2.2)."""
        updates = honest()
        rule = aggregators.lasa()
        updates["kernel"][1] *= -1  # an attacker whom the filter drops
        for zeroed in (None, 4):
            if zeroed is not None:
                updates["kernel"][zeroed] = 0
            _, info = rules.run(rule, updates)
            assert info.weight["kernel"][1] == 0
        assert 0 < np.count_nonzero(info.weight["kernel"]) < NUM_CLIENTS

    def test_a_radius_of_infinity_switches_a_filter_off(self):
        _, info = rules.run(aggregators.lasa(magnitude_radius=np.inf, direction_radius=np.inf), honest())
        for weight in info.weight.values():
            np.testing.assert_allclose(weight, 1 / NUM_CLIENTS)

    @pytest.mark.parametrize(
        ("numbers", "message"),
        [
            ({"sparsity_level": 1.5}, "sparsity_level = 1.5: allowed is 0 <= sparsity_level <= 1"),
            ({"magnitude_radius": 0.0}, "magnitude_radius = 0.0: allowed is 0 < magnitude_radius"),
            ({"direction_radius": float("nan")}, "direction_radius = nan"),
        ],
    )
    def test_refuses(self, numbers, message):
        with pytest.raises(ValueError, match=message):
            aggregators.lasa(**numbers)


def test_chain_order_is_checked():
    with pytest.raises(TypeError, match="the last step, and only the last"):
        aggregators.chain(aggregators.fedavg(), aggregators.reject_nonfinite())


def test_a_link_works_before_any_rule():
    updates = honest()
    for x in updates.values():
        x[2] = np.inf
    update, info = rules.run(aggregators.chain(aggregators.reject_nonfinite(), aggregators.fedavg()), updates)
    assert_close(update, definitions.fedavg(jax.tree.map(lambda x: np.delete(x, 2, axis=0), updates)))
    assert info.weight["bias"][2] == 0


def test_unknown_names():
    with pytest.raises(ValueError, match=r"'lassa' is not known: allowed are .* \(did you mean 'lasa'\?\)"):
        aggregators.create("lassa")
    with pytest.raises(ValueError, match="'lasa' has no parameter 'radius': allowed are sparsity_level"):
        aggregators.create("lasa", radius=1)


def elements(line: str) -> int:
    """Entries of the result of one line of HLO, all parts of a tuple together."""
    result = line.split(" = ")[1].split(" all-")[0]
    return sum(math.prod(int(n) for n in shape.split(",") if n) for shape in re.findall(r"\[([\d,]*)\]", result))


def test_only_the_last_sum_crosses_devices():
    """Sharded over clients, LASA exchanges one update and a table of (clients, layers): entries counted in the HLO."""
    d = 64 * 32 + 32
    mesh = make_mesh()
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ops.CLIENTS))
    shapes = {"w": (16, 64, 32), "b": (16, 32)}
    stack = {name: jax.ShapeDtypeStruct(shape, np.float32, sharding=spec) for name, shape in shapes.items()}
    rule = aggregators.lasa()
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda u: rule.aggregate(u, (), key=KEY, num_malicious=0)[0]).lower(stack)
    lines = lowered.compile().as_text().splitlines()
    reduced = sum(elements(line) for line in lines if " all-reduce(" in line)
    others = ("all-gather(", "all-to-all(", "collective-permute(")
    gathered = sum(elements(line) for line in lines if any(f" {other}" in line for other in others))
    assert reduced >= d
    assert reduced + gathered <= d + 16 * 16
