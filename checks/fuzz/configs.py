"""Command lines and Python values."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from checks.fuzz.failures import Failures, outcome
from checks.fuzz.mutations import JUNK, WORDS
from lasa_jax import aggregators, build, commandline, data, grid, main
from lasa_jax import config as configs
from lasa_jax.errors import InputError

ROOT = Path(__file__).parents[2]


def command_line(chance: random.Random) -> list[str]:
    """Arguments of `lasa_jax.main`, some of them wrong."""
    fields = list(dict(configs.flatten(configs.default().to_dict())))
    file = chance.choice(sorted(str(path) for path in (ROOT / "configs").glob("*.py")))
    if chance.random() < 0.3:
        file += ":" + ",".join(
            f"{chance.choice(['alpha', 'shards', 'gamma', 'quantity', 'x'])}={chance.choice(WORDS)}"
            for _ in range(chance.randint(1, 2))
        )
    arguments = [f"--config={file}"]
    for _ in range(chance.randint(1, 3)):
        field, value = chance.choice(fields), chance.choice(WORDS)
        if chance.random() < 0.15:
            field = chance.choice([field + "x", field.upper(), field.partition(".")[0], "." + field, field + "."])
        if chance.random() < 0.2:
            value = "".join(chance.choice("0123456789.-+e_ naif[](){}=,'\"") for _ in range(chance.randint(0, 12)))
        arguments.append(chance.choice([f"--config.{field}={value}"] * 8 + [f"--config.{field}", f"--{field}={value}"]))
    return arguments


def read_command_line(arguments: list[str]) -> Any:
    """The resolved config, as a run reads it."""
    given = main.parser().read(arguments)
    return commandline.read_config(given.config, given.settings)


def python_config(chance: random.Random) -> Any:
    """A config with values of any type set in Python, as a sweep's file would."""
    fields = list(dict(configs.flatten(configs.default().to_dict())))
    values = [*JUNK, *aggregators.names(), *data.names(), (1, 2), b"x", np.float32(0.5), np.int64(3), np.nan, object]
    settings = {chance.choice(fields): chance.choice(values) for _ in range(chance.randint(1, 3))}
    (point,) = grid.points(grid.Grid(configs.paper("digits"), [], [settings]))
    return point.config


def before_compiling(config: Any) -> None:
    """What a run does with its config before anything is compiled."""
    if config.dataset == "digits" and (config.num_clients or 0) <= 10_000:
        build.prepare(config)
    configs.to_json(config), configs.run_name(config), configs.program_key(config)


def fuzz(count: int, seed: int = 0) -> tuple[int, Failures]:
    """Command lines and Python values by turns."""
    failures = Failures()
    for index in range(count):
        chance = random.Random(seed * 10**9 + index)
        arguments = command_line(chance)
        config, wrong = (
            outcome(lambda a=arguments: read_command_line(a))
            if index % 2
            else outcome(lambda c=chance: python_config(c))
        )
        if wrong is None and not isinstance(config, InputError):
            _, wrong = outcome(lambda c=config: before_compiling(c))
        if wrong is not None:
            failures.append(f"config {index}, {arguments if index % 2 else 'from Python'}: {wrong}")
    return count, failures
