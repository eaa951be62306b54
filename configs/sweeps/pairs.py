"""Every rule against every attack that has no trigger: which rule stands, and which attack takes it down.

    python -m launch.sweep --config=configs/sweeps/pairs.py:digits --workdir=DIR              # or mnist, femnist, ...
    python -m launch.sweep --config=configs/sweeps/pairs.py:digits,alpha=0.1,seeds=3,fidelity=paper --workdir=DIR
    python -m lasa_jax.report DIR                          # rules by attacks, and the measures of each rule

As in the official code at a ratio of 25 %, seed 1. `seeds=N` takes 1 to N, which share the program of their pair; `rounds=N`
and `clients=N` (of a round) make shorter runs; `alpha=`, `shards=`, `gamma=` or `quantity=` divide the data otherwise. New
rules and attacks are in it as soon as they have a name. Those with a trigger are in `backdoors.py`.

Rules that walk over subsets of the clients are refused at 30 clients per round. The sweep goes on and ends with exit code 1;
the table has "too many subsets" in their cells. They are also run at 15 clients per round, beside plain averaging, which
makes a table of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lasa_jax import aggregators, attacks
from lasa_jax.config import read_sweep
from lasa_jax.errors import whole_number
from lasa_jax.grid import Grid

SUBSETS = ("mda", "smea")
FEW_CLIENTS = 15  # a round: 3 of 15 are dropped in 455 ways, 7 of 30 in two million
_WORDS: dict[str, Callable[[str], Any]] = {"rounds": whole_number, "clients": whole_number, "fidelity": str}


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, `digits`, or `digits,alpha=0.1,seeds=3,rounds=20`."""
    return every_rule(argument, [name for name in attacks.names() if attacks.create(name).trigger is None])


def every_rule(argument: str, against: Sequence[str], settings: Mapping[str, Any] | None = None) -> Grid:
    """Every rule against these attacks, and those that walk over subsets with few clients too.

    Args:
      argument: as `config.read_sweep` reads it, and `rounds=N`, `clients=N` (of a round) or `fidelity=WORD`.
      against: names of attacks.
      settings: what all runs have in place of the dataset's own, by the fields of a config.
    """
    words = read_sweep(argument, seeds=1, more=_WORDS)
    base = words.base
    base.update_from_flattened_dict(dict(settings or {}))
    base.fidelity = words.more.get("fidelity", base.fidelity)
    base.rounds = words.more.get("rounds", base.rounds)
    base.clients_per_round = words.more.get("clients", base.clients_per_round)
    against = list(dict.fromkeys(words.attacks(*against)))  # which may have the stealthy Min-Sum already
    axes: list[dict[str, Sequence[Any]]] = [
        {"aggregator.name": aggregators.names()},
        {"attack.name": against},
        {"seed": words.seeds},
    ]
    few = [
        {"aggregator.name": rule, "attack.name": attack, "seed": seed, "clients_per_round": FEW_CLIENTS}
        for rule in ("fedavg", *SUBSETS)
        for attack in against
        for seed in words.seeds
        if base.clients_per_round > FEW_CLIENTS
    ]
    return Grid(base, axes=axes, points=few)
