"""What a page says of each rule, from CSVs with known numbers; the command, with made-up runs."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lasa_jax import config as configs
from lasa_jax import grid, methods
from lasa_jax.config.settings import flatten
from lasa_jax.errors import InputError
from lasa_jax.inspection import rendering
from lasa_jax.leaderboard import __main__ as command
from lasa_jax.leaderboard import declare, page, ranks, rows, standing, tuning, validation

DECLARED = """
from lasa_jax.config import paper
from lasa_jax.leaderboard.declare import Benchmark


def get_benchmark(edition):
    base = paper("digits")
    base.update_from_flattened_dict({"rounds": 2, "num_clients": 8, "clients_per_round": 4, "model": "mlp"})
    base.update_from_flattened_dict({"client.epochs": 1, "block_rounds": 1, "checkpoint_every": 1})
    tuned = {"candidates": {"norm_clipped_mean": [{"clip_norm": 0.5}]}}
    tuned["validation"] = "lasa_jax.leaderboard.validation:digits"
    rules, attacks, partitions = ("fedavg", "norm_clipped_mean"), ("sign_flip",), {"IID": {"partition.name": "iid"}}
    return Benchmark("mine", base, rules, attacks, partitions, (1, 2), **(tuned if edition == "tuned" else {}))
"""
MY_RULES = """
from lasa_jax import aggregators
from lasa_jax.aggregators.base import Scalar


def norm_gate(factor: Scalar = 3.0) -> aggregators.Aggregator:
    return aggregators.norm_clipped_mean(clip_norm=factor)
