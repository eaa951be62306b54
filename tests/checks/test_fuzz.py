"""The fuzz in small: `python -m checks.fuzz` does the same in large."""

import pytest

from checks.fuzz import checkpoints, configs, data_files, directories, updates
from lasa_jax import aggregators


@pytest.mark.parametrize("name", aggregators.names())
def test_updates(name):
    tried, failures = updates.fuzz(280, [name], absent=True)
    assert tried == 280
    assert not failures, "\n".join(failures)


@pytest.mark.filterwarnings("default")  # a damaged file may warn, of libraries' own, as long as it ends in one line
@pytest.mark.parametrize(
    ("fuzz", "mutations"),
    [(configs.fuzz, 150), (data_files.fuzz, 60), (checkpoints.fuzz, 60)],
    ids=["configs", "data files", "checkpoints"],
)
def test_files(fuzz, mutations, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the fuzz moves the cache: put back afterwards
    tried, failures = fuzz(mutations)
    assert tried == mutations
    assert not failures, "\n".join(failures)


def test_directories():
    _, failures = directories.fuzz(24)
    assert not failures, "\n".join(failures)


def test_a_rule_that_leaves_the_hull_is_found(monkeypatch):
    """The mean under the median's name: the fuzz must not be blind."""
    monkeypatch.setitem(aggregators.RULES, "median", aggregators.RULES["fedavg"])
    _, failures = updates.fuzz(140, ["median"], absent=True)
    assert any("beyond the benign values" in text for text in failures)
    assert any("is not finite" in text for text in failures)
