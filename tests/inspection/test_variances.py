"""Variances of gradients by their definition, and Lemma 4 where its assumptions do not suffice."""

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import models
from lasa_jax.errors import InputError
from lasa_jax.federated.round import State
from lasa_jax.inspection import bound, replay, variances
from lasa_jax.inspection.rounds import Round


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


@pytest.mark.parametrize(("model", "said"), [("cnn", "dropout"), ("resnet18", "batch statistics")])
def test_variances_of_models_whose_loss_is_no_mean_are_refused(model, said, monkeypatch):
    shape = {"cnn": (28, 28, 1), "resnet18": (32, 32, 3)}[model]
    made = models.create(model, num_classes=10, input_shape=shape)
    program = SimpleNamespace(local_training=SimpleNamespace(model=made, batch_size=1))
    before = replay.Before(program, State(made.init(jax.random.key(0)), (), ()), None, None, 1, 0, ("params",))
    examples = np.ones((2, 1, *shape), np.float32), np.zeros((2, 1), int), np.ones(2, int)
    monkeypatch.setattr(replay, "local_examples", lambda before: examples)
    with pytest.raises(InputError, match=said):
        variances.round_variances(before, np.zeros(2, bool))
    with pytest.raises(InputError, match=said if model == "resnet18" else "no client of the round is benign"):
        variances.round_variances(before, np.ones(2, bool))
