"""Sets whose clients are natural, made from raw files: a TFDS builder with a client-id feature, and how it is found again.

A set is prepared once for each source, in `DATA_DIR/NAME/SOURCE_ID/VERSION` where SOURCE_ID is the start of the SHA-256 of
the source's files, and is read like every TFDS set from then on. No TensorFlow is needed.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lasa_jax.data import cache, tfds_images
from lasa_jax.errors import InputError, user_path


class ClientExamples(NamedTuple):
    """Examples of one client: inputs uint8 `(count, ...)`, labels uint8 `(count, ...)`."""

    client: str
    inputs: np.ndarray
    labels: np.ndarray


class FederatedSet(NamedTuple):
    """name: in the registry and as a TFDS builder. version: changes when the same source gives other examples.
    input_shape, label_shape: of one example. files: those of a source that count. read: from the source's path to the
    clients of "train" and "test". Both raise InputError where a path is no source."""

    name: str
    version: str
    input_shape: tuple[int, ...]
    label_shape: tuple[int, ...]
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], dict[str, list[ClientExamples]]]


class Arrays(NamedTuple):
    """What a prepared set holds: inputs and labels of both splits, and the client of each training example as its place
    among the sorted names. source_id: see there."""

    train_inputs: np.ndarray
    train_labels: np.ndarray
    train_clients: np.ndarray
    test_inputs: np.ndarray
    test_labels: np.ndarray
    source_id: str


def load(spec: FederatedSet, data_dir: str | None, source: str | None) -> Arrays:
    """Reads a set, preparing it first where a source is given that was not prepared yet.

    Args:
      spec: which set.
      data_dir: where TFDS keeps its datasets, see `tfds_images.resolve_data_dir`.
      source: path of the raw form, or None for what is prepared already.

    Raises:
      InputError: if there is nothing to read, more than one set to choose from, or something wrong in the source.
    """
    root, setting = tfds_images.resolve_data_dir(data_dir)
    if source is None:
        folder = _find(spec, root, setting)
    else:
        folder = _prepared(spec, root, user_path(f"config.source = {source!r}", source))
    files = cache.data_files(folder)
    identity, version = folder.parts[-2:]
    key = {"format": 1, "source": identity, "version": version, "files": cache.fingerprint(files)}
    fields = tuple(field for field in Arrays._fields if field != "source_id")
    return Arrays(**cache.cached(spec.name, key, fields, lambda: _read(spec, folder)), source_id=identity)


def source_id(source: Path, files: list[Path]) -> str:
    """Twelve hexadecimal digits of the SHA-256 of a source's files and their names below it."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(source).as_posix().encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


def _find(spec: FederatedSet, root: Path, setting: str) -> Path:
    """The prepared set, where there is exactly one."""
    pattern = f"{spec.name}/*/{spec.version}/dataset_info.json"
    found = sorted(info.parent for info in root.glob(pattern) if not info.parent.parent.name.startswith("."))
    if not found:
        raise InputError(
            f"config.dataset = {spec.name!r}: looked for {pattern} in {root} (from {setting}) and found none; name its "
            f"raw form once with --config.source=PATH, in a sweep with SWEEP:{spec.name},source=PATH "
            f"(docs/datasets.md says where to get it)"
        )
    if len(found) > 1:
        ids = ", ".join(folder.parent.name for folder in found)
        raise InputError(
            f"config.dataset = {spec.name!r}: {root} holds sets made from {len(found)} sources ({ids}); choose one with "
            f"--config.source=PATH, in a sweep with SWEEP:{spec.name},source=PATH"
        )
    return found[0]


def _prepared(spec: FederatedSet, root: Path, source: Path) -> Path:
    """The set made from this source, made now if it is not there."""
    if not source.exists():
        raise InputError(f"config.source = '{source}': no such file or folder")
    files = spec.files(source)
    try:
        identity = source_id(source, files)
    except OSError as error:
        raise InputError(f"config.source = '{source}': cannot be read ({error.strerror})") from None
    folder = root / spec.name / identity / spec.version
    if not (folder / "dataset_info.json").is_file():
        clients = spec.read(source)  # whole, so that nothing is written of a source with something wrong in it
        try:
            _builder(spec, root, identity, clients).download_and_prepare()
        except OSError as error:
            if not (folder / "dataset_info.json").is_file():  # else another process was faster
                raise InputError(
                    f"config.data_dir: {spec.name} cannot be written in {root} ({error.strerror or error}); choose another "
                    f"directory"
                ) from None
    return folder


def _builder(spec: FederatedSet, root: Path, identity: str, clients: dict[str, list[ClientExamples]]) -> Any:
    """A TFDS builder that writes these clients, in their order, as array_record."""
    import tensorflow_datasets as tfds  # slow to import, and not needed where the set is prepared already

    version = tfds.core.Version(spec.version)

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
        """Examples with the client that owns them."""

        name = spec.name
        VERSION = version

        def _info(self) -> Any:
            def stored(shape: tuple[int, ...]) -> Any:
                return tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding="zlib" if shape else "none")

            features = {
                "input": stored(spec.input_shape),
                "label": stored(spec.label_shape),
                "client": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description=f"{spec.name} by client, from the source with SHA-256 {identity}...",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> Any:
            return {split: self._generate_examples(split) for split in ("train", "test")}

        def _generate_examples(self, split: str) -> Any:
            index = 0
            for client, inputs, labels in clients[split]:
                for x, y in zip(inputs, labels, strict=True):
                    yield index, {"input": x, "label": y, "client": client}
                    index += 1

    config = tfds.core.BuilderConfig(name=identity, version=version)
    return Builder(data_dir=root, config=config, file_format="array_record")


def _read(spec: FederatedSet, folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a prepared set."""
    import tensorflow_datasets as tfds

    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    try:
        json.loads((folder / "dataset_info.json").read_text())  # TFDS's own error is of another kind
        builder = tfds.builder_from_directory(folder)
        for split in ("train", "test"):
            source = builder.as_data_source(split)
            count = len(source)
            inputs = np.empty((count, *spec.input_shape), np.uint8)
            labels = np.empty((count, *spec.label_shape), np.int32)
            clients = []
            for start in range(0, count, tfds_images.BATCH):
                batch = source.__getitems__(list(range(start, min(start + tfds_images.BATCH, count))))
                inputs[start : start + len(batch)] = [example["input"] for example in batch]
                labels[start : start + len(batch)] = [example["label"] for example in batch]
                clients += [example["client"].decode() for example in batch]
            arrays[f"{split}_inputs"], arrays[f"{split}_labels"], names[split] = inputs, labels, clients
    except tfds_images.UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{folder}: cannot be read: {type(error).__name__}: {reason}; remove it to make it anew"
        ) from error
    arrays["train_clients"] = np.unique(names["train"], return_inverse=True)[1].astype(np.int32)
    return arrays
