"""Models of a user's own: Linen, NNX and pairs of functions as a `Model`, and what is refused in one line."""

import functools
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from lasa_jax import aggregators, data, experiment, models
from lasa_jax.errors import InputError
from lasa_jax.models import own

KEY = jax.random.key(0)
EXAMPLE = jax.ShapeDtypeStruct((6,), jnp.float32)


class Linen(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train, mask):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x), mask=mask[:, None])
        return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=not train)(nn.relu(x)))


class NNX(nnx.Module):
    def __init__(self, input_shape, num_classes, *, rngs):
        sizes = (input_shape[0], *[16] * 11)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, x, mask):
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.last(self.second(self.first(self.norm(x, mask=mask[:, None]))))


def pair(input_shape, num_classes):
    """Batch statistics and noise without Flax: the logits are relative to the mean of the real examples."""

    def init(key):
        kernel = jax.random.normal(key, (*input_shape, num_classes))
        return {"params": {"kernel": kernel}, "batch_stats": {"mean": jnp.zeros(input_shape)}}

    def apply(variables, inputs, train, key, mask):
        mean = variables["batch_stats"]["mean"]
        if train:
            mean = (mask @ inputs) / mask.sum()
            inputs += jax.random.normal(key, inputs.shape[1:])
        logits = (inputs - mean) @ variables["params"]["kernel"]
        return logits, {"batch_stats": {"mean": mean}}

    return init, apply


def fit(made, example=EXAMPLE, label_shape=(), num_classes=3, setting="config.model = 'mypkg:net'"):
    return models.for_dataset(
        made, setting=setting, dataset="table", example=example, label_shape=label_shape, num_classes=num_classes
    )


@pytest.fixture(scope="module", params=[Linen, NNX, pair], ids=["linen", "nnx", "pair"])
def model(request):
    return fit(request.param)


def same(a, b, atol=0.0):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol), a, b)


class TestContract:
    """What the engine relies on, for each kind of model with dropout and batch statistics."""

    X = 3 * jax.random.normal(KEY, (8, 6)) + 2

    def test_variables_are_plain_dicts_that_follow_the_key(self, model):
        variables = model.init(KEY)
        assert set(variables) == {"params", "batch_stats"}
        assert {type(leaf.key) for path, _ in jax.tree.leaves_with_path(variables) for leaf in path} == {str}
        same(variables, model.init(KEY))
        other = jax.tree.map(np.array_equal, model.init(jax.random.key(1)), variables)
        assert not all(jax.tree.leaves(other["params"]))

    def test_evaluation_draws_nothing_and_changes_nothing(self, model):
        variables = model.init(KEY)
        logits, after = model.apply(variables, self.X)
        same(after, variables)
        same(model.apply(variables, self.X, key=jax.random.key(1))[0], logits)
        same(model.apply(variables, self.X[:3])[0], logits[:3], 1e-6)

    def test_training_draws_from_the_key_and_updates_statistics(self, model):
        variables = model.init(KEY)
        train = functools.partial(model.apply, variables, self.X, train=True)
        logits, after = train(key=jax.random.key(1))
        same(train(key=jax.random.key(1)), (logits, after))
        assert not np.allclose(train(key=jax.random.key(2))[0], logits)
        same(after["params"], variables["params"])
        moved = jax.tree.map(np.allclose, after["batch_stats"], variables["batch_stats"])
        assert not any(jax.tree.leaves(moved))
        same(train(key=jax.random.key(1), mask=jnp.ones(8, bool)), (logits, after))

    def test_padding_changes_no_statistic(self, model):
        variables = model.init(KEY)
        _, wanted = model.apply(variables, self.X[:5], train=True, key=KEY, mask=jnp.ones(5, bool))
        for content in (0.0, 100.0):
            padded = jnp.where(jnp.arange(8)[:, None] < 5, self.X, content)
            _, found = model.apply(variables, padded, train=True, key=KEY, mask=jnp.arange(8) < 5)
            same(found["batch_stats"], wanted["batch_stats"], 1e-6)

    def test_vmap_over_clients_equals_a_loop(self, model):
        keys = jax.random.split(KEY, 3)
        each = jax.vmap(model.init)(keys)
        inputs = jax.random.normal(KEY, (3, 8, 6))

        def step(variables, inputs, key):
            def loss(params):
                logits, updated = model.apply({**variables, "params": params}, inputs, train=True, key=key)
                return jnp.mean(logits**2), updated["batch_stats"]

            return jax.grad(loss, has_aux=True)(variables["params"])

        together = jax.jit(jax.vmap(step))(each, inputs, keys)
        for i in range(3):
            alone = step(jax.tree.map(lambda x, i=i: x[i], each), inputs[i], keys[i])
            same(jax.tree.map(lambda x, i=i: x[i], together), alone, 1e-4)


