"""More rounds for finished runs: the bits of a run that had them from the start, or one line."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from lasa_jax import config as configs
from lasa_jax import experiment, grid, main
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables, Simulation, make_mesh
from lasa_jax.launch import sweep
from lasa_jax.workdir import Workdir, records, write_batch_sizes
from tests.grid.sweeps import SWEEP_FILE, base, results
from tests.test_experiment import small

SHORT, LONG = 6, 10


def light(rounds: int, **settings):
    return small(rounds=rounds, model="mlp", **{"attack.name": "mimic", "aggregator.name": "lasa", **settings})


def run(config, path: Path) -> dict:
    return experiment.run(config, path, mesh=make_mesh(jax.devices()[:1]), log=lambda text: None)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A finished run that recorded its filtering, with checkpoints of the rounds 4 and 6."""
    path = tmp_path_factory.mktemp("extending") / "short"
    run(light(SHORT, record_filtering=True), path)
    return path


@pytest.fixture
def copy(short, tmp_path) -> Path:
    return Path(shutil.copytree(short, tmp_path / "short"))


def same(one: Path, other: Path) -> None:
    """Two runs have the same parameters, metrics and filtering; times aside."""
    summaries = [json.loads((path / "summary.json").read_text()) for path in (one, other)]
    for name in ("parameters_sha256", "best_test_accuracy", "best_round", "detection", "rounds", "config_id"):
        assert summaries[0][name] == summaries[1][name], name
    lines = [[{**line, "seconds_per_round": 0} for line in Workdir(p, lock=False).metrics()] for p in (one, other)]
    assert lines[0] == lines[1]
    assert [path.name for path in one.glob("filtering/*")] == [path.name for path in other.glob("filtering/*")]
    for path in one.glob("filtering/*"):
        assert path.read_bytes() == (other / "filtering" / path.name).read_bytes()


def test_the_bits_of_a_run_that_had_the_rounds_from_the_start(copy, tmp_path, monkeypatch):
    """Round 7 is the first that is computed; called again, nothing is; and it can be extended again."""
    longer, path = light(LONG, record_filtering=True), tmp_path / "long"
    before = {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()}
    experiment.extend(copy, longer, path)
    assert Workdir(path, lock=False).checkpoint_rounds() == [SHORT]
    said: list[str] = []
    experiment.run(longer, path, mesh=make_mesh(jax.devices()[:1]), log=said.append)
    assert f"{path}: going on after round {SHORT}" in said
    run(longer, tmp_path / "whole")
    same(path, tmp_path / "whole")
    assert {file: file.read_bytes() for file in copy.rglob("*") if file.is_file()} == before
    monkeypatch.setattr(Simulation, "compile", None)
    experiment.extend(copy, longer, path)
    assert run(longer, path)["rounds"] == LONG


@pytest.mark.parametrize(("rounds", "longer", "settings"), [(3, 8, {"block_rounds": 10}), (7, 12, {"eval_every": 3})])
def test_whatever_the_length_of_blocks_and_what_is_evaluated(rounds, longer, settings, tmp_path):
    """A shorter run has shorter blocks; and its last round is evaluated, which a longer run may not do there."""
    settings = {"checkpoint_every": 1, "aggregator.name": "fedavg", **settings}
    run(light(rounds, **settings), tmp_path / "short")
    experiment.extend(tmp_path / "short", light(longer, **settings), tmp_path / "long")
    (begun,) = Workdir(tmp_path / "long", lock=False).checkpoint_rounds()
    assert begun == (3 if rounds == 3 else 6)
    run(light(longer, **settings), tmp_path / "long")
    run(light(longer, **settings), tmp_path / "whole")
    same(tmp_path / "long", tmp_path / "whole")


def test_a_kill_while_it_begins_is_made_up_for(copy, tmp_path, monkeypatch):
    """Everything but the checkpoint was copied: the same call begins again."""
    longer, path = light(LONG, record_filtering=True), tmp_path / "long"
    with monkeypatch.context() as patch:
        patch.setattr("lasa_jax.workdir.checkpoints.Checkpoints.copy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            experiment.extend(copy, longer, path)
    assert not Workdir(path, lock=False).checkpoint_rounds()
    experiment.extend(copy, longer, path)
    assert Workdir(path, lock=False).checkpoint_rounds() == [SHORT]


def change(path: Path, **values) -> None:
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, **values}))


