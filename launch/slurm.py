"""A sweep on a SLURM cluster: an array job through submitit, each task with its share of the points."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lasa_jax import grid, methods
from lasa_jax.data import cache
from lasa_jax.errors import InputError
from lasa_jax.workdir import write_batch_sizes


@dataclasses.dataclass(frozen=True)
class Task:
    """What one task of the array does: the points whose run directories it is given.

    Attributes:
      config: as in `grid.load`, a path that the node sees.
      workdir: the directory of the sweep.
      names: of the points.
      batch: as in `grid.run`.
      search: folders in which modules of users may lie.
    """

    config: str
    workdir: Path
    names: Sequence[str]
    batch: int | None
    search: Sequence[str]

    def __call__(self) -> dict[str, str | None]:
        """Runs the points; the error of each by its name, None where it has a result."""
        cache.keep_compiled_programs()
        methods.search_also(*self.search)
        points = grid.points(grid.load(self.config))
        # By all points of the sweep, so that every task takes the same sizes.
        write_batch_sizes(self.workdir, grid.batch_sizes(points, self.workdir, batch=self.batch))
        mine = [point for point in points if point.name in set(self.names)]
        outcomes = grid.run(mine, self.workdir, batch=self.batch, on_outcome=_say)
        return {outcome.point.name: outcome.error for outcome in outcomes}

    def checkpoint(self) -> Any:
        """What submitit submits again when SLURM stops the task at its time limit: runs go on from their checkpoints."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def _say(outcome: grid.Outcome) -> None:
    print(f"{outcome.point.name}: {outcome.error or 'done'}", flush=True)


def submit(
    config: str,
    points: Sequence[grid.Point],
    workdir: str | Path,
    *,
    jobs: int,
    batch: int | None,
    parameters: str,
    cluster: str = "slurm",
) -> list[Any]:
    """Submits the points that have no result as an array job.

    Neighbours go to the same task, so that a program is compiled in few of them.

    Args:
      config: as in `grid.load`, a path that the nodes see.
      points: all points of the sweep, from `grid.points`.
      workdir: a directory that the nodes see.
      jobs: tasks of the array.
      batch: as in `grid.run`.
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
    path = Path(workdir).absolute()
    todo = grid.batches(points, path, dict.fromkeys(grid.programs(points), 1))
    names = [point.name for batch_of_one in todo for point in batch_of_one.points]
    tasks = [Task(config, path, share, batch, methods.searched()) for share in _shares(names, jobs)]
    if not tasks:
        return []
    try:
        executor = submitit.AutoExecutor(folder=path / "slurm", cluster=cluster)
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
