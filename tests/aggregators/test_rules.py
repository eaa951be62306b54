"""What is particular to one rule. What all share is in the battery."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import MeanShift, estimate_bandwidth

from lasa_jax import aggregators
from lasa_jax.aggregators import Rows
from lasa_jax.aggregators.dnc import _gather
from lasa_jax.aggregators.signguard import largest_cluster
from lasa_jax.testing import NUM_CLIENTS as N
from lasa_jax.testing import as_layers, assert_close, flat_rows, honest

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("name", "numbers", "n", "used"),
    [
        ("trimmed_mean", {}, 16, 7),  # (n - 1) // 2
        ("trimmed_mean", {"num_trimmed": 2}, 16, 2),
        ("trimmed_mean", {"variant": "official"}, 16, 7),
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


def test_sparsefed_as_in_the_official_code_forgets():
    for x, result in rounds(aggregators.sparsefed(sparsity_level=0.8, variant="official")):
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


@pytest.mark.parametrize("binned", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_largest_cluster_is_scikit_learns(seed, binned):
    """Blobs of random number, size and spread, as signs of honest and malicious clients are."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 20, size=rng.integers(1, 5))
    points = np.concatenate([rng.random(3) + 0.1 * rng.random() * rng.standard_normal((size, 3)) for size in sizes])
    points = rng.permutation(points).astype(np.float32)
    padded = np.concatenate([points, np.full((80 - len(points), 3), 7, np.float32)])  # to one shape, compiled once
    present = np.arange(len(padded)) < len(points)
    ours = np.asarray(CLUSTER[binned](padded, present))
    assert not ours[len(points) :].any()
    assert_is_scikit_learns(ours[: len(points)], points, binned)


@pytest.mark.parametrize("binned", [False, True])
def test_clusters_of_25_clients_are_scikit_learns(binned):
    """120 sets of sign shares. Where bins are the starts, a third of them has another cluster than without."""
    sets = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        positive = np.clip(0.5 + rng.normal(0, 0.05, 25) - 0.15 * (np.arange(25) < rng.integers(0, 8)), 0, 1)
        zero = rng.random(25) * 0.1
        shares = np.stack([positive * (1 - zero), zero, (1 - positive) * (1 - zero)], axis=1)
        sets.append((shares / shares.max(axis=0)).astype(np.float32))
    ours = np.asarray(
        jax.jit(jax.vmap(lambda x: largest_cluster(x, jnp.ones(25, bool), binned=binned)))(np.stack(sets))
    )
    for found, points in zip(ours, sets, strict=True):
        assert_is_scikit_learns(found, points, binned)


def assert_is_scikit_learns(found, points, binned):
    bandwidth = estimate_bandwidth(points, quantile=0.5)
    labels = MeanShift(bandwidth=bandwidth, bin_seeding=binned, cluster_all=False).fit(points).labels_
    counts = np.bincount(labels[labels >= 0])
    if (counts == counts.max()).sum() == 1:
        np.testing.assert_array_equal(found, labels == counts.argmax())
    else:  # which of two equal ones comes first is arbitrary
        assert found.sum() == counts.max()


CLUSTER = {binned: jax.jit(functools.partial(largest_cluster, binned=binned)) for binned in (False, True)}


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
    window = _window(params, KEY, fraction, 5 if fraction < 1 else 0)
    counts = [sum(int(np.sum(x)) for x in jax.tree.leaves(part)) for part in (*drawn, window)]
    assert counts == [int(fraction * 107)] * 3
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


@pytest.mark.parametrize("seed", range(5))
def test_dnc_of_identical_clients_is_what_they_send(seed):
    """Their scores are equal, not rounding by which each iteration would drop another."""
    row = np.random.default_rng(seed).standard_normal(20_000).astype(np.float32)  # more than are drawn
    update, *_ = aggregators.dnc().aggregate({"w": np.stack([row] * 3)}, (), key=KEY, num_malicious=1)
    np.testing.assert_allclose(update["w"], row, rtol=1e-6)


