"""Sweeps on clusters: two local Ray nodes, one of them lost in the middle, and submitit's local executors for SLURM."""

import json
import time
from pathlib import Path

import pytest

from lasa_jax import grid
from lasa_jax.errors import InputError
from lasa_jax.launch import ray_cluster, slurm
from lasa_jax.report import standing
from tests.grid.sweeps import SWEEP_FILE, command, results

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="pip install 'lasa_jax[cluster]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's and submitit's own


@pytest.fixture
def small(tmp_path) -> str:
    """The sweep of eight points and two programs."""
    (tmp_path / "small.py").write_text(SWEEP_FILE)
    return f"{tmp_path / 'small.py'}:digits"


def counted(path: Path) -> int:
    return len(list(path.glob("*/summary.json")))


def look(path: Path, seen: dict[str, set[int]]) -> None:
    """Notes how many points of a sweep are running, and so on, as `lasa-jax status` reads it."""
    if (path / "points.json").exists():
        runs, _ = standing.load(path)
        for state in standing.STATES:
            seen.setdefault(state, set()).add(sum(run.state == state for run in runs))


def check_seen(seen: dict[str, set[int]]) -> None:
    """All waited at first; then some ran, and some were finished while others were not."""
    assert 8 in seen["waiting"]
    assert max(seen["running"]) in (1, 2)
    assert seen["finished"] & set(range(1, 8))
    assert seen["failed"] == {0}


def check_extended(points: list[grid.Point], path: Path) -> None:
    """Points with more rounds have the lines of the old runs, times included: they were not computed again."""
    for point in points:
        old, new = ((path / name / "metrics.jsonl").read_text() for name in (point.extends.name, point.name))
        assert new.startswith(old)
        assert json.loads((path / point.name / "summary.json").read_text())["rounds"] == point.config.rounds


def test_a_lost_node_loses_no_point(small, tmp_path, monkeypatch):
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        refused = command(
            f"--config={small}", f"--workdir={tmp_path / 'none'}", "--backend=ray", f"--address={cluster.address}"
        )
        _, error = refused.communicate(timeout=300)
        assert refused.returncode == 2
        line = error.strip().splitlines()[-1]
        assert line == f"error: --address={cluster.address}: the cluster has no CPU, and each worker needs one"
        first, second = (cluster.add_node(num_cpus=1) for _ in range(2))
        assert first is not second
        arguments = (f"--config={small}", f"--workdir={tmp_path / 'out'}")
        process = command(*arguments, "--backend=ray", f"--address={cluster.address}", "--tensorboard")
        deadline, seen = time.monotonic() + 300, {}
        while counted(tmp_path / "out") < 2 and process.poll() is None and time.monotonic() < deadline:
            look(tmp_path / "out", seen)
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        cluster.remove_node(second, allow_graceful=False)
        output, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert "results: 8 of 8" in output
        look(tmp_path / "out", seen)
        check_seen(seen)
        assert {file.parents[1].name for file in tmp_path.glob("out/*/tb/events*")} == {
            run.name for run in tmp_path.glob("out/digits*")
        }
    finally:
        process.kill()
        cluster.shutdown()
    alone = command(f"--config={small}", f"--workdir={tmp_path / 'alone'}")
    _, error = alone.communicate(timeout=300)
    assert alone.returncode == 0, error
    assert results(tmp_path / "out") == results(tmp_path / "alone")


def test_slurm_tasks_share_the_points(small, tmp_path):
    """Two tasks of submitit's local executor, each a process of its own; started again, there is nothing to submit."""
    points = grid.points(grid.load(small))
    options = {"jobs": 2, "batch": None, "parameters": "timeout_min=10", "cluster": "local", "tensorboard": True}
    jobs = slurm.submit(small, points, tmp_path / "out", **options)
    seen: dict[str, set[int]] = {}
    while not all(job.done() for job in jobs):
        look(tmp_path / "out", seen)
        time.sleep(0.1)
    errors = [job.result() for job in jobs]
    check_seen(seen)
    assert [len(part) for part in errors] == [4, 4]
    assert not any(error for part in errors for error in part.values())
    assert counted(tmp_path / "out") == 8
    assert len(list(tmp_path.glob("out/*/tb/events*"))) == 8
    assert not slurm.submit(small, points, tmp_path / "out", **options)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["batch"].keys() == grid.programs(points).keys()
    longer = grid.extended(grid.load(small), 6)[:2]
    (job,) = slurm.submit(small, longer, tmp_path / "out", **{**options, "jobs": 1}, extend=6)
    assert list(job.result().values()) == [None, None]
    check_extended(longer, tmp_path / "out")


def test_a_task_that_is_stopped_is_submitted_again():
    task = slurm.Task("sweep.py:digits", Path("out"), ["a"], None, ())
    assert task.checkpoint().function is task


@pytest.mark.parametrize(("count", "parts", "lengths"), [(8, 3, [3, 2, 3]), (2, 5, [1, 1]), (0, 2, [])])
def test_shares_are_even_and_in_order(count, parts, lengths):
    names = [str(index) for index in range(count)]
    shares = slurm._shares(names, parts)
    assert [len(share) for share in shares] == lengths
    assert [name for share in shares for name in share] == names


