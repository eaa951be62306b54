"""The product of a dense layer, with a gradient of its kernel that is not written to memory where examples are few."""

import jax
import jax.numpy as jnp

from lasa_jax.ops.statistics import wide
from lasa_jax.ops.target import platform

_FEW = 16  # examples


def dense(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`inputs @ kernel`.

    On a GPU the gradient of a kernel by few examples is a sum of outer products, entry by entry in float32: the compiler
    makes it a part of what reads it, so that SGD makes the gradients of a hundred clients where it adds them. As a product
    they would be as large as all kernels, written and read again. That form is for reverse mode, any number of times over;
    forward mode (`jax.jvp`) has no rule for it, and raises TypeError, except over a gradient, as `jax.hessian` is.

    Args:
      inputs: `(batch, features)`; with other axes it is a plain product everywhere.
      kernel: `(features, outputs)`.
    """
    is_few = platform() == "gpu" and inputs.ndim == kernel.ndim == 2 and inputs.shape[0] <= _FEW
    return _by_few(inputs, kernel) if is_few else inputs @ kernel


@jax.custom_vjp
def _by_few(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    return inputs @ kernel


def _forward(inputs: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return inputs @ kernel, (inputs, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs, kernel = saved
    kind = wide((inputs, grad))
    each = (x[:, None].astype(kind) * g[None, :].astype(kind) for x, g in zip(inputs, grad, strict=True))
    return (grad @ kernel.T).astype(inputs.dtype), sum(each, start=jnp.zeros((), kind)).astype(kernel.dtype)


_by_few.defvjp(_forward, _backward)
