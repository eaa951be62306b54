"""What a run records, and what is believed of it when it is read."""

import json
import shutil
import subprocess

import jax
import numpy as np
import pytest

from lasa_jax.federated import Evaluation, Measures
from lasa_jax.workdir import records
from lasa_jax.workdir.files import to_json
from lasa_jax.workdir.forms import wrong_fields


def line(number: int, **other) -> dict:
    """A line of metrics.jsonl with 2 malicious and 8 benign clients in two layers."""
    return {
        "round": number,
        **dict.fromkeys(("test_accuracy", "test_loss", "train_loss", "update_norm", "step_waste"), 0.5),
        "assumed_malicious": None,
        "malicious": 2,
        "benign": 8,
        "malicious_filtered": {"a": 2, "b": 1},
        "benign_filtered": {"a": 0, "b": 4},
        "seconds_per_round": 0.1,
        **other,
    }


def parsed(*lines: dict) -> list[int]:
    return [found["round"] for found in records.parse_lines("".join(map(to_json, lines)).encode())]


PADDED = dict(zip(records.PADDING_LINE, (0.6, 1.5, 0.4, None), strict=True))


def test_a_line_of_a_dataset_with_padding_has_both_forms_or_is_wrong():
    assert parsed(line(1, **PADDED), line(2, **PADDED)) == [1, 2]
    for name in PADDED:
        without = {field: value for field, value in PADDED.items() if field != name}
        assert parsed(line(1, **PADDED), line(2, **without)) == [1]
        assert parsed(line(1, **PADDED), line(2, **{**PADDED, name: "0.5"})) == [1]


def test_lines_and_summary_have_both_forms_of_a_dataset_with_padding():
    """In rounds 1 and 2: with padding 0.5 and 0.7, without 0.4 and 0.3, which is reported."""
    forms = {"with_padding": [0.5, 0.7], "without_padding": [0.4, 0.3]}
    measures = {way: Measures(np.array([2.0, 1.0]), np.array(accuracy)) for way, accuracy in forms.items()}
    test = Evaluation(measures["without_padding"], **measures)
    told = [records._tested(test, index) for index in range(2)]
    assert told[1] == {
        "test_accuracy": 0.3,
        "test_loss": 1.0,
        "test_accuracy_with_padding": 0.7,
        "test_loss_with_padding": 1.0,
        "test_accuracy_without_padding": 0.3,
        "test_loss_without_padding": 1.0,
    }
    assert records._tested(Evaluation(measures["with_padding"]), 0) == {"test_accuracy": 0.5, "test_loss": 2.0}
    about = {"status": "finished", "seed": 1, "config_id": "", "compile_seconds": 0.0, "total_seconds": 0.0}
    made = records.summary([line(at + 1, **one) for at, one in enumerate(told)], {"w": np.zeros(2)}, **about)
    best = {name: value for name, value in made.items() if name.startswith("best_")}
    assert best == {
        "best_test_accuracy": 0.4,
        "best_test_accuracy_with_padding": 0.7,
        "best_test_accuracy_without_padding": 0.4,
        "best_round": 1,
    }
    assert "best_test_accuracy_with_padding" not in records.summary([line(1)], {"w": np.zeros(2)}, **about)


def test_lines_and_summary_have_the_success_of_a_backdoor():
    measures = Measures(np.array([2.0, 1.0, 1.0]), np.array([0.5, 0.75, 0.75]))
    told = [records._tested(Evaluation(measures, success=np.array([0.25, 0.875, 0.5])), at) for at in range(3)]
    assert told[1] == {"test_accuracy": 0.75, "test_loss": 1.0, "attack_success": 0.875}
    written = [line(at + 1, **one) for at, one in enumerate(told)]
    assert parsed(*written) == [1, 2, 3]
    assert parsed(written[0], {**written[1], "attack_success": "0.5"}) == [1]
    about = {"status": "finished", "seed": 1, "config_id": "", "compile_seconds": 0.0, "total_seconds": 0.0}
    made = records.summary(written, {"w": np.zeros(2)}, **about)
    assert (made["final_attack_success"], made["largest_attack_success"]) == (0.5, 0.875)
    assert "final_attack_success" not in records.summary([line(1)], {"w": np.zeros(2)}, **about)


