"""Table 1 of the supplement: nine rules against no attack and eight attacks, as in the official code, at a ratio of 25 %.

    python -m launch.sweep --config=configs/sweeps/table1.py:digits --workdir=DIR         # or mnist, femnist, ...
    python -m launch.sweep --config=configs/sweeps/table1.py:femnist,stealthy --workdir=DIR

243 runs, 81 programs. The supplement has the stealthy Min-Sum on all datasets but MNIST, which the official code never
ran: the word `stealthy` takes it.
"""

from lasa_jax.config import read_sweep
from lasa_jax.grid import Grid

RULES = [
    *("fedavg", "trimmed_mean", "geometric_median", "multi_krum", "bulyan"),
    *("dnc", "signguard", "sparsefed", "lasa"),
]
ATTACKS = ["none", "random", "noise", "sign_flip", "tailored_trmean", "min_max", "min_sum", "lie", "byzmean"]


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: see `config.read_sweep`."""
    words = read_sweep(argument)
    return Grid(
        words.base,
        axes=[{"aggregator.name": RULES}, {"attack.name": words.attacks(*ATTACKS)}, {"seed": words.seeds}],
    )
