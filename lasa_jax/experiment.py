"""Runs in their directories: blocks of rounds, checkpoints, metrics, resume; one run or a batch of one program."""

import contextlib
import functools
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lasa_jax import build, data
from lasa_jax import config as configs
from lasa_jax.data import Dataset, FederatedDataset, partition
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables, State, make_mesh
from lasa_jax.workdir import Workdir, is_finished, records

PyTree = Any
Progress = Callable[[Mapping[str, Any]], None]
Log = Callable[[str], None]
Outcome = dict[str, Any] | Exception


class Stopped(Exception):  # noqa: N818  (nothing is wrong)
    """The run was asked to stop; started again, it goes on from its last checkpoint."""


# What can go wrong in one run without the others being wrong: its input, its files, its memory, its numbers.
RUN_FAILURES = (InputError, OSError, RuntimeError, ValueError)


def run(
    config: ConfigDict,
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    executables: Executables | None = None,
    on_line: Progress | None = None,
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
      on_line: called with each new line of metrics.jsonl.
      log: called with what a user should know: that a run goes on, that a checkpoint is damaged.
      stop: once set, the run stops after its block.

    Returns:
      The summary, as stored in summary.json; at once if the run is finished already.

    Raises:
      InputError: if the directory belongs to another config or another process, or the data is missing.
      Stopped: if `stop` was set before the end.
    """
    known = Executables() if executables is None else executables
    (outcome,) = run_batch([(config, Path(path))], executables=known, mesh=mesh, on_line=on_line, log=log, stop=stop)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def run_batch(
    runs: Sequence[tuple[ConfigDict, Path]],
    *,
    executables: Executables,
    size: int = 1,
    mesh: Mesh | None = None,
    on_line: Progress | None = None,
    log: Log = print,
    stop: threading.Event | None = None,
) -> list[Outcome]:
    """Runs configs of one program side by side, all of them in each dispatch, each in its own directory.

    A run's numbers do not depend on the others of its batch, only on the size and the mesh that were compiled.

    Args:
      runs: resolved configs of the same `configs.program_key`, at most `size`, and their directories.
      size: runs that the program is compiled for; where fewer are given, copies of the first, which nobody reads, fill it.
      executables, mesh, on_line, log, stop: as of `run`.

    Returns:
      For each run its summary, or the error that ended it. A run that fails does not stop the others.

    Raises:
      Stopped: if `stop` was set before the end.
    """
    began = time.perf_counter()
    mesh = make_mesh() if mesh is None else mesh
    load = functools.cache(data.load)
    outcomes: dict[int, Outcome] = {}
    batch: dict[int, _Run] = {}
    with contextlib.ExitStack() as locks:
        for index, (config, path) in enumerate(runs):
            try:
                if _is_leader() and is_finished(path):
                    outcomes[index] = _finished(config, Workdir(path, lock=False), log)
                    continue
                dataset = load(config.dataset, data_dir=config.data_dir, source=config.source)
                one = _Run(config, dataset, mesh)
                if _is_leader():
                    one.workdir = locks.enter_context(Workdir(path))
                    if one.workdir.summary() is not None:  # another process finished it in between
                        outcomes[index] = _finished(one.config, one.workdir, log)
                        continue
                    _claim(one.config, one.workdir)
                batch[index] = one
            except RUN_FAILURES as error:
                outcomes[index] = error
        outcomes = _agreed(outcomes, len(runs))
        batch = {index: one for index, one in batch.items() if index not in outcomes}
        try:
            if batch:
                _run_blocks(batch, outcomes, size, executables, on_line, log, stop, began)
        except RUN_FAILURES as error:
            outcomes = dict.fromkeys(batch, error) | outcomes
    return [outcomes[index] for index in range(len(runs))]


class _Run:
    """One run of a batch: what its config makes, and its directory in the process that owns it."""

    def __init__(self, config: ConfigDict, dataset: Dataset, mesh: Mesh) -> None:
        self.config = ConfigDict(config.to_dict())
        if dataset.source_id is not None:
            self.config.source_id = dataset.source_id
        self.dataset = dataset
        self.shares = build.make_partition(config, dataset)
        self.simulation = build.make_simulation(config, dataset, self.shares, mesh)
        self.point = build.make_point(config, self.simulation.program)
        self.workdir: Workdir | None = None
        self.saved = 0

    def record(
        self,
        lines: Sequence[Mapping[str, Any]],
        filtering: pd.DataFrame | None,
        done: int,
        state: State,
        *,
        diverged: bool,
    ) -> None:
        """Writes what a block brought: lines, the filtering if it is recorded, and the state once a checkpoint is due."""
        assert self.workdir is not None
        if filtering is not None and len(filtering):
            self.workdir.write_filtering(int(filtering["round"].iloc[0]), filtering)
        self.workdir.append_metrics(lines)
        if not diverged and (done - self.saved >= self.config.checkpoint_every or done == self.config.rounds):
            self.workdir.save_checkpoint(done, state, keep=self.config.keep_checkpoints)
            self.saved = done


def _run_blocks(
    batch: Mapping[int, _Run],
    outcomes: dict[int, Outcome],
    size: int,
    executables: Executables,
    on_line: Progress | None,
    log: Log,
    stop: threading.Event | None,
    began: float,
) -> None:
    """Runs a batch whose directories are open block by block, and enters each run's outcome when it has one."""
    members = list(batch.values())
    first, fill = members[0], [members[0]] * (size - len(members))
    simulation, rounds = first.simulation, first.config.rounds
    points = _stacked([one.point for one in members + fill])
    states = simulation.init(points)
    template = jax.tree.map(lambda x: x[0], states)
    done, restored = _restore(members, template, log) if _is_leader() else (0, [])
    done = _from_leader(done)
    if done:
        if jax.process_count() > 1:
            restored = multihost_utils.broadcast_one_to_all(restored or [template] * len(members))
        states = _stacked(restored + restored[:1] * len(fill))
    shares = partition.stack([one.shares for one in members + fill])
    fed = FederatedDataset(first.dataset.train, first.dataset.test, shares)
    states, points, fed = simulation.place(states, points, fed)
    layers = records.layer_names(template.variables)
    compile_seconds = 0.0
    if done < rounds:
        if first.workdir is not None:
            log(f"{first.workdir.path}: compiling for {records.device()}")
        executable, compile_seconds = executables.get(
            configs.program_key(first.config), simulation, (states, points, fed)
        )

    def finish(position: int, one: _Run, status: str) -> dict[str, Any]:
        summary = records.summary(
            one.workdir.metrics() if one.workdir is not None else [],
            jax.tree.map(lambda x: x[position], jax.device_get(states.variables)),
            status=status,
            seed=one.config.seed,
            config_id=configs.identity(one.config),
            compile_seconds=compile_seconds,
            total_seconds=time.perf_counter() - began,
        )
        if one.workdir is not None:
            one.workdir.write_summary(summary)
        return _from_leader(summary)

    if done == rounds:  # stopped between the last checkpoint and the summary
        for position, (index, one) in enumerate(batch.items()):
            try:
                outcomes[index] = finish(position, one, "finished")
            except (OSError, InputError) as error:
                outcomes[index] = error
    while not batch.keys() <= outcomes.keys():
        if stop is not None and stop.is_set():
            raise Stopped
        started = time.perf_counter()
        states, metrics = executable(states, points, fed, np.int32(done))
        metrics = jax.device_get(metrics)  # the one host copy of the block
        # Arrays that lie on other processes too can only be read whole.
        held = states if jax.process_count() == 1 else jax.device_get(states)
        count = min(simulation.block_rounds, rounds - done)
        seconds = (time.perf_counter() - started) / (count * len(batch))
        for position, (index, one) in enumerate(batch.items()):
            if index in outcomes:
                continue
            own = jax.tree.map(lambda x, position=position: x[position], metrics)
            # The official code gives a run up where the mean training loss is NaN or above 1e8.
            diverged = not (
                np.isfinite(own.rounds.update_norm[:count]).all() and (own.rounds.train_loss[:count] <= 1e8).all()
            )
            try:
                if one.workdir is not None:
                    lines = records.lines(own, done, count, simulation, layers, seconds)
                    state = jax.tree.map(lambda x, position=position: x[position], held)
                    one.record(
                        lines, records.filtering(own, done, count, layers), done + count, state, diverged=diverged
                    )
                    if on_line is not None:
                        for line in lines:
                            on_line(line)
                if diverged or done + count == rounds:
                    outcomes[index] = finish(position, one, "diverged" if diverged else "finished")
            except (OSError, InputError) as error:  # a full disk, for one directory or for all
                outcomes[index] = error
        done += count


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    """One tree whose leaves have a leading axis of runs."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _is_leader() -> bool:
    """Whether this process owns the directories: the only one, or the first of those started with `jax.distributed`."""
    return jax.process_index() == 0


def _from_leader(value: Any) -> Any:
    """The leader's JSON value in every process. Nothing is sent where there is one process."""
    if jax.process_count() == 1:
        return value
    sent = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent))))
    sent = sent if _is_leader() else np.zeros(length, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())


