"""How LASA and other rules stand against the attack that was written against LASA.

    python -m launch.sweep --config=configs/sweeps/lasa_attack.py:digits --workdir=DIR        # or mnist, ...

Six rules under no attack, `lasa_attack` in both of its published settings, `hybrid_sparse`, Lie and ByzMean, seeds 1 to 3: a
quarter of the clients malicious with the dataset's own numbers of clients, and, on digits, a fifth of 25 clients that all
take part in every round, as in the library that the attack comes from. 108 runs for each of the two, 36 programs. Every rule
and attack is that of its own paper.
"""

from typing import Any

from lasa_jax.config import read_sweep
from lasa_jax.grid import Grid

RULES = ["lasa", "fedavg", "signguard", "multi_krum", "trimmed_mean", "geometric_median"]
WRITTEN_AGAINST_IT: list[dict[str, Any]] = [
    {"attack.name": "none"},
    {"attack.name": "lasa_attack"},
    {"attack.name": "lasa_attack", "attack.lasa_attack.small_share": 0.7},
]
OTHERS: list[dict[str, Any]] = [{"attack.name": name} for name in ("hybrid_sparse", "lie", "byzmean")]
OURS: dict[str, Any] = {"attack_ratio": 0.25}
ITS_LIBRARYS: dict[str, Any] = {"attack_ratio": 0.2, "num_clients": 25, "clients_per_round": 25}


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: see `config.read_sweep`."""
    words = read_sweep(argument)
    words.base.fidelity = "paper"
    settings = [OURS, ITS_LIBRARYS] if words.base.dataset == "digits" else [OURS]
    others = [*OTHERS, *({"attack.name": name} for name in words.attacks())]
    points = [
        {**setting, **attack, "aggregator.name": rule, "seed": seed}
        for attacks in (WRITTEN_AGAINST_IT, others)
        for setting in settings
        for attack in attacks
        for rule in RULES
        for seed in words.seeds
    ]
    return Grid(words.base, points=points)
