"""As `digits.py`, on MNIST with the paper's settings: 6,000 clients, 100 a round. Days on a CPU, hours on a GPU.

lasa-jax benchmark mnist --workdir=DIR
"""

from lasa_jax.config import paper
from lasa_jax.configs.benchmarks.digits import FEW_CLIENTS, edition_of
from lasa_jax.grid import Grid
from lasa_jax.leaderboard.declare import Benchmark, grid_of


def get_benchmark(edition: str) -> Benchmark:
    """An edition: `all`, `quick`, `adaptive` or `tuned`."""
    return edition_of("mnist", paper("mnist"), edition, FEW_CLIENTS)


def get_grid(edition: str) -> Grid:
    """The runs of an edition as a sweep; not of `tuned`, which takes two."""
    return grid_of(get_benchmark(edition))
