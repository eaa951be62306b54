"""Sweeps that run: their programs, batches and faults, and what they find when they are started again."""

import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from lasa_jax import config as configs
from lasa_jax import experiment, grid
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables, Simulation, cards
from lasa_jax.grid import cost
from lasa_jax.workdir import Workdir, read_failure
from tests.grid.sweeps import SMALL, base, results, run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A small sweep, and how often a program was traced."""
    path = tmp_path_factory.mktemp("sweep")
    traces = []
    patch = pytest.MonkeyPatch()
    block = Simulation.block
    patch.setattr(Simulation, "block", lambda *arguments: (traces.append(1), block(*arguments))[1])
    outcomes, shared = run(grid.points(grid.Grid(base(), SMALL)), path)
    patch.undo()
    return path, outcomes, shared, len(traces)


def test_runs_of_a_program_share_one_executable(undisturbed):
    path, outcomes, shared, traces = undisturbed
    assert len(outcomes) == len(results(path)) == 8
    assert len(set(results(path).values())) == 8
    assert len(shared) == traces == 2
    assert all(outcome.summary["status"] == "finished" for outcome in outcomes)


def test_programs_that_are_not_used_are_let_go():
    class Simulated:
        mesh = None

        def compile(self, name):
            return object(), 1.0

    known = Executables(keep=2)
    first, _ = known.get("a", Simulated(), (np.zeros(1),))
    known.get("b", Simulated(), (np.zeros(1),))
    assert known.get("a", Simulated(), (np.zeros(1),)) == (first, 0.0)
    known.get("c", Simulated(), (np.zeros(1),))  # b goes
    assert known.get("a", Simulated(), (np.zeros(1),)) == (first, 0.0)
    assert known.get("b", Simulated(), (np.zeros(1),))[1] > 0
    assert len(known) == 4


def test_a_point_alone_is_the_point_in_the_sweep(undisturbed, tmp_path):
    path, outcomes, *_ = undisturbed
    point = outcomes[5].point
    summary = experiment.run(point.config, tmp_path, log=lambda text: None)
    assert summary["parameters_sha256"] == results(path)[point.name]


def test_outcomes_are_in_the_order_of_the_points(undisturbed):
    """From a grid and a path in a string; nothing is left to run."""
    path, outcomes, *_ = undisturbed
    declared, told = grid.Grid(base(), SMALL), []
    assert [outcome.point for outcome in outcomes] == grid.points(declared)
    assert grid.run(declared, str(path), on_outcome=told.append, log=lambda text: None) == outcomes == told


def test_only_missing_points_run(undisturbed, tmp_path):
    """Of a grid that has grown in the same directory, those that it had not before."""
    path, *_ = undisturbed
    run(grid.Grid(base(), [*SMALL[:2], {"seed": [2]}]), tmp_path)
    before = {name: (tmp_path / name / "summary.json").stat().st_mtime_ns for name in results(tmp_path)}
    assert len(before) == 4
    run(grid.Grid(base(), SMALL), tmp_path)
    assert results(tmp_path) == results(path)
    assert all((tmp_path / name / "summary.json").stat().st_mtime_ns == at for name, at in before.items())


def test_a_failed_point_does_not_stop_the_others(tmp_path):
    found = grid.points(grid.Grid(base(), [{"seed": [1, 2, 3]}]))
    (tmp_path / found[1].name).mkdir()
    (tmp_path / found[1].name / "metrics.jsonl").write_text("{}")  # somebody else's
    outcomes, _ = run(found, tmp_path)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert outcomes[1].error.startswith("InputError: --workdir=")


def test_metrics_are_handed_on_and_written_for_tensorboard(tmp_path):
    """Two runs of one batch and one of another, each with its own; what a hook raises ends the sweep, which then goes on."""
    from tests.test_main import events

    found = grid.points(grid.Grid(base(model="mlp"), [{"seed": [1, 2, 3]}]))
    told: dict[str, list] = {}
    threads = set()

    def hear(name: str, index: int, metrics: dict) -> None:
        threads.add(threading.get_ident())
        told.setdefault(name, []).append(metrics)
        assert metrics["round"] == index

    outcomes, shared = run(found, tmp_path / "whole", batch=2, tensorboard=True, on_metrics=hear)
    assert threads == {threading.get_ident()}
    for outcome in outcomes:
        lines = [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]
        assert told[outcome.point.name] == lines
        shown = [
            (event.step, value.simple_value)
            for event in events(outcome.path / "tb")
            for value in event.summary.value
            if value.tag == "test_accuracy"
        ]
        assert shown == [(line["round"], pytest.approx(line["test_accuracy"])) for line in lines]

    def stumble(name: str, index: int, metrics: dict) -> None:
        if index == 2:
            raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        grid.run(
            found, tmp_path / "cut", batch=2, on_metrics=stumble, executables=shared, log=lambda text: None, threads=1
        )
    grid.run(found, tmp_path / "cut", executables=shared, log=lambda text: None)
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_divergence_is_a_result(tmp_path):
    found = grid.points(grid.Grid(base(**{"attack.name": "nan", "aggregator.name": "fedavg"}), [{"seed": [1]}]))
    outcomes, _ = run(found, tmp_path)
    assert outcomes[0].summary["status"] == "diverged"


def test_plan_counts_without_compiling(undisturbed, tmp_path, monkeypatch):
    path, *_ = undisturbed
    monkeypatch.setattr(Simulation, "compile", None)
    declared = grid.Grid(base(), [*SMALL[:2], {"seed": [1, 2, 3]}])
    new = grid.plan(declared, tmp_path)
    assert (new.points, new.finished, new.programs, new.runs_a_program) == (12, 0, 2, (6, 6))
    assert new.lines()[0] == "points: 12"
    d = 13_706
    assert new.bytes_a_program > 4 * d * 6
    assert new.seconds > 0
    assert grid.plan(grid.points(declared), str(path)).finished == 8


def write_seconds(run: Path, **values) -> None:
    """Other times in the summary of a run."""
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, **values}))


def test_the_time_of_a_plan_is_of_measured_rounds_and_of_compiling(undisturbed, tmp_path, monkeypatch):
    """Rounds of the same program; else of runs that cost alike; compiling once for each program that is left."""
    path, outcomes, *_ = undisturbed
    found = grid.points(grid.Grid(base(), SMALL))
    shutil.copytree(path, tmp_path / "copy")
    first = [outcome.path.name for outcome in outcomes if outcome.point.program == found[0].program]
    assert len(first) == 4
    for name in (point.name for point in found):
        kept = name in first[1:]
        if not kept:
            shutil.rmtree(tmp_path / "copy" / name)
        else:
            write_seconds(tmp_path / "copy" / name, seconds_per_round=3.0, compile_seconds=40.0 * (name == first[1]))
    monkeypatch.setattr(cost, "card_here", None)  # nothing is estimated
    # One point of the first program and four of another, which differs in its rule only: five of four rounds.
    assert grid.plan(found, tmp_path / "copy", threads=1).seconds == 5 * 4 * 3 + 2 * 40
    assert grid.plan(found, tmp_path / "copy", threads=2).seconds == (5 * 4 * 3 + 2 * 40) / 2
    for name in first[1:]:
        write_seconds(tmp_path / "copy" / name, device="1 x another device")
    monkeypatch.setattr(cost, "card_here", lambda: cards.Card(0, 1.0, {"tf32": 1.0}, 1.0))
    assert grid.plan(found, tmp_path / "copy", threads=1).seconds > 1e6


def test_a_batch_on_a_mesh_is_its_runs(undisturbed, tmp_path):
    """Eight runs in two dispatches, on eight devices: as alone to rounding, and the same bits whatever the neighbours."""
    path, *_ = undisturbed
    found = grid.points(grid.Grid(base(), SMALL))
    outcomes, shared = run(found, tmp_path / "together", batch=4)
    assert len(shared) == 2
    assert json.loads((tmp_path / "together" / "sweep.json").read_text())["batch"].keys() == grid.programs(found).keys()
    for outcome in outcomes:
        alone = json.loads((path / outcome.path.name / "metrics.jsonl").read_text().splitlines()[0])
        first = json.loads((outcome.path / "metrics.jsonl").read_text().splitlines()[0])
        assert first["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)
        assert (first["malicious"], first["benign"]) == (alone["malicious"], alone["benign"])
    # Two of the four are missing: they run in a batch of four, with copies beside them.
    missing = tmp_path / "missing"
    shutil.copytree(tmp_path / "together", missing)
    for point in found[1:3]:
        shutil.rmtree(missing / point.name)
    again, _ = run(found, missing)
    assert results(missing) == results(tmp_path / "together")
    assert sum(outcome.path.parent == missing for outcome in again) == 8
    with pytest.raises(InputError, match=r"--batch=2: the results in .* were made in batches of 4"):
        run(found, missing, batch=2)


def test_one_bad_directory_does_not_stop_the_others_of_its_batch(tmp_path):
    found = grid.points(grid.Grid(base(), [{"seed": [1, 2, 3]}]))
    bad = tmp_path / found[0].name
    bad.mkdir()
    (bad / "config.json").write_text(configs.to_json(found[0].config))
    (bad / "checkpoints").write_text("")  # a file where a folder must be, found only when the first is saved
    outcomes, _ = run(found, tmp_path, batch=3)
    assert [outcome.error is None for outcome in outcomes] == [False, True, True]
    assert "the checkpoint of round 2 cannot be written" in outcomes[0].error
    assert str(bad) in outcomes[0].error


def test_a_damaged_summary_is_one_failed_point(undisturbed, tmp_path):
    path, *_ = undisturbed
    found = grid.points(grid.Grid(base(), SMALL))
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / found[3].name / "summary.json").write_text("{")
    assert grid.plan(found, tmp_path / "copy").seconds == 0
    outcomes, _ = run(found, tmp_path / "copy")
    assert sum(outcome.error is None for outcome in outcomes) == 7


def test_a_batch_goes_on_where_all_of_its_runs_are(tmp_path):
    """One of three runs lost its last checkpoint, one diverged; the others end as if nothing had been."""
    declared = grid.Grid(base(rounds=6), [{"client.learning_rate": [0.1, 1e6, 0.05]}])
    found = grid.points(declared)
    whole, _ = run(found, tmp_path / "whole", batch=4)
    assert [outcome.summary["status"] for outcome in whole] == ["finished", "diverged", "finished"]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for point in (found[0], found[2]):
        (tmp_path / "cut" / point.name / "summary.json").unlink()
    checkpoints = tmp_path / "cut" / found[2].name / "checkpoints"
    (checkpoints / "round_000006.json").write_text("{}")
    run(found, tmp_path / "cut")
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_a_worker_keeps_its_program_and_takes_a_new_one_before_it_shares():
    found = grid.points(grid.Grid(base(), SMALL))
    sizes = dict.fromkeys(grid.programs(found), 1)
    waiting = grid.Queue(grid.batches(found, Path("nowhere"), sizes))
    first, second = waiting.take(None), waiting.take(None)
    assert first.program != second.program
    assert [waiting.take(first.program).program for _ in range(3)] == [first.program] * 3
    third = waiting.take(first.program)
    assert third.program == second.program
    waiting.put_back(third)
    assert len(waiting) == 3
    assert waiting.take(second.program) is third


def test_a_point_that_another_process_runs_has_not_failed(tmp_path):
    (point,) = grid.points(grid.Grid(base(), [{"seed": [1]}]))
    with Workdir(tmp_path / point.name):
        (outcome,), _ = run([point], tmp_path)
    assert "in use by process" in outcome.error
    assert read_failure(tmp_path, point.name) is None
