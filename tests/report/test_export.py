"""One row for each run, with every setting and result."""

import csv
import io
import json
from pathlib import Path

import pytest

from lasa_jax import commandline, main
from lasa_jax import config as configs
from lasa_jax.report import export, standing
from tests.report.runs import of, write_run

UNFINISHED = ("best_test_accuracy", "final_test_accuracy", "mean_of_last_test_accuracy", "final_test_loss", "device")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A finished run, one that goes on, and a point of a user's rule that waits; the module of the rule is nowhere."""
    root = tmp_path / "sweep"
    settings = of("lasa", "lie", lasa__sparsity_level=0.5)
    path = write_run(
        root, settings, [0.5, 0.75, 0.25, 0.125], filtered=(2, 1), summary={"versions": {"jax": "1.2", "commit": "abc"}}
    )
    half = write_run(root, of("fedavg", "none", 2), [0.5], finished=False)
    config = {"rounds": 9, "seed": 3, "aggregator": {"name": "gone.rules:gate", "parameters": {"factor": 2.0}}}
    config |= {"preaggregators": {"names": "gone.rules:cut", "parameters": {"cut": {"by": 0.5}}}}
    config |= {"sources": {"gone/rules:gate": "0" * 64}, "model": "=1+1\nx"}
    points = {name: {"program": "", "costs": "", "config": config} for name in (path.name, half.name, "digits_gone_1")}
    (root / "points.json").write_text(json.dumps({"points": points}))
    return root


def test_every_setting_and_result(sweep, capsys):
    assert export.main([str(sweep), "--last=2"]) == 0
    assert capsys.readouterr().out == f"export: {sweep}/runs.csv: 3 runs, 1 finished\n"
    done, half, waiting = rows(sweep / "runs.csv")
    assert [row["status"] for row in (done, half, waiting)] == ["finished", "waiting", "waiting"]
    assert (done["best_test_accuracy"], done["best_round"], done["final_test_accuracy"]) == ("0.75", "2", "0.125")
    assert done["mean_of_last_test_accuracy"] == str((0.25 + 0.125) / 2)
    assert (done["malicious_filtered"], done["benign_kept"]) == ("1.0", str(7 / 8))
    assert (done["final_test_loss"], done["seconds_per_round"], done["rounds_done"]) == ("1.0", "0.5", "4")
    assert (done["version.jax"], done["version.commit"], done["version.flax"]) == ("1.2", "abc", "")
    assert (half["note"], half["rounds_done"], half["seconds_per_round"]) == ("stopped, round 1 of 1", "1", "0.5")
    for row in (half, waiting):
        assert [row[name] for name in UNFINISHED] == [""] * len(UNFINISHED)
    assert (waiting["aggregator.name"], waiting["aggregator.gate.factor"]) == ("gone.rules:gate", "2.0")
    assert (waiting["preaggregators.cut.by"], waiting["rounds"], waiting["note"]) == ("0.5", "9", "")
    assert waiting["model"] == "=1+1 x"
    assert done["aggregator.gate.factor"] == ""


def test_the_success_of_a_backdoor(tmp_path):
    write_run(tmp_path, of("lasa", "badnets"), [0.5, 0.75], success=[0.5, 0.25])
    export.main([str(tmp_path)])
    (row,) = rows(tmp_path / "runs.csv")
    assert (row["final_attack_success"], row["largest_attack_success"]) == ("0.25", "0.5")


def test_the_columns_of_settings_are_the_flags(sweep):
    """A row's settings, given by hand, make the same run; the order of columns is always the same."""
    export.main([str(sweep)])
    row = rows(sweep / "runs.csv")[0]
    names = list(row)
    first, last = names.index("note") + 1, names.index("rounds_done")
    assert names[first:last] == sorted(names[first:last])
    assert tuple(names[last:]) == export.RESULTS
    given = [f"--config.{name}={row[name]}" for name in names[first:last] if row[name]]
    flags = main.parser().read(["digits", *given])
    config = commandline.read_config(flags.config, flags.settings)
    assert configs.run_name(config) == row["run"]


def test_a_run_whose_metrics_cannot_be_read_is_noted(sweep):
    path = next(path for path in sweep.glob("*/metrics.jsonl") if (path.parent / "summary.json").exists())
    path.unlink()
    path.mkdir()
    export.main([str(sweep)])
    row = rows(sweep / "runs.csv")[0]
    assert "metrics.jsonl: cannot be read" in row["note"]
    assert (row["status"], row["final_test_accuracy"], row["final_test_loss"]) == ("finished", "0.125", "")


def test_the_file_is_replaced_whole_and_the_same_again(sweep):
    export.main([str(sweep)])
    before = (sweep / "runs.csv").read_bytes()
    assert export.main([str(sweep)]) == 0
    assert (sweep / "runs.csv").read_bytes() == before
    assert [path.name for path in sweep.iterdir() if "runs" in path.name] == ["runs.csv"]
    assert export.table(standing.load(sweep)[0]).encode() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: is not a directory"),
        (["empty"], "empty: holds neither a sweep nor a run"),
        (["sweep", "--out=empty"], "--out=empty: is a folder, allowed is a file"),
        (["sweep", "--out=file/runs.csv"], "--out=file/runs.csv: cannot be used (Not a directory)"),
        (["sweep", "--last=0"], "lasa-jax export: argument --last: '0': allowed is a whole number from 1 on"),
        (["sweep", "--last=x"], "lasa-jax export: argument --last: 'x': allowed is a whole number from 1 on"),
    ],
)
def test_what_is_odd_is_one_line(arguments, message, sweep, monkeypatch, capsys):
    monkeypatch.chdir(sweep.parent)
    Path("empty").mkdir()
    Path("file").touch()
    assert export.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {message}"
    assert not (sweep / "runs.csv").exists()
