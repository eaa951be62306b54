"""Grids: their points, programs and faults, and sweeps that are stopped and started again."""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from lasa_jax import aggregators, attacks, build, experiment, grid, ops, track
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables, Simulation, cards, make_mesh, memory
from lasa_jax.grid import cost, work
from lasa_jax.launch import sweep
from lasa_jax.workdir import write_batch_sizes

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "configs" / "sweeps"


@dataclasses.dataclass
class Device:
    """A device that is only described."""

    device_kind: str
    platform: str


def base(**settings):
    """A light run of the digits."""
    config = configs.paper("digits")
    light = {"rounds": 4, "num_clients": 20, "clients_per_round": 6, "client.epochs": 1, "block_rounds": 2}
    config.update_from_flattened_dict({**light, "checkpoint_every": 2, "attack.name": "lie", **settings})
    return config


SMALL = [{"aggregator.name": ["fedavg", "median"]}, {"attack_ratio": [0.1, 0.3]}, {"seed": [1, 2]}]


def test_sweep_of_the_costs_varies_clients_and_model():
    found = grid.points(grid.load(f"{SWEEPS / 'cost'}.py:digits"))
    assert len(found) == len(grid.programs(found)) == 72
    assert sorted({(point.config.clients_per_round, point.config.model) for point in found}) == [
        (n, model) for n in (7, 15, 22, 30) for model in ("cnn", "small_cnn")
    ]
    assert len(grid.points(grid.load(f"{SWEEPS / 'cost'}.py:mnist"))) == 36


@pytest.mark.parametrize(
    ("name", "points", "programs"),
    [("figure1", 363, 21), ("table1", 243, 81), ("table2", 63, 3), ("table3", 42, 2), ("ablation", 54, 9)],
)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "femnist", "cifar10"])
def test_the_papers_sweeps(name, points, programs, dataset):
    """The supplement's experiments, exactly: how many runs, and how many compiled programs."""
    found = grid.points(grid.load(f"{SWEEPS / name}.py:{dataset}"))
    assert len(found) == points
    assert len(grid.programs(found)) == programs
    assert {point.config.dataset for point in found} == {dataset}
    assert {point.config.fidelity for point in found} == {"official"}
    assert f"configs/sweeps/{name}.py:digits" in (SWEEPS / f"{name}.py").read_text()


def test_the_sweep_of_all_pairs():
    """Every rule and attack that has a name, the triggered ones apart; words may follow the dataset."""
    declared = grid.load(f"{SWEEPS / 'pairs'}.py:digits,seeds=2,rounds=3")
    rules, those, seeds = (values for axis in declared.axes for values in axis.values())
    triggered = {name for name in attacks.names() if attacks.create(name).trigger is not None}
    assert list(rules) == aggregators.names()
    assert set(those) == set(attacks.names()) - triggered
    assert list(seeds) == [1, 2]
    assert (declared.base.rounds, declared.base.fidelity, declared.base.clients_per_round) == (3, "official", 30)
    few = {(point["aggregator.name"], point["clients_per_round"]) for point in declared.points}
    assert few == {("fedavg", 15), ("mda", 15), ("smea", 15)}
    assert len(declared.points) == 3 * 2 * len(those)
    one = grid.points(grid.Grid(declared.base, axes=[{"seed": seeds}], points=declared.points[:1]))
    assert len(one) == 3
    assert len(grid.programs(one)) == 2  # two seeds share one
    other = grid.load(f"{SWEEPS / 'pairs'}.py:mnist,clients=20,fidelity=paper,alpha=0.1").base
    assert (other.clients_per_round, other.fidelity, other.partition.name) == (20, "paper", "dirichlet")
    with pytest.raises(InputError, match="'attack' is not known, allowed are alpha, shards"):
        grid.load(f"{SWEEPS / 'pairs'}.py:digits,attack=lie")


