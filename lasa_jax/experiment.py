"""Runs: blocks of rounds, checkpoints, metrics, resume, each in its directory; or in memory, with `simulate`."""

import contextlib
import dataclasses
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

from lasa_jax import build, data, methods
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.data import Dataset
from lasa_jax.errors import InputError
from lasa_jax.federated import BlockMetrics, Executables, State, make_mesh
from lasa_jax.models import Model, Variables
from lasa_jax.workdir import Workdir, is_finished, records, resume

PyTree = Any
Progress = Callable[[Mapping[str, Any]], None]
Log = Callable[[str], None]
Ended = dict[str, Any] | Exception  # the summary of a run, or what ended it


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
    (ended,) = run_batch([(config, Path(path))], executables=known, mesh=mesh, on_line=on_line, log=log, stop=stop)
    if isinstance(ended, Exception):
        raise ended
    return ended


def run_batch(
    runs: Sequence[tuple[ConfigDict, Path]],
    *,
    executables: Executables,
    size: int = 1,
    mesh: Mesh | None = None,
    on_line: Progress | None = None,
    log: Log = print,
    stop: threading.Event | None = None,
) -> list[Ended]:
    """Runs configs of one program side by side, all of them in each dispatch, each in its own directory.

    A run's numbers do not depend on the others of its batch, only on the size and the mesh that were compiled.

    Args:
      runs: resolved configs of the same `config.program_key`, at most `size`, and their directories.
      size: runs that the program is compiled for; where fewer are given, copies of the first, which nobody reads, fill it.
      executables, mesh, on_line, log, stop: as of `run`.

    Returns:
      For each run its summary, or the error that ended it. A run that fails does not stop the others.

    Raises:
      Stopped: if `stop` was set before the end.
    """
    began = time.perf_counter()
    load = functools.cache(data.load)
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
        ended = _agreed(ended, len(runs))
        members = {index: one for index, one in members.items() if index not in ended}
        try:
            if members:
                _run_blocks(
                    members,
                    ended,
                    size=size,
                    mesh=make_mesh() if mesh is None else mesh,
                    executables=executables,
                    on_line=on_line,
                    log=log,
                    stop=stop,
                    began=began,
                )
        except RUN_FAILURES as error:
            ended = dict.fromkeys(members, error) | ended
    return [ended[index] for index in range(len(runs))]


@dataclasses.dataclass
class _Member:
    """One run of a batch: what its config makes, and its directory in the process that owns it."""

    built: build.Run
    workdir: Workdir | None
    saved: int = 0

    def record(self, lines: list, filtering: pd.DataFrame | None, done: int, state: State, *, diverged: bool) -> None:
        """Writes what a block brought: lines, the filtering if it is recorded, and the state once a checkpoint is due."""
        assert self.workdir is not None
        config = self.built.config
        if filtering is not None and len(filtering):
            self.workdir.write_filtering(int(filtering["round"].iloc[0]), filtering)
        self.workdir.append_metrics(lines)
        if not diverged and (done - self.saved >= config.checkpoint_every or done == config.rounds):
            self.workdir.save_checkpoint(done, state, keep=config.keep_checkpoints)
            self.saved = done


def _open(
    config: ConfigDict, path: Path, load: Callable[..., Dataset], locks: contextlib.ExitStack, log: Log
) -> _Member | dict[str, Any]:
    """A run with its directory locked and claimed; the summary of one that is finished."""

    def finished(workdir: Workdir, config: ConfigDict) -> dict[str, Any]:
        summary = resume.finished_summary(workdir, config)
        log(f"{path}: finished already")
        return summary

    if _is_leader() and is_finished(path):
        return finished(Workdir(path, lock=False), config)
    dataset = load(config.dataset, data_dir=config.data_dir, source=config.source)
    config = ConfigDict(config.to_dict())
    built = build.prepare(config, dataset=dataset)
    if dataset.source_id is not None:
        config.source_id = dataset.source_id
    if not _is_leader():
        return _Member(built, None)
    workdir = locks.enter_context(Workdir(path))
    if workdir.summary() is not None:  # another process finished it in between
        return finished(workdir, config)
    resume.claim(workdir, config)
    return _Member(built, workdir)


