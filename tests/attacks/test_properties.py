"""What each attack of one round is by its definition: where its row lies, and that no farther one is allowed."""

from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks
from lasa_jax.testing import NUM_CLIENTS, SHAPES, built_in, honest, known
from lasa_jax.testing import attacks as laws
from lasa_jax.testing.attacks import SOME, craft
from tests.attacks.test_battery import ATTACKS

N = NUM_CLIENTS
KEY = jax.random.key(0)


@pytest.mark.parametrize("f", [1, 2, 5, 8])
def test_byzmean_makes_the_mean_its_first_group(f):
    which = np.arange(N) >= N - f
    crafted = craft(ATTACKS["byzmean"], which)
    beta = craft(ATTACKS["lie"], which)
    for name in SHAPES:
        np.testing.assert_allclose(crafted[name].mean(0), beta[name][-1], atol=1e-5)
        for row in range(f // 2):
            np.testing.assert_allclose(crafted[name][N - f + row], beta[name][-1], atol=1e-6)


@pytest.mark.parametrize("z", [0.0, 0.5, 2.0])
def test_lie_is_z_deviations_from_the_mean(z):
    crafted = craft(attacks.lie(z=z), SOME)
    for name, x in honest().items():
        benign = x[~SOME].astype(np.float64)
        wanted = benign.mean(0) - z * benign.std(0, ddof=1)
        for row in crafted[name][SOME]:
            np.testing.assert_allclose(row, wanted, atol=1e-6)


def test_colluders_know_only_their_own():
    updates = honest()
    first = craft(attacks.lie(knowledge="colluders"), SOME, updates)
    changed = jax.tree.map(lambda x: np.where(SOME.reshape((-1,) + (1,) * (x.ndim - 1)), x, 7 * x), updates)
    second = craft(attacks.lie(knowledge="colluders"), SOME, changed)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[SOME], b[SOME]), first, second)


def test_noise_is_added_and_random_replaces():
    updates = {"w": np.full((N, 200, 100), 3.0, np.float32)}
    noisy = craft(attacks.noise(std=0.5), SOME, updates)["w"][SOME]
    drawn = craft(attacks.random(std=0.5), SOME, updates)["w"][SOME]
    assert abs(noisy.mean() - 3) < 0.01
    assert abs(drawn.mean()) < 0.01
    assert abs(noisy.std() - 0.5) < 0.01
    assert abs(drawn.std() - 0.5) < 0.01
    assert len({float(row[0, 0]) for row in drawn}) == 4  # a fresh draw a client


def flat(updates) -> np.ndarray:
    """`(n, d)`, layers by name: JAX returns them sorted."""
    layers = [np.asarray(updates[name], np.float64) for name in sorted(updates)]
    return np.concatenate([x.reshape(len(x), -1) for x in layers], axis=1)


def sent_and_benign(attack: attacks.Attack) -> tuple[np.ndarray, np.ndarray]:
    """The row that all malicious clients send, and the benign rows, flat."""
    rows = flat(craft(attack, SOME))
    assert (rows[SOME] == rows[SOME][0]).all()
    return rows[SOME][0], rows[~SOME]


def on_the_line(row: np.ndarray, benign: np.ndarray, step: float) -> np.ndarray:
    """The row with its step from the mean times `step`."""
    return benign.mean(0) + step * (row - benign.mean(0))


def sums(x: np.ndarray, power: int) -> np.ndarray:
    return (np.linalg.norm(x[:, None] - x[None, :], axis=-1) ** power).sum(1)


def test_min_max_is_within_its_bound_and_tight():
    row, benign = sent_and_benign(ATTACKS["min_max"])
    bound = np.linalg.norm(benign[:, None] - benign[None, :], axis=-1).max()
    assert np.linalg.norm(benign - row, axis=1).max() <= bound * (1 + 1e-5)
    assert np.linalg.norm(benign - on_the_line(row, benign, 1.001), axis=1).max() > bound


