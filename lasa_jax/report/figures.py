"""Figures of a group of runs: accuracy by attack ratio and by round, the worst case, detection, and what a round costs.

Every function returns a matplotlib figure, or one line that says which axis its data lacks. Colours are those of Okabe and
Ito, told apart by colour-blind readers too, and lines differ in marker and dash besides.
"""

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lasa_jax.report.groups import RULES, Group
from lasa_jax.report.tables import NO_ATTACK, cells

# Okabe and Ito (2008) with grey for their black, which is for baselines, and Tol's olive and wine for their yellow, which is
# too light for a line: nine, as many as the paper has rules.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666", "#999933", "#882255")
_MARKERS = "osD^vPX*<>"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
_BASELINE = "fedavg"
_MOST_TICKS = 8
_NEAR = 15.0  # percentage points below the best within which a line is enlarged beside others that are far


def _style(index: int) -> dict[str, Any]:
    """Of line number `index`; the first 45 differ in colour or dash, and neighbours in colour, marker and dash."""
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[(index + 2 * (index // len(_COLOURS))) % len(_DASHES)],
    }


def ratio(group: Group) -> Figure | str:
    """Best test accuracy against the attack ratio, a panel an attack and a line a rule, as Figure 1 of the paper."""
    found = cells(group)
    attacked = found[found["attack"] != NO_ATTACK]
    attacks = [
        attack for attack in group.attacks if attacked.loc[attacked["attack"] == attack, "attack_ratio"].nunique() > 1
    ]
    if not attacks:
        return "ratio.png needs runs of one attack at two attack ratios"
    attacked = attacked[attacked["attack"].isin(attacks)]
    rules = [rule for rule in group.rules if rule in set(attacked["rule"])]
    plain = [rule for rule, (method, _) in group.variants.items() if method == _BASELINE]
    baseline = found[(found["attack"] == NO_ATTACK) & found["rule"].isin(plain)]["mean"].mean()
    parts = {key: part.sort_values("attack_ratio") for key, part in attacked.groupby(["attack", "rule"], sort=False)}
    enlarged = _enlarged(parts, parts)
    title = f"{group.title}{_bands(group.runs)}"
    figure, panels = _panels(attacks, title, "malicious clients in %", "best test accuracy in %", enlarged)
    ratios = sorted(100 * attacked["attack_ratio"].unique())
    for axes, attack in ((axes, attack) for attack, both in zip(attacks, panels, strict=True) for axes in both):
        if not math.isnan(baseline):
            axes.axhline(baseline, color="black", linestyle="--", linewidth=1.2, zorder=1)
        if len(ratios) <= _MOST_TICKS:
            axes.set_xticks(ratios, [f"{at:g}" for at in ratios])
        for rule in rules:
            if (line := parts.get((attack, rule))) is not None:
                style = _style(group.rules.index(rule))
                _band(axes, 100 * line["attack_ratio"], line["mean"], line["min"], line["max"], style)
    handles = _handles(group, rules)
    if not math.isnan(baseline):
        handles.append(Line2D([], [], color="black", linestyle="--", label=f"{RULES[_BASELINE]}, no attack"))
    _legend(figure, handles)
    return figure


def curves(group: Group) -> Figure | str:
    """Test accuracy against the round, a panel an attack and a line a rule."""
    at = group.ratio
    runs = group.runs[group.runs["attack_ratio"] == at]
    lines = group.results.lines.dropna(subset="test_accuracy").merge(runs[["run", "rule", "attack"]], on="run")
    if lines.empty or lines["round"].nunique() < 2:
        return "curves.png needs two evaluated rounds"
    lines["accuracy"] = 100 * lines["test_accuracy"]
    attacks = [attack for attack in group.attacks if attack in set(lines["attack"])]
    rules = [rule for rule in group.rules if rule in set(lines["rule"])]
    by = lines.groupby(["attack", "rule", "round"], sort=False)["accuracy"].agg(["mean", "min", "max"]).sort_index()
    parts = {key: part.droplevel(["attack", "rule"]) for key, part in by.groupby(["attack", "rule"], sort=False)}
    enlarged = _enlarged(parts, {key: part.iloc[-1:] for key, part in parts.items()})  # before the end all lines cross
    title = f"{group.title}, {100 * at:g} % malicious{_bands(runs)}"
    figure, panels = _panels(attacks, title, "round", "test accuracy in %", enlarged)
    panels[0][0].xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    for axes, attack in ((axes, attack) for attack, both in zip(attacks, panels, strict=True) for axes in both):
        for rule in rules:
            if (by_round := parts.get((attack, rule))) is None:
                continue
            index = group.rules.index(rule)
            apart = max(1, len(by_round) // 6)  # rounds between markers
            style = {**_style(index), "markevery": (index % apart, apart)}
            _band(axes, by_round.index, by_round["mean"], by_round["min"], by_round["max"], style)
    _legend(figure, _handles(group, rules))
    return figure


def worst_case(group: Group) -> Figure | str:
    """Per rule and attack ratio the smallest accuracy over the attacks, as the heatmaps of ByzFL.

    Where a rule lacks an attack that another rule has at that ratio, the smallest of the others is a bound and has `≤`.
    """
    found = cells(group).dropna(subset="mean")
    found = found[found["attack"] != NO_ATTACK]
    if found["attack"].nunique() < 2:
        return "worst_case.png needs runs of two attacks"
    rules = [rule for rule in group.rules if rule in set(found["rule"])]
    ratios = sorted(found["attack_ratio"].unique())
    values = np.full((len(rules), len(ratios)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for column, at in enumerate(ratios):
        here = found[found["attack_ratio"] == at]
        for row, rule in enumerate(rules):
            part = here[here["rule"] == rule]
            if part.empty:
                continue
            worst = part.loc[part["mean"].idxmin()]
            bound = "≤ " if set(here["attack"]) - set(part["attack"]) else ""
            values[row, column] = worst["mean"]
            texts[row, column] = f"{bound}{worst['mean']:.1f}\n{worst['attack']}"
    size = (2.6 + 1.15 * len(ratios) + 0.06 * max(map(len, rules)), 1.7 + 0.55 * len(rules))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel="malicious clients in %")
    _heatmap(figure, axes, values, texts, rules, [f"{100 * at:g}" for at in ratios], 1.15, "best test accuracy in %")
    figure.suptitle(
        _wrapped(f"{group.title}: smallest over {found['attack'].nunique()} attacks", size[0]), fontsize="medium"
    )
    return figure


def detection(group: Group) -> Figure | str:
    """True and false positive rates: by rule and attack, by layer and attack of rules that differ in it, and by round.

    Counted are pairs of a client and a layer; a positive is a client without weight in the layer.
    """
    at = group.ratio
    runs, rules = _that_filter(group)
    if not rules:
        return "detection.png needs a rule that filters clients"
    runs = runs[runs["rule"].isin(rules)].copy()
    runs["true"], runs["false"] = 100 * runs["malicious_filtered"], 100 * (1 - runs["benign_kept"])
    attacks = [attack for attack in group.attacks if attack in set(runs["attack"])]
    attacked = runs[runs["attack"] != NO_ATTACK]
    attacked = runs if attacked.empty else attacked
    layers = group.results.layers.merge(runs[["run", "rule", "attack"]], on="run")
    layers["true"], layers["false"] = 100 * layers["malicious_filtered"], 100 * (1 - layers["benign_kept"])
    names = list(dict.fromkeys(layers["layer"]))
    differ = layers.groupby(["rule", "run"])[["true", "false"]].nunique().max(axis=1).groupby("rule").max() > 1
    by_layer = [rule for rule in rules if differ[rule]]
    lines = group.results.lines.merge(attacked[["run", "rule"]], on="run")

    kinds = {"true": "malicious filtered (true positives)", "false": "benign filtered (false positives)"}
    wide = max(len(attacks), 3)
    heights = (0.5 + 0.36 * len(rules), *([0.5 + 0.3 * len(names)] * len(by_layer)), 2.2)
    panel = max(0.75 * wide, 0.1 * max(len(f"{rule}, by layer") for rule in rules))  # inches, about; a title fits
    size = (4.2 + 2 * panel, sum(heights) + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(_wrapped(f"{group.title}, {100 * at:g} % malicious", size[0]), fontsize="medium")
    grid = figure.subplots(len(heights), 2, height_ratios=heights, sharey="row")
    for (kind, title), (by_attack, *of_layers, by_round) in zip(kinds.items(), grid.T, strict=True):
        last = kind == "false"
        table = runs.pivot_table(index="rule", columns="attack", values=kind, aggfunc="mean", dropna=False)
        table = table.reindex(index=rules, columns=attacks).astype(float)
        _heatmap(
            figure,
            by_attack,
            table.values,
            _rounded(table.values),
            rules,
            attacks,
            panel / len(attacks),
            "rate in %" * last,
        )
        by_attack.set_title(title)
        for axes, rule in zip(of_layers, by_layer, strict=True):
            own = layers[layers["rule"] == rule]
            table = own.pivot_table(index="layer", columns="attack", values=kind, aggfunc="mean", dropna=False)
            table = table.reindex(index=names, columns=attacks).astype(float)
            width = panel / len(attacks)
            _heatmap(figure, axes, table.values, _rounded(table.values), names, attacks, width, "rate in %" * last)
            axes.set_title(f"{rule}, by layer")
        who = "malicious" if kind == "true" else "benign"
        for rule in rules:
            sums = lines[lines["rule"] == rule].groupby("round")[[who, f"{who}_filtered"]].sum()
            sums = sums[sums[who] > 0].astype(float)
            rate = 100 * sums[f"{who}_filtered"] / sums[who]
            index = group.rules.index(rule)
            apart = max(1, len(rate) // 6)
            by_round.plot(rate.index, rate, markersize=4, **_style(index), markevery=(index % apart, apart))
        by_round.set(xlabel="round", ylim=(-3, 103), title="by round, all attacks together")
        by_round.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        by_round.grid(alpha=0.3)
    grid[-1, 0].set_ylabel("rate in %")
    _legend(figure, _handles(group, rules))
    return figure


def cost(group: Group) -> Figure | str:
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
        axes.barh(place, np.min(seconds), height=0.7, color=_COLOURS[4], zorder=2)
        spread = np.linspace(-0.22, 0.22, len(seconds)) if len(seconds) > 1 else [0.0]
        axes.plot(seconds, place + np.asarray(spread), "o", color="black", markersize=2.5, alpha=0.6, zorder=3)
    axes.set_yticks(range(len(rules)), rules)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.grid(axis="x", alpha=0.3)
    first = runs.iloc[0]
    title = f"{group.title}, {first['clients_per_round']} clients a round, {device}"
    figure.suptitle(_wrapped(title, size[0]), fontsize="medium")
    return figure


def cost_by_size(groups: Sequence[Group]) -> Figure | str:
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
            axes.plot(fastest.index, fastest, **_style(index))
        places = sorted(part[size].astype(float).unique())
        axes.set_xticks(places, [f"{place:,.0f}" for place in places])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.suptitle(f"fastest of the runs, {device}", fontsize="medium")
    handles = [Line2D([], [], label=rule, **_style(index)) for index, rule in enumerate(rules)]
    _legend(figure, handles)
    return figure


OF_A_GROUP: Mapping[str, Callable[[Group], Figure | str]] = {
    "ratio": ratio,
    "curves": curves,
    "worst_case": worst_case,
    "detection": detection,
    "cost": cost,
}


def as_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as `png` or `svg`, the same bytes for the same data and the same version of matplotlib."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "lasa_jax"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def left_out_of_detection(group: Group) -> list[str]:
    """The rules that detection has runs of, in which no client has weight 0 in a layer."""
    runs, rules = _that_filter(group)
    return [rule for rule in group.rules if rule in set(runs["rule"]) and rule not in rules]


def _that_filter(group: Group) -> tuple[pd.DataFrame, list[str]]:
    """The runs at the attack ratio that is drawn, and the rules that filtered somebody in one of them."""
    runs = group.runs[group.runs["attack_ratio"] == group.ratio]
    filtered = (runs["malicious_filtered"] > 0) | (runs["benign_kept"] < 1)
    return runs, [rule for rule in group.rules if filtered[runs["rule"] == rule].any()]


def _device(runs: pd.DataFrame) -> str:
    """The device of the most runs: seconds of different devices do not compare."""
    return runs["device"].value_counts(sort=True).sort_index().idxmax()


def _enlarged(
    lines: Mapping[tuple[str, str], pd.DataFrame], telling: Mapping[tuple[str, str], pd.DataFrame]
) -> tuple[float, float] | None:
    """The range of the lines that end near the best, None if they can be told apart as they are.

    Args:
      lines: `mean`, `min` and `max` along each, by panel and rule.
      telling: the part of each line that tells rules apart.
    """
    top = max(line["mean"].iloc[-1] for line in telling.values())
    near = {key: line for key, line in telling.items() if line["mean"].iloc[-1] >= top - _NEAR}
    low, high = min(line["min"].min() for line in near.values()), max(line["max"].max() for line in near.values())
    whole = max(line["max"].max() for line in lines.values()) - min(line["min"].min() for line in lines.values())
    panels = [panel for panel, _ in near]
    if max(map(panels.count, panels)) < 2 or whole < 3 * (high - low):
        return None
    return low - 0.08 * (high - low) - 0.1, high + 0.08 * (high - low) + 0.1


def _panels(
    names: Sequence[str], title: str, x: str, y: str, enlarged: tuple[float, float] | None
) -> tuple[Figure, list[list[Axes]]]:
    """A panel a name, at most five in a row, and below each a second one that shows the range `enlarged` if there is one."""
    rows = math.ceil(len(names) / 5)
    columns = math.ceil(len(names) / rows)
    kinds = 1 if enlarged is None else 2
    size = (max(1.0 + 2.4 * columns, 6.0), 0.9 + 2.3 * rows * kinds)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows * kinds, columns, sharex=True, squeeze=False)
    panels: list[list[Axes]] = []
    for index, place in enumerate(np.ndindex(rows, columns)):
        both = [grid[place[0] * kinds + kind, place[1]] for kind in range(kinds)]
        if index >= len(names):
            for axes in both:
                axes.remove()
            continue
        both[0].set_title(names[index], fontsize="medium")
        for kind, axes in enumerate(both):
            axes.grid(alpha=0.3)
            if panels:
                axes.sharey(panels[0][kind])
            axes.tick_params(labelleft=place[1] == 0)
            if place[1] == 0:
                axes.set_ylabel(y if kind == 0 else "enlarged")
        if index + columns >= len(names):
            both[-1].set_xlabel(x)
            both[-1].tick_params(labelbottom=True)
        panels.append(both)
    if enlarged is not None:
        panels[0][1].set_ylim(*enlarged)
    figure.suptitle(_wrapped(title, size[0]), fontsize="medium")
    return figure, panels


def _bands(runs: pd.DataFrame) -> str:
    """What the lines and bands are, where there are several seeds."""
    return "\nline: mean over seeds, band: smallest to largest" if runs["seed"].nunique() > 1 else ""


def _band(axes: Axes, x: Any, mean: Any, low: Any, high: Any, style: Mapping[str, Any]) -> None:
    x, mean, low, high = (np.asarray(values, float) for values in (x, mean, low, high))
    axes.plot(x, mean, linewidth=1.4, markersize=4, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _handles(group: Group, rules: Sequence[str]) -> list[Any]:
    """Of the legend: a rule looks the same in all figures of a group."""
    return [Line2D([], [], label=rule, markersize=4, **_style(group.rules.index(rule))) for rule in rules]


def _legend(figure: Figure, handles: list[Any]) -> None:
    """Below the panels, as many columns as fit; the figure grows by its lines."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.07 * longest + 0.75))))
    lines = math.ceil(len(handles) / columns)
    columns = math.ceil(len(handles) / lines)  # as even as they can be
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * lines)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small", handlelength=3
    )


def _heatmap(
    figure: Figure,
    axes: Axes,
    values: np.ndarray,
    texts: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    width: float,
    label: str,
) -> None:
    """Annotated cells of percentages; grey where there is no value.

    Args:
      width: of a column in inches, about; names that are wider are turned.
      label: of the bar of colours; none if it is empty.
    """
    colours = mpl.colormaps["cividis"].with_extremes(bad="#dddddd")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(values.shape):
        light = values[row, column] > 50
        axes.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center",
            fontsize="small",
            color="black" if light else "white",
        )
    axes.set_xticks(range(len(columns)), columns)
    if 0.08 * max(map(len, columns)) > width:
        axes.tick_params("x", rotation=25)
        for name in axes.get_xticklabels():
            name.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if label:
        figure.colorbar(image, ax=axes, label=label)


def _rounded(values: np.ndarray) -> list[list[str]]:
    return [["" if math.isnan(value) else f"{value:.1f}" for value in row] for row in values]


def _wrapped(title: str, inches: float) -> str:
    """A title in lines that fit a figure of that width."""
    width = max(20, int(inches / 0.085))
    return "\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, width))
