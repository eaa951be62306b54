"""The list of mutants fits the files that it names; `python -m checks.mutants` makes them."""

import pytest

from checks.mutants import MUTANTS, ROOT, TESTS


@pytest.mark.parametrize(("path", "old"), [(path, old) for path, old, _, _ in MUTANTS])
def test_what_is_replaced_is_there_once(path, old):
    assert (ROOT / "lasa_jax" / path).read_text().count(old) == 1


@pytest.mark.parametrize("path", TESTS)
def test_the_tests_are_there(path):
    assert (ROOT / path).is_file()
