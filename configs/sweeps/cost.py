"""Section E of the supplement: seconds per round of every rule, by clients per round (n) and entries of an update (d).

    python -m launch.sweep --config=configs/sweeps/cost.py:digits --workdir=DIR --threads=1         # or mnist, cifar10, ...

36 runs, 36 programs; 72 for the digits, with the paper's CNN beside the small one, and so two values of d. Noise, or with
`stealthy` the stealthy Min-Sum; one seed; nothing is evaluated but the last round. `python -m lasa_jax.report DIR` draws
`cost.png`. One run at a time, since what runs beside it counts too.
"""

from lasa_jax.config import read_sweep
from lasa_jax.grid import Grid

RULES = [
    *("fedavg", "trimmed_mean", "geometric_median", "multi_krum", "bulyan"),
    *("dnc", "signguard", "sparsefed", "lasa"),
]


def get_grid(argument: str) -> Grid:
    """The grid for a dataset, and for what may follow it: see `config.read_sweep`."""
    words = read_sweep(argument, seeds=1)
    base = words.base
    base.attack.name = words.attacks("noise")[-1]
    base.rounds = base.eval_every = base.block_rounds = 10
    most = base.clients_per_round
    clients = [max(1, most * share // 4) for share in (1, 2, 3, 4)]
    models = ["small_cnn", "cnn"] if base.dataset == "digits" else [base.model]
    return Grid(
        base,
        axes=[
            {"aggregator.name": RULES},
            {"model": models},
            {"clients_per_round": clients},
            {"seed": words.seeds},
        ],
    )
