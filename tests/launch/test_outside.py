"""A package outside of this repository brings a rule, a step before it, an attack, a dataset and models.

Each trains from the command line, as an axis of a sweep here, on a Ray cluster and through submitit, goes on after SIGKILL,
and appears in reports and inspection.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lasa_jax import grid
from lasa_jax.launch import slurm

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's and submitit's own, which fork
ROOT = Path(__file__).parents[2]
FILES = {
    "stranger/__init__.py": "",
    "stranger/robust.py": """
        import jax
        import jax.numpy as jnp
        from lasa_jax import ops
        from lasa_jax.aggregators.base import Aggregator, Diagnostics, Rows, Scalar, equal_weights, stateless
        from lasa_jax.attacks.base import changed_row

        def gate(factor: Scalar = 2.0) -> Aggregator:
            def aggregate(updates, state, *, key, num_malicious, present=None):
                rows = Rows.of(updates, present)
                norms = rows.each(ops.tree_norm)
                kept = rows.present & (norms <= factor * ops.masked_median(norms, rows.present))
                weight = equal_weights(rows, kept)
                return rows.weighted_sum(weight), state, Diagnostics(weight)
            return Aggregator(stateless, aggregate)

        def shrink(by: Scalar = 0.9):
            def step(rows, *, key, num_malicious):
                numbers = jnp.full(rows.present.shape, by)
                return rows.mapped(lambda row, number: jax.tree.map(lambda x: x * number, row), numbers)
            return step

        def turn(factor: Scalar = 1.0):
            return changed_row(lambda row, key: jax.tree.map(lambda x: -factor * x, row))
    """,
    "stranger/sets.py": """
        from sklearn.datasets import load_breast_cancer
        from sklearn.model_selection import train_test_split

        def tumours():
            inputs, labels = load_breast_cancer(return_X_y=True)
            train_x, test_x, train_y, test_y = train_test_split(inputs, labels, random_state=0)
            return {"train": (train_x, train_y), "test": (test_x, test_y)}
    """,
    "stranger/nets.py": """
        from flax import linen as nn
        from flax import nnx

        class Linen(nn.Module):
            num_classes: int

            @nn.compact
            def __call__(self, x):
                return nn.Dense(self.num_classes)(nn.relu(nn.Dense(16)(x)))

        class NNX(nnx.Module):
            def __init__(self, num_classes, input_shape, rngs):
                self.first = nnx.Linear(input_shape[0], 16, rngs=rngs)
                self.last = nnx.Linear(16, num_classes, rngs=rngs)

            def __call__(self, x):
                return self.last(nnx.relu(self.first(x)))
    """,
    "my_sweep.py": """
        from lasa_jax.config import default
        from lasa_jax.grid import Grid

        def get_grid(dataset):
            base = default()
            base.dataset, base.attack.name = "stranger.sets:tumours", "stranger.robust:turn"
            base.rounds, base.num_clients, base.clients_per_round, base.client.epochs = 3, 10, 5, 1
            base.preaggregators.names = "stranger.robust:shrink"
            models = ["stranger.nets:Linen", "stranger.nets:NNX"]
            return Grid(base, [{"model": models}, {"aggregator.name": ["stranger.robust:gate"]}, {"seed": [1, 2]}])
    """,
}
SMALL = ("rounds=3", "num_clients=10", "clients_per_round=5", "client.epochs=1", "block_rounds=1")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The folder in which a stranger works."""
    folder = tmp_path_factory.mktemp("world")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))
    return folder


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}


def lasa_jax(world: Path, *arguments: str) -> subprocess.CompletedProcess:
    """The `lasa-jax` command, in the stranger's folder."""
    command = [sys.executable, "-m", "lasa_jax", *arguments]
    return subprocess.run(command, cwd=world, env=environment(), capture_output=True, text=True, timeout=300)


def settings(*given: str) -> list[str]:
    return [f"--config.{setting}" for setting in (*SMALL, *given)]


BROUGHT = {
    "rule": ("aggregator.name=stranger.robust:gate", "aggregator.gate.factor=1.5"),
    "preaggregator": ("preaggregators.names=clip_to_norm,stranger.robust:shrink", "preaggregators.shrink.by=0.5"),
    "attack": ("attack.name=stranger.robust:turn", "attack.turn.factor=2"),
    "dataset": ("dataset=stranger.sets:tumours", "model=mlp"),
    "linen": ("dataset=stranger.sets:tumours", "model=stranger.nets:Linen"),
    "nnx": ("dataset=stranger.sets:tumours", "model=stranger.nets:NNX"),
}


@pytest.mark.parametrize("what", BROUGHT)
def test_each_trains_from_the_command_line(world, what):
    done = lasa_jax(world, "run", "digits", *settings(*BROUGHT[what]), f"--workdir=runs/{what}")
    assert done.returncode == 0, done.stderr
    paths = [name for setting in BROUGHT[what] for name in setting.partition("=")[2].split(",") if ":" in name]
    for path in paths:
        assert f"using {path} from " in done.stderr
    stored = json.loads((world / "runs" / what / "config.json").read_text())
    assert len(stored.get("sources", {})) == len(paths)


