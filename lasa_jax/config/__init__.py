"""Configs: the table of settings, the paper's numbers by dataset, and what makes two runs the same.

A config file defines `get_config(argument)` and starts from `default()` or `paper(dataset)`. `resolve` turns what it
returns, with the command line's overrides, into the config of a run: every "by fidelity" is decided, only the selected rule
and attack are left, every value is in range.
"""

from lasa_jax.config.arguments import SweepArgument, flag, parse_argument, read_sweep, set_partition
from lasa_jax.config.by_dataset import paper
from lasa_jax.config.identity import (
    as_flags,
    as_json,
    cost_key,
    first_difference,
    identity,
    program_key,
    run_name,
    to_json,
    without_source,
)
from lasa_jax.config.resolve import check_clients_per_round, check_sources, from_json, resolve, updated, user_functions
from lasa_jax.config.settings import (
    BASES,
    BY_FIDELITY,
    GROUPS,
    NOT_COMPARED,
    SELECTING,
    SETTINGS,
    UNIDENTIFYING,
    Setting,
    all_settings,
    base_of,
    check_fields,
    chosen,
    default,
    flatten,
    parameters,
    steps,
)

__all__ = [
    "BASES",
    "BY_FIDELITY",
    "GROUPS",
    "NOT_COMPARED",
    "SELECTING",
    "SETTINGS",
    "UNIDENTIFYING",
    "Setting",
    "SweepArgument",
    "all_settings",
    "as_flags",
    "as_json",
    "base_of",
    "check_clients_per_round",
    "check_fields",
    "check_sources",
    "chosen",
    "cost_key",
    "default",
    "first_difference",
    "flag",
    "flatten",
    "from_json",
    "identity",
    "paper",
    "parameters",
    "parse_argument",
    "program_key",
    "read_sweep",
    "resolve",
    "run_name",
    "set_partition",
    "steps",
    "to_json",
    "updated",
    "user_functions",
    "without_source",
]
