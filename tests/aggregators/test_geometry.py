"""What is particular to the rules that look at distances, angles and norms, beside the battery and the recordings."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, build
from lasa_jax import config as configs
from lasa_jax.aggregators import Context
from lasa_jax.aggregators.flame import majority_component
from lasa_jax.aggregators.subsets import smallest
from lasa_jax.errors import InputError
from lasa_jax.testing import NUM_CLIENTS, assert_close, flat_rows, honest, known, rules
from lasa_jax.testing.stacks import filled, first_row, marked

KEY = jax.random.key(0)


def kept(info) -> np.ndarray:
    """The clients with a weight, of rules that choose whole clients."""
    return np.flatnonzero(np.asarray(info.weight["bias"]))


class TestSubsets:
    @pytest.mark.parametrize("size", [0, 1, 3, 6])
    def test_every_subset_is_tried_and_of_equal_ones_the_first_is_taken(self, size):
        usable = np.array([True, False, True, True, True, False, True, True])
        worth = np.random.default_rng(0).random((8, 8))
        find = jax.jit(
            lambda size, usable: smallest(lambda c: jnp.sum(jnp.where(c[:, None] & c, worth, 0)), usable, size)
        )
        subsets = list(itertools.combinations(np.flatnonzero(usable), size))
        wanted = min(subsets, key=lambda c: worth[np.ix_(c, c)].sum())
        assert tuple(np.flatnonzero(find(size, usable))) == wanted
        first = jax.jit(lambda size, usable: smallest(lambda c: jnp.float32(0), usable, size))(size, usable)
        assert tuple(np.flatnonzero(first)) == subsets[0]

    def test_groups_after_the_first_count(self):
        """C(16, 7) are 11,440, in groups of 256; the last subset is the best."""
        best = smallest(
            lambda chosen: -jnp.sum(jnp.where(chosen, 2.0 ** jnp.arange(16), 0)), jnp.ones(16, bool), jnp.int32(7)
        )
        assert np.flatnonzero(best).tolist() == list(range(9, 16))

    @pytest.mark.parametrize("name", aggregators.OF_SUBSETS)
    def test_a_client_that_is_not_finite_is_in_none(self, name):
        updates = filled(honest(), marked([2, 9]), np.nan)
        _, info = rules.run(aggregators.create(name), updates, num_malicious=1)
        assert kept(info).tolist() == [i for i in range(NUM_CLIENTS) if i not in (2, 9)]

    def test_what_build_refuses(self):
        settings = {"aggregator.name": "mda", "clients_per_round": 30, "num_clients": 60, "attack_ratio": 0.25}
        config = configs.updated(configs.paper("digits"), settings)
        line = "config.aggregator.name = 'mda': too many subsets, 2.0e+06 of 23 out of 30 clients; allowed are 200,000"
        for prepare in (build.check_subsets, build.prepare):
            with pytest.raises(InputError, match=re.escape(line)):
                prepare(configs.resolve(config))
        for allowed in (
            {"aggregator.assumed_malicious": 3},
            {"aggregator.mda.assumed_malicious": 3},
            {"clients_per_round": 15},
            {"preaggregators.names": "bucketing"},
            {"aggregator.name": "krum"},
        ):
            build.check_subsets(configs.resolve(configs.updated(config, allowed)))


class TestFlame:
    def test_noise_is_a_share_of_the_median_norm(self):
        updates = {"w": np.random.default_rng(0).standard_normal((5, 200, 100)).astype(np.float32)}
        median = np.median(np.linalg.norm(updates["w"].reshape(5, -1), axis=1))
        factors, key = jnp.array([0.0, 0.001, 0.02]), jax.random.key(3)

        @jax.jit
        def run(factor):
            rule = aggregators.flame("updates", noise_factor=factor)
            return rule.aggregate(updates, (), key=key, num_malicious=0)[0]["w"]

        plain, *noised = map(run, factors)
        for factor, update in zip(factors[1:], noised, strict=True):
            noise = np.asarray(update - plain) / (float(factor) * median)
            assert abs(noise.mean()) < 0.03
            assert abs(noise.std() - 1) < 0.03

    def test_layers_have_different_noise(self):
        updates = {"a": np.ones((3, 50), np.float32), "b": np.ones((3, 50), np.float32)}
        update, _ = rules.run(aggregators.flame("updates", noise_factor=0.1), updates)
        assert not np.allclose(update["a"], update["b"])

    def test_a_component_of_more_than_half(self):
        """Four clients in a chain, each near the next, before three that are all as near to one another."""
        distances = np.full((7, 7), 2.0)
        for i in range(3):
            distances[i, i + 1] = distances[i + 1, i] = 0.5
        distances[4:, 4:] = 0.1
        np.fill_diagonal(distances, 0)
        members, height = majority_component(jnp.asarray(distances), jnp.ones(7, bool))
        assert np.flatnonzero(members).tolist() == [0, 1, 2, 3]
        assert height == 0.5

    def test_where_a_majority_is_not_finite_the_others_are_averaged(self):
        updates = filled(honest(), marked(range(10)), np.nan)
        update, info = rules.run(aggregators.flame(noise_factor=0.0), updates)
        assert kept(info).tolist() == list(range(10, 16))
        assert np.isinf(info.height)
        assert np.isfinite(update["bias"]).all()

    def test_what_it_needs(self):
        line = "flame: context without what it needs, allowed is context=aggregators.Context(params=...)"
        with pytest.raises(InputError, match=re.escape(line)):
            aggregators.flame().aggregate(honest(), (), key=KEY, num_malicious=0)
        assert not aggregators.flame("updates").needs


class TestMonna:
    def test_the_place_of_the_trusted_client_may_be_traced(self):
        x = flat_rows(honest())
        distances = np.linalg.norm(x[:, None] - x[None], axis=-1)

        @jax.jit
        def run(place, present):
            rule = aggregators.monna(trusted=place)
            return rule.aggregate(honest(), (), key=KEY, num_malicious=10, present=present)[2].weight

        for place in (0, 7, 15):
            nearest = np.sort(np.argsort(distances[place])[:6])
            assert np.flatnonzero(run(place, np.ones(16, bool))["bias"]).tolist() == nearest.tolist()
        assert not np.any(run(3, np.arange(16) != 3)["bias"])  # absent: nobody can be compared with it

    def test_a_reference_that_is_not_finite_lets_nobody_pass(self):
        updates = filled(honest(), marked([2]), np.inf)
        update, _ = rules.run(aggregators.monna(trusted=2), updates)
        assert not any(np.any(x) for x in update.values())

    def test_what_it_refuses(self):
        with pytest.raises(InputError, match="trusted = 16: allowed is 0 <= trusted <= 15, a whole number"):
            rules.eager(aggregators.monna(trusted=16), honest())
        line = "monna: context without what it needs, allowed is context=aggregators.Context(server_update=...)"
        with pytest.raises(InputError, match=re.escape(line)):
            aggregators.monna().aggregate(honest(), (), key=KEY, num_malicious=0)


class TestSignGuardSim:
    def test_after_the_first_rounds_clients_are_compared_with_the_last_result(self):
        """A client that points the other way has the similarity 0 then, whoever is near it."""
        rule = aggregators.signguard_sim(coordinate_fraction=1.0, rounds_by_pairs=1)
        state = rule.init(first_row(honest()))
        for index in range(2):
            update, state, info = rule.aggregate(honest(), state, key=KEY, num_malicious=0)
            assert state.rounds == index + 1
            assert_close(state.last, update, atol=0)
        turned = honest()
        for x in turned.values():
            x[:3] *= -1
        _, _, info = rule.aggregate(turned, state, key=KEY, num_malicious=0)
        assert not np.asarray(info.features)[:3, 3].any()
        assert np.asarray(info.features)[3:, 3].min() > 0
        assert not np.asarray(info.in_cluster)[:3].any()


class TestRobustLearningRate:
    def test_one_nan_has_no_sign(self):
        """It takes one voice away, and does not turn the step around."""
        updates = {"w": np.array([[1.0], [2.0], [3.0], [4.0], [np.nan]], np.float32)}
        update, _ = rules.run(aggregators.robust_learning_rate(threshold=4.0, base="median"), updates)
        assert update["w"] == 3
        update, _ = rules.run(aggregators.robust_learning_rate(threshold=5.0, base="median"), updates)
        assert update["w"] == -3

    def test_clients_count_by_their_examples(self):
        rule = aggregators.robust_learning_rate(threshold=2.0, base="weighted_mean")
        updates = {"w": np.array([[1.0], [5.0]], np.float32)}
        context = Context(sizes=jnp.array([3, 1], jnp.int32))
        update, _, info = rule.aggregate(updates, (), key=KEY, num_malicious=0, context=context)
        assert update["w"] == 2
        assert info.weight["w"].tolist() == [0.75, 0.25]

    def test_a_bucket_is_as_large_as_its_clients(self):
        rule = aggregators.robust_learning_rate(threshold=0.0, base="weighted_mean")
        rule = aggregators.chain(aggregators.bucketing(2), rule)
        sizes = jnp.array([1, 2, 3, 100], jnp.int32)
        update, _, _ = rule.aggregate({"id": jnp.eye(4)}, (), key=KEY, num_malicious=0, context=Context(sizes=sizes))
        pair = np.asarray(update["id"]) == update["id"][3]  # the clients in the bucket of the large one
        assert pair.sum() == 2
        np.testing.assert_allclose(update["id"][pair].sum(), np.asarray(sizes)[pair].sum() / 106, rtol=1e-6)


class TestMultiMetric:
    def test_who_cannot_be_told_apart_is_averaged(self):
        for updates in (honest(n=3), jax.tree.map(lambda x: np.repeat(x[:1], 8, axis=0), honest())):
            _, info = rules.run(aggregators.multi_metric(), updates)
            assert len(kept(info)) == len(updates["bias"])

    @pytest.mark.parametrize("size", [1e2, 1e6, 1e12, 1e18])
    def test_clients_far_out_are_dropped(self, size):
        """However far: beside them the others differ by less than float32 tells."""
        updates = filled(honest(), marked([4, 11]), size)
        _, info = rules.run(aggregators.multi_metric(), updates)
        assert len(kept(info)) == 4
        assert not {4, 11} & set(kept(info).tolist())


def test_caf_drops_two_groups_far_out_in_different_directions():
    updates = honest()
    updates["bias"][:2] = 1e6
    updates["kernel"][2] = -1e4
    update, info = rules.run(aggregators.caf(), updates)
    assert np.asarray(info.weight["bias"])[:3].max() < 1e-3
    assert np.linalg.norm(update["bias"] - honest()["bias"][3:].mean(0)) < 0.5


def test_arc_takes_what_is_not_finite_for_the_longest():
    """Of 8 clients one is clipped for f = 1 and three for f = 2; one that is not finite is among them, and becomes zero."""
    updates = {"w": np.diag(np.arange(1.0, 9.0)).astype(np.float32)}
    updates["w"][7] = np.inf
    for f, wanted in ((0, [1, 2, 3, 4, 5, 6, 7, 0]), (1, [1, 2, 3, 4, 5, 6, 7, 0]), (2, [1, 2, 3, 4, 5, 5, 5, 0])):
        step = aggregators.arc(f)
        rows = aggregators.Rows.of(updates)
        norms = np.linalg.norm(step(rows, key=KEY, num_malicious=0).written["w"], axis=1)
        np.testing.assert_allclose(norms, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: aggregators.mda(-1), "assumed_malicious = -1: allowed is 0 <= assumed_malicious, a whole number"),
        (lambda: aggregators.smea(1.5), "assumed_malicious = 1.5"),
        (lambda: aggregators.caf(-1), "assumed_malicious = -1"),
        (lambda: aggregators.cge(-1), "assumed_malicious = -1"),
        (lambda: aggregators.meamed(-1), "assumed_malicious = -1"),
        (lambda: aggregators.arc(-1), "assumed_malicious = -1"),
        (lambda: aggregators.monna(assumed_malicious=-1), "assumed_malicious = -1"),
        (lambda: aggregators.monna(trusted=-1), "trusted = -1: allowed is 0 <= trusted, a whole number"),
        (lambda: aggregators.flame("clients"), "clustered = 'clients': allowed are models, updates"),
        (lambda: aggregators.flame(noise_factor=-1.0), "noise_factor = -1.0: allowed is 0 <= noise_factor"),
        (lambda: aggregators.multi_metric(0.0), "share_kept = 0.0: allowed is 0 < share_kept <= 1"),
        (lambda: aggregators.robust_learning_rate(-1.0), "threshold = -1.0: allowed is 0 <= threshold"),
        (lambda: aggregators.robust_learning_rate(base="mode"), "base = 'mode': allowed are mean, weighted_mean"),
        (lambda: aggregators.signguard_sim(lower=3.0, upper=2.0), "upper = 2.0: allowed is 3 < upper"),
        (lambda: aggregators.signguard_sim(rounds_by_pairs=-1), "rounds_by_pairs = -1"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make()


def test_what_the_laws_give_is_what_they_need():
    for name in aggregators.names():
        rule = aggregators.create(name)
        context = known(rule, honest()).get("context", Context())
        assert {field for field, value in context._asdict().items() if value is not None} == rule.needs
