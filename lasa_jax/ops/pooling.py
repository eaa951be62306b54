"""Max pooling, whose gradient an accelerator takes from a byte for each result in place of the images."""

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax.ops.rows import one_at_a_time


def max_pool2d(images: jax.Array, bias: jax.Array | None = None, *, window: int = 2) -> jax.Array:
    """Maximum of `images + bias` over disjoint `window x window` squares; rows and columns left over are dropped.

    Equal maxima share the gradient: first those of different columns of a square, then those within a column. An accelerator
    adds the bias to the maxima, so that its gradient is a sum over fewer values. Rounding keeps order, so the result is the
    same; but entries that the sum with the bias makes equal share on a CPU only.

    Args:
      images: `(batch, height, width, channels)`.
      bias: `(channels,)`, or None for zeros.
      window: side of a square, in pixels.

    Returns:
      `(batch, height // window, width // window, channels)`. On an accelerator squares of 2 x 2 have a gradient of our own,
      and no derivative in forward mode but of that gradient.
    """
    height, width = (size // window * window for size in images.shape[1:3])
    images = images[:, :height, :width]

    def shifted(x: jax.Array) -> jax.Array:
        return x if bias is None else x + bias.reshape(1, 1, 1, -1)

    if one_at_a_time():
        return _by_columns(shifted(images), window)
    return shifted(_of_four(images) if window == 2 else _by_columns(images, window))


def _by_columns(images: jax.Array, window: int) -> jax.Array:
    """First over rows, then over columns: half the work of one reduction over both, and a gradient twice as fast."""
    batch, height, width, channels = images.shape
    rows = images.reshape(batch, height // window, window, width, channels).max(axis=2)
    return rows.reshape(batch, height // window, width // window, window, channels).max(axis=3)


@jax.custom_vjp
def _of_four(images: jax.Array) -> jax.Array:
    return _coded(images)[0]


def _coded(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima, and which entries they equal: bits 0 to 3 within the columns of a square, 4 and 5 its columns."""
    batch, height, width, channels = images.shape
    squares = images.reshape(batch, height // 2, 2, width // 2, 2, channels)
    a, b, c, d = (squares[:, :, row, :, column] for row in range(2) for column in range(2))
    left, right = jnp.maximum(a, c), jnp.maximum(b, d)
    largest = jnp.maximum(left, right)
    bits = [a == left, b == right, c == left, d == right, left == largest, right == largest]
    code = sum((bit.astype(jnp.uint8) << place for place, bit in enumerate(bits)), start=jnp.zeros((), jnp.uint8))
    # One kernel for both: without the barrier each layout in which the maxima are needed would read the images anew.
    return jax.lax.optimization_barrier((largest, code))


def _gradient(code: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    batch, height, width, channels = grad.shape
    rows, columns = (np.arange(2, dtype=np.uint8).reshape(shape) for shape in ((1, 1, 2, 1, 1, 1), (1, 1, 1, 1, 2, 1)))
    code, grad = (x[:, :, None, :, None] for x in (code, grad))
    # An entry's own bit, and the two of those that share.
    share = _share(code, 16 << columns, 48) * _share(code, 1 << (2 * rows + columns), 5 << columns)
    return ((grad * share.astype(grad.dtype)).reshape(batch, 2 * height, 2 * width, channels),)


def _share(code: jax.Array, own: np.ndarray, both: np.ndarray | int) -> jax.Array:
    """Of the gradient that two entries share: all, half of it if they are equal, nothing, also where the maximum is NaN."""
    equal = code & both
    return jnp.where(equal == both, jnp.float32(0.5), (equal == own).astype(jnp.float32))


_of_four.defvjp(_coded, _gradient)
