"""Times rules on a stack of updates: `python -m benchmarks.rules [--clients=100] [--model=cnn] [--rules=lasa,median]`.

Prints a Markdown table: seconds; readings of the stack that would take as long, measured in the same run; and, where the
`[bench]` extra is installed, ByzFL on PyTorch's CPU build with the same numbers. The column of the official code is not
measured here: it is the recorded ratio of its seconds to an average of the stack, both with two threads of PyTorch 2.13.
Clients share all devices, which on a CPU is one with all cores, or `JAX_NUM_CPU_DEVICES` of them.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import best_of, compare, updates
from lasa_jax import aggregators, attacks
from lasa_jax.federated import make_mesh
from lasa_jax.testing import built_in, known

# Recorded from the official code, n = 100, d = 1,663,370: seconds / seconds of an average of the stack.
OFFICIAL = {
    "bulyan": 5100,
    "fedavg": 1,
    "geometric_median": 600,
    "lasa": 254,
    "multi_krum": 13700,
    "signguard": 21,
    "dnc": 12,
    "sparsefed": 175,
    "trimmed_mean": 232,
}
# LASA's 23.9 s, n = 25, d = 11.18 M, over the average above, taken to be as much longer as the stack is larger.
OFFICIAL_RESNET = {"lasa": 309}


def byzfl_rules(f: int) -> dict[str, tuple[Callable[..., Any], Callable[[], Any]]]:
    """By name of ours: ByzFL's, and ours with the same numbers; empty if ByzFL is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that it imports
            import byzfl
    except ImportError:
        return {}
    mixed = lambda rule: aggregators.chain(aggregators.nearest_neighbour_mixing(f), rule)  # noqa: E731
    clipped = lambda rule: aggregators.chain(aggregators.clip_to_norm(4.0), rule)  # noqa: E731
    after = lambda first, rule: lambda x: rule(first(x))  # noqa: E731
    return {
        "fedavg": (byzfl.Average(), aggregators.fedavg),
        "median": (byzfl.Median(), aggregators.median),
        "trimmed_mean": (byzfl.TrMean(f=f), lambda: aggregators.trimmed_mean(f)),
        "geometric_median": (
            byzfl.GeometricMedian(nu=0.1, T=3),
            lambda: aggregators.geometric_median(smoothing=0.1, max_iterations=3),
        ),
        "krum": (byzfl.Krum(f=f + 1), lambda: aggregators.krum(f)),
        "multi_krum": (byzfl.MultiKrum(f=f + 1), lambda: aggregators.multi_krum(f)),
        "centered_clipping": (
            byzfl.CenteredClipping(L=3, tau=2.0),
            lambda: aggregators.centered_clipping(clip_radius=2.0, num_iterations=3),
        ),
        "nearest-neighbour mixing, average": (
            after(byzfl.NNM(f=f), byzfl.Average()),
            lambda: mixed(aggregators.fedavg()),
        ),
        "nearest-neighbour mixing, median": (
            after(byzfl.NNM(f=f), byzfl.Median()),
            lambda: mixed(aggregators.median()),
        ),
        "clipping, average": (after(byzfl.Clipping(c=4.0), byzfl.Average()), lambda: clipped(aggregators.fedavg())),
        "bucketing, median": (
            after(byzfl.Bucketing(s=2), byzfl.Median()),
            lambda: aggregators.chain(aggregators.bucketing(2), aggregators.median()),
        ),
    }


def timed() -> list[str]:
    """The rules that end with 100 clients: those of subsets do not."""
    return [name for name in aggregators.names() if name not in aggregators.OF_SUBSETS]


def start(method: aggregators.Aggregator | attacks.Attack, stack: Any) -> Any:
    """What a rule or an attack remembers before its first round."""
    return method.init(jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), stack))


def lowered(rule: aggregators.Aggregator, stack: Any, f: int) -> jax.stages.Lowered:
    """One aggregation as a function of `(stack, state)`, which need no more than shapes, before it is compiled."""
    key = jax.random.key(0)
    aggregate = jax.jit(lambda u, s: rule.aggregate(u, s, key=key, num_malicious=f, **known(rule, u))[0])
    return aggregate.lower(stack, jax.eval_shape(lambda stack: start(rule, stack), stack))


def compiled(rule: aggregators.Aggregator, stack: Any, f: int) -> tuple[Any, Any, float]:
    """One aggregation as an executable of `(stack, state)`, the rule's state at its start, and the seconds of compiling."""
    began = time.perf_counter()
    executable = lowered(rule, stack, f).compile()
    return executable, start(rule, stack), time.perf_counter() - began


def seconds_of(rule: aggregators.Aggregator, stack: Any, f: int) -> float:
    """Seconds of one aggregation, compiled."""
    executable, state, _ = compiled(rule, stack, f)
    return best_of(executable, stack, state)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument(
        "--model", choices=("cnn", "resnet18"), default="cnn", help="whose updates; MNIST's, CIFAR-10's"
    )
    parser.add_argument("--rules", default=",".join(timed()), help="ByzFL's are timed beside all of them only")
    given = parser.parse_args()
    if unknown := set(given.rules.split(",")) - set(aggregators.names()):
        parser.error(f"--rules: {', '.join(sorted(unknown))} not known: allowed are {', '.join(aggregators.names())}")
    with jax.set_mesh(make_mesh()):
        tables(given.clients, given.model, given.rules.split(","))


def tables(n: int, model: str, names: list[str]) -> None:
    """Both tables, for n clients that share the devices."""
    f, stack = n // 5, updates(n, model)
    official = OFFICIAL if model == "cnn" else OFFICIAL_RESNET
    compare("rule", names, lambda name: seconds_of(built_in(name), stack, f), official, stack)
    peers = byzfl_rules(f)
    if peers and names == timed():
        leaves = [np.asarray(x).reshape(n, -1) for x in jax.tree.leaves(stack)]
        import torch

        flat = torch.from_numpy(np.concatenate(leaves, axis=1))
        print("\n| rule | lasa_jax, s | ByzFL, s | times faster |\n| --- | --- | --- | --- |")
        for name, (theirs, ours) in peers.items():
            mine = seconds_of(ours(), stack, f)
            try:
                other = best_of(lambda rule=theirs: rule(flat), repeat=1)
                cells = f"{other:.3f} | {other / mine:.1f}"
            except RuntimeError:  # of PyTorch's allocator: n copies of the stack
                cells = "out of memory | -"
            print(f"| {name} | {mine:.3f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
