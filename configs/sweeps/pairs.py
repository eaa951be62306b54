"""Every rule against every attack that has no trigger: which rule stands, and which attack takes it down.

    python -m launch.sweep --config=configs/sweeps/pairs.py:digits --workdir=DIR              # or mnist, femnist, ...
    python -m launch.sweep --config=configs/sweeps/pairs.py:digits,alpha=0.1,seeds=3,fidelity=paper --workdir=DIR
    python -m lasa_jax.report DIR                          # rules by attacks, and the measures of each rule

As in the official code at a ratio of 25 %, seed 1. `seeds=N` takes 1 to N, which share the program of their pair; `rounds=N`
and `clients=N` (of a round) make shorter runs; `alpha=`, `shards=`, `gamma=` or `quantity=` divide the data otherwise. New
rules and attacks are in it as soon as they have a name. Those with a trigger are in `backdoors.py`.

Rules that walk over subsets of the clients are refused at 30 clients a round. The sweep goes on and ends with exit code 1;
the table has "too many subsets" in their cells. They are also run at 15 clients a round, beside plain averaging, which makes
a table of its own.
"""

from typing import Any

from lasa_jax import aggregators, attacks
from lasa_jax.config import paper, parse_argument, set_partition
from lasa_jax.errors import whole_number
from lasa_jax.grid import Grid

SUBSETS = ("mda", "smea")
FEW_CLIENTS = 15  # a round: 3 of 15 are dropped in 455 ways, 7 of 30 in two million
_PARTITIONS = dict.fromkeys(("alpha", "shards", "gamma", "quantity"), str)
_NUMBERS = dict.fromkeys(("seeds", "rounds", "clients"), whole_number)


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, `digits`, or `digits,seeds=3,rounds=20`."""
    dataset, _, rest = argument.partition(",")
    given = parse_argument(rest, {**_NUMBERS, "fidelity": str, **_PARTITIONS})
    base = paper(dataset)
    base.fidelity = given.get("fidelity", "official")
    base.rounds = given.get("rounds", base.rounds)
    base.clients_per_round = given.get("clients", base.clients_per_round)
    set_partition(base, ",".join(f"{name}={given[name]}" for name in _PARTITIONS if name in given))
    seeds = list(range(1, given.get("seeds", 1) + 1))

    untargeted = [name for name in attacks.names() if attacks.create(name).trigger is None]
    axes: list[dict[str, Any]] = [
        {"aggregator.name": aggregators.names()},
        {"attack.name": untargeted},
        {"seed": seeds},
    ]
    walking = [name for name in SUBSETS if name in aggregators.names()]
    few = [
        {"aggregator.name": rule, "attack.name": attack, "seed": seed, "clients_per_round": FEW_CLIENTS}
        for rule in ("fedavg", *walking)
        for attack in untargeted
        for seed in seeds
        if walking and base.clients_per_round > FEW_CLIENTS
    ]
    return Grid(base, axes=axes, points=few)
