"""From what a user set to the config of a run: every setting checked, every open one decided."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from lasa_jax import data, methods
from lasa_jax.config import by_dataset
from lasa_jax.config.identity import as_json, first_difference, without_source
from lasa_jax.config.settings import (
    BASES,
    BY_FIDELITY,
    GROUPS,
    SELECTING,
    Chosen,
    Setting,
    all_settings,
    base_of,
    check_base,
    check_fields,
    check_values,
    chosen,
    default,
    flatten,
    plain,
    put,
)
from lasa_jax.data import partition
from lasa_jax.errors import InputError, check_number


def updated(base: ConfigDict, settings: Mapping[str, Any]) -> ConfigDict:
    """A copy of a config with some settings changed, given by their names: `{"client.epochs": 1}`.

    Where the settings choose a user's function, its parameters are settings too, with the defaults of its signature.

    Args:
      base: the config.
      settings: values by name.

    Raises:
      InputError: for a name that is no setting, or a value of another type.
    """
    config = ConfigDict(base.to_dict())
    for field in (*SELECTING, *BASES):
        if field in settings:
            _put(config, field, settings[field], all_settings()[field])
    selected = chosen(config)
    check_base(config)
    known = all_settings(selected)
    check_fields(settings, selected)
    _add_tables(config, selected, afresh=True)
    for field, value in settings.items():
        _put(config, field, value, known[field])
    return config


def _put(config: ConfigDict, field: str, value: Any, setting: Setting) -> None:
    try:
        put(config, field, value, setting)
    except (TypeError, ValueError, OverflowError):
        kind = setting.kind.__name__
        raise InputError(f"config.{field} = {repr(value)[:100]}: allowed is a value of type {kind}") from None


def _add_tables(config: ConfigDict, selected: Chosen, *, afresh: bool) -> None:
    """Gives a config the settings of the user's functions that it selects.

    `afresh` puts the defaults of a function that is called like a built-in in place of the settings of that.
    """
    for kind, names in selected.items():
        for path in filter(methods.is_path, names):
            table, called = config[GROUPS[kind]], methods.settings_name(path)
            prefix = f"{GROUPS[kind]}.{called}."
            own = {
                field.removeprefix(prefix): setting
                for field, setting in all_settings({kind: [path]}).items()
                if field.startswith(prefix)
            }
            there = table[called].to_dict() if called in table else {}
            if not set(there) <= set(own) or (afresh and called in methods.TABLES[kind]):
                there = {}
            table[called] = ConfigDict()
            for parameter, setting in own.items():
                put(table[called], parameter, there.get(parameter, setting.default), setting)


def resolve(config: ConfigDict, overrides: Iterable[str] = (), *, dataset: str | None = None) -> ConfigDict:
    """Checks a config and decides everything that it leaves open.

    Args:
      config: what a config file returned, with overrides applied.
      overrides: the fields that the user set by hand, as `"aggregator.lasa.sparsity_level"`; a parameter of a method
        that is not selected is refused.
      dataset: the name of a dataset that is given as arrays, in place of the config's.

    Returns:
      The config of a run: `fidelity` has decided what it decides. The tables of `preaggregators`, `aggregator` and `attack`
      hold the parameters of what is selected only, under `parameters`. `attack.base` holds those of the attack that the
      selected one builds on. `sources` has the SHA-256 of the file of each
      function of a user's, where there is one.

    Raises:
      InputError: one line that names the setting, its value and what is allowed.
    """
    config = ConfigDict(plain(config.to_dict()))
    selected = chosen(config)
    check_base(config)
    _add_tables(config, selected, afresh=False)
    check_values(config)
    config.dataset = config.dataset if dataset is None else methods.label(dataset)
    overrides = list(overrides)
    _check_selected(config, overrides, selected)
    _check_relations(config)
    own = partition.SETTINGS[config.partition.name]
    config.partition = ConfigDict({name: config.partition[name] for name in ("name", *own)})
    if not data.has_padding(config.dataset):
        del config.padding  # so that it identifies no run without any
    elif config.padding == BY_FIDELITY:
        config.padding = by_dataset.padding(config.fidelity)
    client = config.client
    if client.learning_rate_decay is None:
        client.learning_rate_decay = by_dataset.learning_rate_decay(config.fidelity, config.dataset)
    if client.clip_norm is None:
        client.clip_norm = by_dataset.clip_norm(config.fidelity, config.dataset, config.aggregator.name)
    elif math.isinf(client.clip_norm):
        client.clip_norm = None  # "inf" asks for no clip where fidelity would set one
    steps = {
        methods.settings_name(name): _selected_parameters(config, "preaggregator", name)
        for name in selected["preaggregator"]
    }
    config.preaggregators = ConfigDict({"names": ",".join(selected["preaggregator"]), "parameters": steps})
    for kind in ("aggregator", "attack"):
        made: dict[str, Any] = {}
        table: dict[str, Any] = {"name": config[kind].name}
        if kind == "attack" and (base := base_of(config)) is not None:
            of_base = _selected_parameters(config, kind, base)
            made = {"base": methods.create(kind, base, of_base)}
            table["base"] = {"parameters": of_base}
        table["parameters"] = _selected_parameters(config, kind, config[kind].name, made)
        if kind == "aggregator":
            table["assumed_malicious"] = config.aggregator.assumed_malicious
        config[kind] = ConfigDict(table)
    if paths := user_functions(config):
        config.sources = ConfigDict({path.replace(".", "/"): methods.source_sha256(path) for path in paths})
    return config


def check_sources(config: ConfigDict) -> None:
    """Raises InputError if a user's function is not written in the file that a resolved config was made with."""
    for path in user_functions(config):
        if methods.source_sha256(path) != config.sources[path.replace(".", "/")]:
            file = methods.source_file(path)
            raise InputError(f"{path}: {file} is another version than the one that the run was declared with")


