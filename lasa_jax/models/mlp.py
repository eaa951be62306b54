"""A small network for tables of numbers."""

import jax
from flax import linen as nn

from lasa_jax.models.layers import Dense


class MLP(nn.Module):
    """Two dense layers of 64 with ReLU and one for the classes, over an example's numbers in a row: not in the paper."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = nn.relu(Dense(64, name="dense1")(x.reshape(x.shape[0], -1)))
        x = nn.relu(Dense(64, name="dense2")(x))
        return Dense(self.num_classes, name="dense3")(x)
