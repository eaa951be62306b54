"""Every rule against every backdoor, and without attack: how often the trigger works, beside the accuracy.

    python -m launch.sweep --config=configs/sweeps/backdoors.py:digits --workdir=DIR      # or mnist, cifar10, ...

Five runs for each rule, each a program; one seed. A quarter of the clients of every round is malicious.
"""

from typing import Any

from lasa_jax import aggregators, attacks
from lasa_jax.config import paper
from lasa_jax.grid import Grid

# Triggers for images of 28 and 32 pixels; the defaults suit the 8 of the digits.
_SMALL: dict[str, Any] = {name: {"size": 4, "margin": 1} for name in ("badnets", "neurotoxin", "pgd")} | {
    "dba": {"size": 4}
}
_LARGE: dict[str, Any] = {name: {"size": 5, "margin": 1} for name in ("badnets", "neurotoxin", "pgd")} | {
    "dba": {"size": 6, "gap": 3}
}
TRIGGERS = {
    **dict.fromkeys(("mnist", "fashion_mnist", "femnist"), _SMALL),
    **dict.fromkeys(("cifar10", "cifar100"), _LARGE),
}


def get_grid(dataset: str) -> Grid:
    """The grid for a dataset of images."""
    base = paper(dataset)
    base.participation = "fixed"
    points = []
    for rule in aggregators.names():
        points.append({"aggregator.name": rule, "attack.name": "none"})
        for attack in attacks.BACKDOORS:
            trigger = TRIGGERS.get(dataset, {}).get(attack, {})
            settings = {f"attack.{attack}.{name}": value for name, value in trigger.items()}
            points.append({"aggregator.name": rule, "attack.name": attack, **settings})
    return Grid(base, points=points)