def test_min_max_searches_far_enough():
    """Ten benign rows at 0 and one at each end: the crafted row reaches the end, at 2.3 deviations."""
    x = np.zeros((N, 1), np.float32)
    x[4], x[5] = 10, -10
    crafted = attacks.min_max().craft({"w": x}, (), np.arange(N) < 4, key=KEY)[0]["w"]
    np.testing.assert_allclose(crafted[0], -10, rtol=1e-5)
    assert 10 / x[4:].std(ddof=1) > 2


@pytest.mark.parametrize(
    ("name", "power", "choose"),
    [
        ("min_sum", 2, np.max),
        ("min_sum, not squared", 1, np.max),
        ("min_sum_stealthy", 2, np.min),
    ],
)
def test_min_sum_is_within_its_bound_and_tight(name, power, choose):
    row, benign = sent_and_benign(ATTACKS[name])
    bound = choose(sums(benign, power))
    assert (np.linalg.norm(benign - row, axis=1) ** power).sum() <= bound * (1 + 1e-5)
    assert (np.linalg.norm(benign - on_the_line(row, benign, 1.001), axis=1) ** power).sum() > bound


def test_tailored_trmean_takes_the_smallest_step_to_the_maximum():
    row, benign = sent_and_benign(ATTACKS["tailored_trmean"])
    f = SOME.sum()

    def deviation(crafted: np.ndarray) -> float:
        x = np.sort(np.concatenate([benign, np.repeat(crafted[None], f, axis=0)]), axis=0)
        return float(np.linalg.norm(x[f : len(x) - f].mean(0) - benign.mean(0)))

    largest = deviation(on_the_line(row, benign, 100))
    np.testing.assert_allclose(deviation(row), largest, rtol=1e-6)
    assert deviation(on_the_line(row, benign, 0.99)) < largest * (1 - 1e-6)


def test_tailored_trmean_moves_it_down_as_far_as_it_goes_on_skewed_values():
    """Few benign values far below the others: of all steps none moves the trimmed mean lower."""
    benign = np.zeros((12, 1), np.float32)
    benign[0], benign[1] = -10, 0.5
    updates = {"w": np.concatenate([np.zeros((4, 1), np.float32), benign])}
    row = np.asarray(attacks.tailored_trmean().craft(updates, (), np.arange(N) < 4, key=KEY)[0]["w"])[0]

    def trimmed(value: float) -> float:
        x = np.sort(np.concatenate([np.full(4, value), benign[:, 0]]))
        return float(x[4:12].mean())

    steps = np.linspace(0, 20, 400)
    lowest = min(trimmed(benign.mean() - step * benign.std(ddof=1)) for step in steps)
    np.testing.assert_allclose(trimmed(row[0]), lowest, atol=1e-6)
    assert trimmed(row[0] + 0.1) > trimmed(row[0])  # and no step that does is smaller


@pytest.mark.parametrize(("knowledge", "copies"), [("benign", 8), ("all", 8), ("colluders", 4)])
def test_how_many_copies_the_attacker_foresees(knowledge, copies):
    malicious = np.arange(N) < 8
    assert attacks.base.simulated_copies(knowledge, malicious, np.ones(N, bool)) == copies


def test_tailored_krum_is_the_farthest_that_krum_chooses():
    row, benign = sent_and_benign(ATTACKS["tailored_krum"])
    f = int(SOME.sum())

    def chosen(crafted: np.ndarray) -> bool:
        x = np.concatenate([np.repeat(crafted[None], f, axis=0), benign])
        distances = np.sort(np.linalg.norm(x[:, None] - x[None, :], axis=-1) ** 2, axis=1)[:, 1 : len(x) - f - 1]
        return bool(distances.sum(1).argmin() < f)

    assert chosen(on_the_line(row, benign, 0.999))
    assert not chosen(on_the_line(row, benign, 1.001))