def damage_the_last(path: Path) -> None:
    for file in (path / "checkpoints" / "round_000006").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")


def test_a_damaged_checkpoint_is_not_begun_from(copy, tmp_path):
    damage_the_last(copy)
    experiment.extend(copy, light(LONG, record_filtering=True), tmp_path / "long")
    assert Workdir(tmp_path / "long", lock=False).checkpoint_rounds() == [4]
    assert [line["round"] for line in Workdir(tmp_path / "long", lock=False).metrics()] == [1, 2, 3, 4]


VERSIONS = {**records.versions(), "jax": "0.0.1"}
REFUSED = {
    "nothing there": (shutil.rmtree, {}, "holds no run; run it without --extend first"),
    "not finished": (lambda path: (path / "summary.json").unlink(), {}, "is not finished (round 6 of 6)"),
    "diverged": (lambda path: change(path, status="diverged"), {}, "diverged in round 6: more rounds change nothing"),
    "fewer rounds": (None, {"rounds": 5}, "--extend=5: allowed is more than config.rounds = 6"),
    "as many rounds": (None, {"rounds": 6}, "--extend=6: allowed is more than config.rounds = 6"),
    "another run": (None, {"seed": 2}, "holds another run, config.seed is 1 there and 2 here"),
    "another device": (
        lambda path: change(path, device="1 x NVIDIA H100"),
        {},
        "was run with devices 1 x NVIDIA H100, and this is 8 x cpu: the result would differ",
    ),
    "another version": (
        lambda path: change(path, versions=VERSIONS),
        {},
        f"was run with jax 0.0.1, and this is {jax.__version__}: the result would differ",
    ),
    "no checkpoint": (lambda path: shutil.rmtree(path / "checkpoints"), {}, "has no good checkpoint"),
    "no metrics": (lambda path: (path / "metrics.jsonl").write_text(""), {}, "has no good checkpoint"),
    "other batches": (
        lambda path: write_batch_sizes(path.parent, {configs.program_key(light(SHORT, record_filtering=True)): 4}),
        {},
        "was made in batches of 4, and this would be 1: the result would differ",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_it_would_differ_it_is_refused_in_one_line(name, copy, tmp_path):
    spoil, settings, message = REFUSED[name]
    if spoil is not None:
        spoil(copy)
    with pytest.raises(InputError) as error:
        experiment.extend(copy, light(**{"rounds": LONG, "record_filtering": True, **settings}), tmp_path / "long")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "long").exists()


def test_blocks_of_another_length_are_refused_on_an_accelerator(copy, tmp_path, monkeypatch):
    class Device:
        platform = "gpu"

    monkeypatch.setattr("lasa_jax.experiment.extending.jax.devices", lambda: [Device()])
    monkeypatch.setattr("lasa_jax.experiment.extending.records.device", lambda: "8 x cpu")
    experiment.extend(copy, light(LONG, record_filtering=True), tmp_path / "as long")  # two rounds in both
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "block_rounds": 8}))
    with pytest.raises(InputError, match="had 6 rounds in a block, and this has 8: the result may differ"):
        experiment.extend(copy, light(LONG, record_filtering=True, block_rounds=8), tmp_path / "longer")


def test_a_setting_that_depends_on_the_rounds_is_refused():
    """None of ours does; one that a version to come decides by the rounds would be found by comparing both configs."""
    with pytest.raises(
        InputError, match=r"--extend=10: config\.client\.decay_every is 1 .* since it depends on the num"
    ):
        experiment.check_extends(light(SHORT), light(LONG, **{"client.decay_every": 2}))
    with pytest.raises(InputError, match=r"--extend=6: allowed is more than config\.rounds = 10"):
        experiment.check_extends(light(LONG), light(SHORT))


