"""Fashion-MNIST at the paper's settings, which are those of MNIST: 6,000 clients of 10 images, 100 in each, 180 rounds.

    python -m lasa_jax.main --config=configs/fashion_mnist.py --config.attack.name=min_max
    python -m lasa_jax.main --config=configs/fashion_mnist.py:shards=2 --config.attack.name=lie      # two classes a client

The paper's accuracy of LASA under ByzMean is 87.94 % at best over the sparsity levels (supplement, section D). A round takes
4.5 seconds on two CPU cores with AVX-512. Also `:alpha=0.5`, `:gamma=0.5`, `:quantity=1.0`.
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, set_partition


def get_config(argument: str | None = None) -> ConfigDict:
    """IID, or the partition that the argument names, see docs/datasets.md."""
    config = paper("fashion_mnist")
    set_partition(config, argument)
    return config
