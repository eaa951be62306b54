"""From what a user set to the config of a run: every setting checked, every open one decided."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from lasa_jax import data, methods
from lasa_jax.config import by_dataset
from lasa_jax.config.identity import as_json, first_difference
from lasa_jax.config.settings import BY_FIDELITY, check_fields, check_values, default, flatten
from lasa_jax.data import partition
from lasa_jax.errors import InputError, check_number


def updated(base: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with some settings changed, given by their names: `{"client.epochs": 1}`.

    Raises:
      InputError: for a name that is no setting, or a value of another type.
    """
    check_fields(settings)
    config = ConfigDict(base.to_dict())
    try:
        config.update_from_flattened_dict(dict(settings))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{', '.join(settings)}: {' '.join(str(error).split())}") from None
    return config


def resolve(config: ConfigDict, overrides: Iterable[str] = (), *, dataset: str | None = None) -> ConfigDict:
    """Checks a config and decides everything that it leaves open.

    Args:
      config: what a config file returned, with overrides applied.
      overrides: the fields that the user set by hand, as `"aggregator.lasa.sparsity_level"`; a parameter of a method
        that is not selected is refused.
      dataset: the name of a dataset that is given as arrays, in place of the config's.

    Returns:
      The config of a run: `fidelity` has decided what it decides, and the tables of `aggregator` and `attack` hold the
      parameters of the selected method only, under `parameters`.

    Raises:
      InputError: one line that names the setting, its value and what is allowed.
    """
    config = ConfigDict(_plain(config.to_dict()))
    check_values(config)
    config.dataset = config.dataset if dataset is None else dataset
    overrides = list(overrides)
    _check_selected(config, overrides)
    _check_relations(config)
    own = partition.SETTINGS[config.partition.name]
    config.partition = ConfigDict({name: config.partition[name] for name in ("name", *own)})
    client = config.client
    if client.learning_rate_decay is None:
        client.learning_rate_decay = by_dataset.learning_rate_decay(config.fidelity, config.dataset)
    if client.clip_norm is None:
        client.clip_norm = by_dataset.clip_norm(config.fidelity, config.dataset, config.aggregator.name)
    elif math.isinf(client.clip_norm):
        client.clip_norm = None  # "inf" asks for no clip where fidelity would set one
    for kind in methods.TABLES:
        config[kind] = _resolve_method(config, kind)
    return config


def _plain(value: Any) -> Any:
    """NumPy's numbers, as in a sweep made with NumPy, as Python's: JSON, and what tells numbers from words, know those."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _check_selected(config: ConfigDict, overrides: Iterable[str]) -> None:
    """Raises InputError for a setting that was set by hand and belongs to what is not selected."""
    own = partition.SETTINGS[config.partition.name]
    for override in overrides:
        table, *parts = override.split(".")
        if table in methods.TABLES and len(parts) > 1 and parts[0] != config[table].name:
            raise InputError(
                f"config.{override}: {table} {parts[0]!r} is not selected (config.{table}.name is {config[table].name!r})"
            )
        if table == "partition" and parts[0] not in ("name", *own):
            those = ", ".join(name for name, settings in partition.SETTINGS.items() if parts[0] in settings)
            raise InputError(
                f"config.{override}: is of the partition {those} (config.partition.name is {config.partition.name!r})"
            )


def _check_relations(config: ConfigDict) -> None:
    """The few relations between settings."""
    if config.source is not None and not data.made_from_source(config.dataset):
        raise InputError(f"config.source = {config.source!r}: dataset {config.dataset!r} is not made from a raw source")
    if config.num_clients is None and config.partition.name != "natural":
        raise InputError(
            f"config.num_clients: must be set for the partition {config.partition.name!r}; only 'natural' has its own number"
        )
    if config.num_clients is not None:
        check_clients_per_round(config.clients_per_round, config.num_clients)
    if config.aggregator.assumed_malicious is not None:
        assumed = config.aggregator.assumed_malicious
        check_number("config.aggregator.assumed_malicious", assumed, low=0, high=config.clients_per_round)


def check_clients_per_round(clients_per_round: int, num_clients: int) -> None:
    """Raises InputError if a round draws more clients than there are; with natural clients the data decides."""
    if clients_per_round > num_clients:
        raise InputError(
            f"config.clients_per_round = {clients_per_round}: allowed are 1 to config.num_clients = {num_clients}"
        )


def _resolve_method(config: ConfigDict, kind: str) -> ConfigDict:
    """The table of a rule or an attack with its selected parameters, tried by building the method once."""
    table = config[kind]
    parameters = {name: value for name, value in table[table.name].to_dict().items() if value is not None}
    if parameters.get("variant") == BY_FIDELITY:
        parameters["variant"] = config.fidelity
    if parameters.get("knowledge") == BY_FIDELITY:
        parameters["knowledge"] = by_dataset.knowledge(config.fidelity, table.name)
    try:
        methods.create(kind, table.name, parameters)
    except InputError as error:
        raise InputError(f"config.{kind}.{table.name}.{error}") from None
    chosen = ConfigDict({"name": table.name, "parameters": parameters})
    if kind == "aggregator":
        chosen.assumed_malicious = table.assumed_malicious
    return chosen


def from_json(stored: Mapping[str, Any]) -> ConfigDict:
    """The resolved config of which `as_json` made these values, checked as a new one.

    Raises:
      InputError: if it is none of this version: a field is missing, unknown or out of range.
    """
    flat: dict[str, Any] = {}
    for field, value in flatten({name: value for name, value in stored.items() if name != "source_id"}):
        kind, _, name = field.partition(".parameters.")
        if name:
            field = f"{kind}.{dict(flatten(stored)).get(f'{kind}.name')}.{name}"
        if not isinstance(value, Mapping):  # the parameters of a method that has none
            flat[field] = float(value) if value in ("inf", "-inf") else value
    if flat.get("client.clip_norm", 0.0) is None:
        flat["client.clip_norm"] = math.inf  # None would leave it to the fidelity
    check_fields(flat)
    config = default()
    try:
        config.update_from_flattened_dict(flat)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"config.json: {' '.join(str(error).split())}") from None
    resolved = resolve(config)
    kept = {name: value for name, value in stored.items() if name != "source_id"}
    difference = first_difference(kept, as_json(resolved))
    if difference is not None:
        raise InputError(f"config.json: is of another version of lasa_jax, {difference}")
    return resolved
