"""Whether anybody's function is one of our rules or attacks: `check_rule` and `check_attack`.

    from lasa_jax import testing

    testing.check_rule(lambda rows: numpy.median(rows, axis=0), like="median", num_malicious=2)

The function is tried on small inputs, drawn once and always the same, and on the edges: rows of zeros, of NaN, rows that
tie, rows that are absent. A law (order, scale, shift) is asked for only on inputs on which our method obeys it, and
results are compared only where our method's own one does not hang by a hair.
"""

import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lasa_jax import aggregators, attacks
from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.errors import InputError, check_number
from lasa_jax.testing.comparisons import (
    ABSENT,
    CHECKS,
    DRAWN,
    ROWS,
    SHAPE,
    Ours,
    Theirs,
    absent_rows,
    another_f,
    drawn_rows,
    edges,
    entries_of,
    first_of_all,
    is_stable,
    laws_of_order,
    laws_of_scale,
    rows_not_finite,
)
from lasa_jax.testing.findings import Report, Trial, typical_norm
from lasa_jax.testing.foreign import foreign
from lasa_jax.testing.stacks import initial

_PRESENT = ("present", "mask")
_MOST_KEPT = 32  # methods and programs; a session that tries many does not keep them all
_AS_DEFINED = ("none", "zero")  # attacks that send what is honest, or the same always
# What these methods are told to draw nothing.
_DRAWS_NOTHING = {
    "dnc": "num_coordinates = None or coordinates",
    "fang_trmean": "variant = official",
    "signguard": "coordinate_fraction = 1, or variant = official with window_start",
    "signguard_sim": "coordinate_fraction = 1, or variant = official with window_start",
}


def check_rule(
    fn: Callable[..., Any] | Aggregator,
    like: str | Aggregator,
    num_malicious: int = 2,
    *,
    arrays: str | None = None,
    without: Collection[str] = (),
    tolerance: float = 1e-3,
    quiet: bool = False,
    **parameters: Any,
) -> Report:
    """Compares a function of yours with one of our aggregation rules, and prints what holds and what differs.

    The function is called as `fn(rows)`: rows `(n, d)` in float32, the updates of n clients, to one update `(d,)`. If it
    has a parameter `present` or `mask` it is also given a mask, bool `(n,)`, of the rows that count. Whatever else it
    needs, as f, it must know already. Our rule sees the rows as one layer, a matrix, in its first round. Rows have two
    entries; five for rules that take a share of them (`comparisons.ENTRIES`) and for an `Aggregator`.

    Args:
      fn: the function; or an `Aggregator`.
      like: the name of a rule of ours; or an `Aggregator`, as `aggregators.chain(...)` makes it.
      num_malicious: f, the number that our rule is told. There are 2f + 4 rows or one more; for Bulyan and for an
        `Aggregator` 4f + 6.
      arrays: what the function takes: "numpy", "torch" or "jax". If None, the first of them with which it does not raise
        TypeError or AttributeError.
      without: names of checks, of `CHECKS`, that are left out, for what your function does not promise.
      tolerance: what may differ, in units of the input's scale.
      quiet: print nothing.
      **parameters: of our rule; none for an `Aggregator`, which has its own.

    Returns:
      A report. Its `failures` is empty where everything holds.

    Raises:
      InputError: for a rule that is not known or needs more than the updates, for one that draws or whose result is the
        same on all inputs, with which nothing can be compared, for a parameter or a check that is not known, and for a
        library that is not installed.

    Examples:
      >>> from lasa_jax import testing
      >>> report = testing.check_rule(lambda rows: rows.sum(0) / 8, like="fedavg", quiet=True)
      >>> [finding.check for finding in report.failures][:1]
      ['is the method on drawn rows']
      >>> report.failures[0].failed  # of 40 inputs: those of nine rows
      20
    """
    f, trial = _checked(num_malicious, tolerance, without)
    rule = _built(aggregators.create, like, Aggregator, parameters)
    _needs_nothing("like", rule, like)
    _needs_nothing("fn", fn)
    entries = entries_of(like)
    n = 4 * f + 6 if like == "bulyan" or isinstance(like, Aggregator) else 2 * f + 4
    ours = functools.partial(_rule_of_rows(rule, n + 1, entries), f=f)
    if isinstance(fn, Aggregator):
        theirs_rule = functools.partial(_rule_of_rows(fn, n + 1, entries), f=f)
        fn, arrays = (lambda rows, present: theirs_rule(rows, present)), "numpy"
    inputs = list(itertools.islice(drawn_rows(n, f, entries), DRAWN))
    sample = {"rows": inputs[0], "present": np.ones(n, bool)}
    theirs = foreign(fn, sample, {"present": _PRESENT}, arrays)
    _tells(like, [[ours(x, seed=seed) for x in inputs] for seed in range(4)])

    def call(rows: np.ndarray, present: np.ndarray | None = None) -> np.ndarray | str:
        return theirs(rows, present=np.ones(len(rows), bool) if present is None else present)

    changes = theirs.changes(inputs[0], present=sample["present"])
    first_of_all(trial, call, ours, changes, {"rows": inputs[0]})
    hint = ""
    if SHAPE not in trial.failures:
        stable = [x for x in inputs if is_stable(ours, x)]
        for x in stable:
            trial.compare(ROWS, {"rows": x}, call(x), ours(x))
        edges(trial, call, ours, inputs)
        laws_of_order(trial, call, ours, inputs)
        laws_of_scale(trial, call, ours, inputs)
        if "present" in theirs.takes:
            absent_rows(trial, call, ours, inputs)
        else:
            trial.not_asked.setdefault(ABSENT, "the function has no parameter present or mask")
        rows_not_finite(trial, call, ours, inputs, f)
        if ROWS in trial.failures:
            hint = another_f(
                trial, f, lambda g: [(call(x), ours(x, f=g), typical_norm(x)) for x in stable if len(x) > n]
            )  # enough for f + 1
    return _said(trial.report(_text_of(like, f, parameters), theirs.library, hint), quiet)


