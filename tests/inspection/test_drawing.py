"""Pictures of a saved round that was filtered again."""

import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.errors import InputError
from lasa_jax.inspection import causes, drawing, filtering
from lasa_jax.inspection.rounds import Round
from tests.inspection.made_rounds import N, two_outliers


@pytest.fixture
def saved() -> Round:
    return two_outliers()


def test_heatmaps_put_the_malicious_on_top(saved):
    info = filtering.lasa(saved, magnitude_radius=2.0)
    figure = drawing.draw_filtering(info, saved, magnitude_radius=2.0, title="a round")
    figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 5
    cause = np.asarray(panels[-1].images[0].get_array())
    assert cause.shape == (N, 2)
    assert [causes.CAUSES[at] for at in cause[:2].ravel()] == ["sign", "sign", "sign", "norm"]  # clients 3 and 7
    assert [label.get_text() for label in panels[0].get_yticklabels()][:3] == ["3", "7", "0"]
    purity = np.asarray(panels[1].images[0].get_array())
    assert purity[0, 1] == info.purity["dense"]["kernel"][3]


def test_pictures_of_odd_rounds(saved, monkeypatch):
    """No malicious client, clients all alike (scores are infinite), radii that are off, and more layers than fit."""
    alike = Round({"a": np.ones((5, 3, 2), np.float32)}, np.zeros(5, bool))
    info = filtering.lasa(alike)
    assert np.isinf(info.magnitude_score["a"]).all()
    drawing.draw_filtering(info, alike, magnitude_radius=np.inf).draw_without_rendering()
    drawing.draw_scores(info, alike, magnitude_radius=np.inf).draw_without_rendering()
    monkeypatch.setattr(drawing, "_MOST_SIDE_BY_SIDE", 1)
    figure = drawing.draw_filtering(filtering.lasa(saved), saved, magnitude_radius=1.0)
    figure.draw_without_rendering()
    panels = [ax for ax in figure.axes if ax.images]
    assert len({round(ax.get_position().x0, 3) for ax in panels}) == 1  # one below another


def test_weights_of_rules_side_by_side(saved):
    infos = {name: filtering.apply(aggregators.create(name), saved) for name in ("lasa", "fedavg")}
    figure = drawing.draw_weights(infos, saved)
    panels = [ax for ax in figure.axes if ax.images]
    np.testing.assert_allclose(panels[1].images[0].get_array(), 1, rtol=1e-6)


def test_histogram_counts_every_client_and_draws_the_radius(saved):
    info = filtering.lasa(saved, magnitude_radius=2.0)
    figure = drawing.draw_scores(info, saved, magnitude_radius=2.0, only=["dense/bias"])
    upper, lower = figure.axes
    assert sum(patch.get_height() for patch in upper.patches) == N
    assert [line.get_xdata()[0] for ax in (upper, lower) for line in ax.lines] == [2.0, 1.0]
    with pytest.raises(InputError, match="layer = 'conv'"):
        drawing.draw_scores(info, saved, magnitude_radius=2.0, only=["conv"])
    frame = filtering.rates_against(saved, "sparsity_level", [0.0, 0.5])
    lines = drawing.draw_rates([frame]).axes[0].lines
    np.testing.assert_allclose(lines[1].get_ydata(), 100 * frame.benign_kept)
