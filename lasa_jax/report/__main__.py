"""The command line of reports.

python -m lasa_jax.report partition --config=configs/cifar10.py:alpha=0.1 --output=partition.png
"""

from collections.abc import Sequence

from absl import flags

from lasa_jax import commandline, data
from lasa_jax.data import partition
from lasa_jax.errors import InputError
from lasa_jax.report import partition as picture

_OUTPUT = flags.DEFINE_string("output", "partition.png", "file of the picture")


def _partition() -> None:
    """Draws how a config divides its examples, and prints a few numbers."""
    config = commandline.resolved_config()
    dataset = data.load(config.dataset, data_dir=config.data_dir, source=config.source)
    shares = partition.divide(
        config.partition,
        dataset.train.labels,
        dataset.client_ids,
        num_clients=config.num_clients,
        seed=config.seed,
    )
    counts = picture.class_counts(dataset, shares)
    picture.draw(counts, shares, picture.title(dataset, config.partition), _OUTPUT.value)
    for name, value in picture.describe(counts, shares).items():
        print(f"{name}: {value}")
    print(f"picture: {_OUTPUT.value}")


def _main(rest: Sequence[str]) -> None:
    if list(rest) != ["partition"]:
        raise InputError(f"python -m lasa_jax.report {' '.join(rest)}: allowed is partition")
    _partition()


if __name__ == "__main__":
    commandline.entry_point(_main)
