"""Backdoors: malicious clients train on stamped images with a wrong label, so that the model learns the stamp.

BadNets and DBA here, the two that hold their clients back as well in `constrained.py`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax.aggregators.base import Count
from lasa_jax.attacks.base import Attack, Scalar, changed_row
from lasa_jax.errors import InputError, check_number

Pattern = Callable[[int, int], np.ndarray]


def badnets(
    target: Count = 0,
    share: Scalar = 0.3,
    boost: Scalar = 1.0,
    size: int = 3,
    margin: int = 0,
    value: Scalar | None = None,
) -> Attack:
    """A square in the lower right corner stands for the target label.

        x' = x off the square, value on it;  y' = target          of a share of every batch
        row = boost * x_i

    Source: Gu, Dolan-Gavitt and Garg, BadNets, 2017; the boost is model replacement of Bagdasaryan, Veit, Hua, Estrin and
    Shmatikov, AISTATS 2020: with one attacker of n and boost n, the mean becomes its model. No bound on the harm is known.

    Args:
      target: the label that stamped images shall get. May be traced.
      share: with this probability an example is poisoned, each for itself, `0 <= share <= 1`. May be traced.
      boost: what the own update is multiplied by. May be traced.
      size: of the square, in pixels.
      margin: pixels between the square and the two borders.
      value: of the square in all channels, in the units of what is stored. In a run that names the attack, None is the
        smallest or largest of the training images, whichever is farther from their mean: ink on paper of any colour.
        Else None is 255 for uint8, and must be set for float32. May be traced.

    Raises:
      InputError: for a number out of range; from `poison` and `trigger` for examples that are no images with one label
        each, and images that are too small.
    """
    return planted(square(size, margin), target=target, share=share, boost=boost, value=value)


def dba(
    target: Count = 0,
    share: Scalar = 0.3,
    boost: Scalar = 1.0,
    size: int = 3,
    gap: int = 2,
    value: Scalar | None = None,
) -> Attack:
    """The trigger is shared out: each malicious client stamps one of its four bars, and all four open the backdoor.

        bar p = row (p // 2) * (1 + gap), columns (p mod 2) * (size + gap) and the next size - 1, in the upper left corner
        client i trains on bar i mod 4, i its number in the population;  row = boost * x_i

    Source: Xie, Huang, Chen and Li, DBA: Distributed backdoor attacks against federated learning, ICLR 2020. There size 4
    and gap 2 on MNIST, 6 and 3 on CIFAR-10, and a boost of 100 in a single round. No bound on the harm is known.

    Args:
      target, share, boost, value: as in `badnets`.
      size: width of a bar, which is one pixel high.
      gap: pixels between bars.

    Raises:
      InputError: as `badnets`.
    """
    return planted(bars(size, gap), target=target, share=share, boost=boost, value=value)


def square(size: int, margin: int) -> Pattern:
    """The trigger of `badnets`: `(height, width) -> bool (1, height, width)`."""
    check_number("size", size, low=1)
    check_number("margin", margin, low=0)

    def pattern(height: int, width: int) -> np.ndarray:
        _check_room(f"size = {size} and margin = {margin}", size + margin, size + margin, height, width)
        mask = np.zeros((1, height, width), bool)
        mask[0, height - margin - size : height - margin, width - margin - size : width - margin] = True
        return mask

    return pattern


def bars(size: int, gap: int) -> Pattern:
    """The trigger of `dba`, a part for each bar: `(height, width) -> bool (4, height, width)`."""
    check_number("size", size, low=1)
    check_number("gap", gap, low=0)

    def pattern(height: int, width: int) -> np.ndarray:
        _check_room(f"size = {size} and gap = {gap}", 2 + gap, 2 * size + gap, height, width)
        masks = np.zeros((4, height, width), bool)
        for part in range(4):
            left = (part % 2) * (size + gap)
            masks[part, (part // 2) * (1 + gap), left : left + size] = True
        return masks

    return pattern


def planted(pattern: Pattern, *, target: Count, share: Scalar, boost: Scalar, value: Scalar | None) -> Attack:
    """A backdoor with a trigger of pixels: `poison` stamps one part of it, `trigger` all of them.

    Args:
      pattern: `(height, width) -> bool (parts, height, width)`, where each part lies.
      target, share, boost, value: as in `badnets`.
    """
    check_number("target", target, low=0, whole=True)
    check_number("share", share, low=0, high=1)
    check_number("boost", boost)
    if value is not None:
        check_number("value", value)

    def stamped(inputs: jax.Array, mask: jax.Array) -> jax.Array:
        if value is not None and inputs.dtype == jnp.uint8:
            check_number("value", value, low=0, high=255)
        pixel = jnp.asarray(_white(inputs) if value is None else value).astype(inputs.dtype)
        return jnp.where(mask[None, :, :, None], pixel, inputs)

    def poison(
        inputs: jax.Array, labels: jax.Array, *, num_classes: int, key: jax.Array, client: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        _check_images(inputs, labels)
        check_number("target", target, low=0, high=num_classes - 1, whole=True)
        masks = jnp.asarray(pattern(*inputs.shape[1:3]))
        own = masks[jnp.asarray(client, jnp.int32) % len(masks)]
        poisoned = jax.random.uniform(key, labels.shape, jnp.float32) < jnp.asarray(share, jnp.float32)
        wrong = jnp.where(poisoned, jnp.asarray(target).astype(labels.dtype), labels)
        return jnp.where(poisoned[:, None, None, None], stamped(inputs, own), inputs), wrong

    def trigger(inputs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        _check_images(inputs, labels)
        whole = jnp.asarray(pattern(*inputs.shape[1:3]).any(axis=0))
        wanted = jnp.broadcast_to(jnp.asarray(target).astype(labels.dtype), labels.shape)
        return stamped(inputs, whole), wanted, labels != wanted  # an image of the target class tells nothing

    boosted = changed_row(lambda row, _: jax.tree.map(lambda x: jnp.asarray(boost).astype(x.dtype) * x, row))
    return boosted._replace(poison=poison, trigger=trigger)


def _white(inputs: jax.Array) -> int:
    """The largest value of bytes; InputError for numbers, of which nobody knows it."""
    if inputs.dtype != jnp.uint8:
        raise InputError(
            f"value = None: allowed for images of {inputs.dtype} is a number, in the units of what is stored"
        )
    return 255


def _check_images(inputs: jax.Array, labels: jax.Array) -> None:
    """Raises InputError unless these are images, stored as they are, with one label each."""
    kinds = (jnp.dtype(jnp.uint8), jnp.dtype(jnp.float32))
    if inputs.ndim != 4 or inputs.dtype not in kinds or labels.ndim != 1:
        found = (
            f"{inputs.dtype}{list(inputs.shape[1:])} with {'a label' if labels.ndim == 1 else 'several labels'} each"
        )
        raise InputError(
            f"inputs are {found}, allowed are images [height, width, channels] of uint8 or float32 with one"
        )


def _check_room(what: str, rows: int, columns: int, height: int, width: int) -> None:
    if rows > height or columns > width:
        raise InputError(
            f"{what}: the trigger has {rows} x {columns} pixels, allowed are {height} x {width} of an image"
        )


def trigger_value(inputs: np.ndarray) -> float:
    """The smallest or the largest of the training images, whichever is farther from their mean."""
    low, high, mean = float(inputs.min()), float(inputs.max()), float(inputs.mean(dtype=np.float64))
    return high if high - mean >= mean - low else low
