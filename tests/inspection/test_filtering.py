"""The filter of a saved round, and its pictures."""

import jax
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.errors import InputError
from lasa_jax.inspection import filtering

N = 12


@pytest.fixture
def saved() -> filtering.Round:
    """Two malicious clients: one has a large norm, the other its signs flipped, in both layers of the model."""
    rng = np.random.default_rng(0)
    updates = {
        "dense": {
            "kernel": (0.4 + rng.standard_normal((N, 40, 20))).astype(np.float32),
            "bias": (0.4 + rng.standard_normal((N, 50))).astype(np.float32),
        }
    }
    for x in updates["dense"].values():
        x[3] *= -1
        x[7] += 100 * np.sign(rng.standard_normal(x[7].shape)).astype(np.float32)
    return filtering.Round(updates, np.isin(np.arange(N), (3, 7)))


def test_a_round_comes_back_from_its_file(saved, tmp_path):
    filtering.save_round(tmp_path / "round.npz", saved)
    loaded = filtering.load_round(tmp_path / "round.npz")
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, loaded, saved)
    assert [path.name for path in tmp_path.iterdir()] == ["round.npz"]


def test_clients_are_called_by_their_ids(saved, tmp_path):
    known = saved._replace(clients=np.arange(100, 100 + N), noise=0.5, divergence=0.25)
    filtering.save_round(tmp_path / "round.npz", known)
    loaded = filtering.load_round(tmp_path / "round.npz")
    assert (loaded.noise, loaded.divergence) == (0.5, 0.25)
    info = filtering.lasa(loaded, magnitude_radius=2.0)
    table = filtering.table(info, loaded)
    assert sorted(set(table[table.malicious].client)) == [103, 107]
    for figure in (
        filtering.draw_filtering(info, loaded, magnitude_radius=2.0),
        filtering.draw_weights({"lasa": info}, loaded),
    ):
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels[:3] == ["103", "107", "100"]  # malicious on top
    filtering.save_round(
        tmp_path / "whole.npz", known._replace(clients=np.arange(N, dtype=np.uint32), noise=0, divergence=1)
    )
    whole = filtering.load_round(tmp_path / "whole.npz")
    assert (whole.noise, whole.divergence, whole.clients.tolist()) == (0, 1, list(range(N)))
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="noise"):
            filtering.save_round(tmp_path / "bad.npz", known._replace(noise=wrong))
    for place in ("", ".", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            filtering.save_round(place, known)
    assert {path.name for path in tmp_path.iterdir()} == {"round.npz", "whole.npz"}
    with pytest.raises(InputError, match="an id for each"):
        filtering.save_round(tmp_path / "bad.npz", known._replace(clients=np.arange(3)))


def test_what_is_no_round_is_refused_in_one_line(saved, tmp_path):
    text, other = tmp_path / "text.npz", tmp_path / "other.npz"
    text.write_text("no archive")
    np.savez(other, malicious=np.zeros(3, bool), x=np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, malicious=np.array([{}], object), allow_pickle=True)
    cut = tmp_path / "cut.npz"
    filtering.save_round(cut, saved)
    cut.write_bytes(cut.read_bytes()[:-200])
    ids, number = tmp_path / "ids.npz", tmp_path / "number.npz"
    np.savez(ids, malicious=np.zeros(3, bool), clients=np.zeros(2, int), **{"updates/x": np.zeros(3)})
    np.savez(number, malicious=np.zeros(3, bool), noise=np.zeros(2), **{"updates/x": np.zeros(3)})
    for path in (text, other, pickled, cut, ids, number, tmp_path / "missing.npz"):
        with pytest.raises(InputError, match=path.name) as error:
            filtering.load_round(path)
        assert "\n" not in str(error.value)
        assert "pickle" not in str(error.value).replace(str(path), "")
    with pytest.raises(InputError, match="a row for each"):
        filtering.save_round(tmp_path / "bad.npz", saved._replace(malicious=saved.malicious[:-1]))
    with pytest.raises(InputError, match="cannot be written"):
        filtering.save_round(tmp_path / "nowhere" / "round.npz", saved)


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


def test_heatmaps_put_the_malicious_on_top(saved):
    info = filtering.lasa(saved, magnitude_radius=2.0)
    figure = filtering.draw_filtering(info, saved, magnitude_radius=2.0, title="a round")
    figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 5
    kept = np.asarray(panels[-1].images[0].get_array())
    assert kept.shape == (N, 2)
    assert (kept[:2] == 0).all()  # both malicious clients, dropped in both layers
    assert [label.get_text() for label in panels[0].get_yticklabels()][:3] == ["3", "7", "0"]
    purity = np.asarray(panels[1].images[0].get_array())
    assert purity[0, 1] == info.purity["dense"]["kernel"][3]


def test_pictures_of_odd_rounds(saved, monkeypatch):
    """No malicious client, clients all alike (scores are infinite), radii that are off, and more layers than fit."""
    alike = filtering.Round({"a": np.ones((5, 3, 2), np.float32)}, np.zeros(5, bool))
    info = filtering.lasa(alike)
    assert np.isinf(info.magnitude_score["a"]).all()
    filtering.draw_filtering(info, alike, magnitude_radius=np.inf).draw_without_rendering()
    filtering.draw_scores(info, alike, magnitude_radius=np.inf).draw_without_rendering()
    monkeypatch.setattr(filtering, "_MOST_SIDE_BY_SIDE", 1)
    figure = filtering.draw_filtering(filtering.lasa(saved), saved, magnitude_radius=1.0)
    figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.images]
    assert len({round(ax.get_position().x0, 3) for ax in panels}) == 1  # one below another


def test_weights_of_rules_side_by_side(saved):
    infos = {name: filtering.apply(aggregators.create(name), saved) for name in ("lasa", "fedavg")}
    figure = filtering.draw_weights(infos, saved)
    panels = [ax for ax in figure.axes if ax.images]
    np.testing.assert_allclose(panels[1].images[0].get_array(), 1, rtol=1e-6)


def test_histogram_counts_every_client_and_draws_the_radius(saved):
    info = filtering.lasa(saved, magnitude_radius=2.0)
    figure = filtering.draw_scores(info, saved, magnitude_radius=2.0, only=["dense/bias"])
    upper, lower = figure.axes
    assert sum(patch.get_height() for patch in upper.patches) == N
    assert [line.get_xdata()[0] for ax in (upper, lower) for line in ax.lines] == [2.0, 1.0]
    with pytest.raises(InputError, match="layer = 'conv'"):
        filtering.draw_scores(info, saved, magnitude_radius=2.0, only=["conv"])
    frame = filtering.rates_against(saved, "sparsity_level", [0.0, 0.5])
    lines = filtering.draw_rates([frame]).axes[0].lines
    np.testing.assert_allclose(lines[1].get_ydata(), 100 * frame.benign_kept)
