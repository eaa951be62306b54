"""Runs a sweep: every point of a grid, on this machine or on a cluster.

    lasa-jax sweep figure1:digits --workdir=DIR
    lasa-jax sweep --config=my_sweep.py:mnist --workdir=DIR --backend=ray --address=HEAD:6379
    lasa-jax sweep figure1:digits --workdir=DIR --extend=100        more rounds for points that are finished

Also `python -m launch.sweep`. Prints the plan first; `--dry_run` stops there. Started again, it runs what is missing. Exit
code 0 if every point has a result or was submitted, 1 if one failed, 2 for bad input, 130 after Ctrl-C.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lasa_jax import commandline, grid, track
from lasa_jax import config as configs
from lasa_jax.data import cache
from lasa_jax.errors import InputError, count
from lasa_jax.federated import Executables
from lasa_jax.launch import ray_cluster, slurm

# Flags that only one backend reads, with their defaults.
_FLAGS_OF: dict[str, dict[str, Any]] = {
    "local": {"threads": None},
    "ray": {"address": None, "gpus": None},
    "slurm": {"jobs": 1, "slurm": ""},
}


def sweep(given: argparse.Namespace, console: Console) -> int:
    """Plans and runs a sweep; returns the exit code."""
    for backend, flags in _FLAGS_OF.items():
        for flag, default in flags.items():
            if backend != given.backend and getattr(given, flag) != default:
                raise InputError(f"--{flag}={getattr(given, flag)}: is for --backend={backend}, not {given.backend}")
    if given.tensorboard:
        track.check_installed()
    declared, workdir = grid.load(given.config), given.workdir
    points = grid.points(declared) if given.extend is None else grid.extended(declared, given.extend)
    commandline.tell_user_functions(path for point in points for path in configs.user_functions(point.config))
    if given.backend == "ray":
        jax.config.update("jax_platforms", "cpu")  # the accelerators are the workers'
    if given.backend == "local":
        commandline.tell_of_idle_gpu()
    plan = grid.plan(points, workdir, batch=given.batch, threads=given.threads)
    for line in plan.lines(here=given.backend == "local"):
        print(line, flush=True)
    if given.backend == "slurm":
        print(slurm.asked_for(given.slurm, given.jobs), flush=True)
    if given.dry_run:
        return 0
    if given.backend == "slurm":
        config = commandline.located(given.config, "get_grid")
        jobs = slurm.submit(
            config,
            points,
            workdir,
            jobs=given.jobs,
            batch=given.batch,
            parameters=given.slurm,
            tensorboard=given.tensorboard,
            extend=given.extend,
        )
        submitted = (
            f"{', '.join(job.job_id for job in jobs)}; logs in {workdir / 'slurm'}" if jobs else "nothing is left"
        )
        print(f"submitted: {len(jobs)} jobs, {submitted}")
        return 0
    failed: list[grid.Outcome] = []
    done, began = 0, time.monotonic()
    columns = (TextColumn("point"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[last]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(points), last="")

        def show(outcome: grid.Outcome) -> None:
            nonlocal done
            done += 1
            if outcome.summary is None:
                failed.append(outcome)
                progress.console.print(f"{outcome.path}: failed: {outcome.error}", highlight=False, soft_wrap=True)
            config = outcome.point.config
            last = f"{config.aggregator.name} {config.attack.name}"
            if outcome.summary is not None and outcome.summary["final_test_accuracy"] is not None:
                last += f" {100 * outcome.summary['final_test_accuracy']:.1f} %"
                if outcome.summary.get("final_attack_success") is not None:
                    last += f", success {100 * outcome.summary['final_attack_success']:.1f} %"
            progress.update(task, advance=1, last=last)
            if not console.is_terminal and done > plan.finished and outcome.summary is not None:
                left = (time.monotonic() - began) / (done - plan.finished) * (len(points) - done)
                console.print(
                    f"{done}/{len(points)} {last}, {commandline.duration(left)} left", highlight=False, soft_wrap=True
                )

        if given.backend == "ray":
            compiled = ray_cluster.run(
                points,
                workdir,
                address=given.address,
                gpus=given.gpus,
                batch=given.batch,
                on_outcome=show,
                log=lambda text: progress.console.print(text, highlight=False, soft_wrap=True),
                tensorboard=given.tensorboard,
            )
        else:
            executables = Executables()
            grid.run(
                points,
                workdir,
                batch=given.batch,
                threads=given.threads,
                tensorboard=given.tensorboard,
                on_outcome=show,
                executables=executables,
                log=lambda text: None,
            )
            compiled = len(executables)
    print(f"results: {len(points) - len(failed)} of {len(points)} in {workdir}; compiled programs: {compiled}")
    return 1 if failed else 0


def parser() -> commandline.Parser:
    """The flags of a sweep."""
    made = commandline.Parser("sweep", __doc__)
    made.add_config(
        "sweep, FILE.py or FILE.py:DATASET, the digits if not given; or a name as figure1:digits, of the package's "
        "configs/sweeps/, which takes words too: figure1:digits,alpha=0.1,seeds=5 (docs/sweeps.md)",
        example="configs/sweeps/figure1.py:digits",
    )
    made.add_path("--workdir", metavar="DIR", required=True, help="directory of the sweep")
    made.add_argument("--dry_run", action="store_true", help="only print the plan")
    made.add_argument(
        "--batch",
        metavar="RUNS",
        type=count,
        help="in one dispatch; 1 on a CPU, else what fits and speeds up",
    )
    made.add_argument("--threads", metavar="N", type=count, help="dispatches side by side; on a CPU the cores, else 1")
    made.add_argument(
        "--extend",
        metavar="ROUNDS",
        type=count,
        help="each point as if it had had so many rounds from the start, from where its finished run in DIR ended",
    )
    made.add_argument(
        "--tensorboard",
        action="store_true",
        help="each run writes scalars and filtering images to tb/ in its directory",
    )
    made.add_argument("--backend", choices=("local", "ray", "slurm"), default="local", help="see docs/sweeps.md")
    made.add_argument("--address", help="of a Ray cluster; the one of this machine's environment if not given")
    made.add_argument("--gpus", metavar="N", type=float, help="of a Ray worker; 1, or 0 where the cluster has none")
    made.add_argument("--jobs", metavar="N", type=count, default=1, help="SLURM array tasks that share the points")
    made.add_argument(
        "--slurm", metavar="NAME=VALUE", default="", help="for submitit: slurm_partition=gpu,timeout_min=600"
    )
    return made


def _run(argv: Sequence[str] | None) -> int:
    given = parser().read(argv)
    cache.keep_compiled_programs()  # before anything is compiled
    return sweep(given, Console(stderr=True))


def main(argv: Sequence[str] | None = None) -> int:
    """The command `sweep`; returns the exit code.

    Args:
      argv: the arguments; those of this process if None.
    """
    return commandline.exit_code(lambda: _run(argv), stopped="stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(importlib.import_module("lasa_jax.launch.sweep").main())  # what workers are sent has the package's name
