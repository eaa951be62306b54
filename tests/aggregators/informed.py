"""Definitions, in float64 NumPy, of the rules that know something beside the updates, for `test_battery`."""

import numpy as np

from lasa_jax import aggregators
from lasa_jax.testing import SHAPES, as_layers, flat_rows, known


def flat_one(tree: dict) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(tree[name], np.float64)) for name in SHAPES])


def context_of(rule: aggregators.Aggregator, updates: dict) -> aggregators.Context:
    return known(rule, updates)["context"]


def fltrust_by_definition(updates: dict) -> dict:
    x, g = flat_rows(updates), flat_one(context_of(aggregators.fltrust(), updates).server_update)
    norms = np.linalg.norm(x, axis=1)
    trust = np.maximum(x @ g / norms / np.linalg.norm(g), 0)
    if not trust.any():
        return as_layers(np.zeros_like(g))
    return as_layers((trust * np.linalg.norm(g) / norms) @ x / trust.sum())


def median_scores(values: np.ndarray) -> np.ndarray:
    return np.abs(values - np.median(values)) / values.std()


def alignins_by_definition(updates: dict, alignment_radius: float = 1.3, sign_radius: float = 1.2) -> dict:
    x, w = flat_rows(updates), flat_one(context_of(aggregators.alignins(), updates).params)
    if len(x) == 1:
        return as_layers(np.zeros(x.shape[1]))
    norms = np.linalg.norm(x, axis=1)
    signs = np.sign(np.sign(x).sum(0))
    top = [np.argsort(-np.abs(row), kind="stable")[: int(0.3 * x.shape[1])] for row in x]
    agreement = np.array([(np.sign(row[at]) == signs[at]).mean() for row, at in zip(x, top, strict=True)])
    with np.errstate(all="ignore"):
        kept = median_scores(x @ w / norms / np.linalg.norm(w)) < alignment_radius
        kept &= median_scores(agreement) < sign_radius
    if not kept.any():
        return as_layers(np.zeros(x.shape[1]))
    limit = np.sort(norms[kept])[(kept.sum() - 1) // 2]
    return as_layers((x * np.minimum(1, limit / norms)[:, None])[kept].mean(0))


def foolsgold_weights(histories: np.ndarray) -> np.ndarray:
    """The weights of clients with these histories, `(n, d)`; 0 for all where all of them are the same."""
    norms = np.linalg.norm(histories, axis=1)
    unit = histories / np.where(norms > 0, norms, 1)[:, None]
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    likeness = cosines.max(1) + 1e-5
    pardon = np.minimum(likeness[:, None] / likeness[None, :], 1)
    a = np.clip(1 - (cosines * pardon).max(1), 0, 1)
    if a.max() <= 1e-12:
        return np.zeros(len(a))
    a = a / a.max()
    a[a == 1] = 0.99
    return np.clip(np.log(a / (1 - a) + 1e-5) + 0.5, 0, 1)


def foolsgold_by_definition(updates: dict) -> dict:
    x = flat_rows(updates)
    capped = x / np.maximum(1, np.linalg.norm(x, axis=1))[:, None]
    return as_layers(foolsgold_weights(capped) @ capped)


def fldetector_by_definition(updates: dict, start_round: int = 50) -> dict:
    """The first round: nothing is foretold yet."""
    return as_layers(flat_rows(updates).mean(0))
