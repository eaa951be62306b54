"""Runs in their directories: what is written, and what survives."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from lasa_jax import build, experiment, report
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.federated import Simulation, make_mesh
from lasa_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]


def small(**settings):
    """A short run of the digits with a light program."""
    config = configs.default()
    config.update_from_flattened_dict(
        {
            "rounds": 6,
            "num_clients": 20,
            "clients_per_round": 6,
            "client.epochs": 1,
            "aggregator.name": "fedavg",
            "attack.name": "sign_flip",
            "block_rounds": 2,
            "checkpoint_every": 2,
            **settings,
        }
    )
    return configs.resolve(config)


def run(config, path, **options):
    return experiment.run(config, path, mesh=make_mesh(jax.devices()[:1]), log=lambda text: None, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One whole run, with what was counted while it ran."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    counts = {"traces": 0, "dispatches": 0}
    block, compile_ = Simulation.block, Simulation.compile

    def counted_block(self, *args):
        counts["traces"] += 1
        return block(self, *args)

    def counted_compile(self, *args):
        executable, seconds = compile_(self, *args)

        def dispatch(*args):
            counts["dispatches"] += 1
            return executable(*args)

        return dispatch, seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Simulation, "block", counted_block)
        patch.setattr(Simulation, "compile", counted_compile)
        summary = run(small(), path)
    return path, summary, counts


def test_one_trace_and_one_dispatch_a_block(finished):
    assert finished[2] == {"traces": 1, "dispatches": 3}


def test_files(finished):
    path, summary, _ = finished
    assert json.loads((path / "summary.json").read_text()) == summary
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert summary["best_test_accuracy"] == max(line["test_accuracy"] for line in lines) <= 1
    assert summary["final_test_accuracy"] == lines[-1]["test_accuracy"]
    assert summary["seed"] == 1
    assert len(summary["parameters_sha256"]) == 64
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["detection"]["benign_kept"] == 1.0
    assert set(summary["detection"]["layers"]) == {
        f"params/{layer}/{leaf}" for layer in ("conv1", "conv2", "dense1", "dense2") for leaf in ("kernel", "bias")
    }
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == [
        "round_000004",
        "round_000004.json",
        "round_000006",
        "round_000006.json",
    ]
    assert json.loads((path / "config.json").read_text())["aggregator"]["name"] == "fedavg"
    report.accuracy_curve(path)
    assert (path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_cover_every_round(tmp_path):
    told = []
    summary = run(small(eval_every=4, block_rounds=3), tmp_path / "run", on_metrics=lambda *line: told.append(line))
    with Workdir(tmp_path / "run") as workdir:
        lines = workdir.metrics()
    assert told == [("run", line["round"], line) for line in lines]
    assert [line["round"] for line in lines] == [4, 6]
    assert sum(line["malicious"] + line["benign"] for line in lines) == 6 * 6
    assert summary["rounds"] == 6


def test_a_finished_run_is_not_run_again(finished, monkeypatch):
    path, summary, _ = finished
    monkeypatch.setattr(Simulation, "compile", None)
    said = []
    again = experiment.run(small(), path, log=said.append)
    assert again == summary
    assert said == [f"{path}: finished already"]


def test_another_config_is_refused(finished):
    with pytest.raises(
        InputError, match=r"holds another run, config\.client\.learning_rate is 0\.1 there and 0\.2 here"
    ):
        run(small(**{"client.learning_rate": 0.2}), finished[0])


@pytest.mark.parametrize("damage", ["flip", "truncate", "lose", "no manifest", "cut metrics"])
def test_goes_on_from_the_last_good_checkpoint(finished, tmp_path, damage):
    """As if killed before the summary, with the newest checkpoint damaged: the end is the same bit for bit."""
    whole, summary, _ = finished
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "summary.json").unlink()
    newest = path / "checkpoints" / "round_000006"
    largest = max((f for f in newest.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        largest.write_bytes(content)
    elif damage == "truncate":
        largest.write_bytes(content[: len(content) // 2])
    elif damage == "lose":
        largest.unlink()
    elif damage == "no manifest":
        newest.with_suffix(".json").unlink()
    else:
        metrics = path / "metrics.jsonl"
        metrics.write_text(metrics.read_text()[:-20])
        newest.with_suffix(".json").unlink()
    said = []
    again = experiment.run(small(), path, mesh=make_mesh(jax.devices()[:1]), log=said.append)
    assert again["parameters_sha256"] == summary["parameters_sha256"]
    assert any("going on after round 4" in text for text in said)
    assert any("round 6 or its metrics are damaged" in text for text in said) == (
        damage in ("flip", "truncate", "lose")
    )
    with Workdir(path) as workdir, Workdir(whole) as undisturbed:
        for ours, theirs in zip(workdir.metrics(), undisturbed.metrics(), strict=True):
            assert {**ours, "seconds_per_round": 0} == {**theirs, "seconds_per_round": 0}


def test_damaged_checkpoints_do_not_push_out_good_ones(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    (path / "summary.json").unlink()
    for folder in ("round_000004", "round_000006"):
        for file in (path / "checkpoints" / folder).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    saved = []
    save = Workdir.save_checkpoint

    def save_and_list(self, *arguments, **options):
        save(self, *arguments, **options)
        saved.append(self.checkpoint_rounds())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workdir, "save_checkpoint", save_and_list)
        again = run(small(), path)
    assert saved == [[2], [2, 4], [4, 6]]
    assert again["parameters_sha256"] == finished[1]["parameters_sha256"]


def test_a_checkpoint_without_its_metrics_does_not_count(finished, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(finished[0], path)
    (path / "summary.json").unlink()
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_bytes("".join(lines[:4]).encode() + b"\xff\xfe" + lines[5].encode())
    said = []
    again = experiment.run(small(), path, mesh=make_mesh(jax.devices()[:1]), log=said.append)
    assert any("going on after round 4" in text for text in said)
    assert again["best_test_accuracy"] == finished[1]["best_test_accuracy"]


@pytest.mark.parametrize("left", ["summary.json", "metrics.jsonl"])
def test_results_of_something_else_are_not_touched(tmp_path, left):
    (tmp_path / left).write_text('{"mine": 1}')
    with pytest.raises(InputError, match="choose another directory"):
        run(small(), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == [left]
    assert (tmp_path / left).read_text() == '{"mine": 1}'


def test_without_attack_nobody_is_malicious():
    config = small(**{"attack.name": "none"})
    assert not build.prepare(config).point.malicious.any()


def test_bad_input_leaves_no_directory(tmp_path):
    with pytest.raises(InputError, match="num_clients = 5000"):
        run(small(num_clients=5000), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_divergence_is_a_result(tmp_path):
    summary = run(small(**{"client.learning_rate": 1e6, "client.epochs": 5}), tmp_path)
    assert summary["status"] == "diverged"
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "diverged"


def test_seeds_differ_and_repeat():
    points = [build.prepare(small(seed=seed)).point for seed in (1, 1, 2)]
    np.testing.assert_array_equal(points[0].malicious, points[1].malicious)
    assert not np.array_equal(points[0].malicious, points[2].malicious)


COMMAND = [
    *(sys.executable, "-m", "lasa_jax.main", "--config=configs/digits.py"),
    *("--config.rounds=12", "--config.block_rounds=1", "--config.checkpoint_every=1"),
    *("--config.num_clients=20", "--config.clients_per_round=10"),
]


def start(path: Path) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [*COMMAND, f"--workdir={path}"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_three_kills_change_no_bit(tmp_path):
    """SIGKILL while round 2, 5 and 9 are done, restarted each time, against a run that was left alone."""
    process = start(tmp_path / "undisturbed")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    path = tmp_path / "killed"
    for kill_after in (2, 5, 9):
        process = start(path)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            done = (path / "metrics.jsonl").read_bytes().count(b"\n") if (path / "metrics.jsonl").exists() else 0
            if done >= kill_after:
                break
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (path / "summary.json").exists(), "killed too late to test anything"
    process = start(path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output.decode()
    assert b"going on after round" in output
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("undisturbed", "killed")]
    assert summaries[0]["parameters_sha256"] == summaries[1]["parameters_sha256"]
    assert summaries[0]["best_test_accuracy"] == summaries[1]["best_test_accuracy"]
    assert summaries[0]["detection"] == summaries[1]["detection"]


def test_natural_clients_from_a_source_to_a_summary(tmp_path):
    """FEMNIST's own path: LEAF files, all writers, unequal sizes; the second run needs no source."""
    from tests.data.test_by_client import leaf_user, write_json

    writers = {f"w{index}": leaf_user(index, 3 + 5 * index) for index in range(6)}
    write_json(tmp_path / "leaf" / "train" / "all.json", writers)
    write_json(tmp_path / "leaf" / "test" / "all.json", {"w1": leaf_user(9, 4)})
    settings = {"clients_per_round": 4, "rounds": 2, "client.batch_size": 8, "data_dir": str(tmp_path / "tfds")}
    config = configs.paper("femnist")
    config.update_from_flattened_dict({**settings, "attack.name": "label_flip", "aggregator.name": "bulyan"})
    config.source = str(tmp_path / "leaf")
    lines = []
    summary = run(configs.resolve(config), tmp_path / "run", on_metrics=lambda run, index, line: lines.append(line))
    assert (summary["status"], summary["assumed_malicious"]) == ("finished", 0)
    assert [line["step_waste"] for line in lines] == [1.0, 1.0]
    moved = tmp_path / "moved"
    (tmp_path / "leaf").rename(moved)
    for source in (None, str(moved)):  # the run is of the data, wherever it came from
        config.source = source
        assert run(configs.resolve(config), tmp_path / "run") == summary
    assert json.loads((tmp_path / "run" / "config.json").read_text())["source_id"]
    unfinished = tmp_path / "unfinished"
    shutil.copytree(tmp_path / "run", unfinished)
    (unfinished / "summary.json").unlink()
    write_json(moved / "test" / "all.json", {"w1": leaf_user(8, 4)})
    with pytest.raises(InputError, match=r"holds another run, config\.source_id is"):
        run(configs.resolve(config), unfinished)
    config.clients_per_round = 7
    with pytest.raises(InputError, match=r"clients_per_round = 7: allowed are 1 to config\.num_clients = 6"):
        run(configs.resolve(config), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_model_that_does_not_fit_the_data(tmp_path):
    with pytest.raises(InputError, match=r"config.model = 'lstm' with examples of 'digits', float32"):
        run(small(model="lstm"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_deterministic_run_asks_the_compiler_for_it(tmp_path, monkeypatch):
    """What it changes can be seen on a GPU only; here the options of one reach a compiler that makes nothing of them."""
    asked = []
    plain = jax.stages.Lowered.compile

    def compile_(lowered, compiler_options=None, **others):
        asked.append(compiler_options)
        return plain(lowered, compiler_options, **others)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_)
    monkeypatch.setattr("lasa_jax.federated.simulation.ops.platform", lambda: "gpu")
    run(small(rounds=2, deterministic=True), tmp_path)
    assert asked == [{"xla_gpu_deterministic_ops": True, "xla_gpu_exclude_nondeterministic_ops": True}]
