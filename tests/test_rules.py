"""What is particular to one rule. What all share is in the battery."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import MeanShift, estimate_bandwidth

from lasa_jax import aggregators
from lasa_jax.aggregators.signguard import largest_cluster
from tests.test_battery_aggregators import KEY, N, as_layers, assert_close, flat_rows, honest

STACK = {"a": jax.ShapeDtypeStruct((50, 300, 300), np.float32), "b": jax.ShapeDtypeStruct((50, 300), np.float32)}
STACK_BYTES = 4 * 50 * 301 * 300


@pytest.mark.parametrize("name", aggregators.names())
def test_no_rule_copies_the_stack(name):
    """Temporaries are a few updates, not a second (n, d) array, and nothing sorts over the coordinates."""
    rule = aggregators.RULES[name]()
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), STACK)
    state = jax.eval_shape(rule.init, params)
    compiled = jax.jit(lambda u, s: rule.aggregate(u, s, key=KEY, num_malicious=10)).lower(STACK, state).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * STACK_BYTES
    sorts = [line for line in compiled.as_text().splitlines() if " sort(" in line]
    assert not any("90000" in line or "90300" in line for line in sorts)


@pytest.mark.parametrize(
    ("name", "numbers", "n", "used"),
    [
        ("trimmed_mean", {}, 16, 7),  # (n - 1) // 2
        ("trimmed_mean", {"num_trimmed": 2}, 16, 2),
        ("trimmed_mean", {"variant": "published"}, 16, 7),
        ("krum", {}, 16, 6),  # (n - 3) // 2
        ("multi_krum", {}, 16, 6),
        ("bulyan", {}, 16, 3),  # (n - 3) // 4
        ("bulyan", {"assumed_malicious": 1}, 16, 1),
        ("dnc", {}, 16, 7),
        ("krum", {}, 2, 0),
        ("bulyan", {}, 6, 0),
        ("trimmed_mean", {}, 1, 0),
    ],
)
def test_the_assumed_number_is_limited_and_recorded(name, numbers, n, used):
    """A server that assumes more than the rule can stand gets the rule at its limit, and is told so."""
    _, _, info = aggregators.create(name, **numbers).aggregate(honest(n=n), (), key=KEY, num_malicious=100)
    assert info.num_malicious == used


def rounds(rule: aggregators.Aggregator, count: int = 4):
    """Updates and results of some rounds with the state carried over, flat."""
    state = rule.init(jax.tree.map(lambda x: x[0], honest()))
    step = jax.jit(lambda u, s: rule.aggregate(u, s, key=KEY, num_malicious=0)[:2])
    for seed in range(count):
        update, state = step(honest(seed), state)
        yield flat_rows(honest(seed)), flat_rows(jax.tree.map(lambda x: x[None], update))[0]


def test_sparsefed_carries_momentum_and_error():
    momentum, error = np.zeros(107), np.zeros(107)
    for x, result in rounds(aggregators.sparsefed(sparsity_level=0.8, momentum=0.5)):
        momentum = 0.5 * momentum + x.mean(0)
        error = error + momentum
        top = np.where(np.abs(error) >= np.sort(np.abs(error))[-int(107 * 0.2)], error, 0)
        error = error - top
        np.testing.assert_allclose(result, top, atol=1e-6)


def test_sparsefed_as_published_forgets():
    for x, result in rounds(aggregators.sparsefed(sparsity_level=0.8, variant="published")):
        mean = x.mean(0)
        top = np.where(np.abs(mean) >= np.sort(np.abs(mean))[-int(107 * 0.2)], mean, 0)
        np.testing.assert_allclose(result, top, atol=1e-6)


@pytest.mark.parametrize("iterations", [1, 3])
def test_centered_clipping_starts_from_the_round_before(iterations):
    v = np.zeros(107)
    for x, result in rounds(aggregators.centered_clipping(clip_radius=2.0, num_iterations=iterations)):
        for _ in range(iterations):
            distance = np.linalg.norm(x - v, axis=1)
            v = v + ((x - v) * np.minimum(1, 2 / distance)[:, None]).mean(0)
        np.testing.assert_allclose(result, v, atol=2e-6)


@pytest.mark.parametrize("seed", range(12))
def test_largest_cluster_is_scikit_learns(seed):
    """Blobs of random number, size and spread, as signs of honest and malicious clients are."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 20, size=rng.integers(1, 5))
    points = np.concatenate([rng.random(3) + 0.1 * rng.random() * rng.standard_normal((size, 3)) for size in sizes])
    points = rng.permutation(points).astype(np.float32)
    bandwidth = estimate_bandwidth(points, quantile=0.5)
    labels = MeanShift(bandwidth=bandwidth, cluster_all=False).fit(points).labels_
    counts = np.bincount(labels[labels >= 0])
    ours = np.asarray(CLUSTER(points, np.ones(len(points), bool)))
    if (counts == counts.max()).sum() == 1:
        np.testing.assert_array_equal(ours, labels == counts.argmax())
    else:  # which of two equal ones comes first is arbitrary
        assert ours.sum() == counts.max()
    padded = np.concatenate([points, np.full((5, 3), 7, np.float32)])
    present = np.arange(len(padded)) < len(points)
    np.testing.assert_array_equal(CLUSTER(padded, present), np.concatenate([ours, np.zeros(5, bool)]))


