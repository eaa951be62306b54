import json
import os

import numpy as np
import pytest

from lasa_jax.errors import InputError
from lasa_jax.report import results
from tests.report.runs import LAYERS, of, write_run


def change(path, **values):
    """Other values in a JSON file; None takes the field away."""
    stored = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in stored.items() if value is not None}))


@pytest.fixture
def two(tmp_path):
    """A run to damage, and one beside it that must still be reported."""
    damaged = write_run(tmp_path, of("lasa", "byzmean"), [0.5, 0.9], name="damaged")
    write_run(tmp_path, of("fedavg", "byzmean"), [0.2, 0.1], name="good")
    return damaged


def test_runs_lines_and_layers(tmp_path):
    path = write_run(tmp_path / "deep" / "er", of("lasa", "byzmean", ratio=0.2), [0.5, 0.9, 0.7], filtered=(1, 2))
    found = results.load(tmp_path)
    assert found.left_out == ()
    (run,) = found.runs.to_dict("records")
    assert run["run"] == str(path.relative_to(tmp_path))
    assert (run["dataset"], run["aggregator.name"], run["attack.name"]) == ("digits", "lasa", "byzmean")
    assert (run["attack_ratio"], run["aggregator.magnitude_radius"], run["attack.z"], run["seed"]) == (0.2, 2.0, 0.5, 1)
    assert (run["best_test_accuracy"], run["final_test_accuracy"], run["last_round"]) == (0.9, 0.7, 3)
    assert (run["malicious_filtered"], run["benign_kept"]) == (0.5, 0.75)
    assert list(found.lines["round"]) == [1, 2, 3]
    assert list(found.lines["test_accuracy"]) == [0.5, 0.9, 0.7]
    counts = found.lines[["malicious", "benign", "malicious_filtered", "benign_filtered"]]
    assert counts.to_numpy().tolist() == [[4, 16, 2, 4]] * 3  # two layers
    assert list(found.layers["layer"]) == list(LAYERS)
    assert list(found.layers["benign_kept"]) == [0.75, 0.75]


def test_a_run_alone_is_a_directory_of_one(tmp_path):
    path = write_run(tmp_path, of("fedavg", "none"), [0.5])
    assert list(results.load(path).runs["run"]) == ["."]


def test_infinite_radii_are_numbers(tmp_path):
    write_run(tmp_path, of("lasa", "lie", lasa__direction_radius=float("inf")), [0.5])
    assert results.load(tmp_path).runs["aggregator.direction_radius"][0] == np.inf


def test_no_run(tmp_path):
    with pytest.raises(
        InputError, match=r"has no finished run, which is a directory with config\.json and summary\.json$"
    ):
        results.load(tmp_path)
    with pytest.raises(InputError, match="nosuch: is not a directory"):
        results.load(tmp_path / "nosuch")
    write_run(tmp_path, of("lasa", "byzmean"), [0.5], finished=False, name="half")
    with pytest.raises(InputError, match=r"no finished run.*half: is not finished \(round 1 of 1\)") as error:
        results.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_half_written_run_is_named_and_the_others_are_there(two):
    (two / "summary.json").unlink()
    found = results.load(two.parent)
    assert found.left_out == ("damaged: is not finished (round 2 of 2), left out",)
    assert list(found.runs["run"]) == ["good"]


DAMAGE = {
    "not json": ("summary.json", b"{", "summary.json: cannot be read"),
    "a pickle": ("summary.json", b"\x80\x04\x95\x0f\x00\x00\x00", "summary.json: cannot be read"),
    "a list": ("summary.json", b"[]", "must hold a JSON object"),
    "too deep": ("summary.json", b'{"a":' + b"[" * 200_000, ""),
    "empty object": ("summary.json", b"{}", "is not the summary of a run (status,"),
    "config not json": ("config.json", b"\xff\xfe\x00", "config.json: cannot be read"),
    "config of something else": ("config.json", b"{}", "config.json: dataset is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_line(two, case):
    name, content, message = DAMAGE[case]
    (two / name).write_bytes(content)
    found = results.load(two.parent)
    (line,) = found.left_out
    assert line.startswith("damaged: ")
    assert line.endswith(", left out")
    assert message in line
    assert line.isprintable()
    assert list(found.runs["run"]) == ["good"]


FIELDS = [
    ("summary.json", {"best_test_accuracy": 1.5}, "best_test_accuracy = 1.5: allowed is a number from 0 up to 1"),
    ("summary.json", {"best_test_accuracy": "0.5"}, "is not the summary of a run (best_test_accuracy)"),
    ("summary.json", {"best_test_accuracy": True}, "is not the summary of a run (best_test_accuracy)"),
    ("summary.json", {"best_test_accuracy": float("nan")}, "NaN is no JSON"),
    ("summary.json", {"rounds": 10**400}, "summary.json: "),
    ("summary.json", {"rounds": 2.0}, "is not the summary of a run (rounds)"),
    ("summary.json", {"seconds_per_round": -1}, "seconds_per_round = -1"),
    ("summary.json", {"status": "stopped"}, "status = 'stopped': allowed are finished, diverged"),
    ("summary.json", {"detection": None}, "is not the summary of a run (detection)"),
    ("summary.json", {"detection": {"layers": {"a": 3}}}, "is not the summary of a run (detection)"),
    ("summary.json", {"device": 3}, "device = 3"),
    ("config.json", {"dataset": "`etc`"}, "dataset = '`etc`': allowed are letters"),
    ("config.json", {"dataset": 3}, "dataset = 3: allowed is a name"),
    ("config.json", {"model": "[bold]\n$x$"}, "allowed are letters"),
    ("config.json", {"attack_ratio": "a lot"}, "attack_ratio = 'a lot'"),
    ("config.json", {"seed": None}, "seed is missing"),
    ("config.json", {"x\ny": 1}, "is not the name of a setting"),
]


@pytest.mark.parametrize(("file", "values", "message"), FIELDS)
def test_a_wrong_value_is_one_line(two, file, values, message):
    change(two / file, **values)
    (line,) = results.load(two.parent).left_out
    assert message in line
    assert line.isprintable()
    assert len(line) <= 500


def test_a_config_that_is_gone(two):
    (two / "config.json").unlink()
    assert results.load(two.parent).left_out == ("damaged: has a summary.json but no config.json, left out",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "ends at round 1 of 2"),
        ('{"round": 2}', "ends at round 1 of 2"),
        ('{"round": 2, "test_accuracy": 7}', "ends at round 1 of 2"),
        ('{"round": 2, "malicious": 1, "malicious_filtered": {"a": 2}}', "ends at round 1 of 2"),
    ],
)
def test_damaged_metrics_keep_the_run_but_not_its_curve(two, line, message):
    lines = (two / "metrics.jsonl").read_text().splitlines()
    (two / "metrics.jsonl").write_text(f"{lines[0]}\n{line}\n")
    found = results.load(two.parent)
    (said,) = found.left_out
    assert said.startswith("damaged: metrics.jsonl: ")
    assert message in said
    assert set(found.runs["run"]) == {"damaged", "good"}
    assert set(found.lines["run"]) == {"good"}