def test_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")
    settings = (
        "model=mlp",
        "aggregator.name=fedavg",
        "num_clients=20",
        "clients_per_round=6",
        "client.epochs=1",
        "block_rounds=2",
    )
    arguments = ["digits", *(f"--config.{setting}" for setting in settings), "--config.rounds=4"]
    assert main.main([*arguments, "--workdir=run", "--extend=8"]) == 2
    assert capsys.readouterr().err == "error: --extend=8: run holds no run; run it without --extend first\n"
    assert main.main([*arguments, "--workdir=run"]) == 0
    assert main.main([*arguments, "--workdir=run", "--extend=8"]) == 0
    assert "going on after round 4" in capsys.readouterr().out
    assert main.main([*arguments, "--config.rounds=8", "--workdir=whole"]) == 0
    same(tmp_path / "run_8_rounds", tmp_path / "whole")
    assert main.main([*arguments, "--workdir=run", "--extend=3"]) == 2
    assert capsys.readouterr().err == "error: --extend=3: allowed is more than config.rounds = 4\n"
    assert main.main([*arguments, "--workdir=run", "--extend=x"]) == 2
    assert "argument --extend: 'x': allowed is a whole number from 1 on" in capsys.readouterr().err


def test_the_directory_of_a_longer_run(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main.longer_workdir(Path("runs/a"), 80) == Path("runs/a_80_rounds")
    assert main.longer_workdir(Path("."), 80) == tmp_path / "here_80_rounds"


def test_a_sweep_goes_on_with_more_rounds(tmp_path, capsys):
    """In batches of two; a point whose old run is not finished fails, and the others are as if they had had the rounds."""
    declared = grid.Grid(
        base(model="mlp", **{"aggregator.name": "fedavg"}), [{"attack_ratio": [0.1, 0.3]}, {"seed": [1, 2]}]
    )
    short, long = grid.points(declared), grid.extended(declared, 6)
    assert [point.extends.name for point in long] == [point.name for point in short]
    shared = Executables()
    grid.run(short, tmp_path / "sweep", batch=2, executables=shared, log=lambda text: None)
    (tmp_path / "sweep" / short[3].name / "summary.json").unlink()
    plan = grid.plan(long, tmp_path / "sweep")
    assert (plan.points, plan.finished, plan.runs_in_a_batch) == (4, 0, (2, 2))
    outcomes = grid.run(long, tmp_path / "sweep", executables=shared, log=lambda text: None)
    assert [outcome.error is None for outcome in outcomes] == [True, True, True, False]
    assert "is not finished (round 4 of 4)" in outcomes[3].error
    whole = [dataclasses.replace(point, extends=None) for point in long]
    grid.run(whole, tmp_path / "whole", batch=2, executables=shared, log=lambda text: None)
    for point in long[:3]:
        same(tmp_path / "sweep" / point.name, tmp_path / "whole" / point.name)
    with pytest.raises(InputError, match="were made in batches of 2"):
        grid.run(grid.extended(declared, 7), tmp_path / "sweep", batch=4, executables=shared, log=lambda text: None)


def test_points_of_several_lengths_that_become_one_go_on_from_the_longest():
    declared = grid.Grid(base(), [{"rounds": [3, 5, 4]}, {"seed": [1, 2]}])
    found = grid.extended(declared, 8)
    assert [(point.config.seed, point.extends.config.rounds) for point in found] == [(1, 5), (2, 5)]
    with pytest.raises(InputError, match=r"--extend=4: allowed is more than config\.rounds = 5"):
        grid.extended(declared, 4)


def test_a_sweep_refuses_fewer_rounds_before_it_begins(tmp_path, capsys):
    (tmp_path / "small.py").write_text(SWEEP_FILE)
    command = [f"--config={tmp_path / 'small.py'}:digits", f"--workdir={tmp_path / 'out'}"]
    assert sweep.main([*command, "--extend=4"]) == 2
    assert capsys.readouterr().err == "error: --extend=4: allowed is more than config.rounds = 4\n"
    assert not (tmp_path / "out").exists()
    assert not results(tmp_path)
