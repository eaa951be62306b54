"""Datasets: a registry, one file a source, and the arrays that a simulation reads.

To add a dataset, write a function `(data_dir) -> Dataset` in a file of its own and name it in `_LOADERS`; one that is made
from raw files is a `by_client.FederatedSet`, loads as `(data_dir, source) -> Dataset` and is named in `_FROM_SOURCE`.
Arrays of a user's own need neither: see `own`.
"""

from collections.abc import Callable

from lasa_jax.data import digits, femnist, own, shakespeare, tfds_images
from lasa_jax.data.dataset import Dataset, Examples, FederatedDataset
from lasa_jax.data.own import from_arrays
from lasa_jax.data.partition import Partition
from lasa_jax.errors import InputError, nearest

__all__ = [
    "Dataset",
    "Examples",
    "FederatedDataset",
    "Partition",
    "from_arrays",
    "has_padding",
    "is_text",
    "load",
    "made_from_source",
    "names",
]

_LOADERS: dict[str, Callable[[str | None], Dataset]] = {"digits": digits.load, **tfds_images.LOADERS}
_FROM_SOURCE: dict[str, Callable[[str | None, str | None], Dataset]] = {
    "femnist": femnist.load,
    "shakespeare": shakespeare.load,
}


def names() -> list[str]:
    """The datasets that `load` knows, sorted."""
    return sorted([*_LOADERS, *_FROM_SOURCE])


def made_from_source(name: str) -> bool:
    """Whether a dataset is made from raw files that `config.source` names."""
    return name in _FROM_SOURCE


def has_padding(name: str) -> bool:
    """Whether some labels of a dataset are padding, so that losses and accuracies have two forms."""
    return name == "shakespeare"


def is_text(name: str) -> bool:
    """Whether the examples of a dataset are characters, which have no pixels."""
    return name == "shakespeare"


def load(name: str, *, data_dir: str | None = None, source: str | None = None) -> Dataset:
    """Reads a dataset into memory.

    Args:
      name: one of `names()`, or the path of an .npz file, see `own.from_npz`. A user's function is no name here: call it
        and give what it returns to `from_arrays`.
      data_dir: where TFDS keeps its datasets; `TFDS_DATA_DIR`, then `~/tensorflow_datasets` if None.
      source: path of the raw form, for datasets that are made from one; None for what was prepared before.

    Raises:
      InputError: if the name is not known, or the data is not there or damaged.
    """
    if name not in names() and not name.endswith(".npz"):
        known = ", ".join(names())
        raise InputError(f"config.dataset = {name!r}: allowed are {known} or an .npz file{nearest(name, names())}")
    if name in _FROM_SOURCE:
        return _FROM_SOURCE[name](data_dir, source)
    if source is not None:
        raise InputError(f"config.source = {source!r}: dataset {name!r} is not made from a raw source")
    return _LOADERS[name](data_dir) if name in _LOADERS else own.from_npz(name)
