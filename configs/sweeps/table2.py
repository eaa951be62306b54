"""Table 2 of the supplement: LASA at seven sparsity levels under three attacks, as in the official code.

    python -m launch.sweep --config=configs/sweeps/table2.py:digits --workdir=DIR         # or mnist, femnist, ...

63 runs, 3 programs.
"""

from lasa_jax.config import paper
from lasa_jax.grid import Grid


def get_grid(dataset: str) -> Grid:
    """The grid for a dataset."""
    base = paper(dataset)
    base.fidelity = "official"
    return Grid(
        base,
        axes=[
            {"attack.name": ["byzmean", "min_max", "noise"]},
            {"aggregator.lasa.sparsity_level": [0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99]},
            {"seed": [1, 2, 3]},
        ],
    )
