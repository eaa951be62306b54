"""What each precision costs, and how far its results are from those in float64.

Products have the shapes of the paper's models. Training is one local step of many clients, by `client.precision`. Rules are
traced where products round as `jax.default_matmul_precision` says, which must change nothing in them, and once on a stack in
float64; what a rule keeps in float32 is float32 there too. Rules that draw at random are left out: they draw otherwise then.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import rules as aggregating
from benchmarks.card import made, tables
from benchmarks.card.items import Facts, Item, Prepared, accelerator, compiled, once, seconds
from benchmarks.card.rules import stack
from benchmarks.round import local_training
from lasa_jax import aggregators, build, ops
from lasa_jax import config as configs
from lasa_jax.data import Dataset, FederatedDataset
from lasa_jax.federated.client import matmul_precision

PRECISIONS = ("tf32", "float32", "bfloat16", "float64")
EXACT = "float64"
# Matrices of a batch: (how many, rows, contracted, columns).
PRODUCTS = {
    "large": (1, 8192, 8192, 8192),
    "cnn, dense layer": (100, 10, 3136, 512),
    "cnn, dense layer's gradient": (100, 3136, 10, 512),
    "cnn, patches of a convolution": (100, 1960, 800, 64),
    "lstm, step": (100, 4, 256, 1024),
    "resnet18, patches of a convolution": (5, 64 * 256, 1152, 128),
}
SMALL_PRODUCTS = {"large": (1, 256, 256, 256), "lstm, step": (3, 4, 16, 64)}
RULES: dict[str, Callable[[], aggregators.Aggregator]] = {
    "fedavg": aggregators.fedavg,
    "lasa": aggregators.lasa,
    "krum": aggregators.krum,
    "multi_krum": aggregators.multi_krum,
    "geometric_median": aggregators.geometric_median,
    "centered_clipping": aggregators.centered_clipping,
    "nearest_neighbour_mixing, then krum": lambda: aggregators.chain(
        aggregators.nearest_neighbour_mixing(), aggregators.krum()
    ),
}

Run = Callable[[], Any]


class Work:
    """A computation in several precisions, each compiled once and its result kept: errors are of two of them."""

    def __init__(self, build_one: Callable[[str], tuple[Run, Facts]]) -> None:
        """Args: build_one: for a precision what computes the result, as a pytree of arrays, and facts about it."""
        self._runs = {name: once(functools.partial(build_one, name)) for name in PRECISIONS}
        self._exact = once(lambda: _flat(self._runs[EXACT]()[0]()))

    def prepare(self, precision: str) -> Prepared:
        """Compiles it in one precision."""
        run, facts = self._runs[precision]()
        return Prepared(facts, lambda: self._measure(run))

    def _measure(self, run: Run) -> Facts:
        found, exact = seconds(run, most_calls=8, most_seconds=4), self._exact()
        off = _flat(run()) - exact
        largest = float(np.abs(off).max() / np.abs(exact).max())
        return {**found, "largest_error": largest, "norm_error": float(np.linalg.norm(off) / np.linalg.norm(exact))}


def _flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def items(small: bool) -> list[Item]:
    """Every product, training and rule in every precision."""
    stacks = _stacks(small)
    works = {
        f"product, {name}": Work(functools.partial(_product, shape))
        for name, shape in (SMALL_PRODUCTS if small else PRODUCTS).items()
    }
    works |= {
        f"training, {name}": Work(functools.partial(_training, name, once(functools.partial(load, small)), small))
        for name, load in TRAININGS.items()
    }
    works |= {f"rule {name}": Work(functools.partial(_rule, make, stacks)) for name, make in RULES.items()}
    return [
        Item(f"{name}; {precision}", functools.partial(work.prepare, precision))
        for name, work in works.items()
        for precision in PRECISIONS
    ]


@contextlib.contextmanager
def _rounding_as(precision: str) -> Iterator[None]:
    """Products are traced as in training of that precision; float64 is allowed where it is asked for."""
    wide = jax.enable_x64(True) if precision == EXACT else contextlib.nullcontext()
    with wide, jax.default_matmul_precision(matmul_precision(precision)):
        yield


def _typed(precision: str) -> str:
    """The type of operands."""
    return precision if precision in ("bfloat16", EXACT) else "float32"


def _product(shape: tuple[int, int, int, int], precision: str) -> tuple[Run, Facts]:
    batch, rows, inner, columns = shape
    rng = np.random.default_rng(0)
    drawn = [rng.standard_normal(size, np.float32) for size in ((batch, rows, inner), (batch, inner, columns))]
    with _rounding_as(precision):
        given = [jnp.asarray(x, _typed(precision)) for x in drawn]
        executable, facts = compiled(lambda: jax.jit(jnp.matmul).lower(*given))
    return lambda: executable(*given), {**facts, "operations": 2 * batch * rows * inner * columns}


def _cnn(small: bool) -> Dataset:
    return made.images("mnist", 80 if small else 60_000, 10)


def _resnet(small: bool) -> Dataset:
    return made.images("cifar10", 40 if small else 6400, 10)


def _lstm(small: bool) -> Dataset:
    return made.roles(4 if small else 100, 4, pieces=4)


TRAININGS: dict[str, Callable[[bool], Dataset]] = {
    "cnn, 100 x 10 images": _cnn,
    "lstm, 100 x 4 texts": _lstm,
    "resnet18, 5 x 64 images": _resnet,
}


def _training(name: str, load: Callable[[], Dataset], small: bool, precision: str) -> tuple[Run, Facts]:
    """One local step of the clients of a round, without attack."""
    dataset = load()
    settings: dict[str, Any] = {"client.precision": precision, "client.epochs": 1, "attack.name": "none"}
    settings |= {"clients_per_round": 5} if dataset.name == "cifar10" else {}
    if small:
        settings |= {"clients_per_round": 2, "client.batch_size": 2}
        settings |= {} if dataset.name == "shakespeare" else {"num_clients": 4}
    config = configs.resolve(configs.updated(configs.paper(dataset.name), settings))
    _, _, shares, program, point = build.prepare(config, dataset=dataset)
    fed = jax.tree.map(jnp.asarray, FederatedDataset(dataset.train, dataset.test, shares))
    train = local_training(program, program.make_attack(point.attack))
    given = (program.init(point), point, fed, jnp.int32(1))
    executable, facts = compiled(lambda: train.lower(*given))
    return lambda: executable(*given)[0], facts


def _rule(
    make: Callable[[], aggregators.Aggregator], stacks: Callable[[str], Any], precision: str
) -> tuple[Run, Facts]:
    rule, updates = make(), stacks(precision)
    n = len(jax.tree.leaves(updates)[0])
    with _rounding_as(precision), ops.compiling_for(accelerator()):  # a CPU's own forms add up in float32
        state = aggregating.start(rule, updates)
        executable, facts = compiled(lambda: aggregating.lowered(rule, updates, n // 5))
    return lambda: executable(updates, state), facts


def _stacks(small: bool) -> Callable[[str], Any]:
    """The stack for a precision, made once in float32 and once in float64."""
    plain = once(lambda: stack(small))

    def widened() -> Any:
        with jax.enable_x64(True):
            return jax.tree.map(lambda x: x.astype(EXACT), plain())

    wide = once(widened)
    return lambda precision: wide() if precision == EXACT else plain()


def table(found: tables.Items) -> list[str]:
    """A line for each computation and precision."""
    columns = {
        "ms, median (quartiles)": tables.milliseconds,
        "TFLOP/s": lambda facts: tables.number(facts.get("operations", 0) / facts["seconds"] or None, 1e-12, 1),
        "largest error / largest entry": lambda facts: f"{facts['largest_error']:.1e}",
        "norm of the error / norm": lambda facts: f"{facts['norm_error']:.1e}",
        "compile, s": tables.compile_seconds,
    }
    return tables.by_item(found, columns, "computation; precision")
