"""What a traced function does, from its jaxpr: bytes moved, operations of products, and kernels launched.

An estimate: elementwise work is taken to be fused with what reads it, as compilers do, so that a kernel is a product, a
reduction, a sort, or a move of data, and costs a reading of its operands and a writing of its results.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from lasa_jax.federated.cards import Card

_PRODUCTS = ("dot_general", "conv_general_dilated")
_MOVES = ("gather", "concatenate", "sort", "cumsum", "transpose", "dynamic_update_slice", "top_k")
_BEGINNINGS = ("reduce_", "scatter", "select_and_", "arg")


class Work(NamedTuple):
    """What a function does.

    Attributes:
      bytes: read and written by its kernels.
      operations: of matrix products and convolutions.
      launches: kernels.
    """

    bytes: float = 0.0
    operations: float = 0.0
    launches: float = 0.0

    def plus(self, other: "Work") -> "Work":
        """Of both functions, one after the other."""
        return Work(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: float) -> "Work":
        """Of a function that runs so often, one time after the other."""
        return Work(*(count * x for x in self))

    def together(self, count: float) -> "Work":
        """Of a function that runs for so many things in the same kernels."""
        return Work(count * self.bytes, count * self.operations, self.launches)

    def busy(self, card: Card, precision: str) -> float:
        """Seconds in which a card moves the bytes and computes the products: the longer of both."""
        return max(self.bytes / card.bandwidth, self.operations / card.products[precision])

    def seconds(self, card: Card, precision: str) -> float:
        """Seconds on a card: of launching the kernels, and of what they do."""
        return self.launches * card.launch + self.busy(card, precision)


def of(fn: Callable[..., Any], *arguments: Any) -> Work:
    """The work of a function in the forms of the platform that is compiled for; a loop of unknown end counts once.

    Args:
      fn: a function of arrays.
      *arguments: arrays or their shapes.
    """
    return _walk(jax.make_jaxpr(fn)(*arguments).jaxpr)


def _walk(jaxpr: Any) -> Work:
    work = Work()
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        inner = list(_inside(eqn.params))
        if inner:
            of_inner = [_walk(each) for each in inner]
            if name == "cond":
                work = work.plus(max(of_inner, key=lambda each: each.bytes))
            else:
                total = Work()
                for each in of_inner:
                    total = total.plus(each)
                work = work.plus(total.times(eqn.params.get("length", 1) if name == "scan" else 1))
        elif name in _PRODUCTS or name in _MOVES or name.startswith(_BEGINNINGS):
            moved = sum(_bytes(x.aval) for x in (*eqn.invars, *eqn.outvars))
            work = work.plus(Work(moved, _operations(eqn) if name in _PRODUCTS else 0.0, 1))
    return work


def _inside(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation, those of derivatives that nobody asks for left aside."""
    for name, value in params.items():
        for each in value if isinstance(value, tuple | list) else (value,):
            found = getattr(each, "jaxpr", each)  # a closed one
            if hasattr(found, "eqns") and not name.startswith(("fwd", "bwd", "jvp")):
                yield found


def _bytes(aval: Any) -> int:
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)


def _operations(eqn: Any) -> float:
    left, right = (x.aval.shape for x in eqn.invars[:2])
    out = eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * out.size * math.prod(left[axis] for axis in contracted)
    features = eqn.params["dimension_numbers"].rhs_spec[0]  # of the kernel: all but its output features are summed over
    return 2.0 * out.size * math.prod(right) / right[features]
