"""Laws of the aggregation rules that promise them.

Letters as in `testing.rules`; b is the mean of the clients that are not bad.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from lasa_jax.aggregators import Aggregator
from lasa_jax.testing.rules import NOT_CONCRETE, eager, run, run_together
from lasa_jax.testing.stacks import NUM_CLIENTS, PyTree, Updates, assert_close, filled, flat_rows, honest, marked

HUGE = (1e8, 1e12, 1e16, 1.5e18, 1e19, 1e38)


def scales(rule: Aggregator) -> None:
    """F(c x) = c F(x) for c > 0."""
    update, _ = run(rule, honest())
    scaled, _ = run(rule, jax.tree.map(lambda x: 4 * x, honest()))
    assert_close(scaled, jax.tree.map(lambda x: 4 * x, update), atol=4e-6, what="F(4 x), against 4 F(x)")


def translates(rule: Aggregator) -> None:
    """F(x_1 + v, ..., x_n + v) = F(x) + v."""
    update, _ = run(rule, honest())
    moved, _ = run(rule, jax.tree.map(lambda x: x + np.float32(2), honest()))
    assert_close(moved, jax.tree.map(lambda x: x + 2, update), atol=1e-5, what="F(x + 2), against F(x) + 2")


def agrees(rule: Aggregator) -> None:
    """F(x, ..., x) = F(x): many equal clients count like one of them, after the rule's own sparsification."""
    single, _ = run(rule, jax.tree.map(lambda x: x[:1], honest()))
    same = jax.tree.map(lambda x: np.repeat(x[:1], NUM_CLIENTS, axis=0), honest())
    assert_close(run(rule, same)[0], single, what=f"{NUM_CLIENTS} equal clients, against one of them")


def is_finite(rule: Aggregator) -> None:
    """F is finite where a minority of the clients sends NaN or infinities."""
    for bad in (np.nan, np.inf, -np.inf):
        update, _ = run(rule, filled(honest(), marked([0, 1, 2]), bad))
        for name, x in update.items():
            if not np.isfinite(x).all():
                raise AssertionError(
                    f"3 of {NUM_CLIENTS} clients sent {bad}, and update[{name!r}] is {np.ravel(x)[:3]}..."
                )


def with_bad_rows(content: float | str, count: int = 3) -> Updates:
    """Honest updates of which the first few hold one value everywhere, or one huge entry among honest ones."""
    if content != "one huge entry":
        return filled(honest(), marked(range(count)), content)
    updates = honest()
    updates["kernel"][:count, 0, 0] = 2e38
    return updates


def _assert_near(update: PyTree, updates: Updates, count: int, near: float, what: str) -> None:
    benign = flat_rows(updates)[count:].mean(0)
    off = np.linalg.norm(flat_rows(jax.tree.map(lambda x: np.asarray(x)[None], update))[0] - benign)
    off /= np.linalg.norm(benign)
    if not off < near:
        raise AssertionError(
            f"{count} of {NUM_CLIENTS} clients sent {what}: F is {off:.3g} |b| from b, allowed is {near:.3g}"
        )


def stands_bad_rows(rule: Aggregator, near: float = 0.5) -> None:
    """|F(x) - b| < near |b| where 3 of 16 clients send anything at all, b the mean of the other clients.

    Asked with NaN, infinities, zeros, numbers up to 1e38 and one huge entry, in one run, and in two runs of one program,
    where the compiler rewrites divisions.

    Args:
      rule: the rule.
      near: how far from b the result may be, in norms of b.
    """
    for content in (np.nan, np.inf, -np.inf, 0.0, *HUGE, "one huge entry"):
        updates = with_bad_rows(content)
        _assert_near(run(rule, updates)[0], updates, 3, near, str(content))
    pairs: tuple[tuple[float | str, float], ...] = (("one huge entry", 1e38), (1e16, 1.5e18))
    for contents in pairs:
        runs = [with_bad_rows(content) for content in contents]
        for content, updates, update in zip(contents, runs, run_together(rule, runs), strict=True):
            _assert_near(update, updates, 3, near, f"{content}, one of two runs in a program")


def stands_as_many_as(rule: Aggregator, limit: int) -> None:
    """|F(x) - b| <= max(|b|, max_i |x_i - b|) where `limit` of 16 clients are bad.

    So it is no farther away than the farthest benign client, or than an update of zero.

    Args:
      rule: the rule.
      limit: the most bad clients of 16 that it stands; it is told so, f = limit.
    """
    for content in (np.nan, 0.0, 1e16):
        updates = with_bad_rows(content, limit)
        benign = flat_rows(updates)[limit:]
        farthest = np.linalg.norm(benign - benign.mean(0), axis=1).max() / np.linalg.norm(benign.mean(0))
        update, _ = run(rule, updates, num_malicious=limit)
        _assert_near(update, updates, limit, 1.05 * max(farthest, 1), str(content))


def follows(rule: Aggregator, definition: Callable[[Updates], PyTree]) -> None:
    """F(x) = D(x) for 1, 2, 3 and 16 clients, D the definition written once more in NumPy.

    Args:
      rule: the rule, told f = 3.
      definition: of updates like `honest()` to the layers of one update, flat or not; NaN where it is not defined.
        `flat_rows` and `as_layers` help to write it.
    """
    for n in (1, 2, 3, NUM_CLIENTS):
        for seed in range(5):
            wanted = definition(honest(seed, n))
            if not any(np.isnan(x).any() for x in jax.tree.leaves(wanted)):
                update, _ = run(rule, honest(seed, n))
                assert_close(update, wanted, atol=2e-6, what=f"{n} clients, seed {seed}, against the definition")


def traces_once(
    make: Callable[..., Aggregator],
    numbers: Mapping[str, Sequence[float]],
    definition: Callable[..., PyTree] | None = None,
) -> None:
    """F with traced hyper-parameters is F with the same concrete ones, and is traced once for all of them.

    Args:
      make: of the hyper-parameters to the rule.
      numbers: of each hyper-parameter that may be traced the values, as many for each. They must not lie on a decision's
        boundary, where rounding would decide.
      definition: as in `follows`, and takes the numbers by name; the rule with concrete numbers if None.
    """
    traces: list[None] = []

    @jax.jit
    def traced(updates: PyTree, numbers: dict[str, jax.Array]) -> PyTree:
        traces.append(None)
        return eager(make(**numbers), updates)[0]

    for values in zip(*numbers.values(), strict=True):
        named = dict(zip(numbers, values, strict=True))
        wanted = run(make(**named), honest())[0] if definition is None else definition(honest(), **named)
        try:
            update = traced(honest(), named)
        except NOT_CONCRETE as error:
            raise AssertionError(f"{named}: a number cannot be traced: {error}") from error
        assert_close(update, wanted, what=f"traced {named}, against concrete")
    if len(traces) != 1:
        raise AssertionError(f"traced {len(traces)} times for the values of {', '.join(numbers)}, allowed is once")
