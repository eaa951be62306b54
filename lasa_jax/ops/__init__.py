"""Array primitives that XLA does not do well, and the only code that knows how rows of clients lie on devices."""

from lasa_jax.ops.columns import (
    average_of_ranks,
    map_columns,
    mix_rows,
    sort_clients,
    squared_distances,
    sum_columns,
)
from lasa_jax.ops.convolution import conv2d, max_pool2d
from lasa_jax.ops.order import magnitude_threshold, sample_without_replacement
from lasa_jax.ops.rows import CLIENTS, RUNS, map_rows, mean_and_std, num_shards, replace_rows, weighted_sum
from lasa_jax.ops.statistics import (
    masked_median,
    masked_std,
    sum_of_smallest,
    total,
    tree_dot,
    tree_norm,
)

__all__ = [
    "CLIENTS",
    "RUNS",
    "average_of_ranks",
    "conv2d",
    "magnitude_threshold",
    "map_columns",
    "map_rows",
    "masked_median",
    "masked_std",
    "max_pool2d",
    "mean_and_std",
    "mix_rows",
    "num_shards",
    "replace_rows",
    "sample_without_replacement",
    "sort_clients",
    "squared_distances",
    "sum_columns",
    "sum_of_smallest",
    "total",
    "tree_dot",
    "tree_norm",
    "weighted_sum",
]
