"""CIFAR-10 at the paper's settings: ResNet-18, 100 clients of 500 images, 25 in each round, 200 rounds.

    python -m lasa_jax.main --config=configs/cifar10.py                  # IID, every client has 50 images of each class
    python -m lasa_jax.main --config=configs/cifar10.py:alpha=0.5        # the paper's non-IID: Dirichlet(0.5)
    python -m lasa_jax.main --config=configs/cifar10.py:shards=2         # two classes a client; also gamma=, quantity=

Needs an accelerator: a round is 600 steps of ResNet-18 on 64 images, of about 5 seconds each on two CPU cores. The
supplement has no number for CIFAR; the paper's are in its main text.
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, set_partition


def get_config(argument: str | None = None) -> ConfigDict:
    """`alpha=0.5`, `shards=2`, `gamma=0.5` or `quantity=1.0` choose another partition, see docs/datasets.md."""
    config = paper("cifar10")
    set_partition(config, argument)
    return config
