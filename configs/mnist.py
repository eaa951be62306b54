"""MNIST at the paper's settings: 6,000 clients of 10 images, 100 a round, 180 rounds.

    python -m lasa_jax.main --config=configs/mnist.py --config.attack.name=lie
    python -m lasa_jax.main --config=configs/mnist.py --config.fidelity=published --config.attack.name=byzmean

`fidelity=published` follows the official code where it differs from the paper, see docs/fidelity.md. The paper's best
test accuracy of LASA is 97.35 % without attack and 97.94 % under ByzMean (supplement, Table 1).
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """Takes no argument."""
    parse_argument(argument, {})
    return paper("mnist")
