"""One run over two processes on this machine, each with four devices, against one process with eight."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lasa_jax import main
from lasa_jax.errors import InputError
from lasa_jax.experiment import leader

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "rounds=4",
    "num_clients=20",
    "clients_per_round=10",
    "client.epochs=1",
    "block_rounds=2",
    "checkpoint_every=2",
)


def start(path: Path, devices: int, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    arguments = ["--config=configs/digits.py", *(f"--config.{setting}" for setting in SETTINGS), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "lasa_jax.main", *arguments, f"--workdir={path}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two(path: Path) -> list[str]:
    """Runs both processes to their end, and returns what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [start(path, 4, f"--distributed=127.0.0.1:{port},2,{index}") for index in range(2)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], outputs
    return outputs


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_are_one_with_as_many_devices(tmp_path):
    alone = start(tmp_path / "one", 8)
    output, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, output
    outputs = two(tmp_path / "two")
    assert "finished after 4 rounds" in outputs[0]
    said = [
        line for line in outputs[1].splitlines() if not re.fullmatch(r"\[Gloo\].*|\s*\d?", line)
    ]  # some of it in pieces
    assert not said, "the second process owns neither the directory nor the terminal"
    for ours, theirs in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        for field in ("malicious", "benign", "malicious_filtered", "benign_filtered"):
            assert ours[field] == theirs[field]
        np.testing.assert_allclose(ours["train_loss"], theirs["train_loss"], rtol=1e-4)
        np.testing.assert_allclose(ours["update_norm"], theirs["update_norm"], rtol=1e-3)
    # Interrupted before its last checkpoint, both go on together; then both find it finished.
    whole = json.loads((tmp_path / "two" / "summary.json").read_text())
    (tmp_path / "two" / "summary.json").unlink()
    (tmp_path / "two" / "checkpoints" / "round_000004.json").unlink()
    assert "going on after round 2" in two(tmp_path / "two")[0]
    again = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert again["parameters_sha256"] == whole["parameters_sha256"]


@pytest.mark.parametrize("value", ["two", "host:1,2,2", "host,2,0"])
def test_bad_addresses_are_one_line(value):
    with pytest.raises(InputError, match="allowed are 'auto' and ADDRESS:PORT,PROCESSES,ID"):
        main.join(value)


@pytest.mark.parametrize(("mine", "failures"), [({0: InputError("no data here")}, 1), ({}, 1), ({}, 0)])
def test_if_one_process_cannot_begin_none_does(monkeypatch, mine, failures):
    monkeypatch.setattr(leader.jax, "process_count", lambda: 2)
    monkeypatch.setattr(leader, "from_leader", lambda told: {})
    gathered = np.array([True] * failures + [False])
    monkeypatch.setattr(leader.multihost_utils, "process_allgather", lambda failed: gathered)
    agreed = leader.agreed(mine, 1)
    assert agreed.keys() == ({0} if failures else set())
    if failures:
        elsewhere = "another process of this run could not begin: see what it says"
        assert str(agreed[0]) == ("no data here" if mine else elsewhere)
