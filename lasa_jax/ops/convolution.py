"""Convolution and pooling in the forms that are fast for many clients, each with its own kernel.

XLA's own convolution fails a simulator of clients twice: its gradient takes forms that the CPU runs at a thirtieth of the
speed of a matrix product, and `vmap` over kernels makes a grouped convolution, which cuDNN handles badly and the
partitioner replicates on every device. So where clients train together (an accelerator) a convolution is a product of
patches and kernel; where they train one after another (a CPU) it is XLA's, and both gradients are written as what they
are: convolutions again.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from lasa_jax.ops.rows import one_at_a_time


def conv2d(images: jax.Array, kernel: jax.Array, *, stride: int = 1, padding: int = 0) -> jax.Array:
    """Cross-correlation of images with a kernel, as `lax.conv_general_dilated` computes it for NHWC and HWIO.

        result[b, y, x, o] = sum over i, j, c of padded[b, y * stride + i, x * stride + j, c] * kernel[i, j, c, o]

    Args:
      images: `(batch, height, width, channels)`.
      kernel: `(kernel_height, kernel_width, channels, features)`.
      stride: step in both directions, in pixels.
      padding: zeros added on each of the four sides, in pixels.

    Returns:
      `(batch, out_height, out_width, features)` with `out = (size + 2 * padding - kernel_size) // stride + 1`.

    On a CPU the gradient is our own: it cannot be differentiated in reverse once more.
    """
    if stride == 1 and one_at_a_time():
        return _with_direct_gradients(images, kernel, padding)
    return _patches_product(images, kernel, stride, (padding, padding))


def _patches_product(images: jax.Array, kernel: jax.Array, stride: int, padding: tuple[int, int]) -> jax.Array:
    """Patches times kernel: an ordinary matrix product, and under `vmap` a batched one."""
    kernel_height, kernel_width, _, features = kernel.shape
    down, across = padding
    if down or across:  # fewer than none, where a gradient takes away what the result had too much of
        images = lax.pad(
            images, jnp.zeros((), images.dtype), ((0, 0, 0), (down, down, 0), (across, across, 0), (0, 0, 0))
        )
    rows = (images.shape[1] - kernel_height) // stride * stride + 1
    columns = (images.shape[2] - kernel_width) // stride * stride + 1
    patches = jnp.concatenate(
        [
            images[:, i : i + rows : stride, j : j + columns : stride]
            for i in range(kernel_height)
            for j in range(kernel_width)
        ],
        axis=-1,
    )
    return patches @ kernel.reshape(-1, features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _with_direct_gradients(images: jax.Array, kernel: jax.Array, padding: int) -> jax.Array:
    return _direct(images, kernel, (padding, padding))


def _forward(images: jax.Array, kernel: jax.Array, padding: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _direct(images, kernel, (padding, padding)), (images, kernel)


def _backward(padding: int, saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the images: the gradient under the kernel turned around. Of the kernel: the images under the gradient as kernel."""
    images, kernel = saved
    full = (kernel.shape[0] - 1 - padding, kernel.shape[1] - 1 - padding)
    to_images = _direct(grad, jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3), full)
    to_kernel = _direct(jnp.transpose(images, (3, 1, 2, 0)), jnp.transpose(grad, (1, 2, 0, 3)), (padding, padding))
    return to_images, jnp.transpose(to_kernel, (1, 2, 0, 3))


_with_direct_gradients.defvjp(_forward, _backward)


def _direct(images: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """XLA's convolution with stride 1; the product of patches where `vmap` would make a grouped one of it."""

    @jax.custom_batching.custom_vmap
    def convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
        sides = [(side, side) for side in padding]
        return lax.conv_general_dilated(images, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @convolution.def_vmap
    def _(size: int, batched: list[bool], images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, bool]:
        if batched[1]:
            product = functools.partial(_patches_product, stride=1, padding=padding)
            with jax.enable_x64(images.dtype == jnp.float64):  # this may run after the caller's own has ended
                return jax.vmap(product, in_axes=(0 if batched[0] else None, 0))(images, kernel), True
        together = _direct(images.reshape(-1, *images.shape[2:]), kernel, padding)
        return together.reshape(size, -1, *together.shape[1:]), True

    return convolution(images, kernel)


def max_pool2d(images: jax.Array, window: int = 2) -> jax.Array:
    """Maximum over disjoint `window x window` squares of NHWC images; rows and columns left over are dropped."""
    batch, height, width, channels = images.shape
    height, width = height // window, width // window
    images = images[:, : height * window, : width * window]
    # First over rows, then over columns: half the work of one reduction over both, and a gradient twice as fast.
    rows = images.reshape(batch, height, window, width * window, channels).max(axis=2)
    return rows.reshape(batch, height, width, window, channels).max(axis=3)
