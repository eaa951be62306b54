"""From a resolved config to a finished run directory: data, simulation, checkpoints, metrics, resume."""

import dataclasses
import functools
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lasa_jax import aggregators, data, models
from lasa_jax import config as configs
from lasa_jax.data import Dataset, FederatedDataset, partition
from lasa_jax.data.partition import Partition
from lasa_jax.errors import InputError, check_number
from lasa_jax.federated import LocalTraining, Point, Program, Simulation, State, make_mesh
from lasa_jax.federated.client import SGD
from lasa_jax.federated.simulation import BlockMetrics
from lasa_jax.workdir import Workdir, is_finished

PyTree = Any
Progress = Callable[[Mapping[str, Any]], None]


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
    """The compiled programs of this process, so that runs that differ in numbers only compile once."""

    def __init__(self) -> None:
        self._compiled: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._compiled)

    def get(
        self, key: str, simulation: Simulation, arguments: tuple[State, Point, FederatedDataset]
    ) -> tuple[Any, float]:
        """The executable of a program, and the seconds that it took to compile now: 0 if it was there."""
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), arguments)
        whole = (key, simulation.mesh, jax.tree.structure(arguments), tuple(jax.tree.leaves(shapes)))
        if whole in self._compiled:
            return self._compiled[whole], 0.0
        self._compiled[whole], seconds = simulation.compile(*arguments)
        return self._compiled[whole], seconds


@dataclasses.dataclass
class _Clock:
    """Seconds of this process, for the summary."""

    began: float
    compile_seconds: float = 0.0


