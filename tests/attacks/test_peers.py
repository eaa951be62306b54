"""What the unit tests of ByzFL, Flower and Blades check of attacks, with numbers of our own: see docs/peers_tests.md."""

import jax
import numpy as np
import pytest

from lasa_jax import attacks
from lasa_jax.testing import known

KEY = jax.random.key(0)
ROWS = np.array([[2.0, -1.0, 0.5], [4.0, 3.0, 0.5], [9.0, 1.0, 2.0], [7.0, 7.0, 7.0]], np.float32)
MALICIOUS = np.array([False, False, False, True])


def sent(attack, rows=ROWS, malicious=MALICIOUS) -> np.ndarray:
    state = attack.init({"w": rows[0]})
    return np.asarray(jax.jit(lambda rows: attack.craft(rows, state, malicious, key=KEY)[0])({"w": rows})["w"])


@pytest.mark.parametrize(
    ("attack", "wanted"),
    [
        (attacks.sign_flip(), -ROWS[3]),
        (attacks.ipm(2.0), [-10.0, -2.0, -2.0]),  # twice the mean of the honest, turned around
        (attacks.ipm(1.0), [-5.0, -1.0, -1.0]),  # what others call sign flipping
        (attacks.lie(1.5), ROWS[:3].mean(0) - 1.5 * ROWS[:3].std(0, ddof=1)),
        (attacks.nan(), [np.nan] * 3),
        (attacks.zero(), [0.0] * 3),
    ],
    ids=["own sign", "inner product", "mean turned around", "a little is enough", "not a number", "zero"],
)
def test_what_a_malicious_client_sends(attack, wanted):
    found = sent(attack)
    np.testing.assert_array_equal(found[:3], ROWS[:3])
    np.testing.assert_allclose(found[3], wanted, rtol=1e-6)


def test_mimic_sends_what_an_honest_client_sends():
    assert any((sent(attacks.mimic())[3] == row).all() for row in ROWS[:3])


def test_random_values_are_finite_and_of_the_shape_and_spread_asked_for():
    rows = np.zeros((4, 50_000), np.float32)
    found = sent(attacks.random(2.0), rows)
    assert found.shape == rows.shape
    assert np.isfinite(found).all()
    assert (found[3].mean(), found[3].std()) == (pytest.approx(0, abs=0.05), pytest.approx(2, rel=0.02))


@pytest.mark.parametrize("name", attacks.names())
def test_with_nobody_malicious_nothing_changes(name):
    attack = attacks.create(name)
    state = attack.init({"w": ROWS[0]})
    crafted, _ = attack.craft(
        {"w": ROWS},
        state,
        np.zeros(4, bool),
        key=KEY,
        aggregate=lambda updates: {"w": updates["w"].mean(0)},
        **known(attack, {"w": ROWS}),
    )
    np.testing.assert_array_equal(crafted["w"], ROWS)


def test_label_flipping_is_its_own_inverse_and_keeps_the_range():
    labels = np.arange(7)
    flipped = np.asarray(attacks.label_flip().poison(ROWS, labels, num_classes=7, key=None, client=0)[1])
    assert flipped.tolist() == [6, 5, 4, 3, 2, 1, 0]
