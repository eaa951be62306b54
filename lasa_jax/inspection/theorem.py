"""Theorem 1 of the paper's supplement on a run: how small the gradients become. docs/theory.md explains it.

found = of_run(config, every=10)            # resolved; or `lasa-jax inspect theorem RUN`
found.gradient <= found.bound               # as printed: may be false
found.gradient <= found.derived             # what the steps of the proof give
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ml_collections import ConfigDict

from lasa_jax.errors import InputError, check_number
from lasa_jax.federated import one_round
from lasa_jax.inspection import bound, replay, variances
from lasa_jax.inspection.rendering import Cell, Table
from lasa_jax.inspection.rounds import PyTree, Round


class Theorem(NamedTuple):
    """Theorem 1 and the numbers that it is made of.

    gradient: the left side, (1/T) sum over rounds t < T of ‖grad L_B(theta^t)‖². bound: the right side as printed. scaled:
    the same with kappa / eta² for kappa, which equation (20) needs. derived: what the steps of the proof give, infinite for
    a learning rate for which they give nothing. coefficient: of ‖grad L_B‖² in equation (27), over eta; the proof needs at
    most -1. descent, robust, divergent, noisy: the four terms of `bound`. smoothness, noise, divergence, kappa: mu, nu,
    zeta and kappa. learning_rate, steps, rounds: eta, tau and T. allowed_rate: the largest eta that the theorem allows,
    1 / (3 mu tau), and no more than 1 / (2 tau), which Lemma 4 asks for. rate_allowed: whether eta is within it.
    """

    gradient: float
    bound: float
    scaled: float
    derived: float
    coefficient: float
    descent: float
    robust: float
    divergent: float
    noisy: float
    smoothness: float
    noise: float
    divergence: float
    kappa: float
    learning_rate: float
    steps: int
    rounds: int
    allowed_rate: float
    rate_allowed: bool


def coefficient_27(smoothness: float, learning_rate: float, steps: int, alpha: float = 2.0) -> float:
    """The factor of ‖grad L_B‖² in equation (27), over eta, before it is said to be at most -1.

        -(tau - alpha) / 2 + 4 mu eta tau² + (mu² / 2 + 2 eta tau mu³) 32 eta² tau³

    Source: the supplement, section F.3, third line from below of (27).

    Args:
      smoothness, learning_rate, steps: mu, eta, tau.
      alpha: of Lemma 1 in (17); the proof takes at least 2.
    """
    mu, eta, tau = smoothness, learning_rate, steps
    return -(tau - alpha) / 2 + 4 * mu * eta * tau**2 + (mu**2 / 2 + 2 * eta * tau * mu**3) * 32 * eta**2 * tau**3


def theorem_1(
    *,
    gradients: Sequence[float],
    first_loss: float,
    least_loss: float,
    smoothness: float,
    noise: float,
    divergence: float,
    kappa: float,
    learning_rate: float,
    steps: int,
) -> Theorem:
    """Both sides of Theorem 1.

        (1/T) sum_t ‖grad L_B(theta^t)‖² <= D + kappa (mu eta + 1) + 7 tau zeta + (1 + tau) nu
        D = (L_B(theta^0) - L_B(theta*)) / (T eta)

    Source: the supplement, section F.3. kappa bounds ‖F(Delta) - mean‖² of updates Delta, while (20) uses it for updates
    over eta: `scaled` has kappa / eta². With that, with x = mu eta tau and q = 4 x + 4 x² + 32 x³ < 1/2 the steps give

        alpha / 2 (1/T) sum_t ‖grad L_B(theta^t)‖² <= D + kappa / eta² (mu eta + 1 / (2 alpha)) + tau q zeta
                                                      + (2 x + x² + 8 x³) nu,        alpha = tau (1/2 - q)

    which is `derived`: q < 1/2 where x <= 0.1.

    Args:
      gradients: ‖grad L_B(theta^t)‖² before each round.
      first_loss, least_loss: L_B(theta^0), and a number that L_B is nowhere below.
      smoothness, noise, divergence, kappa: mu, nu, zeta, kappa.
      learning_rate, steps: eta, and tau local steps.

    Raises:
      InputError: for a number out of range, or no round.
    """
    check_number("gradients", gradients, low=0)
    check_number("rounds", len(gradients), low=1)
    check_number("steps", steps, low=1, whole=True)
    for name, value in (("smoothness", smoothness), ("learning_rate", learning_rate)):
        check_number(name, value, above=0)
    for name, value in (("noise", noise), ("divergence", divergence), ("kappa", kappa)):
        check_number(name, value, low=0)
    check_number("least_loss", least_loss, high=first_loss)
    mu, eta, tau, rounds = float(smoothness), float(learning_rate), int(steps), len(gradients)
    descent = (first_loss - least_loss) / (rounds * eta)
    robust, divergent, noisy = kappa * (mu * eta + 1), 7 * tau * divergence, (1 + tau) * noise
    x = mu * eta * tau
    q = 4 * x + 4 * x**2 + 32 * x**3
    derived = math.inf
    if q < 0.5:
        alpha = tau * (0.5 - q)
        right = descent + kappa / eta**2 * (mu * eta + 1 / (2 * alpha)) + tau * q * divergence
        derived = (right + (2 * x + x**2 + 8 * x**3) * noise) / (alpha / 2)
    allowed = min(1 / (3 * mu * tau), 1 / (2 * tau))
    return Theorem(
        gradient=float(np.mean(gradients)),
        bound=descent + robust + divergent + noisy,
        scaled=descent + robust / eta**2 + divergent + noisy,
        derived=derived,
        coefficient=coefficient_27(mu, eta, tau),
        descent=descent,
        robust=robust,
        divergent=divergent,
        noisy=noisy,
        smoothness=mu,
        noise=float(noise),
        divergence=float(divergence),
        kappa=float(kappa),
        learning_rate=eta,
        steps=tau,
        rounds=rounds,
        allowed_rate=allowed,
        rate_allowed=eta <= allowed,
    )


def of_run(
    config: ConfigDict, *, every: int = 10, draws: int = 4, log: Callable[[str], None] = lambda text: None
) -> Theorem:
    """Both sides of Theorem 1 for a run of LASA, whose rounds are played again from the first one on.

    L_B is the mean over all benign clients of the population of their mean losses; with dropout or batch normalisation, of
    epochs whose draws are fixed, see `variances`. The left side has every round. What the assumptions bound is measured in
    some rounds, and the largest counts: mu by `largest_curvature` of every benign client, nu and zeta by
    `variances.round_variances`, kappa by `bound.measure`. All four can be somewhat too small, since they are to hold
    everywhere. tau is that of the client with most steps. Of L_B(theta*) nothing is known but that it is not negative.

    The theorem assumes that all clients take part, SGD without momentum, a constant rate, and no clip: whether the run is
    such is not checked here, `notes` says it.

    Args:
      config: of a run, resolved.
      every: rounds between those that are looked at, the first one included.
      draws: see `variances.round_variances`.
      log: hears of each round that is looked at.

    Raises:
      InputError: for another rule, a number out of range, or a run without benign clients.
    """
    check_number("every", every, low=1, whole=True)
    if config.aggregator.name != "lasa":
        raise InputError(
            f"config.aggregator.name = {config.aggregator.name!r}: Theorem 1 is about lasa, and so is its kappa"
        )
    before = replay.before_round(config, 1)
    step = jax.jit(functools.partial(one_round, before.program))
    benign = np.flatnonzero(~np.asarray(before.point.malicious))
    if not len(benign):
        raise InputError("config.attack_ratio: no client is benign")
    loss, examples = _client_losses(before, jnp.asarray(benign), draws)

    @jax.jit
    def measured(variables: PyTree, examples: PyTree) -> tuple[jax.Array, jax.Array]:
        def one(own: PyTree) -> tuple[jax.Array, jax.Array]:
            value, gradient = jax.value_and_grad(loss)(variables, own)
            return value, ravel_pytree(gradient)[0]

        values, gradients = jax.lax.map(one, examples)
        return values.mean(), jnp.sum(gradients.mean(axis=0) ** 2)

    parameters = config.aggregator.parameters.to_dict()
    radii = {name: parameters[name] for name in ("sparsity_level", "magnitude_radius", "direction_radius")}
    squares, losses = [], []
    largest = dict.fromkeys(("smoothness", "noise", "divergence", "kappa"), 0.0)
    for index in range(1, config.rounds + 1):
        before = before._replace(round_index=index)
        value, square = measured(before.state.variables, examples)
        losses.append(float(value))
        squares.append(float(square))
        if (index - 1) % every == 0:
            for name, number in _assumed(before, loss, examples, radii, draws).items():
                largest[name] = max(largest[name], number)
            log(f"round {index}: " + ", ".join(f"{name} {number:.3g}" for name, number in largest.items()))
        state, _ = step(before.state, before.point, before.data, jnp.int32(index))
        before = before._replace(state=state)
    training = before.program.local_training
    sizes = np.asarray(before.data.partition.sizes)[benign]
    return theorem_1(
        gradients=squares,
        first_loss=losses[0],
        least_loss=0.0,
        learning_rate=float(before.point.sgd.learning_rate),
        steps=int(training.epochs) * int(np.ceil(sizes / training.batch_size).max()),
        **largest,
    )


def _client_losses(before: replay.Before, clients: jax.Array, draws: int) -> tuple[Callable[..., jax.Array], PyTree]:
    """`(model, examples of a client) -> L_i`, and the examples of these clients, leaves `(clients, ...)`."""
    inputs, labels, sizes = replay.stored_examples(before, clients)
    training = before.program.local_training
    if variances.draws_in_training(before):
        drawn = variances.draw_epochs(inputs, labels, sizes, batch_size=training.batch_size, draws=draws)
        return variances.over_batches(replay.batch_loss(before)), drawn
    variances.check_sizes(sizes, inputs.shape[1], training.batch_size)
    normal = training.dataset.normalise(jnp.asarray(inputs))
    real = jnp.arange(inputs.shape[1]) < jnp.asarray(sizes)[:, None]
    return variances.over_examples(replay.example_loss(before)), (normal, jnp.asarray(labels), real)


def _assumed(
    before: replay.Before, loss: Callable[..., jax.Array], examples: PyTree, radii: dict[str, float], draws: int
) -> dict[str, float]:
    """mu, nu, zeta and kappa in a round."""
    updates, malicious, clients = replay.received(before)
    found = variances.round_variances(before, malicious, draws=draws)
    saved = Round(updates, malicious, clients, found.nu, found.zeta)
    return {
        "smoothness": largest_curvature(loss, before.state.variables, examples),
        "noise": found.nu,
        "divergence": found.zeta,
        "kappa": bound.measure(saved, **radii).bound,
    }


def largest_curvature(
    loss: Callable[[PyTree, PyTree], jax.Array], model: PyTree, examples: PyTree, *, iterations: int = 20, seed: int = 0
) -> float:
    """The largest |eigenvalue| of the Hessian of a client's loss at a model, over the clients, by power iteration.

    mu of assumption 1 is at least so large. A few iterations come near it from below.

    Args:
      loss: `(model, examples of a client) -> L_i`.
      model: at which.
      examples: leaves `(clients, ...)`.
      iterations: products with the Hessian for each client.
      seed: of the directions that the iteration starts from.
    """
    check_number("iterations", iterations, low=1, whole=True)
    flat, rebuild = ravel_pytree(model)
    start = jax.random.normal(jax.random.key(seed), flat.shape, flat.dtype)

    @jax.jit
    def all_clients(flat: jax.Array, examples: PyTree) -> jax.Array:
        def one(own: PyTree) -> jax.Array:
            gradient = jax.grad(lambda x: loss(rebuild(x), own))

            def product(_: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
                direction, _ = carry
                turned = jax.jvp(gradient, (flat,), (direction,))[1]
                length = jnp.sqrt(jnp.sum(turned**2))
                return turned / jnp.where(length > 0, length, 1), length

            first = (start / jnp.sqrt(jnp.sum(start**2)), jnp.zeros((), flat.dtype))
            return jax.lax.fori_loop(0, iterations, product, first)[1]

        return jax.lax.map(one, examples)

    return float(all_clients(flat, examples).max())


def notes(config: ConfigDict) -> list[str]:
    """What of a run is outside of the theorem's assumptions, a line each. Args: config: resolved."""
    client = config.client
    outside = {
        f"momentum of {client.momentum:g}": client.momentum > 0,
        f"a rate that decays by {client.learning_rate_decay:g}": client.learning_rate_decay != 1,
        "LASA clips updates to the median norm, the proof does not": True,
        f"{config.clients_per_round} of {config.num_clients} clients take part in a round": (
            config.num_clients != config.clients_per_round
        ),
    }
    return [text for text, holds in outside.items() if holds]


