"""The command line as a user meets it."""

import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from rich.console import Console
from tensorboardX.proto import event_pb2

from lasa_jax import config as configs
from lasa_jax import main, track
from lasa_jax.errors import InputError

ROOT = Path(__file__).parents[1]


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    variables = {**os.environ, "XLA_FLAGS": "", "COLUMNS": "100", **environment}
    variables.pop("TFDS_DATA_DIR", None)
    return subprocess.run(
        [sys.executable, "-m", "lasa_jax.main", *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_from_start_to_end(tmp_path):
    arguments = (
        *(
            "--config=configs/digits.py",
            "--config.rounds=4",
            "--config.block_rounds=2",
            f"--workdir={tmp_path / 'run'}",
        ),
        *("--config.num_clients=20", "--config.clients_per_round=10"),
    )
    result = command(*arguments)
    assert result.returncode == 0, result.stderr
    for text in ("best test accuracy", "malicious clients filtered", "benign clients kept", "seconds per round"):
        assert text in result.stdout
    assert re.search(r"params/dense1/kernel\s+│\s+[\d.]+ %", result.stdout)
    for name in ("config.json", "metrics.jsonl", "summary.json", "accuracy.png", "checkpoints"):
        assert (tmp_path / "run" / name).exists()
    again = command(*arguments)
    assert again.returncode == 0
    assert "finished already" in again.stdout
    other = command(*arguments, "--config.seed=2")
    assert other.returncode == 2
    assert other.stderr.endswith("config.seed is 1 there and 2 here; choose another directory\n")


def test_stopped_by_the_user(tmp_path):
    """Ctrl-C: one line, and the run goes on."""
    path, settings = tmp_path / "run", ("num_clients=8", "clients_per_round=4", "block_rounds=1", "rounds=10000")
    arguments = ("--config=configs/digits.py", *(f"--config.{setting}" for setting in settings), f"--workdir={path}")
    # Where a shell started the tests in the background, Ctrl-C is ignored, and so it would be below.
    listen = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{listen}; runpy.run_module('lasa_jax.main', run_name='__main__')", *arguments],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (path / "metrics.jsonl").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=100)
    assert process.returncode == 130, error
    assert error == "stopped; the same command goes on from the last checkpoint\n"


BAD = {
    "unknown attack": (["--config.attack.name=nosuch"], "attack 'nosuch' is not known: allowed are adaptive"),
    "attack_ratio": (["--config.attack_ratio=1.2"], "config.attack_ratio = 1.2: allowed is 0 <="),
    "clients_per_round": (["--config.clients_per_round=61"], "allowed are 1 to config.num_clients = 60"),
    "natural clients": (
        ["--config.partition.name=natural", "--config.num_clients=40"],
        "config.partition.name = 'natural': the data has no clients of its own",
    ),
    "no such parameter": (["--config.aggregator.lasa.nosuch=1"], "config.aggregator.lasa.nosuch is not a setting"),
    "not selected": (["--config.attack.lie.z=1"], "attack 'lie' is not selected"),
    "sparsity_level": (["--config.aggregator.lasa.sparsity_level=1.5"], "sparsity_level = 1.5: allowed is 0 <="),
    "nan": (["--config.client.learning_rate=nan"], "config.client.learning_rate = nan: allowed is 0 <"),
    "data": (
        ["--config.dataset=mnist", "--config.model=cnn", "--config.data_dir=/nonexistent"],
        "looked for mnist/*/dataset_info.json in /nonexistent (from config.data_dir) and found none; prepare it with",
    ),
    "workdir": ([f"--workdir={ROOT / 'README.md'}"], "README.md: is a file, allowed is a directory"),
    "misspelt": (["--config.atack_ratio=0.1"], "is not a setting (did you mean config.attack_ratio?)"),
    "type": (["--config.rounds=many"], "config.rounds = 'many': allowed is a whole number"),
    "convolution": (
        ["--config.client.convolution=winograd"],
        "config.client.convolution = 'winograd': allowed are auto, patches, taps, grouped",
    ),
    "boolean": (["--config.record_filtering=maybe"], "config.record_filtering = 'maybe': allowed is true or false"),
    "flag": (["--wokdir=x"], "--wokdir=x: is not a flag of lasa-jax run (did you mean --workdir?)"),
    "no flag": (["extra"], "extra: is not a flag of lasa-jax run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(name, capsys):
    arguments, message = BAD[name]
    assert main.main(["--config=configs/digits.py", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nosuch.py"], "--config=configs/nosuch.py: no config file of that name"),
        (["--config=configs/cifar10.py:beta=1"], "'beta' is not known, allowed are alpha"),
        ([], "--config: is missing"),
    ],
)
def test_bad_config_files(arguments, message):
    result = command(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_default_directory_is_named_by_what_is_run():
    config = configs.resolve(configs.default())
    path = main.default_workdir(config)
    assert str(path).startswith("runs/digits_lasa_none_")
    config.seed = 2
    assert main.default_workdir(config) != path


def test_a_dry_run_prints_the_settings_and_makes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["digits", "--dry_run", "--config.attack.byzmean.z=2.5", "--config.rounds=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {"--config.fidelity=official", "--config.attack.byzmean.z=2.5", "--config.rounds=3"} <= set(lines)
    assert lines[-1].startswith("work directory: runs/digits_lasa_byzmean_")
    assert not list(tmp_path.iterdir())


def test_devices_stay_where_a_users_module_has_used_jax(monkeypatch):
    before = jax.devices()
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    main.use_all_cores(4)
    assert jax.devices() == before


def test_tensorboard(tmp_path):
    """Scalars and images of every evaluated round, as in metrics.jsonl."""
    settings = ("rounds=4", "eval_every=1", "block_rounds=4", "num_clients=20", "clients_per_round=10")
    run = tmp_path / "run"
    arguments = (f"--workdir={run}", *(f"--config.{setting}" for setting in settings))
    result = command("--config=configs/digits.py", "--tensorboard", *arguments)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {(value.tag, event.step): value for event in events(run / "tb") for value in event.summary.value}
    names = {
        "train_loss",
        "test_loss",
        "test_accuracy",
        "update_norm",
        "malicious_filtered",
        "benign_kept",
        "filtering",
    }
    assert len(lines) == 4
    assert set(found) == {(name, line["round"]) for name in names for line in lines}
    for line in lines:
        assert found["test_accuracy", line["round"]].simple_value == pytest.approx(line["test_accuracy"])
        assert found["filtering", line["round"]].image.encoded_image_string.startswith(b"\x89PNG")


def test_tensorboard_forgets_rounds_that_are_computed_again(tmp_path):
    """As after a kill: a new writer, whose first round is written already."""
    line = dict.fromkeys(("train_loss", "test_loss", "test_accuracy", "update_norm"), 0.5)
    line |= {"malicious": 1, "benign": 2, "malicious_filtered": {}, "benign_filtered": {}}
    for rounds in ((1, 2, 3), (2, 3, 4)):
        write = track.Board(tmp_path)
        for index in rounds:
            write({**line, "round": index})
        wait_for(tmp_path, rounds[-1])
        time.sleep(1.1)  # the name of a file has the second it was made in
    starts = [event.step for event in events(tmp_path) if event.session_log.status == event.session_log.START]
    assert starts == [1, 2]  # TensorBoard drops what is older and of this round or later ones


def wait_for(folder: Path, last: int) -> None:
    """Until the newest file has a scalar of the last round: a thread writes it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any(event.step == last and event.summary.value for event in events(folder)[-8:]):
            return
        time.sleep(0.1)
    raise AssertionError(f"nothing of round {last} after a minute")


def events(folder: Path) -> list[event_pb2.Event]:
    """Those of all event files: length, its checksum, the event, its checksum; the last may be half written."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while len(data) > 8 and len(data) >= 16 + (length := struct.unpack("<Q", data[:8])[0]):
            found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_a_folder_for_tensorboard_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "tb").write_text("a file where the folder should be")
    filtered = {"malicious_filtered": {"w": 1}, "benign_filtered": {"w": 0}}
    numbers = dict.fromkeys(("train_loss", "test_loss", "test_accuracy", "update_norm"), 0.5)
    board = track.Board(tmp_path / "tb")
    for index in (1, 2):
        board({**numbers, "round": index, "malicious": 1, "benign": 2, **filtered})
    board.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "cannot be written" in said[0]


def test_the_success_of_a_backdoor_is_shown(tmp_path):
    """In TensorBoard, and in the table at the end of a run."""
    numbers = dict.fromkeys(("train_loss", "test_loss", "test_accuracy", "update_norm"), 0.5)
    filtered = {"malicious": 1, "benign": 2, "malicious_filtered": {}, "benign_filtered": {}}
    board = track.Board(tmp_path)
    board({**numbers, **filtered, "round": 1, "attack_success": 0.75})
    board.close()
    found = {value.tag: value.simple_value for event in events(tmp_path) for value in event.summary.value}
    assert found["attack_success"] == 0.75
    console = Console(file=io.StringIO(), width=100)
    rates = {"malicious_filtered": None, "benign_kept": 1.0}
    summary = dict.fromkeys(("best_test_accuracy", "final_test_accuracy", "compile_seconds", "seconds_per_round"), 0.5)
    summary |= {"status": "finished", "rounds": 2, "best_round": 1, "detection": {**rates, "layers": {}}}
    summary |= {"final_attack_success": 0.75, "largest_attack_success": None}
    main.print_summary(summary, configs.resolve(configs.paper("digits")), tmp_path, console)
    assert re.search(r"attack success, final and largest │ +75.0 %, - │", console.file.getvalue())


def test_tensorboard_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--tensorboard: .*lasa_jax\[tensorboard\]"):
        main.run(configs.paper("digits"), tmp_path / "run", with_tensorboard=True)
    assert not (tmp_path / "run").exists()
