"""Theorem 1: an instance in NumPy that breaks it as printed, what its steps give, and both sides for a run."""

import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.errors import InputError
from lasa_jax.inspection import bound, replay, theorem, variances
from lasa_jax.inspection.__main__ import main
from lasa_jax.inspection.rounds import Round

PAGE = " ".join((Path(__file__).parents[2] / "docs" / "theory.md").read_text().split())


def told(pattern: str) -> list[float]:
    """The numbers of docs/theory.md that a pattern captures."""
    found = re.search(pattern, PAGE)
    assert found is not None, pattern
    return [float(number.replace(",", "")) for number in found.groups()]


def layer_mean_of_lasa(stack: np.ndarray, radius: float) -> np.ndarray:
    """One layer of LASA without sparsification and clip, in NumPy: both filters, mean of who passes."""

    def passes(values: np.ndarray) -> np.ndarray:
        return np.abs(values - np.median(values)) < radius * values.std()

    signs = np.sign(stack)
    purity = 0.5 * (1 + signs.sum(axis=1) / np.abs(signs).sum(axis=1))
    kept = passes(np.linalg.norm(stack, axis=1)) & passes(purity)
    return stack[kept].mean(axis=0)


def instance(
    *, square: float, steps: int, eta: float, rounds: int, radius: float
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Two equal benign clients and one that sends -2 Delta: the squared gradients, the last model, the last updates."""
    target = np.full(50, math.sqrt(square / 50))
    model, gradients = np.zeros(50), []
    for _ in range(rounds):
        gradients.append(float(((model - target) ** 2).sum()))
        local = model.copy()
        for _ in range(steps):
            local -= eta * (local - target)
        delta = local - model
        stack = np.stack([delta, delta, -2 * delta])
        model = model + layer_mean_of_lasa(stack, radius)
    return gradients, model, stack


def test_theorem_1_is_false_as_printed():
    """The malicious client passes both filters at radii of 3, the mean is zero, and the model never moves.

    kappa by hand, n = 3, f = 1, nu = zeta = 0, c_k = 1, b_k = 0: (1 + 1) (4 (2C)² + 4 C²) = 40 C², C = (1 - 0.99^5) ‖a‖.
    """
    square, steps, eta, rounds, radius = told(
        r"squared distance of ([\d.]+) from .*?tau = (\d+) steps of eta = ([\d.]+), T = ([\d,]+) rounds and radii of (\d+)"
    )
    left, right, scaled = told(
        r"left side stays at ([\d.]+), the right side is ([\d.]+), .*?kappa / eta² it is ([\d,]+)"
    )
    gradients, model, stack = instance(square=square, steps=int(steps), eta=eta, rounds=int(rounds), radius=radius)
    assert not model.any()
    assert stack.shape == (3, 50)
    kappa = 40 * (1 - (1 - eta) ** steps) ** 2 * square
    saved = Round({"w": stack.reshape(3, 5, 10).astype(np.float32)}, np.array([False, False, True]))
    radii = {"magnitude_radius": radius, "direction_radius": radius, "sparsity_level": 0.0}
    measured = bound.measure(saved, noise=0, divergence=0, **radii)
    assert measured.bound == pytest.approx(kappa, rel=1e-5)
    assert measured.squared_error <= measured.bound
    assert measured.smallest_kept == 3
    found = theorem.theorem_1(
        gradients=gradients,
        first_loss=square / 2,
        least_loss=0,
        smoothness=1,
        noise=0,
        divergence=0,
        kappa=kappa,
        learning_rate=eta,
        steps=int(steps),
    )
    assert found.rate_allowed
    by_hand = square / 2 / (rounds * eta) + kappa * (eta + 1)
    assert (found.gradient, found.bound) == (pytest.approx(square), pytest.approx(by_hand))
    assert (round(found.gradient, 1), round(found.bound, 2)) == (left, right)
    assert found.gradient > 8 * found.bound
    assert found.scaled == pytest.approx(scaled, rel=0.01)
    assert found.gradient <= min(found.scaled, found.derived)
    assert "nothing says that the printed side holds" in " ".join(theorem.as_table(found).notes)


def test_the_coefficient_in_equation_27():
    """By adding up what (24) and (26) have in front of ‖grad L_B‖², with mu = 1."""
    (number,) = told(r"is \+([\d.]+) eta at alpha = 2, tau = 5")
    for tau in range(1, 60):
        eta, alpha = 1 / (3 * tau), 2.0
        of_24 = -(eta * tau / 2 - eta * alpha / 2) + 4 * eta**2 * tau**2
        t6 = (
            eta / 2 + 2 * eta**2 * tau
        )  # in front of T_6, which (26) bounds by 32 tau² eta² ‖grad‖², for each of tau steps
        whole = of_24 + t6 * tau * 32 * tau**2 * eta**2
        assert theorem.coefficient_27(1, eta, tau) == pytest.approx(whole / eta)
        assert whole > 0  # the proof says at most -eta
        if tau == 5:
            assert round(whole / eta, 1) == number
    # What it depends on is mu eta; up to tau = 4 no rate is small enough, and at 5 it must be far smaller.
    assert theorem.coefficient_27(8, 0.01, 5) == pytest.approx(theorem.coefficient_27(1, 0.08, 5))
    (most,) = told(r"at tau = 5 only for eta <= 1 / \((\d+) mu tau\)")
    rates = np.geomspace(1e-9, 1, 400)
    assert all(theorem.coefficient_27(1, rate, tau) > -1 for rate in rates for tau in (1, 2, 3, 4))
    assert theorem.coefficient_27(1, 1 / (5 * most), 5) <= -1 < theorem.coefficient_27(1, 1 / (5 * (most - 1)), 5)


def noisy_quadratics(seed: int, *, tau: int, x: float) -> theorem.Theorem:
    """SGD on 0.5 (theta - a_i)' H_i (theta - a_i) with gradient noise, and a server that is always wrong by a bit.

    mu, nu and kappa are known, zeta is the largest of the rounds.
    """
    rng = np.random.default_rng(seed)
    clients, size, rounds, sigma, wrong = 6, 4, 60, 0.3, 0.02
    shapes = rng.uniform(0.2, 1.0, (clients, size))
    shapes[:, 0] = 1.0  # mu = 1
    targets = rng.standard_normal((clients, size))
    eta = x / tau
    best = (shapes * targets).mean(0) / shapes.mean(0)

    def loss(model: np.ndarray) -> float:
        return float(0.5 * (shapes * (model - targets) ** 2).sum(1).mean())

    model, gradients, zeta = 3 * rng.standard_normal(size), [], 0.0
    first = loss(model)
    for _ in range(rounds):
        each = shapes * (model - targets)
        gradients.append(float((each.mean(0) ** 2).sum()))
        zeta = max(zeta, float(((each - each.mean(0)) ** 2).sum(1).mean()))
        local = np.tile(model, (clients, 1))
        for _ in range(tau):
            local -= eta * (shapes * (local - targets) + sigma * rng.standard_normal(local.shape))
        off = rng.standard_normal(size)
        model = local.mean(0) + wrong * off / np.linalg.norm(off)
    return theorem.theorem_1(
        gradients=gradients,
        first_loss=first,
        least_loss=loss(best),
        smoothness=1,
        noise=size * sigma**2,
        divergence=zeta,
        kappa=wrong**2,
        learning_rate=eta,
        steps=tau,
    )


@pytest.mark.parametrize(("tau", "x"), [(1, 0.1), (2, 0.1), (5, 0.1), (10, 0.05), (20, 0.1)])
def test_what_the_steps_give_holds(tau, x):
    found = [noisy_quadratics(seed, tau=tau, x=x) for seed in range(5)]
    assert all(one.gradient <= one.derived < math.inf for one in found)
    assert noisy_quadratics(0, tau=tau, x=0.11).derived == math.inf


def test_every_term_by_hand():
    given = {"smoothness": 2.0, "noise": 0.5, "divergence": 0.25, "kappa": 0.125, "learning_rate": 0.01, "steps": 4}
    found = theorem.theorem_1(gradients=[4.0, 2.0], first_loss=3.0, least_loss=1.0, **given)
    assert (found.gradient, found.rounds) == (3.0, 2)
    assert (found.descent, found.robust) == (pytest.approx(100), pytest.approx(0.125 * 1.02))
    assert (found.divergent, found.noisy) == (7.0, 2.5)
    assert found.bound == pytest.approx(100 + 0.1275 + 7 + 2.5)
    assert found.scaled == pytest.approx(100 + 1275 + 7 + 2.5)
    x = 0.08
    q = 4 * x + 4 * x**2 + 32 * x**3
    alpha = 4 * (0.5 - q)
    right = 100 + 1250 * (0.02 + 1 / (2 * alpha)) + 4 * q * 0.25 + (2 * x + x**2 + 8 * x**3) * 0.5
    assert found.derived == pytest.approx(2 * right / alpha)
    assert found.allowed_rate == pytest.approx(1 / 24)
    large = theorem.theorem_1(gradients=[1.0], first_loss=1.0, least_loss=0.0, **{**given, "learning_rate": 0.05})
    assert not large.rate_allowed
    assert "larger than the theorem allows" in theorem.as_table(large, ["x"]).notes[0]
    for name, wrong in (("kappa", -1), ("steps", 1.5), ("learning_rate", 0), ("noise", math.nan)):
        with pytest.raises(InputError, match=name):
            theorem.theorem_1(gradients=[1.0], first_loss=1.0, least_loss=0.0, **{**given, name: wrong})
    with pytest.raises(InputError, match="least_loss"):
        theorem.theorem_1(gradients=[1.0], first_loss=1.0, least_loss=2.0, **given)
    with pytest.raises(InputError, match="rounds = 0"):
        theorem.theorem_1(gradients=[], first_loss=1.0, least_loss=0.0, **given)


def test_the_largest_curvature_is_that_of_the_hessians():
    rng = np.random.default_rng(0)
    turned = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    hessians = np.stack([turned @ np.diag([-7.0, 3, 2, 1, 0]) @ turned.T, np.eye(5), np.zeros((5, 5))])

    def loss(model, hessian):
        flat = jnp.concatenate([model["a"], model["b"]])
        return 0.5 * flat @ hessian @ flat

    model = {"a": jnp.ones(2), "b": jnp.ones(3)}
    found = theorem.largest_curvature(loss, model, jnp.asarray(hessians, jnp.float32))
    assert found == pytest.approx(7, rel=1e-3)
    assert theorem.largest_curvature(loss, model, jnp.asarray(hessians[1:], jnp.float32)) == pytest.approx(1, rel=1e-5)


SMALL = {
    "attack.name": "noise",
    "num_clients": 8,
    "clients_per_round": 8,
    "rounds": 3,
    "client.epochs": 1,
    "client.batch_size": 90,
    "client.momentum": 0.0,
    "client.learning_rate": 0.01,
}


def test_both_sides_for_a_run():
    config = grid.resolve(configs.paper("digits"), SMALL)
    said: list[str] = []
    found = theorem.of_run(config, every=2, log=said.append)
    assert [line.split(":")[0] for line in said] == ["round 1", "round 3"]
    assert (found.rounds, found.steps) == (3, 2)  # 179 examples
    first = replay.before_round(config, 1)
    benign = np.flatnonzero(~np.asarray(first.point.malicious))
    assert len(benign) == 6
    inputs, labels, sizes = replay.local_examples(first)
    order = np.argsort(np.asarray(replay.clients_of_round(first)))
    inputs, labels, sizes = (x[order][benign] for x in (inputs, labels, sizes))
    loss = replay.example_loss(first)

    def mean_loss(variables):
        return sum(
            jax.vmap(loss, (None, 0, 0))(variables, x[:size], y[:size]).mean()
            for x, y, size in zip(inputs, labels, sizes, strict=True)
        ) / len(sizes)

    squares = []
    for index in (1, 2, 3):
        variables = replay.before_round(config, index).state.variables
        value, gradient = jax.value_and_grad(mean_loss)(variables)
        squares.append(sum(float((x**2).sum()) for x in jax.tree.leaves(gradient)))
        if index == 1:
            assert found.descent == pytest.approx(float(value) / (3 * 0.01), rel=1e-4)
    assert found.gradient == pytest.approx(np.mean(squares), rel=1e-3)
    kappas, noises = [], []
    for index in (1, 3):
        before = replay.before_round(config, index)
        updates, malicious, _ = replay.received(before)
        of_round = variances.round_variances(before, malicious)
        saved = Round(updates, malicious)
        kappas.append(bound.measure(saved, noise=of_round.nu, divergence=of_round.zeta, magnitude_radius=2.0).bound)
        noises.append(of_round.nu)
    assert found.kappa == pytest.approx(max(kappas), rel=1e-3)
    assert found.noise == pytest.approx(max(noises), rel=1e-3)
    assert found.smoothness > 0
    assert theorem.notes(config) == ["LASA clips updates to the median norm, the proof does not"]
    with pytest.raises(InputError, match="Theorem 1 is about lasa"):
        theorem.of_run(grid.resolve(configs.paper("digits"), {**SMALL, "aggregator.name": "median"}))


@pytest.mark.thorough
def test_the_command_and_a_model_with_batch_norm(tmp_path, capsys):
    few = {"num_clients": 4, "clients_per_round": 4, "rounds": 1, "client.momentum": 0.9, "batch_stats": "separate"}
    model = "tests.inspection.test_variances:with_batch_norm"
    config = grid.resolve(configs.paper("digits"), {**SMALL, **few, "model": model})
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(configs.to_json(config))
    assert main(["theorem", str(run), "--every=5", f"--output={tmp_path / 'out'}"]) == 0
    shown = capsys.readouterr()
    assert "\nround 1: smoothness " in shown.err  # after the file of the model
    assert "momentum of 0.9" in shown.out
    assert "right side, as printed" in (tmp_path / "out" / "theorem.md").read_text()
    (run / "config.json").unlink()
    assert main(["theorem", str(run)]) == 2
    assert "has no config.json" in capsys.readouterr().err
