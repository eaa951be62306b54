"""Figure 1 of the supplement: accuracy against the attack ratio of clients that are not IID, as in the official code.

    python -m launch.sweep --config=configs/sweeps/figure1.py:digits --workdir=DIR        # or mnist, femnist, ...
    python -m launch.sweep --config=configs/sweeps/figure1.py:cifar10,alpha=0.1 --workdir=DIR
    python -m launch.sweep --config=configs/sweeps/figure1.py:digits,iid --workdir=DIR

DnC, SignGuard, SparseFed and LASA under five attacks, ratios 5 to 30 %, seeds 1 to 3, and plain averaging without attack as
the baseline: 363 runs, 21 programs. The text names Noise, TailoredTrmean, Min-Max and ByzMean; the fifth attack of the
picture, Lie, is our choice. The partition is Dirichlet(0.5), the supplement's default, or the natural one of FEMNIST and
Shakespeare.
"""

from lasa_jax.config import read_sweep
from lasa_jax.grid import Grid


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: see `config.read_sweep`."""
    words = read_sweep(argument, alpha=0.5)
    return Grid(
        words.base,
        axes=[
            {"aggregator.name": ["dnc", "signguard", "sparsefed", "lasa"]},
            {"attack.name": words.attacks("noise", "tailored_trmean", "min_max", "lie", "byzmean")},
            {"attack_ratio": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]},
            {"seed": words.seeds},
        ],
        points=[{"aggregator.name": "fedavg", "attack.name": "none", "seed": seed} for seed in words.seeds],
    )
