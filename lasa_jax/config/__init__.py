"""Configs: the shared defaults, what `fidelity` decides, and the check of every setting before anything is compiled.

A config file defines `get_config(argument)` and starts from `default()`. `resolve` turns what it returns, with the
command line's overrides, into the config of a run: every "by fidelity" is decided, only the selected rule and attack
are left, every value is in range.
"""

import difflib
import hashlib
import json
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lasa_jax import aggregators, attacks, data, models, registry
from lasa_jax.data import partition
from lasa_jax.errors import InputError, check_choice, check_number

BY_FIDELITY = "by_fidelity"  # a word-valued setting that `config.fidelity` decides; numbers say it by being None

# The two readings of the paper, see docs/fidelity.md. "paper" is the supplement and each method's own paper,
# "official" the official code (FIDELITY.md, sections 3, 4 and 7).
_DECAY = {
    "paper": {"shakespeare": 0.999, "digits": 1.0, "otherwise": 0.99},
    "official": {"cifar10": 0.99, "cifar100": 0.99, "shakespeare": 0.99, "digits": 1.0, "otherwise": 0.999},
}
_CLIPPED_RULES = ("bulyan", "fedavg", "geometric_median", "krum", "sparsefed", "trimmed_mean")
_CLIP_NORM: dict[str, dict[str, float]] = {
    "paper": {},
    "official": {"mnist": 1.0, "fashion_mnist": 1.0, "femnist": 2.0, "shakespeare": 1.0},
}
_KNOWLEDGE = {"paper": {"otherwise": "benign"}, "official": {"byzmean": "all", "otherwise": "colluders"}}
_KNOWLEDGE["official"] |= dict.fromkeys(("adaptive", "alie", "ipm", "tailored_krum"), "benign")  # not in that code

# Numeric parameters of rules and attacks that are compiled in; every other number of theirs is data of the program, as
# are seed, attack ratio and the numbers of local SGD. The other settings are compiled in, see `federated.Program`.
STATIC_PARAMETERS = (
    "coordinate_fraction",
    "max_iterations",
    "num_coordinates",
    "num_iterations",
    "num_magnitudes",
    "num_refinements",
    "refinements",
)

# Settings that say where things are and how they are kept, not what is computed: a run may go on with other values.
UNIDENTIFYING = ("data_dir", "source", "checkpoint_every", "keep_checkpoints")


_LARGEST = 1_000_000  # of the settings that are counts: products of two still fit a 64-bit integer


def default() -> ConfigDict:
    """The settings that every config starts from. docs/configs.md describes each."""
    config = ConfigDict()
    config.seed = 1
    config.dataset = "digits"
    config.data_dir = placeholder(str)
    config.source = placeholder(str)
    config.partition = ConfigDict(
        {"name": "iid", "alpha": 0.5, "min_samples": 10, "classes_per_client": 2, "gamma": 0.5}
    )
    config.model = "small_cnn"
    config.rounds = 60
    config.num_clients = placeholder(int)  # None: as many as the data has
    config.num_clients = 60
    config.clients_per_round = 30
    config.attack_ratio = 0.25
    config.fidelity = "paper"
    config.batch_stats = "aggregate"
    config.client = ConfigDict({"epochs": 5, "batch_size": 10, "learning_rate": 0.1, "momentum": 0.9})
    config.client.learning_rate_decay = placeholder(float)
    config.client.decay_every = 1
    config.client.clip_norm = placeholder(float)
    config.client.precision = "float32"
    config.aggregator = ConfigDict({"name": "lasa"})
    config.aggregator.assumed_malicious = placeholder(int)
    config.aggregator.update(_method_tables(aggregators.RULES))
    config.attack = ConfigDict({"name": "none"})
    config.attack.update(_method_tables(attacks.ATTACKS))
    config.eval_every = 1
    config.eval_batch_size = 250
    config.block_rounds = 10
    config.checkpoint_every = 10
    config.keep_checkpoints = 2
    config.client_chunk = placeholder(int)
    config.record_filtering = False
    config.deterministic = False
    return config


