"""Max pooling: values and gradients on a CPU, and the accelerator's form of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lasa_jax import ops


def few_values(shape, dtype=jnp.float32):
    """Small whole numbers: many maxima are equal."""
    return jax.random.randint(jax.random.key(1), shape, -2, 3).astype(dtype)


def value_and_gradients(images, bias, grad):
    result, pull = jax.vjp(ops.max_pool2d, images, bias)
    return result, *pull(grad)


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("window", [2, 3])
def test_the_maximum_of_every_square(size, platform, window):
    x = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    bias = jnp.asarray([0.1, -2.0, 3.0])
    sides = (1, window, window, 1)
    wanted = lax.reduce_window(x + bias, -jnp.inf, lax.max, sides, sides, "VALID")
    with ops.compiling_for(platform):
        np.testing.assert_array_equal(ops.max_pool2d(x, bias, window=window), wanted)
        np.testing.assert_array_equal(ops.max_pool2d(x, window=window), ops.max_pool2d(x, jnp.zeros(3), window=window))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equal_maxima_share_the_gradient_alike_on_all_platforms(dtype):
    images, bias = few_values((3, 2, 7, 8, 5), dtype), jnp.ones((3, 5), dtype)
    grad = jax.random.normal(jax.random.key(2), (3, 2, 3, 4, 5)).astype(dtype)
    on_cpu = jax.jit(jax.vmap(value_and_gradients))(images, bias, grad)
    with ops.compiling_for("gpu"):
        on_gpu = jax.jit(jax.vmap(value_and_gradients))(images, bias, grad)
    for name, ours, theirs in zip(("maxima", "to images"), on_gpu, on_cpu, strict=False):
        np.testing.assert_array_equal(ours.astype(jnp.float32), theirs.astype(jnp.float32), err_msg=name)
    total = jnp.sum(grad.astype(jnp.float32), (1, 2, 3))
    np.testing.assert_allclose(
        on_gpu[2].astype(jnp.float32), total, rtol=1e-5 if dtype == jnp.float32 else 0.1, atol=0.05
    )


def test_an_accelerator_keeps_a_byte_for_each_maximum():
    """And not the images: that is what the gradient needs, and what a step has to write and read again."""
    images = jnp.zeros((2, 8, 8, 3))
    with ops.compiling_for("gpu"):
        kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(ops.max_pool2d, x)[1], images))
    assert [(x.shape, x.dtype) for x in kept if x.size > 1] == [((2, 4, 4, 3), jnp.uint8)]
