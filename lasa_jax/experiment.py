"""From resolved configs to finished run directories: data, simulation, checkpoints, metrics, resume."""

import contextlib
import functools
import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lasa_jax import aggregators, data, models, record
from lasa_jax import config as configs
from lasa_jax.data import Dataset, FederatedDataset, partition
from lasa_jax.data.partition import Partition
from lasa_jax.errors import InputError, check_number
from lasa_jax.federated import LocalTraining, Point, Program, Simulation, State, make_mesh
from lasa_jax.federated.client import SGD
from lasa_jax.workdir import Workdir, is_finished

PyTree = Any
Progress = Callable[[Mapping[str, Any]], None]
Log = Callable[[str], None]
Outcome = dict[str, Any] | Exception


def make_program(config: ConfigDict, dataset: Dataset, shares: Partition) -> Program:
    """What a resolved config compiles in; the partition says how many clients there are.

    Raises:
      InputError: if more clients are drawn a round than there are.
    """
    num_clients = len(shares.sizes)
    configs.check_clients_per_round(config.clients_per_round, num_clients)
    rank = models.input_rank(config.model)
    if rank != len(dataset.input_shape):
        raise InputError(
            f"config.model = {config.model!r}: takes {'images' if rank == 3 else 'sequences'}, and an example of "
            f"{config.dataset!r} has the shape {dataset.input_shape}"
        )
    model = models.create(config.model, num_classes=dataset.num_classes, input_shape=dataset.input_shape)
    client = config.client
    return Program(
        local_training=LocalTraining(
            model, dataset, client.epochs, client.batch_size, client.decay_every, config.batch_stats == "separate"
        ),
        num_clients=num_clients,
        clients_per_round=config.clients_per_round,
        client_chunk=config.client_chunk,
        ragged=len(np.unique(-(-shares.sizes // client.batch_size))) > 1,
        batch_stats=config.batch_stats,
        attack=(config.attack.name, _words(config.attack.parameters)),
        aggregator=(config.aggregator.name, _words(config.aggregator.parameters)),
    )


def make_simulation(config: ConfigDict, dataset: Dataset, shares: Partition, mesh: Mesh) -> Simulation:
    """The simulation of a resolved config; blocks are whole numbers of evaluations."""
    blocks = -(-config.block_rounds // config.eval_every) * config.eval_every
    program = make_program(config, dataset, shares)
    return Simulation(
        program, config.rounds, config.eval_every, min(blocks, config.rounds), config.eval_batch_size, mesh
    )


def make_point(config: ConfigDict, program: Program) -> Point:
    """The numbers of one run. Everything random on the host is a function of the seed."""
    order = np.random.default_rng([config.seed, 0]).permutation(program.num_clients)
    malicious = np.zeros(program.num_clients, bool)
    if config.attack.name != "none":  # without attack everybody is benign
        malicious[order[: _share(config.attack_ratio, program.num_clients)]] = True
    assumed = config.aggregator.assumed_malicious
    client = config.client
    aggregator = _numbers(config.aggregator.parameters)
    if "sparsity_level" in aggregator:
        # The number of entries that are kept is an integer computed in double precision, see aggregators.keep_top_k.
        num_kept = functools.partial(
            aggregators.NUM_KEPT[config.aggregator.name],
            program.ruled(jax.eval_shape(program.local_training.model.init, jax.random.key(0))),
        )
        aggregator.setdefault("num_kept", num_kept(aggregator.pop("sparsity_level")))
        field = f"config.aggregator.{config.aggregator.name}.num_kept"
        check_number(field, aggregator["num_kept"], high=num_kept(0.0))
    numbers: Any = Point(
        key=jax.random.key(config.seed),
        malicious=jnp.asarray(malicious),
        assumed_malicious=jnp.asarray(
            _share(config.attack_ratio, config.clients_per_round) if assumed is None else assumed
        ),
        sgd=SGD(client.learning_rate, client.momentum, client.learning_rate_decay, client.clip_norm),
        attack=_numbers(config.attack.parameters),
        aggregator=aggregator,
    )
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if isinstance(x, float) else jnp.asarray(x), numbers)


def make_partition(config: ConfigDict, dataset: Dataset) -> Partition:
    """How a resolved config divides the training examples over clients."""
    return partition.divide(
        config.partition,
        dataset.train.labels,
        dataset.client_ids,
        num_clients=config.num_clients,
        seed=config.seed,
    )


def _share(ratio: float, n: int) -> int:
    """`floor(ratio * n)`, not thrown off by 0.29 * 100 = 28.999999999999996."""
    return int(ratio * n + 1e-9)


def _is_number(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in configs.STATIC_PARAMETERS


def _numbers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if _is_number(name, value)}


def _words(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if not _is_number(name, value)}


def program_key(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that two resolved configs share if they differ in nothing but the numbers of a `Point`.

    Runs of the same key go through the same executable, where their arrays have the same shapes.
    """
    kept = {name: value for name, value in configs.as_json(config).items() if name not in configs.UNIDENTIFYING}
    for name in ("seed", "attack_ratio", "source_id"):
        kept.pop(name, None)
    client = kept["client"]
    for name in ("learning_rate", "momentum", "learning_rate_decay"):
        del client[name]
    client["clip_norm"] = client["clip_norm"] is not None
    kept["aggregator"].pop("assumed_malicious")
    for kind in ("aggregator", "attack"):
        kept[kind]["parameters"] = _words(config[kind].parameters)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


class Executables:
    """The compiled programs of this process, so that runs that differ in numbers only compile once.

    The eight that were used last are kept: on a CPU a program takes about a thousand of the 65,530 memory maps that Linux
    allows a process, and a sweep may have more programs than that.
    """

    def __init__(self, keep: int = 8) -> None:
        self._keep = keep
        self._count = 0
        self._compiled: dict[Any, Any] = {}  # the one used last comes last
        self._locks: dict[Any, threading.Lock] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many were compiled, those that were let go included."""
        return self._count

    def get(
        self, key: str, simulation: Simulation, arguments: tuple[State, Point, FederatedDataset]
    ) -> tuple[Any, float]:
        """The executable of a program, and the seconds that it took to compile now: 0 if it was there.

        Threads that ask for the same program wait for the one that compiles it.
        """
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), arguments)
        whole = (key, simulation.mesh, jax.tree.structure(arguments), tuple(jax.tree.leaves(shapes)))
        with self._lock:
            lock = self._locks.setdefault(whole, threading.Lock())
        with lock:
            with self._lock:
                executable, seconds = self._compiled.pop(whole, None), 0.0
            if executable is None:
                executable, seconds = simulation.compile(*arguments)
            with self._lock:
                self._count += seconds > 0
                self._compiled[whole] = executable
                for oldest in list(self._compiled)[: -self._keep]:
                    del self._compiled[oldest]
            return executable, seconds


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
      runs: resolved configs of the same `program_key`, at most `size`, and their directories.
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
        self.shares = make_partition(config, dataset)
        self.simulation = make_simulation(config, dataset, self.shares, mesh)
        self.point = make_point(config, self.simulation.program)
        self.workdir: Workdir | None = None
        self.saved = 0

    def record(self, lines: Sequence[Mapping[str, Any]], done: int, state: State, *, diverged: bool) -> None:
        """Writes what a block brought: lines, and the state once a checkpoint is due."""
        assert self.workdir is not None
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
    layers = record.layer_names(template.variables)
    compile_seconds = 0.0
    if done < rounds:
        if first.workdir is not None:
            log(f"{first.workdir.path}: compiling for {record.device()}")
        executable, compile_seconds = executables.get(program_key(first.config), simulation, (states, points, fed))

    def finish(position: int, one: _Run, status: str) -> dict[str, Any]:
        summary = record.summary(
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
                    lines = record.lines(own, done, count, simulation, layers, seconds)
                    state = jax.tree.map(lambda x, position=position: x[position], held)
                    one.record(lines, done + count, state, diverged=diverged)
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
    if workdir.config() is None or summary is None or not {"status", "detection"} <= summary.keys():
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
                log(f"{workdir.path}: going on after round {last_round}")
                one.saved = last_round
            return last_round, states
    for workdir in workdirs:
        workdir.remove_checkpoints_after(0)
        workdir.keep_metrics_until(0)
    return 0, []
