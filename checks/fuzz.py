"""Hostile input of every kind: `python -m checks.fuzz [--stacks=10000] [--mutations=1000]`.

    updates       stacks of client updates through every rule of `aggregators.names()`: is the result finite, and does it
                  stay as near to the benign clients as the rule's docstring says?
    configs       command lines and Python values
    data files    LEAF's JSON, plays, prepared sets, the cache of decoded arrays
    checkpoints   files of a checkpoint: nothing damaged may be restored
    directories   run directories as somebody else may have left them

Anything but a result or one line of `InputError` is a failure, as is a file that is left half-written, and a call that
takes a minute. Prints inputs tried and failures; exit code 1 if there are any.
"""

import argparse
import contextlib
import functools
import gzip
import io
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis.extra import numpy as hnp
from rich.console import Console

from lasa_jax import aggregators, build, commandline, data, experiment, grid, main, report
from lasa_jax import config as configs
from lasa_jax.data import cache
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables
from lasa_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
SHAPES = {"bias": (4,), "conv": (2, 3), "kernel": (3, 4)}
SIZES = [math.prod(shape) for shape in SHAPES.values()]
LAYERS = np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])
MOST = 7  # clients
SECONDS = 60  # that one input may take


class Failures(list):
    """What went wrong, one line each; the first few are shown."""

    def report(self, name: str, tried: int) -> None:
        print(f"{name}: {tried:,} inputs, {len(self)} failures", flush=True)
        for text in self[:20]:
            print(f"  {text}", file=sys.stderr)


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raises TimeoutError in the main thread after `SECONDS`."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- updates -----------------------------------------------------------------------------------------------------------


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
        update, *_ = rule.aggregate(rows, state, key=jax.random.key(0), num_malicious=f, present=present)
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
    if name in ("fedavg", "sparsefed"):
        return not np.isfinite(rows).all()
    if name in ("median", "trimmed_mean"):
        f = (n - 1) // 2 if name == "median" else min(stack.f, (n - 1) // 2)
        above = (np.isnan(rows) | (rows == np.inf)).sum(0)
        return bool((np.maximum(above, (rows == -np.inf).sum(0)) > f).any())
    return False


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
    if name == "signguard":
        return farther(float(np.linalg.norm(result)), norms.max())
    if name in ("norm_clipped_mean", "centered_clipping"):
        return farther(float(np.linalg.norm(result)), {"norm_clipped_mean": 1.0, "centered_clipping": 10.0}[name])
    return None


def fuzz_updates(
    count: int, names: list[str] | None = None, *, absent: bool = False, seed: int = 0
) -> tuple[int, Failures]:
    """Every rule on every stack."""
    stacks, failures = make_stacks(count, seed), Failures()
    for name in aggregators.names() if names is None else names:
        results = aggregate_all(aggregators.create(name), stacks, absent=absent)
        for index, (stack, result) in enumerate(zip(stacks, results, strict=True)):
            if not np.isfinite(result).all():
                if not may_be_infinite(name, stack):
                    failures.append(f"{name}, stack {index}: is not finite")
            elif broken := leaves_the_hull(name, stack, result):
                failures.append(f"{name}, stack {index}: {broken}")
    return len(stacks), failures


# --- mutations of text, bytes and values -------------------------------------------------------------------------------

JUNK: list[Any] = [None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -0.0, math.nan, math.inf, -math.inf, 1e-320]
JUNK += [
    "",
    "x",
    "nan",
    "../../etc/passwd",
    "\x00",
    "ü\u202e",
    "x" * 10_000,
    [],
    [1, 2],
    {},
    {"a": {"b": []}},
    [[]] * 3,
]
WORDS = ["nan", "inf", "-inf", "-1", "0", "1", "1e999", "1e-400", "0x10", "", "None", "True", "false", "[1]", "(1, 2)"]
WORDS += [
    "{}",
    "9" * 5000,
    "1_000",
    " 5 ",
    "'",
    '"',
    "a=b",
    "1,2",
    "\u0661",
    "..",
    "%s",
    "{0}",
    "lambda: 0",
    "1.5",
    "3",
]


def mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    """One to three small damages."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(6)
        if kind <= 1 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            changed[at:at] = chance.randbytes(chance.randint(1, 20))
        elif kind == 4:
            del changed[at : at + chance.randint(1, 50)]
        else:
            changed[at : at + 8] = chance.choice(
                [b"\0" * 8, b"\xff" * 8, b"[" * 2000, b'{"a":' * 2000, b"NaN", b"1e999"]
            )
    return bytes(changed)


def mutate_value(value: Any, chance: random.Random) -> Any:
    """A JSON value with one part of it replaced, removed or renamed."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        name = chance.choice(list(value))
        changed = dict(value)
        kind = chance.randrange(8)
        if kind == 0:
            del changed[name]
        elif kind == 1:
            changed[f"{name}x"] = changed.pop(name)
        else:
            changed[name] = mutate_value(value[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.9:
        changed = list(value)
        at = chance.randrange(len(value))
        changed[at] = mutate_value(value[at], chance)
        return changed
    return chance.choice(JUNK)


def mutate_json(content: bytes, chance: random.Random) -> bytes:
    """As `mutate_value` for a JSON file, or one with a value a line."""
    if chance.random() < 0.3:
        return mutate_bytes(content, chance)
    try:
        return json.dumps(mutate_value(json.loads(content), chance)).encode()
    except ValueError:
        lines = content.splitlines()
        at = chance.randrange(len(lines))
        lines[at] = json.dumps(mutate_value(json.loads(lines[at]), chance)).encode()
        if chance.random() < 0.2:
            lines.insert(at, lines[at])  # a line twice
        return b"\n".join(lines) + b"\n"


def outcome(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call returned; and what is wrong if it raised anything but one line of `InputError`."""
    try:
        with time_limit():
            return call(), None
    except InputError as error:
        return error, None if "\n" not in str(error) else f"more than one line: {str(error)[:200]!r}"
    except Exception as error:  # noqa: BLE001  (that is what is looked for)
        return error, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder but locks, by relative path; links and pipes by what they are."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        if path.name != ".lock":
            is_file = path.is_file() and not path.is_symlink()
            found[str(path.relative_to(folder))] = path.read_bytes() if is_file else path.lstat().st_mode
    return found


# --- configs -----------------------------------------------------------------------------------------------------------


def command_line(chance: random.Random) -> list[str]:
    """Arguments of `lasa_jax.main`, some of them wrong."""
    fields = list(dict(configs.flatten(configs.default().to_dict())))
    file = chance.choice(sorted(str(path) for path in (ROOT / "configs").glob("*.py")))
    if chance.random() < 0.3:
        file += ":" + ",".join(
            f"{chance.choice(['alpha', 'shards', 'gamma', 'quantity', 'x'])}={chance.choice(WORDS)}"
            for _ in range(chance.randint(1, 2))
        )
    arguments = [f"--config={file}"]
    for _ in range(chance.randint(1, 3)):
        field, value = chance.choice(fields), chance.choice(WORDS)
        if chance.random() < 0.15:
            field = chance.choice([field + "x", field.upper(), field.partition(".")[0], "." + field, field + "."])
        if chance.random() < 0.2:
            value = "".join(chance.choice("0123456789.-+e_ naif[](){}=,'\"") for _ in range(chance.randint(0, 12)))
        arguments.append(chance.choice([f"--config.{field}={value}"] * 8 + [f"--config.{field}", f"--{field}={value}"]))
    return arguments


def read_command_line(arguments: list[str]) -> Any:
    """The resolved config, as a run reads it."""
    given = main.parser().read(arguments)
    return commandline.read_config(given.config, given.settings)


def python_config(chance: random.Random) -> Any:
    """A config with values of any type set in Python, as a sweep's file would."""
    fields = list(dict(configs.flatten(configs.default().to_dict())))
    values = [*JUNK, *aggregators.names(), *data.names(), (1, 2), b"x", np.float32(0.5), np.int64(3), np.nan, object]
    settings = {chance.choice(fields): chance.choice(values) for _ in range(chance.randint(1, 3))}
    (point,) = grid.points(grid.Grid(configs.paper("digits"), [], [settings]))
    return point.config


def before_compiling(config: Any) -> None:
    """What a run does with its config before anything is compiled."""
    if config.dataset == "digits" and (config.num_clients or 0) <= 10_000:
        dataset = data.load("digits")
        shares = build.make_partition(config, dataset)
        build.make_point(config, build.make_program(config, dataset, shares))
    configs.to_json(config), configs.run_name(config), configs.program_key(config)


def fuzz_configs(count: int) -> tuple[int, Failures]:
    """Command lines and Python values by turns."""
    failures = Failures()
    for index in range(count):
        chance = random.Random(index)
        arguments = command_line(chance)
        config, wrong = (
            outcome(lambda a=arguments: read_command_line(a))
            if index % 2
            else outcome(lambda c=chance: python_config(c))
        )
        if wrong is None and not isinstance(config, InputError):
            _, wrong = outcome(lambda c=config: before_compiling(c))
        if wrong is not None:
            failures.append(f"config {index}, {arguments if index % 2 else 'from Python'}: {wrong}")
    return count, failures


# --- data files --------------------------------------------------------------------------------------------------------


def write_sources(folder: Path) -> None:
    """One small source of each kind."""
    rng = np.random.default_rng(0)

    def user(count: int) -> dict[str, Any]:
        return {"x": np.round(rng.random((count, 784)), 2).tolist(), "y": rng.integers(0, 62, count).tolist()}

    for part, users in (("train", {"w1": user(3), "w2": user(2)}), ("test", {"w1": user(1)})):
        text = json.dumps(
            {"users": list(users), "num_samples": [len(u["y"]) for u in users.values()], "user_data": users}
        )
        (folder / "leaf" / part).mkdir(parents=True)
        (folder / "leaf" / part / "all.json").write_text(text)
    (folder / "plays").mkdir()
    speeches = "".join(f"\nKING.\nSpeech {i}, and so\non.\n\nQUEEN.\nNo {i}.\n" for i in range(5))
    (folder / "plays" / "all.txt.gz").write_bytes(gzip.compress(f"== A Play ==\n{speeches}".encode()))


def fuzz_data(count: int) -> tuple[int, Failures]:
    """A third raw sources, a third prepared sets, a third entries of the cache."""
    failures = Failures()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sources(folder / "good")
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        sources = {"femnist": folder / "good" / "leaf", "shakespeare": folder / "good" / "plays" / "all.txt.gz"}
        good = {
            name: data.load(name, data_dir=str(folder / "prepared"), source=str(path)) for name, path in sources.items()
        }
        for index in range(count):
            chance = random.Random(index)
            name = chance.choice(sorted(sources))
            work = folder / "work"
            shutil.copytree(folder / ("good" if index % 3 == 0 else "prepared"), work / "in")
            out = work / "out" if index % 3 == 0 else work / "in"
            source = None
            if index % 3 == 0:
                source = str(work / "in" / sources[name].relative_to(folder / "good"))
                target = chance.choice([p for p in (Path(source), *Path(source).rglob("*")) if p.is_file()])
            elif index % 3 == 1:
                target = chance.choice(sorted(p for p in (work / "in" / name).rglob("*") if p.is_file()))
                os.environ["XDG_CACHE_HOME"] = str(work / "cache")
            else:
                shutil.copytree(folder / "cache", work / "cache")
                os.environ["XDG_CACHE_HOME"] = str(work / "cache")
                target = next((cache.directory() / "decoded").glob(f"{name}-*"))
            before = target.read_bytes()
            is_json = target.suffix == ".json"
            if target.suffix == ".gz" and chance.random() < 0.7:
                after = gzip.compress(mutate_bytes(gzip.decompress(before), chance))
            else:
                after = mutate_json(before, chance) if is_json else mutate_bytes(before, chance)
            times = target.stat()
            target.write_bytes(after)
            if index % 3 == 2:
                for path in (work / "in").rglob("*"):  # the cache knows a set by the times of its files
                    like = folder / "prepared" / path.relative_to(work / "in")
                    os.utime(path, ns=(like.stat().st_atime_ns, like.stat().st_mtime_ns))
                os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
            loaded, wrong = outcome(lambda n=name, o=out, s=source: data.load(n, data_dir=str(o), source=s))
            if isinstance(loaded, InputError) and index % 3 == 0 and out.exists() and contents(out):
                wrong = f"refused ({loaded}), and wrote {sorted(contents(out))[:3]}"
            if index % 3 == 2 and (wrong is None) and not isinstance(loaded, InputError):
                same = all(np.array_equal(a, b) for a, b in zip(loaded.train, good[name].train, strict=True))
                wrong = None if same else "a damaged cache was believed"
            if wrong is None and not isinstance(loaded, InputError):
                labels = np.concatenate([loaded.train.labels.ravel(), loaded.test.labels.ravel()])
                if labels.size == 0 or labels.min() < 0 or labels.max() >= loaded.num_classes:
                    wrong = "labels out of range"
            if wrong is not None:
                failures.append(f"data {index}, {target.relative_to(work)}: {wrong}")
            shutil.rmtree(work)
    return count, failures


# --- checkpoints and directories ---------------------------------------------------------------------------------------


def small_config() -> Any:
    """A run of the digits that takes a moment."""
    config = configs.paper("digits")
    light = {"rounds": 3, "num_clients": 8, "clients_per_round": 4, "client.epochs": 1, "block_rounds": 1}
    config.update_from_flattened_dict({**light, "checkpoint_every": 1, "aggregator.name": "median"})
    return configs.resolve(config)


def fuzz_checkpoints(count: int) -> tuple[int, Failures]:
    """Anything that differs from what was written must not be restored."""
    failures = Failures()
    state = {"params": {"kernel": jnp.arange(4000.0).reshape(40, 100), "bias": jnp.ones(7)}, "step": jnp.int32(3)}
    with tempfile.TemporaryDirectory() as temporary, Workdir(Path(temporary) / "run") as workdir:
        workdir.save_checkpoint(1, state, keep=1)
        folder = workdir.path / "checkpoints"
        shutil.copytree(folder, Path(temporary) / "good")
        for index in range(count):
            chance = random.Random(index)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            target = chance.choice(files)
            content = target.read_bytes()
            kind = chance.randrange(8)
            if kind == 0:
                target.unlink()
            elif kind == 1:
                (target.parent / "another").write_bytes(content)
            elif kind == 2:
                target.unlink()
                chance.choice([lambda t: os.symlink("/dev/zero", t), os.mkfifo, os.mkdir])(target)
            elif target.suffix == ".json" and kind < 6:
                target.write_bytes(mutate_json(content, chance))
            else:
                target.write_bytes(mutate_bytes(content, chance))
            changed = contents(folder) != contents(Path(temporary) / "good")
            restored, wrong = outcome(lambda: workdir.restore_checkpoint(1, state))
            if wrong is None and restored is not None and changed:
                same = all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (restored, state)), strict=True))
                if target.suffix != ".json" or not same:  # spaces and order in a manifest do not matter
                    wrong = "was restored"
            if wrong is not None:
                failures.append(f"checkpoint {index}, {target.name}: {wrong}")
            shutil.rmtree(folder)
            shutil.copytree(Path(temporary) / "good", folder)
    return count, failures


