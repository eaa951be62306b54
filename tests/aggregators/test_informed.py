"""Rules that weigh by size, that look at the model, and that remember clients by their ids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.aggregators import Context
from lasa_jax.aggregators.gap_statistic import sums_of_squares, two_groups
from lasa_jax.errors import InputError
from lasa_jax.testing import NUM_CLIENTS as N
from lasa_jax.testing import RULE_LAWS, as_layers, assert_close, built_in, flat_rows, honest, known, rules
from tests.aggregators.informed import foolsgold_weights

KEY = jax.random.key(0)
BY_SIZE = {
    "fedavg": aggregators.fedavg(weighting="size"),
    "geometric_median": aggregators.geometric_median(weighting="size"),
    "norm_clipped_mean": aggregators.norm_clipped_mean(5.0, weighting="size"),
    "lasa": aggregators.lasa(magnitude_radius=1.3, direction_radius=1.2, weighting="size"),
    "lasa, coordinate": aggregators.lasa(
        magnitude_radius=1.3, direction_radius=1.2, granularity="coordinate", weighting="size"
    ),
    "alignins": aggregators.alignins(1.3, 1.2, weighting="size"),
}


class TestSizes:
    @pytest.mark.parametrize("law", RULE_LAWS)
    @pytest.mark.parametrize("name", BY_SIZE)
    def test_law(self, name, law):
        if (name, law) == ("lasa, coordinate", rules.writes_no_second_stack):
            pytest.skip("writes the sparsified stack, whatever the weights")
        law(BY_SIZE[name])

    @pytest.mark.parametrize("name", BY_SIZE)
    def test_equal_sizes_are_equal_weights(self, name):
        rule = BY_SIZE[name]
        context = known(rule, honest())["context"]._replace(sizes=jnp.full(N, 7, jnp.int32))
        update = rule.aggregate(honest(), (), key=KEY, num_malicious=0, context=context)[0]
        makers = {
            "norm_clipped_mean": functools.partial(aggregators.norm_clipped_mean, 5.0),
            "alignins": functools.partial(aggregators.alignins, 1.3, 1.2),
            "fedavg": aggregators.fedavg,
            "geometric_median": aggregators.geometric_median,
        }
        lasa = functools.partial(aggregators.lasa, magnitude_radius=1.3, direction_radius=1.2)
        makers |= {"lasa": lasa, "lasa, coordinate": functools.partial(lasa, granularity="coordinate")}
        assert_close(update, rules.run(makers[name](), honest())[0], atol=2e-6)

    def test_a_client_counts_as_so_many_clients(self):
        """In a mean, and in the clients that LASA keeps of a layer."""
        sizes = 1 + np.arange(N) % 5
        x = flat_rows(honest())
        update, info = rules.run(BY_SIZE["fedavg"], honest())
        assert_close(update, as_layers((sizes[:, None] * x).sum(0) / sizes.sum()))
        np.testing.assert_allclose(info.weight["bias"], sizes / sizes.sum(), rtol=1e-6)
        _, equal = rules.run(aggregators.lasa(magnitude_radius=1.3, direction_radius=1.2), honest())
        _, info = rules.run(BY_SIZE["lasa"], honest())
        for name, weight in info.weight.items():
            kept = np.asarray(equal.weight[name]) > 0
            np.testing.assert_allclose(weight, kept * sizes / sizes[kept].sum(), rtol=1e-6)

    def test_a_bucket_is_as_large_as_its_clients(self):
        """So that the mean of bucket means, by size, is the mean of the clients of full buckets alike."""
        rule = aggregators.chain(aggregators.bucketing(2), BY_SIZE["fedavg"])
        updates, sizes = {"id": np.eye(N, dtype=np.float32)}, jnp.arange(1, N + 1, dtype=jnp.int32)
        update, _, info = rule.aggregate(updates, (), key=KEY, num_malicious=0, context=Context(sizes=sizes))
        taken = np.asarray(update["id"])
        partner = [np.flatnonzero(np.isclose(taken, taken[i], rtol=1e-5)) for i in range(N)]
        for i, pair in enumerate(partner):
            assert len(pair) >= 2
            assert taken[i] == pytest.approx(float(np.asarray(info.weight["id"])[i]), rel=1e-5)
        np.testing.assert_allclose(taken.sum(), 1, rtol=1e-5)
        assert taken.max() > 2 * taken.min()
        # With sizes whose sums tell buckets apart, each counts by the mean size of its own clients.
        sizes = jnp.asarray(2 ** np.arange(N), jnp.int32)
        told = np.asarray(rule.aggregate(updates, (), key=KEY, num_malicious=0, context=Context(sizes=sizes))[0]["id"])
        buckets = {tuple(np.flatnonzero(np.isclose(told, x, rtol=1e-4, atol=0))) for x in told}
        assert sorted(i for bucket in buckets for i in bucket) == list(range(N))
        means = {bucket: np.mean(2.0 ** np.asarray(bucket)) for bucket in buckets}
        for bucket in buckets:
            assert len(bucket) == 2
            np.testing.assert_allclose(told[list(bucket)], means[bucket] / sum(means.values()) / 2, rtol=1e-4)
        sizes = jnp.arange(1, N + 1, dtype=jnp.int32)
        # A chain in a chain knows it too.
        inner = aggregators.chain(aggregators.bucketing(2), BY_SIZE["norm_clipped_mean"])
        again = inner.aggregate(updates, (), key=KEY, num_malicious=0, context=Context(sizes=sizes))[0]
        np.testing.assert_allclose(again["id"], taken, rtol=1e-5)

    def test_nobody_with_examples_changes_nothing(self):
        context = Context(sizes=jnp.zeros(N, jnp.int32))
        update, _, info = BY_SIZE["fedavg"].aggregate(honest(), (), key=KEY, num_malicious=0, context=context)
        assert not np.any(update["bias"])
        assert not np.any(info.weight["bias"])

    def test_refuses(self):
        with pytest.raises(InputError, match="weighting = 'sizes': allowed are equal, size"):
            aggregators.fedavg(weighting="sizes")
        with pytest.raises(InputError, match=r"fedavg: context without what it needs, .*Context\(sizes=\.\.\.\)"):
            BY_SIZE["fedavg"].aggregate(honest(), (), key=KEY, num_malicious=0)


def test_a_server_that_learned_nothing_changes_nothing():
    for own in (0.0, np.nan, np.inf):
        filled = jax.tree.map(functools.partial(jnp.full_like, fill_value=own), jax.tree.map(lambda x: x[0], honest()))
        context = Context(server_update=filled)
        update, _, info = aggregators.fltrust().aggregate(honest(), (), key=KEY, num_malicious=0, context=context)
        assert not any(np.any(x) for x in update.values())
        assert not np.any(info.weight["bias"])


def test_alignins_drops_who_goes_with_the_model_or_against_the_signs():
    updates, model = honest(), jax.tree.map(lambda x: jnp.asarray(x[0]), honest(9))
    rule = aggregators.alignins()
    for name, x in updates.items():
        x[1] = 2 * model[name]
        x[2] *= -1
    _, _, info = rule.aggregate(updates, (), key=KEY, num_malicious=0, context=Context(params=model))
    assert info.weight["bias"][1] == info.weight["bias"][2] == 0
    assert info.alignment[1] == pytest.approx(1, abs=1e-5)
    assert info.sign_alignment[2] < 0.5


class TestFoolsGold:
    def test_histories_are_those_of_the_clients_who_took_part(self):
        population = 2 * N
        rule, rng = aggregators.foolsgold(num_clients=population), np.random.default_rng(0)
        step = jax.jit(lambda u, s, p, c: rule.aggregate(u, s, key=KEY, num_malicious=0, present=p, context=c))
        state = rule.init(jax.tree.map(lambda x: x[0], honest()))
        histories = np.zeros((population, flat_rows(honest()).shape[1]))
        for _ in range(4):
            updates = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in honest().items()}
            ids, present = rng.permutation(population)[:N].astype(np.int32), rng.random(N) < 0.8
            for x in updates.values():
                x[~present] = np.nan
            updates["bias"][np.flatnonzero(present)[0]] = np.inf  # one that is present and not finite
            counted = present & (np.arange(N) != np.flatnonzero(present)[0])
            update, state, info = step(updates, state, present, Context(ids=jnp.asarray(ids)))
            x = flat_rows(updates)[counted]
            capped = x / np.maximum(1, np.linalg.norm(x, axis=1))[:, None]
            histories[ids[counted]] += capped
            weights = foolsgold_weights(histories[ids[counted]])
            np.testing.assert_allclose(np.asarray(info.weight["bias"])[counted], weights, atol=2e-5)
            assert not np.asarray(info.weight["bias"])[~counted].any()
            assert_close(update, as_layers(weights @ capped), atol=1e-4)
        kept = {name: node.rows.reshape(population, -1) for name, node in zip(sorted(updates), state, strict=True)}
        np.testing.assert_allclose(flat_rows(kept), histories, atol=1e-5)

    @pytest.mark.parametrize(
        ("features", "shapes"),
        [
            ("all", [(3, 2), (3, 4, 2), (3, 5), (3, 2, 5)]),
            ("last_layer", [(3, 5), (3, 2, 5)]),
            ("params/conv", [(3, 2), (3, 4, 2)]),
        ],
    )
    def test_features(self, features, shapes):
        leaf = lambda *shape: jnp.zeros(shape, jnp.float32)  # noqa: E731
        layers = {"conv": {"bias": leaf(2), "kernel": leaf(4, 2)}, "dense": {"bias": leaf(5), "kernel": leaf(2, 5)}}
        state = aggregators.foolsgold(num_clients=3, features=features).init({"params": layers})
        assert [node.rows.shape for node in state] == shapes

    def test_clients_that_want_the_same_lose_their_weight(self):
        rule, rng = aggregators.foolsgold(num_clients=N), np.random.default_rng(0)
        updates = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in honest().items()}
        for x in updates.values():
            x[:4] = x[0] + 0.05 * x[:4]
        _, info = rules.run(rule, updates)
        assert np.asarray(info.weight["bias"])[:4].max() < 0.1
        assert np.asarray(info.weight["bias"])[4:].min() > 0.5
        # Divided, the same weights add up to 1; the sum makes as many steps as there are clients.
        _, divided = rules.run(aggregators.foolsgold(num_clients=N, combine="mean"), updates)
        total = np.asarray(info.weight["bias"]).sum()
        assert total > 5
        np.testing.assert_allclose(divided.weight["bias"], np.asarray(info.weight["bias"]) / total, rtol=1e-6)
        np.testing.assert_allclose(np.asarray(divided.weight["bias"]).sum(), 1, rtol=1e-6)

    def test_refuses(self):
        params = jax.tree.map(lambda x: x[0], honest())
        with pytest.raises(InputError, match=r"foolsgold: num_clients = None, allowed is the size of the population"):
            aggregators.foolsgold().init(params)
        with pytest.raises(InputError, match="combine = 'max': allowed are sum, mean"):
            aggregators.foolsgold(num_clients=4, combine="max")
        with pytest.raises(InputError, match="features = 'dense9': allowed are all, last_layer or how a layer begins"):
            aggregators.foolsgold(num_clients=4, features="dense9").init(params)
        with pytest.raises(InputError, match="num_clients = 0: allowed is 1 <= num_clients"):
            aggregators.foolsgold(num_clients=0)


@pytest.mark.parametrize("name", ["foolsgold", "fldetector"])
def test_rows_that_are_nobodys_are_refused(name):
    rule = aggregators.chain(aggregators.bucketing(), built_in(name))
    state = rule.init(jax.tree.map(lambda x: x[0], honest()))
    with pytest.raises(InputError, match=f"{name}: rows are mixed from several clients"):
        rule.aggregate(honest(), state, key=KEY, num_malicious=0, **known(rule, honest()))


class TestFLDetector:
    """Clients that descend a quadratic, and four that jump."""

    D, N, BAD = 12, 10, (1, 4, 6, 8)

    def played(self, rounds: int = 24, **settings):
        """For each round the model before it, the update and what the rule says; and the last state."""
        rng = np.random.default_rng(1)
        matrix = rng.standard_normal((self.D, self.D))
        matrix = matrix @ matrix.T / self.D + np.eye(self.D)
        centers = 0.3 * rng.standard_normal((self.N, self.D))
        rule = aggregators.fldetector(num_clients=self.N + 2, **settings)
        step = jax.jit(functools.partial(rule.aggregate, num_malicious=0))
        model = initial = rng.standard_normal(self.D).astype(np.float32)
        state, told = rule.init({"w": jnp.asarray(model)}), []
        ids = jnp.arange(self.N, dtype=jnp.int32) + 2
        for t in range(rounds):
            updates = (-0.05 * (model - centers) @ matrix).astype(np.float32)
            updates[list(self.BAD)] += rng.standard_normal((len(self.BAD), self.D)).astype(np.float32)
            context = Context(params={"w": jnp.asarray(model)}, ids=ids)
            update, state, info = step({"w": updates}, state, key=jax.random.key(t), context=context)
            told.append((model, updates, np.asarray(update["w"]), info))
            model = model + np.asarray(update["w"])
        return initial, told, state

    def test_finds_who_jumps_and_starts_again_without_them(self):
        # Later the gap statistic also sees groups among those who are left: their draws differ by chance.
        initial, told, state = self.played(rounds=17, start_round=8, window=3)
        restarts = [t for t, (*_, info) in enumerate(told) if info.restarts]
        assert restarts[0] >= 8
        model, _, update, info = told[restarts[0]]
        np.testing.assert_allclose(model + update, initial, atol=1e-6)
        assert not np.any(info.weight["w"])
        removed = {i for i in range(self.N) if told[-1][3].removed[i]}
        assert removed == set(self.BAD)
        good = [i for i in range(self.N) if i not in removed]
        for *_, updates, update, info in told[restarts[-1] + 1 :]:
            np.testing.assert_allclose(update, updates[good].mean(0), atol=1e-6)
            assert not np.asarray(info.weight["w"])[list(self.BAD)].any()
        assert state.rounds == len(told) - 1 - restarts[-1]

    def test_before_the_start_it_is_a_mean(self):
        _, told, _ = self.played(rounds=8, start_round=8, window=3)
        for _, updates, update, info in told:
            np.testing.assert_allclose(update, updates.mean(0), atol=1e-6)
            assert not info.restarts

    def test_who_was_absent_is_not_scored(self):
        rule = aggregators.fldetector(num_clients=6, window=3)
        params = {"w": jnp.ones(5)}
        state, rng = rule.init(params), np.random.default_rng(0)
        for t in range(5):
            present = np.array([True, True, True, t % 2 == 0, True, True])
            updates = {"w": rng.standard_normal((6, 5)).astype(np.float32)}
            context = Context(params={"w": jnp.ones(5) * (1 + t)}, ids=jnp.arange(6, dtype=jnp.int32))
            _, state, _ = rule.aggregate(updates, state, key=KEY, num_malicious=0, present=present, context=context)
        assert state.num_scores.tolist() == [3, 3, 3, 0, 3, 3]
        np.testing.assert_allclose(np.asarray(state.scores)[:, :3].sum(0), 1, rtol=1e-5)


class TestGapStatistic:
    def test_sums_of_squares_are_the_smallest(self):
        """Against every division into intervals."""
        import itertools

        rng = np.random.default_rng(0)
        for count in (1, 2, 5, 8):
            x = np.sort(rng.random(count))
            found = sums_of_squares(jnp.asarray([*x, *[0.0] * 3], jnp.float32), jnp.int32(count))
            for k in range(1, 8):
                cuts = itertools.combinations(range(1, count), min(k, count) - 1)
                wanted = min(sum(((part - part.mean()) ** 2).sum() for part in np.split(x, list(cut))) for cut in cuts)
                assert found[k - 1] == pytest.approx(wanted, abs=1e-6)

    @pytest.mark.parametrize("key", range(5))
    def test_tells_two_groups_from_one(self, key):
        rng = np.random.default_rng(key)
        low = 0.1 + 0.01 * rng.random(20)
        absent = np.arange(30) < 4
        apart = np.concatenate([np.full(4, np.nan), low, 0.9 + 0.01 * rng.random(6)]).astype(np.float32)
        found, upper = two_groups(jnp.asarray(apart), jnp.asarray(~absent), jax.random.key(key))
        assert found
        np.testing.assert_array_equal(upper, np.arange(30) >= 24)
        even = np.linspace(0, 1, 30).astype(np.float32)
        assert not two_groups(jnp.asarray(even), jnp.ones(30, bool), jax.random.key(key))[0]

    def test_equal_numbers_are_one_group(self):
        found, upper = two_groups(jnp.ones(9), jnp.ones(9, bool), KEY)
        assert not found
        assert not upper.any()
