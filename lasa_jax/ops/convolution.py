"""Convolution in the forms that are fast for many clients, each with its own kernel.

XLA's own convolution fails a simulator of clients twice: its gradient takes forms that the CPU runs at a thirtieth of the
speed of a matrix product, and `vmap` over kernels makes a grouped convolution, which the partitioner replicates on every
device. So where `vmap` gives each client its kernel, a convolution is a product of patches and kernel, but on a GPU, where
clients are dealt out before, a grouped one if the patches are large; `convolving_by` names another form. Otherwise it is
XLA's, and images that `vmap` batches over one kernel are one batch to it. On a CPU both gradients of XLA's are written as
what they are: convolutions again.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lasa_jax.ops.rows import one_at_a_time
from lasa_jax.ops.target import platform

BATCHED_FORMS = ("auto", "patches", "taps", "grouped")
LARGE_PATCHES = 2**30  # bytes of the patches of all clients of one convolution

Shape = tuple[int, ...]

# Part of the key of every trace that JAX keeps, like the platform.
_batched_form = jax.make_user_context(default_value="auto")


@contextlib.contextmanager
def convolving_by(form: str) -> Iterator[None]:
    """Within it, convolutions whose kernels `vmap` batches are traced in one form on an accelerator; a CPU has its own.

    No form changes a result by more than rounding.

    Args:
      form: "patches", one product for each client of its patches and its kernel: patches are as many times the images as
        the kernel has positions, and are kept for the gradient; "taps", a product for each position of the kernel, summed;
        "grouped", XLA's convolution with a group for each client; "auto", on a GPU "grouped" where the patches would be
        larger than the result, by the bytes of compiled programs and not by a card's time, else "patches", but those that
        take more than 1 GiB are made again for the gradient. The size counts the clients that are batched, not runs around
        them.

    Raises:
      ValueError: for another word.
    """
    if form not in BATCHED_FORMS:
        raise ValueError(f"form {form!r}: allowed are {', '.join(BATCHED_FORMS)}")
    with _batched_form(form):
        yield


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
        return _by_what_is_batched(images, kernel, stride, padding, _for_size(kernel, _batched_form.value))
    if stride == 1:
        return _with_direct_gradients(images, kernel, padding)
    return _patches_product(images, kernel, stride, (padding, padding))


def _for_size(kernel: jax.Array, form: str) -> str:
    """What "auto" is on a GPU for a kernel whose patches are larger than the result; all else is as it is named."""
    is_large = math.prod(kernel.shape[:3]) > kernel.shape[3]
    return "grouped" if form == "auto" and is_large and platform() == "gpu" else form


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _by_what_is_batched(images: jax.Array, kernel: jax.Array, stride: int, padding: int, form: str) -> jax.Array:
    """XLA's convolution with XLA's gradients; `form` where `vmap` gives each client its own kernel."""

    def forward(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return _xla(images, kernel, stride, padding)

    def batched(clients: int) -> Callable[..., jax.Array]:
        return _form(form, stride, padding)

    result: jax.Array = _choose(forward, batched, joins=True)(images, kernel)
    return result


def _saving(images: jax.Array, kernel: jax.Array, stride: int, padding: int, form: str) -> tuple[jax.Array, Any]:
    return _by_what_is_batched(images, kernel, stride, padding, form), (images, kernel)


def _gradients(stride: int, padding: int, form: str, saved: Any, grad: jax.Array) -> Any:
    images, kernel = saved

    def forward(images: jax.Array, kernel: jax.Array, grad: jax.Array) -> Any:
        return jax.vjp(lambda x, w: _xla(x, w, stride, padding), images, kernel)[1](grad)

    pixels = grad.size // grad.shape[-1]
    patches = pixels * math.prod(kernel.shape[:3]) * images.dtype.itemsize  # of one client

    def batched(clients: int) -> Callable[..., Any]:
        def gradients(images: jax.Array, kernel: jax.Array, grad: jax.Array) -> Any:
            if form == "taps" or (form == "auto" and clients * patches > LARGE_PATCHES):
                # The barrier keeps the compiler from holding what the forward pass made of the images until here.
                images, grad = lax.optimization_barrier((images, grad))
            return jax.vjp(_form(form, stride, padding), images, kernel)[1](grad)

        return gradients

    return _choose(forward, batched, joins=False)(images, kernel, grad)


_by_what_is_batched.defvjp(_saving, _gradients)


def _form(form: str, stride: int, padding: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """How clients convolve, each with its own kernel."""
    if form == "grouped":
        return lambda x, w: _xla(x, w, stride, padding)
    if form == "taps":
        return lambda x, w: _taps(x, w, stride, padding)
    return lambda x, w: _patches_product(x, w, stride, (padding, padding))


def _choose(
    single: Callable[..., Any], many: Callable[[int], Callable[..., Any]], *, joins: bool
) -> Callable[..., Any]:
    """`single` as it is and for a batch of one; the `vmap` of `many(size)` for more.

    If `joins`, and only the first argument has a batch, that is joined with the images' own: `single` takes all at once.
    """
    chosen = jax.custom_batching.custom_vmap(single)

    @chosen.def_vmap
    def _(size: int, batched: list[bool], *args: jax.Array) -> tuple[Any, Any]:
        with jax.enable_x64(args[0].dtype == jnp.float64):  # this may run after the caller's own has ended
            if size == 1:
                only = [x[0] if is_batched else x for x, is_batched in zip(args, batched, strict=True)]
                result = jax.tree.map(lambda x: x[None], _choose(single, many, joins=joins)(*only))
            elif joins and not any(batched[1:]):
                together = _choose(single, many, joins=True)(args[0].reshape(-1, *args[0].shape[2:]), *args[1:])
                result = together.reshape(size, -1, *together.shape[1:])
            else:
                result = jax.vmap(many(size), in_axes=tuple(0 if is_batched else None for is_batched in batched))(*args)
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


def _taps(images: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Sum over the positions of a kernel of the images, shifted, times the kernel there."""
    kernel_height, kernel_width = kernel.shape[:2]
    images = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows = (images.shape[1] - kernel_height) // stride * stride + 1
    columns = (images.shape[2] - kernel_width) // stride * stride + 1
    return sum(
        (
            images[:, i : i + rows : stride, j : j + columns : stride] @ kernel[i, j]
            for i in range(kernel_height)
            for j in range(kernel_width)
        ),
        start=jnp.zeros((), images.dtype),
    )


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
