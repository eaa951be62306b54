"""The command line of inspection. `filtering` and `round`, which need a run, are in test_recorded and test_replay."""

import inspect
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
        ([], "a command is missing, allowed are filtering, round, robustness, theorem, partition"),
        (["partitions", "--config=configs/digits.py"], "inspect partitions: allowed are filtering"),
        (["round", "{tmp}"], "the following arguments are required: ROUND"),
        (["filtering", "{tmp}/nosuch"], "nosuch: is not a directory, allowed is that of a run"),
        (["round", "{tmp}/nosuch", "3"], "nosuch: has no config.json, allowed is the directory of a run"),
        (["round", "{tmp}", "three"], "argument ROUND: invalid int value: 'three'"),
        (["filtering", "{tmp}", "--colour=red"], "--colour=red: is not a flag of lasa-jax inspect filtering"),
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


def test_partition(tmp_path, capsys):
    picture = tmp_path / "shares.png"
    shards = ("--config.partition.name=shards", "--config.partition.classes_per_client=2")
    for config in ("--config=configs/digits.py", "digits"):
        assert main(["partition", f"--output={picture}", config, *shards]) == 0
        shown = capsys.readouterr().out
        assert "clients: 60" in shown
        assert re.search(r"classes a client: [12] to [234], median 2", shown)
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config: is missing"),
        (["more", "--config=configs/digits.py"], "more: is not a flag of lasa-jax inspect partition"),
        (["--config=configs/digits.py", "--output=/nosuch/a.png"], "--output=/nosuch/a.png: cannot be written"),
        (["--config=configs/digits.py", "--config.partition.gamma=0.1"], "of the partition gamma_similarity"),
    ],
)
def test_partition_refuses(arguments, message, capsys):
    assert main(["partition", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_rule_of_ones_own(tmp_path, capsys, monkeypatch):
    """`--rules` takes a path, and says which file the function is from."""
    (tmp_path / "brought_to_inspect.py").write_text("from lasa_jax.aggregators import median as middle\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    saved, nu, zeta = sgd_round(2, "shifted")
    rounds.save_round(tmp_path / "round.npz", saved._replace(noise=nu, divergence=zeta))
    assert main(["robustness", "round.npz", "--rules=median,brought_to_inspect:middle"]) == 0
    shown = capsys.readouterr()
    assert shown.err == f"using brought_to_inspect:middle from {inspect.getsourcefile(aggregators.median)}\n"
    first, second = (tmp_path / "report" / "coefficients.csv").read_text().splitlines()[1:]
    assert second.partition(",")[2] == first.partition(",")[2]
