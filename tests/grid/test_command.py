"""The sweep's command: what it refuses, threads, and kills at any moment."""

import random
import signal
import time

import pytest

from lasa_jax import grid, track
from lasa_jax.errors import InputError
from lasa_jax.launch import sweep
from tests.grid.sweeps import SWEEP_FILE, SWEEPS, command, results


def test_tensorboard_is_an_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    assert (
        sweep.main([f"--config={SWEEPS / 'table3.py'}:digits", f"--workdir={tmp_path / 'out'}", "--tensorboard"]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --tensorboard: needs the extra")
    assert not (tmp_path / "out").exists()


def test_threads_change_no_bit(tmp_path):
    """Two batches side by side, as on a CPU of two cores; in a process of one device, where that is allowed."""
    (tmp_path / "small.py").write_text(SWEEP_FILE)
    arguments = (f"--config={tmp_path / 'small.py'}:digits", "--threads=2", f"--workdir={tmp_path / 'out'}")
    process = command(*arguments)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    one = command(*arguments[:1], "--threads=1", f"--workdir={tmp_path / 'one'}")
    _, error = one.communicate(timeout=600)
    assert one.returncode == 0, error
    assert results(tmp_path / "out") == results(tmp_path / "one")


@pytest.mark.parametrize(
    ("seeds", "kills"), [([1, 2], 3), pytest.param([1, 2, 3, 4, 5, 6], 5, marks=pytest.mark.slow)], ids=["8", "24"]
)
def test_killed_and_started_again(tmp_path, seeds, kills):
    """SIGKILL at random moments: the sweep ends with every result once, and the bits of one that was left alone."""
    (tmp_path / "small.py").write_text(SWEEP_FILE.replace('"seed": [1, 2]', f'"seed": {seeds}'))
    count = 4 * len(seeds)
    arguments = (f"--config={tmp_path / 'small.py'}:digits",)
    whole = command(*arguments, f"--workdir={tmp_path / 'whole'}")
    out, error = whole.communicate(timeout=600)
    assert whole.returncode == 0, error
    assert f"results: {count} of {count}" in out
    assert "compiled programs: 2" in out
    clock = random.Random(0)
    for _ in range(kills):
        process = command(*arguments, f"--workdir={tmp_path / 'killed'}")
        time.sleep(clock.uniform(4, 14))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = command(*arguments, f"--workdir={tmp_path / 'killed'}")
    out, error = last.communicate(timeout=600)
    assert last.returncode == 0, error
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert sum(path.is_dir() for path in (tmp_path / "killed").iterdir()) == count


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch=0"], "argument --batch: '0': allowed is a whole number from 1 on"),
        (["--gpus=2"], "--gpus=2.0: is for --backend=ray, not local"),
        (["--backend=slurm", "--threads=2"], "--threads=2: is for --backend=local, not slurm"),
        (["--backend=cloud"], "argument --backend: invalid choice: 'cloud'"),
    ],
)
def test_bad_flags_are_one_line(flags, message, tmp_path, capsys):
    assert sweep.main([f"--config={SWEEPS / 'table3.py'}:digits", f"--workdir={tmp_path / 'out'}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no sweep of that name"),
        ("def get_grid(d):\n    return None", "get_grid gives NoneType, allowed is a lasa_jax.grid.Grid"),
        ("def get_grid(d):\n    return 1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1", "bad.py: has no function get_grid"),
        ("def get_grid(d):\n    return 1 / 0 if d == 'x' else int('a')", "ValueError: invalid literal"),
        (SWEEP_FILE.replace('"seed": [1, 2]', '"seed": []'), "axis seed: is empty"),
    ],
)
def test_bad_sweeps_are_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    assert sweep.main([f"--config={path}:digits", f"--workdir={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(tmp_path, capsys):
    path = tmp_path / "small.py"
    path.write_text(SWEEP_FILE)
    assert sweep.main([f"--config={path}", f"--workdir={tmp_path / 'out'}", "--dry_run"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        *(
            "points",
            "finished",
            "programs",
            "runs in a program",
            "runs in a batch",
            "memory of a program",
            "estimated time",
        )
    ]
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_known(tmp_path):
    with pytest.raises(InputError, match="dataset = 'imagenet': allowed are digits"):
        grid.load(f"{SWEEPS / 'figure1.py'}:imagenet")
