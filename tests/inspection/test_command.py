"""The command line of inspection. `filtering` and `round`, which need a run, are in test_recorded and test_replay."""

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lasa_jax import aggregators
from lasa_jax.inspection import bound, coefficient, rounds
from lasa_jax.inspection.__main__ import main
from tests.inspection.made_rounds import F, sgd_round

ROOT = Path(__file__).parents[2]


def test_robustness(tmp_path, capsys):
    saved, nu, zeta = sgd_round(2, "shifted")
    rounds.save_round(tmp_path / "round.npz", saved)
    numbers = [f"--noise={nu}", f"--divergence={zeta}", "--magnitude_radius=2", "--direction_radius=2"]
    assert main(["robustness", str(tmp_path / "round.npz"), *numbers]) == 0
    shown = capsys.readouterr().out
    assert "as the proof assumes" in shown
    assert "without momentum and clip" in shown
    table = pd.read_csv(tmp_path / "report" / "robustness.csv")
    alone = bound.measure(saved, noise=nu, divergence=zeta, magnitude_radius=2, direction_radius=2)
    row = table[table.sparsity_level == 0.3].iloc[0]
    assert row.bound == pytest.approx(alone.bound, rel=1e-5)
    printed = [[cell.strip() for cell in line.split("│")[1:3]] for line in shown.splitlines() if "│" in line]
    assert ["0.3", f"{alone.squared_error:.3g}"] in printed
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        f"robustness.{kind}" for kind in ("csv", "md", "png", "svg", "tex")
    }
    rounds.save_round(tmp_path / "known.npz", saved._replace(noise=nu, divergence=zeta))
    radii = ["--magnitude_radius=2", "--direction_radius=2"]
    assert main(["robustness", str(tmp_path / "known.npz"), *radii, "--rules=median, lasa"]) == 0
    again = capsys.readouterr().out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "report" / "robustness.csv"), table)
    written = (tmp_path / "report" / "robustness.md").read_text()
    for name, rule in (("median", aggregators.median()), ("lasa", aggregators.lasa(0.3, 2.0, 2.0))):
        kappa = coefficient.robustness_coefficient(rule, saved.updates, F)
        error = coefficient.squared_error(rule, saved)
        assert f"| {name} | {kappa:.3g} | {error:.3g} |" in written
        assert f"{kappa:.3g}" in again
    for wrong in (
        [str(tmp_path / "none.npz"), *numbers],
        [str(tmp_path / "round.npz"), "--noise=-1", "--divergence=0"],
        [str(tmp_path / "round.npz")],
        [str(tmp_path / "known.npz"), "--rules=krumm"],
        [str(tmp_path / "known.npz"), "--rules="],
    ):
        assert main(["robustness", *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["partitions", "--config=configs/digits.py"], "invalid choice: 'partitions'"),
        (["filtering", "{tmp}/nosuch"], "nosuch: is not a directory, allowed is that of a run"),
        (["round", "{tmp}/nosuch", "3"], "nosuch: has no config.json, allowed is the directory of a run"),
        (["round", "{tmp}", "three"], "argument ROUND: invalid int value: 'three'"),
        (["filtering", "{tmp}", "--colour=red"], "unrecognized arguments: --colour=red"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(arguments, message, tmp_path, capsys):
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_only_what_draws_imports_matplotlib():
    code = """
import sys
import lasa_jax.inspection.__main__
import lasa_jax.track
from lasa_jax.inspection import bound, coefficient, drawing, filtering, recorded, rendering, replay, rounds, shares
from lasa_jax.inspection import variances
print({"matplotlib", "lasa_jax.report", "pyarrow.parquet"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "lasa_jax.inspection", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_partition(tmp_path):
    picture = tmp_path / "shares.png"
    result = command(
        *("partition", "--config=configs/digits.py", "--config.partition.name=shards", f"--output={picture}"),
        "--config.partition.classes_per_client=2",
    )
    assert result.returncode == 0, result.stderr
    assert "clients: 60" in result.stdout
    assert re.search(r"classes a client: [12] to [234], median 2", result.stdout)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["partition"], "--config: is missing"),
        (["partition", "more", "--config=configs/digits.py"], "partition more: allowed is partition"),
        (
            ["partition", "--config=configs/digits.py", "--output=/nosuch/a.png"],
            "--output=/nosuch/a.png: cannot be written",
        ),
        (
            ["partition", "--config=configs/digits.py", "--config.partition.gamma=0.1"],
            "of the partition gamma_similarity",
        ),
    ],
)
def test_partition_refuses(arguments, message):
    result = command(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
