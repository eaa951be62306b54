"""Stacks of client updates through every rule: is the result finite, and as near to the benign as the docstring says?"""

import math
from typing import NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis.extra import numpy as hnp

from checks.fuzz.failures import Failures
from lasa_jax import aggregators
from lasa_jax.testing import built_in, known

SHAPES = {"bias": (4,), "conv": (2, 3), "kernel": (3, 4)}
SIZES = [math.prod(shape) for shape in SHAPES.values()]
LAYERS = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
MOST = 7  # clients


class Stack(NamedTuple):
    """rows: float32 `(MOST, d)`. present, bad: bool `(MOST,)`. f: what the server assumes."""

    rows: np.ndarray
    present: np.ndarray
    bad: np.ndarray
    f: int


def benign_rows(rng: np.random.Generator) -> np.ndarray:
    """Updates of honest clients, ordinary ones or of a degenerate kind."""
    d = sum(SIZES)
    scale = np.float32(10.0 ** rng.uniform(-6, 6))
    rows = scale * (0.5 * rng.standard_normal(d) + 10.0 ** rng.uniform(-4, 0) * rng.standard_normal((MOST, d)))
    kind = rng.integers(9)
    layer = LAYERS[rng.integers(len(LAYERS))]
    if kind == 0:
        rows[:] = rows[0]  # identical
    elif kind == 1:
        for columns in LAYERS:
            rows[:, columns] = rows[:, columns[:1]]  # constant layers
    elif kind == 2:
        rows[:, layer] = 0
    elif kind == 3:
        rows = scale * rng.integers(-1, 2, (MOST, d))  # ties at every threshold
    elif kind == 4:
        rows[:, layer] *= 10.0 ** rng.uniform(2, 8)  # one huge layer
    elif kind == 5:
        rows[rng.random(MOST) < 0.3] = 0  # clients that did not train
    return rows.astype(np.float32)


def bad_row(rng: np.random.Generator, benign: np.ndarray) -> np.ndarray:
    """What one attacker sends."""
    d = benign.shape[1]
    row = benign[rng.integers(len(benign))].copy()
    layer = LAYERS[rng.integers(len(LAYERS))]
    value = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e19, 1e-40, -0.0, 0.0]).astype(np.float32)
    kind = rng.integers(10)
    if kind == 0:
        row[:] = value
    elif kind == 1:
        row[rng.integers(d)] = value
    elif kind == 2:
        row[layer] = value
    elif kind == 3:
        row[:] = np.where(rng.random(d) < 0.5, value, -value)
    elif kind == 4:
        row = rng.integers(0, 2**32, d, dtype=np.uint32).view(np.float32)  # any bits
    elif kind == 5:
        row *= np.float32(-(10.0 ** rng.uniform(-1, 2)))
    elif kind == 6:
        row = (10.0 ** rng.uniform(-3, 37) * rng.standard_normal(d)).astype(np.float32)
    elif kind == 7:
        row = (benign.mean(0) - rng.uniform(0.3, 3) * benign.std(0)).astype(np.float32)  # Lie
    elif kind == 8:
        row[layer] *= np.float32(10.0 ** rng.uniform(1, 30))
    return row  # else a copy


@np.errstate(all="ignore")
def directed(rng: np.random.Generator) -> Stack:
    """A stack of honest and bad rows; bad ones from none to all."""
    rows = benign_rows(rng)
    bad = np.zeros(MOST, bool)
    bad[: rng.integers(MOST + 1) if rng.random() < 0.3 else rng.integers(4)] = True
    together = rng.random() < 0.4  # all attackers send the same
    sent = [bad_row(rng, rows) for _ in range(1 if together else MOST)]
    crafted = np.stack(sent * (MOST if together else 1))
    if rng.random() < 0.1:  # honest rows that are hostile too
        rows = np.stack([bad_row(rng, rows) for _ in range(MOST)])
        bad[:] = True
    order = rng.permutation(MOST)
    rows = np.where(bad[:, None], crafted, rows)[order]
    return Stack(rows, np.ones(MOST, bool), bad[order], int(rng.integers(MOST + 2)))