def test_report_shows_them_and_imports_nothing(world):
    done = lasa_jax(world, "run", "digits", *settings(*BROUGHT["rule"], "attack.name=lie"), "--workdir=shown/lie")
    assert done.returncode == 0, done.stderr
    (world / "broken").mkdir(exist_ok=True)
    elsewhere = subprocess.run(
        [sys.executable, "-m", "lasa_jax", "report", str(world / "shown")],
        cwd=world / "broken",  # where there is no such package
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert "stranger.robust.gate" in elsewhere.stdout


def test_inspection_plays_a_round_of_them(world):
    given = (*BROUGHT["rule"], "attack.name=stranger.robust:turn", "record_filtering=true")
    done = lasa_jax(world, "run", "digits", *settings(*given), "--workdir=runs/inspected")
    assert done.returncode == 0, done.stderr
    done = lasa_jax(world, "inspect", "round", "runs/inspected", "2")
    assert done.returncode == 0, done.stderr
    assert "as in the run" in done.stderr
    assert "using stranger.robust:gate from " in done.stderr
    done = lasa_jax(world, "inspect", "filtering", "runs/inspected")
    assert done.returncode == 0, done.stderr


def test_a_killed_run_goes_on_and_ends_alike(world):
    arguments = ("run", "digits", *settings(*BROUGHT["rule"], *BROUGHT["attack"], "checkpoint_every=1", "rounds=40"))
    process = subprocess.Popen(
        [sys.executable, "-m", "lasa_jax", *arguments, "--workdir=runs/killed"],
        cwd=world,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoints = world / "runs" / "killed" / "checkpoints"
    deadline = time.monotonic() + 200
    while not list(checkpoints.glob("*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (world / "runs" / "killed" / "summary.json").exists()
    again = lasa_jax(world, *arguments, "--workdir=runs/killed")
    assert again.returncode == 0, again.stderr
    assert "going on after round" in again.stdout
    whole = lasa_jax(world, *arguments, "--workdir=runs/whole")
    assert whole.returncode == 0, whole.stderr
    ended, wanted = (
        json.loads((world / "runs" / name / "summary.json").read_text())["parameters_sha256"]
        for name in ("killed", "whole")
    )
    assert ended == wanted


def test_an_edited_rule_is_refused_by_the_old_directory(world):
    settings_of_rule = settings(*BROUGHT["rule"])
    assert lasa_jax(world, "run", "digits", *settings_of_rule, "--workdir=runs/edited").returncode == 0
    file = world / "stranger" / "robust.py"
    text = file.read_text()
    try:
        file.write_text(text + "\n# edited\n")
        done = lasa_jax(world, "run", "digits", *settings_of_rule, "--workdir=runs/edited")
    finally:
        file.write_text(text)
    assert done.returncode == 2
    error = done.stderr.strip().splitlines()[-1]
    assert "holds another run, config.sources.stranger/robust:gate is" in error


def test_an_axis_of_a_sweep_here(world):
    done = lasa_jax(world, "sweep", "my_sweep.py", "--workdir=sweeps/here")
    assert done.returncode == 0, done.stderr
    assert "results: 4 of 4" in done.stdout
    assert "using stranger.robust:gate from " in done.stderr
    (world / "broken").mkdir(exist_ok=True)  # where there is no such package
    done = lasa_jax(world / "broken", "status", "../sweeps/here")
    assert done.returncode == 0, done.stderr
    assert "finished: 4" in done.stdout
    done = lasa_jax(world / "broken", "export", "../sweeps/here", "--out=runs.csv")
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader((world / "broken" / "runs.csv").open()))
    assert [row["aggregator.name"] for row in rows] == ["stranger.robust:gate"] * 4
    assert [row["aggregator.gate.factor"] for row in rows] == ["2.0"] * 4
    assert [row["preaggregators.shrink.by"] for row in rows] == ["0.9"] * 4


def test_a_sweep_on_ray(world):
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="pip install 'lasa_jax[cluster]'")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        address = f"--address={cluster.address}"
        arguments = ("sweep", "my_sweep.py", "--workdir=sweeps/ray", "--backend=ray", address)
        done = lasa_jax(world, *arguments)
        longer = lasa_jax(world, *arguments, "--extend=4")
    finally:
        cluster.shutdown()
    for command in (done, longer):
        assert command.returncode == 0, command.stderr
        assert "results: 4 of 4" in command.stdout
    lines = [path.read_text() for path in (world / "sweeps" / "ray").glob("*/metrics.jsonl")]
    old, new = ([text for text in lines if text.count("\n") == rounds] for rounds in (3, 4))
    assert (len(old), len(new)) == (4, 4)
    assert all(
        any(longer.startswith(text) for longer in new) for text in old
    )  # with the same times: not computed again


def test_a_sweep_through_submitit(world, monkeypatch):
    pytest.importorskip("submitit", reason="pip install 'lasa_jax[cluster]'")
    monkeypatch.chdir(world)
    sweep = f"{world / 'my_sweep.py'}:digits"
    path = list(sys.path)
    try:
        points = grid.points(grid.load(sweep))
        jobs = slurm.submit(
            sweep, points, world / "sweeps" / "slurm", jobs=2, batch=None, parameters="timeout_min=10", cluster="local"
        )
        assert [error for job in jobs for error in job.result().values()] == [None] * 4
    finally:
        sys.path[:] = path
        for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
            del sys.modules[name]
