"""What an aggregation rule is, and how steps before a rule are put in front of it without copying the stack.

A rule reads client updates through `Rows`: the stack as it is, which rows count, and a map of each row that is applied
while it is read. A link of a chain adds to the map or rejects rows; the stack itself is never rewritten.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from lasa_jax import ops

PyTree = Any
Scalar = float | jax.Array
Count = int | jax.Array


class Diagnostics(NamedTuple):
    """What a rule did. A rule may return a NamedTuple of its own with more fields.

    weight: a pytree like the updates with leaves `(n,)`: the weight each client had in that layer, 0 if filtered out.
    """

    weight: PyTree


class Aggregator(NamedTuple):
    """An aggregation rule as two pure functions, jittable and vmappable.

    init: `init(params) -> state`; `params` is one update's worth of arrays.
    aggregate: `aggregate(updates, state, *, key, num_malicious, present=None) -> (update, state, diagnostics)`.
      updates: leaves `(n, ...)`. key: for rules that draw. num_malicious: the server's assumption f, used only by rules
      that are allowed to know it. present: bool `(n,)`, rows that count; all if None. The update has leaves `(...)`.
    """

    init: Callable[[PyTree], PyTree]
    aggregate: Callable[..., tuple[PyTree, PyTree, Any]]


def stateless(params: PyTree) -> tuple[()]:
    """`init` of a rule that carries nothing from round to round."""
    return ()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Client updates as a rule reads them. Lives inside one trace.

    stack: the updates as they came, leaves `(n, ...)`.
    present: bool `(n,)`, the rows that count.
    maps: for each link a function `(row, numbers) -> row` and its numbers, a pytree with leaves `(n, ...)`.
    """

    stack: PyTree
    present: jax.Array
    maps: tuple[tuple[Callable[[PyTree, PyTree], PyTree], PyTree], ...] = ()

    @classmethod
    def of(cls, updates: "PyTree | Rows", present: jax.Array | None = None) -> "Rows":
        """Rows of a plain stack; the argument itself where it is `Rows` already, as inside a chain."""
        if isinstance(updates, Rows):
            return updates
        n = jax.tree.leaves(updates)[0].shape[0]
        return cls(updates, jnp.ones(n, bool) if present is None else present)

    @property
    def count(self) -> jax.Array:
        """The number present, n in the formulas."""
        return jnp.sum(self.present)

    def mapped(self, fn: Callable[[PyTree, PyTree], PyTree], numbers: PyTree) -> "Rows":
        """The same rows, each read through `fn(row, numbers of the row)`."""
        return dataclasses.replace(self, maps=(*self.maps, (fn, numbers)))

    def accepting(self, accepted: jax.Array) -> "Rows":
        """The same rows without those that are not accepted, bool `(n,)`."""
        return dataclasses.replace(self, present=self.present & accepted)

    def each(self, fn: Callable[[PyTree], PyTree]) -> PyTree:
        """`fn(row)` of every client, stacked; one pass over the stack. Results of absent rows mean nothing."""
        return ops.map_rows(lambda row, *numbers: fn(self._read(row, *numbers)), self.stack, *self._numbers)

    def weighted_sum(self, weights: PyTree) -> PyTree:
        """Sum of weight times row over the clients with a weight that is not zero; one pass. See `ops.weighted_sum`."""
        return ops.weighted_sum(weights, self.stack, *self._numbers, row_map=self._read)

    @property
    def _numbers(self) -> tuple[PyTree, ...]:
        return tuple(numbers for _, numbers in self.maps)

    def _read(self, row: PyTree, *numbers: PyTree) -> PyTree:
        for (fn, _), number in zip(self.maps, numbers, strict=True):
            row = fn(row, number)
        return row


class Link(Protocol):
    """A step in front of a rule: takes rows and returns rows that reject some or map each."""

    def __call__(self, rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows: ...


def chain(*steps: Link | Aggregator) -> Aggregator:
    """Puts links in front of a rule: `chain(link, ..., rule)`.

    Every link measures a few numbers per client, seeing the rows as the links before it left them. Nothing is written:
    the maps of all links run while the rule reads the stack.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.chain(aggregators.reject_nonfinite(), aggregators.fedavg())
      >>> updates = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, 0.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=1)
      >>> update["w"].tolist()
      [2.0, 3.0]

    Raises:
      TypeError: if the last step is not an aggregator or another one is.
    """
    rule = steps[-1] if steps else None
    links = [step for step in steps[:-1] if not isinstance(step, Aggregator)]
    if not isinstance(rule, Aggregator) or len(links) != len(steps) - 1:
        raise TypeError("chain(link, ..., rule): the last step, and only the last, is an aggregator")

    def aggregate(
        updates: PyTree, state: PyTree, *, key: jax.Array, num_malicious: Count, present: jax.Array | None = None
    ) -> tuple[PyTree, PyTree, Any]:
        rows = Rows.of(updates, present)
        for index, link in enumerate(links):
            rows = link(rows, key=jax.random.fold_in(key, index), num_malicious=num_malicious)
        rule_key = jax.random.fold_in(key, len(links))
        return rule.aggregate(rows, state, key=rule_key, num_malicious=num_malicious)

    return Aggregator(rule.init, aggregate)
