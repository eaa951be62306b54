import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import models
from lasa_jax.models.layers import BatchNorm

KEY = jax.random.key(0)

# Of the official models: trainable parameters, tensors without batch counters, entries of tensors with
# two or four dimensions.
SIZES = [
    ("cnn", 10, (28, 28, 1), 1_663_370, 8, 1_662_752),
    ("cnn", 62, (28, 28, 1), 1_690_046, 8, 1_689_376),
    ("resnet18", 10, (32, 32, 3), 11_173_962, 102, 11_164_352),
    ("resnet18", 100, (32, 32, 3), 11_220_132, 102, 11_210_432),
    ("lstm", 90, (80,), 822_570, 11, 818_384),
    ("small_cnn", 10, (8, 8, 1), 13_706, 8, 13_584),
]


@pytest.mark.parametrize(("name", "classes", "shape", "parameters", "tensors", "maskable"), SIZES)
def test_sizes(name, classes, shape, parameters, tensors, maskable):
    model = models.create(name, num_classes=classes, input_shape=shape)
    variables = jax.eval_shape(model.init, KEY)
    leaves = jax.tree.leaves(variables)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == parameters
    assert len(leaves) == tensors
    assert sum(x.size for x in leaves if x.ndim in (2, 4)) == maskable


def test_initialisation_is_that_of_pytorch():
    variables = models.create("cnn", num_classes=10, input_shape=(28, 28, 1)).init(KEY)["params"]
    for layer, fan_in in {"conv1": 25, "conv2": 800, "dense1": 3136, "dense2": 512}.items():
        bound = 1 / np.sqrt(fan_in)
        for x in variables[layer].values():
            assert np.abs(x).max() <= bound
            assert np.abs(x).max() > 0.8 * bound
        assert abs(np.std(variables[layer]["kernel"]) - bound / np.sqrt(3)) < 0.1 * bound


def test_dropout_acts_in_training_only():
    model = models.create("cnn", num_classes=10, input_shape=(28, 28, 1))
    variables = model.init(KEY)
    x = jax.random.normal(KEY, (2, 28, 28, 1))
    plain, _ = model.apply(variables, x)
    again, _ = model.apply(variables, x)
    np.testing.assert_array_equal(plain, again)
    first, _ = model.apply(variables, x, train=True, key=jax.random.key(1))
    second, _ = model.apply(variables, x, train=True, key=jax.random.key(2))
    assert not np.allclose(first, second)
    assert not np.allclose(first, plain)


def test_batch_norm_ignores_padding():
    module = BatchNorm()
    x = 3 * jax.random.normal(KEY, (3, 4, 4, 5)) + 2
    variables = module.init(KEY, x, train=True, mask=None)
    apply = functools.partial(module.apply, variables, train=True, mutable=["batch_stats"])
    y, updated = apply(x[:2], mask=None)
    padded_y, padded = apply(x.at[2].set(np.nan), mask=jnp.array([True, True, False]))
    np.testing.assert_allclose(padded_y[:2], y, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), padded, updated)
    # Running statistics start at 0 and 1 and move by a tenth towards the batch's, the variance to the unbiased one.
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * x[:2].mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * x[:2].var((0, 1, 2), ddof=1), rtol=1e-5)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, rtol=1e-4)


def test_unknown_model():
    with pytest.raises(ValueError, match="allowed are cnn, lstm, mlp, resnet18, small_cnn"):
        models.create("vgg", num_classes=10, input_shape=(8, 8, 1))


LAYERS = {  # What LASA scores on its own
    "cnn": [f"{layer}/{part}" for layer in ("conv1", "conv2", "dense1", "dense2") for part in ("bias", "kernel")],
    "lstm": [
        *("dense/bias", "dense/kernel", "embedding/kernel"),
        *("lstm1/hidden_bias", "lstm1/hidden_kernel", "lstm1/input_bias", "lstm1/input_kernel"),
        *("lstm2/hidden_bias", "lstm2/hidden_kernel", "lstm2/input_bias", "lstm2/input_kernel"),
    ],
}


