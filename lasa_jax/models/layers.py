"""Layers with PyTorch's default initialisation, convolutions in matrix-product form, and a batch norm that takes a mask."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from lasa_jax import ops

Initializer = Callable[..., jax.Array]


def uniform_fan_in(fan_in: int) -> Initializer:
    """Uniform on `[-1 / sqrt(fan_in), 1 / sqrt(fan_in)]`: PyTorch's default, docs/fidelity.md, section 7."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def _over(vector: jax.Array, like: jax.Array) -> jax.Array:
    """A vector of the last axis with as many axes as an array: NumPy's rule, also where JAX is told not to apply it."""
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


class Conv(nn.Module):
    """2-D convolution of `(batch, height, width, channels)`, see `ops.conv2d`; with `pooled` the maxima of 2 x 2 squares."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    pooled: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        init = uniform_fan_in(math.prod(shape[:3]))
        x = ops.conv2d(x, self.param("kernel", init, shape), stride=self.stride, padding=self.padding)
        bias = self.param("bias", init, (self.features,)) if self.use_bias else None
        if self.pooled:
            return ops.max_pool2d(x, bias)
        return x if bias is None else x + _over(bias, x)


class Dense(nn.Module):
    """Fully connected layer of `(batch, inputs)`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        x = ops.dense(x, kernel)
        return x + _over(self.param("bias", init, (self.features,)), x)


class Dropout(nn.Module):
    """Zeroes entries with probability `rate` in training and scales the others by `1 / (1 - rate)`.

    The masks are the same for every precision of training.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        if not train:
            return x
        kept = jax.random.bernoulli(self.make_rng("dropout"), jnp.float32(1 - self.rate), x.shape)
        return jnp.where(kept, x / (1 - self.rate), 0)


class BatchNorm(nn.Module):
    """Batch normalisation over batch and pixels, statistics over the real examples of the batch only.

    y = scale * (x - mean) / sqrt(variance + 1e-5) + bias
    running = 0.9 * running + 0.1 * batch statistic        (the running variance takes the unbiased one, as PyTorch)
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        shape, dtype = (x.shape[-1],), x.dtype
        x = x.astype(ops.wide(x))  # sums over a batch need more than bfloat16
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            mean, var = running_mean.value, running_var.value
        else:
            real = jnp.ones(x.shape[:1], bool) if mask is None else mask
            weight = real.astype(x.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
            count = jnp.maximum(jnp.sum(weight) * math.prod(x.shape[1:-1]), 1)
            axes = tuple(range(x.ndim - 1))
            mean = jnp.sum(jnp.where(weight > 0, x, 0), axes) / count
            var = jnp.sum(jnp.where(weight > 0, (x - _over(mean, x)) ** 2, 0), axes) / count
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value = (1 - self.momentum) * running_mean.value + self.momentum * mean
                running_var.value = (1 - self.momentum) * running_var.value + self.momentum * unbiased
        mean, factor, scale, bias = (_over(v, x) for v in (mean, jax.lax.rsqrt(var + self.epsilon), scale, bias))
        return ((x - mean) * factor * scale + bias).astype(dtype)
