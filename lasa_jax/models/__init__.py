"""Models as pairs of pure functions over one tree of variables.

A model is `(init, apply)`. Its variables are one pytree: `{"params": ...}`, and `"batch_stats"` beside it for a model
with batch normalisation, so that running statistics travel in the update like any other layer (as in the official code).

The modules here are written in Flax **Linen**, not NNX: what a federated simulator needs of a model is exactly Linen's
`init` and `apply`, functions of a pytree that `vmap` over clients. `own` splits and merges NNX modules around every use,
for users who bring them. Nothing outside this folder knows Flax.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from lasa_jax.models import own
from lasa_jax.models.base import Model, Variables
from lasa_jax.models.cnn import PaperCNN, SmallCNN
from lasa_jax.models.lstm import CharLSTM
from lasa_jax.models.mlp import MLP
from lasa_jax.models.resnet import ResNet18

__all__ = ["Model", "Variables", "create", "for_dataset", "names"]

_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "cnn": lambda num_classes: PaperCNN(num_classes),
    "lstm": lambda num_classes: CharLSTM(num_classes),
    "mlp": lambda num_classes: MLP(num_classes),
    "resnet18": lambda num_classes: ResNet18(num_classes),
    "small_cnn": lambda num_classes: SmallCNN(num_classes),
}


def names() -> list[str]:
    """The models that `create` knows, sorted."""
    return sorted(_MODULES)


def create(name: str, *, num_classes: int, input_shape: tuple[int, ...]) -> Model:
    """Builds a model by name.

    Args:
      name: one of `names()`.
      num_classes: width of the output.
      input_shape: shape of one example, `(height, width, channels)`, `(time,)` or `(features,)`.

    Raises:
      ValueError: for a name that is not known.
    """
    if name not in _MODULES:
        raise ValueError(f"model {name!r}: allowed are {', '.join(names())}")
    return own.from_linen(_MODULES[name](num_classes), jax.ShapeDtypeStruct(input_shape, jnp.float32))


def for_dataset(
    made: Any,
    *,
    setting: str,
    dataset: str,
    example: jax.ShapeDtypeStruct,
    label_shape: tuple[int, ...],
    num_classes: int,
) -> Model:
    """The model for a dataset; that it takes the dataset's examples is checked before anything is computed.

    Args:
      made: one of `names()`, or what a user brings, see `own.adapt`.
      setting: that names the model, for messages: `config.model = 'cnn'`.
      dataset: name of the dataset, for messages.
      example: shape and type of an example as the model gets it, `Dataset.example`.
      label_shape: of the labels of one example, `Dataset.label_shape`.
      num_classes: of the dataset.

    Raises:
      InputError: one line that names the model, the dataset, the shape of an example and what the model said.
    """
    where = f"{setting} with examples of {dataset!r}, {example.dtype} {tuple(example.shape)}"
    if isinstance(made, str):
        return _built_in(made, where, example, label_shape, num_classes)
    model = own.adapt(made, where=where, example=example, num_classes=num_classes)
    own.check(model, where=where, example=example, label_shape=label_shape, num_classes=num_classes, made=made)
    return model


@functools.cache  # half a second for ResNet-18, and a batch of runs asks once for each
def _built_in(
    name: str, where: str, example: jax.ShapeDtypeStruct, label_shape: tuple[int, ...], num_classes: int
) -> Model:
    model = create(name, num_classes=num_classes, input_shape=example.shape)
    own.check(model, where=where, example=example, label_shape=label_shape, num_classes=num_classes)
    return model
