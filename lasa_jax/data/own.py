"""Data of a user's own: arrays that a function returns, or that an .npz file holds, as a checked `Dataset`.

The type of the inputs says what they are. Floating point numbers (kept as float32), booleans and uint8 are numbers, which
are normalised by feature or channel, the last axis. Other integers are tokens, kept as int32 and never normalised.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lasa_jax.data import cache
from lasa_jax.data.dataset import Dataset, Examples
from lasa_jax.errors import InputError, user_path

_OPTIONAL = ("client_ids", "mean", "std")
_LARGEST = np.iinfo(np.int32).max
_BLOCK = 4096  # examples whose squares are held at a time


def from_arrays(name: str, made: object) -> Dataset:
    """The dataset of what a user's function returned.

    Args:
      name: of the dataset, for messages and tables: the path of the function.
      made: `{"train": (inputs, labels), "test": (inputs, labels)}`, and where wanted "client_ids", the owner of each
        training example, and "mean" and "std", which the inputs are normalised with in place of those of the training
        inputs; both `()` for none. Arrays, or what NumPy makes arrays of. Inputs are `(examples, ...)`; labels are whole
        numbers from 0, `(examples,)`, `(examples, 1)`, or `(examples, time)` for sequences.

    Raises:
      InputError: one line that names the dataset, and what is not as it must be.
    """
    where = f"config.dataset = {name!r}"
    if not isinstance(made, Mapping):
        raise InputError(
            f"{where}: gives {_kind(made)}, allowed is a dict with 'train' and 'test', each (inputs, labels)"
        )
    _check_keys(where, made, ("train", "test"))
    arrays = {key: made[key] for key in _OPTIONAL if key in made}
    for split in ("train", "test"):
        pair = made[split]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"{where}: {split!r} is {_kind(pair)}, allowed is a pair (inputs, labels)")
        arrays[f"{split}_inputs"], arrays[f"{split}_labels"] = pair
    return _dataset(name, where, arrays)


def from_npz(path: str) -> Dataset:
    """The dataset of an .npz file with `train_inputs`, `train_labels`, `test_inputs` and `test_labels`.

    It may hold `client_ids`, `mean` and `std` too, see `from_arrays`. Nothing in it is unpickled.

    Args:
      path: of the file; `~` is the home directory.

    Raises:
      InputError: one line that names the file, and what is not as it must be.
    """
    where = f"config.dataset = {path!r}"
    file = user_path(where, path)
    if not file.is_file():
        raise InputError(f"{where}: no such file")
    try:
        with file.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"{where}: is no .npz file")
            arrays = {key: archive[key] for key in archive.files}
    except InputError:
        raise
    except cache.DAMAGE as error:
        raise InputError(f"{where}: cannot be read: {type(error).__name__}: {' '.join(str(error).split())}") from None
    _check_keys(where, arrays, ("train_inputs", "train_labels", "test_inputs", "test_labels"))
    return _dataset(path, where, arrays)


def _check_keys(where: str, found: Mapping[Any, Any], needed: tuple[str, ...]) -> None:
    """Raises InputError for a key that is missing, and for one that nobody reads: it may be misspelt."""
    for key in needed:
        if key not in found:
            raise InputError(f"{where}: has no {key!r}, only {', '.join(map(repr, found)) or 'nothing'}")
    for key in found:
        if key not in (*needed, *_OPTIONAL):
            raise InputError(f"{where}: {key!r} is not known, allowed are {', '.join((*needed, *_OPTIONAL))}")


def _dataset(name: str, where: str, arrays: Mapping[str, Any]) -> Dataset:
    """The dataset of four arrays and what may come with them, all of them checked."""
    splits = {}
    for split in ("train", "test"):
        inputs = _inputs(f"{where}: the {split} inputs", arrays[f"{split}_inputs"])
        labels = _labels(f"{where}: the {split} labels", arrays[f"{split}_labels"])
        if len(inputs) != len(labels):
            raise InputError(f"{where}: {split!r} has {len(inputs)} inputs and {len(labels)} labels")
        splits[split] = Examples(inputs, labels)
    train, test = splits["train"], splits["test"]
    for part, here, there in zip(("inputs", "labels"), train, test, strict=True):
        if here.shape[1:] != there.shape[1:]:
            raise InputError(
                f"{where}: one of the train {part} has the shape {here.shape[1:]}, of test {there.shape[1:]}"
            )
    if train.inputs.dtype != test.inputs.dtype:
        raise InputError(f"{where}: the train inputs are {train.inputs.dtype} and those of test {test.inputs.dtype}")
    num_classes = int(max(train.labels.max(), test.labels.max())) + 1
    if num_classes < 2:
        raise InputError(f"{where}: all labels are 0, allowed are at least two classes")
    seen = len(np.union1d(train.labels, test.labels))
    # A single label of 255 or a million would be a model of as many outputs, and hours. Vocabularies may have gaps.
    if train.labels.ndim == 1 and num_classes > 2 * seen:
        raise InputError(
            f"{where}: labels go to {num_classes - 1}, and only {seen} of these {num_classes} classes have an example; "
            f"allowed are 0 to classes - 1 without such gaps, see docs/datasets.md"
        )
    mean, std = _normalisation(where, train.inputs, arrays.get("mean"), arrays.get("std"))
    ids = arrays.get("client_ids")
    client_ids = None if ids is None else _client_ids(f"{where}: client_ids", ids, len(train.labels))
    identity = _sha256(*train, *test, np.array(mean), np.array(std), np.array(-1) if client_ids is None else client_ids)
    return Dataset(
        name=name,
        num_classes=num_classes,
        train=train,
        test=test,
        mean=tuple(mean),
        std=tuple(std),
        client_ids=client_ids,
        source_id=identity,
    )


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _array(what: str, value: object) -> np.ndarray:
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what} are no array: {' '.join(str(error).split())}") from None


def _inputs(what: str, value: object) -> np.ndarray:
    """Inputs as uint8, float32 or int32 `(examples, ...)`."""
    array = _array(what, value)
    if array.ndim < 2 or not array.size:
        raise InputError(f"{what} have the shape {array.shape}, allowed is (examples, ...), with examples")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind in "fb":
        with np.errstate(over="ignore"):  # found below
            array = array.astype(np.float32, copy=False)
        bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
        if bad.any():
            raise InputError(
                f"{what} are not finite in {bad.sum()} of {len(bad)} examples, first in example {int(np.argmax(bad))}"
            )
        return array
    if array.dtype.kind in "iu":
        if array.min() < -_LARGEST or array.max() > _LARGEST:
            raise InputError(
                f"{what} go from {array.min()} to {array.max()}: whole numbers are tokens, allowed is int32"
            )
        return array.astype(np.int32, copy=False)
    raise InputError(f"{what} are {array.dtype}, allowed are floating point numbers, uint8, and integers for tokens")


def _labels(what: str, value: object) -> np.ndarray:
    """Labels as int32 `(examples,)` or `(examples, time)`."""
    array = _array(what, value)
    if array.ndim not in (1, 2) or not array.size:
        raise InputError(
            f"{what} have the shape {array.shape}, allowed are (examples,) and (examples, time), with examples"
        )
    if array.dtype.kind not in "fiub":
        raise InputError(f"{what} are {array.dtype}, allowed are whole numbers from 0, a number for each class")
    if array.dtype.kind == "f" and not (np.isfinite(array) & (array == np.floor(array))).all():
        wrong = array[~(np.isfinite(array) & (array == np.floor(array)))][0]
        raise InputError(f"{what} are not whole numbers, one is {wrong:g}")
    if array.min() < 0 or array.max() > _LARGEST:
        raise InputError(f"{what} go from {array.min():.10g} to {array.max():.10g}, allowed are 0 to classes - 1")
    labels = array.astype(np.int32)
    return labels[:, 0] if labels.shape[1:] == (1,) else labels


def _client_ids(what: str, value: object, count: int) -> np.ndarray:
    """The place of each owner among the owners, sorted, int32 `(count,)`."""
    array = _array(what, value)
    if array.shape != (count,):
        raise InputError(f"{what} have the shape {array.shape}, allowed is one for each of {count} training examples")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise InputError(f"{what}: {int(np.isnan(array).sum())} are missing (NaN)")
    try:
        return np.unique(array, return_inverse=True)[1].astype(np.int32)
    except TypeError:
        raise InputError(f"{what} cannot be sorted, allowed are numbers, or strings") from None


def _normalisation(where: str, inputs: np.ndarray, mean: object, std: object) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for each place of the last axis: those given, else of the inputs, none for tokens."""
    if (mean is None) != (std is None):
        raise InputError(f"{where}: has one of mean and std, allowed are both or neither")
    if mean is not None:
        given = [
            _numbers(f"{where}: {name}", value, inputs.shape[-1]) for name, value in (("mean", mean), ("std", std))
        ]
        if not given[0] or not given[1]:
            return [], []
        if not all(given[1]):
            raise InputError(f"{where}: std is 0 somewhere, allowed are numbers other than 0")
        return given[0], given[1]
    if inputs.dtype == np.int32:
        return [], []
    axes = tuple(range(inputs.ndim - 1))
    average = inputs.mean(axes, dtype=np.float64)
    blocks = [inputs[start : start + _BLOCK] for start in range(0, len(inputs), _BLOCK)]
    squares = sum(((block - average) ** 2).sum(axes) for block in blocks)
    deviation = np.sqrt(squares / (inputs.size // inputs.shape[-1]))
    constant = inputs.min(axes) == inputs.max(axes)  # says nothing, and must not divide by 0
    return average.tolist(), np.where(constant, 1.0, deviation).tolist()


def _numbers(what: str, value: object, width: int) -> list[float]:
    try:
        array = np.atleast_1d(np.asarray(value, np.float64))
    except (TypeError, ValueError):
        raise InputError(f"{what} are no numbers") from None
    if array.ndim != 1 or array.size not in (0, 1, width) or not np.isfinite(array).all():
        raise InputError(
            f"{what} must be finite: one number, or {width}, one for each place of the last axis; () for none"
        )
    return array.tolist()


def _sha256(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays with their types and shapes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