def _agreed(outcomes: Mapping[int, Outcome], count: int) -> dict[int, Outcome]:
    """What was found before the first round of so many runs, alike in every process: if one failed, none begins."""
    if jax.process_count() == 1:
        return dict(outcomes)
    told = {index: {"error": str(x)} if isinstance(x, Exception) else x for index, x in outcomes.items()}
    agreed: dict[int, Outcome] = {
        int(index): InputError(x["error"]) if "error" in x else x for index, x in _from_leader(told).items()
    }
    failed = np.bool_(any(isinstance(x, Exception) for x in outcomes.values()))
    if np.any(multihost_utils.process_allgather(failed)):
        elsewhere = InputError("another process of this run could not begin: see what it says")
        agreed = {index: outcomes.get(index, elsewhere) for index in range(count)} | agreed
    return agreed


def _finished(config: ConfigDict, workdir: Workdir, log: Log) -> dict[str, Any]:
    """The summary of a finished run, if it is of this config and has what a summary has."""
    summary = workdir.summary()
    if workdir.config() is None or summary is None:
        raise InputError(f"--workdir={workdir.path}: holds a summary.json of something else; choose another directory")
    # The data, and with it the id of its source, is not read for a run that is finished.
    stored = {name: value for name, value in (workdir.config() or {}).items() if name != "source_id"}
    asked = {name: value for name, value in configs.as_json(config).items() if name != "source_id"}
    _refuse_another(stored, asked, workdir)
    log(f"{workdir.path}: finished already")
    return summary


