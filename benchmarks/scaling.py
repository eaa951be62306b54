"""How time and memory of every rule grow with clients and entries: `python -m benchmarks.scaling [--rules=lasa,median]`.

Section E of the supplement, measured: n from 10 to 400 at d = 10^6, and d from 10^5 to 3 * 10^7 at n = 15. Prints a Markdown
table of seconds with the exponents of power laws fitted to the upper half of each range (a dispatch has a cost of its own),
the temporary memory at the largest n and d as a multiple of the stack, and the seconds of compiling for 400 clients.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import best_of, machine
from benchmarks.rules import compiled, timed
from lasa_jax import aggregators
from lasa_jax.testing import built_in

CLIENTS = (10, 25, 50, 100, 200, 400)
ENTRIES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
THEORY = {  # n, d
    "bulyan": "n^2 d + n^3",
    "dnc": "n d",
    "geometric_median": "n^2 d",
    "krum": "n^2 d",
    "lasa": "n d (paper: n d log d)",
    "median": "n log^2 n d",
    "multi_krum": "n^2 d",
    "trimmed_mean": "n log^2 n d",
}


def stack(n: int, d: int) -> dict[str, jax.Array]:
    """A matrix of nine tenths of the entries and a vector of the rest."""
    key = jax.random.key(0)
    kernel = jax.jit(lambda: jax.random.normal(key, (n, d * 9 // 10 // 100, 100)))()
    return {"kernel": kernel, "bias": jnp.ones((n, d // 10)) * jnp.arange(1, n + 1)[:, None]}


def exponent(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """Of the power law fitted to the upper half."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def measured(rule: aggregators.Aggregator, n: int, d: int) -> tuple[float, float, float]:
    """Seconds of one aggregation, temporary bytes over those of the stack, and seconds of compiling."""
    updates = stack(n, d)
    executable, state, compiling = compiled(rule, updates, n // 5)
    memory = executable.memory_analysis().temp_size_in_bytes / sum(x.nbytes for x in jax.tree.leaves(updates))
    return best_of(executable, updates, state), memory, compiling


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", default=",".join(timed()))
    rules = parser.parse_args().rules.split(",")
    print(machine() + "\n")
    heads = [f"n = {n}" for n in CLIENTS] + ["n^"] + [f"d = {d:,}" for d in ENTRIES] + ["d^", "theory"]
    heads += ["memory / stack, n = 400", f"d = {ENTRIES[-1]:,}", "compiling, n = 400, s"]
    print("| rule | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|")
    for name in rules:
        rule = built_in(name)
        by_clients = [measured(rule, n, 1_000_000) for n in CLIENTS]
        by_entries = [measured(rule, 15, d) for d in ENTRIES]
        cells = []
        for sizes, found in ((CLIENTS, by_clients), (ENTRIES, by_entries)):
            seconds = [one[0] for one in found]
            cells += [*(f"{s:.3f}" for s in seconds), f"{exponent(sizes, seconds):.2f}"]
        memory = (f"{by_clients[-1][1]:.2f}", f"{by_entries[-1][1]:.2f}")
        cells += [THEORY.get(name, "n d"), *memory, f"{by_clients[-1][2]:.1f}"]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
