"""How far a sweep is, from its directory alone."""

import json
import os
import time
from pathlib import Path

import pytest

from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.report import standing, status
from lasa_jax.report.standing import Standing
from lasa_jax.workdir import Workdir, write_batch_sizes, write_failure
from tests.report.runs import of, write_run

RULE = "gone.rules:gate"  # a user's, whose module is nowhere


def planned(name: str, config: dict, differs: str = "") -> dict:
    return {name: {"program": "p", "costs": "c", "differs": differs, "config": config}}


@pytest.fixture
def sweep(tmp_path) -> Path:
    """A sweep of nine points of which each has come another way."""
    root = tmp_path / "sweep"
    accuracies = {seed: [0.5, 0.75, 0.5] for seed in range(1, 7)}
    paths = [write_run(root, of("lasa", "lie", seed), a, finished=seed < 3) for seed, a in accuracies.items()]
    points = {}
    for seed, path in enumerate(paths, 1):
        config = json.loads((path / "config.json").read_text()) | {"rounds": 3 if seed < 3 else 10}
        (path / "config.json").write_text(json.dumps(config))
        points |= planned(path.name, config, f"seed={seed}")
    summary = json.loads((paths[1] / "summary.json").read_text())
    (paths[1] / "summary.json").write_text(json.dumps(summary | {"status": "diverged"}))
    write_failure(root, paths[3].name, "InputError: no such rule")
    for path, silent in ((paths[4], 60), (paths[5], 720)):
        (path / ".lock").write_text("process 7 on elsewhere\n")
        for file in path.iterdir():
            os.utime(file, (time.time() - silent,) * 2)
    config = {"rounds": 10, "aggregator": {"name": RULE}}
    points |= planned("digits_gone_1", config) | planned("digits_gone_2", config) | planned("digits_gone_3", config)
    write_failure(root, "digits_gone_3", "failed before it had a directory")
    (root / "points.json").write_text(json.dumps({"points": points}))
    return root


