"""ResNet-18 for 32x32 images (He, Zhang, Ren and Sun, CVPR 2016), with the stem that is usual on CIFAR."""

import jax
from flax import linen as nn

from lasa_jax.models.layers import BatchNorm, Conv, Dense


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut, projected by a 1x1 convolution where the shape changes."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        y = Conv(self.features, 3, stride=self.stride, padding=1, use_bias=False, name="conv1")(x)
        y = nn.relu(BatchNorm(name="norm1")(y, train=train, mask=mask))
        y = Conv(self.features, 3, padding=1, use_bias=False, name="conv2")(y)
        y = BatchNorm(name="norm2")(y, train=train, mask=mask)
        if x.shape != y.shape:
            x = Conv(self.features, 1, stride=self.stride, use_bias=False, name="shortcut_conv")(x)
            x = BatchNorm(name="shortcut_norm")(x, train=train, mask=mask)
        return nn.relu(x + y)


class ResNet18(nn.Module):
    """11,173,962 trainable parameters for 10 classes, and 9,600 running statistics. Source: supplement, section B."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        x = Conv(64, 3, padding=1, use_bias=False, name="conv")(x)
        x = nn.relu(BatchNorm(name="norm")(x, train=train, mask=mask))
        for stage, features in enumerate((64, 128, 256, 512)):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(features, stride, name=f"stage{stage + 1}_block{block + 1}")(x, train=train, mask=mask)
        return Dense(self.num_classes, name="dense")(x.mean(axis=(1, 2)))
