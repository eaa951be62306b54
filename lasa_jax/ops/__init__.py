"""Array primitives that XLA does not do well, and the only code that knows how rows of clients lie on devices."""

from lasa_jax.ops.convolution import conv2d, max_pool2d
from lasa_jax.ops.order import magnitude_threshold
from lasa_jax.ops.rows import CLIENTS, RUNS, map_rows, mean_and_std, num_shards, replace_rows, weighted_sum
from lasa_jax.ops.statistics import masked_median, masked_std, total, tree_norm

__all__ = [
    "CLIENTS",
    "RUNS",
    "conv2d",
    "magnitude_threshold",
    "map_rows",
    "masked_median",
    "masked_std",
    "max_pool2d",
    "mean_and_std",
    "num_shards",
    "replace_rows",
    "total",
    "tree_norm",
    "weighted_sum",
]