def test_every_state_and_its_reason(sweep, capsys):
    names = [path.name for path in sorted(sweep.iterdir()) if path.name.startswith("digits_lasa")]
    by_seed = {json.loads((sweep / name / "config.json").read_text())["seed"]: name for name in names}
    with Workdir(sweep / by_seed[3]):
        assert status.main([str(sweep)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == ["points: 9", "finished: 2", "running: 2", "waiting: 3", "failed: 2"]
    # Rounds left: 7 and 7 of those that run, 7 of the silent one, 10 and 10; half a second each, two side by side.
    assert lines[5] == "time left: 10 s"
    assert lines[6:] == [
        "",
        "running:",
        f"  {by_seed[3]} (seed=3): round 3 of 10, process {os.getpid()} on {os.uname().nodename}",
        f"  {by_seed[5]} (seed=5): round 3 of 10, process 7 on elsewhere, last written 1 min ago",
        "",
        "waiting:",
        f"  {by_seed[6]} (seed=6): nothing written for 12 min, round 3 of 10, process 7 on elsewhere",
        "",
        "failed:",
        f"  {by_seed[4]} (seed=4): InputError: no such rule",
        "  digits_gone_3: failed before it had a directory",
        "",
        "finished:",
        f"  {by_seed[2]} (seed=2): diverged in round 3",
    ]


def test_a_lock_that_nobody_holds_is_not_running(sweep):
    """What a kill leaves: the holder's name is there, and it is of this machine."""
    path, _ = [run.path for run in standing.load(sweep)[0] if "elsewhere" in run.note]
    (path / ".lock").write_text(f"process 7 on {os.uname().nodename}\n")
    (run,) = [run for run in standing.load(sweep)[0] if run.path.name == path.name]
    assert (run.state, run.note) == ("waiting", "stopped, round 3 of 10")


def test_a_run_alone_and_runs_of_no_sweep(tmp_path, capsys):
    path = write_run(tmp_path / "a" / "b", of("lasa", "lie"), [0.5, 0.75])
    assert status.main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["points: 1", "finished: 1"]
    (path / "summary.json").write_text("{")
    assert status.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "failed: 1" in out
    assert f"a/b/{path.name}: " in out
    assert "summary.json: cannot be read" in out


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "nowhere: is not a directory"),
        (lambda path: path.write_text(""), "nowhere: is not a directory"),
        (lambda path: path.mkdir(), "nowhere: holds neither a sweep nor a run"),
        (lambda path: (path.mkdir(), (path / "points.json").write_text("[]")), "points.json: cannot be read"),
        (
            lambda path: (
                path.mkdir(),
                (path / "points.json").write_text(json.dumps({"points": planned("../x", {"rounds": 1})})),
            ),
            "'../x' is no point",
        ),
    ],
)
def test_odd_folders_are_one_line(make, message, tmp_path, capsys):
    make(tmp_path / "nowhere")
    assert status.main([str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_numbers_that_no_float_holds(sweep):
    """Of a damaged or hostile folder: the others are shown, and nothing overflows."""
    huge = int("9" * 400)
    config = {"rounds": huge, "block_rounds": huge}
    (sweep / "points.json").write_text(json.dumps({"points": planned("digits_gone_1", {"rounds": 10**299})}))
    (sweep / "sweep.json").write_text(json.dumps({"batch": {"p": huge}}))
    (sweep / "digits_gone_1").mkdir()
    (sweep / "digits_gone_1" / "config.json").write_text(json.dumps(config))
    (sweep / "digits_gone_1" / ".lock").write_text("process 7 on elsewhere\n")
    assert "points: 7" in status.lines(standing.load(sweep)[0])


def test_links_are_not_followed(tmp_path):
    elsewhere = write_run(tmp_path / "elsewhere", of("lasa", "lie"), [0.5])
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "linked").symlink_to(elsewhere)
    (tmp_path / "sweep" / "points.json").write_text(json.dumps({"points": planned("linked", {"rounds": 1})}))
    (run,), left_out = standing.load(tmp_path / "sweep")
    assert (run.state, run.note) == ("failed", "is a link, which is not followed")
    assert "leads outside" in left_out[0]


def test_the_time_left_is_of_measured_rounds():
    def run(state: str, program: str, costs: str, seconds: float | None, done: int = 0, batch: int = 1) -> Standing:
        return Standing(
            "", Path(), state, rounds=10, done=done, seconds=seconds, program=program, costs=costs, batch=batch
        )

    finished = [run("finished", "a", "small", 1.0, 10), run("finished", "b", "large", 5.0, 10)]
    assert standing.seconds_left([run("waiting", "a", "small", None)]) is None
    assert standing.seconds_left([*finished, run("waiting", "a", "small", None)]) == 10
    assert standing.seconds_left([*finished, run("waiting", "c", "large", None)]) == 50
    assert standing.seconds_left([*finished, run("waiting", "d", "other", None)]) == 30
    assert standing.seconds_left([*finished, run("failed", "a", "small", None)]) == 0
    running = [run("running", "a", "small", 1.0, 5)] * 2
    assert standing.seconds_left([*finished, *running]) == 5  # side by side
    batch = [run("running", "a", "small", 1.0, 5, batch=2)] * 2
    assert standing.seconds_left([*finished, *batch]) == 10  # one after another, in one dispatch


def test_a_sweep_says_what_it_was_asked_for_before_it_runs(tmp_path):
    base = configs.paper("digits")
    points = grid.points(grid.Grid(base, [{"aggregator.name": ["lasa", "fedavg"]}, {"seed": [1, 2]}]))
    write_batch_sizes(tmp_path, grid.batch_sizes(points, tmp_path, batch=4))
    write_failure(tmp_path, points[0].name, "of the last time")
    grid.begin(points, tmp_path, points)
    runs, _ = standing.load(tmp_path)
    assert [(run.path.name, run.state, run.program, run.batch) for run in runs] == [
        (point.name, "waiting", point.program, 4) for point in points
    ]
    assert [run.differs for run in runs] == ["seed=1", "seed=2"] * 2
    assert runs[0].config == configs.as_json(points[0].config)
    assert standing.seconds_left(runs) is None
    more = grid.points(grid.Grid(base, [{"seed": [1, 2, 3]}]))
    grid.begin(more, tmp_path, more)
    assert [run.path.name for run in standing.load(tmp_path)[0]] == [point.name for point in more]
    assert not list((tmp_path / "failed").glob("*"))
