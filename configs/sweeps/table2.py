"""Table 2 of the supplement: LASA at seven sparsity levels under three attacks, as in the official code.

    python -m launch.sweep --config=configs/sweeps/table2.py:digits --workdir=DIR         # or mnist, femnist, ...

63 runs, 3 programs.
"""

from lasa_jax.config import read_sweep
from lasa_jax.grid import Grid


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: see `config.read_sweep`."""
    words = read_sweep(argument)
    return Grid(
        words.base,
        axes=[
            {"attack.name": words.attacks("byzmean", "min_max", "noise")},
            {"aggregator.lasa.sparsity_level": [0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99]},
            {"seed": words.seeds},
        ],
    )
