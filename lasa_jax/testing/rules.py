"""The laws of any aggregation rule, named in `RULE_LAWS`. What only some rules promise is in `testing.promises`.

In the formulas F is the rule, x_i the update of client i of n, w_i its weight, and f the number `num_malicious`.
"""

import functools
import math
import unittest
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax.aggregators import Aggregator, Rows
from lasa_jax.errors import InputError
from lasa_jax.testing.stacks import (
    NUM_CLIENTS,
    PyTree,
    Updates,
    assert_close,
    assert_like,
    filled,
    first_row,
    honest,
    known,
    marked,
    sharded_clients,
)

NOT_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
LARGE_LEAF = (300, 300)


@functools.cache
def _compiled(rule: Aggregator) -> tuple[Callable[..., tuple[PyTree, PyTree, Any]], list[None]]:
    """One round of the rule, jitted, and a list that has one entry for each time that it was traced."""
    traces: list[None] = []

    def step(
        updates: PyTree, state: PyTree, key: jax.Array, num_malicious: jax.Array, present: jax.Array, context: PyTree
    ) -> tuple[PyTree, PyTree, Any]:
        traces.append(None)
        return rule.aggregate(updates, state, key=key, num_malicious=num_malicious, present=present, **context)

    return jax.jit(step), traces


@functools.cache
def _compiled_runs(rule: Aggregator) -> Callable[[PyTree], PyTree]:
    """The first round of several runs in one program: leaves `(runs, n, ...)` to `(runs, ...)`."""
    return jax.jit(jax.vmap(lambda updates: eager(rule, updates)[0]))


def eager(rule: Aggregator, updates: PyTree, num_malicious: int = 3) -> tuple[PyTree, Any]:
    """The first round of a rule, not compiled: its result and its diagnostics."""
    context = known(rule, updates)
    update, _, info = rule.aggregate(
        updates, rule.init(first_row(updates)), key=jax.random.key(0), num_malicious=num_malicious, **context
    )
    return update, info


def run(
    rule: Aggregator,
    updates: PyTree,
    present: np.ndarray | None = None,
    num_malicious: int = 3,
    ids: np.ndarray | None = None,
) -> tuple[PyTree, Any]:
    """The first round of a rule: its result and its diagnostics.

    It is compiled once for each rule and number of clients. `present`, `num_malicious` and what `known` gives are numbers
    of the program.
    """
    n = len(jax.tree.leaves(updates)[0])
    present = np.ones(n, bool) if present is None else present
    state = rule.init(first_row(updates))
    try:
        context = known(rule, updates, ids)
        update, _, info = _compiled(rule)[0](updates, state, jax.random.key(0), num_malicious, present, context)
    except NOT_CONCRETE as error:
        raise AssertionError(
            f"aggregate cannot be compiled, it asks for the value of a traced array: {error}"
        ) from error
    return update, info


def run_together(rule: Aggregator, runs: Sequence[Updates]) -> list[PyTree]:
    """The results of several runs in one program."""
    together = _compiled_runs(rule)(jax.tree.map(lambda *x: np.stack(x), *runs))
    return [jax.tree.map(lambda x, i=index: x[i], together) for index in range(len(runs))]


def refuses_what_is_no_stack(rule: Aggregator) -> None:
    """InputError for a stack without entries, with integers, or with leaves that differ in n, and for a mask that is none.

    A rule that reads its updates through `Rows.of` has this for nothing.
    """
    floats = np.ones((4, 3), np.float32)
    for what, updates, present in (
        ("no leaves", {}, None),
        ("no clients", {"w": floats[:0]}, None),
        ("no entries", {"w": floats[:, :0]}, None),
        ("a leaf of integers", {"w": floats, "steps": np.ones((4, 1), np.int32)}, None),
        ("leaves of 4 and 5 clients", {"b": floats, "w": np.ones((5, 3), np.float32)}, None),
        ("a leaf without clients", {"b": floats, "w": np.float32(1)}, None),
        ("a mask of 3 for 4 clients", {"w": floats}, np.ones(3, bool)),
        ("a mask of integers", {"w": floats}, np.ones(4, np.int32)),
    ):
        state, context = rule.init({"w": np.ones(3, np.float32)}), known(rule, {"w": floats})
        call = functools.partial(rule.aggregate, key=jax.random.key(0), num_malicious=1, present=present, **context)
        try:
            jax.eval_shape(call, updates, state)
        except InputError:
            continue
        except (TypeError, ValueError, IndexError) as error:
            raise AssertionError(f"a stack with {what}: {type(error).__name__}, allowed is InputError") from error
        raise AssertionError(f"a stack with {what} was taken, allowed is InputError")


