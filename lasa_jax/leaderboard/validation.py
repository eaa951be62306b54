"""Datasets to choose parameters on: tested on a fifth of the training examples, without any test example.

Their paths are `lasa_jax.leaderboard.validation:digits` and `:mnist`, as of a user's own dataset.
"""

from typing import Any

import numpy as np

from lasa_jax import data

_SHARE = 5  # one of so many examples is held out


def digits() -> dict[str, Any]:
    """The digits without their test examples."""
    return held_out("digits")


def mnist() -> dict[str, Any]:
    """MNIST without its test examples."""
    return held_out("mnist")


def held_out(name: str) -> dict[str, Any]:
    """What `data.from_arrays` takes: of each class, every fifth training example in a fixed random order is held out.

    Args:
      name: of a dataset of `data.load`, with one label for each example.

    Raises:
      InputError: if the dataset is not there.
    """
    dataset = data.load(name)
    train = dataset.train
    labels = np.asarray(train.labels)
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    held = np.zeros(len(labels), bool)
    held[by_class[::_SHARE]] = True
    return {
        "train": (train.inputs[~held], train.labels[~held]),
        "test": (train.inputs[held], train.labels[held]),
        "mean": dataset.mean,  # inputs are normalised as in the benchmark
        "std": dataset.std,
    }