def check_attack(
    fn: Callable[..., Any] | Attack,
    like: str | Attack,
    num_malicious: int = 2,
    *,
    against: Aggregator | None = None,
    arrays: str | None = None,
    without: Collection[str] = (),
    tolerance: float = 1e-3,
    quiet: bool = False,
    **parameters: Any,
) -> Report:
    """Compares a function of yours with one of our attacks on updates, and prints what holds and what differs.

    The function is called as `fn(benign)`: the rows `(m, d)` in float32 of the m benign clients, to one row `(d,)` that all
    malicious clients send, or to `(f, d)`, a row for each of them. If it has a parameter `own` it is also given, `(f, d)`,
    what the malicious clients would have sent honestly. Rows have two entries; 100 for `lasa_attack`, which takes shares of
    them, and five for an `Attack`.

    Args:
      fn: the function; or an `Attack`.
      like: the name of an attack of ours; or an `Attack`.
      num_malicious: f, the number of malicious clients, at least 1. There are f + 3 benign ones, at least 4, and one more.
      against: the server's rule, which attacks that adapt to it are given; the trimmed mean of f if None.
      arrays, without, tolerance, quiet: see `check_rule`.
      **parameters: of our attack; none for an `Attack`, which has its own.

    Returns:
      A report. Its `failures` is empty where everything holds.

    Raises:
      InputError: as `check_rule`; for an attack on the training, as "label_flip", which leaves the updates as they are; and
        where our attack reads what the malicious clients would have sent, and the function has no parameter `own`.
    """
    f, trial = _checked(num_malicious, tolerance, without, least=1)
    attack = _built(attacks.create, like, Attack, parameters)
    against = _built(aggregators.create, "trimmed_mean", Aggregator, {}) if against is None else against
    if not isinstance(against, Aggregator):
        raise InputError(f"against = {against!r}: allowed is an Aggregator, as aggregators.krum() makes it")
    _needs_nothing("like", attack, like)
    _needs_nothing("fn", fn)
    _needs_nothing("against", against)
    m, entries = max(4, f + 3), entries_of(like)
    ours_of = _attack_of_rows(attack, f + 1, m + 1, against, entries)
    if isinstance(fn, Attack):
        theirs_of = _attack_of_rows(fn, f + 1, m + 1, against, entries)
        fn, arrays = (lambda benign, own: theirs_of(benign, own)), "numpy"
    inputs = list(itertools.islice(drawn_rows(m + f, 0, entries), DRAWN))
    pairs = [(rows[f:], rows[:f]) for rows in inputs]
    benign, own = pairs[0]
    theirs = foreign(fn, {"benign": benign, "own": own}, {"own": ("own",)}, arrays)
    _tells(like, [[ours_of(b, o, seed=seed) for b, o in pairs] for seed in range(4)], [o for _, o in pairs])
    if "own" not in theirs.takes and any(not _same(ours_of(b, o), ours_of(b, 3 - 2 * o)) for b, o in pairs[:4]):
        raise InputError(
            f"like = {like if isinstance(like, str) else 'an attack'}: it reads what the malicious clients would have sent; "
            "allowed are functions with a parameter own"
        )

    def ours(rows: np.ndarray, seed: int = 0) -> np.ndarray:
        return ours_of(rows, own, seed=seed)  # the laws change the benign rows only

    def call(rows: np.ndarray, own: np.ndarray = own) -> np.ndarray | str:
        found = theirs(rows, own=own)
        is_one = isinstance(found, np.ndarray) and found.shape == (entries,)
        return np.repeat(np.asarray(found)[None], len(own), axis=0) if is_one else found

    first_of_all(trial, call, ours, theirs.changes(benign, own=own), {"benign": benign, "own": own})
    hint = ""
    if SHAPE not in trial.failures:
        stable = [(b, o) for b, o in pairs if is_stable(functools.partial(ours_of, own=o), b)]
        for b, o in stable:
            trial.compare(ROWS, {"benign": b, "own": o}, call(b, o), ours_of(b, o))
        all_benign = [b for b, _ in pairs]
        for checks in (edges, laws_of_order, laws_of_scale):
            checks(trial, call, ours, all_benign, "benign")
        if ROWS in trial.failures:
            hint = another_f(trial, f, lambda g: [_first_row(call, ours_of, b, o, g) for b, o in stable], least=1)
    return _said(trial.report(_text_of(like, f, parameters), theirs.library, hint), quiet)


