"""Rounds that are made up, with numbers that are known."""

import numpy as np

from lasa_jax.inspection.rounds import Round

N, F = 12, 3
MALICIOUS = np.arange(N) < F


def sgd_round(seed: int, crafted: str) -> tuple[Round, float, float]:
    """Five steps of SGD on 0.5 * ‖x - a_i‖², eta = 0.1 = 1 / (2 tau), with gradient noise; nu and zeta are known."""
    rng = np.random.default_rng(seed)
    shape, sigma = (8, 10), 0.3
    targets = 0.5 * rng.standard_normal(shape) + 0.2 * rng.standard_normal((N, *shape))
    x = np.zeros((N, *shape))
    for _ in range(5):
        x -= 0.1 * (x - targets + sigma * rng.standard_normal(x.shape))
    honest = targets[F:]
    zeta = float(((honest - honest.mean(0)) ** 2).sum((1, 2)).mean())  # the same at every x
    x[:F] = {
        "honest": x[:F],
        "flipped": -x[:F],
        "noise": 0.2 * rng.standard_normal((F, *shape)),
        "shifted": x[F:].mean(0) - x[F:].std(0),
    }[crafted]
    return Round({"w": x[:, :5].astype(np.float32), "v": x[:, 5:].astype(np.float32)}, MALICIOUS), 80 * sigma**2, zeta


def two_outliers() -> Round:
    """Client 3 has its signs flipped and client 7 a large norm, in both layers of the model; both are malicious."""
    rng = np.random.default_rng(0)
    updates = {
        "dense": {
            "kernel": (0.4 + rng.standard_normal((N, 40, 20))).astype(np.float32),
            "bias": (0.4 + rng.standard_normal((N, 50))).astype(np.float32),
        }
    }
    for x in updates["dense"].values():
        x[3] *= -1
        x[7] += 100 * np.sign(rng.standard_normal(x[7].shape)).astype(np.float32)
    return Round(updates, np.isin(np.arange(N), (3, 7)))
