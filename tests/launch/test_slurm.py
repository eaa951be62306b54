"""What is asked of SLURM: a stand-in for its `sbatch` keeps the script that it is given."""

import os
from pathlib import Path

import pytest

from lasa_jax import config, grid
from lasa_jax.errors import InputError
from lasa_jax.launch import slurm, sweep

submitit = pytest.importorskip("submitit", reason="pip install 'lasa_jax[cluster]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of submitit's own


@pytest.fixture
def script(tmp_path, monkeypatch):
    """`script(parameters, seeds)`: what sbatch is given for runs of these seeds, one task each."""
    for name, content in {"sbatch": f"cp $1 {tmp_path}/script\necho 'Submitted batch job 1'\n", "srun": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def submitted(parameters: str, seeds: int = 1) -> str:
        points = grid.points(grid.Grid(config.paper("digits"), axes=[{"seed": list(range(seeds))}]))
        options = {"jobs": seeds, "batch": None, "parameters": parameters}
        jobs = slurm.submit("configs/sweeps/table3.py:digits", points, tmp_path / "out", **options)
        assert len(jobs) == seeds
        return (tmp_path / "script").read_text()

    return submitted


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        ("slurm_exclude=n1,n2", "#SBATCH --exclude=n1,n2"),
        ("slurm_mail_type=END,FAIL,slurm_partition=gpu", "#SBATCH --mail-type=END,FAIL"),
        ("slurm_comment='a,nodes=2'", "#SBATCH --comment=a,nodes=2"),
        ('slurm_comment="a b"', "#SBATCH --comment='a b'"),
        ("mem_gb=7.5", "#SBATCH --mem=7680M"),
        ("mem_gb=1e1", "#SBATCH --mem=10GB"),
        ("slurm_exclusive=True", "#SBATCH --exclusive"),
        ("slurm_exclusive=user", "#SBATCH --exclusive=user"),
        ("slurm_gpus_per_node=2", "#SBATCH --gpus-per-node=2"),
        ("slurm_setup=module load cuda", "module load cuda"),
        ("slurm_srun_args=--mpi none", "--mpi none"),
        ('slurm_additional_parameters=\'{"reservation":"x,y=z"}\'', "#SBATCH --reservation=x,y=z"),
        ("timeout_min=600", "#SBATCH --time=600"),
        ("slurm_time=60", "#SBATCH --time=60"),
    ],
)
def test_parameters_reach_the_script_with_their_types(parameters, line, script):
    assert line in script(parameters)


@pytest.mark.parametrize("seeds", [1, 2])
def test_without_a_time_limit_that_of_the_cluster_applies(seeds, script, tmp_path):
    text = script("slurm_max_num_timeout=10", seeds)
    assert "--time" not in text
    for file in (tmp_path / "out" / "slurm").glob("*_submitted.pkl"):
        task = submitit.core.utils.DelayedSubmission.load(file)
        # A number, or the task could not be submitted again; 0: every stop is one at the limit, of which there are ten.
        assert (task._timeout_min, task._timeout_countdown) == (0, 10)


def test_srun_may_be_left_out(script):
    assert "\nsrun " in script("nodes=1")
    assert "\nsrun " not in script("slurm_use_srun=False")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("gpu", r"--slurm=gpu: allowed is NAME=VALUE,NAME=VALUE"),
        ("slurm_partition=gpu,,x", None),
        ("n2=1", r"--slurm=n2: is no parameter"),
        (
            "slurm_partitoin=gpu",
            r"--slurm=slurm_partitoin: is no parameter of submitit's \(did you mean 'slurm_partition'\?\)",
        ),
        ("nodes=two", r"--slurm=nodes=two: allowed is a whole number"),
        ("slurm_use_srun=maybe", r"--slurm=slurm_use_srun=maybe: allowed is true or false"),
        ("slurm_additional_parameters=x", r"allowed is a JSON object"),
    ],
)
def test_what_submitit_does_not_take_is_one_line(parameters, message):
    if message is None:
        assert slurm.read_parameters(parameters) == {"slurm_partition": "gpu,,x"}
        return
    with pytest.raises(InputError, match=message) as error:
        slurm.read_parameters(parameters)
    assert "\n" not in str(error.value)


def test_the_plan_says_what_will_be_asked_for(tmp_path: Path, capsys):
    command = ["table3:digits", f"--workdir={tmp_path / 'out'}", "--backend=slurm", "--jobs=3", "--dry_run"]
    assert sweep.main([*command, "--slurm=slurm_partition=gpu"]) == 0
    plan = capsys.readouterr().out
    assert "slurm: 3 tasks at most, slurm_partition=gpu, the cluster's own time limit for each" in plan
    assert sweep.main([*command, "--slurm=timeout_min=x"]) == 2
