"""Running statistics kept from rules and attacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lasa_jax import aggregators, attacks, experiment, models
from lasa_jax.data import Dataset, Examples
from lasa_jax.models.layers import BatchNorm, Dense
from lasa_jax.testing import built_in, known

KEY = jax.random.key(0)
RULES = {name: functools.partial(built_in, name) for name in aggregators.names()}


def updates(n=6):
    rng = np.random.default_rng(0)
    return {
        "params": {"w": jnp.asarray(rng.normal(size=(n, 3, 4)), jnp.float32)},
        "batch_stats": {"mean": jnp.asarray(rng.normal(size=(n, 2)), jnp.float32)},
    }


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


class TestRules:
    def test_statistics_are_averaged_by_the_mean_weight_over_layers(self):
        def aggregate(updates, state, **_):
            weight = {"params": {"a": jnp.array([0.5, 0.5, 0.0, 0.0]), "b": jnp.array([0.5, 0.0, 0.5, 0.0])}}
            return first(updates), state, aggregators.Diagnostics(weight)

        rule = aggregators.parameters_only(aggregators.Aggregator(aggregators.stateless, aggregate))
        rows = {"params": {"a": jnp.ones((4, 1)), "b": jnp.ones((4, 1))}}
        rows["batch_stats"] = {"m": jnp.array([[1.0], [2.0], [jnp.nan], [100.0]])}
        update, _, info = rule.aggregate(rows, (), key=KEY, num_malicious=0)
        np.testing.assert_allclose(info.weight["batch_stats"]["m"], [2 / 3, 1 / 3, 0, 0], rtol=1e-6)
        np.testing.assert_allclose(update["batch_stats"]["m"], [4 / 3], rtol=1e-6)

    def test_what_the_rule_says_of_layers_is_nan_for_statistics(self):
        info = aggregators.parameters_only(aggregators.lasa()).aggregate(updates(), (), key=KEY, num_malicious=0)[2]
        assert jax.tree.structure(info.norm) == jax.tree.structure(info.weight)
        assert np.isnan(info.norm["batch_stats"]["mean"]).all()
        assert np.isfinite(info.norm["params"]["w"]).all()

    @pytest.mark.parametrize("name", aggregators.names())
    def test_without_statistics_nothing_changes(self, name):
        rule = built_in(name)
        params = {"params": updates(12)["params"]}
        wanted = rule.aggregate(params, rule.init(first(params)), key=KEY, num_malicious=2, **known(rule, params))
        wrapped = aggregators.parameters_only(rule)
        actual = wrapped.aggregate(params, wrapped.init(first(params)), key=KEY, num_malicious=2, **known(rule, params))
        jax.tree.map(np.testing.assert_array_equal, actual, wanted)


class TestAttacks:
    def test_statistics_stay_honest(self):
        honest, malicious = updates(), jnp.arange(6) < 2
        crafted, _ = attacks.parameters_only(attacks.nan()).craft(honest, (), malicious, key=KEY)
        np.testing.assert_array_equal(crafted["batch_stats"]["mean"], honest["batch_stats"]["mean"])
        assert np.isnan(crafted["params"]["w"][:2]).all()

    def test_its_memory_is_that_of_the_parameters(self):
        honest = updates()
        wanted = attacks.mimic().init({"params": first(honest["params"])})
        state = attacks.parameters_only(attacks.mimic()).init(first(honest))
        assert jax.tree.structure(state) == jax.tree.structure(wanted)

    def test_an_attack_that_adapts_is_given_the_rule_on_parameters(self):
        rule = aggregators.parameters_only(aggregators.fedavg())
        honest, malicious = updates(), jnp.arange(6) < 2

        def aggregate(rows):
            return rule.aggregate(rows, (), key=KEY, num_malicious=2)[0]

        attack = attacks.adaptive(num_magnitudes=2, num_refinements=1)
        wanted, _ = attack.craft(
            {"params": honest["params"]},
            (),
            malicious,
            key=KEY,
            aggregate=lambda rows: aggregators.fedavg().aggregate(rows, (), key=KEY, num_malicious=2)[0],
        )
        actual, _ = attacks.parameters_only(attack).craft(honest, (), malicious, key=KEY, aggregate=aggregate)
        jax.tree.map(np.testing.assert_array_equal, actual["params"], wanted["params"])


class _Normed(nn.Module):
    """A small network with batch normalisation."""

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        x = BatchNorm()(Dense(8)(x.reshape(x.shape[0], -1)), train=train, mask=mask)
        return Dense(2)(nn.relu(x))


def small_world() -> tuple[Dataset, models.Model]:
    rng = np.random.default_rng(0)
    labels = np.arange(80, dtype=np.int32) % 2
    inputs = (rng.normal(size=(80, 2, 2, 1)) * 20 + 100 + 20 * labels[:, None, None, None]).astype(np.uint8)
    examples = Examples(inputs, labels)
    module = _Normed()

    def apply(variables, inputs, *, train=False, key=None, mask=None):
        if not train:
            return module.apply(variables, inputs), variables
        logits, changed = module.apply(variables, inputs, train=True, mask=mask, mutable=["batch_stats"])
        return logits, {**variables, **changed}

    dataset = Dataset("small", 2, examples, examples, (100.0,), (20.0,))
    return dataset, models.Model(lambda key: dict(module.init(key, jnp.zeros((1, 2, 2, 1)))), apply)


def with_a_state(functions):
    params = first(updates())
    return [name for name, function in functions.items() if jax.tree.leaves(function().init(params))]


SETTINGS = {
    "rounds": 2,
    "batch_stats": "separate",
    "num_clients": 8,
    "clients_per_round": 8,
    "client.epochs": 1,
    "client.batch_size": 5,
}


@pytest.mark.parametrize("name", with_a_state(attacks.ATTACKS))
def test_every_attack_with_a_state_trains_with_statistics_apart(name):
    dataset, model = small_world()
    history = experiment.simulate(dataset, model=model, attack=attacks.create(name), **SETTINGS)
    assert np.isfinite(history.test_loss).all()


@pytest.mark.parametrize("name", with_a_state(RULES))
def test_every_rule_with_a_state_trains_with_statistics_apart(name):
    dataset, model = small_world()
    history = experiment.simulate(dataset, model=model, aggregator=built_in(name), **SETTINGS)
    assert np.isfinite(history.test_loss).all()
    assert set(history.weights) >= {"batch_stats/BatchNorm_0/mean", "params/Dense_0/kernel"}


def test_there_are_methods_with_a_state():
    assert "mimic" in with_a_state(attacks.ATTACKS)
    assert {"centered_clipping", "sparsefed"} <= set(with_a_state(RULES))
