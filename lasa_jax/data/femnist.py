"""FEMNIST: handwritten digits and letters, 62 classes, a client a writer (Caldas et al., "LEAF", 2018).

28x28 grey images, ink 0 on paper 255. Made from LEAF's own output, see docs/datasets.md.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lasa_jax.data import by_client, leaf
from lasa_jax.data.dataset import Dataset, Examples

NUM_CLASSES = 62
_SIDE = 28


def _convert(x: list[Any], y: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images of a user as uint8 and labels, from LEAF's floats; ValueError if they are no such thing."""
    try:
        pixels, labels = np.asarray(x), np.asarray(y)
    except (TypeError, ValueError):
        raise ValueError(f"x must be images of {_SIDE * _SIDE} numbers") from None
    if pixels.dtype.kind not in "fiu":
        raise ValueError(f"x must be images of {_SIDE * _SIDE} numbers")
    if pixels.ndim != 2 or pixels.shape[1] != _SIDE * _SIDE:
        raise ValueError(f"x has the shape {pixels.shape}, must be (count, {_SIDE * _SIDE})")
    if not ((pixels >= 0) & (pixels <= 1)).all():
        raise ValueError("x must lie between 0 and 1")
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise ValueError(f"y must be whole numbers from 0 to {NUM_CLASSES - 1}")
    return np.rint(255 * pixels).astype(np.uint8).reshape(-1, _SIDE, _SIDE, 1), labels.astype(np.uint8)


def _read(source: Path) -> dict[str, list[by_client.ClientExamples]]:
    return leaf.read(source, _convert)


SET = by_client.FederatedSet("femnist", "1.0.0", (_SIDE, _SIDE, 1), (), leaf.files, _read)


def load(data_dir: str | None = None, source: str | None = None) -> Dataset:
    """The set by writer; see `by_client.load`. Images are normalised as (0.5 - x) / 0.5 (docs/fidelity.md)."""
    arrays = by_client.load(SET, data_dir, source)
    return Dataset(
        name="femnist",
        num_classes=NUM_CLASSES,
        train=Examples(arrays.train_inputs, arrays.train_labels),
        test=Examples(arrays.test_inputs, arrays.test_labels),
        mean=(127.5,),
        std=(-127.5,),  # ink is dark here and bright in MNIST
        client_ids=arrays.train_clients,
        source_id=arrays.source_id,
    )
