"""Figures of what a round costs in seconds: by rule, and by the number of clients and parameters.

Every function returns a matplotlib figure, or one line that says which axis its data lacks.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lasa_jax.report import style
from lasa_jax.report.groups import Group


def by_rule(group: Group) -> Figure | str:
    """Seconds a round of every rule, a point a run and a bar at the fastest, which whatever else ran has slowed least."""
    runs = group.runs.dropna(subset="seconds_per_round")
    if runs.empty:
        return "cost.png needs runs that were timed"
    device = _device(runs)
    runs = runs[runs["device"] == device]
    rules = [rule for rule in group.rules if rule in set(runs["rule"])]
    size = (7.0, 1.5 + 0.38 * len(rules))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel="seconds a round (bar: fastest run; points: all)")
    for place, rule in enumerate(rules):
        seconds = runs.loc[runs["rule"] == rule, "seconds_per_round"].to_numpy(float)
        axes.barh(place, np.min(seconds), height=0.7, color=style.COLOURS[4], zorder=2)
        spread = np.linspace(-0.22, 0.22, len(seconds)) if len(seconds) > 1 else [0.0]
        axes.plot(seconds, place + np.asarray(spread), "o", color="black", markersize=2.5, alpha=0.6, zorder=3)
    axes.set_yticks(range(len(rules)), rules)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    first = runs.iloc[0]
    title = f"{group.title}, {first['clients_per_round']} clients a round, {device}"
    figure.suptitle(style.wrapped(title, size[0]), fontsize="medium")
    return figure


def by_size(groups: Sequence[Group]) -> Figure | str:
    """Seconds a round against the clients of a round n and against the parameters of the model d, a line a rule.

    Each panel takes the runs that are alike in the other size, the largest such part if there are several. Dataset and
    model, on which the cost of training depends, vary with d.
    """
    runs = pd.concat([group.runs for group in groups]).dropna(subset="seconds_per_round")
    if runs.empty:
        return "cost.png needs runs that were timed"
    device = _device(runs)
    runs = runs[runs["device"] == device]
    drawn: list[tuple[str, str, pd.DataFrame]] = []
    for size, label, fixed in (
        ("clients_per_round", "clients a round n", ["dataset", "model"]),
        ("num_parameters", "parameters d", ["clients_per_round"]),
    ):
        known = runs.dropna(subset=[size])
        parts = [(part[size].nunique(), len(part), str(key), part) for key, part in known.groupby(fixed)]
        kinds, _, _, part = max(parts, key=lambda item: item[:3], default=(0, 0, "", known))
        if kinds > 1:
            what = ", ".join(f"{field.replace('_', ' ')} {part.iloc[0][field]}" for field in fixed)
            drawn.append((size, f"{label} ({what})", part))
    if not drawn:
        return "cost.png against n and d needs runs that differ in clients_per_round or num_parameters"
    rules = [
        rule for rule in dict.fromkeys(rule for group in groups for rule in group.rules) if rule in set(runs["rule"])
    ]
    figure = Figure(figsize=(4.6 * len(drawn) + 0.6, 4.6), layout="constrained")
    for number, (size, label, part) in enumerate(drawn, 1):
        axes = figure.add_subplot(
            1, len(drawn), number, xlabel=label, ylabel="seconds a round", xscale="log", yscale="log"
        )
        for index, rule in enumerate(rules):
            fastest = part[part["rule"] == rule].astype({size: float}).groupby(size)["seconds_per_round"].min()
            axes.plot(fastest.index, fastest, **style.of_line(index))
        places = sorted(part[size].astype(float).unique())
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(f"fastest of the runs, {device}", fontsize="medium")
    handles = [Line2D([], [], label=rule, **style.of_line(index)) for index, rule in enumerate(rules)]
    style.legend(figure, handles)
    return figure


def _device(runs: pd.DataFrame) -> str:
    """The device of the most runs: seconds of different devices do not compare."""
    return runs["device"].value_counts(sort=True).sort_index().idxmax()