def test_what_is_wrong_with_a_cluster_is_one_line(small, tmp_path):
    points = grid.points(grid.load(small))
    for parameters, message in (
        ("nonsense=1", "--slurm=nonsense: is no parameter"),
        ("timeout_min=abc", "--slurm=timeout_min=abc: allowed is "),
    ):
        with pytest.raises(InputError, match=message):
            slurm.submit(small, points, tmp_path, jobs=1, batch=None, parameters=parameters, cluster="local")
    for gpus in (float("nan"), 1.5, -1.0):
        with pytest.raises(InputError, match=r"--gpus=.*: allowed is a whole number from 0 on"):
            ray_cluster.run(
                points, tmp_path, address=None, gpus=gpus, batch=None, on_outcome=lambda _: None, log=lambda _: None
            )
    for address in ("127.0.0.1:1", "nowhere"):
        with pytest.raises(InputError, match=f"--address={address}: no Ray cluster answers there"):
            ray_cluster.run(
                points, tmp_path, address=address, gpus=None, batch=None, on_outcome=lambda _: None, log=lambda _: None
            )
    assert not list(tmp_path.glob("*/config.json"))


@pytest.mark.parametrize(
    ("machines", "gpus", "wanted"),
    [
        ([{}, {"CPU": 2.0}, {"CPU": 1.0}], None, (0, 3)),
        ([{"CPU": 0.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 2.0}], None, (1, 5)),
        ([{"CPU": 16.0, "GPU": 4.0}], 2.0, (2, 2)),
        ([{"CPU": 0.5}], None, "--address=here: the cluster has no CPU"),
        ([], 0.0, "--address=here: the cluster has no CPU"),
        ([{"CPU": 4.0}, {"GPU": 1.0}], None, "--address=here: machines with a GPU have no CPU"),
        ([{"CPU": 4.0}, {"GPU": 1.0}], 1.0, "--gpus=1: allowed are 0 to 0"),
        ([{"CPU": 4.0, "GPU": 1.0}] * 2, 2.0, "--gpus=2: allowed are 0 to 1"),
    ],
)
def test_workers_of_a_cluster(machines, gpus, wanted):
    """A worker that no machine can hold would be waited for without an end."""
    if isinstance(wanted, str):
        with pytest.raises(InputError, match=wanted):
            ray_cluster._workers(machines, gpus, "here")
    else:
        assert ray_cluster._workers(machines, gpus, "here") == wanted


def test_a_directory_that_is_not_shared(tmp_path):
    with pytest.raises(InputError, match="this is not the directory that the sweep was started in"):
        ray_cluster.Worker(tmp_path, ()).ready()


class Ray:
    """Stands in for Ray where its workers do what no test can make a true one do."""

    exceptions = pytest.importorskip("ray").exceptions

    def __init__(self, behave):
        self.behave = behave

    def remote(self, **resources):
        behave = self.behave

        class Worker:
            def __getattr__(self, name):
                return type("Method", (), {"remote": staticmethod(lambda *given: lambda: behave(name, given))})

        return lambda cls: type("Actor", (), {"remote": staticmethod(lambda *given: Worker())})

    def get(self, reference):
        return reference()

    def wait(self, references):
        return references[:1], references[1:]

    def kill(self, worker):
        pass


def run_with(behave, points, workdir, outcomes):
    return ray_cluster._run(Ray(behave), points, workdir, 2, 0.0, None, outcomes.append, lambda text: None)


def done(batch: grid.Batch) -> list[grid.Outcome]:
    return [grid.Outcome(point, Path(point.name), {"rounds": 4}, None) for point in batch.points]


def test_workers_that_are_lost_at_their_start_or_end(small, tmp_path):
    points = grid.points(grid.load(small))
    sizes = grid.batch_sizes(points, tmp_path)
    outcomes = []

    def gone_at_its_end(name, given):
        if name == "sizes":
            return sizes
        if name == "run":
            return done(*given)
        if len(outcomes) == 8:
            raise Ray.exceptions.RayActorError
        return 0

    run_with(gone_at_its_end, points, tmp_path, outcomes)
    assert len(outcomes) == 8

    def never(name, given):
        if name == "sizes":
            return sizes
        raise Ray.exceptions.RayActorError

    with pytest.raises(InputError, match="6 workers ended before they had begun"):
        run_with(never, points, tmp_path, [])


def test_a_machine_without_the_directory_takes_no_points(small, tmp_path):
    """One worker of two: the other runs them all; both: one line."""
    points = grid.points(grid.load(small))
    started, outcomes = [], []

    def behave(name, given):
        if name == "sizes":
            return grid.batch_sizes(points, tmp_path)
        if name == "ready":
            started.append(1)
            if len(started) == 1 or (not outcomes and strict):
                raise Ray.exceptions.RayTaskError("ready", "", InputError("--workdir: not here"))
        return done(*given) if name == "run" else 1

    strict = False
    run_with(behave, points, tmp_path, outcomes)
    assert [outcome.error for outcome in outcomes] == [None] * 8
    started, outcomes, strict = [], [], True
    with pytest.raises(InputError, match="--workdir: not here"):
        run_with(behave, points, tmp_path, outcomes)


def test_a_batch_that_kills_its_workers_fails_and_the_others_go_on(small, tmp_path):
    points = grid.points(grid.load(small))
    bad = points[0].name
    outcomes = []

    def behave(name, given):
        if name == "sizes":
            return grid.batch_sizes(points, tmp_path)
        if name in ("compiled", "ready"):
            return 1
        if given[0].points[0].name == bad:
            raise Ray.exceptions.RayActorError
        return done(*given)

    run_with(behave, points, tmp_path, outcomes)
    assert len(outcomes) == 8
    (failed,) = [outcome for outcome in outcomes if outcome.error is not None]
    assert failed.path.name == bad
    assert failed.error == "its worker was lost 3 times"
