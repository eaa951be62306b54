"""A benchmark that is killed goes on, through the command."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from lasa_jax.leaderboard import __main__ as command
from tests.leaderboard.test_leaderboard import DECLARED

ROOT = Path(__file__).parents[2]


def test_killed_and_started_again(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(DECLARED.replace('("fedavg", "norm_clipped_mean")', '("fedavg",)'))
    monkeypatch.chdir(tmp_path)
    arguments = ["mine.py", "--workdir=runs", "--output=out", "--threads=1"]
    program = [sys.executable, "-m", "lasa_jax", "benchmark", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment) as killed:
        assert any(line.startswith("2/4 ") for line in killed.stderr)
        killed.send_signal(signal.SIGKILL)
    assert not Path("out/mine.md").exists()
    assert command.main(arguments) == 0
    shown = capsys.readouterr()
    assert int(next(line for line in shown.out.splitlines() if line.startswith("finished:")).split()[1]) >= 2
    assert "4/4 " in shown.err
    text = Path("out/mine.md").read_text()
    assert "4 runs of lasa_jax" in text
    assert {path.name for path in Path("out/mine").iterdir()} == {"fedavg.csv"}
    assert command.main(arguments) == 0  # nothing is left to run
    assert Path("out/mine.md").read_text() == text
