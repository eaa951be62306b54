"""A twelfth of MNIST for 100 clients, to compare all rules: `python -m benchmarks.pairs --config=benchmarks/mnist_part.py`.

The first 5,000 training images, 50 for each client, who takes 5 steps of 10 in a round; all test images. Some rules keep a
row of the model's size for each client of the population, which 6,000 clients have no room for.
"""

from typing import Any

from ml_collections import ConfigDict

from lasa_jax import data
from lasa_jax.config import paper, parse_argument

EXAMPLES = 5_000


def examples() -> dict[str, Any]:
    """The images and labels as they are stored, and what MNIST is normalised with."""
    mnist = data.load("mnist")
    train, test = mnist.train, mnist.test
    return {
        "train": (train.inputs[:EXAMPLES], train.labels[:EXAMPLES]),
        "test": (test.inputs, test.labels),
        "mean": mnist.mean,
        "std": mnist.std,
    }


def get_config(argument: str | None = None) -> ConfigDict:
    """Takes no argument."""
    parse_argument(argument, {})
    config = paper("mnist")
    config.dataset = "benchmarks.mnist_part:examples"
    config.num_clients = 100
    config.clients_per_round = 15
    config.rounds = 30
    config.client.epochs = 1
    return config
