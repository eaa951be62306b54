"""The page of what public implementations compute is what was run, and its definitions are those of our rules."""

import json

import jax
import numpy as np
import pytest

from checks import definitions
from lasa_jax import aggregators

KEPT = json.loads((definitions.FOLDER / "definitions.json").read_text())


def test_the_page_is_made_of_the_table_and_has_every_case():
    assert (definitions.FOLDER / "definitions.md").read_text() == definitions.page(KEPT)
    assert [(one["package"], one["method"]) for one in KEPT] == [(x.package, x.method) for x in definitions.CASES]


@pytest.mark.parametrize("case", definitions.CASES, ids=lambda case: f"{case.package} {case.method}")
def test_an_input_can_be_read_and_the_results_differ(case):
    (one,) = [one for one in KEPT if (one["package"], one["method"]) == (case.package, case.method)]
    assert np.size(case.rows) <= 10
    assert one["rows"] == np.ravel(case.rows).tolist()
    wanted = case.definition(np.asarray(case.rows), case.f)
    np.testing.assert_allclose(one["by definition"], wanted.ravel(), rtol=1e-5)
    assert np.abs(np.subtract(one["by definition"], one["by the package"])).max() > 0.1


def test_a_package_that_is_not_installed_is_named(capsys, monkeypatch):
    stranger = definitions.CASES[0]._replace(package="no-such-package")
    monkeypatch.setattr(definitions, "CASES", (stranger,))
    assert definitions.main([]) == 0
    assert "no-such-package Krum(f=1): not run" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["krum", "multi_krum", "bulyan", "trimmed_mean", "median", "geometric_median"])
def test_ours_is_the_same_definition(name):
    aggregate = aggregators.create(name).aggregate
    rule = jax.jit(lambda updates: aggregate(updates, (), key=jax.random.key(0), num_malicious=1)[0])
    for case in definitions.CASES:
        if case.definition.__name__ == name:
            rows = np.asarray(case.rows, np.float32)
            wanted = case.definition(np.asarray(case.rows), case.f)
            np.testing.assert_allclose(rule({"w": rows})["w"], wanted, rtol=1e-4)
