"""One battery through which every attack goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import attacks
from lasa_jax.federated import make_mesh
from tests.test_battery_aggregators import SHAPES, honest

N = 16
KEY = jax.random.key(0)
ATTACKS = {
    "byzmean": attacks.byzmean(),
    "byzmean, published": attacks.byzmean(variant="published", knowledge="all"),
    "lie": attacks.lie(),
    "lie, colluders": attacks.lie(knowledge="colluders"),
    "noise": attacks.noise(),
    "none": attacks.none(),
    "random": attacks.random(),
    "sign_flip": attacks.sign_flip(),
}
CASES = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
MASKS = {"none": [], "one": [6], "some": [1, 4, 5, 11], "most": list(range(3, 16)), "all": list(range(16))}


def mask(name: str) -> np.ndarray:
    return np.isin(np.arange(N), MASKS[name])


@functools.cache
def compiled(attack: attacks.Attack):
    """One executable an attack and a number of clients, so that the battery does not spend its time compiling."""

    def run(updates, malicious, present):
        state = attack.init(jax.tree.map(lambda x: x[0], updates))
        return attack.craft(updates, state, malicious, key=KEY, present=present)[0]

    return jax.jit(run)


def craft(attack: attacks.Attack, malicious, updates=None, present=None):
    updates = honest() if updates is None else updates
    return compiled(attack)(updates, malicious, np.ones(len(malicious), bool) if present is None else present)


def test_every_attack_is_in_the_battery():
    assert sorted({name.split(",")[0] for name in ATTACKS}) == attacks.names()


@CASES
@pytest.mark.parametrize("malicious", MASKS)
def test_only_malicious_rows_change_and_stay_finite(attack, malicious):
    which = mask(malicious)
    crafted = craft(attack, which)
    for name, x in honest().items():
        np.testing.assert_array_equal(crafted[name][~which], x[~which])
        assert np.isfinite(crafted[name]).all()
        lone_average = attack is ATTACKS["lie, colluders"] and malicious == "one"  # the mean of one row is that row
        if attack is not ATTACKS["none"] and which.any() and not lone_average:
            assert not np.allclose(crafted[name][which], x[which])


@CASES
def test_absent_rows_are_neither_read_nor_written(attack):
    present = ~np.isin(np.arange(N), [0, 4, 15])
    which = mask("some")
    updates = honest()
    for x in updates.values():
        x[~present] = np.nan
    crafted = craft(attack, which, updates, present)
    compact = craft(attack, which[present], jax.tree.map(lambda x: x[present], honest()))
    for name, x in updates.items():
        np.testing.assert_array_equal(crafted[name][~present], x[~present])
        assert np.isfinite(crafted[name][present]).all()
        if attack not in (ATTACKS["noise"], ATTACKS["random"]):  # their draws are by row
            np.testing.assert_allclose(crafted[name][present], compact[name], atol=1e-5)


@CASES
def test_eight_devices_give_the_result_of_one(attack):
    wanted = craft(attack, mask("some"))
    with jax.set_mesh(make_mesh()):
        actual = craft(attack, mask("some"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, wanted)


@CASES
def test_vmap_over_runs_equals_a_loop(attack):
    masks = np.stack([mask(name) for name in ("none", "one", "some")])
    runs = [honest(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *runs)
    together = jax.jit(jax.vmap(lambda u, m: attack.craft(u, (), m, key=KEY)[0]))(stacked, masks)
    for index in range(3):
        alone = craft(attack, masks[index], runs[index])
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, atol=1e-5), together, alone)


@CASES
def test_labels(attack):
    labels = jnp.arange(5)
    np.testing.assert_array_equal(attack.poison_labels(labels, 5), labels)  # none of these poisons data


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
    which = mask("some")
    crafted = craft(attacks.lie(z=z), which)
    for name, x in honest().items():
        benign = x[~which].astype(np.float64)
        wanted = benign.mean(0) - z * benign.std(0, ddof=1)
        for row in crafted[name][which]:
            np.testing.assert_allclose(row, wanted, atol=1e-6)


def test_colluders_know_only_their_own():
    which = mask("some")
    updates = honest()
    first = craft(attacks.lie(knowledge="colluders"), which, updates)
    changed = jax.tree.map(lambda x: np.where(which.reshape((-1,) + (1,) * (x.ndim - 1)), x, 7 * x), updates)
    second = craft(attacks.lie(knowledge="colluders"), which, changed)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[which], b[which]), first, second)


def test_noise_is_added_and_random_replaces():
    updates = {"w": np.full((N, 200, 100), 3.0, np.float32)}
    noisy = craft(attacks.noise(std=0.5), mask("some"), updates)["w"][mask("some")]
    drawn = craft(attacks.random(std=0.5), mask("some"), updates)["w"][mask("some")]
    assert abs(noisy.mean() - 3) < 0.01
    assert abs(drawn.mean()) < 0.01
    assert abs(noisy.std() - 0.5) < 0.01
    assert abs(drawn.std() - 0.5) < 0.01
    assert len({float(row[0, 0]) for row in drawn}) == 4  # a fresh draw a client


def test_z_and_std_may_be_traced():
    traces = []

    @jax.jit
    def run(z, std):
        traces.append(1)
        lie = attacks.lie(z=z).craft(honest(), (), mask("some"), key=KEY)[0]
        return lie, attacks.noise(std=std).craft(honest(), (), mask("some"), key=KEY)[0]

    jax.block_until_ready([run(0.1, 0.2), run(0.3, 0.4)])
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("lies", {}, "did you mean 'lie'"),
        ("lie", {"zed": 1}, "no parameter 'zed': allowed are z, knowledge"),
        ("lie", {"z": float("nan")}, "z = nan"),
        ("lie", {"knowledge": "nothing"}, "allowed are benign, colluders, all"),
        ("byzmean", {"variant": "other"}, "allowed are paper, published"),
        ("noise", {"std": -1.0}, "allowed is 0 <= std"),
    ],
)
def test_refuses(name, parameters, message):
    with pytest.raises(ValueError, match=message):
        attacks.create(name, **parameters)
