"""Table 3 of the supplement: LASA at seven pairs of radii under two attacks, as in the official code.

    python -m launch.sweep --config=configs/sweeps/table3.py:digits --workdir=DIR         # or mnist, femnist, ...

42 runs, 2 programs. The pairs are (direction, magnitude).
"""

from lasa_jax.config import paper
from lasa_jax.grid import Grid

PAIRS = [(1.0, 1.0), (1.0, 1.5), (1.0, 2.0), (1.0, 4.0), (1.5, 2.0), (2.0, 2.0), (3.0, 2.0)]


def get_grid(dataset: str) -> Grid:
    """The grid for a dataset."""
    base = paper(dataset)
    base.fidelity = "official"
    direction, magnitude = zip(*PAIRS, strict=True)
    return Grid(
        base,
        axes=[
            {"attack.name": ["noise", "byzmean"]},
            {"aggregator.lasa.direction_radius": direction, "aggregator.lasa.magnitude_radius": magnitude},
            {"seed": [1, 2, 3]},
        ],
    )
