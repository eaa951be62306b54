"""The list of mutants fits the files that it names; `python -m checks.mutants` makes them."""

import pytest

from checks.mutants import MUTANTS, ROOT, TESTS, first_failure, words_of


@pytest.mark.parametrize(("path", "old"), [(path, old) for path, old, _, _ in MUTANTS])
def test_what_is_replaced_is_there_once(path, old):
    assert (ROOT / "lasa_jax" / path).read_text().count(old) == 1


@pytest.mark.parametrize("path", TESTS)
def test_the_tests_are_there(path):
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("path", sorted({path for path, *_ in MUTANTS}))
def test_tests_are_about_the_file(path):
    texts = [(ROOT / name).read_text() for name in TESTS]
    assert any(word in text for word in words_of(path) for text in texts)


def test_without_tests_none_is_run(tmp_path):
    assert first_failure(tmp_path / "nowhere", []) is None
