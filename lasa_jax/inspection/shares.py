"""How the examples of a config are divided over its clients, as a picture."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lasa_jax.data import Dataset, Partition
from lasa_jax.errors import InputError

_MOST_CLIENTS = 100  # rows that can still be told apart


def class_counts(dataset: Dataset, shares: Partition) -> np.ndarray:
    """Labels of each class that each client has, int `(num_clients, num_classes)`; padding is not counted."""
    labels = dataset.train.labels
    counts = np.zeros((len(shares.sizes), dataset.num_classes), np.int64)
    for row, indices, size in zip(counts, shares.indices, shares.sizes, strict=True):
        row += np.bincount(labels[indices[:size]].ravel(), minlength=dataset.num_classes)
    if dataset.padding_label is not None:
        counts[:, dataset.padding_label] = 0
    return counts


def describe(counts: np.ndarray, shares: Partition) -> dict[str, str]:
    """A few numbers: clients, examples a client, and classes a client."""
    sizes, classes = shares.sizes, (counts > 0).sum(axis=1)
    return {
        "clients": f"{len(sizes):,}",
        "examples": f"{sizes.sum():,}",
        "examples a client": f"{sizes.min()} to {sizes.max()}, median {np.median(sizes):g}",
        "classes a client": f"{classes.min()} to {classes.max()}, median {np.median(classes):g}",
    }


def draw(counts: np.ndarray, shares: Partition, title: str, path: str | Path) -> None:
    """A heatmap of the share of each class at each client, and beside it how many examples the client has.

    Of more than 100 clients, 100 at equal distances in the order of their ids are shown.

    Raises:
      InputError: if the file cannot be written.
    """
    from matplotlib.figure import Figure  # half a second that other commands should not wait for

    shown = np.unique(np.linspace(0, len(counts) - 1, min(len(counts), _MOST_CLIENTS)).astype(int))
    part = counts[shown] / np.maximum(counts[shown].sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8, 2 + 0.06 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(4, 1), sharey=True)
    image = left.imshow(100 * part, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest", origin="lower")
    note = "" if len(shown) == len(counts) else f" ({len(shown)} of {len(counts):,})"
    left.set(xlabel="class", ylabel=f"client{note}", title=title)
    figure.colorbar(image, ax=left, label="labels of the client in %")
    right.barh(np.arange(len(shown)), shares.sizes[shown], height=1.0, color="tab:gray")
    right.set(xlabel="examples")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise InputError(f"--output={path}: cannot be written ({error})") from None


def title(dataset: Dataset, settings: Mapping[str, object]) -> str:
    """`"cifar10, dirichlet (alpha 0.1, min_samples 10)"`."""
    numbers = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
    return f"{dataset.name}, {settings['name']}" + (f" ({numbers})" if numbers else "")
