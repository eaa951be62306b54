"""LASA with one of its parts removed at a time, and its filter by layer, by model and by coordinate.

    python -m launch.sweep --config=configs/sweeps/ablation.py:digits --workdir=DIR       # or mnist, femnist, ...

54 runs, 9 programs: three attacks, three seeds, and six variants of which the numeric ones share a program.
"""

import math
from typing import Any

from lasa_jax.config import read_sweep
from lasa_jax.grid import Grid

VARIANTS: list[dict[str, Any]] = [
    {},
    {"aggregator.lasa.sparsity_level": 0.0},
    {"aggregator.lasa.direction_radius": math.inf},  # magnitude only
    {"aggregator.lasa.magnitude_radius": math.inf},  # direction only
    {"aggregator.lasa.granularity": "model"},
    {"aggregator.lasa.granularity": "coordinate"},
]


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: see `config.read_sweep`."""
    words = read_sweep(argument)
    points = [
        {**variant, "attack.name": attack, "seed": seed}
        for variant in VARIANTS
        for attack in words.attacks("byzmean", "min_max", "noise")
        for seed in words.seeds
    ]
    return Grid(words.base, points=points)
