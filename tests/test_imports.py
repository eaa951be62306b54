"""What an import brings in: nothing expensive before it is needed."""

import subprocess
import sys

import pytest

DRAWING_AND_DATA = ("matplotlib", "orbax", "pandas", "pyarrow", "scipy", "sklearn", "tensorflow", "tensorflow_datasets")
TRAINING = ("flax", "ml_collections", "optax")


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("lasa_jax", ("jax", "numpy", *TRAINING, *DRAWING_AND_DATA)),
        ("lasa_jax.aggregators", (*TRAINING, *DRAWING_AND_DATA)),
        ("lasa_jax.attacks", (*TRAINING, *DRAWING_AND_DATA)),
        ("lasa_jax.testing", (*TRAINING, *DRAWING_AND_DATA)),
        ("lasa_jax.main", DRAWING_AND_DATA),
        ("lasa_jax.report.export, lasa_jax.report.status", (*TRAINING, *DRAWING_AND_DATA)),
    ],
)
def test_brings_in_nothing_expensive(module, unwanted):
    program = f"import sys, {module}; print(*sorted(set({unwanted}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "\n"
