"""How LASA and other rules stand against the attack that was written against LASA.

    python -m launch.sweep --config=configs/sweeps/lasa_attack.py:digits --workdir=DIR        # or mnist, ...
    python -m launch.sweep --config=configs/sweeps/lasa_attack.py:mnist,few,clients=50,rounds=40,seeds=1 --workdir=DIR

Six rules under no attack, `lasa_attack` in both of its published settings, `hybrid_sparse`, Lie and ByzMean, seeds 1 to 3: a
quarter of the clients malicious with the dataset's own numbers of clients, and, on digits, a fifth of 25 clients that all
take part in every round, as in the library that the attack comes from. 108 runs for each of the two, 36 programs. Every rule
and attack is that of its own paper.

`few` leaves LASA, plain averaging and SignGuard under no attack and `lasa_attack` in both settings, with the dataset's own
numbers of clients, evaluated every fifth round: 9 runs for each seed. `rounds=N` and `clients=N` (of a round) make shorter
ones. All MNIST takes days on two cores, and the second line above about 20 minutes: it costs half a round's training and a
fifth of the evaluations for 40 of 180 rounds, so it is a comparison of rules early in training, not the paper's accuracy.
"""

from typing import Any

from lasa_jax.config import flag, read_sweep
from lasa_jax.errors import whole_number
from lasa_jax.grid import Grid

RULES = ["lasa", "fedavg", "signguard", "multi_krum", "trimmed_mean", "geometric_median"]
FEW = RULES[:3]
WRITTEN_AGAINST_IT: list[dict[str, Any]] = [
    {"attack.name": "none"},
    {"attack.name": "lasa_attack"},
    {"attack.name": "lasa_attack", "attack.lasa_attack.small_share": 0.7},
]
OTHERS: list[dict[str, Any]] = [{"attack.name": name} for name in ("hybrid_sparse", "lie", "byzmean")]
OURS: dict[str, Any] = {"attack_ratio": 0.25}
ITS_LIBRARYS: dict[str, Any] = {"attack_ratio": 0.2, "num_clients": 25, "clients_per_round": 25}


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: `few`, `rounds=N`, `clients=N`, and see `config.read_sweep`."""
    words = read_sweep(argument, more={"few": flag, "rounds": whole_number, "clients": whole_number})
    base, few = words.base, words.more.get("few", False)
    base.fidelity = "paper"
    base.rounds = words.more.get("rounds", base.rounds)
    base.clients_per_round = words.more.get("clients", base.clients_per_round)
    base.eval_every = 5 if few else base.eval_every
    settings = [OURS, ITS_LIBRARYS] if base.dataset == "digits" and not few else [OURS]
    others = [*([] if few else OTHERS), *({"attack.name": name} for name in words.attacks())]
    points = [
        {**setting, **attack, "aggregator.name": rule, "seed": seed}
        for attacks in (WRITTEN_AGAINST_IT, others)
        for setting in settings
        for attack in attacks
        for rule in (FEW if few else RULES)
        for seed in words.seeds
    ]
    return Grid(base, points=points)
