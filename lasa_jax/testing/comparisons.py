"""The checks of `testing.conformance`: what a function and one of our methods are both given, and must agree on.

`theirs` and `ours` are functions of rows `(n, entries)`. `theirs` gives an array in float64, or one line about what it
raised.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lasa_jax.testing.findings import Trial, typical_norm

FEW = 2  # entries of a row: points that can be drawn on paper
SOME = 5  # where a method may take a share of them; of two LASA keeps none
# Of `lasa_attack`, 0.01 of them get another factor.
ENTRIES = {"lasa": SOME, "lasa_attack": 100, "signguard": SOME, "signguard_sim": SOME, "sparsefed": SOME}
DRAWN = 40  # how many inputs are drawn
HAIR = 1e-4

SHAPE = "gives an update"
INPUT = "leaves its input alone"
TWICE = "gives the same twice"
ROWS = "is the method on drawn rows"
ZEROS = "is the method with a row of zeros"
EQUAL = "is the method on rows that agree"
FAR = "is the method with a row far away"
ORDER = "does not depend on the order of rows"
TIES = "does not depend on the order of rows that tie"
SCALE = "F(4 x) = 4 F(x)"
SHIFT = "F(x + 2) = F(x) + 2"
ABSENT = "does not read absent rows"
NAN = "stands a row of NaN"
INFINITY = "stands a row of infinity"
CHECKS = (SHAPE, INPUT, TWICE, ROWS, ZEROS, EQUAL, FAR, ORDER, TIES, SCALE, SHIFT, ABSENT, NAN, INFINITY)

Theirs = Callable[..., np.ndarray | str]
Ours = Callable[..., np.ndarray]


def entries_of(like: object) -> int:
    """How many entries the rows have on which a method is compared; what is no name may take a share of them."""
    return ENTRIES.get(like, FEW) if isinstance(like, str) else SOME


def drawn_rows(n: int, f: int, entries: int = FEW) -> Iterator[np.ndarray]:
    """Inputs without an end, always the same: n rows and n + 1 in turn, of one decimal each so that they can be read.

    Rows of many entries have three decimals: nobody reads them, and no two entries of a row should tie.

    Of each four, two have f rows elsewhere, far apart or close together, and one has entries of zero.
    """
    index = 0
    while True:
        rng = np.random.default_rng((7, index))
        count = n + index % 2
        rows = rng.choice([0.5, 1.0, 3.0]) * rng.normal(size=(count, entries)) + rng.uniform(-3, 3, entries)
        if index % 4 == 1:
            rows[:f] += rng.normal(size=(f, entries)) * 8
        elif index % 4 == 2:
            rows[:f] = rows[0] + rng.normal(size=entries) * 4 + 0.3 * rng.normal(size=(f, entries))
        elif index % 4 == 3:
            rows[rng.random(rows.shape) < 0.2] = 0
        yield np.round(rng.permutation(rows), 1 if entries <= 10 else 3).astype(np.float32)
        index += 1


def is_stable(ours: Ours, rows: np.ndarray) -> bool:
    """Whether our own result stays where it is when the rows move by a hair: no decision of it is a matter of rounding."""
    scale = typical_norm(rows)
    wanted = ours(rows)
    for seed in range(2):
        moved = rows + HAIR * scale * np.random.default_rng(seed).uniform(-1, 1, rows.shape).astype(np.float32)
        if not np.allclose(ours(moved), wanted, rtol=0, atol=30 * HAIR * scale):
            return False
    return True


def first_of_all(trial: Trial, theirs: Theirs, ours: Ours, changes: bool, inputs: Mapping[str, np.ndarray]) -> None:
    """Shape, side effects, and chance where our method draws nothing."""
    rows = next(iter(inputs.values()))
    found, wanted = theirs(rows), ours(rows)
    text = (
        found if isinstance(found, str) else f"{list(found.shape)} {'' if np.isfinite(found).all() else 'not '}finite"
    )
    trial.hold(SHAPE, text == f"{list(wanted.shape)} finite", inputs, f"{list(wanted.shape)} finite", text)
    trial.hold(INPUT, not changes, inputs, "its arguments as they were", "a changed argument")
    if not isinstance(found, str) and np.array_equal(wanted, ours(rows, seed=1)):
        trial.compare(TWICE, inputs, theirs(rows), found)


def edges(trial: Trial, theirs: Theirs, ours: Ours, inputs: Sequence[np.ndarray], name: str = "rows") -> None:
    """A row of zeros, a row far away, and rows that are all the same."""
    for index, rows in enumerate(inputs[:6]):
        place = index % len(rows)
        zero, far, equal = rows.copy(), rows.copy(), np.repeat(rows[:1], len(rows), axis=0)
        zero[place], far[place] = 0, 1e5
        for check, x in ((ZEROS, zero), (FAR, far), (EQUAL, equal)):
            wanted = ours(x)
            if np.isfinite(wanted).all() and (is_stable(ours, x) or check == EQUAL):
                trial.compare(check, {name: x}, theirs(x), wanted)


def laws_of_order(trial: Trial, theirs: Theirs, ours: Ours, inputs: Sequence[np.ndarray], name: str = "rows") -> None:
    """Rows in another order, drawn ones and such as tie, where our own method gives the same."""
    n, entries = inputs[0].shape
    steps = np.arange(n, dtype=np.float32)[:, None] * np.eye(1, entries, dtype=np.float32)
    longer = steps.copy()
    longer[-1] = 4 * n
    tied = [steps, longer, steps + 1, np.round(inputs[0]), np.round(inputs[0] / 2), np.round(inputs[2])]
    tied.append(np.concatenate([inputs[0][:1], inputs[0][:-1]]))  # two rows are the same
    for check, several in ((ORDER, inputs[:10]), (TIES, tied)):
        for seed, x in enumerate(several):
            if check == ORDER and not is_stable(ours, x):
                continue
            for order in (np.arange(len(x))[::-1], np.random.default_rng(seed).permutation(len(x))):
                wanted = ours(x)
                if np.isfinite(wanted).all() and np.allclose(ours(x[order]), wanted, atol=1e-5):
                    found = theirs(x)
                    if isinstance(found, str):
                        trial.hold(check, False, {name: x}, "an update", found)
                    else:
                        shown = {name: x, "order": order.astype(np.float64)}
                        trial.compare(check, shown, theirs(x[order]), found, scale=typical_norm(x))


def laws_of_scale(trial: Trial, theirs: Theirs, ours: Ours, inputs: Sequence[np.ndarray], name: str = "rows") -> None:
    """F(4 x) = 4 F(x) and F(x + 2) = F(x) + 2 where our own method has it."""
    for rows in inputs[:8]:
        if not is_stable(ours, rows):
            continue
        for check, times, more in ((SCALE, 4, 0), (SHIFT, 1, 2)):
            x = (times * rows + more).astype(np.float32)
            base = theirs(rows)
            if np.allclose(ours(x), times * ours(rows) + more, atol=1e-3) and not isinstance(base, str):
                trial.compare(check, {name: x}, theirs(x), times * base + more)


def absent_rows(trial: Trial, theirs: Theirs, ours: Ours, inputs: Sequence[np.ndarray]) -> None:
    """One row is absent, whatever it holds: the result is that of the other rows."""
    for index, rows in enumerate(inputs[1:12:2]):  # those with one row more
        place = index % len(rows)
        present = np.arange(len(rows)) != place
        others = rows[present]
        if not is_stable(ours, others):
            continue
        for content in (0.0, np.nan, 1e6, rows[place - 1]):
            x = rows.copy()
            x[place] = content
            found = theirs(x, present)
            trial.compare(ABSENT, {"rows": x, "present": present}, found, ours(others), scale=typical_norm(others))


def rows_not_finite(trial: Trial, theirs: Theirs, ours: Ours, inputs: Sequence[np.ndarray], f: int) -> None:
    """One row of NaN or infinity: the result is ours, or that of the other rows, told f or f - 1.

    Asked where ours is finite. Nobody's paper says which of the three is right; that the row counts as a number is not.
    """
    if f == 0:
        return
    for check, content in ((NAN, np.nan), (INFINITY, np.inf)):
        for index, rows in enumerate(inputs[:8]):
            place = index % len(rows)
            x, others = rows.copy(), np.delete(rows, place, axis=0)
            x[place] = content
            allowed = [ours(x), ours(others), ours(others, f=f - 1)]
            if np.isfinite(allowed[0]).all() and is_stable(ours, others):
                trial.compare(check, {"rows": x}, theirs(x), *allowed)


def another_f(
    trial: Trial, f: int, told: Callable[[int], Sequence[tuple[np.ndarray | str, np.ndarray, float]]], least: int = 0
) -> str:
    """One line where our method, told another f, is what the function computes on all drawn inputs; else nothing.

    Args:
      trial: says when two results are the same.
      f: what our method was told.
      told: of another f what the function gave, what our method gives, and the scale, for each input.
      least: the smallest f.
    """

    def agrees(g: int) -> bool:
        return all(trial.agrees(found, wanted, scale) for found, wanted, scale in told(g))

    for g in (f - 1, f + 1):
        if g >= least and agrees(g) and not agrees(f):
            return f"with num_malicious = {g} in place of {f} our method gives what the function gives on drawn rows"
    return ""
