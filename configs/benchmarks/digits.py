"""Every rule against eight attacks on the digits, IID and not, at 25 % malicious and with three seeds.

    lasa-jax benchmark digits --workdir=DIR                        all; `--quick`: six rules, four attacks, one seed
    lasa-jax benchmark digits:adaptive --workdir=DIR               attacks that search against the rule itself
    lasa-jax benchmark digits:tuned --workdir=DIR                  parameters chosen on a fifth of the training examples
    lasa-jax sweep configs/benchmarks/digits.py:all --workdir=DIR  the runs alone, also on a cluster

Settings are those of `configs/digits.py`, parameters of rules and attacks their defaults. Rules that walk over subsets of
the clients have 15 clients a round, not 30.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lasa_jax import aggregators
from lasa_jax.config import paper
from lasa_jax.errors import check_choice
from lasa_jax.grid import Grid
from lasa_jax.leaderboard.declare import Benchmark, grid_of

# Of the attacks that no table of the paper has, and that do not search, the one with the lowest mean accuracy over rules.
NEWER = "mpaf"
ATTACKS = ("noise", "sign_flip", "tailored_trmean", "min_max", "min_sum", "lie", "byzmean", NEWER)
SEARCHES = ("adaptive", "optimal_alie", "optimal_ipm")
# Sixty clients with ten digits each, the default, are out of reach of Dirichlet(0.1).
PARTITIONS: dict[str, dict[str, Any]] = {
    "IID": {"partition.name": "iid"},
    "Dirichlet alpha 0.1": {"partition.name": "dirichlet", "partition.alpha": 0.1},
}
SEEDS = (1, 2, 3)
FEW_CLIENTS = {"mda": 15, "smea": 15}  # a round, as in configs/sweeps/pairs.py
QUICK: dict[str, Any] = {
    "rules": ("fedavg", "geometric_median", "krum", "lasa", "median", "signguard"),
    "attacks": ("sign_flip", "min_max", "lie", "byzmean"),
    "seeds": (1,),
}

# Beside the defaults, for the edition that chooses. Most are numbers, which share a program.
CANDIDATES: dict[str, Sequence[Mapping[str, Any]]] = {
    "alignins": [{"alignment_radius": 0.5, "sign_radius": 0.5}, {"alignment_radius": 2.0, "sign_radius": 2.0}],
    "centered_clipping": [{"clip_radius": 0.3}, {"clip_radius": 1.0}, {"clip_radius": 3.0}],
    "dnc": [{"filter_fraction": 0.5}, {"filter_fraction": 1.5}],
    "lasa": [
        {"sparsity_level": level, "magnitude_radius": radius, "direction_radius": radius}
        for level in (0.0, 0.3, 0.6)
        for radius in (1.0, 2.0)
    ],
    "multi_metric": [{"share_kept": 0.15}, {"share_kept": 0.5}],
    "norm_clipped_mean": [{"clip_norm": 0.1}, {"clip_norm": 0.3}, {"clip_norm": 3.0}],
    "robust_learning_rate": [{"threshold": 4.0}, {"threshold": 12.0}],
    "signguard": [{"lower": 0.3, "upper": 2.0}, {"lower": 0.5, "upper": 1.5}],
    "signguard_sim": [{"lower": 0.3, "upper": 2.0}, {"lower": 0.5, "upper": 1.5}],
    "sparsefed": [{"sparsity_level": 0.1}, {"sparsity_level": 0.6}],
}


def get_benchmark(edition: str) -> Benchmark:
    """An edition: `all`, `quick`, `adaptive` or `tuned`."""
    return edition_of("digits", paper("digits"), edition, FEW_CLIENTS)


def get_grid(edition: str) -> Grid:
    """The runs of an edition as a sweep; not of `tuned`, which takes two."""
    return grid_of(get_benchmark(edition))


def edition_of(dataset: str, base: ConfigDict, edition: str, clients: Mapping[str, int]) -> Benchmark:
    """An edition on a dataset.

    Args:
      dataset: of `lasa_jax.leaderboard.validation` too.
      base: what all runs start from; the official code decides what is open.
      edition: its name.
      clients: of a round, for the rules that cannot take as many as the others.

    Raises:
      InputError: for an edition that there is not.
    """
    base.fidelity, base.attack_ratio = "official", 0.25
    whole: dict[str, Any] = {"rules": aggregators.names(), "attacks": ATTACKS, "seeds": SEEDS}
    tuned = {"candidates": CANDIDATES, "validation": f"lasa_jax.leaderboard.validation:{dataset}"}
    editions = {"all": {}, "quick": QUICK, "adaptive": {"attacks": SEARCHES}, "tuned": tuned}
    check_choice(f"--config={dataset}: edition", edition, tuple(editions))
    name = dataset if edition == "all" else f"{dataset}_{edition}"
    return Benchmark(name, base, partitions=PARTITIONS, clients=clients, **{**whole, **editions[edition]})
