"""The table of settings: default, type, range and role of each in one row. The rest about settings derives from it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from lasa_jax import attacks, data, methods, models, ops
from lasa_jax.data import partition
from lasa_jax.errors import InputError, check_choice, check_number, nearest

BY_FIDELITY = "by_fidelity"  # a word-valued setting that `config.fidelity` decides; numbers say it by being None

# Roles. All settings but those of PLACE identify a run.
PLACE = "place"  # where things are and how they are kept: a run may go on with another value
FORM = "form"  # compiled in, and changes the rounding of a result at most: runs that differ in it compare
PROGRAM = "program"  # compiled in
NUMBER = "number"  # data of the compiled program
AXIS = "axis"  # data of the compiled program, and an axis of tables and figures

_LARGEST = 1_000_000  # of the settings that are counts: products of two still fit a 64-bit integer


class Setting(NamedTuple):
    """One setting.

    Attributes:
      means: what it is, in a few words.
      default: None where fidelity, the data or the platform decides.
      kind: type of its values; `float` takes whole numbers too.
      role: one of the words above.
      allowed: bounds as in `errors.check_number`, or the words that are allowed.
      costs: whether time or memory of a run depends on it.
      optional: whether None is a value.
    """

    means: str
    default: Any
    kind: type
    role: str
    allowed: Mapping[str, float] | tuple[str, ...] = {}
    costs: bool = False
    optional: bool = False


_COUNT = {"low": 1, "high": _LARGEST}
_TAKE_PATHS = ("dataset", "model")
GROUPS = {"preaggregator": "preaggregators", "aggregator": "aggregator", "attack": "attack"}  # of settings, by kind

SETTINGS: dict[str, Setting] = {
    "seed": Setting(
        "decides the partition, who is malicious, and every random draw", 1, int, AXIS, {"low": 0, "high": 2**31 - 1}
    ),
    "dataset": Setting(
        "a built-in name, package.module:function, or an .npz file",
        "digits",
        str,
        PROGRAM,
        tuple(data.names()),
        costs=True,
    ),
    "data_dir": Setting("where TFDS keeps its datasets", None, str, PLACE, costs=True, optional=True),
    "source": Setting("raw form of femnist or shakespeare, needed once", None, str, PLACE, costs=True, optional=True),
    "partition.name": Setting(
        "how examples are divided over clients", "iid", str, PROGRAM, tuple(partition.SETTINGS), costs=True
    ),
    "partition.alpha": Setting(
        "of dirichlet and quantity_skew", 0.5, float, PROGRAM, {"above": 0, "high": 1e6}, costs=True
    ),
    "partition.min_samples": Setting(
        "of dirichlet, quantity_skew and natural: fewest examples of a client", 10, int, PROGRAM, _COUNT, costs=True
    ),
    "partition.classes_per_client": Setting("of shards", 2, int, PROGRAM, _COUNT, costs=True),
    "partition.gamma": Setting("of gamma_similarity", 0.5, float, PROGRAM, {"low": 0, "high": 1}, costs=True),
    "model": Setting(
        "a built-in name or package.module:function", "small_cnn", str, PROGRAM, tuple(models.names()), costs=True
    ),
    "rounds": Setting("how many", 60, int, PROGRAM, _COUNT, costs=True),
    "num_clients": Setting(
        "population; None: all natural clients", 60, int, PROGRAM, _COUNT, costs=True, optional=True
    ),
    "clients_per_round": Setting("drawn in each round", 30, int, PROGRAM, {"low": 1}, costs=True),
    "attack_ratio": Setting("share of the population that is malicious", 0.25, float, AXIS, {"low": 0, "high": 1}),
    "participation": Setting(
        "drawn: the number of malicious clients of a round is left to the draw; fixed: attack_ratio * clients_per_round",
        "drawn",
        str,
        PROGRAM,
        ("drawn", "fixed"),
    ),
    "fidelity": Setting(
        "the paper, or its authors' code where they differ", "paper", str, PROGRAM, ("paper", "official")
    ),
    "padding": Setting(
        "of shakespeare: whether labels that are padding count in losses and accuracies",
        BY_FIDELITY,
        str,
        PROGRAM,
        (BY_FIDELITY, "counted", "ignored"),
    ),
    "batch_stats": Setting(
        "separate keeps running statistics from the rule", "aggregate", str, PROGRAM, ("aggregate", "separate")
    ),
    "client.epochs": Setting("passes over its examples in each round", 5, int, PROGRAM, _COUNT, costs=True),
    "client.batch_size": Setting("examples of a local step", 10, int, PROGRAM, _COUNT, costs=True),
    "client.learning_rate": Setting("of local SGD", 0.1, float, NUMBER, {"above": 0, "high": 1e6}),
    "client.momentum": Setting("of local SGD", 0.9, float, NUMBER, {"low": 0, "below": 1}),
    "client.learning_rate_decay": Setting(
        "factor of the learning rate; None: by fidelity", None, float, NUMBER, {"above": 0, "high": 1}, optional=True
    ),
    "client.decay_every": Setting("rounds between decays", 1, int, PROGRAM, _COUNT),
    "client.clip_norm": Setting(
        "largest norm of an honest update; inf: none; None: by fidelity",
        None,
        float,
        NUMBER,
        {"above": 0},
        optional=True,
    ),
    "client.precision": Setting(
        "products of training and evaluation; on a GPU float32 is up to 8 times slower than tf32, bfloat16 twice as fast",
        "tf32",
        str,
        PROGRAM,
        ("float32", "tf32", "bfloat16", "float64"),
        costs=True,
    ),
    "client.convolution": Setting(
        "form of convolutions of clients together, on an accelerator", "auto", str, FORM, ops.BATCHED_FORMS, costs=True
    ),
    "preaggregators.names": Setting("steps in front of the rule, in order, separated by commas", "", str, PROGRAM),
    "aggregator.name": Setting("the server's rule", "lasa", str, PROGRAM),
    "aggregator.assumed_malicious": Setting(
        "the server's f; None: attack_ratio * clients_per_round", None, int, NUMBER, {"low": 0}, optional=True
    ),
    "root_examples": Setting(
        "training examples that the server has too, for rules that train on them", 100, int, PROGRAM, _COUNT, costs=True
    ),
    "attack.name": Setting("what malicious clients do", "none", str, PROGRAM),
    "eval_every": Setting("rounds between evaluations", 1, int, PROGRAM, _COUNT, costs=True),
    "eval_batch_size": Setting(
        "test examples at a time; None: 250 on a CPU, else what fits", None, int, FORM, _COUNT, optional=True
    ),
    "block_rounds": Setting("rounds in one dispatch", 10, int, FORM, _COUNT),
    "checkpoint_every": Setting("rounds between checkpoints", 10, int, PLACE, _COUNT),
    "keep_checkpoints": Setting("how many are kept", 2, int, PLACE, {"low": 1}),
    "client_chunk": Setting(
        "clients trained together; None: one on a CPU, else as many as a quarter of the device's memory holds",
        None,
        int,
        FORM,
        _COUNT,
        costs=True,
        optional=True,
    ),
    "record_filtering": Setting("writes what the rule made of every client", False, bool, FORM),
    "deterministic": Setting(
        "on a GPU the same bits in every process, slower: no kernel that adds in any order or is chosen by timing",
        False,
        bool,
        FORM,
    ),
}


def with_role(*roles: str) -> tuple[str, ...]:
    """The settings that have one of these roles."""
    return tuple(name for name, setting in SETTINGS.items() if setting.role in roles)


UNIDENTIFYING = with_role(PLACE)
COSTLY = tuple(name for name, setting in SETTINGS.items() if setting.costs)
NOT_COMPARED = with_role(PLACE, FORM, AXIS)  # runs that differ in nothing else stand in one table


Chosen = Mapping[str, Sequence[str]]  # the names of methods that a config selects, by kind


def plain(value: Any) -> Any:
    """NumPy's numbers, also those in tables, as Python's: JSON, and what tells numbers from words, know those."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