def test_links_that_lead_outside_are_refused(two, tmp_path_factory):
    root, outside = two.parent, tmp_path_factory.mktemp("outside")
    elsewhere = write_run(outside, of("median", "byzmean"), [0.3], name="elsewhere")
    (root / "away").symlink_to(elsewhere)
    (two / "summary.json").unlink()
    (two / "summary.json").symlink_to(elsewhere / "summary.json")
    (root / "circle").symlink_to(root / "circle")
    (root / "again").symlink_to(root / "good")  # inside: found as what it names
    found = results.load(root)
    assert list(found.runs["run"]) == ["good"]
    assert [line for line in found.left_out if line.startswith("away: is a link that leads outside of")]
    assert [line for line in found.left_out if line.startswith("damaged/summary.json: is a link that leads outside of")]
    assert not [line for line in found.left_out if line.startswith("again")]


def test_what_is_no_file_is_not_opened(two):
    (two / "summary.json").unlink()
    os.mkfifo(two / "summary.json")  # reading it would wait forever
    assert results.load(two.parent).left_out == ("damaged: summary.json is not a file, left out",)
    (two / "summary.json").unlink()
    (two / "summary.json").mkdir()
    assert results.load(two.parent).left_out == ("damaged: summary.json is not a file, left out",)


def test_a_file_that_is_too_large_is_not_read(two):
    os.truncate(two / "metrics.jsonl", 2**40)  # sparse
    assert results.load(two.parent).left_out == ("damaged: metrics.jsonl is larger than 256 MiB, left out",)


def test_names_of_directories_stay_in_their_line(tmp_path):
    write_run(tmp_path, of("lasa", "byzmean"), [0.5], name="two\nlines\x1b[2J", finished=False)
    write_run(tmp_path, of("fedavg", "byzmean"), [0.5])
    (line,) = results.load(tmp_path).left_out
    assert line.startswith("two lines?[2J: is not finished")


def test_the_same_run_counts_once(tmp_path):
    for place in ("a", "b"):
        write_run(tmp_path / place, of("lasa", "byzmean"), [0.5], name="run")
    found = results.load(tmp_path)
    assert found.left_out == ("found again and counted once: 1; the first: b/run is a/run",)
    assert list(found.runs["run"]) == ["a/run"]


def test_checkpoints_are_not_searched(two):
    write_run(two / "checkpoints", of("median", "byzmean"), [0.5])
    assert set(results.load(two.parent).runs["run"]) == {"damaged", "good"}


def test_select(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path, of("lasa", "byzmean", seed), [0.5, 0.6])
        write_run(tmp_path, of("fedavg", "byzmean", seed, ratio=0.3), [0.5, 0.6])
    found = results.load(tmp_path)
    one = results.select(found, ["aggregator.name=lasa", "seed=2", "attack_ratio=0.250"])
    assert one.runs[["aggregator.name", "seed"]].to_numpy().tolist() == [["lasa", 2]]
    assert set(one.lines["run"]) == set(one.layers["run"]) == set(one.runs["run"])
    assert len(results.select(found, ["aggregator.sparsity_level=0.3"]).runs) == 2
    for condition, message in (
        ("dataset", r"--where=dataset: allowed is FIELD=VALUE"),
        ("datasat=digits", r"--where=datasat=digits: no run has the field 'datasat'; fields are .*dataset"),
        ("seed=3", r"--where=seed=3: no run has that value; there are 1, 2"),
        ("seed=x", r"--where=seed=x: no run has that value"),
    ):
        with pytest.raises(InputError, match=message):
            results.select(found, [condition])
