"""What an accelerator computes is right, too: batteries and golden files on the CPU, in the forms that a GPU gets."""

import itertools
from collections.abc import Iterator

import jax
import pytest

from lasa_jax import aggregators, attacks, ops
from lasa_jax.testing import assert_close, honest, rules
from lasa_jax.testing import attacks as attack_laws
from tests.aggregators import test_battery as rule_battery
from tests.attacks import test_battery as attack_battery
from tests.golden import test_golden as golden

# Of the laws those of values; what takes programs of its own only for rules of which each has another kind of form.
LAWS = (rules.order_does_not_matter, rules.limits_what_it_assumes)
MORE_LAWS = (rules.vmap_equals_a_loop, rules.absent_rows_do_not_exist)
OTHER_FORMS = ("krum", "lasa", "signguard")
CRAFTED = (attack_laws.only_malicious_rows_change, attack_laws.absent_rows_are_neither_read_nor_written)
# One recording that has every method, and of LASA's inputs some.
RECORDING, VARIANTS = "a1_n20_f4", ("none", "byzmean_paper", "nan_one", "ties", "paper", "official")


@pytest.fixture(autouse=True)
def forms_of_a_gpu():
    with ops.compiling_for("gpu"):
        yield


@pytest.mark.parametrize("name", aggregators.names())
def test_rules_obey_their_laws(name):
    rule, case = rule_battery.built(name), rule_battery.RULES[name]
    for law in (*LAWS, *(MORE_LAWS if name in OTHER_FORMS else ())):
        if law not in case.breaks:
            law(rule)
    rule_battery.promises.follows(rule, case.definition)


@pytest.mark.parametrize("name", aggregators.PREAGGREGATORS)
def test_preaggregators_do_what_they_do_on_a_cpu(name):
    rule = aggregators.chain(aggregators.PREAGGREGATORS[name](), aggregators.trimmed_mean())
    with ops.compiling_for("cpu"):
        wanted, _ = rules.run(rule, honest())
    assert_close(rules.run(rule, honest())[0], wanted, atol=1e-5, what=f"{name} in the forms of a GPU, against a CPU's")


@pytest.mark.parametrize("name", attacks.names())
def test_attacks_obey_their_laws_and_send_what_they_send_on_a_cpu(name):
    attack = attack_battery.ATTACKS[name]
    for law in CRAFTED:
        law(attack)
    with ops.compiling_for("cpu"):
        wanted = attack_laws.craft(attack, attack_laws.SOME)
    crafted = attack_laws.craft(attack, attack_laws.SOME)
    assert_close(crafted, wanted, atol=1e-5, what=f"{name} in the forms of a GPU, against a CPU's")


def arguments(names: str | tuple, row) -> list[tuple]:
    """The names and values of one case of `parametrize`."""
    values = row.values if isinstance(row, type(pytest.param())) else row
    if isinstance(names, str):
        return [(names, values[0] if values is not row else row)]
    return list(zip(names, values, strict=True))


def recorded() -> Iterator:
    """The tests of the golden files, each with what it is given of the recording that is named above."""
    for name, test in vars(golden).items():
        marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
        tables = [[arguments(mark.args[0], row) for row in mark.args[1]] for mark in marks]
        for index, chosen in enumerate(itertools.product(*tables) if tables else ()):
            given = dict(itertools.chain(*chosen))
            recording = getattr(given.get("recording"), "name", None)
            if recording == RECORDING and given.get("variant", "none") in VARIANTS:
                yield pytest.param(test, given, id=f"{name[5:]}-{index}")


@pytest.mark.parametrize(("test", "given"), list(recorded()))
def test_golden_files(test, given):
    assert ops.platform() == "gpu" != jax.default_backend()
    test(**given)