def test_points_are_the_product_and_tied_fields_change_together():
    radii = {"aggregator.lasa.magnitude_radius": [1.0, 2.0], "aggregator.lasa.direction_radius": [3.0, 4.0]}
    found = grid.points(grid.Grid(base(), [radii, {"seed": [1, 2, 3]}], [{"seed": 9}]))
    parameters = [point.config.aggregator.parameters for point in found]
    pairs = [(p.magnitude_radius, p.direction_radius) for p in parameters]
    assert pairs == [(1.0, 3.0)] * 3 + [(2.0, 4.0)] * 3 + [(2.0, 1.0)]
    assert [point.config.seed for point in found] == [1, 2, 3, 1, 2, 3, 9]


def test_a_point_carries_its_name_and_its_program():
    for point in grid.points(grid.Grid(base(), SMALL)):
        assert point == grid.Point(point.config, configs.run_name(point.config), configs.program_key(point.config))


def test_nothing_is_counted_twice():
    found = grid.points(grid.Grid(base(), [{"seed": [1, 1, 2]}], [{"seed": 2}, {"data_dir": "elsewhere", "seed": 1}]))
    assert [point.config.seed for point in found] == [1, 2]


NUMBERS = {
    "seed": 7,
    "attack_ratio": 0.1,
    "client.learning_rate": 0.05,
    "client.momentum": 0.5,
    "client.learning_rate_decay": 0.9,
    "aggregator.assumed_malicious": 3,
    "aggregator.lasa.sparsity_level": 0.7,
    "aggregator.lasa.magnitude_radius": float("inf"),
    "attack.lie.z": 1.5,
    "checkpoint_every": 7,
}
WORDS = {
    "aggregator.lasa.granularity": "model",
    "attack.lie.knowledge": "all",
    "client.epochs": 2,
    "client.clip_norm": 1.0,
    "rounds": 5,
    "num_clients": 30,
    "batch_stats": "separate",
}


def test_numbers_share_a_program_and_words_do_not():
    plain = configs.program_key(configs.resolve(base()))
    for field, value in NUMBERS.items():
        assert configs.program_key(grid.resolve(base(), {field: value})) == plain, field
    for field, value in WORDS.items():
        assert configs.program_key(grid.resolve(base(), {field: value})) != plain, field


def test_all_faults_are_named_before_the_first_run():
    faulty = grid.Grid(
        base(),
        [
            {"sead": [1]},
            {"seed": []},
            {"attack_ratio": [0.1, 0.2], "client.momentum": [0.5]},
        ],
    )
    with pytest.raises(grid.GridError) as error:
        grid.points(faulty)
    assert error.value.faults == [
        "axis seed: is empty",
        "axis attack_ratio, client.momentum: tied fields must have as many values as each other (attack_ratio 2, "
        "client.momentum 1)",
        "config.sead is not a setting (did you mean config.seed?)",
    ]
    with pytest.raises(grid.GridError, match="axis seed: is in 2 axes, and only the last would count"):
        grid.points(grid.Grid(base(), [{"seed": [1, 2]}, {"seed": [3, 4]}]))
    with pytest.raises(grid.GridError) as error:
        grid.points(grid.Grid(base(), [{"attack_ratio": [0.1, 1.5]}, {"aggregator.name": ["lasa", "lassa"]}]))
    assert len(error.value.faults) == 2
    assert any("attack_ratio = 1.5" in fault for fault in error.value.faults)
    with pytest.raises(grid.GridError, match=r"config\.seed = 'x': allowed is a value of type int"):
        grid.points(grid.Grid(base(), [{"seed": ["x"]}]))


@pytest.mark.parametrize(
    ("axes", "points", "faults"),
    [
        (
            [{"aggregator.name": ["lasa", "krum"]}, {"aggregator.lasa.sparsity_level": [0.1, 0.5]}],
            [],
            ["config.aggregator.lasa.sparsity_level: aggregator 'lasa' is not selected"],
        ),
        (
            [{"partition.alpha": [0.1, 0.5]}],
            [],
            ["config.partition.alpha: is of the partition dirichlet, quantity_skew"],
        ),
        (
            [],
            [{"attack.lie.z": 1.0, "attack.name": "zero"}, {"partition.gamma": 0.5}],
            ["config.attack.lie.z: attack 'lie' is not selected", "config.partition.gamma: is of the partition"],
        ),
    ],
)
def test_settings_without_effect_are_refused(axes, points, faults):
    with pytest.raises(grid.GridError) as error:
        grid.points(grid.Grid(base(), axes, points))
    assert len(error.value.faults) == len(faults)
    assert all(found.startswith(fault) for found, fault in zip(error.value.faults, faults, strict=True))