def _first_row(
    call: Theirs, ours_of: Ours, benign: np.ndarray, own: np.ndarray, g: int
) -> tuple[np.ndarray | str, np.ndarray, float]:
    """What the first malicious client sends, and what it would if there were g."""
    found = call(benign, own)
    wanted = ours_of(benign, np.concatenate([own, own])[:g])[0]
    return found if isinstance(found, str) else found[0], wanted, typical_norm(benign)


def _checked(num_malicious: int, tolerance: float, without: Collection[str], least: int = 0) -> tuple[int, Trial]:
    check_number("num_malicious", num_malicious, low=least, high=100, whole=True)
    check_number("tolerance", tolerance, above=0)
    without = (without,) if isinstance(without, str) else tuple(without)
    for check in without:
        if check not in CHECKS:
            raise InputError(f"without = {check!r}: allowed are {', '.join(map(repr, CHECKS))}")
    return int(num_malicious), Trial(tolerance, without)


def _needs_nothing(argument: str, method: object, like: object = None) -> None:
    """InputError for a method that reads more than the updates; a function of anybody's is none."""
    if isinstance(method, Aggregator | Attack) and method.needs:
        needs = ", ".join(sorted(method.needs))
        raise InputError(f"{argument} = {_name_of(like)}: it needs {needs}; allowed is what reads the updates only")


def _tells(like: object, results: Sequence[Sequence[np.ndarray]], honest: Sequence[np.ndarray] | None = None) -> None:
    """InputError where results tell nothing about a function: they are drawn, always the same, or what is honest.

    Args:
      like: the method of ours.
      results: of our method on each input, for several keys.
      honest: of an attack, what the malicious clients would have sent.
    """
    first, *others = results
    name = _name_of(like)
    if any(not _same(a, b) for other in others for a, b in zip(first, other, strict=True)):
        told = _DRAWS_NOTHING.get(like) if isinstance(like, str) else None
        allowed = f"told {told} it draws nothing" if told else "allowed is what draws nothing"
        raise InputError(f"like = {name}: it draws, so no function can be compared with it; {allowed}")
    if like in _AS_DEFINED:
        return
    if all(_same(x, y) for x, y in itertools.pairwise(first)):
        raise InputError(
            f"like = {name}: its result is {np.ravel(first[0])[0]:g} on all drawn inputs, rows of "
            f"{first[0].shape[-1]} entries; allowed are parameters with which it differs"
        )
    if honest is not None and all(_same(x, own) for x, own in zip(first, honest, strict=True)):
        raise InputError(
            f"like = {name}: it sends what is honest, its training differs; allowed are attacks on updates"
        )


