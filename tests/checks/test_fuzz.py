"""The fuzz in small: `python -m checks.fuzz` does the same in large."""

import pytest

from checks.fuzz import (
    attacks,
    axes,
    checkpoints,
    configs,
    data_files,
    directories,
    environments,
    settings,
    strays,
    updates,
)
from lasa_jax import aggregators, commandline
from lasa_jax.attacks import ATTACKS
from lasa_jax.config.settings import all_settings
from lasa_jax.data import shakespeare


@pytest.mark.parametrize("name", aggregators.names())
def test_updates(name):
    tried, failures = updates.fuzz(280, [name], absent=True)
    assert tried == 280
    assert not failures, "\n".join(failures)


@pytest.mark.filterwarnings("default")  # a damaged file may warn, of libraries' own, as long as it ends in one line
@pytest.mark.parametrize(
    ("fuzz", "mutations"),
    [
        (configs.fuzz, 150),
        (data_files.fuzz, 60),
        (checkpoints.fuzz, 60),
        (settings.fuzz, 2 * len(all_settings())),
        (axes.fuzz, 2 * len(all_settings())),
        (strays.fuzz, 25),
    ],
    ids=["configs", "data files", "checkpoints", "settings", "axes", "strays"],
)
def test_files(fuzz, mutations, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # the fuzz moves the cache: put back afterwards
    tried, failures = fuzz(mutations)
    assert tried == mutations
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("name", ["byzmean", "lie", "min_sum"])
def test_attacks(name):
    tried, failures = attacks.fuzz(140, [name])
    assert tried == 140
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    "name", [*(f"rule {name}" for name in aggregators.names()), *(f"attack {name}" for name in ATTACKS)]
)
def test_what_is_no_stack_is_refused(name):
    _, failures = attacks.fuzz_wrong_inputs(30, names=[name])
    assert not failures, "\n".join(failures)


def test_an_environment():
    """A user that nobody knows, whose home may not be written to."""
    if environments.python_of_others() is None:
        pytest.skip("no interpreter that a user without rights may run")
    tried, failures = environments.fuzz(1, names=["a read-only HOME"])
    assert tried == 1
    assert not failures, "\n".join(failures)


def test_directories():
    _, failures = directories.fuzz(24)
    assert not failures, "\n".join(failures)


def test_the_fuzz_is_not_blind(monkeypatch, tmp_path):
    """Other methods under a name, a value that is misread, a text that keeps its marks, an end without a line."""
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setitem(ATTACKS, "lie", ATTACKS["ipm"])
    _, failures = attacks.fuzz(28, ["lie"])
    assert any("off its definition" in text for text in failures)
    monkeypatch.setitem(commandline._CONVERT, int, lambda text: 7)
    _, failures = settings.fuzz(len(all_settings()))
    assert any("read as 7" in text for text in failures)
    monkeypatch.setattr(shakespeare, "visible", lambda text: text)
    _, failures = strays.fuzz(50)
    assert any("text" in text for text in failures)
    for code, said in ((2, "exit code 2 without a line"), (1, "exit code 1"), (0, "without results")):
        assert said in environments.wrong(environments.Environment(ends=(0, 2)), code, "", tmp_path)
    assert "traceback" in environments.wrong(
        environments.Environment(), 0, "Traceback (most recent call last)", tmp_path
    )


def test_a_rule_that_leaves_the_hull_is_found(monkeypatch):
    """The mean under the median's name: the fuzz must not be blind."""
    monkeypatch.setitem(aggregators.RULES, "median", aggregators.RULES["fedavg"])
    _, failures = updates.fuzz(140, ["median"], absent=True)
    assert any("beyond the benign values" in text for text in failures)
    assert any("is not finite" in text for text in failures)
