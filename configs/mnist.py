"""MNIST at the paper's settings: 6,000 clients of 10 images, 100 in each round, 180 rounds.

    python -m lasa_jax.main --config=configs/mnist.py --config.attack.name=lie
    python -m lasa_jax.main --config=configs/mnist.py --config.fidelity=official --config.attack.name=byzmean

`fidelity=official` follows the official code where it differs from the paper, see docs/fidelity.md, section 1.1.
The paper's best test accuracy of LASA is 97.35 % without attack and 97.94 % under ByzMean (supplement, Table 1). A round
takes 4.5 seconds on two CPU cores with AVX-512, the whole run 14 minutes. `:shards=2`, `:alpha=0.5`, `:gamma=0.5`,
`:quantity=1.0` choose another partition than IID.
"""

from ml_collections import ConfigDict

from lasa_jax.config import paper, set_partition


def get_config(argument: str | None = None) -> ConfigDict:
    """IID, or the partition that the argument names, see docs/datasets.md."""
    config = paper("mnist")
    set_partition(config, argument)
    return config