def gives_an_update_and_weights(rule: Aggregator) -> None:
    """F(x) is like one x_i, in structure, shapes and dtypes; w like x with leaves `(n,)`, finite, w_i >= 0."""
    updates = honest()
    update, info = run(rule, updates)
    assert_like(update, first_row(updates), "the result")
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct((NUM_CLIENTS,), np.float32), updates)
    assert_like(info.weight, weights, "the diagnostics' weight")
    chex.assert_tree_all_finite(info.weight)
    for name, weight in info.weight.items():
        if np.min(weight) < 0:
            raise AssertionError(f"weight[{name!r}]: {np.min(weight)} of client {np.argmin(weight)}, allowed is 0 <= w")


def jit_equals_eager(rule: Aggregator) -> None:
    """F is a function of its arguments and its key: compiled or not, it gives the same; `present=None` is all clients."""
    updates = honest()
    assert_close(run(rule, updates)[0], eager(rule, updates)[0], what="compiled, against eager")


def vmap_equals_a_loop(rule: Aggregator) -> None:
    """vmap(F)(x, y) = (F(x), F(y)): runs in one program do not see each other."""
    runs = [honest(seed) for seed in range(2)]
    for index, (actual, updates) in enumerate(zip(run_together(rule, runs), runs, strict=True)):
        assert_close(actual, run(rule, updates)[0], what=f"run {index} of two in one program, against it alone")


def devices_do_not_matter(rule: Aggregator) -> None:
    """F and w of clients sharded over the devices are those of one device.

    Raises:
      unittest.SkipTest: where there is one device only.
    """
    wanted, info = run(rule, honest())
    with sharded_clients():
        actual, sharded = run(rule, honest())
    assert_close(actual, wanted, what="on several devices, against one")
    assert_close(sharded.weight, info.weight, atol=1e-5, what="weights on several devices, against one")


def order_does_not_matter(rule: Aggregator) -> None:
    """F(x_p(1), ..., x_p(n)) = F(x_1, ..., x_n) and w_p(i) goes with its client, for any permutation p and any f.

    A rule that draws for each client by its place, as behind `bucketing`, obeys it in distribution only.
    """
    updates, order = honest(), np.random.default_rng(3).permutation(NUM_CLIENTS)
    for f in (0, 1, 3, 7):
        update, info = run(rule, updates, num_malicious=f)
        shuffled, moved = run(rule, jax.tree.map(lambda x: x[order], updates), num_malicious=f, ids=order)
        assert_close(shuffled, update, atol=2e-6, what=f"clients in another order, f = {f}")
        carried = jax.tree.map(lambda w: w[order], info.weight)
        assert_close(moved.weight, carried, what=f"weights of clients in another order, f = {f}")


def absent_rows_do_not_exist(rule: Aggregator) -> None:
    """F(x, present) = F(x[present]) and w_i = 0 for absent i, whatever the absent rows hold.

    A rule that draws for each client by its place obeys it in distribution only.
    """
    present = ~marked([0, 5, 15])
    wanted, _ = run(rule, jax.tree.map(lambda x: x[present], honest()), ids=np.flatnonzero(present))
    for content in (0.0, np.nan, np.inf, 3e38, "copy"):
        actual, info = run(rule, filled(honest(), ~present, content), present)
        assert_close(actual, wanted, what=f"absent rows holding {content}, against no such rows")
        for name, weight in info.weight.items():
            if np.asarray(weight)[~present].any():
                raise AssertionError(
                    f"weight[{name!r}] of absent clients: {np.asarray(weight)[~present]}, allowed is 0"
                )


def nobody_changes_nothing(rule: Aggregator) -> None:
    """F = 0 in the first round where no client is present."""
    update, _ = run(rule, honest(), np.zeros(NUM_CLIENTS, bool))
    for name, x in update.items():
        if np.asarray(x).any():
            raise AssertionError(f"nobody is present, and update[{name!r}] is {np.ravel(x)[:3]}..., allowed is 0")


def weight_zero_never_multiplies(rule: Aggregator) -> None:
    """F^l is finite if w_i^l = 0 for every client i that sent NaN or infinity: 0 * NaN is NaN, so zero selects nothing."""
    for bad in (np.nan, np.inf):
        which = marked([2, 9])
        update, info = run(rule, filled(honest(), which, bad))
        for name, x in update.items():
            if not np.asarray(info.weight[name])[which].any() and not np.isfinite(x).all():
                raise AssertionError(
                    f"clients of weight 0 sent {bad}, and update[{name!r}] is not finite: {np.ravel(x)[:3]}"
                )


def limits_what_it_assumes(rule: Aggregator) -> None:
    """F(x; f) is finite for any f. If the diagnostics' `num_malicious` is g, then 0 <= g <= n and F(x; f) = F(x; g)."""
    for f in (-1, 10**6):
        update, info = run(rule, honest(), num_malicious=f)
        chex.assert_tree_all_finite(update)
        used = getattr(info, "num_malicious", None)
        if used is None:
            continue
        if not 0 <= used <= NUM_CLIENTS:
            raise AssertionError(f"f = {f}: the rule used {used}, allowed is 0 <= f <= {NUM_CLIENTS}")
        assert_close(run(rule, honest(), num_malicious=int(used))[0], update, what=f"f = {used}, against f = {f}")


