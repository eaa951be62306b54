"""Federated learning on the device: local SGD of one client, one round, and blocks of rounds of many runs."""

from lasa_jax.federated.client import LocalTraining
from lasa_jax.federated.executables import Executables
from lasa_jax.federated.round import Point, Program, RoundMetrics, State, one_round
from lasa_jax.federated.simulation import Simulation, make_mesh

__all__ = [
    "Executables",
    "LocalTraining",
    "Point",
    "Program",
    "RoundMetrics",
    "Simulation",
    "State",
    "make_mesh",
    "one_round",
]
