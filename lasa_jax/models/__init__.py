"""Models as pairs of pure functions over one tree of variables.

A model is `(init, apply)`. Its variables are one pytree: `{"params": ...}`, and `"batch_stats"` beside it for a model
with batch normalisation, so that running statistics travel in the update like any other layer (as in the official code).

The modules are written in Flax **Linen**, not NNX: what a federated simulator needs of a model is exactly Linen's
`init` and `apply`, functions of a pytree that `vmap` over clients; NNX's stateful modules would have to be split and
merged around every use. Nothing outside this folder knows Flax.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from lasa_jax.models.cnn import PaperCNN, SmallCNN
from lasa_jax.models.lstm import CharLSTM
from lasa_jax.models.resnet import ResNet18

Variables = dict[str, Any]


class Model(NamedTuple):
    """A model as two pure functions.

    init: `init(key) -> variables`.
    apply: `apply(variables, inputs, *, train=False, key=None, mask=None) -> (logits, variables)`. In training, `key`
      draws the dropout masks and `mask` (bool `(batch,)`) says which examples are real: padding changes no statistic.
      The variables returned have updated batch statistics; everything else is as given.
    """

    init: Callable[[jax.Array], Variables]
    apply: Callable[..., tuple[jax.Array, Variables]]


_MODULES: dict[str, Callable[[int], nn.Module]] = {
    "cnn": lambda num_classes: PaperCNN(num_classes),
    "lstm": lambda num_classes: CharLSTM(num_classes),
    "resnet18": lambda num_classes: ResNet18(num_classes),
    "small_cnn": lambda num_classes: SmallCNN(num_classes),
}


def names() -> list[str]:
    """The models that `create` knows, sorted."""
    return sorted(_MODULES)


def input_rank(name: str) -> int:
    """Dimensions of one example that a model takes: 3 for images, 1 for sequences."""
    return 1 if name == "lstm" else 3


def create(name: str, *, num_classes: int, input_shape: tuple[int, ...]) -> Model:
    """Builds a model by name.

    Args:
      name: one of `names()`.
      num_classes: width of the output.
      input_shape: shape of one example, `(height, width, channels)` or `(time,)`.

    Raises:
      ValueError: for a name that is not known.
    """
    if name not in _MODULES:
        raise ValueError(f"model {name!r}: allowed are {', '.join(names())}")
    module = _MODULES[name](num_classes)

    def init(key: jax.Array) -> Variables:
        return dict(module.init(key, jnp.zeros((1, *input_shape), jnp.float32)))

    def apply(
        variables: Variables,
        inputs: jax.Array,
        *,
        train: bool = False,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Variables]:
        if not train:
            return cast(jax.Array, module.apply(variables, inputs)), variables
        if key is None:
            raise ValueError("apply(train=True) needs a key for dropout")
        logits, updated = cast(
            tuple[jax.Array, Variables],
            module.apply(variables, inputs, train=True, mask=mask, rngs={"dropout": key}, mutable=["batch_stats"]),
        )
        return logits, {**variables, **updated}

    return Model(init, apply)
