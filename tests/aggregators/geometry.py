"""Definitions in float64 NumPy of the rules that look at distances, angles and norms, for the battery."""

import itertools

import numpy as np
from sklearn.cluster import MeanShift, estimate_bandwidth

from lasa_jax import aggregators
from lasa_jax.testing import as_layers, flat_rows, honest, known


def _most(f: int, limit: int) -> int:
    return max(min(f, limit), 0)


def meamed(updates: dict, assumed_malicious: int = 3) -> dict:
    x = flat_rows(updates)
    nearest = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0)[
        : len(x) - _most(assumed_malicious, (len(x) - 1) // 2)
    ]
    return as_layers(np.take_along_axis(x, nearest, axis=0).mean(0))


def cge(updates: dict, assumed_malicious: int = 3) -> dict:
    x = flat_rows(updates)
    order = np.argsort(np.linalg.norm(x, axis=1), kind="stable")
    return as_layers(x[order[: len(x) - _most(assumed_malicious, len(x) - 1)]].mean(0))


def _best_subset(updates: dict, f: int, measure) -> dict:
    x = flat_rows(updates)
    size = len(x) - _most(f, (len(x) - 1) // 2)
    return as_layers(x[list(min(itertools.combinations(range(len(x)), size), key=measure(x)))].mean(0))


def mda(updates: dict, assumed_malicious: int = 3) -> dict:
    def diameter(x: np.ndarray):
        distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
        return lambda chosen: distances[np.ix_(chosen, chosen)].max()

    return _best_subset(updates, assumed_malicious, diameter)


def smea(updates: dict, assumed_malicious: int = 3) -> dict:
    def largest_eigenvalue(x: np.ndarray):
        def of(chosen: tuple) -> float:
            centred = x[list(chosen)] - x[list(chosen)].mean(0)
            return np.linalg.eigvalsh(centred @ centred.T)[-1]

        return of

    return _best_subset(updates, assumed_malicious, largest_eigenvalue)


def caf(updates: dict, assumed_malicious: int = 3) -> dict:
    x = flat_rows(updates)
    n = len(x)
    c, smallest, best = np.ones(n), np.inf, x.mean(0)
    while c.sum() > n - 2 * _most(assumed_malicious, (n - 1) // 2):
        mean = c @ x / c.sum()
        _, values, directions = np.linalg.svd(np.sqrt(c / c.sum())[:, None] * (x - mean), full_matrices=False)
        if values[0] ** 2 < smallest:
            smallest, best = values[0] ** 2, mean
        tau = ((x - mean) @ directions[0]) ** 2
        if tau.max() == 0:
            break
        c = c * (1 - tau / tau.max())
    return as_layers(best)


def robust_learning_rate(updates: dict, threshold: float = 8.0) -> dict:
    x = flat_rows(updates)
    agreement = np.abs(np.where(np.isnan(x), 0, np.sign(x)).sum(0))
    return as_layers(np.where(agreement >= threshold, 1, -1) * x.mean(0))


def _cosine_distances(x: np.ndarray) -> np.ndarray:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return 1 - unit @ unit.T


def multi_metric(updates: dict, share_kept: float = 0.3) -> dict:
    x = flat_rows(updates)
    n = len(x)
    if n < 4:
        return as_layers(x.mean(0))
    norms = np.linalg.norm(x, axis=1)
    measures = (
        _cosine_distances(x) ** 2,
        np.abs(x[:, None] - x[None]).sum(-1),
        np.abs(norms[:, None] - norms[None, :]),
    )
    t = np.stack([(m * ~np.eye(n, dtype=bool)).sum(1) for m in measures], axis=1)
    scores = np.einsum("ni,ij,nj->n", t, np.linalg.inv(np.cov(t.T)), t)
    return as_layers(x[np.argsort(scores)[: max(int(share_kept * n + 1e-9), 1)]].mean(0))


def flame(updates: dict) -> dict:
    """Without noise; joins clients one pair after the other."""
    x = flat_rows(updates)
    n = len(x)
    params = known(aggregators.flame(), updates)["context"].params
    models = x + flat_rows({name: np.asarray(leaf)[None] for name, leaf in params.items()})
    distances = _cosine_distances(models)
    component = np.arange(n)
    pairs = sorted(itertools.combinations(range(n), 2), key=lambda pair: distances[pair])
    while np.bincount(component).max() < n // 2 + 1:
        i, j = pairs.pop(0)
        component[component == component[j]] = component[i]
    kept = component == np.bincount(component).argmax()
    norms = np.linalg.norm(x, axis=1)
    return as_layers((x * np.minimum(1, np.median(norms) / norms)[:, None])[kept].mean(0))


def monna(updates: dict, assumed_malicious: int = 3) -> dict:
    """With the server's update that the laws give, the mean of `honest()`."""
    x = flat_rows(updates)
    order = np.argsort(np.linalg.norm(x - flat_rows(honest()).mean(0), axis=1), kind="stable")
    return as_layers(x[order[: len(x) - _most(assumed_malicious, len(x) - 1)]].mean(0))


def signguard_sim(updates: dict, lower: float = 0.1, upper: float = 3.0) -> dict:
    """The first round, with the signs of all coordinates, and clusters by scikit-learn."""
    x = flat_rows(updates)
    if len(x) < 4:
        return as_layers(np.full(x.shape[1], np.nan))  # no cluster is larger than another
    norms = np.linalg.norm(x, axis=1)
    median = np.median(norms)
    shares = np.stack([(x > 0).mean(1), (x == 0).mean(1), (x < 0).mean(1)], axis=1)
    cosines = (1 - _cosine_distances(x)) * ~np.eye(len(x), dtype=bool)
    similarity = np.sort(cosines, axis=1)[:, (len(x) - 1) // 2]
    middle = np.sort(similarity)[(len(x) - 1) // 2]
    fourth = np.minimum(np.maximum(similarity, 0), middle) / (5 * middle + 1e-8)
    features = np.column_stack([shares / (shares.max(0) + 1e-8), fourth])
    labels = MeanShift(bandwidth=estimate_bandwidth(features, quantile=0.5), cluster_all=False).fit(features).labels_
    cluster = labels == np.bincount(labels[labels >= 0]).argmax()
    kept = (norms > lower * median) & (norms < upper * median)
    kept &= cluster if (kept & cluster).any() else True
    return as_layers((x * np.minimum(1, median / norms)[:, None])[kept].mean(0))
