"""Runs: in their directories with checkpoints, metrics and resume, or in memory with `simulate`."""

from lasa_jax.experiment.extending import check_extends, extend
from lasa_jax.experiment.in_directories import Stopped, finished, run, run_batch
from lasa_jax.experiment.leader import RUN_FAILURES, Ended
from lasa_jax.experiment.memory import History, simulate

__all__ = [
    "RUN_FAILURES",
    "Ended",
    "History",
    "Stopped",
    "check_extends",
    "extend",
    "finished",
    "run",
    "run_batch",
    "simulate",
]
