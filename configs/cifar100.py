"""CIFAR-100 at the paper's settings: ResNet-18, 100 clients of 500 images, 25 a round, 200 rounds.

    python -m lasa_jax.main --config=configs/cifar100.py                 # IID, every client has 5 images of each class
    python -m lasa_jax.main --config=configs/cifar100.py:alpha=0.5       # class proportions from Dirichlet(0.5)

Needs an accelerator: a round is 600 steps of ResNet-18 on 64 images.
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, parse_argument


def get_config(argument: str | None = None) -> ConfigDict:
    """`alpha=0.5` makes the clients differ by a Dirichlet distribution with that parameter."""
    values = parse_argument(argument, {"alpha": float})
    config = paper("cifar100")
    if values:
        config.partition.update(name="dirichlet", **values)
    return config
