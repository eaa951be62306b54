"""A declared grid of runs: its points, which of them share a program, what they will cost, and running them.

    declared = Grid(base, [{"aggregator.name": ["lasa", "fedavg"]}, {"attack_ratio": [0.1, 0.2]}, {"seed": [1, 2, 3]}])
    outcomes = run(declared, "sweeps/ratios")

has 12 points and 2 programs: rules are compiled in, ratios and seeds are numbers. Points of a program go through its
executable in batches.
"""

from lasa_jax.grid.declare import Grid, GridError, Point, extended, load, points, programs, resolve
from lasa_jax.grid.planning import Plan, batch_sizes, plan
from lasa_jax.grid.recording import begin
from lasa_jax.grid.running import Batch, Outcome, Queue, batches, finished, run, run_together

__all__ = [
    "Batch",
    "Grid",
    "GridError",
    "Outcome",
    "Plan",
    "Point",
    "Queue",
    "batch_sizes",
    "batches",
    "begin",
    "extended",
    "finished",
    "load",
    "plan",
    "points",
    "programs",
    "resolve",
    "run",
    "run_together",
]
