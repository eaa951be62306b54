"""Local training of one client: SGD with momentum over a few epochs of its own examples."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lasa_jax import ops
from lasa_jax.data import Dataset, Examples
from lasa_jax.models import Model, Variables

Scalar = float | jax.Array


class SGD(NamedTuple):
    """Numbers of local training; all may be traced.

    Attributes:
      learning_rate: before decay.
      momentum: PyTorch's form, v <- momentum * v + g, w <- w - learning_rate * v.
      decay: the rate of round t, counted from 1, is `learning_rate * decay ** (t // decay_every)`: where `decay_every` is
        1 the first round decays already, as in the official code.
      clip_norm: largest norm of an update that is sent, or None.
    """

    learning_rate: Scalar
    momentum: Scalar
    decay: Scalar
    clip_norm: Scalar | None


def clip_update(update: Variables, limit: Scalar) -> Variables:
    """`update / max(1, norm / limit)`, the norm over the whole update (docs/fidelity.md, section 1.1)."""
    scale = 1 / jnp.maximum(ops.tree_norm(update) / limit, 1)
    return jax.tree.map(lambda x: x * scale, update)


def _repeat(step: Callable[[Any, Any], Any], carry: Any, steps: jax.Array, most: int | None) -> Any:
    """`carry = step(index, carry)` for `steps` times, a number of the client.

    Where no client takes more than `most`, and hardly any fewer, an accelerator does all of these: a count that the compiler
    knows needs no check by the host, and a loop of one pass is none. What a client does beyond its own steps is dropped.
    """
    if most is None or ops.one_at_a_time():
        return jax.lax.fori_loop(0, steps, step, carry)

    def or_nothing(index: Any, carry: Any) -> Any:
        return jax.tree.map(functools.partial(jnp.where, index < steps), step(index, carry), carry)

    return jax.lax.fori_loop(0, most, or_nothing, carry)


def matmul_precision(precision: str) -> str:
    """What `jax.default_matmul_precision` takes for a word of `LocalTraining.precision`."""
    return {"tf32": "tensorfloat32", "bfloat16": "default"}.get(precision, "highest")


@dataclasses.dataclass(frozen=True, eq=False)
class LocalTraining:
    """Local training as a pure function of one client. What is fixed at compile time is an attribute.

    Attributes:
      model: see `models`.
      dataset: how examples are normalised and augmented.
      epochs: passes over the client's examples; may be traced.
      batch_size: examples of a step; the last, shorter batch of an epoch is kept.
      decay_every: see `SGD`.
      clips_parameters_only: running statistics neither count in the norm that is clipped nor are scaled with it.
      precision: "tf32" and "float32" differ in products only: TF32 on a GPU that has it, three passes of bfloat16 on a TPU
        and float32 on a CPU; or every digit of float32 everywhere. "bfloat16" for products and activations, while weights,
        velocity, statistics and the loss stay float32. "float64" for all of it. What is sent is float32.
      convolution: form of the convolutions of clients that are trained together, see `ops.convolving_by`.
      ragged: whether clients differ in their numbers of steps, see `_repeat`.
    """

    model: Model
    dataset: Dataset
    epochs: int | jax.Array
    batch_size: int
    decay_every: int
    clips_parameters_only: bool = False
    precision: str = "tf32"
    convolution: str = "auto"
    ragged: bool = True

    @property
    def matmul_precision(self) -> str:
        """Of products and convolutions in training and evaluation, as `jax.default_matmul_precision` takes it."""
        return matmul_precision(self.precision)

    def __call__(
        self,
        variables: Variables,
        sgd: SGD,
        train: Examples,
        round_index: jax.Array,
        *,
        indices: jax.Array,
        size: jax.Array,
        key: jax.Array,
        poison: Callable[..., tuple[jax.Array, jax.Array]] | None = None,
        constrain: Callable[[Variables, Variables], Variables] | None = None,
    ) -> tuple[Variables, jax.Array]:
        """Trains from the global model and returns the update.

        Each epoch draws a new order of the client's examples. A client takes exactly
        `epochs * ceil(size / batch_size)` steps; padding changes no gradient and no batch statistic.

        Args:
          variables: the global model.
          sgd: numbers of the optimiser. The velocity starts at zero.
          train: all training examples.
          round_index: t, counted from 1.
          indices: int32 `(width,)`, the client's examples, padded.
          size: how many of them are real; 0 takes no step.
          key: of this client in this round.
          poison: `(inputs, labels, key=key) -> (inputs, labels)` of a batch as stored, after augmentation, for attacks that
            poison data. Which labels count is decided by the true ones.
          constrain: `(model, global model) -> model` after every step, for attacks that hold their clients back.

        Returns:
          `local model - global model` over the whole tree of variables, batch statistics included, scaled down to
          `clip_norm`; and the mean loss over the labels seen, NaN for a client without examples.
        """
        kept = jnp.dtype("float64" if self.precision == "float64" else "float32")
        computed = jnp.dtype({"tf32": "float32"}.get(self.precision, self.precision))

        def cast(tree: Any, dtype: jnp.dtype) -> Any:
            return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)

        decayed = jnp.asarray(round_index, jnp.int32) // self.decay_every  # times
        rate = sgd.learning_rate * jax.lax.pow(jnp.asarray(sgd.decay, jnp.float32), decayed)
        width = -(-indices.shape[0] // self.batch_size) * self.batch_size
        place = jnp.arange(width, dtype=jnp.int32)

        def loss_of(params: Any, rest: Variables, batch: jax.Array, real: jax.Array, key: jax.Array) -> Any:
            augment_key, dropout_key = jax.random.split(key)
            labels = train.labels[batch]
            inputs, wanted = self.dataset.augment(augment_key, train.inputs[batch]), labels
            if poison is not None:
                inputs, wanted = poison(
                    inputs, labels, key=jax.random.fold_in(key, 2)
                )  # 0 and 1 are those of the split
            inputs = self.dataset.normalise(inputs)
            # What padding holds must not matter: its gradient is zero, but zero times NaN is NaN.
            inputs = jnp.where(real.reshape((-1,) + (1,) * (inputs.ndim - 1)), inputs, 0)
            logits, updated = self.model.apply(
                {**rest, "params": cast(params, computed)},
                cast(inputs, computed),
                train=True,
                key=dropout_key,
                mask=real,
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(kept), wanted)
            counted = self.dataset.counted(labels, real)
            total = jnp.sum(jnp.where(counted, losses, 0.0))
            count = jnp.sum(counted, dtype=jnp.int32).astype(total.dtype)
            seen = jnp.stack([total, count]).astype(jnp.float32)
            return total / jnp.maximum(count, 1), (cast(updated, kept), seen)

        def order_and_key(index: jax.Array) -> tuple[jax.Array, jax.Array]:
            order_key, steps_key = jax.random.split(jax.random.fold_in(key, index))
            # A random order of the first `size` places: padding has the largest key and the sort is stable.
            draws = jnp.where(place < size, jax.random.bits(order_key, (width,), jnp.uint32), jnp.uint32(0xFFFFFFFF))
            return jnp.pad(indices, (0, width - indices.shape[0]))[jnp.argsort(draws, stable=True)], steps_key

        # All before the loop where their number is known: in it, each kernel would be launched for each epoch.
        known = isinstance(self.epochs, int)
        drawn = jax.vmap(order_and_key)(jnp.arange(self.epochs, dtype=jnp.int32)) if known else None

        def epoch(index: jax.Array, carry: Any) -> Any:
            order, steps_key = order_and_key(index) if drawn is None else (drawn[0][index], drawn[1][index])

            def step(index: jax.Array, carry: Any) -> Any:
                current, velocity, loss = carry
                start = index * self.batch_size
                batch = jax.lax.dynamic_slice(order, (start,), (self.batch_size,))
                real = start + jnp.arange(self.batch_size, dtype=jnp.int32) < size
                step_key = jax.random.fold_in(steps_key, index)
                grads, (updated, total) = jax.grad(loss_of, has_aux=True)(
                    current["params"], current, batch, real, step_key
                )
                change, velocity = optimizer.update(grads, velocity)
                moved = {**updated, "params": optax.apply_updates(current["params"], change)}
                return moved if constrain is None else constrain(moved, begun), velocity, loss + total

            steps = (size + self.batch_size - 1) // self.batch_size
            return _repeat(step, carry, steps, None if self.ragged else width // self.batch_size)

        wide = jax.enable_x64(True) if self.precision == "float64" else contextlib.nullcontext()
        with wide, jax.default_matmul_precision(self.matmul_precision), ops.convolving_by(self.convolution):
            optimizer = optax.sgd(rate.astype(kept), momentum=jnp.asarray(sgd.momentum, kept))
            begun = cast(variables, kept)
            # Hidden from the compiler: it would keep one copy for each client of what all begin with, to subtract it below.
            first, velocity = jax.lax.optimization_barrier((begun, optimizer.init(begun["params"])))
            start = (first, velocity, jnp.zeros(2, jnp.float32))  # loss and labels so far
            local, _, loss = jax.lax.fori_loop(0, self.epochs, epoch, start)
            update = jax.tree.map(lambda new, old, like: (new - old).astype(like.dtype), local, begun, variables)
        if sgd.clip_norm is not None:
            part = {"params": update["params"]} if self.clips_parameters_only else update
            update = {**update, **clip_update(part, sgd.clip_norm)}
        return update, loss[0] / loss[1]
