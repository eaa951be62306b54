"""The paper's network for Shakespeare: an embedding and two LSTM layers that predict the next character."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lasa_jax import ops
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
        steps = (jnp.swapaxes(x, 0, 1).reshape(time * batch, inputs) @ kernel + bias[None]).reshape(time, batch, width)
        return jnp.swapaxes(_recur(steps, recurrent), 0, 1)


# Of a step the forward scan keeps its gates and its cell and the backward scan yields the gates' gradients: the fewer
# arrays a step writes, the fewer kernels an accelerator launches. All else is one product or one pass over all times.
@jax.custom_vjp
def _recur(steps: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Outputs h_1 .. h_T, `(time, batch, features)`, of what inputs add to the gates, `(time, batch, 4 * features)`."""
    return _forward(steps, recurrent)[0]


def _forward(steps: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, Any]:
    def step(carry: tuple[jax.Array, jax.Array], x_t: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Any]:
        h, c = carry
        gates = x_t + h @ recurrent
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), (gates, c)

    zeros = jnp.zeros((steps.shape[1], recurrent.shape[0]), steps.dtype)
    gates, cells = jax.lax.scan(step, (zeros, zeros), steps, unroll=_unroll())[1]
    outputs = nn.sigmoid(jnp.split(gates, 4, axis=-1)[3]) * jnp.tanh(cells)
    return outputs, (gates, cells, outputs, recurrent)


def _backward(saved: Any, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    gates, cells, outputs, recurrent = saved
    time, batch, features = cells.shape
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, g, o, squashed = nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o), jnp.tanh(cells)
    slopes = jnp.stack(
        [g * i * (1 - i), _before(cells) * f * (1 - f), i * (1 - g**2), squashed * o * (1 - o)], axis=2
    )  # of the cell by i, f, g, and of the output by o
    of_output = jnp.arange(4, dtype=jnp.int32)[None, :, None] == 3

    def step(carry: tuple[jax.Array, jax.Array], at: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        # The cell's gradient is carried four times, so that both results have one shape: one kernel gives both.
        to_h, to_c = carry
        grad_t, slopes, h_by_c, f = (x if x.ndim == 3 else x[:, None] for x in at)
        to_h = to_h[:, None] + grad_t
        to_c = to_c + to_h * h_by_c
        to_gates = jnp.where(of_output, to_h, to_c) * slopes
        return (to_gates.reshape(batch, -1) @ (recurrent.T if copied is None else copied), to_c * f), to_gates

    # On a CPU a product of few rows with a kernel that is read across takes twice as long; elsewhere a copy costs memory.
    copied = jax.lax.optimization_barrier(recurrent.T) if ops.one_at_a_time() else None
    start = jnp.zeros_like(cells[0]), jnp.zeros_like(slopes[0])
    at = (grad, slopes, o * (1 - squashed**2), f)
    to_steps = jax.lax.scan(step, start, at, reverse=True, unroll=_unroll())[1].reshape(time, batch, 4 * features)
    # One product over all times: inside the scan every step would read and write the whole kernel.
    rows = time * batch
    return to_steps, _before(outputs).reshape(rows, -1).T @ to_steps.reshape(rows, -1)


_recur.defvjp(_forward, _backward)


def _before(states: jax.Array) -> jax.Array:
    """Of each time the state before it."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def _unroll() -> int:
    """Steps of a scan in one pass of its loop: on an accelerator what a loop writes and counts is launched less often."""
    return 1 if ops.one_at_a_time() else 10


class Embedding(nn.Module):
    """Rows of a table, N(0, 1) at the start; the row of the padding token counts as zero and has no gradient."""

    num_tokens: int
    features: int

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        def init(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.normal(key, shape, jnp.float32).at[PADDING].set(0)

        table = self.param("kernel", init, (self.num_tokens, self.features))
        return jnp.where((tokens != PADDING)[..., None], table[tokens], 0)


class CharLSTM(nn.Module):
    """Embedding of 8, two LSTM layers of 256, and a dense layer: 822,570 parameters for 90 characters.

    Tokens `(batch, time)` to logits `(batch, time, num_classes)`. Source: supplement, section B; the official code.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = Embedding(self.num_classes, 8, name="embedding")(x.astype(jnp.int32))
        x = LSTM(256, name="lstm1")(x)
        x = LSTM(256, name="lstm2")(x)
        flat = x.reshape(math.prod(x.shape[:2]), x.shape[2])
        return Dense(self.num_classes, name="dense")(flat).reshape(*x.shape[:2], self.num_classes)
