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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_equal_images_share_the_gradient_alike_on_all_platforms(dtype):
    images, bias = few_values((3, 2, 7, 8, 5), dtype), jnp.ones((3, 5), dtype)
    grad = jax.random.normal(jax.random.key(2), (3, 2, 3, 4, 5)).astype(dtype)
    made = {}
    for platform in ("cpu", "gpu"):
        with ops.compiling_for(platform):
            made[platform] = [x.astype(jnp.float32) for x in jax.jit(jax.vmap(value_and_gradients))(images, bias, grad)]
    for name, ours, theirs in zip(("maxima", "to images"), made["gpu"][:2], made["cpu"][:2], strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    total = jnp.sum(grad.astype(jnp.float32), (1, 2, 3))
    for platform, (_, _, to_bias) in made.items():
        np.testing.assert_allclose(to_bias, total, atol=1e-5 if dtype == jnp.float32 else 0.1, err_msg=platform)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, jnp.float64])
def test_no_type_and_no_rank_is_promoted(dtype):
    with (
        jax.enable_x64(dtype == jnp.float64),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        ops.compiling_for("gpu"),
    ):
        images, bias, grad = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((2, 4, 4, 3), (3,), (2, 2, 2, 3)))
        made = jax.eval_shape(value_and_gradients, images, bias, grad)
    assert [x.dtype for x in made] == [dtype] * 3


def test_a_gradient_has_a_derivative_in_forward_mode():
    """Which the theorem's smoothness is measured by."""
    x, direction = (jax.random.normal(jax.random.key(i), (2, 4, 4, 3)) for i in range(2))
    slopes = []
    for platform in ("cpu", "gpu"):
        with ops.compiling_for(platform):
            slope = jax.grad(lambda x: jnp.sum(jnp.sin(ops.max_pool2d(x)) ** 2))
            slopes.append(jax.jit(lambda x, v, slope=slope: jax.jvp(slope, (x,), (v,)))(x, direction))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), *slopes)


def test_an_accelerator_keeps_a_byte_for_each_maximum():
    """And not the images: that is what the gradient needs, and what a step has to write and read again."""
    images = jnp.zeros((2, 8, 8, 3))
    with ops.compiling_for("gpu"):
        kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(ops.max_pool2d, x)[1], images))
    assert [(x.shape, x.dtype) for x in kept if x.size > 1] == [((2, 4, 4, 3), jnp.uint8)]