class _Config(ConfigDict):
    """A table of settings that takes NumPy's numbers too: a ConfigDict refuses `numpy.int64` for an int."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, _Config(value) if isinstance(value, dict | ConfigDict) else plain(value))


def default() -> ConfigDict:
    """The settings that every config starts from. docs/configs.md describes each."""
    config = _Config()
    for field, setting in all_settings().items():
        put(config, field, setting.default, setting)
    for kind, functions in methods.TABLES.items():
        for name in functions:  # of methods without a parameter too
            if name not in config[GROUPS[kind]]:
                config[GROUPS[kind]][name] = _Config()
    return config


def put(config: ConfigDict, field: str, value: Any, setting: Setting) -> None:
    """Sets a field, `"client.epochs"`; tables that are not there are made."""
    *tables, last = field.split(".")
    table = config
    for part in tables:
        if part not in table:
            table[part] = _Config()
        table = table[part]
    if last not in table and setting.optional:
        table[last] = placeholder(setting.kind)
    if last not in table or value is not None or setting.optional:
        table[last] = plain(value)


SELECTING = ("preaggregators.names", "aggregator.name", "attack.name")
BASES = tuple(f"attack.{name}.base" for name in attacks.WITH_BASE)  # select another attack, or none


def steps(config: ConfigDict) -> list[str]:
    """The names of the pre-aggregators that a config selects, in their order."""
    return [name.strip() for name in config.preaggregators.names.split(",") if name.strip()]


def chosen(config: ConfigDict) -> dict[str, list[str]]:
    """The names of the methods that a config selects, by kind.

    Raises:
      InputError: if one of them is missing, or no word.
    """
    fields = dict(flatten(config.to_dict()))
    for field in SELECTING:
        if not isinstance(fields.get(field), str):
            value = fields.get(field)
            raise InputError(
                f"config.{field} = {value!r}: allowed is a word; start the config from lasa_jax.config.default()"
            )
    base = base_of(config)
    own = [config.attack.name, *([] if base is None else [base])]
    return {"preaggregator": steps(config), "aggregator": [config.aggregator.name], "attack": own}


def base_of(config: ConfigDict) -> str | None:
    """The attack that the selected one builds on, by its parameter `base`; None if it builds on none."""
    table = config.attack
    if table.name not in attacks.WITH_BASE:
        return None
    return table.get("parameters", table.get(table.name, {})).get("base")


def parameters(config: ConfigDict, kind: str, name: str) -> dict[str, Any]:
    """The parameters of a method that a resolved config selects."""
    group = config[GROUPS[kind]]
    if kind == "attack" and name != group.name:
        group = group.base
    return (group.parameters[methods.settings_name(name)] if kind == "preaggregator" else group.parameters).to_dict()


def all_settings(selected: Chosen | None = None) -> dict[str, Setting]:
    """The table, and the parameters of rules, attacks and pre-aggregators with the defaults of their signatures.

    Args:
      selected: from `chosen`. A user's function that is called like a built-in replaces the settings of that.
    """
    found = dict(SETTINGS)
    for kind, functions in methods.TABLES.items():
        tables = dict(functions)
        for name in (selected or {}).get(kind, ()):
            if methods.is_path(name):
                tables[methods.settings_name(name)] = methods.find(kind, name)
        for name, function in tables.items():
            for parameter, (given, type_, traced) in methods.parameters(function).items():
                if type_ is not None:
                    by_fidelity = parameter in ("variant", "knowledge") and type_ is str
                    default = BY_FIDELITY if by_fidelity and function in functions.values() else given
                    default = float(default) if type_ is float and default is not None else default
                    field = f"{GROUPS[kind]}.{name}.{parameter}"
                    role = NUMBER if traced else PROGRAM
                    found[field] = Setting(f"of {name}", default, type_, role, optional=default is None)
    return found


def check_fields(fields: Iterable[str], selected: Chosen | None = None) -> None:
    """Raises InputError for the first field that no config has; they are given as `"client.epochs"`."""
    known = all_settings(selected)
    for field in fields:
        if field not in known:
            raise InputError(f"config.{field} is not a setting{_hint(field, known, selected)}")


def _hint(field: str, known: Mapping[str, Setting], selected: Chosen | None) -> str:
    """What may be meant by a field that is not known."""
    kinds = {group: kind for kind, group in GROUPS.items()}
    group, *parts = field.split(".")
    names = [] if selected is None or group not in kinds else list(map(methods.settings_name, selected[kinds[group]]))
    for name in names:
        if len(parts) == 1 and f"{group}.{name}.{parts[0]}" in known:
            return f" (did you mean config.{group}.{name}.{parts[0]}?)"
    if (
        names
        and len(parts) == 2
        and parts[0] not in names
        and not any(f.startswith(f"{group}.{parts[0]}.") for f in known)
    ):
        return f": no {kinds[group]} {parts[0]!r} is selected, but {', '.join(names)}"
    return nearest(field, known, "config.")


def check_values(config: ConfigDict) -> None:
    """Raises InputError unless every field is there and no other, and each has a value of its type and in its range."""
    selected = chosen(config)
    for kind, names in selected.items():
        for name in names:
            methods.find(kind, name)
    known = all_settings(selected)
    given = {field: value for field, value in flatten(config.to_dict()) if not isinstance(value, dict)}
    check_fields(given, selected)
    for field, setting in known.items():
        if field not in given:
            raise InputError(f"config.{field} is missing: start the config from lasa_jax.config.default()")
        if given[field] is None and setting.optional:
            continue
        _check_type(field, given[field], setting.kind)
        if isinstance(setting.allowed, tuple):
            _check_word(field, given[field], setting.allowed)
        elif setting.allowed:
            check_number(f"config.{field}", given[field], **setting.allowed)  # type: ignore[arg-type]


def check_base(config: ConfigDict) -> None:
    """Raises InputError unless the base of an attack is another attack, or the path of a user's function."""
    base, field = base_of(config), f"attack.{config.attack.name}.base"
    if base is None:
        return
    if not isinstance(base, str):
        raise InputError(f"config.{field} = {base!r}: allowed is a word")
    if methods.is_path(base):
        methods.imported(field, base)
        return
    others = tuple(name for name in attacks.names() if name != config.attack.name)
    check_choice(f"config.{field}", base, others)


def _check_type(field: str, value: Any, wanted: type) -> None:
    if not isinstance(value, (int, float) if wanted is float else wanted):
        raise InputError(f"config.{field} = {value!r}: allowed is a value of type {wanted.__name__}")


def _check_word(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises InputError unless a setting has one of its words, or the path of a user's function where it takes one."""
    if field in _TAKE_PATHS and methods.is_path(value):
        methods.imported(field, value)
        return
    if field == "dataset" and value.endswith(".npz"):
        return
    also = " or a path package.module:function" if field in _TAKE_PATHS else ""
    if value not in allowed:
        words = ", ".join(allowed)
        raise InputError(f"config.{field} = {value!r}: allowed are {words}{also}{nearest(value, allowed)}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`[("client.epochs", 5), ...]` of a nested dict, in its order."""
    items = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            items += flatten(value, f"{prefix}{name}.")
        else:
            items.append((prefix + name, value))
    return items
