import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lasa_jax import ops

# (kernel size, stride, padding, input size, channels in, channels out): every form that a model uses.
FORMS = [
    (5, 1, 2, 28, 1, 32),  # CNN
    (5, 1, 2, 14, 32, 64),
    (3, 1, 1, 8, 1, 16),  # small CNN
    (3, 1, 1, 32, 3, 64),  # ResNet stem
    (3, 1, 1, 16, 8, 8),  # ResNet block
    (3, 2, 1, 16, 8, 16),  # ResNet, first convolution of a stage
    (1, 2, 0, 16, 8, 16),  # ResNet shortcut
]


@pytest.mark.parametrize(("size", "stride", "padding", "image", "channels", "features"), FORMS)
def test_conv2d_equals_lax(size, stride, padding, image, channels, features):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, image, image, channels))
    kernel = jax.random.normal(keys[1], (size, size, channels, features))

    def ours(x, kernel):
        return ops.conv2d(x, kernel, stride=stride, padding=padding)

    def theirs(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    wanted, pullback = jax.vjp(theirs, x, kernel)
    cotangent = jax.random.normal(keys[2], wanted.shape)
    actual, our_pullback = jax.vjp(ours, x, kernel)
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(actual, wanted, atol=2e-6 * scale)
    for a, b in zip(our_pullback(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6 * float(jnp.abs(b).max()))


def test_a_large_batch_is_taken_a_few_images_at_a_time():
    """43 images do not divide into groups of 3; the patches of the whole batch, 27 MB, are never in memory."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (43, 14, 14, 32))
    kernel = jax.random.normal(keys[1], (5, 5, 32, 64))
    conv = jax.jit(lambda x, kernel: ops.conv2d(x, kernel, padding=2))
    few = jnp.concatenate([conv(x[i : i + 1], kernel) for i in range(43)])
    np.testing.assert_allclose(conv(x, kernel), few, atol=2e-6 * float(jnp.abs(few).max()))
    wanted = jax.grad(lambda x, k: sum((conv(x[i : i + 1], k) ** 2).sum() for i in range(43)), (0, 1))(x, kernel)
    actual = jax.grad(lambda x, k: (conv(x, k) ** 2).sum(), (0, 1))(x, kernel)
    for a, b in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=4e-6 * float(jnp.abs(b).max()))
    assert conv.lower(x, kernel).compile().memory_analysis().temp_size_in_bytes < 8 * 2**20


def test_no_convolution_is_left_in_the_program():
    kernels = np.zeros((4, 3, 3, 2, 8), np.float32)
    images = np.zeros((4, 2, 8, 8, 2), np.float32)
    loss = jax.grad(lambda k, x: ops.conv2d(x, k, padding=1).sum())
    text = jax.jit(jax.vmap(loss)).lower(kernels, images).compile().as_text()
    assert "convolution(" not in text


@pytest.mark.parametrize("size", [8, 7])
def test_max_pool(size):
    x = jax.random.normal(jax.random.key(1), (2, size, size, 3))
    wanted = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(ops.max_pool2d(x), wanted)
