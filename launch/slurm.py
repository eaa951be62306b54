"""A sweep on a SLURM cluster: an array job through submitit, each task with its share of the points."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.data import cache
from lasa_jax.errors import InputError
from lasa_jax.workdir import write_batch_sizes


@dataclasses.dataclass(frozen=True)
class Task:
    """What one task of the array does: the points whose run directories it is given.

    config: as of `launch.sweep`. workdir: of the sweep. names: of the run directories. batch: as of `grid.batch_sizes`.
    """

    config: str
    workdir: Path
    names: Sequence[str]
    batch: int | None

    def __call__(self) -> dict[str, str | None]:
        """Runs the points; the error of each, None where it has a result."""
        from launch.sweep import load

        cache.keep_compiled_programs()
        points = grid.points(load(self.config))
        sizes = grid.batch_sizes(points, self.workdir, batch=self.batch)
        sizes = write_batch_sizes(self.workdir, sizes)
        errors: dict[str, str | None] = {}

        def note(outcome: grid.Outcome) -> None:
            errors[outcome.path.name] = outcome.error
            print(f"{outcome.path.name}: {outcome.error or 'done'}", flush=True)

        mine = [point for point in points if configs.run_name(point) in set(self.names)]
        grid.run(mine, self.workdir, sizes, on_outcome=note)
        return errors

    def checkpoint(self) -> Any:
        """What submitit submits again when SLURM stops the task at its time limit: runs go on from their checkpoints."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(
    config: str,
    points: Sequence[ConfigDict],
    workdir: Path,
    *,
    jobs: int,
    batch: int | None,
    parameters: str,
    cluster: str = "slurm",
) -> list[Any]:
    """Submits the points that have no result as an array job.

    Neighbours go to the same task, so that a program is compiled in few of them.

    Args:
      config: as of `launch.sweep`, a path that the nodes see.
      points: all points of the sweep, from `grid.points`.
      workdir: a directory that the nodes see.
      jobs: tasks of the array.
      batch: as of `grid.batch_sizes`.
      parameters: `"NAME=VALUE,..."` of submitit's executor, for instance `"slurm_partition=gpu,gpus_per_node=1"`.
      cluster: of submitit: `"slurm"`; `"local"` starts processes here, `"debug"` runs in this one.

    Returns:
      submitit's jobs; none if there is nothing to do.

    Raises:
      InputError: if submitit is not installed, there is no such cluster, or a parameter is not known to it.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("--backend=slurm: needs submitit, pip install 'lasa_jax[cluster]'") from None
    given = dict(pair.partition("=")[::2] for pair in parameters.split(",") if pair)
    workdir = workdir.absolute()
    todo = grid.batches(points, workdir, dict.fromkeys(grid.programs(points), 1))
    names = [configs.run_name(one) for batch_of_one in todo for one in batch_of_one.configs]
    tasks = [Task(config, workdir, share, batch) for share in _shares(names, jobs)]
    if not tasks:
        return []
    try:
        executor = submitit.AutoExecutor(folder=workdir / "slurm", cluster=cluster)
        executor.update_parameters(**{"name": "lasa_jax", **_numbers(given)})
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
    except (
        RuntimeError,
        NameError,
        TypeError,
        ValueError,
        AssertionError,
        submitit.core.utils.FailedJobError,
    ) as error:
        raise InputError(f"--backend=slurm: {' '.join(str(error).split()) or type(error).__name__}") from None
    return submitted


def _numbers(given: Mapping[str, str]) -> dict[str, int | str]:
    return {name: int(value) if value.isdecimal() else value for name, value in given.items()}


def _shares(names: Sequence[str], parts: int) -> list[list[str]]:
    """Neighbours together, in at most `parts` lists whose lengths differ by one."""
    parts = min(parts, len(names))
    ends = [round(part * len(names) / parts) for part in range(parts + 1)] if parts else [0]
    return [list(names[start:end]) for start, end in itertools.pairwise(ends)]
