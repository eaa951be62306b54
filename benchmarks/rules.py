"""Times rules on a stack of updates: `python -m benchmarks.rules [--clients=100] [--model=cnn] [--rules=lasa,median]`.

Prints a Markdown table: seconds; and readings of the stack that would take as long, measured in the same run. The column of
the official code is not measured here: it is the recorded ratio of its seconds to an average of the stack, both with two
threads of PyTorch 2.13. Where the `[bench]` extra is installed, a second table has what ByzFL has, on PyTorch's CPU build
with the same numbers, in turn with ours, and how much memory ours takes beside the stack; `--rules=` alone prints only that
one. Rules of subsets are compared at 15 clients. Clients share all devices, which on a CPU is one with all cores, or
`JAX_NUM_CPU_DEVICES` of them.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import best_of, compare, machine, updates
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


FEW, FEW_MALICIOUS = 15, 3  # 455 subsets
_ENOUGH = 30.0  # seconds of one of ByzFL's rules, after which it is not called again

Pairs = dict[str, tuple[Callable[..., Any], Callable[[], Any]]]


def byzfl_rules(f: int, subsets: bool = False) -> Pairs:
    """By name of ours: ByzFL's, and ours with the same numbers; empty if ByzFL is not installed.

    Args:
      f: what rules are told.
      subsets: those that walk over subsets of the clients, in place of the others.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries that it imports
            import byzfl
    except ImportError:
        return {}
    if subsets:
        return {
            "mda": (byzfl.MDA(f=f), lambda: aggregators.mda(f)),
            "smea": (byzfl.SMEA(f=f), lambda: aggregators.smea(f)),
        }
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
        "meamed": (byzfl.Meamed(f=f), lambda: aggregators.meamed(f)),
        "monna": (byzfl.MoNNA(f=f, idx=0), lambda: aggregators.monna(trusted=0, assumed_malicious=f)),
        "caf": (byzfl.CAF(f=f), lambda: aggregators.caf(f)),
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
        "adaptive clipping (arc), average": (  # theirs writes into what it is given
            after(lambda x: byzfl.ARC(f=f)(x.clone()), byzfl.Average()),
            lambda: aggregators.chain(aggregators.arc(f), aggregators.fedavg()),
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
    parser.add_argument("--rules", default=",".join(timed()), help="NAME,NAME; ByzFL's beside all of them, and alone")
    parser.add_argument(
        "--cpu_seconds",
        action="store_true",
        help="ByzFL's table in CPU seconds of all threads, for a machine that others use too",
    )
    given = parser.parse_args()
    names = [name for name in given.rules.split(",") if name]
    if unknown := set(names) - set(aggregators.names()):
        parser.error(f"--rules: {', '.join(sorted(unknown))} not known: allowed are {', '.join(aggregators.names())}")
    with jax.set_mesh(make_mesh()):
        tables(given.clients, given.model, names, time.process_time if given.cpu_seconds else time.perf_counter)


def tables(n: int, model: str, names: list[str], clock: Callable[[], float]) -> None:
    """The tables of n clients that share the devices: of rules, and of ByzFL beside all of them or alone."""
    f, stack = n // 5, updates(n, model)
    if names:
        official = OFFICIAL if model == "cnn" else OFFICIAL_RESNET
        compare("rule", names, lambda name: seconds_of(built_in(name), stack, f), official, stack)
    else:
        print(machine())
    if names in ([], timed()):
        beside_byzfl(byzfl_rules(f), stack, f, clock)
        beside_byzfl(byzfl_rules(FEW_MALICIOUS, subsets=True), updates(FEW, model), FEW_MALICIOUS, clock)


def _seconds(clock: Callable[[], float], fn: Callable[..., Any], *arguments: Any) -> float:
    began = clock()
    jax.block_until_ready(fn(*arguments))
    return clock() - began


def beside_byzfl(pairs: Pairs, stack: Any, f: int, clock: Callable[[], float]) -> None:
    """Prints the table of one stack, if ByzFL is installed: ours and theirs in turn, the fastest of up to three each."""
    if not pairs:
        return
    import torch

    n = len(jax.tree.leaves(stack)[0])
    flat = torch.from_numpy(np.concatenate([np.asarray(x).reshape(n, -1) for x in jax.tree.leaves(stack)], axis=1))
    size = sum(x.nbytes for x in jax.tree.leaves(stack))
    print(f"\n{n} updates of {flat.shape[1]:,} entries, {size / 1e6:.0f} MB; PyTorch {torch.__version__}\n")
    unit = "CPU s" if clock is time.process_time else "s"
    print(f"| rule | lasa_jax, {unit} | ByzFL, {unit} | times faster | our extra memory, in multiples of the stack |")
    print("| --- | --- | --- | --- | --- |")
    for name, (theirs, ours) in pairs.items():
        executable, state, _ = compiled(ours(), stack, f)
        told = executable.memory_analysis()
        beside = "-" if told is None else f"{told.temp_size_in_bytes / size:.2f}"
        jax.block_until_ready(executable(stack, state))
        mine, other = [_seconds(clock, executable, stack, state)], []
        try:
            while len(other) < 3 and sum(other) < _ENOUGH:
                other.append(_seconds(clock, theirs, flat))
                mine.append(_seconds(clock, executable, stack, state))
        except RuntimeError as error:  # of PyTorch's allocator: n copies of the stack
            if "memory" not in str(error):
                raise
        cells = f"{min(other):.3f} | {min(other) / min(mine):.1f}" if other else "out of memory | -"
        print(f"| {name} | {min(mine):.3f} | {cells} | {beside} |", flush=True)


if __name__ == "__main__":
    main()
