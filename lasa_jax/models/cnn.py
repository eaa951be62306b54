"""The paper's CNN for 28x28 images and a small one for the 8x8 digits."""

import jax
from flax import linen as nn

from lasa_jax.models.layers import Conv, Dense, Dropout


class PaperCNN(nn.Module):
    """Two 5x5 convolutions, each followed by max pooling and ReLU, and two dense layers with dropout 0.5 between.

    1,663,370 parameters for 10 classes. Source: supplement, section B; details from the official code.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = nn.relu(Conv(32, 5, padding=2, pooled=True, name="conv1")(x))
        x = nn.relu(Conv(64, 5, padding=2, pooled=True, name="conv2")(x))
        x = nn.relu(Dense(512, name="dense1")(x.reshape(x.shape[0], -1)))
        x = Dropout(0.5)(x, train=train)
        return Dense(self.num_classes, name="dense2")(x)


class SmallCNN(nn.Module):
    """Two 3x3 convolutions, each followed by max pooling and ReLU, and two dense layers, for 8x8 grey images.

    13,706 parameters for 10 classes.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = nn.relu(Conv(16, 3, padding=1, pooled=True, name="conv1")(x))
        x = nn.relu(Conv(32, 3, padding=1, pooled=True, name="conv2")(x))
        x = nn.relu(Dense(64, name="dense1")(x.reshape(x.shape[0], -1)))
        return Dense(self.num_classes, name="dense2")(x)