def test_numpy_makes_axes():
    axes = [{"seed": np.arange(3)}, {"record_filtering": np.array([False, True])}, {"rounds": [np.int32(5)]}]
    found = grid.points(grid.Grid(base(), axes))
    assert [point.config.seed for point in found] == [0, 0, 1, 1, 2, 2]
    assert all(type(value) is int for point in found for value in (point.config.seed, point.config.rounds))


def run(points, path, **options) -> tuple[list, Executables]:
    shared = Executables()
    return grid.run(points, path, executables=shared, log=lambda text: None, **options), shared


def results(path: Path) -> dict[str, str]:
    """The hash of the final model of every finished run."""
    return {file.parent.name: json.loads(file.read_text())["parameters_sha256"] for file in path.glob("*/summary.json")}


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


def test_tensorboard_is_an_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    assert (
        sweep.main([f"--config={SWEEPS / 'table3.py'}:digits", f"--workdir={tmp_path / 'out'}", "--tensorboard"]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --tensorboard: needs the extra")
    assert not (tmp_path / "out").exists()


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


def test_a_batch_that_does_not_fit_is_made_smaller(tmp_path):
    """By the compiled program's own analysis; a size that results were made with stays, and its refusal is one line."""
    found = grid.points(grid.Grid(base(model="mlp", **{"aggregator.name": "fedavg"}), [{"seed": list(range(16))}]))
    needs = []
    for count in (8, 16):
        placed = build.place([build.prepare(point.config) for point in found[:count]], make_mesh(runs=8))
        needs.append(memory.needed(placed.simulation.compile(*placed[1:])[0]))
    assert needs[0] < needs[1]
    less = Executables(memory_limit=sum(needs) // 2)
    outcomes = grid.run(found, tmp_path, batch=16, executables=less, log=lambda text: None)
    assert [outcome.error for outcome in outcomes] == [None] * 16
    assert set(grid.batch_sizes(found, tmp_path).values()) == {8}
    shutil.rmtree(tmp_path / found[0].name)
    again = grid.run(found, tmp_path, executables=Executables(memory_limit=1000), log=lambda text: None)
    assert [outcome.error is None for outcome in again] == [False] + [True] * 15
    assert again[0].error.startswith("DoesNotFit: config.client_chunk = None: one client at a time need")
    assert set(grid.batch_sizes(found, tmp_path).values()) == {8}


class TestFitting:
    H100 = Device("NVIDIA H100 80GB HBM3", "gpu")

    def fitting(self, *, devices=1, count=1000, limit=10**11, **settings):
        config = configs.resolve(base(**settings))
        return cost.fitting(config, count, devices=[self.H100] * devices, limit=limit)

    def test_small_runs_go_together_until_launches_are_hidden(self):
        assert 8 < self.fitting() < 200

    def test_runs_with_work_enough_go_alone(self):
        assert self.fitting(model="cnn", num_clients=100, clients_per_round=100, **{"client.epochs": 5}) == 1

    def test_no_more_than_the_memory_holds(self):
        config = configs.resolve(base())
        with ops.compiling_for("gpu"):
            one = cost.of(config, 10**11)
        assert self.fitting(limit=10**11) > 4
        assert self.fitting(limit=int((one.data + 4.5 * one.run) / 0.8)) == 4

    def test_no_more_than_there_are_and_whole_rows(self):
        assert self.fitting(count=5) == 5
        assert self.fitting(count=16, devices=8) == 16
        assert self.fitting(count=13, devices=8) == 16

    def test_one_on_a_cpu(self):
        assert cost.fitting(configs.resolve(base()), 1000) == 1


def test_work_is_counted_through_loops_and_calls():
    x = jax.ShapeDtypeStruct((8, 8), np.float32)

    def three(x):
        return jax.lax.scan(lambda y, _: (jax.jit(lambda z: z @ z)(y) + 1, None), x, length=3)[0]

    assert work.of(three, x) == work.Work(3 * 3 * 256, 3 * 2 * 8**3, 3)
    assert work.of(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x), x).operations == 2 * 2 * 8**3
    images, kernel = jax.ShapeDtypeStruct((2, 9, 9, 3), np.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), np.float32)
    assert (
        work.of(
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            images,
            kernel,
        ).operations
        == 2 * (2 * 7 * 7 * 5) * 27
    )


def test_seconds_are_of_launches_and_of_the_longer_of_bytes_and_products():
    card = cards.Card(0, 100.0, {"tf32": 10.0}, 2.0)
    one = cost.Cost(0, 0, work.Work(200.0, 50.0, 4), "tf32")
    assert one.seconds(card) == 4 * 2 + 5
    assert one.seconds(card, runs=4) == 4 * 2 / 4 + 5
    assert dataclasses.replace(one, round=work.Work(900.0, 50.0, 4)).seconds(card) == 4 * 2 + 9


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


def test_a_plan_without_measurements_counts_compiling(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "card_here", lambda: cards.Card(0, 1e30, dict.fromkeys(("tf32",), 1e30), 0.0))
    found = grid.points(grid.Grid(base(), SMALL))
    assert grid.plan(found, tmp_path, threads=1).seconds == pytest.approx(2 * cost.compiling())


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


def test_threads_change_no_bit(undisturbed, tmp_path):
    """Two batches side by side, as on a CPU of two cores; in a process of one device, where that is allowed."""
    (tmp_path / "small.py").write_text(SWEEP_FILE)
    arguments = (f"--config={tmp_path / 'small.py'}:digits", "--threads=2", f"--workdir={tmp_path / 'out'}")
    process = command(*arguments)
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error
    one = command(*arguments[:1], "--threads=1", f"--workdir={tmp_path / 'one'}")
    _, error = one.communicate(timeout=600)
    assert one.returncode == 0, error
    assert results(tmp_path / "out") == results(tmp_path / "one")


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


SWEEP_FILE = """
from lasa_jax.config import paper
from lasa_jax.grid import Grid


def get_grid(dataset):
    base = paper(dataset)
    light = {"rounds": 4, "num_clients": 20, "clients_per_round": 6, "client.epochs": 1, "block_rounds": 2}
    base.update_from_flattened_dict({**light, "checkpoint_every": 2, "attack.name": "lie"})
    axes = [{"aggregator.name": ["fedavg", "median"]}, {"attack_ratio": [0.1, 0.3]}, {"seed": [1, 2]}]
    return Grid(base, axes)
"""


def command(*arguments: str, **options) -> subprocess.Popen:
    environment = {
        **os.environ,
        "XLA_FLAGS": "",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "launch.sweep", *arguments],
        **{
            "cwd": ROOT,
            "env": environment,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            **options,
        },
    )


