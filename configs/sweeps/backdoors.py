"""Every rule under every attack with a trigger, and without attack: accuracy, and how often the trigger gets its label.

    python -m launch.sweep --config=configs/sweeps/backdoors.py:digits --workdir=DIR          # or mnist, femnist, ...
    python -m launch.sweep --config=configs/sweeps/backdoors.py:mnist,clients=20,rounds=20 --workdir=DIR
    python -m lasa_jax.report DIR                          # rules by attacks, and the measures of each rule

Settings, what may follow the dataset, and rules that walk over subsets of the clients: as in `pairs.py`.
"""

from lasa_jax import attacks
from lasa_jax.configs.sweeps.pairs import every_rule
from lasa_jax.grid import Grid


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, `digits`, or `digits,seeds=3,rounds=20`."""
    triggered = [name for name in attacks.names() if attacks.create(name).trigger is not None]
    return every_rule(argument, ["none", *triggered])
