"""Figures of what a round costs in seconds: by rule, and by the number of clients and parameters.

Every function returns a matplotlib figure, or one line that says which axis its data lacks.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lasa_jax.report import style
from lasa_jax.report.groups import Group


def by_rule(group: Group) -> Figure | str:
    """Seconds per round of every rule: a point for each run and a bar at the fastest, which was slowed least.

    Runs that shared the machine, with any run of the directory, see `results.alone`, are hollow points, and the bar is at
    the fastest of the others. Where a rule has no other, its bar is pale. A line below the title says how many shared it.
    """
    runs = group.runs.dropna(subset="seconds_per_round")
    if runs.empty:
        return "cost.png needs runs that were timed"
    device = _device(runs)
    runs = runs[runs["device"] == device]
    rules = [rule for rule in group.rules if rule in set(runs["rule"])]
    looks = style.looks(group)
    size = (7.0, 1.7 + 0.38 * len(rules))
    figure = Figure(figsize=size, layout="constrained")
    pale = ", pale if all shared the machine" if (runs["alone"].map(lambda value: value is False)).any() else ""
    axes = figure.add_subplot(xlabel=f"seconds per round (bar: fastest run{pale}; points: all)")
    for place, rule in enumerate(rules):
        own = runs[runs["rule"] == rule]
        fair = own[own["alone"] != False]  # noqa: E712  (None, where runs do not say, is no False)
        seconds = own["seconds_per_round"].to_numpy(float)
        fastest = (own if fair.empty else fair)["seconds_per_round"].min()
        colour = looks[rule]["color"]
        axes.barh(place, fastest, height=0.7, color=colour, alpha=0.3 if fair.empty else 0.8, zorder=2)
        spread = np.linspace(-0.22, 0.22, len(seconds)) if len(seconds) > 1 else np.zeros(1)
        faces = ["none" if value is False else "black" for value in own["alone"]]
        axes.scatter(seconds, place + spread, s=9, facecolors=faces, edgecolors="black", linewidths=0.7, zorder=3)
    axes.set_yticks(range(len(rules)), rules)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    first = runs.iloc[0]
    title = f"{group.title}, {first['clients_per_round']} clients per round, {device}\n{_shared(runs['alone'])}"
    figure.suptitle(style.wrapped(title.strip(), size[0]), fontsize="medium")
    return figure


def _shared(alone: pd.Series) -> str:
    """What a figure says of runs that shared their machine; empty where none did."""
    shared, unknown = int((alone.map(lambda value: value is False)).sum()), int(alone.isna().sum())
    said = []
    if shared:
        said.append(f"{shared} of {len(alone)} runs shared the machine (hollow): their seconds do not compare")
    if unknown:
        said.append(f"{unknown} of {len(alone)} do not say whether they had the machine for themselves")
    return "; ".join(said)


def by_size(groups: Sequence[Group]) -> Figure | str:
    """Seconds per round against the clients per round n and the parameters of the model d, a line for each rule.

    Each panel takes the runs that are alike in the other size, the largest such part if there are several. Dataset and
    model, on which the cost of training depends, vary with d.
    """
    runs = pd.concat([group.runs for group in groups]).dropna(subset="seconds_per_round")
    if runs.empty:
        return "cost.png needs runs that were timed"
    device = _device(runs)
    runs = runs[runs["device"] == device].reset_index(drop=True)
    drawn: list[tuple[str, str, pd.DataFrame]] = []
    for size, label, fixed in (
        ("clients_per_round", "clients per round n", ["dataset", "model"]),
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
    looks = style.looks(*groups)
    figure = Figure(figsize=(4.6 * len(drawn) + 0.6, 4.6), layout="constrained")
    for number, (size, label, part) in enumerate(drawn, 1):
        axes = figure.add_subplot(
            1, len(drawn), number, xlabel=label, ylabel="seconds per round", xscale="log", yscale="log"
        )
        for rule in rules:
            fastest = part[part["rule"] == rule].astype({size: float}).groupby(size)["seconds_per_round"].min()
            axes.plot(fastest.index, fastest, **looks[rule])
        places = sorted(part[size].astype(float).unique())
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    title = f"fastest of the runs, {device}\n{_shared(runs['alone']).replace(' (hollow)', '')}".strip()
    figure.suptitle(style.wrapped(title, figure.get_figwidth()), fontsize="medium")
    style.legend(figure, style.handles(looks, rules))
    return figure


def _device(runs: pd.DataFrame) -> str:
    """The device of the most runs: seconds of different devices do not compare."""
    return runs["device"].value_counts(sort=True).sort_index().idxmax()
