"""Variances of gradients that the paper's assumptions bound, measured in a round. docs/theory.md explains them."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lasa_jax.errors import InputError, check_number
from lasa_jax.inspection import replay
from lasa_jax.inspection.rounds import PyTree


class GradientVariances(NamedTuple):
    """Measured at local models theta_i^s of benign clients i at steps s.

    noise: E‖g - grad L_i(theta_i^s)‖² of a stochastic gradient g, `(steps, clients)`.
    divergence: mean over benign j of ‖grad L_j(theta_i^s) - grad L_B(theta_i^s)‖², `(steps, clients)`.
    nu, zeta: what the assumptions ask for: the largest over the steps of the clients' mean noise; the largest divergence.
    """

    noise: np.ndarray
    divergence: np.ndarray

    @property
    def nu(self) -> float:
        return float(self.noise.mean(axis=1).max())

    @property
    def zeta(self) -> float:
        return float(self.divergence.max())


def gradient_variances(
    loss: Callable[[PyTree, jax.Array, jax.Array], jax.Array],
    models: PyTree,
    inputs: np.ndarray,
    labels: np.ndarray,
    sizes: np.ndarray,
    *,
    batch_size: int,
) -> GradientVariances:
    """The variances of gradients that assumptions 2 and 3 bound, from gradients of every example at given local models.

    Nothing is drawn: with per-example gradients g_1 .. g_N, a batch of b of the N examples without replacement has exactly

        E‖g_batch - mean‖² = (N - b) / (N - 1) * (1/b) * (1/N) sum_j ‖g_j - mean‖²

    and b is the smallest batch of an epoch, since the assumption is to hold for every step. That is right where the loss is
    a mean over examples: no batch normalisation, no dropout. One batch an epoch has no noise at all.

    Args:
      loss: `(params, input, label) -> loss` of one example; `replay.example_loss` gives it for a run.
      models: local models of the benign clients, leaves `(steps, clients, ...)`; `replay.local_models` gives those at the
        start of each epoch. Every leaf is differentiated.
      inputs, labels: of the same clients, `(clients, width, ...)`, padded.
      sizes: how many of them are real, `(clients,)`, at least 1.
      batch_size: of local training.

    Raises:
      InputError: for a client without examples or a batch size below 1.
    """
    check_number("batch_size", batch_size, low=1, whole=True)
    check_number("sizes", sizes, low=1, high=inputs.shape[1], whole=True)
    last = sizes % batch_size
    smallest = np.where(last == 0, batch_size, last)
    counts = (jnp.asarray(sizes), jnp.asarray(smallest))
    real = jnp.arange(inputs.shape[1]) < counts[0][:, None]

    def mean_loss(params: PyTree, inputs: jax.Array, labels: jax.Array, real: jax.Array) -> jax.Array:
        losses = jax.vmap(loss, (None, 0, 0))(params, inputs, labels)
        return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.sum(real)

    def of_model(params: PyTree, client: jax.Array, examples: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        inputs, labels, real = examples
        full = jax.lax.map(lambda own: ravel_pytree(jax.grad(mean_loss)(params, *own))[0], examples)
        divergence = jnp.mean(jnp.sum((full - full.mean(axis=0)) ** 2, axis=1))
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, inputs[client], labels[client])
        squares = jax.vmap(lambda g: jnp.sum((ravel_pytree(g)[0] - full[client]) ** 2))(each)
        size, batch = counts[0][client], counts[1][client]
        variance = jnp.sum(jnp.where(real[client], squares, 0.0)) / size
        return variance / batch * (size - batch) / jnp.maximum(size - 1, 1), divergence

    @jax.jit
    def all_models(models: PyTree, examples: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        clients = jnp.arange(len(sizes))
        one = lambda row: of_model(row[0], row[1], examples)  # noqa: E731
        return jax.lax.map(lambda stage: jax.lax.map(one, (stage, clients)), models)

    noise, divergence = all_models(models, (jnp.asarray(inputs), jnp.asarray(labels), real))
    return GradientVariances(np.asarray(noise, np.float64), np.asarray(divergence, np.float64))


def round_variances(before: replay.Before, malicious: np.ndarray) -> GradientVariances:
    """`gradient_variances` of a round's benign clients, at their models at the start of each epoch.

    That takes epochs * clients² full gradients.

    Args:
      before: from `replay.before_round`.
      malicious: bool `(n,)`, from `replay.received`.

    Raises:
      InputError: for a model with batch normalisation or dropout, or a round without benign clients.
    """
    inputs, labels, sizes = replay.local_examples(before)
    model = before.program.local_training.model
    if set(before.state.variables) != {"params"}:
        raise InputError("variances: the model has batch statistics, allowed is one whose loss is a mean over examples")
    if malicious.all():
        raise InputError("variances: no client of the round is benign")
    # Dropout is noise in the gradients of training, which the loss below has not.
    one, other = (
        model.apply(before.state.variables, inputs[:, 0], train=True, key=jax.random.key(k))[0] for k in (0, 1)
    )
    if not np.array_equal(one, other):
        raise InputError("variances: the model has dropout, allowed is one whose training draws nothing but batches")
    return gradient_variances(
        replay.example_loss(before),
        jax.tree.map(lambda x: x[:, ~malicious], replay.local_models(before)),
        inputs[~malicious],
        labels[~malicious],
        sizes[~malicious],
        batch_size=before.program.local_training.batch_size,
    )
