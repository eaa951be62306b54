"""What rules are compared by: the worst attack and what it takes, backdoors, clients served worst, breaking points."""

import math
from typing import Any

import pandas as pd

from lasa_jax.inspection.rendering import Cell, Table
from lasa_jax.report import intervals
from lasa_jax.report.groups import Group
from lasa_jax.report.tables import NO_ATTACK, cells, refused_note

_KEY = ["rule", "attack", "attack_ratio"]
_LAST = ["worst_tenth", "low", "high", "seeds"]


def by_attack(group: Group) -> pd.DataFrame:
    """A row for every rule, attack and ratio, means over seeds in percent; NaN where the runs do not say.

    Columns:
      rule, attack, attack_ratio: as in `tables.cells`, and in its order.
      accuracy: best test accuracy, where a run that diverged counts as 0, since it has no model.
      final: the same of the last round.
      diverged: how many runs did.
      without: accuracy of the same rule without attack, at this ratio or the nearest at which it was run so.
      impact: `without` less `accuracy`.
      success: of a backdoor.
      worst_tenth: accuracy of the tenth of the benign clients that are served worst; 0 of a run that diverged, too.
      low, high, seeds: the interval of `accuracy`, see `intervals.bounded`, and how many seeds it has.
    """
    diverged, tenths = group.runs["status"] == "diverged", 100 * group.runs["worst_tenth_accuracy"]
    runs = group.runs.assign(
        accuracy=(100 * group.runs["best_test_accuracy"]).where(~diverged, 0.0),
        final=(100 * group.runs["final_test_accuracy"]).where(~diverged, 0.0),
        success=100 * group.runs["final_attack_success"],
        worst_tenth=tenths.where(~diverged, 0.0) if tenths.notna().any() else tenths,
        diverged=diverged.astype(int),
    )
    by = runs.groupby(_KEY, sort=False)
    found = by[["accuracy", "final", "success", "worst_tenth"]].mean()
    found["diverged"] = by["diverged"].sum()
    spread = by["accuracy"].agg(["mean", "std", "min", "max", "size"]).rename(columns={"size": "seeds"})
    found = found.join(intervals.bounded(spread)[["low", "high", "seeds"]])
    found = cells(group)[_KEY].merge(found.reset_index(), on=_KEY, sort=False)  # in the order of the tables
    clean = found[(found["attack"] == NO_ATTACK) & found["accuracy"].notna()]

    def without(row: pd.Series) -> float:
        own = clean[clean["rule"] == row["rule"]]
        if own.empty:
            return math.nan
        return float(own.loc[(own["attack_ratio"] - row["attack_ratio"]).abs().idxmin(), "accuracy"])

    found["without"] = [without(row) for _, row in found.iterrows()]
    found["impact"] = found["without"] - found["accuracy"]
    return found[[*_KEY, "accuracy", "final", "diverged", "without", "impact", "success", *_LAST]]


def breaking_points(group: Group) -> pd.DataFrame:
    """At which ratio each rule breaks under each attack that it met at two ratios or more.

        breaking point = smallest ratio at which accuracy <= (1 - group.lost) * accuracy without attack

    Columns:
      rule, attack: as in `by_attack`.
      breaks_at: a share of the clients; NaN if nowhere.
      up_to: the largest ratio that was run.

    Rules that were not run without attack have no row.
    """
    found = by_attack(group)
    found = found[(found["attack"] != NO_ATTACK) & found["without"].notna() & found["accuracy"].notna()]
    rows = []
    for (rule, attack), part in found.groupby(["rule", "attack"], sort=False):
        if part["attack_ratio"].nunique() > 1:
            broken = part.loc[part["accuracy"] <= (1 - group.lost) * part["without"], "attack_ratio"]
            rows.append(
                {"rule": rule, "attack": attack, "breaks_at": broken.min(), "up_to": part["attack_ratio"].max()}
            )
    columns = ["rule", "attack", "breaks_at", "up_to"]
    return pd.DataFrame(rows, columns=columns).astype({"breaks_at": float, "up_to": float})


def by_rule(group: Group) -> pd.DataFrame:
    """A row for every rule and ratio at which it met an attack, in percent.

    Columns:
      rule, attack_ratio: as in `by_attack`.
      attacks: how many it met.
      without: accuracy without attack.
      worst, worst_attack: the smallest accuracy over attacks, and the attack.
      complete: whether the rule met every attack that others met at this ratio; else its worst may be worse.
      diverged: whether a run of the worst attack did.
      mean: accuracy over attacks.
      impact, mean_impact: accuracy lost to the worst attack, and in the mean.
      success, success_attack: the largest over backdoors, and which.
      worst_tenth: the smallest over attacks and without.
      breaks_at, up_to: the smallest over attacks, see `breaking_points`.
      worst_low, worst_high, worst_seeds: the interval of `worst`, and how many seeds it has.
    """
    every = by_attack(group)
    found = every[(every["attack"] != NO_ATTACK) & every["accuracy"].notna()]
    breaking = breaking_points(group)
    rows = []
    for ratio, here in found.groupby("attack_ratio"):
        for rule in group.rules:
            part = here[here["rule"] == rule]
            if part.empty:
                continue
            worst = part.loc[part["accuracy"].idxmin()]
            row: dict[str, Any] = {"rule": rule, "attack_ratio": ratio, "attacks": part["attack"].nunique()}
            row |= {"without": worst["without"], "mean": part["accuracy"].mean()}
            row |= {"worst": worst["accuracy"], "worst_attack": worst["attack"]}
            row |= {"complete": set(part["attack"]) >= set(here["attack"]), "diverged": bool(worst["diverged"])}
            row |= {"impact": worst["impact"], "mean_impact": part["impact"].mean()}
            with_success = part.dropna(subset="success")
            most = None if with_success.empty else with_success.loc[with_success["success"].idxmax()]
            row |= {"success": math.nan if most is None else most["success"]}
            row |= {"success_attack": "" if most is None else most["attack"]}
            whole = every[(every["rule"] == rule) & (every["attack_ratio"] == ratio)]
            own = breaking[breaking["rule"] == rule]
            row |= {"worst_tenth": whole["worst_tenth"].min(), "breaks_at": own["breaks_at"].min()}
            row |= {f"worst_{name}": worst[name] for name in ("low", "high", "seeds")}
            rows.append({**row, "up_to": own["up_to"].max()})
    columns = ["rule", "attack_ratio", "attacks", "without", "worst", "worst_attack", "complete", "diverged", "mean"]
    columns += ["impact", "mean_impact"]
    columns += ["success", "success_attack", "worst_tenth", "breaks_at", "up_to"]
    return pd.DataFrame(rows, columns=[*columns, "worst_low", "worst_high", "worst_seeds"])


