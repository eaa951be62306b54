"""The three tiers of tests: what is quick has every method, and the table of what is thorough names nothing that is gone."""

import functools
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lasa_jax import aggregators, attacks
from tests.conftest import COMPILED_FAST, FAST, KNOWN, OPTIMISED, QUICK, ROOT, THOROUGH, pytest_configure


@functools.cache
def collected(marks: str, none: bool = False) -> str:
    """The ids of the tests with these marks, one per line. Args: none: there are none, which pytest calls a failure."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-m", marks, "tests"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=not none).stdout


@pytest.fixture(scope="module")
def quick() -> str:
    return collected(QUICK)


def test_every_rule_and_attack_is_tried_by_the_quick_tests(quick):
    for name in aggregators.names():
        assert f"tests/aggregators/test_battery.py::test_law[follows-{name}]" in quick
    for name in attacks.names():
        assert f"tests/attacks/test_battery.py::test_law[only_malicious_rows_change-{name}]" in quick


def test_every_line_of_the_table_names_tests(quick):
    thorough = collected("thorough")
    for line in THOROUGH:
        assert re.search(f"^{line}", thorough, re.MULTILINE), line
        assert not re.search(f"^{line}", quick, re.MULTILINE), line


def test_every_line_of_what_compiles_as_users_do_names_tests():
    optimised = collected("optimised")
    for line in OPTIMISED:
        assert re.search(f"^{line}", optimised, re.MULTILINE), line


def test_ci_runs_every_tier():
    commands = (ROOT / ".ci" / "run").read_text()
    assert f'-m "{FAST[1]}"' in commands
    assert "-m optimised" in commands


def test_no_test_is_in_two_tiers():
    assert "no tests collected" in collected("thorough and slow", none=True)


def test_one_comparison_with_a_function_of_anybodys_is_quick(quick):
    assert "tests/testing/test_conformance.py::test_a_mean" in quick


@pytest.mark.parametrize(
    ("marks", "given", "fast"),
    [
        (QUICK, "", True),
        ("thorough and not optimised", "", True),
        ("optimised", "", False),
        ("thorough", "", False),
        (QUICK, "--xla_backend_optimization_level=3", False),
    ],
)
def test_what_compiles_fast_and_not_if_told(marks, given, fast, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    pytest_configure(SimpleNamespace(option=SimpleNamespace(markexpr=marks)))
    assert (COMPILED_FAST[0] in os.environ["XLA_FLAGS"]) is (fast and KNOWN)


def test_quick_tests_are_those_that_run_by_themselves():
    assert f"-m '{QUICK}'" in (ROOT / "pyproject.toml").read_text()
