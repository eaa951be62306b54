"""Convolution and pooling as slices, reshapes and one matrix product.

XLA's convolution is slow where a simulator of many clients needs it most: its gradient inside a loop runs at about
1 GFLOP/s on a CPU, and `vmap` over kernels makes a grouped convolution that cuDNN handles badly and the partitioner
replicates on every device. Patches times kernel is an ordinary (batched) matrix product everywhere.
"""

import jax
import jax.numpy as jnp
from jax import lax

from lasa_jax.ops.rows import one_at_a_time

_MIB = 2**20


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

    On a CPU a large batch is taken a few images at a time, so that their patches stay in cache (twice as fast).
    """
    kernel_height, kernel_width, channels, features = kernel.shape
    if padding:
        images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out_height = (images.shape[1] - kernel_height) // stride + 1
    out_width = (images.shape[2] - kernel_width) // stride + 1

    def product(images: jax.Array, kernel: jax.Array) -> jax.Array:
        rows, columns = (out_height - 1) * stride + 1, (out_width - 1) * stride + 1
        patches = jnp.concatenate(
            [
                images[:, i : i + rows : stride, j : j + columns : stride]
                for i in range(kernel_height)
                for j in range(kernel_width)
            ],
            axis=-1,
        )
        return patches @ kernel.reshape(-1, features)

    batch = images.shape[0]
    image_bytes = out_height * out_width * kernel_height * kernel_width * channels * images.dtype.itemsize
    # A large kernel is worth its packing for many images only.
    if one_at_a_time() and batch * image_bytes > 8 * _MIB and kernel.nbytes <= _MIB:
        some = max(1, min(2 * _MIB // image_bytes, batch))
        whole = batch // some * some
        few = jax.checkpoint(product)  # the gradient makes the patches again instead of keeping them
        grouped = images[:whole].reshape(-1, some, *images.shape[1:])
        done = lax.map(lambda few_images: few(few_images, kernel), grouped).reshape(
            whole, out_height, out_width, features
        )
        return done if whole == batch else jnp.concatenate([done, product(images[whole:], kernel)])
    return product(images, kernel)


def max_pool2d(images: jax.Array, window: int = 2) -> jax.Array:
    """Maximum over disjoint `window x window` squares of NHWC images; rows and columns left over are dropped."""
    batch, height, width, channels = images.shape
    height, width = height // window, width // window
    images = images[:, : height * window, : width * window]
    # First over rows, then over columns: half the work of one reduction over both, and a gradient twice as fast.
    rows = images.reshape(batch, height, window, width * window, channels).max(axis=2)
    return rows.reshape(batch, height, width, window, channels).max(axis=3)
