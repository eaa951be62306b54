"""Image sets from TensorFlow Datasets, read through `tfds.data_source` and array_record without TensorFlow.

Normalisation, augmentation and counts are those of the official code. MNIST's constants serve Fashion-MNIST too, as in the
official code.
"""

import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf.json_format import ParseError  # of protobuf, with which TFDS reads its descriptions

from lasa_jax.data import cache
from lasa_jax.data.dataset import Dataset, Examples
from lasa_jax.errors import InputError, user_path

BATCH = 1000  # examples a read: one at a time takes two to four times as long
# What TFDS and array_record raise on files that are damaged or of another form.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    ImportError,
    ParseError,
)


class _ImageSet(NamedTuple):
    """shape of an image, number of classes, mean and std of pixels scaled to 0..1, crop (see `Dataset`)."""

    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: str | None


_SETS = {
    "mnist": _ImageSet((28, 28, 1), 10, (0.1307,), (0.3081,), None),
    "fashion_mnist": _ImageSet((28, 28, 1), 10, (0.1307,), (0.3081,), None),
    "cifar10": _ImageSet((32, 32, 3), 10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "constant"),
    "cifar100": _ImageSet((32, 32, 3), 100, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "reflect"),
}


def resolve_data_dir(data_dir: str | None) -> tuple[Path, str]:
    """The directory of TFDS's datasets and the setting that named it."""
    given = {"config.data_dir": data_dir, "TFDS_DATA_DIR": os.environ.get("TFDS_DATA_DIR")}
    for setting, path in given.items():
        if path:
            return user_path(f"{setting} = {path!r}", path), setting
    default = "~/tensorflow_datasets"
    return user_path(f"TFDS_DATA_DIR: is not set, and {default}", default), "TFDS's default"


def find_prepared(name: str, data_dir: str | None) -> Path:
    """The newest prepared version of a set, checked before TFDS is called: its own message is misleading.

    Raises:
      InputError: if there is none, or it is not stored as array_record.
    """
    root, setting = resolve_data_dir(data_dir)
    versions = [info.parent for info in root.glob(f"{name}/[0-9]*/dataset_info.json")]
    command = f"python -m lasa_jax.data.prepare {name} --data_dir={root}"
    if not versions:
        raise InputError(
            f"config.dataset = {name!r}: looked for {name}/*/dataset_info.json in {root} (from {setting}) and found "
            f'none; prepare it with: pip install -e ".[prepare]" && {command}'
        )
    newest = max(versions, key=lambda path: [int(part) for part in path.name.split(".") if part.isdigit()])
    try:
        stored = json.loads((newest / "dataset_info.json").read_text()).get("fileFormat")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{newest / 'dataset_info.json'}: cannot be read ({error}); prepare again: {command}"
        ) from None
    if stored != "array_record":
        raise InputError(
            f"{newest}: stored as {stored}, allowed is array_record; remove that directory and run: {command}"
        )
    return newest


def _read_split(directory: Path, split: str, image_set: _ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a split in batches and checks what it finds: images uint8 `(n, height, width, channels)`, labels int32."""
    import tensorflow_datasets as tfds  # slow to import, and not needed where the cache answers

    name = f"{directory.parent.name}:{directory.name}"
    try:
        source = tfds.data_source(name, split=split, data_dir=directory.parents[1], download=False)
        images = np.empty((len(source), *image_set.shape), np.uint8)
        labels = np.empty(len(source), np.int32)
        for start in range(0, len(source), BATCH):
            batch = source.__getitems__(list(range(start, min(start + BATCH, len(source)))))
            images[start : start + len(batch)] = [example["image"] for example in batch]
            labels[start : start + len(batch)] = [example["label"] for example in batch]
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{directory}: split {split!r} cannot be read: {type(error).__name__}: {reason}") from error
    if labels.size == 0 or labels.min() < 0 or labels.max() >= image_set.num_classes:
        raise InputError(f"{directory}: labels of {split!r} must be 0 to {image_set.num_classes - 1}, and at least one")
    return images, labels


def _load(name: str, data_dir: str | None) -> Dataset:
    image_set = _SETS[name]
    directory = find_prepared(name, data_dir)

    def build() -> dict[str, np.ndarray]:
        arrays = {}
        for split in ("train", "test"):
            arrays[f"{split}_images"], arrays[f"{split}_labels"] = _read_split(directory, split, image_set)
        return arrays

    files = cache.data_files(directory)
    fields = ("train_images", "train_labels", "test_images", "test_labels")
    return of_arrays(name, cache.cached(name, {"format": 1, "files": cache.fingerprint(files)}, fields, build))


def of_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> Dataset:
    """One of these sets from its arrays, normalised and augmented as it always is.

    Args:
      name: one of `LOADERS`.
      arrays: `train_images` and `test_images`, uint8 `(count, height, width, channels)`, and `train_labels` and
        `test_labels`, int32 `(count,)`.
    """
    image_set = _SETS[name]
    return Dataset(
        name=name,
        num_classes=image_set.num_classes,
        train=Examples(arrays["train_images"], arrays["train_labels"]),
        test=Examples(arrays["test_images"], arrays["test_labels"]),
        mean=tuple(255 * value for value in image_set.mean),
        std=tuple(255 * value for value in image_set.std),
        crop=image_set.crop,
    )


LOADERS: dict[str, Callable[[str | None], Dataset]] = {name: functools.partial(_load, name) for name in _SETS}
