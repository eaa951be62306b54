"""The forms of a convolution whose kernels differ from client to client: a table to choose the limit of `auto` from.

The shapes are those of the paper's models. Timed are the result and both gradients. Beside the forms of `client.convolution`
stands "one by one", a loop over clients, each with the device's own convolution, as `client_chunk=1` trains.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.card import tables
from benchmarks.card.items import Facts, Item, Prepared, accelerator, compiled, seconds
from lasa_jax import ops
from lasa_jax.federated.client import matmul_precision

ONE_BY_ONE = "one by one"
FORMS = (*ops.BATCHED_FORMS, ONE_BY_ONE)


class Shape(NamedTuple):
    """A layer of a model in training.

    Attributes:
      clients: that train together.
      batch: images of each.
      size: height and width.
      channels: of the images.
      features: of the result.
      kernel: height and width.
      stride: in both directions.
    """

    clients: int
    batch: int
    size: int
    channels: int
    features: int
    kernel: int
    stride: int = 1

    def __str__(self) -> str:
        step = f" / {self.stride}" if self.stride > 1 else ""
        images = f"{self.clients} x {self.batch} x {self.size}^2 x {self.channels}"
        return f"{images}, {self.kernel}^2{step} -> {self.features}"

    @property
    def padding(self) -> int:
        """Pixels on each side, so that a stride of 1 keeps the size."""
        return self.kernel // 2

    @property
    def patches_bytes(self) -> int:
        """Bytes of the patches of all clients in float32, which `auto` looks at."""
        pixels = self.clients * self.batch * ((self.size - 1) // self.stride + 1) ** 2
        return 4 * pixels * self.kernel**2 * self.channels

    @property
    def operations(self) -> int:
        """Of the result and both gradients: two for each product and sum."""
        return 3 * 2 * self.patches_bytes // 4 * self.features


SHAPES = (
    Shape(25, 64, 32, 64, 64, 3),  # ResNet-18
    Shape(25, 64, 16, 128, 128, 3),
    Shape(25, 64, 8, 256, 256, 3),
    Shape(25, 64, 4, 512, 512, 3),
    Shape(100, 10, 14, 32, 64, 5),  # MNIST
    Shape(100, 64, 14, 32, 64, 5),  # FEMNIST
    Shape(5, 64, 32, 64, 64, 3),  # ResNet-18, fewer clients at a time
    Shape(25, 64, 32, 64, 128, 3, 2),
    Shape(25, 64, 32, 64, 128, 1, 2),
    Shape(25, 64, 16, 128, 256, 3, 2),
    Shape(25, 64, 32, 3, 64, 3),
    Shape(100, 10, 28, 1, 32, 5),  # MNIST
    Shape(100, 64, 28, 1, 32, 5),  # FEMNIST
    Shape(30, 24, 4, 16, 32, 3),  # digits
    Shape(30, 24, 8, 1, 16, 3),
)
SMALL = (Shape(3, 2, 8, 1, 4, 3), Shape(2, 2, 6, 4, 4, 3, 2))


def items(small: bool) -> list[Item]:
    """Every shape in every form."""
    shapes = SMALL if small else SHAPES
    return [Item(f"{shape}; {form}", functools.partial(_prepare, shape, form)) for shape in shapes for form in FORMS]


def layer(shape: Shape, form: str) -> jax.stages.Wrapped:
    """`(images, kernels, gradients of results) -> (results, gradients of images and of kernels)`, each `(clients, ...)`."""

    def one(images: jax.Array, kernel: jax.Array, grad: jax.Array) -> tuple[jax.Array, ...]:
        result, pull = jax.vjp(
            lambda x, w: ops.conv2d(x, w, stride=shape.stride, padding=shape.padding), images, kernel
        )
        return result, *pull(grad)

    if form == ONE_BY_ONE:
        return jax.jit(lambda *all_clients: lax.map(lambda client: one(*client), all_clients))
    return jax.jit(jax.vmap(one))


def lowered(shape: Shape, form: str) -> jax.stages.Lowered:
    """The same before it is compiled, in the forms of an accelerator: a CPU, which has its own, tries those too."""
    given = [jax.ShapeDtypeStruct(size, jnp.float32) for size in _sizes(shape)]
    forms = ops.convolving_by("auto" if form == ONE_BY_ONE else form)
    with ops.compiling_for(accelerator()), forms, jax.default_matmul_precision(matmul_precision("tf32")):
        return layer(shape, form).lower(*given)


def _sizes(shape: Shape) -> tuple[tuple[int, ...], ...]:
    out = (shape.size - 1) // shape.stride + 1
    return (
        (shape.clients, shape.batch, shape.size, shape.size, shape.channels),
        (shape.clients, shape.kernel, shape.kernel, shape.channels, shape.features),
        (shape.clients, shape.batch, out, out, shape.features),
    )


def _prepare(shape: Shape, form: str) -> Prepared:
    executable, facts = compiled(lambda: lowered(shape, form))

    def measure() -> Facts:
        rng = np.random.default_rng(0)  # drawn by the host: a program that draws takes longer to compile than this one
        arrays = [jnp.asarray(rng.standard_normal(size, np.float32)) for size in _sizes(shape)]
        return seconds(lambda: executable(*arrays), most_calls=4, most_seconds=2)

    return Prepared({**facts, "patches_bytes": shape.patches_bytes, "operations": shape.operations}, measure)


def table(found: tables.Items) -> list[str]:
    """A line for each shape: milliseconds, and GB of temporaries, of every form; the fastest is bold."""
    shapes = dict.fromkeys(name.split("; ")[0] for name in found)
    lines = [
        tables.line(["clients x batch x size x channels, kernel -> features", "patches, GB", *FORMS]),
        tables.line(["---"] * (2 + len(FORMS))),
    ]
    for shape in shapes:
        of_form = {form: found.get(f"{shape}; {form}", {}) for form in FORMS}
        times = {form: facts["seconds"] for form, facts in of_form.items() if facts.get("done")}
        patches = next((facts["patches_bytes"] for facts in of_form.values() if "patches_bytes" in facts), None)
        cells = []
        for form, facts in of_form.items():
            if form not in times:
                cells.append("failed" if "error" in facts else "-")
                continue
            text = f"{tables.number(times[form], 1e3, 3)} ms"
            text = f"**{text}**" if times[form] == min(times.values()) else text
            cells.append(f"{text}, {tables.gigabytes('temporary_bytes')(facts)} GB")
        lines.append(tables.line([shape, tables.number(patches, 1e-9, 3), *cells]))
    return lines
