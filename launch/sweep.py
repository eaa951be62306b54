"""Runs a sweep: `python -m launch.sweep --config=configs/sweeps/figure1.py:digits --workdir=DIR`.

On this machine, or with `--backend=ray` or `--backend=slurm` on a cluster. Prints the plan first; `--dry_run` stops there.
Started again, it runs what is missing. Exit code 0 if every point has a result or was submitted, 1 if one failed, 2 for bad
input, 130 after Ctrl-C.
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lasa_jax import commandline, grid
from lasa_jax.data import cache
from lasa_jax.errors import InputError
from launch import ray_cluster, slurm

# What a file of somebody else's may raise.
_FILE_FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError)
_FILE_FAILURES += (RuntimeError, SyntaxError, TypeError, ValueError)
# Flags that only one backend reads, with their defaults.
_FLAGS_OF = {"local": {"threads": None}, "ray": {"address": None, "gpus": None}, "slurm": {"jobs": 1, "slurm": ""}}


def load(config: str) -> grid.Grid:
    """The grid of `FILE.py:DATASET`, from the file's `get_grid(dataset)`.

    Raises:
      InputError: if there is no such file or function, or the file fails.
    """
    path, _, dataset = config.partition(":")
    if not Path(path).is_file():
        raise InputError(f"--config={path}: no sweep of that name")
    spec = importlib.util.spec_from_file_location("sweep", path)
    if spec is None or spec.loader is None:
        raise InputError(f"--config={path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        declared = module.get_grid(dataset or "digits")
    except InputError:
        raise
    except _FILE_FAILURES as error:
        raise InputError(f"--config={path}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    if not isinstance(declared, grid.Grid):
        raise InputError(f"--config={path}: get_grid gives {type(declared).__name__}, allowed is a lasa_jax.grid.Grid")
    return declared


def sweep(given: argparse.Namespace, console: Console) -> int:
    """Plans and runs a sweep; returns the exit code."""
    for backend, flags in _FLAGS_OF.items():
        for flag, default in flags.items():
            if backend != given.backend and getattr(given, flag) != default:
                raise InputError(f"--{flag}={getattr(given, flag)}: is for --backend={backend}, not {given.backend}")
    points, workdir = grid.points(load(given.config)), given.workdir
    if given.backend == "ray":
        jax.config.update("jax_platforms", "cpu")  # the accelerators are the workers'
    sizes = grid.batch_sizes(points, workdir, batch=given.batch)
    for line in grid.plan(points, workdir, sizes, threads=given.threads).lines(here=given.backend == "local"):
        print(line, flush=True)
    if given.dry_run:
        return 0
    if given.backend == "slurm":
        jobs = slurm.submit(given.config, points, workdir, jobs=given.jobs, batch=given.batch, parameters=given.slurm)
        submitted = (
            f"{', '.join(job.job_id for job in jobs)}; logs in {workdir / 'slurm'}" if jobs else "nothing is left"
        )
        print(f"submitted: {len(jobs)} jobs, {submitted}")
        return 0
    failed: list[grid.Outcome] = []
    columns = (TextColumn("point"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[last]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=len(points), last="")

        def show(outcome: grid.Outcome) -> None:
            if outcome.summary is None:
                failed.append(outcome)
                progress.console.print(f"{outcome.path}: failed: {outcome.error}", highlight=False, soft_wrap=True)
            last = f"{outcome.config.aggregator.name} {outcome.config.attack.name}"
            if outcome.summary is not None and outcome.summary["final_test_accuracy"] is not None:
                last += f" {100 * outcome.summary['final_test_accuracy']:.1f} %"
            progress.update(task, advance=1, last=last)

        if given.backend == "ray":
            compiled = ray_cluster.run(
                points,
                workdir,
                address=given.address,
                gpus=given.gpus,
                batch=given.batch,
                on_outcome=show,
                log=lambda text: progress.console.print(text, highlight=False, soft_wrap=True),
            )
        else:
            compiled = len(
                grid.run(points, workdir, sizes, on_outcome=show, threads=given.threads, log=lambda text: None)
            )
    print(f"results: {len(points) - len(failed)} of {len(points)} in {workdir}; compiled programs: {compiled}")
    return 1 if failed else 0


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: allowed is a whole number from 1 on")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = commandline.Parser(
        prog="python -m launch.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="FILE.py:DATASET, see configs/sweeps/")
    parser.add_argument("--workdir", required=True, type=Path, help="directory of the sweep")
    parser.add_argument("--dry_run", action="store_true", help="only print the plan")
    parser.add_argument("--batch", type=_count, help="runs in one dispatch; 1 on a CPU, else what the memory holds")
    parser.add_argument("--threads", type=_count, help="dispatches side by side; on a CPU the cores, else 1")
    parser.add_argument("--backend", choices=("local", "ray", "slurm"), default="local", help="see launch/README.md")
    parser.add_argument("--address", help="of a Ray cluster; the one of this machine's environment if not given")
    parser.add_argument("--gpus", type=float, help="of a Ray worker; 1, or 0 where the cluster has none")
    parser.add_argument("--jobs", type=_count, default=1, help="SLURM array tasks that share the points")
    parser.add_argument("--slurm", default="", help="NAME=VALUE,... for submitit: slurm_partition=gpu,timeout_min=600")
    cache.keep_compiled_programs()
    try:
        given = parser.parse_args(argv)
        return sweep(given, Console(stderr=True))
    except grid.GridError as error:
        for fault in error.faults:
            print(f"error: {fault}", file=sys.stderr)
        return 2
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
