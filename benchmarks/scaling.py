"""How the time of every rule grows with the clients and the entries: `python -m benchmarks.scaling [--rules=lasa,median]`.

Section E of the supplement, measured: n from 10 to 200 at d = 10^6, and d from 10^5 to 10^7 at n = 25. Prints a Markdown
table of seconds with the exponents of power laws fitted to the upper half of each range: a dispatch has a cost of its own.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import machine
from benchmarks.rules import seconds_of
from lasa_jax import aggregators

CLIENTS = (10, 25, 50, 100, 200)
ENTRIES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
THEORY = {  # n, d
    "bulyan": "n^2 d + n^3",
    "dnc": "n d",
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


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", default=",".join(aggregators.names()))
    rules = parser.parse_args().rules.split(",")
    print(machine() + "\n")
    heads = [f"n = {n}" for n in CLIENTS] + ["n^"] + [f"d = {d:,}" for d in ENTRIES] + ["d^", "theory"]
    print("| rule | " + " | ".join(heads) + " |\n" + "| --- " * (len(heads) + 1) + "|")
    for name in rules:
        rule = aggregators.create(name)
        by_clients = [seconds_of(rule, stack(n, 1_000_000), n // 5) for n in CLIENTS]
        by_entries = [seconds_of(rule, stack(25, d), 5) for d in ENTRIES]
        cells = [*(f"{s:.3f}" for s in by_clients), f"{exponent(CLIENTS, by_clients):.2f}"]
        cells += [*(f"{s:.3f}" for s in by_entries), f"{exponent(ENTRIES, by_entries):.2f}", THEORY.get(name, "n d")]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
