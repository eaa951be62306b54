"""What the command of all pairs refuses, before anything is compiled; and its small MNIST."""

import pytest

from benchmarks import mnist_part, pairs
from lasa_jax import config as configs
from lasa_jax.errors import InputError

NOTHING_KEPT = pairs.Record(None, {})


def test_no_file_of_that_name():
    with pytest.raises(InputError, match=r"^--config=nothing.py: no config file of that name; allowed are"):
        pairs.load("nothing.py", "none", "fedavg", {})


def test_no_rule_of_that_name():
    with pytest.raises(InputError, match=r"^--rules = 'krumm': allowed are alignins, bulyan"):
        pairs.simulate("configs/digits.py", ["none"], ["lasa", "krumm"], {}, NOTHING_KEPT)


def test_no_attack_of_that_name():
    with pytest.raises(InputError, match=r"^--attacks = 'badnet': allowed are adaptive, alie, badnets"):
        pairs.simulate("configs/digits.py", ["badnet"], ["lasa"], {}, NOTHING_KEPT)


def test_a_client_of_the_small_mnist_takes_five_steps():
    config = configs.resolve(mnist_part.get_config())
    examples = mnist_part.EXAMPLES // config.num_clients
    assert examples // config.client.batch_size * config.client.epochs == 5