def as_table(found: Theorem, outside: Sequence[str] = ()) -> Table:
    """For print.

    Args:
      found: from `of_run` or `theorem_1`.
      outside: from `notes`.
    """
    shown = {
        "left side: mean of ‖grad L_B‖²": found.gradient,
        "right side, as printed": found.bound,
        "... (L_B(theta^0) - L_B(theta*)) / (T eta)": found.descent,
        "... kappa (mu eta + 1)": found.robust,
        "... 7 tau zeta": found.divergent,
        "... (1 + tau) nu": found.noisy,
        "right side with kappa / eta²": found.scaled,
        "right side that the steps give": found.derived,
        "factor of ‖grad L_B‖² in (27), over eta": found.coefficient,
        "mu, smoothness": found.smoothness,
        "nu, noise": found.noise,
        "zeta, divergence": found.divergence,
        "kappa": found.kappa,
        "eta, learning rate": found.learning_rate,
        "largest rate that is allowed": found.allowed_rate,
        "tau, local steps": found.steps,
        "T, rounds": found.rounds,
    }
    rows = tuple((Cell(name), Cell(f"{value:.4g}")) for name, value in shown.items())
    said = [
        "The learning rate is allowed."
        if found.rate_allowed
        else "The learning rate is larger than the theorem allows."
    ]
    if found.coefficient > -1:
        said.append("The factor in (27) is above the -1 that the proof says: nothing says that the printed side holds.")
    said += [f"Outside of the proof: {text}." for text in outside]
    return Table("Theorem 1 on the run", ("what", "value"), rows, notes=tuple(said))