def _run_blocks(
    members: Mapping[int, _Member],
    ended: dict[int, Ended],
    *,
    size: int,
    mesh: Mesh,
    executables: Executables,
    on_line: Progress | None,
    log: Log,
    stop: threading.Event | None,
    began: float,
) -> None:
    """Runs a batch whose directories are open block by block, and enters what became of each run when it has ended."""
    batch = list(members.values())
    fill = size - len(batch)
    config = batch[0].built.config
    with methods.naming_the_line(configs.user_functions(config)):
        simulation, states, points, fed = build.place([one.built for one in batch + batch[:1] * fill], mesh)
    workdirs = [one.workdir for one in batch if one.workdir is not None]
    template = jax.eval_shape(simulation.program.init, batch[0].built.point)
    layers = records.layer_names(template.variables)
    done, restored = resume.go_back(workdirs, config, template, log) if _is_leader() else (0, [])
    done = _from_leader(done)
    if done:
        if jax.process_count() > 1:
            nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
            restored = multihost_utils.broadcast_one_to_all(restored or [nothing] * len(batch))
        together = jax.tree.map(lambda *leaves: jnp.stack(leaves), *restored, *restored[:1] * fill)
        states = simulation.place_runs(together)
    for one in batch:
        one.saved = done
    compile_seconds = 0.0
    if done < config.rounds:
        for workdir in workdirs[:1]:
            log(f"{workdir.path}: compiling for {records.device()}")
        with methods.naming_the_line(configs.user_functions(config)):
            key = configs.program_key(config)
            executable, compile_seconds = executables.get(key, simulation, (states, points, fed))

    def finish(position: int, one: _Member, status: str) -> dict[str, Any]:
        summary = records.summary(
            one.workdir.metrics() if one.workdir is not None else [],
            jax.tree.map(lambda x: x[position], jax.device_get(states.variables)),
            status=status,
            seed=one.built.config.seed,
            config_id=configs.identity(one.built.config),
            compile_seconds=compile_seconds,
            total_seconds=time.perf_counter() - began,
        )
        if one.workdir is not None:
            one.workdir.write_summary(summary)
        return _from_leader(summary)

    if done == config.rounds:  # stopped between the last checkpoint and the summary
        for position, (index, one) in enumerate(members.items()):
            try:
                ended[index] = finish(position, one, "finished")
            except (OSError, InputError) as error:
                ended[index] = error
    while not members.keys() <= ended.keys():
        if stop is not None and stop.is_set():
            raise Stopped
        started = time.perf_counter()
        states, metrics = executable(states, points, fed, np.int32(done))
        metrics = jax.device_get(metrics)  # the one host copy of the block
        # Arrays that lie on other processes too can only be read whole.
        held = states if jax.process_count() == 1 else jax.device_get(states)
        count = min(simulation.block_rounds, config.rounds - done)
        seconds = (time.perf_counter() - started) / (count * len(batch))
        for position, (index, one) in enumerate(members.items()):
            if index in ended:
                continue
            own = jax.tree.map(lambda x, position=position: x[position], metrics)
            diverged = _diverged(own, count)
            try:
                if one.workdir is not None:
                    lines = records.lines(own, done, count, simulation, layers, seconds)
                    state = jax.tree.map(lambda x, position=position: x[position], held)
                    table = records.filtering_table(own, done, count, layers)
                    one.record(lines, table, done + count, state, diverged=diverged)
                    if on_line is not None:
                        for line in lines:
                            on_line(line)
                if diverged or done + count == config.rounds:
                    ended[index] = finish(position, one, "diverged" if diverged else "finished")
            except (OSError, InputError) as error:  # a full disk, for one directory or for all
                ended[index] = error
        done += count


def _diverged(metrics: BlockMetrics, count: int) -> bool:
    """Whether a run has to be given up: its update is not finite or, as in the official code, its loss is above 1e8."""
    rounds = metrics.rounds
    return not (np.isfinite(rounds.update_norm[:count]).all() and (rounds.train_loss[:count] <= 1e8).all())


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


