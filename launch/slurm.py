"""A sweep on a SLURM cluster: an array job through submitit, each task with its share of the points."""

import contextlib
import dataclasses
import inspect
import itertools
import json
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lasa_jax import grid, methods
from lasa_jax.data import cache
from lasa_jax.errors import InputError, nearest, whole_number


@dataclasses.dataclass(frozen=True)
class Task:
    """What one task of the array does: the points whose run directories it is given.

    Attributes:
      config: as in `grid.load`, a path that the node sees.
      workdir: the directory of the sweep.
      names: of the points.
      batch: as in `grid.run`.
      search: folders in which modules of users may lie.
      tensorboard: as in `grid.run`.
      extend: rounds of each point, as in `grid.extended`; as declared if None.
    """

    config: str
    workdir: Path
    names: Sequence[str]
    batch: int | None
    search: Sequence[str]
    tensorboard: bool = False
    extend: int | None = None

    def __call__(self) -> dict[str, str | None]:
        """Runs the points; the error of each by its name, None where it has a result."""
        cache.keep_compiled_programs()
        methods.search_also(*self.search)
        declared = grid.load(self.config)
        points = grid.points(declared) if self.extend is None else grid.extended(declared, self.extend)
        outcomes = grid.run(
            points,
            self.workdir,
            only=set(self.names),
            batch=self.batch,
            tensorboard=self.tensorboard,
            on_outcome=_say,
        )
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
    tensorboard: bool = False,
    extend: int | None = None,
) -> list[Any]:
    """Submits the points that have no result as an array job.

    Neighbours go to the same task, so that a program is compiled in few of them.

    Args:
      config: as in `grid.load`, a path that the nodes see.
      points: all points of the sweep, from `grid.points`.
      workdir: a directory that the nodes see.
      jobs: tasks of the array.
      batch: as in `grid.run`.
      parameters: see `read_parameters`. Without a time limit that of the cluster applies.
      cluster: of submitit: `"slurm"`; `"local"` starts processes here, `"debug"` runs in this one.
      tensorboard: as in `grid.run`.
      extend: the rounds with which `points` are those of `grid.extended`, if they are.

    Returns:
      submitit's jobs; none if there is nothing to do.

    Raises:
      InputError: if submitit is not installed, there is no such cluster, or a parameter is not known to it.
    """
    submitit, given = _submitit(), read_parameters(parameters)
    path = Path(workdir).absolute()
    todo = grid.batches(points, path, dict.fromkeys(grid.programs(points), 1))
    left = [point for batch_of_one in todo for point in batch_of_one.points]
    shares = _shares([point.name for point in left], jobs)
    tasks = [Task(config, path, share, batch, methods.searched(), tensorboard, extend) for share in shares]
    if not tasks:
        return []
    grid.begin(points, path, left)
    try:
        of_making = {name: value for name, value in given.items() if name in _made_with(submitit)}
        executor = submitit.AutoExecutor(folder=path / "slurm", cluster=cluster, **of_making)
        asked = {name: value for name, value in given.items() if name not in of_making}
        executor.update_parameters(**{"name": "lasa_jax", **asked})
        if cluster == "slurm" and not _TIME & set(asked):
            executor._executor.parameters = _NoLimit(executor._executor.parameters, time=None)
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


_TIME = {"timeout_min", "slurm_timeout_min", "slurm_time"}


class _NoLimit(dict[str, Any]):
    """submitit's parameters without a time limit: it would ask for five minutes.

    It writes no `--time` where that is None, but wants a number to tell a stop at the limit from a preemption: with 0 every
    stop counts as one at the limit.
    """

    def get(self, name: str, default: Any = None) -> Any:
        return 0 if name == "time" else super().get(name, default)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise InputError("--backend=slurm: needs submitit, pip install 'lasa_jax[cluster]'") from None
    return submitit


def read_parameters(text: str) -> dict[str, Any]:
    """Parameters of submitit's executor, each with the type that submitit declares.

    Args:
      text: `"NAME=VALUE,..."`, for instance `"slurm_partition=gpu,gpus_per_node=1"`. A comma belongs to the value unless
        `NAME=` follows it, or the value stands in quotes.

    Raises:
      InputError: if submitit is not installed, or for a name or a value that it does not take.
    """
    known, found = _types(_submitit()), {}
    end = 0
    for match in re.finditer(r"""(\w+)=("[^"]*"|'[^']*'|.*?)(?:,(?=\w+=)|$)""", text, re.DOTALL):
        if match.start() != end:
            break
        end, (name, value) = match.end(), match.groups()
        if name not in known:
            raise InputError(f"--slurm={name}: is no parameter of submitit's{nearest(name, known)}")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        found[name] = _typed(name, value[1:-1] if quoted else value, known[name])
    if end != len(text):
        raise InputError(f"--slurm={text[end:]}: allowed is NAME=VALUE,NAME=VALUE")
    return found


def asked_for(parameters: str, jobs: int) -> str:
    """One line for the plan: what SLURM will be asked for. Args: see `submit`."""
    given = read_parameters(parameters)
    limit = [] if _TIME & set(given) else ["the cluster's own time limit"]
    values = [f"{name}={value}" for name, value in given.items()]
    return f"slurm: {jobs} task{'s' * (jobs > 1)} at most, {', '.join([*values, *limit])} for each"


def _made_with(submitit: Any) -> dict[str, Any]:
    """The types of what submitit's executor is made with, by parameter."""
    hints = typing.get_type_hints(submitit.SlurmExecutor.__init__)
    return {f"slurm_{name}": hint for name, hint in hints.items() if name not in ("folder", "return")}


def _types(submitit: Any) -> dict[str, Any]:
    """The declared type of every parameter. `map_count` is set by submitit itself."""
    shared = submitit.AutoExecutor._typed_parameters()
    hints = typing.get_type_hints(submitit.slurm.slurm._make_sbatch_string)
    own = inspect.signature(submitit.slurm.slurm._make_sbatch_string).parameters
    of_slurm = {name: hints[name] for name in own if name not in ("command", "folder", "map_count")}
    prefixed = {f"slurm_{name}": hint for name, hint in (shared | of_slurm).items()}
    return shared | prefixed | _made_with(submitit)


# For each type that submitit declares, in the order in which they are tried: how a text becomes one, and what is allowed.
_READ: dict[Any, tuple[Callable[[str], Any], str]] = {
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    int: (whole_number, "a whole number"),
    float: (float, "a number"),
    list: (lambda text: [text], "a command"),
    Iterable: (shlex.split, "arguments"),
    dict: (json.loads, "a JSON object"),
    str: (str, "a text"),
}


def _typed(name: str, text: str, hint: Any) -> Any:
    """The value that a text stands for, of one of the types of a hint."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = {typing.get_origin(option) or option for option in options}
    allowed = []
    for kind, (read, means) in _READ.items():
        if kind in kinds:
            allowed.append(means)
            with contextlib.suppress(KeyError, ValueError, OverflowError):
                return read(text)
    raise InputError(f"--slurm={name}={text}: allowed is {' or '.join(allowed)}")


def _shares(names: Sequence[str], parts: int) -> list[list[str]]:
    """Neighbours together, in at most `parts` lists whose lengths differ by one."""
    parts = min(parts, len(names))
    ends = [round(part * len(names) / parts) for part in range(parts + 1)] if parts else [0]
    return [list(names[start:end]) for start, end in itertools.pairwise(ends)]
