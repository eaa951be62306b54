"""Convolution and pooling in the forms that are fast for many clients, each with its own kernel.

XLA's own convolution fails a simulator of clients twice: its gradient takes forms that the CPU runs at a thirtieth of the
speed of a matrix product, and `vmap` over kernels makes a grouped convolution, which cuDNN handles badly and the
partitioner replicates on every device. So where `vmap` gives each client its kernel, a convolution is a product of
patches and kernel, and patches are made again for the gradient; otherwise it is XLA's. On a CPU both gradients of XLA's
are written as what they are: convolutions again.
"""

import functools
from collections.abc import Callable
from typing import Any

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

    The gradient is our own: it cannot be differentiated once more, except on a CPU with a stride.
    """
    if not one_at_a_time():
        return _by_what_is_batched(images, kernel, stride, padding)
    if stride == 1:
        return _with_direct_gradients(images, kernel, padding)
    return _patches_product(images, kernel, stride, (padding, padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _by_what_is_batched(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """XLA's convolution with XLA's gradients; both of patches where `vmap` gives each client its own kernel."""

    def forward(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return _xla(images, kernel, stride, padding)

    def batched(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return _patches_product(images, kernel, stride, (padding, padding))

    result: jax.Array = _choose(forward, batched)(images, kernel)
    return result


def _saving(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> tuple[jax.Array, Any]:
    return _by_what_is_batched(images, kernel, stride, padding), (images, kernel)


def _gradients(stride: int, padding: int, saved: Any, grad: jax.Array) -> Any:
    def forward(images: jax.Array, kernel: jax.Array, grad: jax.Array) -> Any:
        return jax.vjp(lambda x, w: _xla(x, w, stride, padding), images, kernel)[1](grad)

    def batched(images: jax.Array, kernel: jax.Array, grad: jax.Array) -> Any:
        # The barrier keeps the compiler from holding the forward pass's patches until here: they are large.
        images, grad = lax.optimization_barrier((images, grad))
        return jax.vjp(lambda x, w: _patches_product(x, w, stride, (padding, padding)), images, kernel)[1](grad)

    return _choose(forward, batched)(*saved, grad)


_by_what_is_batched.defvjp(_saving, _gradients)


def _choose(single: Callable[..., Any], many: Callable[..., Any]) -> Callable[..., Any]:
    """`single` as it is and for a batch of one; the `vmap` of `many` for more."""
    chosen = jax.custom_batching.custom_vmap(single)

    @chosen.def_vmap
    def _(size: int, batched: list[bool], *args: jax.Array) -> tuple[Any, Any]:
        with jax.enable_x64(args[0].dtype == jnp.float64):  # this may run after the caller's own has ended
            if size == 1:
                only = [x[0] if is_batched else x for x, is_batched in zip(args, batched, strict=True)]
                result = jax.tree.map(lambda x: x[None], _choose(single, many)(*only))
            else:
                result = jax.vmap(many, in_axes=tuple(0 if is_batched else None for is_batched in batched))(*args)
        return result, jax.tree.map(lambda _: True, result)

    return chosen


def _xla(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    sides = [(padding, padding)] * 2
    return lax.conv_general_dilated(images, kernel, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


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