def test_layers_of_resnet18():
    """A stem, four stages of two blocks, projected shortcuts in three of them; two statistics a norm."""
    norms, convolutions = ["norm"], ["conv"]
    for stage in range(1, 5):
        for block in (1, 2):
            at = f"stage{stage}_block{block}"
            projected = ["shortcut"] if stage > 1 and block == 1 else []
            norms += [f"{at}/norm1", f"{at}/norm2", *(f"{at}/{name}_norm" for name in projected)]
            convolutions += [f"{at}/conv1", f"{at}/conv2", *(f"{at}/{name}_conv" for name in projected)]
    wanted = [f"batch_stats/{name}/{part}" for name in norms for part in ("mean", "var")]
    wanted += [f"params/{name}/{part}" for name in norms for part in ("bias", "scale")]
    wanted += [f"params/{name}/kernel" for name in convolutions] + ["params/dense/bias", "params/dense/kernel"]
    variables = jax.eval_shape(models.create("resnet18", num_classes=10, input_shape=(32, 32, 3)).init, KEY)
    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    assert sorted(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths) == sorted(wanted)
    assert len(wanted) == 102


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    shape, classes = {"cnn": ((28, 28, 1), 10), "lstm": ((80,), 90)}[name]
    variables = jax.eval_shape(models.create(name, num_classes=classes, input_shape=shape).init, KEY)
    paths = jax.tree_util.tree_flatten_with_path(variables["params"])[0]
    assert [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths] == LAYERS[name]


class TestLSTM:
    """Against the equations, written once more with a loop over time."""

    @pytest.fixture
    def model(self):
        return models.create("lstm", num_classes=90, input_shape=(12,))

    def by_definition(self, params: dict, tokens: np.ndarray) -> np.ndarray:
        def sigmoid(x):
            return 1 / (1 + np.exp(-x))

        params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        x = params["embedding"]["kernel"][tokens] * (tokens != 0)[..., None]
        for name in ("lstm1", "lstm2"):
            p, outputs = params[name], []
            h = c = np.zeros((len(tokens), 256))
            for t in range(tokens.shape[1]):
                gates = x[:, t] @ p["input_kernel"] + p["input_bias"] + h @ p["hidden_kernel"] + p["hidden_bias"]
                i, f, g, o = np.split(gates, 4, axis=1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
                outputs.append(h)
            x = np.stack(outputs, axis=1)
        return x @ params["dense"]["kernel"] + params["dense"]["bias"]

    def test_definition(self, model):
        tokens = np.random.default_rng(0).integers(0, 90, (3, 12))
        variables = model.init(KEY)
        logits, _ = model.apply(variables, tokens)
        np.testing.assert_allclose(logits, self.by_definition(variables["params"], tokens), atol=2e-6)

    def test_the_padding_row_is_zero_whatever_it_holds(self, model):
        variables = model.init(KEY)
        assert not np.asarray(variables["params"]["embedding"]["kernel"][0]).any()
        tokens = np.array([[5, 0, 7, 0, 0, 9, 1, 1, 1, 1, 1, 1]])
        wanted, _ = model.apply(variables, tokens)

        def loss(params):
            return model.apply({"params": params}, tokens, train=True, key=KEY)[0].sum()

        variables["params"]["embedding"]["kernel"] = variables["params"]["embedding"]["kernel"].at[0].set(np.nan)
        np.testing.assert_array_equal(model.apply(variables, tokens)[0], wanted)
        assert not np.asarray(jax.grad(loss)(variables["params"])["embedding"]["kernel"][0]).any()

    def test_time_is_scanned_and_input_projections_are_one_product(self, model):
        """Four products: the inputs of both layers and the dense one outside, one hidden one inside each scan."""
        tokens = np.zeros((3, 12), np.int32)
        jaxpr = str(jax.make_jaxpr(lambda v: model.apply(v, tokens)[0])(jax.eval_shape(model.init, KEY)))
        assert jaxpr.count("scan[") == 2
        assert jaxpr.count("dot_general[") == 5
