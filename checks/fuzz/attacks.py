"""Masks and updates for every attack: does it send what its definition says, touch nobody else, and refuse other things?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from checks.fuzz.failures import Failures, outcome
from checks.fuzz.updates import MOST, SHAPES, as_tree, bad_row, benign_rows
from lasa_jax import aggregators, attacks
from lasa_jax.errors import InputError
from lasa_jax.testing import built_in, known

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in attacks.names()}
VARIANTS |= {
    f"{name} {value}": (name, {parameter: value})
    for name, parameter, value in (
        ("lie", "knowledge", "colluders"),
        ("min_max", "knowledge", "all"),
        ("byzmean", "variant", "official"),
        ("tailored_trmean", "variant", "official"),
    )
}


class Case(NamedTuple):
    """rows: float32 `(MOST, d)`, what everybody would send. malicious, present: bool `(MOST,)`."""

    rows: np.ndarray
    malicious: np.ndarray
    present: np.ndarray


@np.errstate(all="ignore")
def make_cases(count: int, seed: int = 0) -> list[Case]:
    """Honest updates, ordinary or degenerate, from nobody to everybody malicious; in a tenth some rows hold anything."""
    rng = np.random.default_rng(seed)
    cases = []
    for index in range(count):
        rows = benign_rows(rng)
        if rng.random() < 0.1:
            hostile = rng.random(MOST) < 0.3
            rows = np.where(hostile[:, None], np.stack([bad_row(rng, rows) for _ in range(MOST)]), rows)
        cases.append(Case(rows, rng.random(MOST) < rng.uniform(0, 1.1), rng.permutation(MOST) < 1 + index % MOST))
    return cases


FOUR = {name: np.zeros((4, *shape), np.float32) for name, shape in SHAPES.items()}  # a sound stack


def craft_all(attack: attacks.Attack, cases: list[Case]) -> np.ndarray:
    """What everybody sends, `(len(cases), MOST, d)`, through one executable."""

    def one(rows: dict, malicious: jax.Array, present: jax.Array, seed: jax.Array) -> jax.Array:
        rule = aggregators.trimmed_mean(2)
        sent, _ = attack.craft(
            rows,
            attack.init(jax.tree.map(lambda x: x[0], rows)),
            malicious,
            key=jax.random.fold_in(jax.random.key(0), seed),
            present=present,
            aggregate=lambda x: rule.aggregate(x, (), key=jax.random.key(1), num_malicious=2, present=present)[0],
            **known(attack, rows),
        )
        return jnp.concatenate([sent[name].reshape(MOST, -1) for name in SHAPES], axis=1)

    rows, malicious, present = (np.stack(arrays) for arrays in zip(*cases, strict=True))
    numbers = np.arange(len(cases))
    return np.asarray(
        jax.jit(lambda *batch: jax.lax.map(lambda x: one(*x), batch))(as_tree(rows), malicious, present, numbers)
    )


@np.errstate(all="ignore")
def broken(variant: str, case: Case, sent: np.ndarray) -> str | None:
    """How what is sent breaks the contract of attacks or the definition of this one; None if it does not."""
    changed = case.malicious & case.present
    if not np.array_equal(sent[~changed].view(np.uint32), case.rows[~changed].view(np.uint32)):
        return "a row changed that is not malicious or not there"
    mine = sent[changed].astype(float)
    honest = case.rows[changed].astype(float)
    name, parameters = VARIANTS[variant]
    if not len(mine):
        return None
    exact = {
        "none": honest,
        **dict.fromkeys(attacks.BACKDOORS, honest),
        "label_flip": honest,
        "sign_flip": -honest,
        "zero": 0 * honest,
        "nan": np.nan * honest,
    }
    if name in exact:
        wanted = (
            np.zeros_like(honest) if name == "zero" else np.full_like(honest, np.nan) if name == "nan" else exact[name]
        )
        return None if np.array_equal(mine, wanted, equal_nan=True) else "is not what its name says"
    known = _known(case, parameters.get("knowledge", "benign"))
    if not np.isfinite(known).all() or np.abs(known).max() > 1e15 or not np.isfinite(case.rows[case.present]).all():
        return None  # what an attacker computes from rows that are not finite is his own affair
    if not np.isfinite(mine).all():
        return "is not finite"
    if name in ("noise", "random"):
        return None if name == "random" or np.isfinite(mine - honest).all() else "is not finite"
    scale = np.abs(known).max() + 1e-30
    mean = known.mean(0)
    std = known.std(0, ddof=1) if len(known) > 1 else np.zeros_like(mean)

    def near(wanted: np.ndarray) -> str | None:
        off = np.abs(mine - wanted).max() / scale
        return None if off < 1e-4 else f"{off:.3g} of the largest value off its definition"

    if name == "lie":
        return near(mean - 0.5 * std)
    if name == "ipm":
        return near(-0.5 * mean)
    if name == "mimic":
        own = np.abs(mine[:, None] - known[None]).max(-1).min(-1).max()
        return None if own <= 1e-6 * scale else "is nobody's update"
    if name == "byzmean" and not parameters:
        if np.abs(case.rows[case.present]).max() > 1e6 * scale:
            return None
        wanted = mean - 0.5 * std
        off = np.abs(sent[case.present].astype(float).mean(0) - wanted).max()
        reach = max(np.abs(sent[case.present]).max(), scale)
        return None if off <= 1e-5 * reach else f"the mean of all is {off / scale:.3g} off"
    if name in ("min_max", "min_sum", "min_sum_stealthy"):
        return _too_far(name, mine, known, scale)
    return None


def _known(case: Case, knowledge: str) -> np.ndarray:
    """The rows that the attacker takes its statistics from; all that are there where there are none."""
    kinds = {"benign": ~case.malicious, "colluders": case.malicious, "all": np.ones(MOST, bool)}
    chosen = kinds[knowledge] & case.present
    return case.rows[chosen if chosen.any() else case.present].astype(float)


def _too_far(name: str, mine: np.ndarray, known: np.ndarray, scale: float) -> str | None:
    """Whether a row is farther from the known ones than the attack's bound allows."""
    if len(known) < 2:
        return None
    between = ((known[:, None] - known[None]) ** 2).sum(-1)
    to_mine = ((mine[:, None] - known[None]) ** 2).sum(-1)
    measured, bound = {
        "min_max": (to_mine.max(), between.max()),
        "min_sum": (to_mine.sum(1).max(), between.sum(1).max()),
        "min_sum_stealthy": (to_mine.sum(1).max(), between.sum(1).min()),
    }[name]
    # The mean itself, at a step of nothing, may lie at the bound: where rows are almost alike rounding decides.
    allowed = 1.002 * bound + 1e-5 * scale**2 * mine.shape[1] * len(known)
    return None if measured <= allowed else f"{measured:.4g}, allowed {bound:.4g}"


