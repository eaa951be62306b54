import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import models
from lasa_jax.models.layers import BatchNorm

KEY = jax.random.key(0)

# FIDELITY table of the official models: trainable parameters, tensors without batch counters, entries of tensors with
# two or four dimensions.
SIZES = [
    ("cnn", 10, (28, 28, 1), 1_663_370, 8, 1_662_752),
    ("cnn", 62, (28, 28, 1), 1_690_046, 8, 1_689_376),
    ("resnet18", 10, (32, 32, 3), 11_173_962, 102, 11_164_352),
    ("resnet18", 100, (32, 32, 3), 11_220_132, 102, 11_210_432),
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
    with pytest.raises(ValueError, match="allowed are cnn, resnet18, small_cnn"):
        models.create("vgg", num_classes=10, input_shape=(8, 8, 1))
