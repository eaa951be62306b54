"""Variances of gradients by their definition, and Lemma 4 where its assumptions do not suffice."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.errors import InputError
from lasa_jax.inspection import bound, replay, variances
from lasa_jax.inspection.rounds import Round
from lasa_jax.models.layers import BatchNorm, Dense


def noisy_parabola(x, slope, label):
    """15 x² and a slope of +1 or -1: the gradient of one example is 30 x + slope."""
    return 15 * x**2 + slope * x


def test_lemma_4_does_not_follow_from_its_assumptions():
    """tau = 5, eta = 0.1 = 1 / (2 tau), nu = 1, zeta = 0, and yet the updates vary by 3.41 and not by at most 2.

    x <- x - 0.1 (30 x + noise) = -2 x - 0.1 noise: the variance after five steps is 0.01 (1 + 4 + 16 + 64 + 256). Equation
    (6) takes the gradients of all clients at one theta, but each has its own.
    """
    slopes, clients = np.array([1.0, -1.0]), 4000
    models = np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2)
    found = variances.gradient_variances(
        noisy_parabola, models, np.tile(slopes, (2, 1)), np.zeros((2, 2)), np.array([2, 2]), batch_size=1
    )
    assert found.nu == pytest.approx(1, abs=1e-4)  # whatever x
    assert found.zeta == pytest.approx(0, abs=1e-4)
    x = np.zeros(clients)
    rng = np.random.default_rng(0)
    for _ in range(5):
        x -= 0.1 * (30 * x + rng.choice(slopes, clients))
    saved = Round({"x": x.reshape(clients, 1, 1)}, np.zeros(clients, bool))
    bounded = bound.measure(saved, noise=found.nu, divergence=found.zeta, sparsity_level=0.0)
    assert bounded.benign_variance == pytest.approx(0.01 * (1 + 4 + 16 + 64 + 256), rel=0.1)
    assert bounded.benign_variance > 1.5 * bounded.lemma_4


def test_gradient_variances_are_those_of_all_batches():
    """Three clients of 5, 4 and 3 examples, batches of 2: the smallest batch of an epoch has 1, 2 and 1."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((3, 5, 4)), rng.standard_normal((3, 5))
    sizes, smallest = np.array([5, 4, 3]), (1, 2, 1)
    models = rng.standard_normal((2, 3, 4))

    def loss(w, x, y):
        return 0.5 * (jnp.dot(w, x) - y) ** 2

    found = variances.gradient_variances(loss, models, inputs, labels, sizes, batch_size=2)

    def gradients(w, client):
        x, y = inputs[client, : sizes[client]], labels[client, : sizes[client]]
        return (x @ w - y)[:, None] * x

    for step, client in itertools.product(range(2), range(3)):
        w = models[step, client]
        own = gradients(w, client)
        batches = [own[list(batch)].mean(0) for batch in itertools.combinations(range(len(own)), smallest[client])]
        expected = np.mean([((batch - own.mean(0)) ** 2).sum() for batch in batches])
        assert found.noise[step, client] == pytest.approx(expected, rel=1e-4)
        full = np.stack([gradients(w, other).mean(0) for other in range(3)])
        expected = ((full - full.mean(0)) ** 2).sum(1).mean()
        assert found.divergence[step, client] == pytest.approx(expected, rel=1e-4)
    assert found.nu == found.noise.mean(1).max()
    assert found.zeta == found.divergence.max()
    whole = variances.gradient_variances(loss, models, inputs, labels, sizes, batch_size=5)
    assert whole.noise.max() < 1e-5  # one batch an epoch: no noise
    with pytest.raises(InputError, match="sizes"):
        variances.gradient_variances(loss, models, inputs, labels, np.array([5, 0, 3]), batch_size=2)


def test_variances_of_fixed_epochs_are_those_of_their_batches():
    """By definition, for a loss with a batch statistic and a mask: L_i is the mean of the fixed batches' losses."""
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((3, 5, 4)).astype(np.float32), rng.standard_normal((3, 5)).astype(np.float32)
    sizes = np.array([5, 4, 2])
    models = rng.standard_normal((2, 3, 4)).astype(np.float32)

    def loss(w, x, y, real, key):
        weight = real.astype(jnp.float32)
        mean = (x * weight[:, None]).sum(0) / jnp.maximum(weight.sum(), 1)
        seen = (x - mean) * jax.random.bernoulli(key, 0.5, x.shape)
        return (weight * (seen @ w - y) ** 2).sum() / jnp.maximum(weight.sum(), 1)

    drawn = variances.draw_epochs(inputs, labels, sizes, batch_size=2, draws=2)
    assert drawn.places.shape == (3, 2 * 3, 2)
    assert np.asarray(drawn.counted).sum(1).tolist() == [6, 4, 2]
    for client, size in enumerate(sizes):  # each epoch has each example once
        seen = np.asarray(drawn.places)[client][np.asarray(drawn.real)[client]]
        assert np.bincount(seen, minlength=size).tolist() == [2] * size
    found = variances.drawn_variances(loss, jnp.asarray(models), drawn)

    def batches(w, client):
        return [
            np.asarray(
                jax.grad(loss)(jnp.asarray(w), drawn.inputs[client][places], drawn.labels[client][places], real, key)
            )
            for places, real, key, counted in zip(
                drawn.places[client], drawn.real[client], drawn.keys[client], drawn.counted[client], strict=True
            )
            if counted
        ]

    for step, client in itertools.product(range(2), range(3)):
        w = models[step, client]
        own = np.stack(batches(w, client))
        assert found.noise[step, client] == pytest.approx(((own - own.mean(0)) ** 2).sum(1).mean(), rel=1e-4)
        full = np.stack([np.mean(batches(w, other), axis=0) for other in range(3)])
        assert found.divergence[step, client] == pytest.approx(((full - full.mean(0)) ** 2).sum(1).mean(), rel=1e-4)
    again = variances.drawn_variances(loss, jnp.asarray(models), drawn)
    np.testing.assert_array_equal(found.noise, again.noise)  # nothing is drawn again
    with pytest.raises(InputError, match="draws = 0"):
        variances.draw_epochs(inputs, labels, sizes, batch_size=2, draws=0)