def wrong_inputs(chance: np.random.Generator) -> tuple[str, Any, Any, Any]:
    """Updates, malicious and present of which one is not as it must be, and what that is."""
    n = int(chance.integers(2, 8))
    updates: Any = {name: chance.standard_normal((n, *shape)).astype(np.float32) for name, shape in SHAPES.items()}
    masks: list[Any] = [chance.random(n) < 0.5, np.ones(n, bool)]
    name = str(chance.choice(sorted(SHAPES)))
    which = int(chance.integers(2))
    what = ("malicious", "present")[which]
    kind = int(chance.integers(11))
    if kind <= 4:
        length = int(chance.choice([0, 1, n - 1, n + 1, 2 * n]))
        length = n + 1 if length == n else length
        masks[which] = [
            np.ones(length, bool),
            np.ones((n, 1), bool),
            masks[which].astype(chance.choice(["int8", "int32", "float32", "uint8"])),
            np.bool_(True),
            [bool(x) for x in np.ones(n + 1, bool)],
        ][kind]
        return f"{what} {np.asarray(masks[which]).dtype}{list(np.shape(masks[which]))} of {n}", updates, *masks
    if kind == 5:
        updates[name] = updates[name].astype(chance.choice(["int8", "int32", "uint8", "bool", "complex64"]))
    elif kind == 6:
        updates[name] = updates[name][: n - 1] if chance.random() < 0.5 else np.concatenate([updates[name]] * 2)
    elif kind == 7:
        updates[name] = np.float32(1)
    elif kind == 8:
        updates = {}
    elif kind == 9:
        updates = {key: value[:0] for key, value in updates.items()}
        masks = [np.zeros(0, bool)] * 2
    else:
        updates[name] = np.array(["x"] * n) if chance.random() < 0.5 else "x"
    return f"updates, kind {kind}, {name!r}", updates, *masks


def refuses(call: Callable[[], Any]) -> str | None:
    """What is wrong if a call does anything but raise one line of InputError."""
    result, wrong = outcome(call)
    return wrong if wrong is not None or isinstance(result, InputError) else "was taken"


def fuzz_wrong_inputs(count: int, seed: int = 0, names: list[str] | None = None) -> tuple[int, Failures]:
    """Attacks by turns, and for a stack without a mask also the rules, on what is no stack or no mask of it.

    Nothing is computed: what is wrong can be seen in shapes and types.
    """
    failures = Failures()
    chosen = [*(f"attack {name}" for name in attacks.names()), *(f"rule {name}" for name in aggregators.names())]
    chosen = chosen if names is None else names
    for index in range(count):
        chance = np.random.default_rng([seed, index])
        kind, _, name = chosen[index % len(chosen)].partition(" ")
        what, updates, malicious, present = wrong_inputs(chance)
        rows = {key: np.zeros(shape, np.float32) for key, shape in SHAPES.items()}
        if kind == "attack":
            attack = attacks.create(name)

            def call(a: Any = attack, u: Any = updates, m: Any = malicious, p: Any = present, r: Any = rows) -> Any:
                return a.craft(
                    u, a.init(r), m, key=jax.random.key(0), present=p, aggregate=lambda x: r, **known(a, FOUR)
                )
        elif what.startswith("malicious"):
            continue
        else:
            rule = built_in(name)

            def call(a: Any = rule, u: Any = updates, m: Any = None, p: Any = present, r: Any = rows) -> Any:
                return a.aggregate(u, a.init(r), key=jax.random.key(0), num_malicious=1, present=p, **known(a, FOUR))

        if (wrong := refuses(call)) is not None:
            failures.append(f"{kind} {name}, input {index}, {what}: {wrong}")
    return count, failures


def fuzz(count: int, names: list[str] | None = None, *, seed: int = 0) -> tuple[int, Failures]:
    """Every attack on every case."""
    cases, failures = make_cases(count, seed), Failures()
    for variant in VARIANTS if names is None else names:
        name, parameters = VARIANTS[variant]
        results = craft_all(attacks.create(name, **parameters), cases)
        for index, (case, sent) in enumerate(zip(cases, results, strict=True)):
            if wrong := broken(variant, case, sent):
                failures.append(f"{variant}, case {index}: {wrong}")
    return len(cases), failures
