"""Array primitives that XLA does not do well, and the only code that knows how rows of clients lie on devices."""

from lasa_jax.ops.columns import (
    average_of_ranks,
    gram,
    map_columns,
    mix_rows,
    sort_clients,
    squared_distances,
    sum_columns,
    usable_gram,
)
from lasa_jax.ops.convolution import conv2d, max_pool2d
from lasa_jax.ops.order import magnitude_threshold, sample_without_replacement
from lasa_jax.ops.rows import (
    CLIENTS,
    RUNS,
    any_run,
    map_rows,
    mean_and_std,
    num_shards,
    one_at_a_time,
    product,
    replace_rows,
    rows_at_once,
    weighted_sum,
)
from lasa_jax.ops.statistics import (
    counts,
    largest_magnitude,
    masked_median,
    masked_std,
    sum_of_smallest,
    total,
    tree_dot,
    tree_norm,
)
from lasa_jax.ops.target import compiling_for, platform

__all__ = [
    "CLIENTS",
    "RUNS",
    "any_run",
    "average_of_ranks",
    "compiling_for",
    "conv2d",
    "counts",
    "gram",
    "largest_magnitude",
    "magnitude_threshold",
    "map_columns",
    "map_rows",
    "masked_median",
    "masked_std",
    "max_pool2d",
    "mean_and_std",
    "mix_rows",
    "num_shards",
    "one_at_a_time",
    "platform",
    "product",
    "replace_rows",
    "rows_at_once",
    "sample_without_replacement",
    "sort_clients",
    "squared_distances",
    "sum_columns",
    "sum_of_smallest",
    "total",
    "tree_dot",
    "tree_norm",
    "usable_gram",
    "weighted_sum",
]
