"""Handwritten digits (scikit-learn's own 8x8 images, no download): LASA against the official ByzMean, in a minute.

    python -m lasa_jax.main --config=configs/digits.py
    python -m lasa_jax.main --config=configs/digits.py --config.aggregator.name=fedavg

60 clients, 30 in each round, a quarter of them malicious.
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """The embedded default. Takes no argument."""
    parse_argument(argument, {})
    config = paper("digits")
    config.fidelity = "official"
    config.attack.name = "byzmean"
    return config
