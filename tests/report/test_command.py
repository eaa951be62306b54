"""The command line, on synthetic directories and on one true run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lasa_jax import config as configs
from lasa_jax import experiment
from lasa_jax.report.__main__ import main
from tests.report.runs import of, write_run

ROOT = Path(__file__).parents[2]
TABLES = {"table.md", "table.csv", "table.tex", "measures.csv", "detection.csv", "settings.json"}
FIGURES = {
    f"{name}.{kind}"
    for name in ("ratio", "curves", "worst_case", "detection", "cost", "measures")
    for kind in ("png", "svg")
}


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def sweep(root: Path, **options) -> None:
    """Every axis that a figure needs."""
    for attack in ("noise", "byzmean"):
        for ratio in (0.1, 0.25):
            write_run(root, of("lasa", attack, ratio=ratio), [0.5, 0.75], filtered=(2, 1), **options)


def test_all_files_and_the_same_again(tmp_path, capsys):
    sweep(tmp_path)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "│ LASA │ 75.00 │   75.00 │              75.00 │" in shown.out
    assert shown.out.splitlines()[-1].startswith(f"report: {tmp_path}/report: cost.png, cost.svg, curves.png")
    report = tmp_path / "report"
    assert names(report) == TABLES | FIGURES
    before = {name: (report / name).read_bytes() for name in names(report)}
    assert main(["tables", str(tmp_path)]) == 0
    assert {name: (report / name).read_bytes() for name in names(report)} == before


def test_a_backdoor_has_a_table_and_a_figure_more(tmp_path, capsys):
    sweep(tmp_path)
    write_run(tmp_path, of("lasa", "badnets"), [0.5, 0.75], success=[0.5, 0.25])
    assert main([str(tmp_path)]) == 0
    assert "success of backdoors in %" in " ".join(capsys.readouterr().out.split())
    assert names(tmp_path / "report") == TABLES | FIGURES | {"success.png", "success.svg"}


def test_what_a_report_no_longer_has_is_removed(tmp_path, capsys):
    sweep(tmp_path / "runs")
    output = tmp_path / "out"
    arguments = [str(tmp_path / "runs"), f"--output={output}"]
    assert main(arguments) == 0
    (output / "mine.txt").write_text("stays")
    assert main([*arguments, "--where=attack_ratio=0.1", "--where", "attack.name=noise"]) == 0
    gone = {f"{name}.{kind}" for name in ("ratio", "worst_case", "measures") for kind in ("png", "svg")}
    assert names(output) == TABLES | FIGURES - gone | {"mine.txt"}
    assert not (tmp_path / "runs" / "report").exists()
    assert capsys.readouterr().err.splitlines() == [
        "not drawn: ratio.png needs runs of one attack at two attack ratios",
        "not drawn: worst_case.png needs runs of two attacks",
        "not drawn: measures.png needs runs of a rule without attack and under one, or under two",
    ]


def test_two_sweeps_that_do_not_compare(tmp_path, capsys):
    write_run(tmp_path, of("lasa", "byzmean"), [0.5, 0.6])
    write_run(tmp_path, of("lasa", "byzmean"), [0.5], dataset="mnist")
    assert main([str(tmp_path)]) == 0
    first, *others = capsys.readouterr().err.splitlines()
    assert first.startswith(
        "runs that do not compare: dataset is digits in 1, mnist in 1: a report for each of 2 groups"
    )
    assert all(line.startswith("not ") for line in others)
    groups = {path.name for path in (tmp_path / "report").iterdir()}
    assert groups == {"1_dataset=digits", "2_dataset=mnist"}
    assert main([str(tmp_path), "--where=dataset=mnist"]) == 0
    assert "do not compare" not in capsys.readouterr().err
    assert names(tmp_path / "report") == TABLES | {"cost.png", "cost.svg"}


def test_finished_runs_beside_broken_ones(tmp_path, capsys):
    write_run(tmp_path, of("fedavg", "byzmean"), [0.25, 0.5], name="good")
    write_run(tmp_path, of("lasa", "byzmean"), [0.5], name="half", finished=False)
    broken = write_run(tmp_path, of("median", "byzmean"), [0.5], name="broken")
    (broken / "summary.json").write_text("{")
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    left_out = [line for line in shown.err.splitlines() if line.endswith("left out")]
    assert [line.split(":")[0] for line in left_out] == ["broken", "half"]
    assert "FedAvg" in shown.out
    assert "LASA" not in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: DIR"),
        (["{empty}"], "has no finished run, which is a directory with config.json and summary.json"),
        (["compare", "{empty}"], "has no finished run"),
        (["{empty}/nosuch"], "is not a directory, and no command: allowed are DIR, compare"),
        (["partition", "{runs}"], "partition: is not a directory, and no command: allowed are DIR, compare"),
        (["{runs}", "--where=dataset=mnist"], "--where=dataset=mnist: no run has that value; there are digits"),
        (["{runs}", "--lost=2"], "lost: '2': allowed is a number between 0 and 1"),
        (["{runs}", "--colour=red"], "--colour=red: is not a flag of lasa-jax report; see --help"),
        (["{runs}", "--output=/proc/nosuch/report"], "--output=/proc/nosuch/report: cannot be written"),
        (["{linked}"], "report: is a link; say where to write with --output=DIR"),
        (["compare", "{empty}", "{runs}"], "a report is of one directory"),
        (["compare", "{runs}"], "dataset digits: the paper has no table of it"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(arguments, message, tmp_path, capsys):
    places = {name: tmp_path / name for name in ("empty", "runs", "linked")}
    places["empty"].mkdir()
    write_run(places["runs"], of("lasa", "byzmean"), [0.5])
    write_run(places["linked"], of("lasa", "byzmean"), [0.5])
    (places["linked"] / "report").symlink_to(tmp_path / "empty")
    before = names(tmp_path)
    assert main([argument.format(**places) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert names(tmp_path) == before


def test_compare(tmp_path, capsys):
    for dataset in ("digits", "mnist"):
        write_run(tmp_path, of("lasa", "byzmean"), [0.5], dataset=dataset)
    assert main(["compare", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "97.94" in shown.out
    assert "-47.94" in shown.out
    assert shown.err.splitlines()[1].startswith("dataset digits: the paper has no table of it")
    assert names(tmp_path / "report") == {"2_dataset=mnist/compare.md", "2_dataset=mnist/compare.csv"}


def test_the_example_of_the_docs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text(), re.DOTALL)
    write_run(tmp_path / "sweeps" / "table1", of("lasa", "byzmean"), [0.5])
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert re.search(r"LASA +ByzMean +0.25", capsys.readouterr().out)


def test_a_true_run(tmp_path, capsys):
    base = configs.paper("digits")
    light = {"rounds": 2, "num_clients": 20, "clients_per_round": 6, "client.epochs": 1}
    light |= {"attack.name": "lie", "aggregator.name": "signguard"}
    base.update_from_flattened_dict(light)
    summary = experiment.run(configs.resolve(base), tmp_path / "run", log=lambda text: None)
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert f"│ SignGuard │ {100 * summary['best_test_accuracy']:.2f} │" in shown.out
    assert {"curves.png", "detection.png", "cost.png"} <= names(tmp_path / "report")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary


def test_report_imports_nobodys_module(tmp_path, capsys, monkeypatch):
    """Labels and numbers are all it needs: a module that raises, lies in the working directory and stays unread."""
    (tmp_path / "raises_on_import.py").write_text("raise RuntimeError('was imported')\n")
    path = write_run(tmp_path / "runs", of("lasa", "byzmean"), [0.5, 0.75])
    stored = json.loads((path / "config.json").read_text())
    stored["aggregator"] |= {"name": "raises_on_import:norm_gate", "parameters": {"factor": 3.0}}
    stored["sources"] = {"raises_on_import:norm_gate": "0" * 64}
    (path / "config.json").write_text(json.dumps(stored))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["runs"]) == 0
    assert "norm_gate" in capsys.readouterr().out
    assert "raises_on_import" not in sys.modules


def test_report_knows_no_experiment():
    code = """
import sys
import lasa_jax.report.__main__
from lasa_jax.report import compare, figures, groups, output, results, style, tables, timings
print({"lasa_jax.experiment", "lasa_jax.grid", "lasa_jax.federated"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
