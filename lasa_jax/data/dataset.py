"""The arrays that everything else works on: examples as stored, and how a batch of them is made ready inside the round."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax.data.partition import Partition


class Examples(NamedTuple):
    """inputs: `(num_examples, ...)`, images as uint8, tokens as uint8 or int32, other numbers as float32. labels: int32
    `(num_examples,)`, or `(num_examples, time)` where every position of a sequence has one. Of NumPy, or on the device."""

    inputs: Any
    labels: Any


class FederatedDataset(NamedTuple):
    """What a simulation reads, on the device: `train` and `test` examples and the partition of `train` over clients."""

    train: Examples
    test: Examples
    partition: Partition


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset before it is divided over clients.

    Attributes:
      name: as in the registry.
      num_classes: labels are `0 .. num_classes - 1`.
      train, test: examples as NumPy arrays; images stay uint8 until they are inside the round.
      mean, std: per channel or feature, in the units of what is stored, or one for all; empty for what is not normalised,
        as tokens are.
      crop: None, or how training images are cropped at random after a padding of 4 pixels and flipped at random:
        `"constant"` pads with zeros, `"reflect"` mirrors.
      client_ids: the natural owner of each training example, int `(num_examples,)`, or None.
      source_id: of the raw files that the set was made from, see `by_client.source_id`, or of the arrays of a user's own;
        None for the others.
      padding_label: the label of positions that are padding, or None.
      counts_padding: whether such positions count in losses and accuracies; False leaves them out of both.
    """

    name: str
    num_classes: int
    train: Examples
    test: Examples
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: str | None = None
    client_ids: np.ndarray | None = None
    source_id: str | None = None
    padding_label: int | None = None
    counts_padding: bool = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return tuple(self.train.inputs.shape[1:])

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of the label of one example: `()`, or `(time,)`."""
        return tuple(self.train.labels.shape[1:])

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """Shape and type of one example as a model gets it."""
        one = jax.ShapeDtypeStruct((1, *self.input_shape), self.train.inputs.dtype)
        given = jax.eval_shape(self.normalise, one)
        return jax.ShapeDtypeStruct(given.shape[1:], given.dtype)

    def normalise(self, inputs: jax.Array) -> jax.Array:
        """`(x - mean) / std` in float32, for a batch of stored examples; as they are where `mean` is empty."""
        if not self.mean:
            return inputs
        mean, std = (
            jnp.asarray(x, jnp.float32).reshape((1,) * (inputs.ndim - 1) + (-1,)) for x in (self.mean, self.std)
        )
        return (inputs.astype(jnp.float32) - mean) / std

    def counted(self, labels: jax.Array, real: jax.Array) -> jax.Array:
        """Which labels of a batch count, bool like `labels`; `real` says which examples do, bool `(batch,)`."""
        counted = jnp.broadcast_to(real.reshape((-1,) + (1,) * (labels.ndim - 1)), labels.shape)
        return (
            counted if self.padding_label is None or self.counts_padding else counted & (labels != self.padding_label)
        )

    def num_test_labels(self) -> int:
        """How many labels the test accuracy is a share of."""
        labels = np.asarray(self.test.labels)
        return (
            labels.size
            if self.padding_label is None or self.counts_padding
            else int((labels != self.padding_label).sum())
        )

    def augment(self, key: jax.Array, inputs: jax.Array) -> jax.Array:
        """Random crop and flip of each image of a training batch, as stored; the identity where `crop` is None."""
        if self.crop is None:
            return inputs
        batch, height, width, _ = inputs.shape
        padded = jnp.pad(inputs, ((0, 0), (4, 4), (4, 4), (0, 0)), mode=self.crop)
        offset_key, flip_key = jax.random.split(key)
        offsets = jax.random.randint(offset_key, (batch, 2), 0, 9, jnp.int32)
        flips = jax.random.bernoulli(flip_key, jnp.float32(0.5), (batch,))

        def one(image: jax.Array, offset: jax.Array, flip: jax.Array) -> jax.Array:
            image = jax.lax.dynamic_slice(image, (offset[0], offset[1], jnp.int32(0)), (height, width, image.shape[-1]))
            return jnp.where(flip, image[:, ::-1], image)

        return jax.vmap(one)(padded, offsets, flips)
