"""Aggregation rules: what the server does with the clients' updates. One file a rule, all of them in `RULES`.

    rule = aggregators.lasa(sparsity_level=0.3)                 # or aggregators.create("lasa", sparsity_level=0.3)
    state = rule.init(params)
    update, state, diagnostics = rule.aggregate(updates, state, key=key, num_malicious=0)

`updates` is any pytree whose leaves have a leading client axis. To add a rule, write its file and name it in `RULES`.
"""

from collections.abc import Callable
from typing import Any

from lasa_jax.aggregators.alignins import AlignmentDiagnostics, alignins
from lasa_jax.aggregators.base import (
    Aggregator,
    Assumed,
    Context,
    Diagnostics,
    PreAggregator,
    Rows,
    Selection,
    chain,
    is_finite,
    stateless,
)
from lasa_jax.aggregators.caf import caf
from lasa_jax.aggregators.cge import cge
from lasa_jax.aggregators.clipping import centered_clipping, norm_clipped_mean
from lasa_jax.aggregators.coordinate_wise import median, trimmed_mean
from lasa_jax.aggregators.dnc import dnc
from lasa_jax.aggregators.fedavg import fedavg
from lasa_jax.aggregators.flame import FlameDiagnostics, flame
from lasa_jax.aggregators.fldetector import DetectorDiagnostics, fldetector
from lasa_jax.aggregators.fltrust import fltrust
from lasa_jax.aggregators.foolsgold import foolsgold
from lasa_jax.aggregators.geometric_median import geometric_median
from lasa_jax.aggregators.krum import bulyan, krum, multi_krum
from lasa_jax.aggregators.lasa import FilterDiagnostics, lasa, layer_filter
from lasa_jax.aggregators.meamed import meamed
from lasa_jax.aggregators.monna import monna
from lasa_jax.aggregators.multi_metric import MetricDiagnostics, multi_metric
from lasa_jax.aggregators.parameters_only import parameters_only
from lasa_jax.aggregators.preaggregators import (
    arc,
    bucketing,
    clip_to_median_norm,
    clip_to_norm,
    keep_top_k,
    nearest_neighbour_mixing,
    num_kept_entries,
    reject_nonfinite,
)
from lasa_jax.aggregators.robust_learning_rate import robust_learning_rate
from lasa_jax.aggregators.signguard import SignDiagnostics, signguard
from lasa_jax.aggregators.signguard_sim import SimilarityState, signguard_sim
from lasa_jax.aggregators.sparsefed import num_kept_of_all, sparsefed
from lasa_jax.aggregators.subsets import MOST_SUBSETS, check_subsets, mda, smea
from lasa_jax.errors import call_named

RULES: dict[str, Callable[..., Aggregator]] = {
    "alignins": alignins,
    "bulyan": bulyan,
    "caf": caf,
    "centered_clipping": centered_clipping,
    "cge": cge,
    "dnc": dnc,
    "fedavg": fedavg,
    "flame": flame,
    "fldetector": fldetector,
    "fltrust": fltrust,
    "foolsgold": foolsgold,
    "geometric_median": geometric_median,
    "krum": krum,
    "lasa": lasa,
    "mda": mda,
    "meamed": meamed,
    "median": median,
    "monna": monna,
    "multi_krum": multi_krum,
    "multi_metric": multi_metric,
    "norm_clipped_mean": norm_clipped_mean,
    "robust_learning_rate": robust_learning_rate,
    "signguard": signguard,
    "signguard_sim": signguard_sim,
    "smea": smea,
    "sparsefed": sparsefed,
    "trimmed_mean": trimmed_mean,
}

# Steps in front of a rule, see `chain`.
PREAGGREGATORS: dict[str, Callable[..., PreAggregator]] = {
    "arc": arc,
    "bucketing": bucketing,
    "clip_to_median_norm": clip_to_median_norm,
    "clip_to_norm": clip_to_norm,
    "keep_top_k": keep_top_k,
    "nearest_neighbour_mixing": nearest_neighbour_mixing,
    "reject_nonfinite": reject_nonfinite,
}

# Rules that walk through all subsets of n - f clients, see `check_subsets`.
OF_SUBSETS = ("mda", "smea")

# How a sparsity level becomes the integer k for the methods that have one: `(params, sparsity_level) -> k`.
NUM_KEPT: dict[str, Callable[[Any, float], int]] = {
    "keep_top_k": num_kept_entries,
    "lasa": num_kept_entries,
    "sparsefed": num_kept_of_all,
}


def names() -> list[str]:
    """The rules that `create` knows, sorted."""
    return sorted(RULES)


def create(name: str, **parameters: Any) -> Aggregator:
    """Builds a rule by name: `create("lasa", sparsity_level=0.5)` is `lasa(sparsity_level=0.5)`.

    Raises:
      InputError: for an unknown name or parameter, or a value out of range.
    """
    return call_named("aggregator", RULES, name, parameters)


__all__ = [
    "MOST_SUBSETS",
    "NUM_KEPT",
    "OF_SUBSETS",
    "PREAGGREGATORS",
    "RULES",
    "Aggregator",
    "AlignmentDiagnostics",
    "Assumed",
    "Context",
    "DetectorDiagnostics",
    "Diagnostics",
    "FilterDiagnostics",
    "FlameDiagnostics",
    "MetricDiagnostics",
    "PreAggregator",
    "Rows",
    "Selection",
    "SignDiagnostics",
    "SimilarityState",
    "alignins",
    "arc",
    "bucketing",
    "bulyan",
    "caf",
    "centered_clipping",
    "cge",
    "chain",
    "check_subsets",
    "clip_to_median_norm",
    "clip_to_norm",
    "create",
    "dnc",
    "fedavg",
    "flame",
    "fldetector",
    "fltrust",
    "foolsgold",
    "geometric_median",
    "is_finite",
    "keep_top_k",
    "krum",
    "lasa",
    "layer_filter",
    "mda",
    "meamed",
    "median",
    "monna",
    "multi_krum",
    "multi_metric",
    "names",
    "nearest_neighbour_mixing",
    "norm_clipped_mean",
    "num_kept_entries",
    "num_kept_of_all",
    "parameters_only",
    "reject_nonfinite",
    "robust_learning_rate",
    "signguard",
    "signguard_sim",
    "smea",
    "sparsefed",
    "stateless",
    "trimmed_mean",
]
