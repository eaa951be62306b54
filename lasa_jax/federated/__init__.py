"""Federated learning on the device: local SGD of one client, one round, and blocks of rounds of many runs."""

from lasa_jax.federated.client import LocalTraining
from lasa_jax.federated.executables import Executables
from lasa_jax.federated.round import one_round
from lasa_jax.federated.simulation import BlockMetrics, Simulation, is_evaluated, make_mesh
from lasa_jax.federated.types import Numbers, Point, Program, RoundMetrics, State

__all__ = [
    "BlockMetrics",
    "Executables",
    "LocalTraining",
    "Numbers",
    "Point",
    "Program",
    "RoundMetrics",
    "Simulation",
    "State",
    "is_evaluated",
    "make_mesh",
    "one_round",
]
