"""A small sweep of the digits, by hand and as a file, and how it is run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax

from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.federated import Executables

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "configs" / "sweeps"
SMALL = [{"aggregator.name": ["fedavg", "median"]}, {"attack_ratio": [0.1, 0.3]}, {"seed": [1, 2]}]
SWEEP_FILE = """
from lasa_jax.config import paper
from lasa_jax.grid import Grid


def get_grid(dataset):
    base = paper(dataset)
    light = {"rounds": 4, "num_clients": 20, "clients_per_round": 6, "client.epochs": 1, "block_rounds": 2}
    base.update_from_flattened_dict({**light, "checkpoint_every": 2, "attack.name": "lie"})
    axes = [{"aggregator.name": ["fedavg", "median"]}, {"attack_ratio": [0.1, 0.3]}, {"seed": [1, 2]}]
    return Grid(base, axes)
"""


def base(**settings):
    """A light run of the digits."""
    config = configs.paper("digits")
    light = {"rounds": 4, "num_clients": 20, "clients_per_round": 6, "client.epochs": 1, "block_rounds": 2}
    config.update_from_flattened_dict({**light, "checkpoint_every": 2, "attack.name": "lie", **settings})
    return config


def run(points, path, **options) -> tuple[list, Executables]:
    shared = Executables()
    return grid.run(points, path, executables=shared, log=lambda text: None, **options), shared


def results(path: Path) -> dict[str, str]:
    """The hash of the final model of every finished run."""
    return {file.parent.name: json.loads(file.read_text())["parameters_sha256"] for file in path.glob("*/summary.json")}


def command(*arguments: str, **options) -> subprocess.Popen:
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "launch.sweep", *arguments],
        **{
            "cwd": ROOT,
            "env": environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        },
    )