@pytest.mark.parametrize(("f", "z"), [(1, 0.0), (4, None), (8, None), (9, 4.0)])
def test_alie_has_the_z_of_its_paper(f, z):
    """Between 0, where more than half of the benign would be needed, and 4, where none is."""
    which = np.arange(N) < f
    rows = flat(craft(ATTACKS["alie"], which))
    benign = rows[f:]
    if z is None:
        needed = N // 2 + 1 - f
        z = NormalDist().inv_cdf((len(benign) - needed) / len(benign))
    np.testing.assert_allclose(rows[0], benign.mean(0) - z * benign.std(0, ddof=1), atol=1e-5)


def test_inner_product_zero_and_mimic():
    row, benign = sent_and_benign(ATTACKS["ipm"])
    np.testing.assert_allclose(row, -0.5 * benign.mean(0), atol=1e-6)
    row, _ = sent_and_benign(ATTACKS["zero"])
    assert not row.any()
    row, benign = sent_and_benign(ATTACKS["mimic"])
    moved = benign - benign.mean(0)
    first = moved[np.linalg.norm(moved, axis=1).argmax()]
    direction = moved.T @ (moved @ (first / np.linalg.norm(first)))
    np.testing.assert_array_equal(row, benign[np.abs(moved @ direction).argmax()])


@pytest.mark.parametrize("objective", ["descent", "distance"])
def test_adaptive_finds_more_than_fixed_attacks(objective):
    """On the rule it is given, the trimmed mean, it gains at least what Lie and Min-Max gain."""

    def gain(attack: attacks.Attack) -> float:
        updates = craft(attack, SOME)
        mean = flat(updates)[~SOME].mean(0)
        moved = flat(jax.tree.map(lambda x: x[None], laws.server_rule(updates)))[0]
        return float((mean - moved) @ mean if objective == "descent" else ((moved - mean) ** 2).sum())

    found = gain(attacks.adaptive(objective=objective))
    assert found > 0
    assert found >= max(gain(ATTACKS["lie"]), gain(ATTACKS["min_max"])) * 0.999


def test_adaptive_refines_every_layer_for_itself():
    """On a rule that caps each layer at its own size, the best magnitudes differ by layer: the refinement must find that."""
    caps = {"kernel": 0.3, "bias": 3.0, "conv": 1.0}

    def capped(updates):
        def layer(x, cap):
            row = x[SOME][0]
            return jnp.where(jnp.linalg.norm(row - x[~SOME].mean(0)) <= cap, row, x[~SOME].mean(0))

        return {name: layer(x, caps[name]) for name, x in updates.items()}

    def gain(refinements: int) -> float:
        attack = attacks.adaptive(objective="distance", num_magnitudes=6, num_refinements=refinements)
        crafted = attack.craft(honest(), (), SOME, key=KEY, aggregate=capped)[0]
        mean = flat(honest())[~SOME].mean(0)
        moved = flat(jax.tree.map(lambda x: np.asarray(x)[None], capped(crafted)))[0]
        return float(((moved - mean) ** 2).sum())

    assert gain(20) > 1.2 * gain(1)


@pytest.mark.parametrize("rule", sorted({*aggregators.names()} - {"foolsgold"}))
def test_adaptive_works_with_every_rule(rule):
    """What it sends moves the result no less than the honest updates of the malicious clients do.

    FoolsGold adds rows up, and takes the weight of equal ones, which all malicious clients send.
    """
    made = built_in(rule)
    state = made.init(jax.tree.map(lambda x: x[0], honest()))
    context = known(made, honest())

    @jax.jit
    def result(updates):
        return made.aggregate(updates, state, key=KEY, num_malicious=4, **context)[0]

    def moved(updates) -> float:
        mean = flat(updates)[~SOME].mean(0)
        return float(np.linalg.norm(flat(jax.tree.map(lambda x: np.asarray(x)[None], result(updates)))[0] - mean))

    attack = attacks.adaptive(objective="distance", num_magnitudes=4, num_refinements=4)
    crafted = jax.jit(lambda u: attack.craft(u, (), SOME, key=KEY, aggregate=result)[0])(honest())
    # The search is coarse, and what is honest is not among what it tries.
    assert moved(crafted) >= 0.8 * moved(honest())
    assert np.isfinite(flat(crafted)).all()
