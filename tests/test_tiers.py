"""The three tiers of tests: what is quick has every method, and the table of what is thorough names nothing that is gone."""

import re
import subprocess
import sys

import pytest

from lasa_jax import aggregators, attacks
from tests.conftest import ROOT, THOROUGH


def collected(marks: str) -> str:
    """The ids of the tests with these marks, one per line."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-m", marks, "tests"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def quick() -> str:
    return collected("not thorough and not slow")


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
