"""The filter of a saved round."""

import jax
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.errors import InputError
from lasa_jax.inspection import filtering
from lasa_jax.inspection.rounds import Round
from tests.inspection.made_rounds import N, two_outliers


@pytest.fixture
def saved() -> Round:
    return two_outliers()


def test_the_filter_again_is_that_of_the_rule(saved):
    numbers = {"sparsity_level": 0.6, "magnitude_radius": 1.7, "direction_radius": 1.1}
    info = filtering.apply(aggregators.lasa(**numbers), saved)
    again = filtering.lasa(saved, **numbers)
    for expected, found in zip(jax.tree.leaves(info), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="magnitude_radius"):
        filtering.lasa(saved, magnitude_radius=0)


def test_sliders_do_not_compile_again(saved):
    filtering.lasa(saved)
    before = filtering._lasa._cache_size()
    for radius in (0.5, 1, np.float64(2.0)):
        filtering.lasa(saved, sparsity_level=0.1 * float(radius), magnitude_radius=radius, direction_radius=radius)
    assert filtering._lasa._cache_size() == before


def test_table_has_a_row_a_client_and_layer(saved):
    info = filtering.lasa(saved, magnitude_radius=2.0)
    table = filtering.table(info, saved)
    fields = ["weight", "norm", "purity", "magnitude_score", "direction_score"]
    assert list(table.columns) == ["client", "layer", "malicious", "kept", *fields]
    assert len(table) == 2 * N
    row = table[(table.client == 3) & (table.layer == "dense/kernel")].iloc[0]
    assert row.malicious
    assert not row.kept
    assert row.direction_score == info.direction_score["dense"]["kernel"][3]
    krum = filtering.table(filtering.apply(aggregators.multi_krum(), saved), saved)
    assert list(krum.columns) == ["client", "layer", "malicious", "kept", "weight"]


def test_rates_follow_the_radius(saved):
    assert filtering.rates(filtering.lasa(saved, magnitude_radius=2.0), saved)["malicious_filtered"] == 1.0
    frame = filtering.rates_against(saved, "direction_radius", [1.0, np.inf], magnitude_radius=np.inf)
    assert frame.direction_radius.tolist() == [1.0, np.inf]
    assert frame.malicious_filtered[0] >= 0.5
    assert frame.malicious_filtered[1] == 0  # both filters are off
    assert frame.benign_kept[1] == 1
    with pytest.raises(InputError, match="setting = 'z'"):
        filtering.rates_against(saved, "z", [1.0])
    nobody = filtering.rates(filtering.lasa(saved), saved._replace(malicious=np.zeros(N, bool)))
    assert np.isnan(nobody["malicious_filtered"])
