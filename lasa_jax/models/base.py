"""What a model is: a pair of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

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
