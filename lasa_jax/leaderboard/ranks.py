"""Which mean ranks differ by more than chance: the critical difference of Nemenyi's test, and its picture."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from lasa_jax.report import style


def critical_difference(num_rules: int, num_situations: int, level: float = 0.05) -> float:
    """How far two mean ranks must be apart to differ, whichever pair of the rules it is.

        CD = q * sqrt(k (k + 1) / (6 N)),   q the studentised range of k and infinitely many, divided by sqrt(2)

    Source: Demsar, Statistical comparisons of classifiers over multiple data sets, JMLR 2006, section 3.2.2.

    Args:
      num_rules: k.
      num_situations: N; they are taken to be independent.
      level: of the test.
    """
    q = stats.studentized_range.ppf(1 - level, num_rules, np.inf) / math.sqrt(2)
    return float(q * math.sqrt(num_rules * (num_rules + 1) / (6 * num_situations)))


def of_rules(ranks: pd.Series, num_situations: int, title: str) -> Figure | str:
    """A row for each rule, best first: its mean rank, and a bar of half the critical difference to each side.

    Rules whose bars overlap are not told apart. The grey band is that of the first.

    Args:
      ranks: mean ranks by rule.
      num_situations: that each is the mean of.
      title: of the picture.

    Returns:
      One line where there are fewer than two rules to compare.
    """
    if len(ranks) < 2 or num_situations < 2:
        return "ranks need two rules that met the same two situations"
    ordered = ranks.sort_values(kind="stable")
    half = critical_difference(len(ordered), num_situations) / 2
    size = (7.0, 1.5 + 0.26 * len(ordered))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel="mean rank (1: best); rules whose bars overlap are not told apart")
    axes.axvspan(ordered.iloc[0] - half, ordered.iloc[0] + half, color="#dddddd", zorder=0)
    places = np.arange(len(ordered))
    axes.errorbar(
        ordered.to_numpy(), places, xerr=half, fmt="o", color=style.COLOURS[0], ecolor=style.COLOURS[4], markersize=4
    )
    axes.set_yticks(places, list(ordered.index))
    axes.set_ylim(len(ordered) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    text = f"{title}; critical difference {2 * half:.1f} at 5 %, {num_situations} situations"
    figure.suptitle(style.wrapped(text, size[0]), fontsize="medium")
    return figure