def has_something_to_compare(found: pd.DataFrame) -> bool:
    """Whether a rule of `by_rule` was run without attack too, or met two attacks."""
    return not found.empty and bool(found["without"].notna().any() or found["attacks"].max() > 1)


def tables(group: Group) -> list[Table]:
    """The measures of each rule, a table for each ratio; and the breaking points, rules by attacks.

    Nothing is made where a group has neither runs without attack nor two attacks: there is nothing to compare with.
    """
    found = by_rule(group)
    if not has_something_to_compare(found):
        return []
    made = [_of_ratio(group, part, float(ratio)) for ratio, part in found.groupby("attack_ratio")]
    breaking = _breaking(group)
    return made if breaking is None else [*made, breaking]


def _of_ratio(group: Group, found: pd.DataFrame, ratio: float) -> Table:
    """One row for each rule; columns that no run fills are left out."""
    columns: dict[str, list[Cell]] = {"rule": [Cell(rule) for rule in found["rule"]]}
    columns["No Attack"] = _ranked(found["without"].tolist())
    marks = [f"{'' if row.complete else '≤ '}{{}}{' †' if row.diverged else ''}" for row in found.itertuples()]
    columns["worst"] = _ranked(found["worst"].tolist(), marks=marks)
    columns["under"] = [Cell(attack) for attack in found["worst_attack"]]
    columns["lost to it"] = _ranked(found["impact"].tolist(), least=True)
    columns["lost in the mean"] = _ranked(found["mean_impact"].tolist(), least=True)
    if found["success"].notna().any():
        columns["success of a backdoor"] = _ranked(found["success"].tolist(), least=True)
        columns["which"] = [Cell(attack or "-") for attack in found["success_attack"]]
    if found["worst_tenth"].notna().any():
        columns["worst tenth"] = _ranked(found["worst_tenth"].tolist())
    if found["up_to"].notna().any():
        columns["breaks at"] = [Cell(_breaks(row.breaks_at, row.up_to)) for row in found.itertuples()]
    notes = ["Lost: accuracy without attack less that under attack, in percentage points."]
    if not found["complete"].all():
        notes.append("≤: the rule has not met every attack that others met.")
    if found["diverged"].any():
        notes.append("†: a run diverged, and counts as 0.")
    if "worst tenth" in columns:
        notes.append(
            "Worst tenth: of the benign clients, on their own examples after the last round; the smallest over attacks."
        )
    if "breaks at" in columns:
        notes.append(
            f"Breaks at: the smallest share of malicious clients with {100 * group.lost:g} % of the accuracy lost."
        )
    notes += refused_note(group, ratio)
    caption = f"{group.title}: measures of each rule in %, {100 * ratio:g} % malicious"
    return Table(caption, tuple(columns), tuple(zip(*columns.values(), strict=True)), notes=tuple(notes))


def _breaking(group: Group) -> Table | None:
    """Breaking points, rules by attacks; None where no rule met an attack at two ratios."""
    found = breaking_points(group)
    if found.empty:
        return None
    rules = [rule for rule in group.rules if rule in set(found["rule"])]
    attacks = [attack for attack in group.attacks if attack in set(found["attack"])]
    grid = {(row.rule, row.attack): _breaks(row.breaks_at, row.up_to) for row in found.itertuples()}
    rows = tuple((Cell(rule), *(Cell(grid.get((rule, attack), "-")) for attack in attacks)) for rule in rules)
    note = f"The smallest share of malicious clients with {100 * group.lost:g} % of the accuracy without attack lost."
    return Table(f"{group.title}: breaking points", ("rule", *attacks), rows, notes=(note,))


def _breaks(ratio: float, up_to: float) -> str:
    """`20 %`, or `none up to 30 %`."""
    if math.isnan(up_to):
        return "-"
    return f"none up to {100 * up_to:g} %" if math.isnan(ratio) else f"{100 * ratio:g} %"


def _ranked(values: list[float], *, least: bool = False, marks: list[str] | None = None) -> list[Cell]:
    """Cells with the best value bold and the second underlined. Args: least: whether the smallest is the best."""
    shown = [None if math.isnan(value) else round(value, 2) + 0.0 for value in values]
    best = sorted({value for value in shown if value is not None}, reverse=not least)[:2]
    ranked = sum(value is not None for value in shown) > 1
    made = []
    for value, mark in zip(shown, marks or ["{}"] * len(shown), strict=True):
        rank = best.index(value) + 1 if ranked and value in best else 0
        made.append(Cell("-" if value is None else mark.format(f"{value:.2f}"), rank))
    return made