def test_dnc_iterations_that_draw_all_coordinates_agree():
    """One attacker so far out that the scores of the others are rounding: as many as asked are dropped, not all."""
    x = np.random.default_rng(0).standard_normal((7, 50)).astype(np.float32)
    x[0] *= 1e10
    _, _, info = aggregators.dnc().aggregate({"w": x}, (), key=KEY, num_malicious=3)
    assert info.weight["w"][0] == 0
    assert np.sum(info.weight["w"] > 0) == 4


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


def test_geometric_median_of_identical_clients_is_not_moved_by_one_far_out():
    """Found by the fuzz: with no unit of distance, the far client's weight of 1e-8 passed for converged."""
    updates = {"w": np.full((5, 3), 1e-3, np.float32)}
    updates["w"][2] = 1e7
    update, *_ = aggregators.geometric_median().aggregate(updates, (), key=KEY, num_malicious=1)
    np.testing.assert_allclose(update["w"], 1e-3, atol=2e-6)


def test_geometric_median_where_half_of_the_clients_are_one_point():
    """One of the other half far out has no weight, though the median distance is zero."""
    x = np.zeros((6, 40), np.float32)
    x[3:5] = 1e-4 * np.random.default_rng(0).standard_normal((2, 40))
    x[5] = 1e15
    update, _, info = aggregators.geometric_median().aggregate({"w": x}, (), key=KEY, num_malicious=1)
    assert info.weight["w"][5] < 1e-15
    assert np.linalg.norm(update["w"]) < np.linalg.norm(x[3])


def test_dnc_overlooks_an_attacker_in_the_shadow_of_another():
    """Why its docstring gives no factor for attackers that differ; the smaller one alone is seen."""
    updates = {"w": np.random.default_rng(0).standard_normal((9, 8)).astype(np.float32)}
    updates["w"][:2] = 0
    updates["w"][1, :2] = 1e6, 1e4  # a little towards the other, so nearer to the middle than the benign are
    for largest, is_dropped in ((0.0, True), (1e8, False)):
        updates["w"][0, 0] = largest
        _, _, info = aggregators.dnc().aggregate(updates, (), key=KEY, num_malicious=2)
        assert (info.weight["w"][1] == 0) == is_dropped


def test_geometric_median_stays_where_the_exponentials_vanish():
    updates = jax.tree.map(lambda x: 1000 * x, honest())
    plain, _, _ = aggregators.geometric_median().aggregate(updates, (), key=KEY, num_malicious=0)
    refined, _, _ = aggregators.geometric_median(refinements=2).aggregate(updates, (), key=KEY, num_malicious=0)
    assert_close(refined, plain, atol=0)


def test_signguard_averages_the_band_where_it_and_the_cluster_share_nobody():
    """Two clients of opposite signs: neither is in a cluster that is larger than the other's."""
    rng = np.random.default_rng(0)
    signs = np.where(np.arange(N) < 10, 1, -1).astype(np.float32)
    updates = {"w": signs[:, None, None] * (1 + 0.1 * rng.random((N, 20, 20))).astype(np.float32)}
    updates["w"][:10] *= 1000  # the cluster is out of the band
    update, _, info = aggregators.signguard(variant="official", upper=100.0, lower=0.0).aggregate(
        {"w": np.concatenate([updates["w"][:10], updates["w"][10:], updates["w"][10:]])}, (), key=KEY, num_malicious=0
    )
    assert not (np.asarray(info.in_band) & np.asarray(info.in_cluster))[:10].any()
    assert np.isfinite(update["w"]).all()


@pytest.mark.parametrize("rule", ["krum", "multi_krum", "bulyan", "geometric_median"])
def test_distances_are_measured_from_an_ordinary_client(rule):
    """Honest updates share a large part, and an attacker of middle norm lies opposite: measured from it, what tells the
    honest apart would be rounding."""
    rng = np.random.default_rng(0)
    common = rng.standard_normal(300).astype(np.float32) * 1000
    x = (common + 0.1 * rng.standard_normal((N, 300))).astype(np.float32)
    norms = np.linalg.norm(x[4:], axis=1)
    x[:4] = -common * (np.median(norms) / np.linalg.norm(common)) * (1 + 1e-6 * np.arange(4)[:, None])
    rows = Rows.of({"w": x})
    exact = ((x.astype(np.float64)[:, None] - x.astype(np.float64)[None, :]) ** 2).sum(-1)[4:, 4:]
    np.testing.assert_allclose(np.asarray(rows.squared_distances)[4:, 4:], exact, rtol=1e-3, atol=1e-3)
    update, _, _ = aggregators.RULES[rule]().aggregate({"w": x}, (), key=KEY, num_malicious=4)
    assert np.linalg.norm(update["w"] - common) < 5