def damage_directory(path: Path, chance: random.Random) -> str:
    """Damages one file of a run directory, and says which and how."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    if chance.random() < 0.7:
        files = [file for file in files if file.parent == path and file.suffix in (".json", ".jsonl")]
    target = chance.choice(files)
    content = target.read_bytes()
    kind = chance.randrange(12)
    if kind == 0:
        target.unlink()
        return f"{target.name} removed"
    if kind == 1:
        target.unlink()
        os.symlink(chance.choice(["/dev/zero", "/etc/passwd", "/nonexistent", str(path)]), target)
        return f"{target.name} a link"
    if kind == 2:
        target.unlink()
        os.mkfifo(target)
        return f"{target.name} a pipe"
    if kind == 3:
        target.unlink()
        target.mkdir()
        return f"{target.name} a folder"
    if kind == 4 and target.parent == path:
        name = chance.choice(
            ["round_99999999.json", "round_000009.json", "round_1.json", "round_x.json", "round_00000x"]
        )
        (path / "checkpoints" / name).write_bytes(content)
        return f"{name} added"
    if target.suffix in (".json", ".jsonl"):
        target.write_bytes(mutate_json(content, chance))
    else:
        target.write_bytes(mutate_bytes(content, chance))
    return f"{target.name} mutated"


def fuzz_directories(count: int) -> tuple[int, Failures]:
    """Two in three are finished runs, which are read; one in three goes on."""
    failures, config, shared = Failures(), small_config(), Executables()
    quiet: dict[str, Any] = {"executables": shared, "log": lambda text: None}
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        wanted = experiment.run(config, whole, **quiet)["parameters_sha256"]
        for index in range(count):
            chance = random.Random(index)
            path = Path(temporary) / "run"
            shutil.copytree(whole, path)
            if index % 3 == 0:
                (path / "summary.json").unlink()
            what = damage_directory(path, chance)
            before = contents(path)

            def use(path: Path = path) -> str:
                summary = experiment.run(config, path, **quiet)
                report.accuracy_curve(path)
                main.print_summary(summary, path, Console(file=io.StringIO()))
                return summary["parameters_sha256"]

            digest, wrong = outcome(use)
            if isinstance(digest, InputError):
                if contents(path) != before and "metrics.jsonl" not in str(digest):
                    wrong = f"refused ({digest}), and changed the directory"
            elif wrong is None and index % 3 == 0 and digest != wanted:
                wrong = "went on to another model"
            if wrong is not None:
                failures.append(f"directory {index}, {what}: {wrong}")
            shutil.rmtree(path)
    return count, failures


KINDS = {
    "configs": fuzz_configs,
    "data files": fuzz_data,
    "checkpoints": fuzz_checkpoints,
    "directories": fuzz_directories,
}


def run() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stacks", type=int, default=10_000, help="stacks of updates, through every rule")
    parser.add_argument("--seed", type=int, default=0, help="of the stacks")
    parser.add_argument("--mutations", type=int, default=1000, help="of each other kind")
    parser.add_argument("--kinds", nargs="*", default=["updates", *KINDS], choices=["updates", *KINDS])
    given = parser.parse_args()
    kinds: dict[str, Callable[[], tuple[int, Failures]]] = {
        "updates": functools.partial(fuzz_updates, given.stacks, seed=given.seed),
        **{name: functools.partial(fuzz, given.mutations) for name, fuzz in KINDS.items()},
    }
    failed = 0
    for name in given.kinds:
        tried, failures = kinds[name]()
        failures.report(name, tried)
        failed += len(failures)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(run())
