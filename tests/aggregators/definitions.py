"""Rules by their definitions, written once more in float64 NumPy with loops. Others are in `geometry` and `informed`."""

import numpy as np
from sklearn.cluster import MeanShift, estimate_bandwidth

from lasa_jax.testing import SHAPES, as_layers, flat_rows


def flat64(updates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, np.float64).reshape(len(x), -1) for name, x in updates.items()}


def fedavg(updates: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: x.mean(0) for name, x in flat64(updates).items()}


def lasa(updates: dict[str, np.ndarray], sparsity=0.3, magnitude=1.3, direction=1.2) -> dict:
    """Steps 0 to 7 written once more, in float64 and with loops."""
    x = flat64(updates)
    n = len(next(iter(x.values())))
    good = [i for i in range(n) if all(np.isfinite(layer[i]).all() for layer in x.values())]
    x = {name: layer[good] for name, layer in x.items()}
    norms = np.sqrt(sum((layer**2).sum(1) for layer in x.values()))
    median = np.sort(norms)[(len(norms) - 1) // 2]
    scale = np.array([min(1.0, median / norm) if norm > 0 else 1.0 for norm in norms])
    x = {name: layer * scale[:, None] for name, layer in x.items()}
    matrices = [name for name, shape in SHAPES.items() if len(shape) >= 2]
    if sparsity > 0:
        k = int(sum(x[name].shape[1] for name in matrices) * (1 - sparsity))
        for i in range(len(good)):
            threshold = np.sort(np.concatenate([np.abs(x[name][i]) for name in matrices]))[-k]
            for name in matrices:
                x[name][i, np.abs(x[name][i]) <= threshold] = 0
    result = {}
    for name, layer in x.items():
        keep = np.ones(len(good), bool)
        signs = [np.sign(row)[row != 0] for row in layer]
        purity = np.array([0.5 * (1 + row.mean()) if len(row) else 0.5 for row in signs])
        for values, radius in ((np.linalg.norm(layer, axis=1), magnitude), (purity, direction)):
            if values.std() == 0:
                keep[:] = False
                continue
            keep &= np.abs(values - np.median(values)) / values.std() < radius
        result[name] = layer[keep if keep.any() else np.ones_like(keep)].mean(0)
    return result


def clamp(f: int, limit: int) -> int:
    return max(min(f, limit), 0)


def trimmed_mean(updates: dict, num_trimmed: int = 3) -> dict:
    x = np.sort(flat_rows(updates), axis=0)
    f = clamp(num_trimmed, (len(x) - 1) // 2)
    return as_layers(x[f : len(x) - f].mean(0))


def median(updates: dict) -> dict:
    return as_layers(np.median(flat_rows(updates), axis=0))


def krum_ranking(x: np.ndarray, f: int) -> np.ndarray:
    scores, totals = [], []
    for i in range(len(x)):
        others = np.sort([((x[i] - x[j]) ** 2).sum() for j in range(len(x)) if j != i])
        scores.append(others[: max(len(x) - f - 2, 1)].sum())
        totals.append(others.sum())
    return np.lexsort((totals, np.round(scores, 12)))


def krum(updates: dict, assumed_malicious: int = 3) -> dict:
    x = flat_rows(updates)
    return as_layers(x[krum_ranking(x, clamp(assumed_malicious, (len(x) - 3) // 2))[0]])


def multi_krum(updates: dict, assumed_malicious: int = 3, num_selected: int | None = None) -> dict:
    x = flat_rows(updates)
    f = clamp(assumed_malicious, (len(x) - 3) // 2)
    return as_layers(x[krum_ranking(x, f)[: len(x) - f if num_selected is None else num_selected]].mean(0))


def bulyan(updates: dict, assumed_malicious: int = 3) -> dict:
    x = flat_rows(updates)
    n = len(x)
    f = clamp(assumed_malicious, (n - 3) // 4)
    chosen, left = [], list(range(n))
    while len(chosen) < n - 2 * f:
        best = left[krum_ranking(x[left], f)[0]]
        chosen.append(best)
        left.remove(best)
    x = x[chosen]
    nearest = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0)[: len(x) - 2 * f]
    return as_layers(np.take_along_axis(x, nearest, axis=0).mean(0))


def geometric_median(updates: dict, smoothing: float = 1e-6) -> dict:
    x = flat_rows(updates)
    z = x.mean(0)
    for _ in range(300):
        w = 1 / np.maximum(np.linalg.norm(x - z, axis=1), smoothing)
        z = (w[:, None] * x).sum(0) / w.sum()
    return as_layers(z)


def dnc(updates: dict, assumed_malicious: int = 3, filter_fraction: float = 1.0) -> dict:
    """All coordinates are drawn, since there are fewer than asked for."""
    x = flat_rows(updates)
    f = clamp(assumed_malicious, (len(x) - 1) // 2)
    centred = x - x.mean(0)
    scores = (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2
    return as_layers(x[np.argsort(scores, kind="stable")[: len(x) - int(filter_fraction * f)]].mean(0))


def signguard(updates: dict, lower: float = 0.1, upper: float = 3.0) -> dict:
    """With the signs of all coordinates, and clusters by scikit-learn."""
    x = flat_rows(updates)
    if len(x) < 4:
        return as_layers(np.full(x.shape[1], np.nan))  # no cluster is larger than another
    norms = np.linalg.norm(x, axis=1)
    median = np.median(norms)
    shares = np.stack([(x > 0).mean(1), (x == 0).mean(1), (x < 0).mean(1)], axis=1)
    features = shares / (shares.max(0) + 1e-8)
    bandwidth = estimate_bandwidth(features, quantile=0.5)
    labels = MeanShift(bandwidth=bandwidth, cluster_all=False).fit(features).labels_
    cluster = labels == np.bincount(labels[labels >= 0]).argmax()
    kept = (norms > lower * median) & (norms < upper * median)
    kept &= cluster if (kept & cluster).any() else True
    return as_layers((x * np.minimum(1, median / norms)[:, None])[kept].mean(0))


def sparsefed(updates: dict, num_kept: int | None = None, momentum: float = 0.9) -> dict:
    """The first round: momentum and error start at zero, so that the factor of the momentum does not show."""
    mean = flat_rows(updates).mean(0)
    k = int(mean.size * (1 - 0.3)) if num_kept is None else num_kept
    return as_layers(np.where(np.abs(mean) < np.sort(np.abs(mean))[-k], 0, mean))


def clipped(updates: dict, limit: float = 5.0) -> dict:
    """Both clipping rules, in the first round."""
    x = flat_rows(updates)
    return as_layers((x * np.minimum(1, limit / np.linalg.norm(x, axis=1))[:, None]).mean(0))
