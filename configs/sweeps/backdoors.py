"""Every rule under every attack with a trigger, and without attack: accuracy, and how often the trigger gets its label.

    python -m launch.sweep --config=configs/sweeps/backdoors.py:digits --workdir=DIR          # or mnist, femnist, ...
    python -m launch.sweep --config=configs/sweeps/backdoors.py:mnist,clients=20,rounds=20 --workdir=DIR
    python -m lasa_jax.report DIR                          # rules by attacks, and the measures of each rule

A quarter of the clients of every round is malicious. Other settings, what may follow the dataset, and rules that walk over
subsets of the clients: as in `pairs.py`.
"""

from typing import Any

from lasa_jax import attacks, data
from lasa_jax.configs.sweeps.pairs import every_rule
from lasa_jax.errors import InputError
from lasa_jax.grid import Grid

_SQUARES = ("badnets", "neurotoxin", "pgd")
# Triggers for images of 28 and 32 pixels; the defaults suit the 8 of the digits.
_SMALL: dict[str, Any] = {name: {"size": 4, "margin": 1} for name in _SQUARES} | {"dba": {"size": 4}}
_LARGE: dict[str, Any] = {name: {"size": 5, "margin": 1} for name in _SQUARES} | {"dba": {"size": 6, "gap": 3}}
TRIGGERS = {
    **dict.fromkeys(("mnist", "fashion_mnist", "femnist"), _SMALL),
    **dict.fromkeys(("cifar10", "cifar100"), _LARGE),
}


def get_grid(argument: str) -> Grid:
    """The grid for a dataset of images, `digits`, or `digits,seeds=3,rounds=20`."""
    dataset = argument.partition(",")[0]
    if data.is_text(dataset):
        images = ", ".join(name for name in data.names() if not data.is_text(name))
        raise InputError(
            f"--config=FILE:{argument}: triggers are made of pixels, {dataset} is text; allowed are {images}"
        )
    triggers = TRIGGERS.get(dataset, {})
    settings = {
        f"attack.{attack}.{name}": value for attack, trigger in triggers.items() for name, value in trigger.items()
    }
    return every_rule(argument, ["none", *attacks.BACKDOORS], {**settings, "participation": "fixed"})
