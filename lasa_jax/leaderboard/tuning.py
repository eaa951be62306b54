"""Chooses the parameters of rules by their worst attack, on examples that are no test examples."""

import math
from collections.abc import Mapping, Sequence

from lasa_jax.leaderboard.declare import Chosen, Entry, Parameters


def choose(found: Sequence[Entry], accuracies: Mapping[str, float]) -> Chosen:
    """For each rule and partition the parameters whose worst accuracy over attacks is largest; the first of equal ones.

        chosen = argmax over candidates of min over attacks of accuracy

    Args:
      found: from `declare.on_validation`.
      accuracies: by the names of the points; a candidate of which one is missing or NaN is not chosen.

    Returns:
      The parameters by rule and partition, without those whose defaults were best.
    """
    worst: dict[tuple[str, str], dict[str, tuple[float, Parameters]]] = {}
    for one in found:
        accuracy = accuracies.get(one.point.name, math.nan)
        candidates = worst.setdefault((one.rule, one.partition), {})
        before, _ = candidates.get(str(one.parameters), (math.inf, one.parameters))
        # `min` alone would drop a NaN, or keep it, by where it stands.
        least = math.nan if math.isnan(before) or math.isnan(accuracy) else min(before, accuracy)
        candidates[str(one.parameters)] = (least, one.parameters)
    best: dict[tuple[str, str], Parameters] = {}
    for key, candidates in worst.items():
        able = [(accuracy, parameters) for accuracy, parameters in candidates.values() if not math.isnan(accuracy)]
        if able:
            best[key] = max(able, key=lambda pair: pair[0])[1]
    return {key: parameters for key, parameters in best.items() if parameters}
