"""Table 1 of the supplement: nine rules against no attack and eight attacks, as in the official code, at a ratio of 25 %.

    python -m launch.sweep --config=configs/sweeps/table1.py:digits --workdir=DIR         # or mnist, femnist, ...

243 runs, 81 programs. The supplement uses the stealthy Min-Sum on all datasets but MNIST, which the official code never
ran: `STEALTHY` chooses.
"""

from lasa_jax.config import paper
from lasa_jax.grid import Grid

STEALTHY = False
RULES = [
    *("fedavg", "trimmed_mean", "geometric_median", "multi_krum", "bulyan"),
    *("dnc", "signguard", "sparsefed", "lasa"),
]
ATTACKS = ["none", "random", "noise", "sign_flip", "tailored_trmean", "min_max", "min_sum", "lie", "byzmean"]


def get_grid(dataset: str) -> Grid:
    """The grid for a dataset."""
    base = paper(dataset)
    base.fidelity = "official"
    stealthy = STEALTHY and dataset != "mnist"
    attacks = ["min_sum_stealthy" if stealthy and name == "min_sum" else name for name in ATTACKS]
    return Grid(base, axes=[{"aggregator.name": RULES}, {"attack.name": attacks}, {"seed": [1, 2, 3]}])
