"""(f, kappa)-robustness on one round: by its definition, by search, and within the theory of each rule."""

import itertools

import jax
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.errors import InputError
from lasa_jax.inspection import coefficient, filtering
from tests.inspection.made_rounds import two_outliers


def coefficient_by_definition(x: np.ndarray, result: np.ndarray, f: int) -> float:
    found = []
    for subset in itertools.combinations(range(len(x)), len(x) - f):
        part = x[list(subset)]
        mean = part.mean(0)
        found.append(((result - mean) ** 2).sum() / ((part - mean) ** 2).sum(1).mean())
    return max(found)


# Upper bounds of kappa, Allouah et al. 2023, with r = f / (n - 2f).
KAPPA = {
    "trimmed_mean": lambda r: 6 * r * (1 + r),
    "krum": lambda r: 6 * (1 + r),
    "geometric_median": lambda r: 4 * (1 + r) ** 2,
    "median": lambda r: 4 * (1 + r) ** 2,
}


@pytest.mark.parametrize("name", KAPPA)
def test_coefficients_of_robust_rules_are_within_their_theory(name):
    rng = np.random.default_rng(0)
    updates = {"w": rng.standard_normal((9, 4, 5)).astype(np.float32)}
    updates["w"][:2] += 300
    rule = aggregators.create(name)
    found = coefficient.robustness_coefficient(rule, updates, 2)
    result = rule.aggregate(updates, (), key=jax.random.key(0), num_malicious=2)[0]
    x, result = updates["w"].reshape(9, -1).astype(np.float64), np.asarray(result["w"], np.float64).ravel()
    assert found == pytest.approx(coefficient_by_definition(x, result, 2), rel=1e-4)
    assert 0 < found <= KAPPA[name](2 / 5)
    assert coefficient.robustness_coefficient(aggregators.fedavg(), updates, 2) > 10 * KAPPA[name](2 / 5)


def test_the_search_finds_what_trying_all_finds(monkeypatch):
    rng = np.random.default_rng(1)
    updates = {"w": rng.standard_normal((12, 6)).astype(np.float32)}
    whole = coefficient.robustness_coefficient(aggregators.krum(), updates, 3)
    monkeypatch.setattr(coefficient, "_MOST_SUBSETS", 0)
    assert coefficient.robustness_coefficient(aggregators.krum(), updates, 3) == pytest.approx(whole, rel=1e-12)


def test_coefficients_at_the_edges():
    same = {"w": np.full((6, 3), 0.1, np.float32)}
    assert coefficient.robustness_coefficient(aggregators.fedavg(), same, 2) == 0
    same["w"][0] = 5.0
    assert coefficient.robustness_coefficient(aggregators.median(), same, 2) == pytest.approx(1 / 3)
    assert coefficient.robustness_coefficient(aggregators.fedavg(), same, 2) == np.inf  # five agree, F is elsewhere
    assert coefficient.robustness_coefficient(aggregators.fedavg(), same, 0) == 0  # of all clients it is the mean
    with pytest.raises(InputError, match="num_malicious = 3"):
        coefficient.robustness_coefficient(aggregators.fedavg(), same, 3)


@pytest.mark.parametrize("name", ["fltrust", "flame", "foolsgold"])
def test_a_rule_that_needs_more_than_updates_is_refused(name):
    saved = two_outliers()
    with pytest.raises(InputError, match=rf"^{name}: needs \w.*, which a saved round does not have"):
        coefficient.of_rules(saved, {name: aggregators.create(name)})
    with pytest.raises(InputError, match="which a saved round does not have"):
        filtering.apply(aggregators.create(name), saved)
