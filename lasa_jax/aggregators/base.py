"""What an aggregation rule is, and how steps before a rule are put in front of it without copying the stack.

A rule reads client updates through `Rows`: the stack as it is, which rows count, and a map of each row that is applied
while it is read. A pre-aggregator of a chain adds to the map or rejects rows; the stack itself is never rewritten.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax import ops
from lasa_jax.aggregators.context import Context
from lasa_jax.errors import InputError

PyTree = Any
Scalar = float | jax.Array
Count = int | jax.Array


class Diagnostics(NamedTuple):
    """What a rule did. A rule may return a NamedTuple of its own with more fields.

    weight: a pytree like the updates with leaves `(n,)`: the weight each client had in that layer, 0 if filtered out.
    """

    weight: PyTree


class Assumed(NamedTuple):
    """Diagnostics of a rule that is told how many clients are malicious.

    weight: see `Diagnostics`. num_malicious: the number that the rule used, after its own limit.
    """

    weight: PyTree
    num_malicious: jax.Array


class Selection(NamedTuple):
    """Diagnostics of a rule that scores whole clients and averages the best.

    weight: see `Diagnostics`. num_malicious: see `Assumed`. score: `(n,)`, smaller is better, infinite for clients that
    are absent or not finite.
    """

    weight: PyTree
    num_malicious: jax.Array
    score: jax.Array


class Aggregator(NamedTuple):
    """An aggregation rule as two pure functions, jittable and vmappable.

    init: `init(params) -> state`; `params` is one update's worth of arrays.
    aggregate: `aggregate(updates, state, *, key, num_malicious, present=None, context=None) -> (update, state,
      diagnostics)`. updates: leaves `(n, ...)`. key: for rules that draw. num_malicious: the server's assumption f, used
      only by rules that are allowed to know it. present: bool `(n,)`, rows that count; all if None. context: a `Context`
      with what the rule needs; a rule that needs nothing is called without. The update has leaves `(...)`.
    needs: the fields of `Context` that the rule reads. Nothing else is computed for it.
    """

    init: Callable[[PyTree], PyTree]
    aggregate: Callable[..., tuple[PyTree, PyTree, Any]]
    needs: frozenset[str] = frozenset()

    def knowing(self, context: Context | None) -> dict[str, Context | None]:
        """The argument `context` of a call of `aggregate`, or no argument where the rule needs none."""
        return {"context": context} if self.needs else {}


def stateless(params: PyTree) -> tuple[()]:
    """`init` of a rule that carries nothing from round to round."""
    return ()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Client updates as a rule reads them. Lives inside one trace.

    stack: the updates as they came, leaves `(n, ...)`.
    present: bool `(n,)`, the rows that count.
    maps: for each pre-aggregator a function `(row, numbers) -> row` and its numbers, a pytree with leaves `(n, ...)`.
    mixing: `(n, n)` or None: row i of what the rule reads is `sum_j mixing_ij * mapped row_j`.
    made_of: `(n, n)` or None: the share of each row that a chain was given in each row that it makes, for the diagnostics.
    sources: the share of each client of the stack in each row, in the same form, whatever chains they went through.
    """

    stack: PyTree
    present: jax.Array
    maps: tuple[tuple[Callable[[PyTree, PyTree], PyTree], PyTree], ...] = ()
    mixing: jax.Array | None = None
    made_of: jax.Array | None = None
    sources: jax.Array | None = None

    @classmethod
    def of(cls, updates: "PyTree | Rows", present: jax.Array | None = None) -> "Rows":
        """Rows of a plain stack; the argument itself where it is `Rows` already, as inside a chain.

        Raises:
          InputError: for a stack without entries, with a leaf that is not floating point, or with leaves that differ in n;
            for `present` other than bool `(n,)`.
        """
        if isinstance(updates, Rows):
            return updates
        n = _num_rows(updates)
        if present is None:
            return cls(updates, jnp.ones(n, bool))
        mask = present if isinstance(present, jax.Array) else np.asarray(present)
        if mask.shape != (n,) or mask.dtype != bool:
            raise InputError(f"present: {mask.dtype}{list(mask.shape)}, allowed is bool[{n}], one for each client")
        return cls(updates, jnp.asarray(mask))

    @property
    def count(self) -> jax.Array:
        """The number present, n in the formulas, int32."""
        return jnp.sum(self.present, dtype=jnp.int32)

    @property
    def dtype(self) -> jnp.dtype:
        """The type of norms, distances and weights: float32; float64 for updates of float64."""
        return ops.wide(self.stack)

    @functools.cached_property
    def sizes(self) -> tuple[jax.Array, jax.Array]:
        """Largest magnitude and norm of each row, `(n,)` both, in one reading; see `ops.tree_size`."""
        return self.each(ops.tree_size)

    def threshold(self, choose: Callable[[PyTree], list[jax.Array]], k: Count) -> jax.Array:
        """The k-th largest magnitude in the chosen leaves of each row, `(n,)`; see `ops.magnitude_threshold`.

        Rounding keeps the order of magnitudes, so that of a scaled row is that of the row, times the scale: it is searched
        for in the stack as it came, and no scaled copy is written.
        """
        # What is wider is rounded to float32 there, which scales do not go through.
        only_scaled = self.mixing is None and [fn for fn, _ in self.maps] == [scale] and self.dtype == jnp.float32
        rows = dataclasses.replace(self, maps=()) if only_scaled else self
        found = rows.each(lambda row: ops.magnitude_threshold(choose(row), k))
        return found * self.maps[0][1] if only_scaled else found

    def mapped(self, fn: Callable[[PyTree, PyTree], PyTree], numbers: PyTree) -> "Rows":
        """The same rows, each read through `fn(row, numbers of the row)`."""
        rows = self if self.mixing is None else dataclasses.replace(self, stack=self.written, maps=(), mixing=None)
        return dataclasses.replace(rows, maps=(*rows.maps, (fn, numbers)))

    def accepting(self, accepted: jax.Array) -> "Rows":
        """The same rows without those that are not accepted, bool `(n,)`."""
        rows = dataclasses.replace(self, present=self.present & accepted)
        if "sizes" in self.__dict__:  # measured already, and the rows are the same
            rows.__dict__["sizes"] = self.sizes
        return rows

    def mixed(self, mixing: jax.Array, present: jax.Array) -> "Rows":
        """Rows that are weighted sums of these, `sum_j mixing_ij * row_j`; absent rows must have weight 0 in all.

        Nothing is computed yet: a rule that ends in a weighted sum never writes the mixed rows.
        """
        whole = mixing if self.mixing is None else ops.product(mixing, self.mixing)
        made_of = mixing if self.made_of is None else ops.product(mixing, self.made_of)
        sources = mixing if self.sources is None else ops.product(mixing, self.sources)
        return dataclasses.replace(self, present=present, mixing=whole, made_of=made_of, sources=sources)

    def each(self, fn: Callable[..., PyTree], *shared: PyTree) -> PyTree:
        """`fn(row, *shared)` of every client, stacked; one pass over the stack. Results of absent rows mean nothing.

        The results should be small: every device gets those of all clients.
        """
        return ops.everywhere(self.apart(fn, shared=shared))

    def apart(self, fn: Callable[..., PyTree], *stacks: PyTree, shared: tuple[PyTree, ...] = ()) -> PyTree:
        """`fn(row, *rows of the other stacks, *shared)` of every client, stacked, each result on its client's device."""
        if self.mixing is not None:
            return ops.map_rows(fn, self.written, *stacks, shared=shared)
        count = len(self.maps)

        def read(row: PyTree, *operands: PyTree) -> PyTree:
            return fn(self._read(row, *operands[:count]), *operands[count:])

        return ops.map_rows(read, self.stack, *self._numbers, *stacks, shared=shared)

    def remembering(
        self,
        fn: Callable[..., PyTree],
        memory: PyTree,
        ids: jax.Array,
        *stacks: PyTree,
        shared: tuple[PyTree, ...] = (),
    ) -> PyTree:
        """`apart` with what is remembered of each client behind its row; see `ops.reading_clients`."""
        given, tables, read = ops.reading_clients(memory, ids)

        def beside(row: PyTree, mine: PyTree, *operands: PyTree) -> PyTree:
            own, (tables, *others) = operands[: len(stacks)], operands[len(stacks) :]
            return fn(row, read(mine, tables), *own, *others)

        return self.apart(beside, given, *stacks, shared=(tables, *shared))

    def weighted_sum(self, weights: PyTree) -> PyTree:
        """Sum of weight times row over the clients with a weight that is not zero; one pass. See `ops.weighted_sum`.

        Args:
          weights: `(n,)`, or a pytree like the stack with leaves `(n,)`.
        """
        mixing = self.mixing
        if mixing is not None:
            weights = jax.tree.map(lambda w: ops.product(w, mixing), weights)
        return ops.weighted_sum(weights, self.stack, *self._numbers, row_map=self._read if self.maps else None)

    def columns(self, fn: Callable[..., jax.Array], *shared: PyTree) -> PyTree:
        """`fn(block, present, *shared)` for blocks of columns, `(n, width)` to `(width,)`; see `ops.map_columns`."""
        return ops.map_columns(fn, self.written, shared=(self.present, *shared))

    @functools.cached_property
    def gram(self) -> jax.Array:
        """Inner products of all pairs of rows, measured from an ordinary one, `(n, n)`; see `ops.gram`.

        Mixed rows are not written for it. One read of the stack; a second where the row that the first was measured from,
        one of middle norm, turns out to be far from the others: an attacker can have any norm, but not be near a majority
        that is benign.
        """
        if self.mixing is not None:
            taken = jnp.any(self.mixing != 0, axis=0)
            source = dataclasses.replace(self, present=taken, mixing=None).gram
            near = jnp.isfinite(jnp.diagonal(source))
            # Mixed rows are weighted means, so they are measured from the same row.
            source = jnp.where(near[:, None] & near[None, :], source, 0.0)
            products = ops.product(ops.product(self.mixing, source), self.mixing.T)
            return ops.usable_gram(products, self.present & ~jnp.any((self.mixing != 0) & ~near[None, :], axis=1))

        stack = self.written
        norms = ops.map_rows(ops.tree_norm, stack)
        finite = self.present & jnp.isfinite(norms)
        in_order = jnp.argsort(jnp.where(finite, norms, jnp.inf), stable=True)
        start = in_order[jnp.maximum(jnp.sum(finite, dtype=jnp.int32) - 1, 0) // 2]
        first = ops.gram(stack, self.present, start)
        usable = jnp.isfinite(jnp.diagonal(first))
        to_half = ops.masked_median(ops.squared_distances(first), usable, lower=True)  # of the others
        to_half = jnp.where(usable, to_half, jnp.inf)
        nearest = jnp.argmin(to_half)
        is_far = to_half[start] > 16 * to_half[nearest]
        again = lambda: ops.gram(stack, self.present, nearest)  # noqa: E731
        second = jax.lax.cond(ops.any_run(is_far), again, lambda: first)
        return jnp.where(is_far, second, first)

    @functools.cached_property
    def squared_distances(self) -> jax.Array:
        """Between all pairs of rows, `(n, n)`; see `ops.squared_distances`."""
        return ops.squared_distances(self.gram)

    @functools.cached_property
    def cosine_distances(self) -> jax.Array:
        """One less the cosine of the angle between all pairs of rows, `(n, n)`; see `ops.cosine_distances`."""
        return ops.cosine_distances(self.squared_distances, self.sizes[1])

    @functools.cached_property
    def written(self) -> PyTree:
        """The stack as a rule reads it: the one that came where no pre-aggregator changes it, else a copy, the only one."""
        if not self.maps and self.mixing is None:
            return self.stack
        mapped = self.stack
        if self.maps:

            def read(row: PyTree, *numbers: PyTree) -> PyTree:
                return jax.tree.map(lambda x, like: x.astype(like.dtype), self._read(row, *numbers), row)

            mapped = ops.map_rows(read, self.stack, *self._numbers)
        return mapped if self.mixing is None else ops.mix_rows(self.mixing, mapped)

    @property
    def _numbers(self) -> tuple[PyTree, ...]:
        return tuple(numbers for _, numbers in self.maps)

    def _read(self, row: PyTree, *numbers: PyTree) -> PyTree:
        for (fn, _), number in zip(self.maps, numbers, strict=True):
            row = fn(row, number)
        return row


def _num_rows(updates: PyTree) -> int:
    """n, the length of the leading axis of every leaf of a stack."""
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    if not any(np.size(leaf) for _, leaf in leaves):
        raise InputError("updates: no entries, allowed is a pytree of floating-point arrays (n, ...), a row per client")
    shapes = [np.shape(leaf) for _, leaf in leaves]
    for (path, leaf), shape in zip(leaves, shapes, strict=True):
        name = f"updates{jax.tree_util.keystr(path)}"
        kind = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
        if not jnp.issubdtype(kind, jnp.floating):
            raise InputError(f"{name}: {kind}, allowed are floating-point arrays")
        if not shape or shape[0] != shapes[0][0]:
            raise InputError(
                f"{name}: shape {shape}, allowed is (n, ...) with the same n in every leaf, a row per client"
            )
    return shapes[0][0]


def at_most(limit: jax.Array, num_malicious: Count) -> jax.Array:
    """The number of malicious clients that a rule assumes: what it is told, but no more than it can stand, nor below 0."""
    return jnp.clip(jnp.asarray(num_malicious, jnp.int32), 0, jnp.maximum(limit, 0))


def scale(row: PyTree, factor: jax.Array) -> PyTree:
    """One update times a number; as a map of `Rows` it lets `Rows.threshold` search the stack as it came."""
    return jax.tree.map(lambda x: x.astype(factor.dtype) * factor, row)


def is_finite(row: PyTree) -> jax.Array:
    """Whether one update holds neither a NaN nor an infinity, bool `()`."""
    kind = ops.wide(row)
    return jnp.isfinite(jnp.max(jnp.stack([ops.largest_magnitude(x.astype(kind)) for x in jax.tree.leaves(row)])))


def equal_weights(rows: Rows, chosen: jax.Array) -> PyTree:
    """Diagnostics' `weight` of a rule that averages the `chosen` clients, bool `(n,)`, in every layer; 0 if none is."""
    count = jnp.maximum(jnp.sum(chosen, dtype=jnp.int32), 1)
    share = jnp.where(chosen, 1 / count.astype(rows.dtype), 0.0)
    return jax.tree.map(lambda _: share, rows.stack)


class PreAggregator(Protocol):
    """A step in front of a rule: takes rows and returns rows, some of them rejected, each mapped, or mixed."""

    def __call__(self, rows: Rows, *, key: jax.Array, num_malicious: Count) -> Rows: ...


def chain(*steps: PreAggregator | Aggregator) -> Aggregator:
    """Puts pre-aggregators in front of a rule: `chain(pre, ..., rule)`.

    Every pre-aggregator measures a few numbers of each client, seeing the rows as those before it left them. Nothing
    is written: the maps of all of them run while the rule reads the stack.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from lasa_jax import aggregators
      >>> rule = aggregators.chain(aggregators.reject_nonfinite(), aggregators.fedavg())
      >>> updates = {"w": jnp.array([[1.0, 2.0], [3.0, 4.0], [jnp.nan, 0.0]])}
      >>> update, _, _ = rule.aggregate(updates, rule.init(updates), key=jax.random.key(0), num_malicious=1)
      >>> update["w"].tolist()
      [2.0, 3.0]

    Raises:
      TypeError: if the last step is not an aggregator or another one is, or a pre-aggregator was not built:
        `clip_to_norm` in place of `clip_to_norm()`.
    """
    rule = steps[-1] if steps else None
    before = [step for step in steps[:-1] if not isinstance(step, Aggregator)]
    if not isinstance(rule, Aggregator) or len(before) != len(steps) - 1:
        raise TypeError("chain(pre, ..., rule): the last step, and only the last, is an aggregator")
    for step in before:
        if not callable(step) or "num_malicious" not in inspect.signature(step).parameters:
            raise TypeError(
                f"chain(pre, ..., rule): {step!r} is not a pre-aggregator; one is made by a call, as reject_nonfinite()"
            )

    def aggregate(
        updates: PyTree,
        state: PyTree,
        *,
        key: jax.Array,
        num_malicious: Count,
        present: jax.Array | None = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree, Any]:
        rows = dataclasses.replace(Rows.of(updates, present), made_of=None)  # counted from here: chains may be nested
        for index, step in enumerate(before):
            rows = step(rows, key=jax.random.fold_in(key, index), num_malicious=num_malicious)
        rule_key = jax.random.fold_in(key, len(before))
        update, state, info = rule.aggregate(
            rows, state, key=rule_key, num_malicious=num_malicious, **rule.knowing(context)
        )
        made_of = rows.made_of
        if made_of is not None:  # the weight of the rows that came, not of the mixed ones
            info = info._replace(weight=jax.tree.map(lambda w: ops.product(w, made_of), info.weight))
        return update, state, info

    return Aggregator(rule.init, aggregate, rule.needs)