def test_lines_are_read_as_they_were_written():
    written = [line(1), line(2, test_loss=float("nan")), line(5)]
    content = "".join(map(to_json, written)).encode()
    assert records.parse_lines(content) == [written[0], line(2, test_loss=None), written[2]]
    ends = [index for index, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content)):  # a line counts once its last brace is there
        assert len(records.parse_lines(content[:cut])) == sum(end <= cut for end in ends)


@pytest.mark.parametrize(
    "other",
    [
        {"round": 2},
        {"round": 1},
        {"round": 3.0},
        {"round": True},
        {"test_accuracy": "0.5"},
        {"malicious": -1},
        {"benign": None},
        {"malicious_filtered": {"a": 1}},
        {"benign_filtered": {"a": 0, "b": 0, "c": 0}},
        {"malicious_filtered": {"c": 1}, "benign_filtered": {"c": 1}},
        {"benign_filtered": []},
        {"seconds_per_round": None},
    ],
)
def test_lines_count_up_to_one_that_is_wrong(other):
    assert parsed(line(1), line(2), line(3, **other), line(4)) == [1, 2]


@pytest.mark.parametrize("field", records.LINE)
def test_no_field_may_be_missing(field):
    one = line(1)
    del one[field]
    assert parsed(one) == []


def test_detection_rates_cover_all_lines():
    rates = records.detection_rates([line(1), line(2, malicious_filtered={"a": 0, "b": 0})])
    assert rates["layers"] == {
        "a": {"malicious_filtered": 0.5, "benign_kept": 1.0},
        "b": {"malicious_filtered": 0.25, "benign_kept": 0.5},
    }
    assert (rates["malicious_filtered"], rates["benign_kept"]) == (0.375, 0.75)
    assert records.detection_rates([])["malicious_filtered"] is None
    assert records.detection_rates([line(1, malicious=0)])["malicious_filtered"] is None


@pytest.mark.parametrize("lines", [[], [line(1)], [line(1), line(2, test_accuracy=None)]])
def test_a_summary_has_the_form_that_is_checked(lines):
    variables = {"w": np.ones((3, 2), np.float32)}
    summary = records.summary(
        lines, variables, status="finished", seed=1, config_id="x", compile_seconds=1.0, total_seconds=2.0
    )
    assert wrong_fields(json.loads(to_json(summary)), records.SUMMARY) == []
    assert summary["num_parameters"] == 6
    assert summary["best_test_accuracy"] == (0.5 if lines else None)
    assert summary["versions"]["jax"] == jax.__version__


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_of_a_checkout(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit() -> dict[str, str]:
        records._commit.cache_clear()
        return records._commit()

    file = tmp_path / "lasa_jax" / "workdir" / "records.py"
    file.parent.mkdir(parents=True)
    file.touch()
    monkeypatch.setattr(records, "__file__", str(file))
    assert commit() == {}
    git("init")
    assert commit() == {}  # nothing was committed
    git("add", ".")
    git("commit", "-m", "first")
    assert commit() == {"commit": git("rev-parse", "HEAD")}
    file.write_text("1")
    assert commit() == {"commit": git("rev-parse", "HEAD") + "-dirty"}
    monkeypatch.undo()
    records._commit.cache_clear()


def test_what_only_the_last_line_has():
    last = {"worst_tenth_accuracy": 0.25}
    assert parsed(line(1), line(2, **last)) == [1, 2]
    assert parsed(line(1), line(2, worst_tenth_accuracy="0.25")) == [1]
    about = {"status": "finished", "seed": 1, "config_id": "", "compile_seconds": 0.0, "total_seconds": 0.0}
    assert records.summary([line(1), line(2, **last)], {"w": np.zeros(2)}, **about)["worst_tenth_accuracy"] == 0.25
    assert "worst_tenth_accuracy" not in records.summary([line(1)], {"w": np.zeros(2)}, **about)
    assert records.as_not_the_last(line(2, **last)) == line(2)