def test_official_dnc_is_one_draw_of_a_thousand():
    updates = {"w": np.random.default_rng(0).standard_normal((N, 1500)).astype(np.float32)}
    key = jax.random.key(3)
    official = aggregators.dnc(variant="official").aggregate(updates, (), key=key, num_malicious=4)[2]
    explicit = aggregators.dnc(num_iterations=1, num_coordinates=1000).aggregate(updates, (), key=key, num_malicious=4)[
        2
    ]
    np.testing.assert_array_equal(official.score, explicit.score)
    other = aggregators.dnc(num_iterations=1, num_coordinates=999).aggregate(updates, (), key=key, num_malicious=4)[2]
    assert not np.array_equal(official.score, other.score)


def test_official_bulyan_keeps_one_of_twenty_one():
    """As recorded there: f = 5, and of 11 selected values 10 are dropped."""
    _, _, info = aggregators.bulyan(variant="official").aggregate(honest(n=21), (), key=KEY, num_malicious=0)
    assert info.num_malicious == 5
    assert np.count_nonzero(info.weight["bias"]) == 11


def test_a_filter_is_not_blinded_by_one_huge_client():
    """Its score must not become 0 because the deviation overflows, nor everybody's because it underflows."""
    for factor in (1e3, 1e10, 1e19, 1e30):
        updates = honest()
        for x in updates.values():
            x[0] *= np.float32(factor)
        _, _, info = aggregators.layer_filter(1.5, 1.5).aggregate(updates, (), key=KEY, num_malicious=0)
        assert all(weight[0] == 0 for weight in info.weight.values())
    tiny = jax.tree.map(lambda x: x * np.float32(2.0**-60), honest())
    kept = [aggregators.lasa().aggregate(u, (), key=KEY, num_malicious=0)[2].weight for u in (honest(), tiny)]
    jax.tree.map(np.testing.assert_array_equal, *kept)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aggregators.krum(assumed_malicious=2.7), "assumed_malicious = 2.7: allowed is .*, a whole number"),
        (lambda: aggregators.multi_krum(num_selected=2.5), "num_selected = 2.5"),
        (lambda: aggregators.bucketing(1.5), "bucket_size = 1.5"),
        (lambda: aggregators.centered_clipping(num_iterations=3_000_000), "num_iterations = 3000000"),
        (lambda: aggregators.signguard(lower=5.0), r"upper = 3\.0: allowed is 5 < upper"),
        (lambda: aggregators.multi_krum(num_selected=5, variant="official"), "the variant 'official' selects"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_places_outside_the_update():
    for rule, message in (
        (aggregators.signguard(window_start=10**6), "window_start = 1000000"),
        (aggregators.dnc(coordinates=jnp.array([0, 10**6])), "coordinates = "),
    ):
        with pytest.raises(ValueError, match=message):
            rule.aggregate(honest(), (), key=KEY, num_malicious=0)


def test_a_link_that_was_not_built_is_refused():
    with pytest.raises(TypeError, match="is not a pre-aggregator; one is made by a call"):
        aggregators.chain(aggregators.reject_nonfinite, aggregators.fedavg())


@pytest.mark.parametrize("sizes", [(3, 70_000, 5, 80_000, 2), (70_000, 4), (0, 70_000), (6,), (70_000,)])
def test_dnc_finds_every_coordinate(sizes):
    """Small leaves are joined, large ones are not, whatever their order."""
    row = [
        np.arange(start, start + size, dtype=np.float32)
        for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False)
    ]
    d = sum(sizes)
    coordinates = np.unique(np.r_[0, d - 1, np.random.default_rng(0).integers(0, d, 200), np.cumsum(sizes)[:-1] % d])
    np.testing.assert_array_equal(_gather(row, coordinates.astype(np.int32)), coordinates)