def by_hypothesis(count: int) -> list[Stack]:
    """Stacks of any floats that hypothesis thinks of; nobody in them counts as benign."""
    found: list[Stack] = []
    floats = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)

    @hypothesis.settings(max_examples=count, database=None, deadline=None, derandomize=True)
    @hypothesis.given(hnp.arrays(np.float32, (MOST, sum(SIZES)), elements=floats), st.integers(0, MOST + 1))
    def collect(rows: np.ndarray, f: int) -> None:
        found.append(Stack(rows, np.ones(MOST, bool), np.ones(MOST, bool), f))

    collect()
    return found[:count]


def make_stacks(count: int, seed: int = 0) -> list[Stack]:
    """A tenth by hypothesis, the others directed; the number present goes from 1 to `MOST`."""
    rng = np.random.default_rng(seed)
    stacks = by_hypothesis(count // 10)
    stacks += [directed(rng) for _ in range(count - len(stacks))]
    return [stack._replace(present=rng.permutation(MOST) < 1 + i % MOST) for i, stack in enumerate(stacks)]


def as_tree(flat: np.ndarray) -> dict[str, np.ndarray]:
    """`(..., d)` to leaves `(..., *shape)`."""
    parts = zip(SHAPES.items(), LAYERS, strict=True)
    return {name: flat[..., columns].reshape(*flat.shape[:-1], *shape) for (name, shape), columns in parts}


def aggregate_all(rule: aggregators.Aggregator, stacks: list[Stack], *, absent: bool) -> np.ndarray:
    """The result of every stack, `(len(stacks), d)`, through one executable a number of rows.

    Args:
      rule: what is fuzzed.
      stacks: as made.
      absent: True passes all `MOST` rows and says which count; False only those that count.
    """

    def one(rows: dict, present: jax.Array | None, f: jax.Array) -> jax.Array:
        state = rule.init(jax.tree.map(lambda x: x[0], rows))
        context = known(rule, rows)
        update, *_ = rule.aggregate(rows, state, key=jax.random.key(0), num_malicious=f, present=present, **context)
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(update)])

    results = np.empty((len(stacks), sum(SIZES)), np.float32)
    counts = np.array([MOST if absent else stack.present.sum() for stack in stacks])
    for n in np.unique(counts):
        which = np.flatnonzero(counts == n)
        chosen = [stacks[i] for i in which]
        rows = np.stack([stack.rows if absent else stack.rows[stack.present] for stack in chosen])
        present = np.stack([stack.present for stack in chosen]) if absent else None
        f = np.array([stack.f for stack in chosen])
        each = jax.jit(lambda *batch: jax.lax.map(lambda inputs: one(*inputs), batch))
        results[which] = each(as_tree(rows), present, f)
    return results


