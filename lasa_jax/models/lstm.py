"""The paper's network for Shakespeare: an embedding and two LSTM layers that predict the next character."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lasa_jax.models.layers import Dense, uniform_fan_in

PADDING = 0  # the token whose embedding is fixed at zero


class LSTM(nn.Module):
    """One LSTM layer over whole sequences, `(batch, time, inputs)` to `(batch, time, features)`, from a state of zeros.

        i, f, g, o = x_t W + b + h_{t-1} U + b'
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g),    h_t = sigmoid(o) * tanh(c_t)

    Two bias vectors, since each is a layer to LASA, as in PyTorch. The products `x_t W` of all times are one matmul; only
    `h U` is left inside the scan. Source: Hochreiter and Schmidhuber, Neural Computation 1997, with forget gates.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(self.features)
        width = 4 * self.features
        kernel = self.param("input_kernel", init, (x.shape[-1], width))
        recurrent = self.param("hidden_kernel", init, (self.features, width))
        bias = self.param("input_bias", init, (width,)) + self.param("hidden_bias", init, (width,))
        batch, time, inputs = x.shape
        steps = (jnp.swapaxes(x, 0, 1).reshape(time * batch, inputs) @ kernel + bias).reshape(time, batch, width)
        return jnp.swapaxes(_recur(steps, recurrent), 0, 1)


def _scan(steps: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Outputs h_1 .. h_T, `(time, batch, features)`, of what inputs add to the gates, `(time, batch, 4 * features)`."""

    def step(carry: tuple[jax.Array, jax.Array], x_t: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = carry
        i, f, g, o = jnp.split(x_t + h @ recurrent, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((steps.shape[1], recurrent.shape[0]), steps.dtype)
    return jax.lax.scan(step, (zeros, zeros), steps)[1]


# The gradient of the recurrent kernel is a sum over all times of products of h_{t-1} with the gradient of the gates at t.
# Left to itself it is added up inside the backward scan, which reads and writes the whole kernel in every step.
@jax.custom_vjp
def _recur(steps: jax.Array, recurrent: jax.Array) -> jax.Array:
    return _scan(steps, recurrent)


def _forward(steps: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, Any]:
    outputs, pull_back = jax.vjp(lambda steps: _scan(steps, recurrent), steps)
    return outputs, (outputs, pull_back)


def _backward(saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    outputs, pull_back = saved
    (to_steps,) = pull_back(grad)  # what x_t adds to the gates has their gradient
    before = jnp.concatenate([jnp.zeros_like(outputs[:1]), outputs[:-1]])
    rows = to_steps.shape[0] * to_steps.shape[1]
    return to_steps, before.reshape(rows, -1).T @ to_steps.reshape(rows, -1)


_recur.defvjp(_forward, _backward)


class Embedding(nn.Module):
    """Rows of a table, N(0, 1) at the start; the row of the padding token counts as zero and has no gradient."""

    num_tokens: int
    features: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.normal(key, shape).at[PADDING].set(0)

        table = self.param("kernel", init, (self.num_tokens, self.features))
        return jnp.where((tokens != PADDING)[..., None], table[tokens], 0)


class CharLSTM(nn.Module):
    """Embedding of 8, two LSTM layers of 256, and a dense layer: 822,570 parameters for 90 characters.

    Tokens `(batch, time)` to logits `(batch, time, num_classes)`. Source: supplement, section B; FIDELITY.md, section 6.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = Embedding(self.num_classes, 8, name="embedding")(x.astype(jnp.int32))
        x = LSTM(256, name="lstm1")(x)
        x = LSTM(256, name="lstm2")(x)
        flat = x.reshape(math.prod(x.shape[:2]), x.shape[2])
        return Dense(self.num_classes, name="dense")(flat).reshape(*x.shape[:2], self.num_classes)
