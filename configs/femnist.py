"""FEMNIST at the paper's settings: one client per writer, 62 classes, 100 clients per round, 300 rounds.

    python -m lasa_jax.main --config=configs/femnist.py --config.source=PATH          # LEAF's output, see docs/datasets.md
    python -m lasa_jax.main --config=configs/femnist.py --config.attack.name=lie      # from then on without the source

Takes the writers that the source has with at least 3 samples; the paper's counts (1,827 clients, 450,632 images, "5 %")
contradict each other. The paper's best test accuracy of LASA is 83.69 % without attack and 83.52 % under Lie (supplement,
Table 1). With 105 writers of at most 165 samples a round takes 15 to 25 seconds on two CPU cores.
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """Takes no argument: clients are natural."""
    parse_argument(argument, {})
    return paper("femnist")