def _agreed(ended: Mapping[int, Ended], count: int) -> dict[int, Ended]:
    """What was found before the first round of so many runs, alike in every process: if one failed, none begins."""
    if jax.process_count() == 1:
        return dict(ended)
    told = {index: {"error": str(x)} if isinstance(x, Exception) else x for index, x in ended.items()}
    agreed: dict[int, Ended] = {
        int(index): InputError(x["error"]) if "error" in x else x for index, x in _from_leader(told).items()
    }
    failed = np.bool_(any(isinstance(x, Exception) for x in ended.values()))
    if np.any(multihost_utils.process_allgather(failed)):
        elsewhere = InputError("another process of this run could not begin: see what it says")
        agreed = {index: ended.get(index, elsewhere) for index in range(count)} | agreed
    return agreed


@dataclasses.dataclass(frozen=True)
class History:
    """What a run in memory brought.

    Attributes:
      rounds: int `(evaluations,)`, the rounds that were evaluated, counted from 1.
      test_accuracy: `(evaluations,)`.
      test_loss: `(evaluations,)`.
      train_loss: `(rounds,)`, of every round.
      clients: int `(rounds, n)`, who took part.
      malicious: bool `(rounds, n)`, who of them is malicious.
      weights: by name of the layer `(rounds, n)`, the weight that the rule gave each client, 0 if it was filtered out.
      variables: of the final model.
    """

    rounds: np.ndarray
    test_accuracy: np.ndarray
    test_loss: np.ndarray
    train_loss: np.ndarray
    clients: np.ndarray
    malicious: np.ndarray
    weights: dict[str, np.ndarray]
    variables: Variables


def simulate(
    data_or_config: str | Dataset | ConfigDict,
    /,
    *,
    aggregator: Aggregator | None = None,
    attack: Attack | None = None,
    model: Model | None = None,
    mesh: Mesh | None = None,
    **settings: Any,
) -> History:
    """Runs one simulation in memory. Nothing is written.

    Args:
      data_or_config: the name of a dataset, with the paper's settings for it; a `Dataset`, with the defaults; or a config.
      aggregator: the server's rule, for instance `aggregators.lasa()`; that of the config, or LASA, if None.
      attack: for instance `attacks.byzmean()`; that of the config, or none, if None.
      model: a pair of functions, see `models`; that of the config if None.
      mesh: the devices; all of them for the clients if None.
      **settings: of the config by their names, `rounds=20` or `**{"client.epochs": 1}`.

    Raises:
      InputError: one line that names the setting, its value and what is allowed.

    Examples:
      >>> from lasa_jax import aggregators, attacks, experiment
      >>> short = {"rounds": 2, "client.epochs": 1}
      >>> history = experiment.simulate("digits", aggregator=aggregators.krum(), attack=attacks.lie(), **short)
      >>> history.rounds.tolist(), history.weights["params/conv1/bias"].shape
      ([1, 2], (2, 30))
    """
    dataset, base = None, data_or_config
    if isinstance(data_or_config, Dataset):
        dataset, base = data_or_config, configs.default()
    elif isinstance(data_or_config, str):
        base = configs.paper(data_or_config)
    name = None if dataset is None else dataset.name
    config = configs.resolve(configs.updated(base, settings), settings, dataset=name)
    built = build.prepare(config, dataset=dataset, model=model, aggregator=aggregator, attack=attack)
    built = built._replace(program=dataclasses.replace(built.program, record_filtering=True))
    with methods.naming_the_line(configs.user_functions(config)):
        simulation, states, points, fed = build.place([built], make_mesh() if mesh is None else mesh)
        executable, _ = simulation.compile(states, points, fed)
    layers = records.layer_names(states.variables)
    blocks = []
    for done in range(0, config.rounds, simulation.block_rounds):
        states, metrics = executable(states, points, fed, np.int32(done))
        blocks.append(jax.tree.map(lambda x: x[0], jax.device_get(metrics)))
    whole = jax.tree.map(lambda *parts: np.concatenate(parts)[: config.rounds], *blocks)
    filtering, count = whole.rounds.filtering, config.clients_per_round
    evaluated = np.array(simulation.evaluated_rounds())
    return History(
        rounds=evaluated,
        test_accuracy=whole.test_accuracy[evaluated - 1],
        test_loss=whole.test_loss[evaluated - 1],
        train_loss=whole.rounds.train_loss,
        clients=filtering.client[:, :count],
        malicious=filtering.malicious[:, :count],
        weights={name: filtering.fields["weight"][:, at, :count] for at, name in enumerate(layers)},
        variables=jax.tree.map(lambda x: x[0], jax.device_get(states.variables)),
    )
