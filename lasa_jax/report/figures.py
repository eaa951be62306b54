"""Figures of a group of runs: accuracy by attack ratio and by round, the worst case, and detection.

Every function returns a matplotlib figure, or one line that says which axis its data lacks.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lasa_jax.report import comparison, intervals, measures, style, timings
from lasa_jax.report.groups import RULES, Group
from lasa_jax.report.tables import NO_ATTACK, cells

_BASELINE = "fedavg"
_MOST_TICKS = 8
_NEAR = 15.0  # percentage points below the best within which a line is enlarged beside others that are far


def ratio(group: Group) -> Figure | str:
    """Best test accuracy against the attack ratio, a panel an attack and a line a rule, as Figure 1 of the paper."""
    found = intervals.bounded(cells(group))
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
    title = f"{group.title}{intervals.said(attacked['seeds'])}"
    labels = "malicious clients in %", "best test accuracy in %"
    figure, panels = _panels(attacks, title, *labels, enlarged, _of_one_example(group))
    looks = style.looks(group)
    ratios = sorted(100 * attacked["attack_ratio"].unique())
    for axes, attack in ((axes, attack) for attack, both in zip(attacks, panels, strict=True) for axes in both):
        if not math.isnan(baseline):
            axes.axhline(baseline, color="black", linestyle="--", linewidth=1.2, zorder=1)
        if len(ratios) <= _MOST_TICKS:
            axes.set_xticks(ratios, [f"{at:g}" for at in ratios])
        for rule in rules:
            if (line := parts.get((attack, rule))) is not None:
                _band(axes, 100 * line["attack_ratio"], line["mean"], line["low"], line["high"], looks[rule])
    handles = style.handles(looks, rules)
    if not math.isnan(baseline):
        handles.append(Line2D([], [], color="black", linestyle="--", label=f"{RULES[_BASELINE]}, no attack"))
    style.legend(figure, handles)
    return figure


def curves(group: Group) -> Figure | str:
    """Test accuracy against the round, a panel an attack and a line a rule."""
    return _by_round(group, "test_accuracy", "curves.png needs two evaluated rounds")


def success(group: Group) -> Figure | str:
    """The success of attacks with a trigger against the round, a panel an attack and a line a rule."""
    return _by_round(group, "attack_success", "success.png needs two evaluated rounds under a backdoor")


def _by_round(group: Group, measure: str, needs: str) -> Figure | str:
    """A share against the round. Args: measure: the column of `Results.lines`. needs: what is said without two rounds."""
    at = group.ratio
    runs = group.runs[group.runs["attack_ratio"] == at]
    lines = group.results.lines.dropna(subset=measure).merge(runs[["run", "rule", "attack", "seed"]], on="run")
    if lines.empty or lines["round"].nunique() < 2:
        return needs
    lines["share"] = 100 * lines[measure]
    attacks = [attack for attack in group.attacks if attack in set(lines["attack"])]
    rules = [rule for rule in group.rules if rule in set(lines["rule"])]
    grouped = lines.groupby(["attack", "rule", "round"], sort=False)
    by = grouped["share"].agg(["mean", "std", "min", "max"]).assign(seeds=grouped["seed"].nunique())
    by = intervals.bounded(by).sort_index()
    parts = {key: part.droplevel(["attack", "rule"]) for key, part in by.groupby(["attack", "rule"], sort=False)}
    enlarged = _enlarged(parts, {key: part.iloc[-1:] for key, part in parts.items()})  # before the end all lines cross
    title = f"{group.title}, {100 * at:g} % malicious{intervals.said(by['seeds'])}"
    labels = "round", f"{measure.replace('_', ' ')} in %"
    figure, panels = _panels(attacks, title, *labels, enlarged, _of_one_example(group, measure))
    looks = style.looks(group)
    panels[0][0].xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    for axes, attack in ((axes, attack) for attack, both in zip(attacks, panels, strict=True) for axes in both):
        for rule in rules:
            if (by_round := parts.get((attack, rule))) is None:
                continue
            index = group.rules.index(rule)
            apart = max(1, len(by_round) // 6)  # rounds between markers
            look = {**looks[rule], "markevery": (index % apart, apart)}
            _band(axes, by_round.index, by_round["mean"], by_round["low"], by_round["high"], look)
    style.legend(figure, style.handles(looks, rules))
    return figure


def worst_case(group: Group) -> Figure | str:
    """Per rule and attack ratio the smallest accuracy over the attacks, as the heatmaps of ByzFL.

    Where a rule lacks an attack that another rule has at that ratio, the smallest of the others is a bound and has `≤`. A
    run that diverged counts as 0, see `measures.by_rule`.
    """
    found = measures.by_rule(group)
    seeds = cells(group)["seeds"]
    attacks = measures.by_attack(group).dropna(subset="accuracy")["attack"]
    count = attacks[attacks != NO_ATTACK].nunique()
    if count < 2:
        return "worst_case.png needs runs of two attacks"
    rules = [rule for rule in group.rules if rule in set(found["rule"])]
    ratios = sorted(found["attack_ratio"].unique())
    values = np.full((len(rules), len(ratios)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for row in found.itertuples():
        place = rules.index(row.rule), ratios.index(row.attack_ratio)
        values[place] = row.worst
        half = f" ± {(row.worst_high - row.worst_low) / 2:.1f}" if row.worst_seeds >= intervals.FEWEST else ""
        texts[place] = f"{'' if row.complete else '≤ '}{row.worst:.1f}{half}\n{row.worst_attack}"
    size = (2.6 + 1.15 * len(ratios) + 0.06 * max(map(len, rules)), 1.7 + 0.55 * len(rules))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel="malicious clients in %")
    style.heatmap(
        figure, axes, values, texts, rules, [f"{100 * at:g}" for at in ratios], 1.15, "best test accuracy in %"
    )
    title = f"{group.title}: smallest over {count} attacks{intervals.said(seeds, '±')}"
    figure.suptitle(style.wrapped(title, size[0]), fontsize="medium")
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
    lines = group.results.lines.merge(attacked[["run", "rule", "seed"]], on="run")
    looks = style.looks(group)

    kinds = {"true": "malicious filtered (true positives)", "false": "benign filtered (false positives)"}
    wide = max(len(attacks), 3)
    heights = (0.5 + 0.36 * len(rules), *([0.5 + 0.3 * len(names)] * len(by_layer)), 2.2)
    panel = max(0.75 * wide, 0.1 * max(len(f"{rule}, by layer") for rule in rules))  # inches, about; a title fits
    size = (4.2 + 2 * panel, sum(heights) + 2.2)
    figure = Figure(figsize=size, layout="constrained")
    seeds = runs.groupby(["rule", "attack"])["seed"].nunique()
    title = f"{group.title}, {100 * at:g} % malicious{intervals.said(seeds)}"
    figure.suptitle(style.wrapped(title, size[0]), fontsize="medium")
    grid = figure.subplots(len(heights), 2, height_ratios=heights, sharey="row")
    for (kind, title), (by_attack, *of_layers, by_round) in zip(kinds.items(), grid.T, strict=True):
        last = kind == "false"
        table = runs.pivot_table(index="rule", columns="attack", values=kind, aggfunc="mean", dropna=False)
        table = table.reindex(index=rules, columns=attacks).astype(float)
        style.heatmap(
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
            style.heatmap(figure, axes, table.values, _rounded(table.values), names, attacks, width, "rate in %" * last)
            axes.set_title(f"{rule}, by layer")
        who = "malicious" if kind == "true" else "benign"
        for rule in rules:
            by = _over_seeds(lines[lines["rule"] == rule], who)
            index = group.rules.index(rule)
            apart = max(1, len(by) // 6)
            look = {**looks[rule], "markevery": (index % apart, apart)}
            _band(by_round, by.index, by["mean"], by["low"], by["high"], look)
        by_round.set(xlabel="round", ylim=(-3, 103), title="by round, all attacks together")
        by_round.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
        by_round.grid(alpha=0.3)
    grid[-1, 0].set_ylabel("rate in %")
    style.legend(figure, style.handles(looks, rules))
    return figure


def _over_seeds(lines: pd.DataFrame, who: str) -> pd.DataFrame:
    """The rate at which a rule filtered `who` in each round, over its seeds: within a seed all pairs count together."""
    sums = lines.groupby(["round", "seed"])[[who, f"{who}_filtered"]].sum()
    sums = sums[sums[who] > 0].astype(float)
    rates = (100 * sums[f"{who}_filtered"] / sums[who]).rename("rate").reset_index()
    by = rates.groupby("round")["rate"].agg(["mean", "std", "min", "max", "count"])
    return intervals.bounded(by.rename(columns={"count": "seeds"}))


OF_A_GROUP: Mapping[str, Callable[[Group], Figure | str]] = {
    "ratio": ratio,
    "curves": curves,
    "worst_case": worst_case,
    "measures": comparison.of_rules,
    "detection": detection,
    "cost": timings.by_rule,
}
OF_BACKDOORS: Mapping[str, Callable[[Group], Figure | str]] = {"success": success}


def left_out_of_detection(group: Group) -> list[str]:
    """The rules that detection has runs of, in which no client has weight 0 in a layer."""
    runs, rules = _that_filter(group)
    return [rule for rule in group.rules if rule in set(runs["rule"]) and rule not in rules]


def _that_filter(group: Group) -> tuple[pd.DataFrame, list[str]]:
    """The runs at the attack ratio that is drawn, and the rules that filtered somebody in one of them."""
    runs = group.runs[group.runs["attack_ratio"] == group.ratio]
    filtered = (runs["malicious_filtered"] > 0) | (runs["benign_kept"] < 1)
    return runs, [rule for rule in group.rules if filtered[runs["rule"] == rule].any()]


def _enlarged(
    lines: Mapping[tuple[str, str], pd.DataFrame], telling: Mapping[tuple[str, str], pd.DataFrame]
) -> tuple[float, float] | None:
    """The range of the lines that end near the best, None if they can be told apart as they are.

    Args:
      lines: `mean`, `low` and `high` along each, by panel and rule.
      telling: the part of each line that tells rules apart.
    """
    top = max(line["mean"].iloc[-1] for line in telling.values())
    near = {key: line for key, line in telling.items() if line["mean"].iloc[-1] >= top - _NEAR}
    low, high = min(line["low"].min() for line in near.values()), max(line["high"].max() for line in near.values())
    whole = max(line["high"].max() for line in lines.values()) - min(line["low"].min() for line in lines.values())
    panels = [panel for panel, _ in near]
    if max(map(panels.count, panels)) < 2 or whole < 3 * (high - low):
        return None
    return low - 0.08 * (high - low) - 0.1, high + 0.08 * (high - low) + 0.1


def _of_one_example(group: Group, measure: str = "test_accuracy") -> str:
    """What one example (in a text, one character) of the test set is worth, as a line; empty where runs do not say it."""
    counts = group.runs["test_labels"].dropna().unique()
    if len(counts) != 1 or measure != "test_accuracy":
        return ""
    return f"\none test example: {100 / counts[0]:.2g} points"


def _panels(
    names: Sequence[str], title: str, x: str, y: str, enlarged: tuple[float, float] | None, worth: str = ""
) -> tuple[Figure, list[list[Axes]]]:
    """A panel a name, at most five in a row, and below each a second one that shows the range `enlarged` if there is one.

    Args:
      worth: a line beside the enlarged ones.
    """
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
                axes.set_ylabel(y if kind == 0 else f"enlarged{worth}")
        if index + columns >= len(names):
            both[-1].set_xlabel(x)
            both[-1].tick_params(labelbottom=True)
        panels.append(both)
    if enlarged is not None:
        panels[0][1].set_ylim(*enlarged)
    figure.suptitle(style.wrapped(title, size[0]), fontsize="medium")
    return figure, panels


def _band(axes: Axes, x: Any, mean: Any, low: Any, high: Any, look: Mapping[str, Any]) -> None:
    x, mean, low, high = (np.asarray(values, float) for values in (x, mean, low, high))
    axes.plot(x, mean, linewidth=1.4, markersize=4, **look)
    axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)


def _rounded(values: np.ndarray) -> list[list[str]]:
    return [["" if math.isnan(value) else f"{value:.1f}" for value in row] for row in values]
