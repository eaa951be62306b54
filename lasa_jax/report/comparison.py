"""The figure of what rules are compared by: a row for each rule, a panel for each measure that its runs have."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lasa_jax.report import intervals, measures, style
from lasa_jax.report.groups import Group
from lasa_jax.report.tables import cells

_GREY = "#666666"  # of the legend, where what is drawn has the colour of its rule
_WIDTH = 2.6  # inches of 0 to 100 %, about


def of_rules(group: Group) -> Figure | str:
    """Accuracy without attack, in the mean over attacks and under the worst, at the ratio that is drawn.

    Further panels where runs have it: the breaking point, the largest success rate over backdoors, and the accuracy of the
    tenth of the clients that are served worst.
    """
    found = measures.by_rule(group)
    found = found[found["attack_ratio"] == group.ratio].reset_index(drop=True)
    if not measures.has_something_to_compare(found):
        return "measures.png needs runs of a rule without attack and under one, or under two"
    panels = [(_WIDTH + _room(found), _accuracies)]
    if found["up_to"].notna().any():
        panels.append((1.8, _breaking))
    if found["success"].notna().any():
        panels.append((2.2, _success))
    if found["worst_tenth"].notna().any():
        panels.append((2.3, _clients))
    names = found["rule"].tolist()
    widths = [width for width, _ in panels]
    size = (1.0 + 0.07 * max(map(len, names)) + sum(widths) + 0.4 * len(panels) + 1.2, 1.9 + 0.36 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    looks = style.looks(group)
    found["colour"] = [looks[rule]["color"] for rule in names]
    for axes, (_, draw) in zip(grid, panels, strict=True):
        draw(axes, found)
        axes.grid(axis="x", alpha=0.3)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    title = f"{group.title}, {100 * group.ratio:g} % malicious"
    if found["up_to"].notna().any():
        title += f"; breaks: {100 * group.lost:g} % of the accuracy lost"
    title += intervals.said(cells(group)["seeds"], "bar beside the worst attack")
    figure.suptitle(style.wrapped(title, size[0]), fontsize="medium")
    style.legend(
        figure,
        [
            Line2D([], [], color=_GREY, marker="o", linestyle="", markerfacecolor="white", label="no attack"),
            Line2D([], [], color="black", marker="|", linestyle="", markersize=9, label="mean over attacks"),
            Line2D([], [], color=_GREY, marker="o", linestyle="", label="worst attack"),
        ],
    )
    return figure


def _room(found: pd.DataFrame) -> float:
    """Inches that the names of the worst attacks take."""
    return 0.2 + 0.07 * max(map(len, found["worst_attack"]))


def _accuracies(axes: Axes, found: pd.DataFrame) -> None:
    """From the accuracy without attack to that under the worst one, which is named."""
    right = 102 + 104 * _room(found) / _WIDTH
    axes.set(xlabel="best test accuracy in %", xlim=(-2, right), xticks=range(0, 101, 20))
    for place, row in enumerate(found.itertuples()):
        best = row.mean if math.isnan(row.without) else row.without
        axes.plot([row.worst, best], [place, place], color=row.colour, linewidth=1.2, zorder=2)
        axes.plot([row.worst_low, row.worst_high], [place, place], color=row.colour, linewidth=5, alpha=0.35, zorder=2)
        axes.plot(row.without, place, "o", color=row.colour, markerfacecolor="white", zorder=3)
        axes.plot(row.mean, place, "|", color="black", markersize=9, zorder=3)
        axes.plot(row.worst, place, "o", color=row.colour, zorder=4)
        axes.text(102, place, f"{'' if row.complete else '≤ '}{row.worst_attack}", va="center", fontsize="small")


def _breaking(axes: Axes, found: pd.DataFrame) -> None:
    """A bar to the breaking point; where there is none up to the largest ratio, an arrow there."""
    high = 100 * found["up_to"].max()
    axes.set(xlabel="breaks at, % malicious", xlim=(0, 1.25 * high))
    for place, row in enumerate(found.itertuples()):
        if math.isnan(row.up_to):
            continue
        none = math.isnan(row.breaks_at)
        ends = 100 * (row.up_to if none else row.breaks_at)
        axes.barh(place, ends, height=0.55, color=row.colour, alpha=0.4 if none else 1.0, zorder=2)
        axes.text(ends + 0.02 * high, place, "none" if none else f"{ends:g}", va="center", fontsize="small")


def _success(axes: Axes, found: pd.DataFrame) -> None:
    axes.set(xlabel="success of a backdoor in %", xlim=(0, 105))
    axes.barh(range(len(found)), found["success"].fillna(0.0), height=0.55, color=found["colour"], zorder=2)


def _clients(axes: Axes, found: pd.DataFrame) -> None:
    axes.set(xlabel="worst tenth of clients in %", xlim=(0, 105))
    axes.barh(range(len(found)), found["worst_tenth"].fillna(0.0), height=0.55, color=found["colour"], zorder=2)
