"""Figure 1 of the supplement: accuracy against the attack ratio, as in the official code.

    python -m launch.sweep --config=configs/sweeps/figure1.py:digits --workdir=DIR        # or mnist, femnist, ...

DnC, SignGuard, SparseFed and LASA under five attacks, ratios 5 to 30 %, seeds 1 to 3, and plain averaging without attack as
the baseline: 363 runs, 21 programs. The text names Noise, TailoredTrmean, Min-Max and ByzMean; the fifth attack of the
picture, Lie, is our choice.
"""

from lasa_jax.config import paper
from lasa_jax.grid import Grid


def get_grid(dataset: str) -> Grid:
    """The grid for a dataset."""
    base = paper(dataset)
    base.fidelity = "official"
    seeds = [1, 2, 3]
    return Grid(
        base,
        axes=[
            {"aggregator.name": ["dnc", "signguard", "sparsefed", "lasa"]},
            {"attack.name": ["noise", "tailored_trmean", "min_max", "lie", "byzmean"]},
            {"attack_ratio": [0.05, 0.1, 0.15, 0.2, 0.25, 0.3]},
            {"seed": seeds},
        ],
        points=[{"aggregator.name": "fedavg", "attack.name": "none", "seed": seed} for seed in seeds],
    )
