"""FEMNIST: handwritten digits and letters, 62 classes, a client a writer (Caldas et al., "LEAF", 2018).

28x28 grey images, ink 0 on paper 255. A source (docs/datasets.md) is one of

* LEAF's JSON, `train/*.json` and `test/*.json`: 3,550 writers of 805,263 images.
* TensorFlow Federated's HDF5, made from LEAF's: `fed_emnist_train.h5` and `fed_emnist_test.h5` with `examples/WRITER/pixels`
  and `label`: 3,400 writers of 671,585 and 77,483 images, with the same labels.
"""

from pathlib import Path
from typing import Any

import numpy as np

from lasa_jax.data import by_client, leaf
from lasa_jax.data.dataset import Dataset, Examples
from lasa_jax.errors import InputError

NUM_CLASSES = 62
_SIDE = 28


def _convert(x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Images of a user as uint8 and labels, from floats of LEAF's form; ValueError if they are no such thing."""
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


def _files(source: Path) -> list[Path]:
    if leaf.is_leaf(source):
        return leaf.files(source)
    if any(file.is_file() for file in _hdf5(source).values()):
        return [file for file in _hdf5(source).values() if file.is_file()]
    raise InputError(
        f"config.source = '{source}': must be a folder with train/*.json and test/*.json, as LEAF writes, or one with "
        f"fed_emnist_train.h5 and fed_emnist_test.h5 (TensorFlow Federated)"
    )


def _hdf5(source: Path) -> dict[str, Path]:
    return {part: source / f"fed_emnist_{part}.h5" for part in ("train", "test")}


def _read_hdf5(source: Path) -> dict[str, list[by_client.ClientExamples]]:
    try:
        import h5py
    except ImportError:
        raise InputError('config.source: reading HDF5 needs h5py: pip install -e ".[hdf5]"') from None
    parts: dict[str, list[by_client.ClientExamples]] = {}
    for part, file in _hdf5(source).items():
        parts[part] = []
        try:
            with h5py.File(file, "r") as content:
                for writer in sorted(content["examples"]):
                    stored = content["examples"][writer]
                    pixels, labels = (np.asarray(stored[name][()]) for name in ("pixels", "label"))
                    if pixels.shape[:1] != labels.shape[:1] or not labels.size:
                        raise InputError(
                            f"{file}: client {writer!r} must have as many label as pixels, and at least one"
                        )
                    try:
                        arrays = _convert(pixels.reshape(len(pixels), -1), labels.reshape(len(labels), -1)[:, 0])
                    except ValueError as error:
                        raise InputError(f"{file}: client {writer!r}: {error}") from None
                    parts[part].append(by_client.ClientExamples(writer, *arrays))
        except (OSError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise InputError(
                f"{file}: is not TensorFlow Federated's FEMNIST ({type(error).__name__}: {reason})"
            ) from None
        if not parts[part]:
            raise InputError(f"{file}: no client in it")
    return parts


def _read(source: Path) -> dict[str, list[by_client.ClientExamples]]:
    return leaf.read(source, _convert) if leaf.is_leaf(source) else _read_hdf5(source)


SET = by_client.FederatedSet("femnist", "1.0.0", (_SIDE, _SIDE, 1), (), _files, _read)


def load(data_dir: str | None = None, source: str | None = None) -> Dataset:
    """The set by writer; see `by_client.load`. Images are (0.5 - x) / 0.5 (docs/fidelity.md, section 7)."""
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