def state_keeps_its_shape(rule: Aggregator) -> None:
    """The state after a round is like the state before it, so that rounds, keys and f are numbers of one program."""
    step, traces = _compiled(rule)
    before = state = rule.init(first_row(honest()))
    present = np.ones(NUM_CLIENTS, bool)
    counted = 0
    for index in range(3):
        context = known(rule, honest(index))
        _, state, _ = step(honest(index), state, jax.random.key(index), 1 + index, present, context)
        assert_like(state, before, f"the state after round {index}")
        counted = counted or len(traces)
    if len(traces) > counted:
        raise AssertionError(f"round 0 to 2: traced {1 + len(traces) - counted} times, allowed is once")


def reads_through_rows(rule: Aggregator) -> None:
    """F(rows) = F(rows written out): a rule reads the `Rows` that the pre-aggregators of a chain give it."""
    present, scales = ~marked([0, 5, 15]), np.exp2(np.arange(NUM_CLIENTS) % 3 - 1).astype(np.float32)

    def behind(updates: PyTree) -> PyTree:
        mapped = Rows.of(updates).mapped(lambda row, scale: jax.tree.map(lambda x: scale * x, row), scales)
        rows, context = mapped.accepting(jnp.asarray(present)), known(rule, updates)
        state = rule.init(first_row(updates))
        return rule.aggregate(rows, state, key=jax.random.key(0), num_malicious=3, **context)[0]

    try:
        actual = jax.jit(behind)(honest())
    except (TypeError, AttributeError) as error:
        raise AssertionError(f"the rule does not read its updates through Rows.of: {error}") from error
    written = jax.tree.map(lambda x: x * scales.reshape((-1,) + (1,) * (x.ndim - 1)), honest())
    assert_close(
        actual, run(rule, written, present)[0], atol=2e-6, what="behind a pre-aggregator, against its rows written"
    )


def keeps_dtypes(rule: Aggregator) -> None:
    """F and the state have the dtypes of the updates, bfloat16 too, and a layer without entries is no reason to fail."""
    updates = {"w": jnp.asarray(honest()["kernel"], jnp.bfloat16), "none": jnp.zeros((NUM_CLIENTS, 0), jnp.bfloat16)}
    state = rule.init(first_row(updates))
    call = functools.partial(rule.aggregate, key=jax.random.key(0), num_malicious=3, **known(rule, updates))
    update, after, _ = jax.eval_shape(call, updates, state)
    assert_like(update, first_row(updates), "the result of bfloat16")
    assert_like(after, state, "the state of bfloat16")


def writes_no_second_stack(rule: Aggregator) -> None:
    """Temporaries are less than a quarter of the stack `(n, d)`, and nothing is sorted over the d coordinates.

    Counted in what XLA compiles for the platform; nothing is run.

    Raises:
      unittest.SkipTest: where XLA tells neither.
    """
    n, size = 50, math.prod(LARGE_LEAF)
    params = {"a": jax.ShapeDtypeStruct(LARGE_LEAF, np.float32), "b": jax.ShapeDtypeStruct(LARGE_LEAF[:1], np.float32)}
    stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), params)
    context = jax.eval_shape(functools.partial(known, rule), stack)

    def call(updates: PyTree, state: PyTree, context: PyTree) -> Any:
        return rule.aggregate(updates, state, key=jax.random.key(0), num_malicious=10, **context)

    compiled = jax.jit(call).lower(stack, jax.eval_shape(rule.init, params), context).compile()
    whole = 4 * n * (size + LARGE_LEAF[0])
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise unittest.SkipTest(f"XLA tells nothing about programs for {jax.default_backend()}")
    temporaries = memory.temp_size_in_bytes
    if temporaries >= 0.25 * whole:
        raise AssertionError(
            f"{temporaries:,} bytes of temporaries for a stack of {whole:,}, allowed is a quarter of it"
        )
    for line in text.splitlines():
        if " sort(" in line and (str(size) in line or str(size + LARGE_LEAF[0]) in line):
            raise AssertionError(f"coordinates are sorted: {line.strip()[:200]}")


RULE_LAWS: tuple[Callable[[Aggregator], None], ...] = (
    refuses_what_is_no_stack,
    gives_an_update_and_weights,
    jit_equals_eager,
    vmap_equals_a_loop,
    devices_do_not_matter,
    order_does_not_matter,
    absent_rows_do_not_exist,
    nobody_changes_nothing,
    weight_zero_never_multiplies,
    limits_what_it_assumes,
    state_keeps_its_shape,
    reads_through_rows,
    keeps_dtypes,
    writes_no_second_stack,
)
