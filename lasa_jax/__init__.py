"""Byzantine-robust federated learning, simulated whole on the accelerator.

    import lasa_jax
    from lasa_jax import aggregators, attacks

    history = lasa_jax.simulate("digits", aggregator=aggregators.lasa(), attack=attacks.byzmean(), rounds=20)

Subpackages are loaded when they are first used, so that `aggregators` and `attacks` cost no more than JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lasa_jax.experiment import simulate

_SUBPACKAGES = (
    *("aggregators", "attacks", "build", "config", "data", "errors", "experiment", "federated", "grid", "inspection"),
    *("methods", "models", "ops", "report", "testing", "workdir"),
)

__version__ = "0.2.0"

__all__ = ["__version__", "simulate", *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name == "simulate":
        return importlib.import_module("lasa_jax.experiment").simulate
    if name in _SUBPACKAGES:
        return importlib.import_module(f"lasa_jax.{name}")
    raise AttributeError(f"module 'lasa_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
