"""Federated learning on the device: local SGD of one client, one round, and blocks of rounds of many runs."""

from lasa_jax.federated.client import LocalTraining
from lasa_jax.federated.contract import check_aggregator, check_attack
from lasa_jax.federated.evaluation import Evaluation, Measures
from lasa_jax.federated.executables import Executables
from lasa_jax.federated.memory import DoesNotFit
from lasa_jax.federated.round import one_round
from lasa_jax.federated.simulation import BlockMetrics, Simulation, is_evaluated, make_mesh
from lasa_jax.federated.types import Numbers, Point, Program, RoundMetrics, State

__all__ = [
    "BlockMetrics",
    "DoesNotFit",
    "Evaluation",
    "Executables",
    "LocalTraining",
    "Measures",
    "Numbers",
    "Point",
    "Program",
    "RoundMetrics",
    "Simulation",
    "State",
    "check_aggregator",
    "check_attack",
    "is_evaluated",
    "make_mesh",
    "one_round",
]