def may_be_infinite(name: str, stack: Stack) -> bool:
    """Whether the docstring of a rule says that the result of a stack may not be finite."""
    rows = stack.rows[stack.present]
    n = len(rows)
    if name in ("fedavg", "robust_learning_rate", "sparsefed"):
        return not np.isfinite(rows).all()
    if name == "meamed":
        return bool(((~np.isfinite(rows)).sum(0) > min(stack.f, (n - 1) // 2)).any())
    if name in ("median", "trimmed_mean"):
        f = (n - 1) // 2 if name == "median" else min(stack.f, (n - 1) // 2)
        above = (np.isnan(rows) | (rows == np.inf)).sum(0)
        return bool((np.maximum(above, (rows == -np.inf).sum(0)) > f).any())
    return False


def servers_own() -> np.ndarray:
    """The update of the server that rules are given, `(d,)`."""
    zeros = as_tree(np.zeros((1, sum(SIZES)), np.float32))
    update = known(aggregators.monna(), zeros)["context"].server_update
    return np.concatenate([np.ravel(update[name]) for name in SHAPES])


@np.errstate(all="ignore")  # of rows with any bits in them
def leaves_the_hull(name: str, stack: Stack, result: np.ndarray) -> str | None:
    """How a result breaks what the docstring of a rule promises while the benign are a majority; None if it does not."""
    rows, bad = stack.rows[stack.present].astype(float), stack.bad[stack.present]
    n, b = len(rows), int(bad.sum())
    benign = rows[~bad]
    if 2 * b >= n:
        return None
    norms = np.linalg.norm(benign, axis=1)
    diameter = np.linalg.norm(benign[:, None] - benign[None], axis=-1).max()
    rounding = 3e-5 * norms.max() + 1e-30
    f = min(stack.f, (n - 1) // 2)

    def outside(width: float) -> str | None:
        low, high = benign.min(0), benign.max(0)
        excess = np.maximum(result - high, low - result) - width * (high - low)
        return f"{excess.max():.3g} beyond the benign values" if excess.max() > rounding else None

    def farther(distance: float, limit: float) -> str | None:
        return f"{distance:.3g}, allowed {limit:.3g}" if distance > 1.001 * limit + rounding else None

    from_benign = np.linalg.norm(result - benign, axis=1).max()
    if name == "median" or (name == "trimmed_mean" and b <= f):
        return outside(0)
    if name == "meamed" and b <= f:
        return outside(1)
    if name == "bulyan" and b <= min(stack.f, max(n - 3, 0) // 4):
        return outside(1)
    if name in ("krum", "multi_krum") and b <= (f := min(stack.f, max(n - 3, 0) // 2)):
        near = math.sqrt(max(n - f - 2, 1) / max(n - 2 * f - 1, 1))
        return farther(from_benign, (1 + near) * diameter)
    if name == "geometric_median":
        center = benign.mean(0)
        farthest = np.linalg.norm(benign - center, axis=1).max()
        return farther(float(np.linalg.norm(result - center)), 2 * (n - b) / (n - 2 * b) * farthest + 1e-6)
    if name == "dnc" and b <= f and (b == 0 or (rows[bad] == rows[bad][0]).all()):
        reach = n * (n - b) / ((n - 2 * b) * math.sqrt(b * (n - b))) if b else 0
        return farther(from_benign, (1 + reach) * diameter)
    if name == "lasa":
        parts = [float(np.linalg.norm(result[columns])) for columns in LAYERS]
        return farther(max(parts), norms.max())
    if name == "cge" and b <= min(stack.f, n - 1):
        return farther(float(np.linalg.norm(result)), norms.max())
    if name == "mda" and b <= f:
        return farther(from_benign, 2 * diameter)
    if name == "monna" and b <= min(stack.f, n - 1):
        g = servers_own()
        return farther(float(np.linalg.norm(result - g)), float(np.linalg.norm(benign - g, axis=1).max()))
    if name == "flame":
        return farther(float(np.linalg.norm(result)), 1.01 * norms.max())  # with its noise
    if name in ("signguard", "signguard_sim"):
        return farther(float(np.linalg.norm(result)), norms.max())
    if name in ("norm_clipped_mean", "centered_clipping"):
        return farther(float(np.linalg.norm(result)), {"norm_clipped_mean": 1.0, "centered_clipping": 10.0}[name])
    return None


def fuzz(count: int, names: list[str] | None = None, *, absent: bool = False, seed: int = 0) -> tuple[int, Failures]:
    """Every rule on every stack."""
    stacks, failures = make_stacks(count, seed), Failures()
    for name in aggregators.names() if names is None else names:
        results = aggregate_all(built_in(name), stacks, absent=absent)
        for index, (stack, result) in enumerate(zip(stacks, results, strict=True)):
            if not np.isfinite(result).all():
                if not may_be_infinite(name, stack):
                    failures.append(f"{name}, stack {index}: is not finite")
            elif broken := leaves_the_hull(name, stack, result):
                failures.append(f"{name}, stack {index}: {broken}")
    return len(stacks), failures
