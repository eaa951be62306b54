"""How sure a mean over seeds is: an interval where there are three seeds, and a warning where there are fewer."""

import numpy as np
import pandas as pd

FEWEST = 3  # seeds of an interval: of two it would be nine times as wide as they are apart


def bounded(found: pd.DataFrame) -> pd.DataFrame:
    """The table with columns `low` and `high`, all in percent.

        mean +- t(0.975, n - 1) * std / sqrt(n),    within 0 and 100, where there are three seeds or more
        smallest to largest                          where there are fewer

    Source: Student's interval of the mean at 95 %.

    Args:
      found: with `mean`, `std` (of the sample, n - 1), `min`, `max` and `seeds`.
    """
    from scipy.special import stdtrit  # JAX brings SciPy

    seeds = found["seeds"].to_numpy(float)
    enough = seeds >= FEWEST
    half = stdtrit(np.maximum(seeds - 1, 1), 0.975) * found["std"].fillna(0.0).to_numpy(float) / np.sqrt(seeds)
    mean = found["mean"].to_numpy(float)
    low = np.where(enough, np.clip(mean - half, 0.0, 100.0), found["min"].to_numpy(float))
    high = np.where(enough, np.clip(mean + half, 0.0, 100.0), found["max"].to_numpy(float))
    return found.assign(low=low, high=high)


def said(seeds: pd.Series, mark: str = "band") -> str:
    """A line for a title: what the intervals are, and a warning where a cell has fewer than three seeds.

    Args:
      seeds: how many each cell of the figure has.
      mark: what shows the interval.
    """
    fewest, most = int(seeds.min()), int(seeds.max())
    if fewest >= FEWEST:
        return f"\nmean over {_range(fewest, most)} seeds, {mark}: its 95 % interval"
    warning = "differences may be chance"
    if most == 1:
        return f"\none seed: {warning}"
    if most < FEWEST:
        return f"\nmean over {_range(fewest, most)} seeds, {mark}: smallest to largest; fewer than three: {warning}"
    return (
        f"\nmean over {_range(fewest, most)} seeds, {mark}: its 95 % interval, or smallest to largest where there are "
        f"fewer than three and {warning}"
    )


def _range(fewest: int, most: int) -> str:
    return f"{most}" if fewest == most else f"{fewest} to {most}"
