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
    a mean over examples: no batch normalisation, no dropout, for which there is `drawn_variances`. One batch an epoch has
    no noise at all.

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
    check_sizes(sizes, inputs.shape[1], batch_size)
    last = sizes % batch_size
    smallest = np.where(last == 0, batch_size, last)
    counts = (jnp.asarray(sizes), jnp.asarray(smallest))
    real = jnp.arange(inputs.shape[1]) < counts[0][:, None]
    examples = (jnp.asarray(inputs), jnp.asarray(labels), real)

    def noise(params: PyTree, client: jax.Array, full: jax.Array, examples: PyTree) -> jax.Array:
        inputs, labels, real = jax.tree.map(lambda x: x[client], examples)
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, inputs, labels)
        squares = jax.vmap(lambda g: jnp.sum((ravel_pytree(g)[0] - full) ** 2))(each)
        size, batch = counts[0][client], counts[1][client]
        variance = jnp.sum(jnp.where(real, squares, 0.0)) / size
        return variance / batch * (size - batch) / jnp.maximum(size - 1, 1)

    return _at_models(over_examples(loss), noise, models, examples)


def over_examples(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`(params, (inputs, labels, real)) -> loss` of a client, the mean over its examples. Args: loss: of one example."""

    def mean(params: PyTree, examples: tuple[jax.Array, ...]) -> jax.Array:
        inputs, labels, real = examples
        losses = jax.vmap(loss, (None, 0, 0))(params, inputs, labels)
        return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.sum(real)

    return mean


class Drawn(NamedTuple):
    """Epochs of clients whose draws are fixed, see `draw_epochs`.

    inputs, labels: `(clients, width, ...)`, as stored. places: of the examples of each batch, int32 `(clients, batches,
    batch_size)`. real: which of them are examples, bool, the same shape. keys: of the batches, `(clients, batches)`.
    counted: bool `(clients, batches)`, False for the batches that smaller clients lack.
    """

    inputs: jax.Array
    labels: jax.Array
    places: jax.Array
    real: jax.Array
    keys: jax.Array
    counted: jax.Array


def draw_epochs(
    inputs: np.ndarray, labels: np.ndarray, sizes: np.ndarray, *, batch_size: int, draws: int = 4, seed: int = 0
) -> Drawn:
    """Draws some epochs of each client, which are then the same for every model: orders, masks of dropout, crops.

    Args:
      inputs, labels: `(clients, width, ...)`, as stored, padded.
      sizes: how many of them are real, `(clients,)`, at least 1.
      batch_size: of local training.
      draws: epochs of each client.
      seed: of the draws.

    Raises:
      InputError: for a client without examples, or a batch size or number of draws below 1.
    """
    check_sizes(sizes, inputs.shape[1], batch_size)
    check_number("draws", draws, low=1, whole=True)
    steps = -(-inputs.shape[1] // batch_size)
    rng = np.random.default_rng(seed)
    places = np.zeros((len(sizes), draws, steps * batch_size), np.int32)
    for client, draw in np.ndindex(len(sizes), draws):
        places[client, draw, : sizes[client]] = rng.permutation(sizes[client])
    place = np.arange(steps * batch_size)
    real = np.broadcast_to((place < np.asarray(sizes)[:, None])[:, None], places.shape)
    shape = (len(sizes), draws * steps, batch_size)
    real = real.reshape(shape)
    keys = jax.random.split(jax.random.key(seed), shape[:2])
    return Drawn(
        jnp.asarray(inputs),
        jnp.asarray(labels),
        jnp.asarray(places.reshape(shape)),
        jnp.asarray(real),
        keys,
        jnp.asarray(real.any(axis=2)),
    )


def over_batches(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`(variables, Drawn of one client) -> loss`, the mean over its batches. Args: loss: from `replay.batch_loss`."""
    again = jax.checkpoint(loss)  # activations of one batch at a time

    def mean(variables: PyTree, drawn: Drawn) -> jax.Array:
        return _mean_over_batches(lambda batch: again(variables, *batch), drawn)

    return mean


def _mean_over_batches(measure: Callable[..., jax.Array], drawn: Drawn) -> jax.Array:
    def step(total: jax.Array, batch: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        places, real, key, counted = batch
        found = measure((drawn.inputs[places], drawn.labels[places], real, key))
        return total + jnp.where(counted, found, 0.0), None

    batches = (drawn.places, drawn.real, drawn.keys, drawn.counted)
    return jax.lax.scan(step, jnp.float32(0), batches)[0] / jnp.sum(drawn.counted)


def drawn_variances(loss: Callable[..., jax.Array], models: PyTree, drawn: Drawn) -> GradientVariances:
    """As `gradient_variances` for a model whose training draws masks, or whose batch is normalised together.

    The loss of such a client is no mean over its examples. With some epochs fixed, orders, masks and crops included, it is
    a mean over their batches, each normalised by itself: L_i is that mean, g the gradient of one of the batches, each as
    likely, and nu and zeta are exact for it. A single batch in a single fixed epoch has no noise.

    Args:
      loss: `(variables, inputs, labels, real, key) -> loss` of a batch in training, from `replay.batch_loss`.
      models: local models of the clients, leaves `(steps, clients, ...)`; every leaf is differentiated, and running
        statistics have no gradient.
      drawn: of the same clients.
    """

    def noise(variables: PyTree, client: jax.Array, full: jax.Array, drawn: Drawn) -> jax.Array:
        own = jax.tree.map(lambda x: x[client], drawn)

        def square(batch: tuple[jax.Array, ...]) -> jax.Array:
            return jnp.sum((ravel_pytree(jax.grad(loss)(variables, *batch))[0] - full) ** 2)

        return _mean_over_batches(square, own)

    return _at_models(over_batches(loss), noise, models, drawn)


def check_sizes(sizes: np.ndarray, width: int, batch_size: int) -> None:
    """Raises InputError for a client without examples or a batch size below 1."""
    check_number("batch_size", batch_size, low=1, whole=True)
    check_number("sizes", sizes, low=1, high=width, whole=True)


def _at_models(
    client_loss: Callable[..., jax.Array], noise: Callable[..., jax.Array], models: PyTree, examples: PyTree
) -> GradientVariances:
    """Noise and divergence at every model.

    Args:
      client_loss: `(model, examples of one client) -> L_i`.
      noise: `(model, client, grad L_i, examples) -> ` variance of a stochastic gradient of that client.
      models: leaves `(steps, clients, ...)`.
      examples: leaves `(clients, ...)`.
    """

    def of_model(model: PyTree, client: jax.Array, examples: PyTree) -> tuple[jax.Array, jax.Array]:
        full = jax.lax.map(lambda own: ravel_pytree(jax.grad(client_loss)(model, own))[0], examples)
        divergence = jnp.mean(jnp.sum((full - full.mean(axis=0)) ** 2, axis=1))
        return noise(model, client, full[client], examples), divergence

    @jax.jit
    def all_models(models: PyTree, examples: PyTree) -> tuple[jax.Array, jax.Array]:
        clients = jnp.arange(len(jax.tree.leaves(examples)[0]))
        one = lambda row: of_model(row[0], row[1], examples)  # noqa: E731
        return jax.lax.map(lambda stage: jax.lax.map(one, (stage, clients)), models)

    found, divergence = all_models(models, examples)
    return GradientVariances(np.asarray(found, np.float64), np.asarray(divergence, np.float64))


def draws_in_training(before: replay.Before) -> bool:
    """Whether the loss of training is no mean over examples: the model has batch statistics, or dropout."""
    if set(before.state.variables) != {"params"}:
        return True
    inputs = replay.local_examples(before)[0][:, 0]
    model = before.program.local_training.model
    one, other = (model.apply(before.state.variables, inputs, train=True, key=jax.random.key(k))[0] for k in (0, 1))
    return not np.array_equal(one, other)


def round_variances(before: replay.Before, malicious: np.ndarray, *, draws: int = 4) -> GradientVariances:
    """nu and zeta of a round's benign clients, at their models at the start of each epoch.

    By `gradient_variances` where the loss is a mean over examples; by `drawn_variances` with dropout or batch normalisation.
    That takes epochs * clients² gradients of a client's examples, with draws so many times as many.

    Args:
      before: from `replay.before_round`.
      malicious: bool `(n,)`, from `replay.received`.
      draws: epochs that are fixed for each client, where training draws.

    Raises:
      InputError: for a round without benign clients.
    """
    if malicious.all():
        raise InputError("variances: no client of the round is benign")
    models = jax.tree.map(lambda x: x[:, ~malicious], replay.local_models(before))
    batch_size = before.program.local_training.batch_size
    if draws_in_training(before):
        stored = (x[~malicious] for x in replay.stored_examples(before))
        return drawn_variances(
            replay.batch_loss(before), models, draw_epochs(*stored, batch_size=batch_size, draws=draws)
        )
    inputs, labels, sizes = (x[~malicious] for x in replay.local_examples(before))
    return gradient_variances(replay.example_loss(before), models, inputs, labels, sizes, batch_size=batch_size)