def user_functions(config: ConfigDict) -> list[str]:
    """The paths of a user's functions that a config names."""
    names = [name for names in chosen(config).values() for name in names]
    return [name for name in (*names, config.dataset, config.model) if methods.is_path(name)]


def _check_selected(config: ConfigDict, overrides: Iterable[str], selected: Chosen) -> None:
    """Raises InputError for a setting that was set by hand and belongs to what is not selected."""
    own = partition.SETTINGS[config.partition.name]
    kinds = {group: kind for kind, group in GROUPS.items()}
    for override in overrides:
        table, *parts = override.split(".")
        if table in kinds and len(parts) > 1:
            names = selected[kinds[table]]
            if parts[0] not in map(methods.settings_name, names):
                field = f"config.{table}.{'names' if table == 'preaggregators' else 'name'}"
                value = ",".join(names) if table == "preaggregators" else names[0]
                raise InputError(
                    f"config.{override}: {kinds[table]} {parts[0]!r} is not selected ({field} is {value!r})"
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
    if config.padding != BY_FIDELITY and not data.has_padding(config.dataset):
        raise InputError(f"config.padding = {config.padding!r}: dataset {config.dataset!r} has no padding")
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


def _selected_parameters(
    config: ConfigDict, kind: str, name: str, made: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The parameters of a method that is selected, tried by building the method once.

    Args:
      config: not yet resolved.
      kind, name: of the method.
      made: what stands for some of the parameters while it is built.
    """
    group, called = GROUPS[kind], methods.settings_name(name)
    parameters = {key: value for key, value in config[group][called].to_dict().items() if value is not None}
    if parameters.get("variant") == BY_FIDELITY:
        parameters["variant"] = config.fidelity
    if parameters.get("knowledge") == BY_FIDELITY:
        parameters["knowledge"] = by_dataset.knowledge(config.fidelity, name)
    try:
        with methods.naming_the_line([name] if methods.is_path(name) else []):
            methods.create(kind, name, {**parameters, **(made or {})})
    except InputError as error:
        message = str(error)
        if not methods.is_path(name) or message.partition(" ")[0] in parameters:
            message = f"config.{group}.{called}.{message}"
        elif name not in message:
            message = f"{name}: {message}"
        raise InputError(message) from None
    return parameters


def from_json(stored: Mapping[str, Any]) -> ConfigDict:
    """The resolved config of which `as_json` made these values, checked as a new one.

    Raises:
      InputError: if it is none of this version: a field is missing, unknown or out of range.
    """
    flat: dict[str, Any] = {}
    for field, value in flatten(
        {name: value for name, value in stored.items() if name not in ("source_id", "sources")}
    ):
        group, _, name = field.partition(".parameters.")
        if name:
            selected_by = "attack.parameters.base" if group == "attack.base" else f"{group}.name"
            called = methods.settings_name(str(dict(flatten(stored)).get(selected_by)))
            group = group.removesuffix(".base")
            field = f"{group}.{name}" if group == "preaggregators" else f"{group}.{called}.{name}"
        if not isinstance(value, Mapping):  # the parameters of a method that has none
            flat[field] = float(value) if value in ("inf", "-inf") else value
    if flat.get("client.clip_norm", 0.0) is None:
        flat["client.clip_norm"] = math.inf  # None would leave it to the fidelity
    try:
        resolved = resolve(updated(default(), flat))
    except InputError as error:
        raise InputError(f"config.json: {error}") from None
    difference = first_difference(without_source(stored), as_json(resolved))
    if difference is not None:
        raise InputError(f"config.json: is of another version of lasa_jax, {difference}")
    return resolved