def _claim(config: ConfigDict, workdir: Workdir) -> None:
    """Makes the directory that of this config.

    Raises:
      InputError: if it is the directory of another config, naming the first field that differs.
    """
    stored = workdir.config()
    if stored is None:
        if workdir.has_results():
            raise InputError(f"--workdir={workdir.path}: holds results without a config.json; choose another directory")
        workdir.write_config(configs.to_json(config))
        return
    _refuse_another(stored, configs.as_json(config), workdir)


def _refuse_another(stored: Mapping[str, Any], asked: Mapping[str, Any], workdir: Workdir) -> None:
    """Raises InputError if two configs differ, naming the first field."""
    difference = configs.first_difference(stored, asked)
    if difference is not None:
        raise InputError(f"--workdir={workdir.path}: holds another run, {difference}; choose another directory")


def _restore(batch: Sequence[_Run], template: State, log: Log) -> tuple[int, list[State]]:
    """The newest round of which every run of a batch has an undamaged checkpoint, and the states after it; else 0.

    A checkpoint counts only if the metrics up to it are all there, since the summary is made from them.
    """
    workdirs = [one.workdir for one in batch if one.workdir is not None]
    config = batch[0].config
    for last_round in sorted({at for workdir in workdirs for at in workdir.checkpoint_rounds()}, reverse=True):
        due = {index for index in range(1, last_round + 1) if index % config.eval_every == 0 or index == config.rounds}
        states = []
        for workdir in workdirs:
            if last_round not in workdir.checkpoint_rounds():
                break
            written = {line["round"] for line in workdir.metrics()}
            state = workdir.restore_checkpoint(last_round, template) if due <= written else None
            if state is None:
                damaged = f"the checkpoint of round {last_round} or its metrics are damaged, trying the one before"
                log(f"{workdir.path}: {damaged}")
                break
            states.append(state)
        if len(states) == len(workdirs):
            for one, workdir in zip(batch, workdirs, strict=True):
                workdir.remove_checkpoints_after(last_round)
                workdir.keep_metrics_until(last_round)
                workdir.keep_filtering_until(last_round)
                log(f"{workdir.path}: going on after round {last_round}")
                one.saved = last_round
            return last_round, states
    for workdir in workdirs:
        workdir.remove_checkpoints_after(0)
        workdir.keep_metrics_until(0)
        workdir.keep_filtering_until(0)
    return 0, []
