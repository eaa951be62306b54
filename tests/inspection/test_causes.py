"""Why clients were dropped, in cells, sentences, a page that moves, and over rounds."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from lasa_jax import attacks
from lasa_jax.errors import InputError
from lasa_jax.inspection import causes, filtering, following, frames, outcomes, sentences
from lasa_jax.inspection.rounds import Round
from tests.inspection.made_rounds import N, two_outliers

RADII = {"magnitude_radius": 1.5, "direction_radius": 1.5}


@pytest.fixture(scope="module")
def saved() -> Round:
    """Client 3 with its signs flipped, client 7 with a large norm, and client 9 with a NaN in one layer."""
    made = two_outliers()
    made.updates["dense"]["bias"][9, 0] = np.nan
    return made


@pytest.fixture(scope="module")
def info(saved):
    return filtering.lasa(saved, **RADII)


def test_causes_are_those_of_the_rule(saved, info):
    cause = causes.of(info, saved, **RADII)
    assert [causes.CAUSES[at] for at in cause[:, 9]] == ["not finite"] * 2
    assert [causes.CAUSES[at] for at in cause[:, 3]] == ["sign"] * 2
    assert [causes.CAUSES[at] for at in cause[:, 7]] == ["kept", "norm"]
    np.testing.assert_array_equal(cause == 0, filtering.layer_rows(info.weight) != 0)
    counted = causes.counts(cause, saved.malicious)
    assert counted["malicious"].tolist() == [1, 1, 2, 0, 0]
    assert counted.to_numpy().sum() == 2 * N


def test_who_is_kept_because_nobody_would_be_left_is_kept():
    """Clients that are all alike have infinite scores."""
    alike = Round({"a": np.ones((5, 3), np.float32)}, np.zeros(5, bool))
    assert (causes.of(filtering.lasa(alike), alike) == 0).all()


def test_sentences_have_the_numbers(saved, info):
    said = sentences.of_filtering(info, saved, **RADII)
    assert said.startswith("75 % of the malicious cells (client and layer) were dropped (sign 67 %, norm 33 %); ")
    assert said.endswith("Most malicious clients got through in dense/bias: 50 % of them.")
    open_ = {"magnitude_radius": np.inf, "direction_radius": np.inf}
    said = sentences.of_filtering(filtering.lasa(saved, **open_), saved, **open_)
    assert "0 % of the malicious cells" in said
    assert "Most malicious clients got through in dense/bias: 100 % of them." in said
    assert "percentage points" in sentences.of_scores(info, saved, **RADII)
    frame = pd.DataFrame({"radius": [1.0, 2.0], "malicious_filtered": [1.0, 0.5], "benign_kept": [0.9, 1.0]})
    assert "best here is 1: 100 % of the malicious cells dropped, 90 % of the benign" in sentences.of_rates(frame)
    assert sentences.of_weights({"lasa": info}, saved).endswith("lasa 6 %.")
    rules = pd.DataFrame({"rule": ["a", "lasa"], "accuracy": [0.9, 0.8], "error": [2.0, 1.0]})
    said = sentences.of_rules(rules)
    assert "best under a: 90.0 %. lasa is number 2 of 2 with 80.0 %." in said
    assert "Nearest to the mean of the benign updates is lasa." in said
    assert "Nearest" not in sentences.of_rules(rules.assign(error=np.nan))
    assert sentences.of_rules(rules.assign(error=[1.0, np.nan])).count("lasa") == 1
    assert (
        sentences.of_rules(rules.assign(accuracy=np.nan)) == "No rule has an accuracy after this round: all refused it."
    )


def test_the_page_decides_as_the_rule_does(saved, info):
    """From its scores, as its script does; at every radius of the sliders."""
    page = frames.page({"as it is": {1.0: saved}, "<b>": {0.5: saved}}, [0.3], **RADII)
    assert page == frames.page({"as it is": {1.0: saved}, "<b>": {0.5: saved}}, [0.3], **RADII)
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "@" not in page
    assert " id=" not in page  # which would be there twice where the page is shown twice
    assert page.count(re.search(r'<div data-page="(lasa-\w{8})"', page)[1]) == 3  # in its script, and ids of sliders
    assert ":not([data-taken])" in page
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    magnitude, direction = (np.asarray(score) for score in data["attacks"][0]["scores"][0][0])
    order = [data["clients"].index(client) for client in range(N)]
    for radius in frames.RADII:
        numbers = {"magnitude_radius": radius, "direction_radius": 1.0}
        expected = causes.of(filtering.lasa(saved, **numbers), saved, **numbers)
        cause = np.where(magnitude < 0, 4, (magnitude >= radius) + 2 * (direction >= 1.0))
        nobody = ~(cause == 0).any(axis=1, keepdims=True)
        cause = np.where(nobody & (cause != 4), 0, cause)
        np.testing.assert_array_equal(cause[:, order], expected)
    with pytest.raises(InputError, match=r"magnitude_radius = 1\.1"):
        frames.page({"a": {1.0: saved}}, [0.3], magnitude_radius=1.1)
    with pytest.raises(InputError, match="same clients"):
        frames.page({"a": {1.0: saved, 2.0: saved._replace(malicious=~saved.malicious)}}, [0.3])


def test_one_client_is_followed():
    rows = [
        {"round": at, "client": client, "malicious": client == 1, "layer": layer, "kept": kept, "weight": float(kept)}
        for at, client, layer, kept in [
            (1, 1, "a", False),
            (1, 1, "b", True),
            (2, 0, "a", True),
            (2, 0, "b", True),
            (4, 1, "a", False),
            (4, 1, "b", False),
            (5, 1, "a", False),
            (5, 1, "b", False),
        ]
    ]
    table = pd.DataFrame(rows)
    table["layer"] = pd.Categorical(table["layer"], categories=["b", "a"])
    with pytest.raises(InputError, match="allowed is what a run of lasa recorded"):
        following.follow(table, 1)
    table["magnitude_score"] = [3.0, 0.0, 0.0, 0.0, 3.0, 2.0, 3.0, 0.1]
    table["direction_score"] = [0.5, 0.5, 0.0, 0.0, 2.0, 0.0, 0.5, 0.1]
    followed = following.follow(table, following.often(table, malicious=True), magnitude_radius=2.0)
    assert [causes.CAUSES[at] for at in followed["cause"]] == [
        *("norm", "kept", "both", "norm"),
        *("not finite", "not finite"),  # the scores of layer "a" mean nothing then
    ]
    picture = following.draw(followed).axes[0]
    assert [label.get_text() for label in picture.get_xticklabels()] == ["1", "4", "5"]
    np.testing.assert_array_equal(picture.images[0].get_array(), [[0, 1, 4], [1, 3, 4]])
    said = sentences.of_client(followed)
    assert "Client 1 is malicious and took part in 3 rounds. It was dropped in 83 % of its cells" in said
    assert said.endswith("most often in a: 100 % of its rounds.")
    with pytest.raises(InputError, match="client = 5: took part in no round"):
        following.follow(table, 5)


def test_an_attack_at_several_strengths(saved):
    whole = two_outliers()
    weak, strong = outcomes.of_attack(whole, attacks.ipm, [0.0, 2.0])
    mean = whole.updates["dense"]["bias"][~whole.malicious].mean(0)
    np.testing.assert_allclose(weak.updates["dense"]["bias"][3], 0 * mean, atol=1e-6)
    np.testing.assert_allclose(strong.updates["dense"]["bias"][3], -2 * mean, rtol=1e-5)
    np.testing.assert_array_equal(strong.updates["dense"]["bias"][0], whole.updates["dense"]["bias"][0])