"""


def row(rule, attack, seed, accuracy, **other):
    """A row of a CSV; an accuracy of None is that of a run that diverged."""
    made = {"settings": "abc", "dataset": "digits", "rule": rule, "parameters": "", "attack": attack}
    made |= {"attack_ratio": 0.25, "partition": "IID", "clients_per_round": 30, "seed": seed, "rounds": 60}
    made |= {"status": "finished" if accuracy is not None else "diverged", "accuracy": accuracy or 0.0}
    made |= {"malicious_filtered": 0.5, "benign_kept": 0.875, "seconds_per_round": 0.1, "device": "cpu", "version": "1"}
    return {**made, "run": f"{rule} {attack} {seed} {len(other)}", **other}


def known() -> list[dict]:
    """Three rules, one of them with fewer clients, under two attacks with two seeds."""
    table = {
        "fedavg": {"none": (0.9, 0.94), "lie": (0.5, 0.7), "inf": (None, 0.1)},
        "krum": {"none": (0.8, 0.86), "lie": (0.7, 0.72), "inf": (0.8, 0.8)},
    }
    few = {"clients_per_round": 15}
    made = [row("mda", attack, seed, 0.75, **few) for attack in ("none", "lie", "inf") for seed in (1, 2)]
    made += [row("fedavg", "none", seed, 0.85, **few) for seed in (1, 2)]
    for rule, attacks in table.items():
        made += [row(rule, name, seed, x) for name, pair in attacks.items() for seed, x in enumerate(pair, 1)]
    return made


def read(tmp_path: Path, made: list[dict]) -> pd.DataFrame:
    rendering.write(tmp_path, rows.files(made))
    return rows.read(tmp_path)


def test_what_is_said_of_each_rule(tmp_path):
    found = standing.by_rule(read(tmp_path, known())).set_index("rule")
    assert list(found.index) == ["mda", "krum", "fedavg"]  # by their worst accuracy
    krum, fedavg, mda = found.loc["krum"], found.loc["fedavg"], found.loc["mda"]
    assert (krum["worst_attack"], krum["clients"], fedavg["worst_attack"]) == ("lie", 30, "inf")
    np.testing.assert_allclose([krum["without"], krum["worst"], krum["impact"]], [83, 71, 12])
    np.testing.assert_allclose([fedavg["worst"], fedavg["without_less"], fedavg["without_half"]], [5, 0, 0], atol=1e-9)
    assert fedavg["diverged"]
    assert not krum["diverged"]
    # Differences of -10 and -8 points: t(0.975, 1) = 12.706, s / sqrt(2) = 1.
    np.testing.assert_allclose([krum["without_less"], krum["without_half"]], [-9, 12.7062], rtol=1e-5)
    np.testing.assert_allclose(mda["worst_less"], -10)  # than FedAvg with as few clients
    assert math.isnan(mda["rank"])
    assert (krum["rank"], fedavg["rank"]) == (4 / 3, 5 / 3)  # second, first, first of two
    assert (krum["malicious_filtered"], krum["benign_kept"]) == (50, 87.5)


def test_a_rule_with_a_gap_is_marked_and_has_no_rank(tmp_path):
    made = [one for one in known() if (one["rule"], one["attack"], one["seed"]) != ("krum", "inf", 2)]
    found = standing.by_rule(read(tmp_path, made)).set_index("rule")
    assert math.isnan(found.loc["krum", "rank"])
    assert not found.loc["krum", "complete"]
    assert "≤ 71.00" in page.files(rows.read(tmp_path), "digits", "digits")[0]["digits.md"]


def test_the_critical_difference_is_that_of_the_published_table():
    """Demsar 2006, table 5 (a) and the example in section 3.2.3."""
    for rules, q in {2: 1.960, 4: 2.569, 10: 3.164}.items():
        one = math.sqrt(rules * (rules + 1) / 6)
        assert ranks.critical_difference(rules, 1) == pytest.approx(q * one, abs=6e-4 * one)
    assert ranks.critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)


def test_the_page_is_made_of_csvs_alone(tmp_path, capsys):
    rendering.write(tmp_path / "digits", rows.files(known()))
    made, missing = page.files(rows.read(tmp_path / "digits"), "digits", "digits:all")
    assert not missing
    assert set(made) == {"digits.md", "digits_ranks.png", "digits_ranks.svg"}
    text = str(made["digits.md"])
    assert "| krum | 83.00 | -9.00 ± 12.71 | 71.00 | lie | -21.00 ± 12.71 | 12.00 | 1.3 | 50 | 88 | 0.100 |" in text
    assert "| mda (15 clients) |" in text
    assert "## What this does not show" in text
    assert "`lasa-jax benchmark digits:all --rule" in " ".join(text.split())
    assert all(len(line) <= 120 for line in text.splitlines() if not line.startswith("|"))
    rendering.write(tmp_path / "again", rows.files(rows.read(tmp_path / "digits").to_dict("records")))
    assert page.files(rows.read(tmp_path / "again"), "digits", "digits:all")[0] == made


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("accuracy", 1.5, "accuracy = '1.5': allowed is a share"),
        ("accuracy", None, "accuracy = '': allowed is a share"),
        ("seed", "one", "seed = 'one': allowed is a number from 0"),
        ("attack", "<b>", "attack = '<b>': allowed is a name"),
        ("rule", "../krum", "rule = '../krum': allowed is a name"),
        ("rule", "median", "rule = 'median': allowed is krum, after which the file is named"),
        ("settings", "xyz", "its runs have other settings (xyz) than the benchmark (abc)"),
    ],
)
def test_a_csv_is_checked(column, value, message, tmp_path):
    (tmp_path / "krum.csv").write_text(pd.DataFrame([{**row("krum", "none", 1, 0.5), column: value}]).to_csv())
    with pytest.raises(InputError) as error:
        rows.read(tmp_path, settings="abc")
    assert str(error.value).endswith(f".csv: {message}")


def test_a_run_is_there_once(tmp_path):
    made = [row("krum", "lie", 1, 0.5), row("krum", "lie", 1, 0.5, clients_per_round=15), row("krum", "lie", 2, 0.5)]
    assert len(read(tmp_path, made)) == 3
    with pytest.raises(InputError) as error:
        read(tmp_path, [*made, row("krum", "lie", 2, 0.75)])
    said = "krum.csv: rule = krum, attack = lie, partition = IID, seed = 2, clients_per_round = 30: is there twice"
    assert f"{said}; allowed is one row" in str(error.value)


def test_the_version_is_that_of_the_run():
    """Of a run that was made by another version, or by a package that is not installed."""
    config = configs.resolve(configs.default())
    entry = declare.Entry("fedavg", "none", "IID", 1, {}, grid.Point(config, "", ""))
    summary = {"status": "finished", "final_test_accuracy": 0.5, "seconds_per_round": 0.25}
    summary |= {"detection": {"malicious_filtered": None, "benign_kept": 1.0}}
    assert rows.of(entry, summary | {"versions": {"lasa_jax": "0.0.1"}}, "abc")["version"] == "0.0.1"
    assert rows.of(entry, summary, "abc")["version"] == "unknown"


def test_parameters_are_chosen_by_their_worst_attack():
    point = grid.Point(None, "", "")
    found, accuracies = [], {}
    for number, (parameters, results) in enumerate(
        [({}, (0.9, 0.2)), ({"a": 1}, (0.6, 0.5)), ({"a": 2}, (0.9, None)), ({"a": 3}, (0.5, 0.5))]
    ):
        for attack, accuracy in zip(("lie", "inf"), results, strict=True):
            name = f"{number}{attack}"
            found.append(declare.Entry("krum", attack, "IID", 0, parameters, dataclasses.replace(point, name=name)))
            accuracies |= {} if accuracy is None else {name: accuracy}
    assert tuning.choose(found, accuracies) == {("krum", "IID"): {"a": 1}}
    assert tuning.choose(found[:2], accuracies) == {}  # the defaults


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_candidate_with_a_missing_run_is_not_chosen(missing):
    found = [
        declare.Entry("krum", attack, "IID", 0, {"a": a} if a else {}, grid.Point(None, f"{a} {attack}", ""))
        for a in (0, 1)
        for attack in ("lie", "inf", "noise")
    ]
    accuracies = {one.point.name: 0.9 if one.parameters else 0.2 for one in found}
    assert tuning.choose(found, accuracies) == {("krum", "IID"): {"a": 1}}
    del accuracies[found[3 + missing].point.name]
    assert tuning.choose(found, accuracies) == {}


@pytest.mark.parametrize(
    ("dataset", "rule", "decay", "clip"), [("digits", "dnc", 1.0, None), ("mnist", "sparsefed", 0.999, 1.0)]
)
def test_parameters_are_chosen_with_the_settings_of_the_benchmark(dataset, rule, decay, clip):
    tuned = declare.load(f"{dataset}:tuned")
    parameters, iid = tuned.candidates[rule][0], {"IID": tuned.partitions["IID"]}
    tuned = dataclasses.replace(tuned, rules=(rule,), attacks=("lie",), partitions=iid, candidates={rule: [parameters]})
    run = dict(flatten(declare.entries(tuned, baseline=False)[-1].point.config.to_dict()))
    assert (run["client.learning_rate_decay"], run["client.clip_norm"]) == (decay, clip)
    for entry, given in zip(declare.on_validation(tuned), ({}, parameters), strict=True):
        trial = dict(flatten(entry.point.config.to_dict()))
        differ = {name for name in run.keys() | trial.keys() if run.get(name, "") != trial.get(name, "")}
        of_the_path = {name for name in trial if name.startswith("sources.")}
        assert differ == {"dataset", "seed", *of_the_path, *(f"aggregator.parameters.{name}" for name in given)}


def test_no_test_example_is_there_to_choose_by():
    whole, made = methods.dataset("digits"), validation.digits()
    train = {image.tobytes() for image in made["train"][0]}
    held = {image.tobytes() for image in made["test"][0]}
    assert (len(made["train"][1]), len(made["test"][1])) == (1149, 288)
    assert train | held <= {image.tobytes() for image in whole.train.inputs}
    assert not train & held
    assert np.bincount(made["test"][1]).min() >= 27  # of each class a fifth
    assert (made["mean"], made["std"]) == (whole.train.inputs.mean(), whole.train.inputs.std())


def test_editions_of_the_digits():
    whole, quick = declare.load("digits"), declare.load("digits:quick")
    assert (len(whole.attacks), list(whole.seeds), list(whole.partitions)) == (
        8,
        [1, 2, 3],
        ["IID", "Dirichlet alpha 0.1"],
    )
    assert (len(quick.rules), len(quick.attacks), len(quick.seeds)) == (6, 4, 1)
    one = dataclasses.replace(whole, rules=("mda",), attacks=("lie",))
    found = declare.entries(one)
    assert len(found) == 2 * 2 * 3 + 2 * 3  # and FedAvg without attack at as few clients
    assert {entry.point.config.clients_per_round for entry in found} == {15}
    assert len({entry.point.program for entry in found}) == 6  # seeds share one
    assert [point.name for point in grid.points(declare.grid_of(one))] == [entry.point.name for entry in found]
    tuned = dataclasses.replace(declare.load("digits:tuned"), rules=("median", "dnc"), attacks=("lie",))
    trials = declare.on_validation(tuned)
    assert {(entry.rule, entry.seed, entry.attack) for entry in trials} == {("dnc", 0, "lie")}
    assert len(trials) == 2 * 3
    assert all(entry.point.config.dataset == tuned.validation for entry in trials)
    with pytest.raises(InputError, match="edition = 'slow': allowed are all, quick, adaptive, tuned"):
        declare.load("digits:slow")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a benchmark and a rule of one's own; what is imported there is forgotten."""
    (tmp_path / "mine.py").write_text(DECLARED)
    (tmp_path / "my_rules.py").write_text(MY_RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    methods.sys.modules.pop("my_rules", None)
    methods.parameters.cache_clear()


@pytest.fixture
def fails() -> set[str]:
    """The names of the folders whose runs fail."""
    return set()


@pytest.fixture
def made_up(monkeypatch, fails) -> list[str]:
    """Runs, plans and pictures take no time, and runs are told: clipping at 0.5 is best."""
    told: list[str] = []

    def run(points, workdir, *, on_outcome, **_):
        for point in points:
            config = point.config
            told.append(f"{config.aggregator.name} {config.attack.name} {config.seed}")
            if Path(workdir).name in fails:
                on_outcome(grid.Outcome(point, Path(workdir) / point.name, None, "no memory"))
                continue
            tuned = config.aggregator.parameters.to_dict().get("clip_norm") == 0.5
            summary = {"status": "finished", "final_test_accuracy": 0.75 if tuned else 0.5, "seconds_per_round": 0.25}
            summary |= {"detection": {"malicious_filtered": None, "benign_kept": 1.0}, "device": "cpu (x)"}
            on_outcome(grid.Outcome(point, Path(workdir) / point.name, summary, None))

    monkeypatch.setattr(grid, "run", run)
    monkeypatch.setattr(grid, "finished", lambda *_, **__: [])
    monkeypatch.setattr(grid, "plan", lambda *_, **__: grid.Plan(0, 0, 0, (0, 0), (0, 0), 0, 0.0))
    monkeypatch.setattr(rendering, "pictures", lambda *_: {})
    return told


@pytest.mark.usefixtures("place")
def test_ones_own_rule_is_the_only_one_that_runs(made_up, capsys):
    assert command.main(["mine.py", "--workdir=runs", "--output=out"]) == 0
    assert len(made_up) == 2 * 2 * 2
    before = Path("out/mine.md").read_text()
    made_up.clear()
    arguments = ("--rule=my_rules:norm_gate", "--workdir=runs", "--beside=out", "--output=with_mine")
    assert command.main(["mine.py", *arguments]) == 0
    assert made_up == [f"my_rules:norm_gate {attack} {seed}" for attack in ("none", "sign_flip") for seed in (1, 2)]
    assert "| my\\_rules:norm\\_gate | 50.00 | +0.00 ± 0.00 |" in Path("with_mine/mine.md").read_text()
    assert {path.name for path in Path("with_mine/mine").iterdir()} == {
        *("fedavg.csv", "norm_clipped_mean.csv", "my_rules.norm_gate.csv")
    }
    Path("out/mine.md").unlink()
    assert command.main(["mine.py", "--page", "--output=out"]) == 0
    assert Path("out/mine.md").read_text() == before
    made_up.clear()  # without the others it is paired with FedAvg, which runs without attack
    assert command.main(["mine.py", "--rule=median", "--workdir=runs", "--output=alone"]) == 0
    assert [line for line in made_up if "fedavg" in line] == ["fedavg none 1", "fedavg none 2"]


@pytest.mark.usefixtures("place")
def test_the_tuned_edition_chooses_first(made_up, capsys):
    assert command.main(["mine.py:tuned", "--workdir=runs", "--dry_run"]) == 0
    assert not made_up
    assert command.main(["mine.py:tuned", "--workdir=runs"]) == 0
    assert made_up[:2] == ["norm_clipped_mean sign_flip 0"] * 2  # the defaults and the candidate
    assert "chosen: norm_clipped_mean, IID: clip_norm=0.5" in capsys.readouterr().out
    assert "| norm\\_clipped\\_mean (clip\\_norm=0.5) | 75.00 |" in Path("runs/benchmark/mine.md").read_text()


@pytest.mark.usefixtures("place", "made_up")
def test_a_run_that_failed_is_told_by_the_exit_code(fails, capsys):
    arguments = ["mine.py:tuned", "--rule=norm_clipped_mean", "--workdir=runs"]
    fails.add("validation")
    assert command.main(arguments) == 1
    page_of = Path("runs/benchmark/mine.md")
    assert "| norm\\_clipped\\_mean | 50.00 |" in page_of.read_text()  # with its defaults
    assert "lasa-jax benchmark mine.py:tuned --rule" in " ".join(page_of.read_text().split())
    fails.add("runs")
    capsys.readouterr()
    assert command.main([*arguments, "--output=none"]) == 1
    *told, last = capsys.readouterr().err.splitlines()
    assert len(told) == 2 + 3 * 2  # on validation, then with and without attack and FedAvg without, with two seeds
    assert all(line.endswith(": failed: no memory") for line in told)
    assert last == "no run has a result, so that there is no page"
    assert not Path("none").exists()


@pytest.mark.usefixtures("place", "made_up")
def test_a_run_takes_the_place_of_one_of_the_same_situation():
    """FedAvg of another file, where it lacks a seed and was declared otherwise."""
    settings = declare.settings_id(declare.load("mine.py"))
    there = row("fedavg", "none", 1, 0.25, settings=settings, clients_per_round=4)
    rendering.write(Path("others/mine"), rows.files([there]))
    assert command.main(["mine.py", "--rule=norm_clipped_mean", "--workdir=runs", "--beside=others"]) == 0
    fedavg = rows.read(Path("runs/benchmark/mine")).query("rule == 'fedavg'")
    assert list(zip(fedavg["seed"], fedavg["accuracy"], strict=True)) == [(1, 0.5), (2, 0.5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.py"], "--workdir: is missing; allowed is a directory for the runs"),
        (["mine.py", "--page"], "--output: is missing; --page makes the page of the CSVs that are there"),
        (["mine.py", "--page", "--output=none"], "none/mine: has no row of a run yet"),
        (["mine.py", "--page", "--output=x", "--rule=krum"], "--rule: has no effect with --page, which runs nothing"),
        (["mine.py", "--page", "--output=x", "--threads=2"], "--threads: has no effect with --page"),
        (["mine.py", "--page", "--output=x", "--dry_run"], "--dry_run: has no effect with --page"),
        (
            ["mine.py:tuned", "--quick", "--workdir=x"],
            "--quick: is an edition, and --config=mine.py:tuned names another",
        ),
        (["mine.py", "--workdir=x", "--beside=none"], "--beside=none: has no folder mine"),
        (["mine.py", "--workdir=x", "--rule=krumm"], "config.aggregator.name: aggregator 'krumm'"),
        (["figure1", "--workdir=x"], "--config=figure1: is a sweep, with get_grid and no get_benchmark"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_is_wrong_is_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