def test_one_batch_without_draws_has_no_noise():
    rng = np.random.default_rng(1)
    inputs, labels = rng.standard_normal((2, 3, 4)).astype(np.float32), np.ones((2, 3), np.float32)

    def loss(w, x, y, real, key):
        return ((x @ w - y) ** 2).mean()

    drawn = variances.draw_epochs(inputs, labels, np.array([3, 3]), batch_size=3, draws=3)
    models = jnp.asarray(rng.standard_normal((1, 2, 4)), jnp.float32)
    found = variances.drawn_variances(loss, models, drawn)
    assert found.nu < 1e-9
    plain = variances.gradient_variances(
        lambda w, x, y: (x @ w - y) ** 2, models, inputs, labels, np.array([3, 3]), batch_size=3
    )
    assert found.zeta == pytest.approx(plain.zeta, rel=1e-5)


def with_batch_norm(num_classes: int) -> nn.Module:
    """Two layers with batch normalisation between."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False, mask=None):
            x = BatchNorm(name="norm")(Dense(8)(x.reshape(len(x), -1)), train=train, mask=mask)
            return Dense(num_classes)(nn.relu(x))

    return Net()


@pytest.mark.parametrize("model", ["cnn", f"{__name__}:with_batch_norm"])
def test_variances_of_models_with_dropout_and_batch_norm(model):
    """The largest of the fixed draws' variances, with the running statistics of a local model left aside."""
    light = {"num_clients": 8, "clients_per_round": 4, "rounds": 1, "client.epochs": 2, "client.batch_size": 64}
    config = grid.resolve(configs.paper("digits"), {**light, "model": model, "attack.name": "noise"})
    before = replay.before_round(config, 1)
    assert variances.draws_in_training(before)
    malicious = np.array([True, False, False, False])
    found = variances.round_variances(before, malicious, draws=2)
    assert found.noise.shape == (2, 3)
    inputs, labels, sizes = (x[1:] for x in replay.stored_examples(before))
    drawn = variances.draw_epochs(inputs, labels, sizes, batch_size=64, draws=2)
    loss, stages = replay.batch_loss(before), replay.local_models(before)
    for step, client in ((0, 0), (1, 2)):
        variables = jax.tree.map(lambda x, step=step, client=client: x[step, client + 1], stages)
        gradient = jax.jit(lambda x, y, real, key, v=variables: ravel_pytree(jax.grad(loss)(v, x, y, real, key))[0])
        own = np.stack(
            [
                np.asarray(gradient(drawn.inputs[client][places], drawn.labels[client][places], real, key), np.float64)
                for places, real, key in zip(drawn.places[client], drawn.real[client], drawn.keys[client], strict=True)
            ]
        )
        expected = ((own - own.mean(0)) ** 2).sum(1).mean()
        assert found.noise[step, client] == pytest.approx(expected, rel=1e-3)
    assert 0 < found.zeta < np.inf
    with pytest.raises(InputError, match="no client of the round is benign"):
        variances.round_variances(before, np.ones(4, bool))


def test_batch_losses_are_those_of_local_training():
    """One batch an epoch, no momentum: the update of a client is minus the rate times the gradient of its batch loss."""
    light = {"num_clients": 16, "clients_per_round": 4, "rounds": 1, "client.epochs": 1, "client.batch_size": 128}
    more = {"model": f"{__name__}:with_batch_norm", "client.momentum": 0.0, "batch_stats": "separate"}
    config = grid.resolve(configs.paper("digits"), light | more)
    before = replay.before_round(config, 1)
    updates, _, _ = replay.received(before)
    inputs, labels, sizes = replay.stored_examples(before)
    real = np.arange(inputs.shape[1]) < sizes[0]
    gradient = jax.grad(replay.batch_loss(before))(
        before.state.variables, inputs[0], labels[0], jnp.asarray(real), jax.random.key(0)
    )
    rate = float(before.point.sgd.learning_rate)
    for sent, g in zip(jax.tree.leaves(updates["params"]), jax.tree.leaves(gradient["params"]), strict=True):
        np.testing.assert_allclose(sent[0], -rate * g, rtol=1e-3, atol=1e-5)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradient["batch_stats"]))
