"""Data made from a seed in the shapes of the real sets, so that a card needs neither network nor TensorFlow Datasets."""

import numpy as np

from lasa_jax.data import Dataset, shakespeare, tfds_images
from lasa_jax.data.by_client import Arrays

_SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}


def images(name: str, train: int, test: int) -> Dataset:
    """A set like MNIST or CIFAR-10: ten patterns in noise, which a model learns, as many images of each.

    Args:
      name: `"mnist"` or `"cifar10"`, whose normalisation and augmentation it has.
      train: images.
      test: images.
    """
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 128, (10, *_SHAPES[name]), np.uint8)
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = rng.permutation(np.arange(count, dtype=np.int32) % 10)
        noise = rng.integers(0, 128, (count, *_SHAPES[name]), np.uint8)
        arrays |= {f"{split}_images": patterns[labels] + noise, f"{split}_labels": labels}
    return tfds_images.of_arrays(name, arrays)


def roles(count: int, test: int, *, pieces: int | None = None) -> Dataset:
    """A set like Shakespeare: roles whose pieces are words of a small lexicon, one after another.

    Args:
      count: roles.
      test: pieces.
      pieces: of each role; None: a log-normal number, 56 on average and 1,000 at most.
    """
    rng = np.random.default_rng(0)
    if pieces is None:
        drawn = rng.lognormal(sigma=1.2, size=count)
        sizes = np.clip(np.round(56 * drawn / drawn.mean()), 1, 1000).astype(int)
    else:
        sizes = np.full(count, pieces)
    words = rng.integers(1, shakespeare.BEGIN, (200, 9), np.uint8)  # 81 tokens are nine words
    length = shakespeare.LENGTH + 1
    train, test_pieces = (words[rng.integers(0, len(words), (n, 9))].reshape(n, length) for n in (sizes.sum(), test))
    return shakespeare.of_arrays(
        Arrays(
            train[:, :-1],
            train[:, 1:],
            np.repeat(np.arange(count), sizes),
            test_pieces[:, :-1],
            test_pieces[:, 1:],
            source_id="made",
        )
    )