def run(
    config: ConfigDict,
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    executables: Executables | None = None,
    on_line: Progress | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Runs a resolved config to its end in a run directory, going on from its last good checkpoint.

    Args:
      config: from `config.resolve`.
      path: the directory; made if it is not there, once everything that can be wrong with the input was checked.
      mesh: the devices; all of them for the clients of one run if None.
      executables: programs compiled before, and to be shared with runs to come.
      on_line: called with each new line of metrics.jsonl.
      log: called with what a user should know: that a run goes on, that a checkpoint is damaged.

    Returns:
      The summary, as stored in summary.json; at once if the run is finished already.

    Raises:
      InputError: if the directory belongs to another config or another process, or the data is missing.
    """
    clock = _Clock(time.perf_counter())
    if is_finished(path):
        return _finished(config, Workdir(path, lock=False), log)
    versions = _versions()
    dataset = data.load(config.dataset, data_dir=config.data_dir, source=config.source)
    config = ConfigDict(config.to_dict())
    if dataset.source_id is not None:
        config.source_id = dataset.source_id
    shares = make_partition(config, dataset)
    simulation = make_simulation(config, dataset, shares, make_mesh() if mesh is None else mesh)
    points = jax.tree.map(lambda x: x[None], make_point(config, simulation.program))
    with Workdir(path) as workdir:
        if workdir.summary() is not None:  # another process finished it in between
            return _finished(config, workdir, log)
        _claim(config, workdir)
        states = simulation.init(points)
        done, states = _restore(config, workdir, states, log)
        fed = FederatedDataset(dataset.train, dataset.test, jax.tree.map(lambda x: x[None], shares))
        states, points, fed = simulation.place(states, points, fed)
        if done < config.rounds:
            known = Executables() if executables is None else executables
            log(f"{path}: compiling for {_device()}")
            executable, clock.compile_seconds = known.get(program_key(config), simulation, (states, points, fed))
        layers = _layer_names(states.variables)

        status, saved = "finished", done
        while done < config.rounds and status == "finished":
            began = time.perf_counter()
            states, metrics = executable(states, points, fed, jnp.int32(done))
            metrics = jax.device_get(metrics)  # the one host copy of the block
            count = min(simulation.block_rounds, config.rounds - done)
            seconds = (time.perf_counter() - began) / count
            lines = _lines(jax.tree.map(lambda x: x[0], metrics), done, count, simulation, layers, seconds)
            done += count
            workdir.append_metrics(lines)
            if on_line is not None:
                for line in lines:
                    on_line(line)
            rounds = metrics.rounds
            # The official code gives a run up where the mean training loss is NaN or above 1e8.
            if not (np.isfinite(rounds.update_norm[0, :count]).all() and (rounds.train_loss[0, :count] <= 1e8).all()):
                status = "diverged"
            elif done - saved >= config.checkpoint_every or done == config.rounds:
                workdir.save_checkpoint(done, jax.tree.map(lambda x: x[0], states), keep=config.keep_checkpoints)
                saved = done
        summary = {**_summary(config, workdir, states, status, clock), "versions": versions}
        workdir.write_summary(summary)
        return summary


def _finished(config: ConfigDict, workdir: Workdir, log: Callable[[str], None]) -> dict[str, Any]:
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


def _restore(config: ConfigDict, workdir: Workdir, states: State, log: Callable[[str], None]) -> tuple[int, State]:
    """The newest checkpoint that is undamaged, and the rounds it has behind it; the given states and 0 if none is.

    A checkpoint counts only if the metrics up to it are all there, since the summary is made from them.
    """
    written = {line["round"] for line in workdir.metrics()}
    template = jax.tree.map(lambda x: x[0], states)
    for last_round in reversed(workdir.checkpoint_rounds()):
        due = {index for index in range(1, last_round + 1) if index % config.eval_every == 0 or index == config.rounds}
        state = workdir.restore_checkpoint(last_round, template) if due <= written else None
        if state is not None:
            workdir.remove_checkpoints_after(last_round)
            workdir.keep_metrics_until(last_round)
            log(f"{workdir.path}: going on after round {last_round}")
            return last_round, jax.tree.map(lambda x: x[None], state)
        log(f"{workdir.path}: the checkpoint of round {last_round} or its metrics are damaged, trying the one before")
    workdir.remove_checkpoints_after(0)
    workdir.keep_metrics_until(0)
    return 0, states


def _layer_names(variables: PyTree) -> list[str]:
    """Readable names of the layers in the order of the flattened variables, `"params/conv1/kernel"`."""
    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def _lines(
    metrics: BlockMetrics, done: int, count: int, simulation: Simulation, layers: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """One line for each evaluated round of a block, covering the rounds since the line before."""
    lines = []
    first = 0
    for index in range(count):
        number = done + index + 1
        if number % simulation.eval_every and number != simulation.rounds:
            continue
        covered = slice(first, index + 1)
        rounds = metrics.rounds
        lines.append(
            {
                "round": number,
                "test_accuracy": float(metrics.test_accuracy[index]),
                "test_loss": float(metrics.test_loss[index]),
                "train_loss": float(np.mean(rounds.train_loss[covered])),
                "update_norm": float(rounds.update_norm[index]),
                "step_waste": float(np.mean(rounds.step_waste[covered])),
                "assumed_malicious": None if (used := int(rounds.assumed_malicious[index])) < 0 else used,
                "malicious": int(rounds.malicious[covered].sum()),
                "benign": int(rounds.benign[covered].sum()),
                "malicious_filtered": dict(
                    zip(layers, rounds.malicious_filtered[covered].sum(0).tolist(), strict=True)
                ),
                "benign_filtered": dict(zip(layers, rounds.benign_filtered[covered].sum(0).tolist(), strict=True)),
                "seconds_per_round": seconds,
            }
        )
        first = index + 1
    return lines


def detection_rates(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of malicious clients filtered and of benign clients kept, per layer and over all layers.

    Counted over all rounds that the metrics lines cover; None where there was nobody to count.
    """

    def rate(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    malicious, benign = (sum(line[kind] for line in lines) for kind in ("malicious", "benign"))
    layers = list(lines[0]["malicious_filtered"]) if lines else []
    filtered = {layer: sum(line["malicious_filtered"][layer] for line in lines) for layer in layers}
    lost = {layer: sum(line["benign_filtered"][layer] for line in lines) for layer in layers}
    return {
        "malicious_filtered": rate(sum(filtered.values()), malicious * len(layers)),
        "benign_kept": rate(benign * len(layers) - sum(lost.values()), benign * len(layers)),
        "layers": {
            layer: {
                "malicious_filtered": rate(filtered[layer], malicious),
                "benign_kept": rate(benign - lost[layer], benign),
            }
            for layer in layers
        },
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in ("lasa_jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a folder that was not installed
            versions[name] = "unknown"
    return versions


def _device() -> str:
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _summary(config: ConfigDict, workdir: Workdir, states: State, status: str, clock: _Clock) -> dict[str, Any]:
    lines = workdir.metrics()
    accuracies = [line["test_accuracy"] for line in lines if line["test_accuracy"] is not None]
    best = max(accuracies, default=None)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(states.variables)):
        digest.update(np.ascontiguousarray(leaf[0]).tobytes())
    return {
        "status": status,
        "best_test_accuracy": best,
        "final_test_accuracy": lines[-1]["test_accuracy"] if lines else None,
        "best_round": next((line["round"] for line in lines if line["test_accuracy"] == best), None),
        "rounds": lines[-1]["round"] if lines else 0,
        "seed": config.seed,
        "detection": detection_rates(lines),
        "assumed_malicious": lines[-1]["assumed_malicious"] if lines else None,
        "seconds_per_round": float(np.mean([line["seconds_per_round"] for line in lines])) if lines else None,
        "compile_seconds": clock.compile_seconds,
        "total_seconds": time.perf_counter() - clock.began,
        "parameters_sha256": digest.hexdigest(),
        "config_id": configs.identity(config),
        "device": _device(),
    }