def _name_of(like: object) -> str:
    return like if isinstance(like, str) else "a method of yours"


def _text_of(like: object, f: int, parameters: dict[str, Any]) -> str:
    told = {"num_malicious": f, **parameters}
    return ", ".join([_name_of(like), *(f"{key} = {value}" for key, value in told.items())])


def _said(report: Report, quiet: bool) -> Report:
    if not quiet:
        print(report)
    return report


def _built(create: Callable[..., Any], like: Any, kind: type, parameters: Mapping[str, Any]) -> Any:
    """The method; the same one for the same numbers, so that it is compiled once."""
    if isinstance(like, kind):
        if parameters:
            raise InputError(
                f"{', '.join(sorted(parameters))}: like is an {kind.__name__} with parameters of its own; allowed are none"
            )
        return like
    try:
        return _cached(create, like, **dict(sorted(parameters.items())))
    except TypeError:  # an array cannot be a key
        return create(like, **parameters)


@functools.lru_cache(_MOST_KEPT, typed=True)  # 1, 1.0 and True are equal but not the same parameter
def _cached(create: Callable[..., Any], like: str, /, **parameters: Any) -> Any:
    return create(like, **parameters)


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=True)


@functools.lru_cache(_MOST_KEPT)
def _rule_of_rows(rule: Aggregator, most: int, entries: int) -> Callable[..., np.ndarray]:
    """The rule's first round as a function of at most so many rows: one program, in which the others are absent."""

    @jax.jit
    def result(rows: jax.Array, present: jax.Array, f: jax.Array, seed: jax.Array) -> jax.Array:
        updates = {"w": rows[:, None, :]}
        state = rule.init({"w": rows[0][None]})
        given = {"key": jax.random.key(seed), "num_malicious": f, "present": present}
        return rule.aggregate(updates, state, **given)[0]["w"][0]

    known: dict[tuple[bytes, ...], np.ndarray] = {}  # inputs are always the same ones, so it does not grow

    def of_rows(rows: np.ndarray, present: np.ndarray | None = None, f: int = 0, seed: int = 0) -> np.ndarray:
        present = np.ones(len(rows), bool) if present is None else present
        missing = most - len(rows)
        padded = np.concatenate([rows.astype(np.float32), np.zeros((missing, entries), np.float32)])
        there = np.concatenate([present, np.zeros(missing, bool)])
        asked = (padded.tobytes(), there.tobytes(), bytes([f, seed]))
        if asked not in known:
            known[asked] = np.asarray(result(padded, there, np.int32(f), np.int32(seed)), np.float64)
        return known[asked]

    return of_rows


@functools.lru_cache(_MOST_KEPT)
def _attack_of_rows(
    attack: Attack, most: int, most_benign: int, against: Aggregator, entries: int
) -> Callable[..., np.ndarray]:
    """The rows `(f, d)` that an attack sends in its first round, of at most so many malicious and benign ones."""
    malicious = np.arange(most + most_benign) < most

    @jax.jit
    def result(rows: jax.Array, present: jax.Array, seed: jax.Array) -> jax.Array:
        updates = {"w": rows[:, None, :]}
        f = jnp.sum(present & malicious, dtype=jnp.int32)
        key = jax.random.key(seed)

        def server(sent: Any) -> Any:
            return against.aggregate(sent, against.init(initial(sent)), key=key, num_malicious=f, present=present)[0]

        state = attack.init(initial(updates))
        return attack.craft(updates, state, jnp.asarray(malicious), key=key, present=present, aggregate=server)[0]["w"]

    known: dict[tuple[bytes, ...], np.ndarray] = {}  # inputs are always the same ones, so it does not grow

    def of_rows(benign: np.ndarray, own: np.ndarray, seed: int = 0) -> np.ndarray:
        rows = np.zeros((most + most_benign, entries), np.float32)
        rows[: len(own)], rows[most : most + len(benign)] = own, benign
        places = np.arange(len(rows))
        present = (places < len(own)) | ((places >= most) & (places < most + len(benign)))
        asked = (rows.tobytes(), present.tobytes(), bytes([seed]))
        if asked not in known:
            known[asked] = np.asarray(result(rows, present, np.int32(seed)), np.float64)[: len(own), 0]
        return known[asked]

    return of_rows
