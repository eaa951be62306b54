"""The laws that every aggregation rule and every attack obeys, for anybody's tests.

    from lasa_jax import testing

    @pytest.mark.parametrize("law", testing.RULE_LAWS)
    def test_my_rule(law):
        law(my_rule())

A law is a function of a rule or an attack. It returns nothing, or raises an AssertionError that says what is wrong. Laws
that only some obey are not in the two lists: `testing.promises` has those of rules, `testing.attacks` those of attacks, and
`testing.settings` those about JAX's settings and floating types.
Build the rule once and give the same one to all laws: they share its compiled programs.

`check_rule` and `check_attack` compare a function of anybody's, from arrays to an array of NumPy, PyTorch or JAX, with
one of our rules or attacks.
"""

from lasa_jax.testing import attacks, promises, rules, settings
from lasa_jax.testing.attacks import ATTACK_LAWS
from lasa_jax.testing.comparisons import CHECKS
from lasa_jax.testing.conformance import check_attack, check_rule
from lasa_jax.testing.findings import Finding, Report
from lasa_jax.testing.rules import RULE_LAWS
from lasa_jax.testing.stacks import (
    NUM_CLIENTS,
    SHAPES,
    as_layers,
    assert_close,
    built_in,
    flat_rows,
    honest,
    known,
)

__all__ = [
    "ATTACK_LAWS",
    "CHECKS",
    "NUM_CLIENTS",
    "RULE_LAWS",
    "SHAPES",
    "Finding",
    "Report",
    "as_layers",
    "assert_close",
    "attacks",
    "built_in",
    "check_attack",
    "check_rule",
    "flat_rows",
    "honest",
    "known",
    "promises",
    "rules",
    "settings",
]