CLUSTER = jax.jit(largest_cluster)


def test_signguard_drops_flipped_signs_and_odd_norms():
    rng = np.random.default_rng(0)
    updates = {"w": (0.4 + 0.5 * rng.standard_normal((N, 40, 50))).astype(np.float32)}
    updates["w"][:3] *= -1
    updates["w"][3] *= 10
    updates["w"][4] *= 0.01
    _, _, info = aggregators.signguard().aggregate(updates, (), key=KEY, num_malicious=0)
    np.testing.assert_array_equal(info.in_band, ~np.isin(np.arange(N), [3, 4]))
    assert not np.asarray(info.in_cluster)[:3].any()
    np.testing.assert_array_equal(np.asarray(info.weight["w"]) > 0, np.arange(N) >= 5)


@pytest.mark.parametrize("fraction", [0.1, 0.37, 1.0])
def test_signguard_looks_at_that_share_of_the_coordinates(fraction):
    from lasa_jax.aggregators.signguard import _random_part, _window

    params = jax.tree.map(lambda x: x[0], honest())
    drawn = [_random_part(params, jax.random.key(seed), fraction) for seed in range(2)]
    counts = [
        sum(int(np.sum(x)) for x in jax.tree.leaves(part)) for part in (*drawn, _window(params, KEY, fraction, 5))
    ]
    wanted = int(fraction * 107)
    assert counts == [wanted, wanted, wanted if fraction < 1 else 102]  # the window ends with the update
    if fraction < 1:
        assert any((a != b).any() for a, b in zip(*(jax.tree.leaves(part) for part in drawn), strict=True))


def test_dnc_keeps_who_is_kept_every_time():
    """Two clients stick out in different coordinates; each draw sees one of the two."""
    x = np.zeros((N, 40), np.float32)
    x += 0.01 * np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    x[2, :20] += 5
    x[7, 20:] += 5
    dropped = set()
    for part in (jnp.arange(20), jnp.arange(20, 40)):
        _, _, info = aggregators.dnc(coordinates=part).aggregate({"w": x}, (), key=KEY, num_malicious=1)
        dropped |= set(np.flatnonzero(np.asarray(info.weight["w"]) == 0).tolist())
    assert dropped == {2, 7}
    many = aggregators.dnc(num_coordinates=15, num_iterations=20)
    _, _, info = many.aggregate({"w": x}, (), key=KEY, num_malicious=1)
    assert {2, 7} <= set(np.flatnonzero(np.asarray(info.weight["w"]) == 0).tolist())


def test_dnc_with_nobody_left_changes_nothing():
    update, _, info = aggregators.dnc(filter_fraction=10.0).aggregate(honest(), (), key=KEY, num_malicious=5)
    assert not any(np.asarray(x).any() for x in (*update.values(), *info.weight.values()))


def test_multi_krum_of_one_is_krum_and_of_all_is_the_mean():
    krum, _, _ = aggregators.krum().aggregate(honest(), (), key=KEY, num_malicious=3)
    one, _, _ = aggregators.multi_krum(num_selected=1).aggregate(honest(), (), key=KEY, num_malicious=3)
    assert_close(one, krum, atol=0)
    everybody, _, _ = aggregators.multi_krum(num_selected=N).aggregate(honest(), (), key=KEY, num_malicious=3)
    assert_close(everybody, as_layers(flat_rows(honest()).mean(0)))


def test_geometric_median_leaves_far_clients_out_with_refinements():
    updates = honest()
    for x in updates.values():
        x[:3] += 20
    plain, _, _ = aggregators.geometric_median().aggregate(updates, (), key=KEY, num_malicious=0)
    refined, _, info = aggregators.geometric_median(refinements=2).aggregate(updates, (), key=KEY, num_malicious=0)
    benign = flat_rows(updates)[3:].mean(0)
    assert (np.asarray(info.weight["bias"])[:3] < 1e-6).all()

    def off(update: dict) -> float:
        return float(np.linalg.norm(flat_rows(jax.tree.map(lambda x: x[None], update))[0] - benign))

    assert off(refined) < 0.8 * off(plain)