# The supplement's settings by dataset (sections B and D; FIDELITY.md, section 7). Radii: 1.0 / 1.0 on CIFAR, magnitude 2.0
# elsewhere, direction 1.5 where clients are natural. The table in docs/fidelity.md explains them.
_MNIST = {"model": "cnn", "rounds": 180, "num_clients": 6000, "clients_per_round": 100}
_MNIST |= {"aggregator.lasa.magnitude_radius": 2.0}
_MNIST |= {"partition.min_samples": 1}  # of 10 on average
_CIFAR = {"model": "resnet18", "rounds": 200, "num_clients": 100, "clients_per_round": 25}
_CIFAR |= {"client.epochs": 3, "client.batch_size": 64, "partition.name": "class_balanced", "block_rounds": 1}
_CIFAR |= {"aggregator.geometric_median.refinements": 0}
_NATURAL: dict[str, Any] = {"num_clients": None, "clients_per_round": 100, "partition.name": "natural"}
_NATURAL |= {"client.epochs": 1, "client.decay_every": 10}
_NATURAL |= {"aggregator.lasa.magnitude_radius": 2.0, "aggregator.lasa.direction_radius": 1.5}
_FEMNIST = {**_NATURAL, "model": "cnn", "rounds": 300, "client.batch_size": 64, "partition.min_samples": 3}
_SHAKESPEARE = {**_NATURAL, "model": "lstm", "rounds": 1000, "client.batch_size": 4, "partition.min_samples": 1}
_SHAKESPEARE |= {"client.learning_rate": 1.0, "client.momentum": 0.5, "eval_every": 5}
_DIGITS = {"client.batch_size": 32, "aggregator.lasa.magnitude_radius": 2.0}  # not in the paper: five full-batch steps
_PAPER_SETTINGS: dict[str, dict[str, Any]] = {
    "digits": _DIGITS,
    "mnist": _MNIST,
    "fashion_mnist": _MNIST,
    "femnist": _FEMNIST,
    "shakespeare": _SHAKESPEARE,
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
}


def paper(dataset: str) -> ConfigDict:
    """The defaults with the paper's settings for one of its datasets, or ours for the digits.

    Raises:
      InputError: for another dataset.
    """
    check_choice("dataset", dataset, tuple(_PAPER_SETTINGS))
    config = default()
    config.dataset = dataset
    config.update_from_flattened_dict(_PAPER_SETTINGS[dataset])
    return config


# What may follow the colon of `--config=FILE:NAME=VALUE`: the partition and the setting of it that NAME stands for.
_PARTITION_ARGUMENTS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "alpha": ("dirichlet", "alpha", float),
    "shards": ("shards", "classes_per_client", int),
    "gamma": ("gamma_similarity", "gamma", float),
    "quantity": ("quantity_skew", "alpha", float),
}


def set_partition(config: ConfigDict, argument: str | None) -> None:
    """Chooses the partition that a config's argument names: `alpha=0.1`, `shards=2`, `gamma=0.5`, `quantity=1.0`.

    Raises:
      InputError: for another name, a value that is no number, or more than one of them.
    """
    types = {name: convert for name, (_, _, convert) in _PARTITION_ARGUMENTS.items()}
    chosen = parse_argument(argument, types)
    if len(chosen) > 1:
        raise InputError(f"--config=FILE:{argument}: allowed is one of {', '.join(types)}")
    for name, value in chosen.items():
        config.partition.name, setting, _ = _PARTITION_ARGUMENTS[name]
        config.partition[setting] = value


def check_fields(fields: Iterable[str]) -> None:
    """Raises InputError for the first field that no config has; they are given as `"client.epochs"`."""
    known = dict(flatten(default().to_dict()))
    for field in fields:
        if field in known:
            continue
        close = difflib.get_close_matches(field, list(known), 1)
        hint = f" (did you mean config.{close[0]}?)" if close else ""
        raise InputError(f"config.{field} is not a setting{hint}")