@pytest.mark.parametrize(
    ("seeds", "kills"), [([1, 2], 3), pytest.param([1, 2, 3, 4, 5, 6], 5, marks=pytest.mark.slow)], ids=["8", "24"]
)
def test_killed_and_started_again(tmp_path, seeds, kills):
    """SIGKILL at random moments: the sweep ends with every result once, and the bits of one that was left alone."""
    (tmp_path / "small.py").write_text(SWEEP_FILE.replace('"seed": [1, 2]', f'"seed": {seeds}'))
    count = 4 * len(seeds)
    arguments = (f"--config={tmp_path / 'small.py'}:digits",)
    whole = command(*arguments, f"--workdir={tmp_path / 'whole'}")
    out, error = whole.communicate(timeout=600)
    assert whole.returncode == 0, error
    assert f"results: {count} of {count}" in out
    assert "compiled programs: 2" in out
    clock = random.Random(0)
    for _ in range(kills):
        process = command(*arguments, f"--workdir={tmp_path / 'killed'}")
        time.sleep(clock.uniform(4, 14))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    last = command(*arguments, f"--workdir={tmp_path / 'killed'}")
    out, error = last.communicate(timeout=600)
    assert last.returncode == 0, error
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert sum(path.is_dir() for path in (tmp_path / "killed").iterdir()) == count


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"seed": [1]}, "axes and points are lists of dictionaries"),
        ([], "has neither axes nor points"),
        (["seed"], "'seed' is not a dictionary of fields"),
        ([{"aggregator.name": "lasa"}], "axis aggregator.name: 'lasa' is not a list of values"),
        ([{"seed": 1}], "axis seed: 1 is not a list of values"),
        ([{"seed": b"12"}], "axis seed: b'12' is not a list of values"),
        ([{"seed": np.array([[1], [2]])}], r"axis seed: array\(\[\[1\], \[2\]\]\) is not a list of values$"),
        ([{"seed": np.array(1)}], r"axis seed: array\(1\) is not a list of values"),
    ],
)
def test_what_is_no_grid(axes, message):
    with pytest.raises(grid.GridError, match=message):
        grid.points(grid.Grid(base(), axes))


