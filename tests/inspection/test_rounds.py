"""The file of a saved round: it comes back as it was, and what is something else is refused."""

import jax
import numpy as np
import pytest

from lasa_jax.errors import InputError
from lasa_jax.inspection import drawing, filtering, rounds
from lasa_jax.inspection.rounds import Round
from tests.inspection.made_rounds import N, two_outliers


@pytest.fixture
def saved() -> Round:
    return two_outliers()


def test_a_round_comes_back_from_its_file(saved, tmp_path):
    rounds.save_round(tmp_path / "round.npz", saved)
    loaded = rounds.load_round(tmp_path / "round.npz")
    assert jax.tree.structure(loaded) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, loaded, saved)
    assert [path.name for path in tmp_path.iterdir()] == ["round.npz"]


def test_clients_are_called_by_their_ids(saved, tmp_path):
    known = saved._replace(clients=np.arange(100, 100 + N), noise=0.5, divergence=0.25)
    rounds.save_round(tmp_path / "round.npz", known)
    loaded = rounds.load_round(tmp_path / "round.npz")
    assert (loaded.noise, loaded.divergence) == (0.5, 0.25)
    info = filtering.lasa(loaded, magnitude_radius=2.0)
    table = filtering.table(info, loaded)
    assert sorted(set(table[table.malicious].client)) == [103, 107]
    for figure in (
        drawing.draw_filtering(info, loaded, magnitude_radius=2.0),
        drawing.draw_weights({"lasa": info}, loaded),
    ):
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        assert labels[:3] == ["103", "107", "100"]  # malicious on top
    rounds.save_round(
        tmp_path / "whole.npz", known._replace(clients=np.arange(N, dtype=np.uint32), noise=0, divergence=1)
    )
    whole = rounds.load_round(tmp_path / "whole.npz")
    assert (whole.noise, whole.divergence, whole.clients.tolist()) == (0, 1, list(range(N)))
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(InputError, match="noise"):
            rounds.save_round(tmp_path / "bad.npz", known._replace(noise=wrong))
    for place in ("", ".", tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            rounds.save_round(place, known)
    assert {path.name for path in tmp_path.iterdir()} == {"round.npz", "whole.npz"}
    with pytest.raises(InputError, match="an id for each"):
        rounds.save_round(tmp_path / "bad.npz", known._replace(clients=np.arange(3)))


def test_what_is_no_round_is_refused_in_one_line(saved, tmp_path):
    text, other = tmp_path / "text.npz", tmp_path / "other.npz"
    text.write_text("no archive")
    np.savez(other, malicious=np.zeros(3, bool), x=np.zeros(3))
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, malicious=np.array([{}], object), allow_pickle=True)
    cut = tmp_path / "cut.npz"
    rounds.save_round(cut, saved)
    cut.write_bytes(cut.read_bytes()[:-200])
    ids, number = tmp_path / "ids.npz", tmp_path / "number.npz"
    np.savez(ids, malicious=np.zeros(3, bool), clients=np.zeros(2, int), **{"updates/x": np.zeros(3)})
    np.savez(number, malicious=np.zeros(3, bool), noise=np.zeros(2), **{"updates/x": np.zeros(3)})
    for path in (text, other, pickled, cut, ids, number, tmp_path / "missing.npz"):
        with pytest.raises(InputError, match=path.name) as error:
            rounds.load_round(path)
        assert "\n" not in str(error.value)
        assert "pickle" not in str(error.value).replace(str(path), "")
    with pytest.raises(InputError, match="a row for each"):
        rounds.save_round(tmp_path / "bad.npz", saved._replace(malicious=saved.malicious[:-1]))
    with pytest.raises(InputError, match="cannot be written"):
        rounds.save_round(tmp_path / "nowhere" / "round.npz", saved)
