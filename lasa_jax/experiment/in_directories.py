"""Runs in their directories: blocks of rounds, checkpoints, metrics, resume; one run or a batch of one program."""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lasa_jax import build, methods, ops
from lasa_jax import config as configs
from lasa_jax.data import Dataset
from lasa_jax.errors import InputError, user_path
from lasa_jax.experiment import leader
from lasa_jax.experiment.leader import RUN_FAILURES, Ended
from lasa_jax.federated import BlockMetrics, Executables, Simulation, State, make_mesh
from lasa_jax.models import Variables
from lasa_jax.workdir import Workdir, is_finished, records, resume

PyTree = Any
OnMetrics = Callable[[str, int, Mapping[str, Any]], None]  # the run's name, the round, its metrics
Log = Callable[[str], None]


class Stopped(Exception):  # noqa: N818  (nothing is wrong)
    """The run was told to stop; started again, it goes on from its last checkpoint."""


def run(
    config: ConfigDict,
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    executables: Executables | None = None,
    on_metrics: OnMetrics | None = None,
    log: Log = print,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Runs a resolved config to its end in a run directory, going on from its last good checkpoint.

    Where several processes were started with `jax.distributed`, all of them call this alike and get the same summary; the
    directory is that of the first one.

    Args:
      config: from `config.resolve`.
      path: the directory; made if it is not there, once everything that can be wrong with the input was checked.
      mesh: the devices; all of them for the clients of one run if None.
      executables: programs compiled before, and to be shared with runs to come.
      on_metrics: `on_metrics(run, round, metrics)`, called for each evaluated round once its line of metrics.jsonl is on the
        disk, a block at a time: the name of the directory, the round, and the line. Rounds that are computed again after a
        kill are told again. What it raises is not caught and ends the run; the same call goes on after the last checkpoint.
      log: called with what a user should know: that a run goes on, that a checkpoint is damaged.
      stop: once set, the run stops after its block.

    Returns:
      The summary, as stored in summary.json; at once if the run is finished already.

    Raises:
      InputError: if the directory belongs to another config or another process, or the data is missing.
      Stopped: if `stop` was set before the end.
    """
    known = Executables() if executables is None else executables
    place = user_path(f"path = {str(path)!r}", path)
    (ended,) = run_batch(
        [(config, place)],
        executables=known,
        mesh=mesh,
        on_metrics=on_metrics,
        log=log,
        stop=stop,
    )
    if isinstance(ended, Exception):
        raise ended
    return ended


def run_batch(
    runs: Sequence[tuple[ConfigDict, Path]],
    *,
    executables: Executables,
    size: int = 1,
    mesh: Mesh | None = None,
    on_metrics: OnMetrics | None = None,
    log: Log = print,
    stop: threading.Event | None = None,
) -> list[Ended]:
    """Runs configs of one program side by side, all of them in each dispatch, each in its own directory.

    A run's numbers do not depend on the others of its batch, only on the size and the mesh that were compiled.

    Args:
      runs: resolved configs of the same `config.program_key`, at most `size`, and their directories.
      size: runs that the program is compiled for; where fewer are given, copies of the first, which nobody reads, fill it.
      executables: as in `run`.
      mesh: as in `run`; several rows of runs are for one process only.
      on_metrics: as in `run`.
      log: as in `run`.
      stop: as in `run`.

    Returns:
      For each run its summary, or the error that ended it. A run that fails does not stop the others.

    Raises:
      InputError: for a mesh with rows of runs that spans several processes.
      Stopped: if `stop` was set before the end.
    """
    began = time.perf_counter()
    mesh = make_mesh() if mesh is None else mesh
    if jax.process_count() > 1 and mesh.shape[ops.RUNS] > 1:
        raise InputError(f"mesh: {mesh.shape[ops.RUNS]} rows of runs over several processes, allowed is one")
    load = functools.cache(methods.dataset)
    ended: dict[int, Ended] = {}
    members: dict[int, _Member] = {}
    with contextlib.ExitStack() as locks:
        for index, (config, path) in enumerate(runs):
            try:
                found = _open(config, path, load, locks, log)
            except RUN_FAILURES as error:
                ended[index] = error
                continue
            if isinstance(found, _Member):
                members[index] = found
            else:
                ended[index] = found
        ended = leader.agreed(ended, len(runs))
        members = {index: one for index, one in members.items() if index not in ended}
        blocks: Iterator[list[Told]] = iter(())
        if members:
            blocks = _run_blocks(
                members, ended, size=size, mesh=mesh, executables=executables, log=log, stop=stop, began=began
            )
        while True:
            try:
                told = next(blocks, None)
            except RUN_FAILURES as error:
                ended = dict.fromkeys(members, error) | ended
                break
            if told is None:
                break
            for name, line in told:
                if on_metrics is not None:  # what it raises is no failure of a run
                    on_metrics(name, line["round"], line)
    return [ended[index] for index in range(len(runs))]


def finished(config: ConfigDict, path: Path, log: Log = print) -> dict[str, Any]:
    """The summary of a run that is finished.

    Args:
      config: resolved.
      path: its directory, for which `workdir.is_finished` says so.
      log: told that it is.

    Raises:
      InputError: if the directory is that of another config, or its summary is damaged.
    """
    summary = resume.finished_summary(Workdir(path, lock=False), config)
    log(f"{path}: finished already")
    return summary


@dataclasses.dataclass
class _Member:
    """One run of a batch.

    Attributes:
      built: what its config makes.
      workdir: its directory, in the process that owns it.
      saved: the round of its newest checkpoint.
    """

    built: build.Run
    workdir: Workdir | None
    saved: int = 0


def _open(
    config: ConfigDict, path: Path, load: Callable[..., Dataset], locks: contextlib.ExitStack, log: Log
) -> _Member | dict[str, Any]:
    """A run with its directory locked and claimed; the summary of one that is finished."""
    if leader.is_leader() and is_finished(path):
        return finished(config, path, log)
    config = ConfigDict(config.to_dict())
    built = build.prepare(config, load=load)
    if built.dataset.source_id is not None:
        config.source_id = built.dataset.source_id
    if not leader.is_leader():
        return _Member(built, None)
    workdir = locks.enter_context(Workdir(path))
    if workdir.summary() is not None:  # another process finished it in between
        return finished(config, path, log)
    resume.claim(workdir, config)
    return _Member(built, workdir)


Told = tuple[str, Mapping[str, Any]]  # a run's name, and a line of its metrics


class _Block(NamedTuple):
    """What one dispatch brought.

    Attributes:
      done: rounds before it.
      rounds: how many of it count.
      seconds: of each of its rounds and runs.
      metrics: leaves `(runs, ...)`, on the host; None for a block of no rounds.
      states: after it, leaves `(runs, ...)`.
    """

    done: int
    rounds: int
    seconds: float
    metrics: BlockMetrics | None
    states: State


def _run_blocks(
    members: Mapping[int, _Member],
    ended: dict[int, Ended],
    *,
    size: int,
    mesh: Mesh,
    executables: Executables,
    log: Log,
    stop: threading.Event | None,
    began: float,
) -> Iterator[list[Told]]:
    """Runs a batch whose directories are open block by block, and enters what became of each run when it has ended.

    Yields the lines that each block wrote, once they are on the disk.
    """
    first = next(iter(members.values()))
    config = first.built.config
    key = f"{configs.program_key(config)} {first.built.dataset.source_id}"  # the scale of a user's data is compiled in
    executable, compile_seconds = None, 0.0
    with methods.naming_the_line(configs.user_functions(config)):
        runs = [one.built for one in members.values()]
        init = executables.init(key, first.built.program)
        placed = build.place(runs + runs[:1] * (size - len(runs)), mesh, init=init)
        simulation, states, points, fed = placed
        done, restored = _go_back(members, first.built, log)
        if restored:
            together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *restored, *restored[:1] * (size - len(runs)))
            states = simulation.place_runs(together)
        if done < config.rounds:
            if first.workdir is not None:
                log(f"{first.workdir.path}: compiling for {records.device()}")
            executable, compile_seconds = executables.get(key, simulation, (states, points, fed))
    layers = records.layer_names(states.variables)

    def report(block: _Block) -> list[Told]:
        """Writes what a block brought, and enters the runs that it ended; returns the lines."""
        told: dict[int, Ended] = {}
        written: list[Told] = []
        for position, (index, one) in enumerate(members.items()):
            if index in ended or one.workdir is None:
                continue
            try:
                lines, status = _write(one, position, block, simulation, layers)
                if status is not None:
                    variables = jax.tree.map(lambda x, at=position: x[at], jax.device_get(block.states.variables))
                    told[index] = _finish(one, variables, status, compile_seconds, began)
                written += [(one.workdir.path.absolute().name, line) for line in lines]
            except (OSError, InputError) as error:  # a full disk, for one directory or for all
                told[index] = error
        ended.update(leader.told_by_leader(told))
        return written

    if executable is None:  # stopped between the last checkpoint and the summary
        yield report(_Block(done, 0, 0.0, None, _held(states)))
    while executable is not None and not members.keys() <= ended.keys():
        if leader.from_leader(stop is not None and stop.is_set()):
            raise Stopped
        started = time.perf_counter()
        states, metrics = executable(states, points, fed, np.int32(done))
        metrics = jax.device_get(metrics)  # the one host copy of the block
        count = min(simulation.block_rounds, config.rounds - done)
        seconds = (time.perf_counter() - started) / (count * len(members))
        yield report(_Block(done, count, seconds, metrics, _held(states)))
        done += count


def _held(states: State) -> State:
    """States that can be read: arrays that lie on other processes too can only be read whole."""
    if jax.process_count() == 1:
        return states

    def whole(node: Any) -> Any:
        if not ops.is_by_client(node):
            return node
        return dataclasses.replace(node, rows=multihost_utils.process_allgather(node.rows, tiled=True))

    return jax.device_get(jax.tree.map(whole, states, is_leaf=ops.is_by_client))


def _go_back(members: Mapping[int, _Member], built: build.Run, log: Log) -> tuple[int, list[State]]:
    """The newest round from which all runs of a batch can go on, and their states after it; else 0 and none."""
    template = jax.eval_shape(built.program.init, built.point)
    workdirs = [one.workdir for one in members.values() if one.workdir is not None]
    restored: list[State] = []

    def restore() -> int:
        done, found = resume.go_back(workdirs, built.config, template, log)
        restored.extend(found)
        return done

    done = leader.on_leader(restore)
    if done and jax.process_count() > 1:
        nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        restored = multihost_utils.broadcast_one_to_all(restored or [nothing] * len(members))
    for one in members.values():
        one.saved = done
    return done, restored


def _write(
    one: _Member,
    position: int,
    block: _Block,
    simulation: Simulation,
    layers: Sequence[str],
) -> tuple[list[dict[str, Any]], str | None]:
    """Writes what a block brought to one run: lines, the filtering if it is recorded, the state once a checkpoint is due.

    Returns:
      The lines, and the status of the run if the block ended it.
    """
    assert one.workdir is not None
    config, done = one.built.config, block.done + block.rounds
    if block.rounds == 0:
        return [], "finished"
    metrics = jax.tree.map(lambda x: x[position], block.metrics)
    table = records.filtering_table(metrics, block.done, block.rounds, layers)
    if table is not None and len(table):
        one.workdir.write_filtering(int(table["round"].iloc[0]), table)
    lines = records.lines(metrics, block.done, block.rounds, simulation, layers, block.seconds)
    one.workdir.append_metrics(lines)
    diverged = _diverged(metrics, block.rounds)
    if not diverged and (done - one.saved >= config.checkpoint_every or done == config.rounds):
        state = ops.unpadded(jax.tree.map(lambda x: x[position], block.states))
        one.workdir.save_checkpoint(done, state, keep=config.keep_checkpoints)
        one.saved = done
    return lines, "diverged" if diverged else "finished" if done == config.rounds else None


def _diverged(metrics: BlockMetrics, count: int) -> bool:
    """Whether a run has to be given up: its update is not finite or, as in the official code, its loss is above 1e8."""
    rounds = metrics.rounds
    return not (np.isfinite(rounds.update_norm[:count]).all() and (rounds.train_loss[:count] <= 1e8).all())


def _finish(one: _Member, variables: Variables, status: str, compile_seconds: float, began: float) -> dict[str, Any]:
    """Writes and returns the summary of a run."""
    assert one.workdir is not None
    summary = records.summary(
        one.workdir.metrics(),
        variables,
        status=status,
        seed=one.built.config.seed,
        config_id=configs.identity(one.built.config),
        compile_seconds=compile_seconds,
        total_seconds=time.perf_counter() - began,
        test_labels=one.built.dataset.num_test_labels(),
    )
    one.workdir.write_summary(summary)
    return summary
