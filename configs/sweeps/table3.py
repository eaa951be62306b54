"""Table 3 of the supplement: LASA at seven pairs of radii under two attacks, as in the official code.

    python -m launch.sweep --config=configs/sweeps/table3.py:digits --workdir=DIR         # or mnist, femnist, ...

42 runs, 2 programs. The pairs are (direction, magnitude).
"""

from lasa_jax.config import read_sweep
from lasa_jax.grid import Grid

PAIRS = [(1.0, 1.0), (1.0, 1.5), (1.0, 2.0), (1.0, 4.0), (1.5, 2.0), (2.0, 2.0), (3.0, 2.0)]


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: see `config.read_sweep`."""
    words = read_sweep(argument)
    direction, magnitude = zip(*PAIRS, strict=True)
    return Grid(
        words.base,
        axes=[
            {"attack.name": words.attacks("noise", "byzmean")},
            {"aggregator.lasa.direction_radius": direction, "aggregator.lasa.magnitude_radius": magnitude},
            {"seed": words.seeds},
        ],
    )