@pytest.mark.parametrize("holder", [np.array, jnp.array, pd.Series, pd.Index, tuple])
def test_an_axis_may_be_any_array(holder):
    """Its values are Python's in the configs."""
    points = grid.points(grid.Grid(base(), [{"seed": holder([3, 4])}]))
    assert [(type(point.config.seed), point.config.seed) for point in points] == [(int, 3), (int, 4)]


def test_a_size_that_nothing_was_made_with_can_be_changed(tmp_path):
    found = grid.points(grid.Grid(base(), SMALL))
    workdir_sizes = grid.batch_sizes(found, tmp_path, batch=3)
    write_batch_sizes(tmp_path, workdir_sizes)
    assert set(grid.batch_sizes(found, tmp_path).values()) == {3}
    assert set(write_batch_sizes(tmp_path, grid.batch_sizes(found, tmp_path, batch=2)).values()) == {2}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch=0"], "argument --batch: '0': allowed is a whole number from 1 on"),
        (["--gpus=2"], "--gpus=2.0: is for --backend=ray, not local"),
        (["--backend=slurm", "--threads=2"], "--threads=2: is for --backend=local, not slurm"),
        (["--backend=cloud"], "argument --backend: invalid choice: 'cloud'"),
    ],
)
def test_bad_flags_are_one_line(flags, message, tmp_path, capsys):
    assert sweep.main([f"--config={SWEEPS / 'table3.py'}:digits", f"--workdir={tmp_path / 'out'}", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no sweep of that name"),
        ("def get_grid(d):\n    return None", "get_grid gives NoneType, allowed is a lasa_jax.grid.Grid"),
        ("def get_grid(d):\n    return 1 / 0", "ZeroDivisionError: division by zero"),
        ("x = 1", "bad.py: has no function get_grid"),
        ("def get_grid(d):\n    return 1 / 0 if d == 'x' else int('a')", "ValueError: invalid literal"),
        (SWEEP_FILE.replace('"seed": [1, 2]', '"seed": []'), "axis seed: is empty"),
    ],
)
def test_bad_sweeps_are_one_line(content, message, tmp_path, capsys):
    path = tmp_path / "bad.py"
    if content is not None:
        path.write_text(content)
    assert sweep.main([f"--config={path}:digits", f"--workdir={tmp_path / 'out'}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_dry_run_writes_nothing(tmp_path, capsys):
    path = tmp_path / "small.py"
    path.write_text(SWEEP_FILE)
    assert sweep.main([f"--config={path}", f"--workdir={tmp_path / 'out'}", "--dry_run"]) == 0
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        *("points", "finished", "programs", "runs a program", "runs in a batch", "memory a program", "estimated time")
    ]
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_known(tmp_path):
    with pytest.raises(InputError, match="dataset = 'imagenet': allowed are digits"):
        grid.load(f"{SWEEPS / 'figure1.py'}:imagenet")