def test_dropout_layers_of_an_nnx_module_draw_apart():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.scale = nnx.Param(jnp.ones(()))

        def __call__(self, x):
            return self.scale * jnp.stack([self.first(x), self.second(x)], 1)

    model = own.adapt(Two, where="x", example=EXAMPLE, num_classes=3)
    first, second = model.apply(model.init(KEY), jnp.ones((1, 100)), train=True, key=KEY)[0][0]
    assert 20 < ((first > 0) & (second > 0)).sum() + ((first == 0) & (second == 0)).sum() < 80


class TestWhatMayBeBrought:
    def test_any_tree_of_variables(self):
        model = fit(lambda: (lambda key: [jnp.ones((6, 3)), jnp.zeros(3)], lambda v, x: x @ v[0] + v[1]))
        variables = model.init(KEY)
        assert set(variables) == {"params"}
        np.testing.assert_array_equal(model.apply(variables, jnp.ones((2, 6)), train=True)[0], np.full((2, 3), 6.0))

    @pytest.mark.parametrize("made", [Linen(3), models.create("mlp", num_classes=3, input_shape=(6,)), "mlp"])
    def test_a_module_a_model_and_a_name(self, made):
        assert fit(made).apply(fit(made).init(KEY), jnp.ones((2, 6)))[0].shape == (2, 3)

    def test_tokens_and_labels_of_each(self):
        def tagger(num_classes):
            return nn.Sequential([nn.Embed(10, 4), nn.Dense(num_classes)])

        model = fit(tagger, example=jax.ShapeDtypeStruct((5,), jnp.int32), label_shape=(5,))
        assert model.apply(model.init(KEY), jnp.ones((2, 5), jnp.int32))[0].shape == (2, 5, 3)


def without_mask():
    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))

    return Bare()


