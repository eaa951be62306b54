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


def test_no_patches_of_a_large_batch_are_in_memory_on_a_cpu():
    x, kernel = np.zeros((128, 14, 14, 32), np.float32), np.zeros((5, 5, 32, 64), np.float32)  # 80 MB of patches
    conv = jax.jit(lambda x, kernel: ops.conv2d(x, kernel, padding=2))
    assert conv.lower(x, kernel).compile().memory_analysis().temp_size_in_bytes < 8 * 2**20


def test_gradients_in_a_loop_are_convolutions_without_groups_or_dilation():
    """What XLA would make of the gradient itself is a form that a CPU runs at a thirtieth of the speed."""
    images, kernel = np.zeros((3, 10, 14, 14, 8), np.float32), np.zeros((5, 5, 8, 16), np.float32)
    loss = jax.grad(lambda x, k: (ops.conv2d(x, k, padding=2) ** 2).sum(), (0, 1))
    text = jax.jit(lambda x, k: lax.map(lambda few: loss(few, k), x)).lower(images, kernel).as_text()
    found = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(found) == 3  # the result, and two gradients
    for line in found:
        assert "feature_group_count = 1" in line
        assert "batch_group_count = 1" in line
        assert "dilate = [1, 1]" in line or "dilate" not in line
        assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line


def batches(shape, batched, seed):
    return np.asarray(jax.random.normal(jax.random.key(seed), (4, *shape) if batched else shape))


@pytest.mark.parametrize("batched", [(True, True), (True, False), (False, True)])
def test_many_kernels_together_are_products_and_no_grouped_convolution(batched):
    images, kernels = batches((2, 8, 8, 2), batched[0], 1), batches((3, 3, 2, 8), batched[1], 2)
    grad = jax.grad(lambda x, k: (ops.conv2d(x, k, padding=1) ** 2).sum(), (0, 1))
    many = jax.jit(jax.vmap(grad, in_axes=[0 if axis else None for axis in batched]))
    text = many.lower(images, kernels).compile().as_text()
    assert "group_count" not in text
    if batched[1]:
        assert "convolution(" not in text
    for i, actual in enumerate(zip(*many(images, kernels), strict=True)):
        wanted = grad(images[i] if batched[0] else images, kernels[i] if batched[1] else kernels)
        for a, b in zip(actual, wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=4e-6 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(("kernel_size", "padding"), [((1, 1), 1), ((2, 2), 1), ((3, 1), 2), ((2, 3), 0)])
@pytest.mark.parametrize("together", [False, True])
def test_gradients_of_kernels_of_any_shape_and_padding(kernel_size, padding, together):
    images, kernels = batches((2, 6, 5, 2), True, 3), batches((*kernel_size, 2, 3), True, 4)

    def loss(x, kernel, conv):
        return (conv(x, kernel) ** 2).sum()

    def theirs(x, kernel):
        sides = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    ours = jax.grad(lambda x, k: loss(x, k, lambda x, k: ops.conv2d(x, k, padding=padding)), (0, 1))
    wanted = jax.grad(lambda x, k: loss(x, k, theirs), (0, 1))
    for i in range(4):
        actual = jax.tree.map(lambda x, i=i: x[i], jax.vmap(ours)(images, kernels)) if together else None
        actual = ours(images[i], kernels[i]) if actual is None else actual
        for a, b in zip(actual, wanted(images[i], kernels[i]), strict=True):
            np.testing.assert_allclose(a, b, atol=4e-6 * float(jnp.abs(b).max()))
