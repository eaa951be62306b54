"""Datasets: a registry, one file a source, and the arrays that a simulation reads.

To add a dataset, write a function `(data_dir) -> Dataset` in a file of its own and name it in `_LOADERS`.
"""

import difflib
from collections.abc import Callable

from lasa_jax.data import digits, tfds_images
from lasa_jax.data.dataset import Dataset, Examples, FederatedDataset
from lasa_jax.data.partition import Partition
from lasa_jax.errors import InputError

__all__ = ["Dataset", "Examples", "FederatedDataset", "Partition", "load", "names"]

_LOADERS: dict[str, Callable[[str | None], Dataset]] = {"digits": digits.load, **tfds_images.LOADERS}


def names() -> list[str]:
    """The datasets that `load` knows, sorted."""
    return sorted(_LOADERS)


def load(name: str, *, data_dir: str | None = None) -> Dataset:
    """Reads a dataset into memory.

    Args:
      name: one of `names()`.
      data_dir: where TFDS keeps its datasets; `TFDS_DATA_DIR`, then `~/tensorflow_datasets` if None.

    Raises:
      InputError: if the name is not known, or the data is not there or damaged.
    """
    if name not in _LOADERS:
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise InputError(f"config.dataset = {name!r}: allowed are {', '.join(names())}{hint}")
    return _LOADERS[name](data_dir)