class BareNNX(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.last = nnx.BatchNorm(6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(x))


class Caching(nnx.Module):
    def __init__(self, rngs):
        self.last, self.seen = nnx.Linear(6, 3, rngs=rngs), nnx.Cache(jnp.zeros(6))

    def __call__(self, x):
        return self.last(x)


class Wrong(nn.Module):
    def __call__(self, x):
        raise RuntimeError("not\n today")


def of(variables, apply):
    return lambda: (lambda key: variables, apply)


ONE = jnp.ones((6, 3))
BAD = [
    (lambda: 5, "gives a int, allowed are a pair"),
    (lambda: lambda x: x, "gives a function, allowed are a pair"),
    (5, "gives a int, allowed are"),
    (lambda hidden, num_classes: nn.Dense(num_classes), "takes 'hidden', given are num_classes, input_shape and rngs"),
    (lambda: 1 / 0, r"test_own.py, line \d+: ZeroDivisionError: division by zero"),
    (lambda: nnx.Linear(6, 3, rngs=nnx.Rngs(0)), "gives an NNX module, allowed is a function of rngs"),
    (nnx.Linear(6, 3, rngs=nnx.Rngs(0)), "gives an NNX module, allowed is a function of rngs"),
    (lambda rngs: jnp.ones(3), "takes rngs and gives a ShapeDtypeStruct, allowed is an NNX module"),
    (without_mask, "padding would count in its running statistics; let it take mask"),
    (BareNNX, "padding would count in its running statistics"),
    (of({"params": {"w": ONE}, "batch_stats": {"m": ONE}}, lambda v, x: x @ v["params"]["w"]), "padding would count"),
    (Caching, "has variables of type Cache, allowed are nnx.Param and nnx.BatchStat"),
    (nn.Dense, "takes 'features', given are"),
    (lambda: Wrong(), r"test_own.py, line \d+: RuntimeError: not today"),
    (
        lambda: nn.Dense(5),
        r"gives float32 \(2, 5\) for two of them, allowed are logits \(2, 3\): one label, 3 cl",
    ),
    (lambda: nn.Conv(3, (3, 3, 3, 3)), "ValueError"),
    (of(ONE, lambda v, x: x @ v.T), r"test_own.py, line \d+: TypeError: dot_general requires contracting"),
    (of(ONE, lambda v, x: (x @ v).argmax(1)), r"gives int32 \(2,\) for two of them"),
    (of(ONE, lambda v, x: (x @ v, v[0])), "apply.train=True. gives variables of other names, shapes or types"),
    (of(ONE, lambda v, x: {"logits": x @ v}), "AttributeError: 'dict' object has no attribute 'shape'"),
    (of({}, lambda v, x: x), "init gives no dict with 'params' in which there are arrays"),
    (of({"a": ONE, "n": jnp.int32(1)}, lambda v, x: x @ v["a"]), "its variable params/n is int32, allowed is float32"),
    (lambda: nn.Dense(3, param_dtype=jnp.bfloat16), "its variable params/bias is bfloat16, allowed is float32"),
]


@pytest.mark.parametrize(("made", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_is_wrong_is_one_line(made, message):
    with pytest.raises(InputError, match=message) as error:
        fit(made)
    assert str(error.value).startswith("config.model = 'mypkg:net' with examples of 'table', float32 (6,): ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", models.names())
def test_built_in_models_are_asked_too(name):
    for shape, label_shape in (((6,), (6,)), ((7, 6), ())):
        example = jax.ShapeDtypeStruct(shape, jnp.float32)
        if name == "mlp" and not label_shape:
            fit(name, example, label_shape)
        elif not (name == "lstm" and label_shape):
            with pytest.raises(InputError, match="with examples of 'table', float32") as error:
                fit(name, example, label_shape)
            assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def guide() -> dict:
    """What the section of docs/adding.md about datasets and models of one's own defines."""
    text = (Path(__file__).parents[2] / "docs" / "adding.md").read_text()
    section = text.split("## A dataset or a model\n")[1].split("\n## ")[0]
    names: dict = {"__name__": "guide"}
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(code, names)
    return names


@pytest.mark.parametrize("name", ["Dropped", "DroppedNNX", "linear"])
def test_a_table_trains_as_in_the_guide(guide, name):
    dataset = data.from_arrays("tumours", guide["tumours"]())
    model = models.for_dataset(
        guide[name],
        setting="model",
        dataset=dataset.name,
        example=dataset.example,
        label_shape=dataset.label_shape,
        num_classes=dataset.num_classes,
    )
    settings = {"rounds": 2, "num_clients": 20, "clients_per_round": 8, "client.epochs": 1, "seed": 1}
    history = experiment.simulate(dataset, model=model, aggregator=aggregators.fedavg(), **settings)
    first = model.init(jax.random.fold_in(jax.random.key(1), 0))
    logits, _ = model.apply(first, dataset.normalise(dataset.test.inputs))
    assert history.test_accuracy[-1] > (np.argmax(logits, 1) == dataset.test.labels).mean() + 0.05
    assert history.test_accuracy[-1] > 0.7
