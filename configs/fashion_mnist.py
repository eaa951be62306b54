"""Fashion-MNIST at the paper's settings: 6,000 clients of 10 images, 100 a round, 180 rounds.

    python -m lasa_jax.main --config=configs/fashion_mnist.py --config.attack.name=byzmean

The paper's best test accuracy of LASA under ByzMean is 87.65 % (supplement, Table 2).
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """Takes no argument."""
    parse_argument(argument, {})
    return paper("fashion_mnist")