def _method_tables(functions: Mapping[str, Callable[..., Any]]) -> dict[str, ConfigDict]:
    """For every rule or attack a table of its parameters with the defaults of its signature."""
    tables = {}
    for name, function in functions.items():
        table = ConfigDict()
        hints = typing.get_type_hints(function)
        for parameter in registry.parameters(function).values():
            if parameter.name in ("variant", "knowledge"):
                table[parameter.name] = BY_FIDELITY
            elif parameter.default is None:
                kinds = (hints[parameter.name], *typing.get_args(hints[parameter.name]))
                if kind := next((kind for kind in (int, float, str) if kind in kinds), None):
                    table[parameter.name] = placeholder(kind)  # an array is no setting: it is for callers from Python
            else:
                table[parameter.name] = parameter.default
        tables[name] = table
    return tables


def parse_argument(argument: str | None, allowed: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Reads the part of `--config=FILE:ARGUMENT` after the colon: `name=value` pairs separated by commas.

    Args:
      argument: for instance `"alpha=0.5"`; None or empty gives no pairs.
      allowed: for each name the type that its value is converted to.

    Raises:
      InputError: for another name or a value that does not convert.
    """
    values = {}
    for pair in filter(None, (argument or "").split(",")):
        name, _, value = pair.partition("=")
        if name not in allowed:
            raise InputError(f"--config=FILE:{argument}: {name!r} is not known, allowed are {', '.join(allowed)}")
        try:
            values[name] = allowed[name](value)
        except ValueError:
            raise InputError(f"--config=FILE:{argument}: {name} = {value!r} is not a number") from None
    return values


def resolve(config: ConfigDict, overrides: Iterable[str] = ()) -> ConfigDict:
    """Checks a config and decides everything that it leaves open.

    Args:
      config: what a config file returned, with overrides applied.
      overrides: the fields that the user set by hand, as `"aggregator.lasa.sparsity_level"`; a parameter of a method
        that is not selected is refused.

    Returns:
      The config of a run: `fidelity` has decided what it decides, and the tables of `aggregator` and `attack` hold the
      parameters of the selected method only, under `parameters`.

    Raises:
      InputError: one line that names the setting, its value and what is allowed.
    """
    config = ConfigDict(_plain(config.to_dict()))
    _check_fields(config)
    for kind in ("aggregator", "attack"):
        for override in overrides:
            parts = override.split(".")
            if parts[0] == kind and len(parts) > 2 and parts[1] != config[kind].name:
                raise InputError(
                    f"config.{override}: {kind} {parts[1]!r} is not selected (config.{kind}.name is "
                    f"{config[kind].name!r})"
                )
    _check_numbers(config)
    own = partition.SETTINGS[config.partition.name]
    for override in overrides:
        table, _, setting = override.partition(".")
        if table == "partition" and setting != "name" and setting not in own:
            those = ", ".join(name for name, settings in partition.SETTINGS.items() if setting in settings)
            raise InputError(
                f"config.{override}: is of the partition {those} (config.partition.name is {config.partition.name!r})"
            )
    config.partition = ConfigDict({name: config.partition[name] for name in ("name", *own)})
    by_dataset = _DECAY[config.fidelity]
    if config.client.learning_rate_decay is None:
        config.client.learning_rate_decay = by_dataset.get(config.dataset, by_dataset["otherwise"])
    if config.client.clip_norm is None and config.aggregator.name in _CLIPPED_RULES:
        config.client.clip_norm = _CLIP_NORM[config.fidelity].get(config.dataset)
    elif config.client.clip_norm is not None and math.isinf(config.client.clip_norm):
        config.client.clip_norm = None  # "inf" asks for no clip where fidelity would set one
    for kind, create in (("aggregator", aggregators.create), ("attack", attacks.create)):
        config[kind] = _resolve_method(config, kind, create)
    return config


def _plain(value: Any) -> Any:
    """NumPy's numbers, as in a sweep made with NumPy, as Python's: JSON, and what tells numbers from words, know those."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _resolve_method(config: ConfigDict, kind: str, create: Callable[..., Any]) -> ConfigDict:
    """The table of a rule or an attack with its selected parameters, each tried by building the method once."""
    table = config[kind]
    parameters = {name: value for name, value in table[table.name].to_dict().items() if value is not None}
    if parameters.get("variant") == BY_FIDELITY:
        parameters["variant"] = config.fidelity
    if parameters.get("knowledge") == BY_FIDELITY:
        by_attack = _KNOWLEDGE[config.fidelity]
        parameters["knowledge"] = by_attack.get(table.name, by_attack["otherwise"])
    try:
        create(table.name, **parameters)
    except InputError as error:
        raise InputError(f"config.{kind}.{table.name}.{error}") from None
    chosen = ConfigDict({"name": table.name, "parameters": parameters})
    if kind == "aggregator":
        chosen.assumed_malicious = table.assumed_malicious
    return chosen


def _check_fields(config: ConfigDict) -> None:
    """Every field that the defaults have, no other, with the right type, and names that are registered."""
    reference = default()
    known = dict(flatten(reference.to_dict()))
    given = dict(flatten(config.to_dict()))
    check_fields(given)
    for field, value in known.items():
        if field not in given:
            raise InputError(f"config.{field} is missing: start the config from lasa_jax.config.default()")
        wanted = type(value) if value is not None else None
        if field == "num_clients" and given[field] is None:
            continue  # as many as the data has
        if wanted is not None and not isinstance(given[field], (int, float) if wanted is float else wanted):
            raise InputError(f"config.{field} = {given[field]!r}: allowed is a value of type {wanted.__name__}")
    check_choice("config.dataset", config.dataset, tuple(data.names()))
    check_choice("config.model", config.model, tuple(models.names()))
    check_choice("config.partition.name", config.partition.name, tuple(partition.SETTINGS))
    check_choice("config.client.precision", config.client.precision, ("float32", "bfloat16", "float64"))
    check_choice("config.batch_stats", config.batch_stats, ("aggregate", "separate"))
    check_choice("config.fidelity", config.fidelity, ("paper", "official"))
    for kind, functions in (("aggregator", aggregators.RULES), ("attack", attacks.ATTACKS)):
        try:
            registry.find(kind, functions, config[kind].name)
        except InputError as error:
            raise InputError(f"config.{kind}.name: {error}") from None
    if config.source is not None and not data.made_from_source(config.dataset):
        raise InputError(f"config.source = {config.source!r}: dataset {config.dataset!r} is not made from a raw source")


def _check_numbers(config: ConfigDict) -> None:
    """Ranges, and the few relations between settings."""
    check_number("config.seed", config.seed, low=0, high=2**31 - 1)
    check_number("config.attack_ratio", config.attack_ratio, low=0, high=1)
    for field in ("rounds", "eval_every", "eval_batch_size", "block_rounds", "checkpoint_every"):
        check_number(f"config.{field}", config[field], low=1, high=_LARGEST)
    check_number("config.keep_checkpoints", config.keep_checkpoints, low=1)
    check_number("config.clients_per_round", config.clients_per_round, low=1)
    if config.num_clients is None and config.partition.name != "natural":
        raise InputError(
            f"config.num_clients: must be set for the partition {config.partition.name!r}; only 'natural' has its own number"
        )
    if config.num_clients is not None:
        check_number("config.num_clients", config.num_clients, low=1, high=_LARGEST)
        check_clients_per_round(config.clients_per_round, config.num_clients)
    if config.client_chunk is not None:
        check_number("config.client_chunk", config.client_chunk, low=1, high=_LARGEST)
    check_number("config.partition.alpha", config.partition.alpha, above=0, high=1e6)
    check_number("config.partition.gamma", config.partition.gamma, low=0, high=1)
    check_number("config.partition.classes_per_client", config.partition.classes_per_client, low=1, high=_LARGEST)
    check_number("config.partition.min_samples", config.partition.min_samples, low=1, high=_LARGEST)
    client = config.client
    for field in ("epochs", "batch_size", "decay_every"):
        check_number(f"config.client.{field}", client[field], low=1, high=_LARGEST)
    check_number("config.client.learning_rate", client.learning_rate, above=0, high=1e6)
    check_number("config.client.momentum", client.momentum, low=0, below=1)
    if client.learning_rate_decay is not None:
        check_number("config.client.learning_rate_decay", client.learning_rate_decay, above=0, high=1)
    if client.clip_norm is not None:
        check_number("config.client.clip_norm", client.clip_norm, above=0)
    if config.aggregator.assumed_malicious is not None:
        check_number(
            "config.aggregator.assumed_malicious",
            config.aggregator.assumed_malicious,
            low=0,
            high=config.clients_per_round,
        )


def check_clients_per_round(clients_per_round: int, num_clients: int) -> None:
    """Raises InputError if more clients are drawn a round than there are; with natural clients the data decides."""
    if clients_per_round > num_clients:
        raise InputError(
            f"config.clients_per_round = {clients_per_round}: allowed are 1 to config.num_clients = {num_clients}"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`[("client.epochs", 5), ...]` of a nested dict, in its order."""
    items = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            items += flatten(value, f"{prefix}{name}.")
        else:
            items.append((prefix + name, value))
    return items


def as_json(config: ConfigDict) -> dict[str, Any]:
    """A resolved config as plain values that JSON can hold; infinities become strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return plain(config.to_dict())


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


def to_json(config: ConfigDict) -> str:
    """A resolved config as JSON text."""
    return json.dumps(as_json(config), indent=2, sort_keys=True) + "\n"


def run_name(config: ConfigDict) -> str:
    """`digits_lasa_byzmean_1a2b3c4d5e6f`: a name that the same settings always have, and no others."""
    return f"{config.dataset}_{config.aggregator.name}_{config.attack.name}_{identity(config)}"


def identity(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that two resolved configs share only if they describe the same run.

    The id of the data's source, which a run adds to its config when it has read the data, is no part of it.
    """
    kept = {name: value for name, value in as_json(config).items() if name not in (*UNIDENTIFYING, "source_id")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def first_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """The first field in which two resolved configs, read from JSON, differ, with both values; None if they agree."""
    left, right = dict(flatten(old)), dict(flatten(new))
    for field in sorted(left.keys() | right.keys()):
        if field not in UNIDENTIFYING and left.get(field) != right.get(field):
            return f"config.{field} is {left.get(field)!r} there and {right.get(field)!r} here"
    return None


def _is_number(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in STATIC_PARAMETERS


def numbers(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a method that are data of the compiled program."""
    return {name: value for name, value in parameters.items() if _is_number(name, value)}


def words(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a method that are compiled in."""
    return {name: value for name, value in parameters.items() if not _is_number(name, value)}


def program_key(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that two resolved configs share if they differ in nothing but the numbers of a `Point`.

    Runs of the same key go through the same executable, where their arrays have the same shapes.
    """
    kept = {name: value for name, value in as_json(config).items() if name not in UNIDENTIFYING}
    for name in ("seed", "attack_ratio", "source_id"):
        kept.pop(name, None)
    client = kept["client"]
    for name in ("learning_rate", "momentum", "learning_rate_decay"):
        del client[name]
    client["clip_norm"] = client["clip_norm"] is not None
    kept["aggregator"].pop("assumed_malicious")
    for kind in ("aggregator", "attack"):
        kept[kind]["parameters"] = words(config[kind].parameters)
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
