"""Run directories to figures."""

from lasa_jax.report.curves import accuracy_curve

__all__ = ["accuracy_curve"]
