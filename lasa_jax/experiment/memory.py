"""One run in memory: `simulate` writes nothing."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lasa_jax import build, methods
from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack
from lasa_jax.data import Dataset
from lasa_jax.errors import InputError
from lasa_jax.federated import Measures, make_mesh
from lasa_jax.models import Variables
from lasa_jax.workdir import records


@dataclasses.dataclass(frozen=True)
class History:
    """What a run in memory brought.

    Attributes:
      evaluated: int `(evaluations,)`, the rounds after which the model was evaluated, counted from 1.
      test_accuracy: `(evaluations,)`.
      test_loss: `(evaluations,)`.
      attack_success: `(evaluations,)`, of an attack with a trigger the share of test examples for which it works; else None.
      with_padding: test loss and accuracy over every position, `(evaluations,)` each, of a dataset with padding; else None.
      without_padding: the same over the positions that are no padding.
      train_loss: `(rounds,)`, of every round.
      clients: int `(rounds, n)`, who took part.
      malicious: bool `(rounds, n)`, who of them is malicious.
      weights: by name of the layer `(rounds, n)`, the weight that the rule gave each client, 0 if it was filtered out.
      variables: of the final model.
      worst_tenth_accuracy: of the final model on the tenth of the benign clients that it serves worst, see
        `federated.fairness`; None where clients differ by chance only.
    """

    evaluated: np.ndarray
    test_accuracy: np.ndarray
    test_loss: np.ndarray
    train_loss: np.ndarray
    clients: np.ndarray
    malicious: np.ndarray
    weights: dict[str, np.ndarray]
    variables: Variables
    worst_tenth_accuracy: float | None = None
    with_padding: Measures | None = None
    without_padding: Measures | None = None
    attack_success: np.ndarray | None = None


def simulate(
    data_or_config: str | Dataset | ConfigDict,
    /,
    *,
    aggregator: Aggregator | None = None,
    attack: Attack | None = None,
    model: Any = None,
    mesh: Mesh | None = None,
    on_metrics: Callable[[str, int, Mapping[str, Any]], None] | None = None,
    **settings: Any,
) -> History:
    """Runs one simulation in memory. Nothing is written.

    Args:
      data_or_config: the name of a dataset, with the paper's settings for it; a `Dataset`, with the defaults; or a config.
      aggregator: the server's rule, for instance `aggregators.lasa()`; that of the config, or LASA, if None.
      attack: for instance `attacks.byzmean()`; that of the config, or none, if None.
      model: a pair of functions or a module, see docs/adding.md; that of the config if None.
      mesh: the devices; all of them for the clients if None.
      on_metrics: `on_metrics(dataset, round, metrics)`, called for each evaluated round, a block at a time: the name of the
        dataset, the round, and what a line of metrics.jsonl has. What it raises ends the run.
      **settings: of the config by their names, `rounds=20` or `**{"client.epochs": 1}`.

    Raises:
      InputError: one line that names the setting, its value and what is allowed.

    Examples:
      >>> from lasa_jax import aggregators, attacks, experiment
      >>> short = {"rounds": 2, "client.epochs": 1}
      >>> history = experiment.simulate("digits", aggregator=aggregators.krum(), attack=attacks.lie(), **short)
      >>> history.evaluated.tolist(), history.weights["params/conv1/bias"].shape
      ([1, 2], (2, 30))
    """
    dataset, base = None, data_or_config
    if isinstance(data_or_config, Dataset):
        dataset, base = data_or_config, configs.default()
    elif isinstance(data_or_config, str):
        base = configs.paper(data_or_config)
    for kind, given in (("aggregator", aggregator), ("attack", attack)):
        own = [field for field in settings if field.startswith(f"{kind}.") and field != "aggregator.assumed_malicious"]
        if given is not None and own:
            raise InputError(f"{own[0]}: is not used, since {kind}= is given; set its parameters there")
    if model is not None and "model" in settings:
        raise InputError("model: is not used twice; give a name or a pair of functions")
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
        began = time.perf_counter()
        states, metrics = executable(states, points, fed, np.int32(done))
        blocks.append(jax.tree.map(lambda x: x[0], jax.device_get(metrics)))
        if on_metrics is not None:
            rounds = min(simulation.block_rounds, config.rounds - done)
            seconds = (time.perf_counter() - began) / rounds
            for line in records.lines(blocks[-1], done, rounds, simulation, layers, seconds):
                on_metrics(config.dataset, line["round"], line)
    whole = jax.tree.map(lambda *parts: np.concatenate(parts)[: config.rounds], *blocks)
    filtering, count = whole.rounds.filtering, config.clients_per_round
    evaluated = np.array(simulation.evaluated_rounds())
    test = jax.tree.map(lambda x: x[evaluated - 1], whole.test)
    return History(
        evaluated=evaluated,
        test_accuracy=test.reported.accuracy,
        test_loss=test.reported.loss,
        train_loss=whole.rounds.train_loss,
        clients=filtering.client[:, :count],
        malicious=filtering.malicious[:, :count],
        weights={name: filtering.fields["weight"][:, at, :count] for at, name in enumerate(layers)},
        variables=jax.tree.map(lambda x: x[0], jax.device_get(states.variables)),
        worst_tenth_accuracy=None if whole.worst_tenth is None else float(whole.worst_tenth[-1]),
        with_padding=test.with_padding,
        without_padding=test.without_padding,
        attack_success=test.success,
    )
