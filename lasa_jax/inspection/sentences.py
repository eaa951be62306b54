"""What a picture of a round shows, as a sentence that is computed from its numbers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from lasa_jax.aggregators import FilterDiagnostics
from lasa_jax.inspection import causes
from lasa_jax.inspection.filtering import layer_rows, rates
from lasa_jax.inspection.rounds import Round, layers


def of_filtering(
    info: FilterDiagnostics, saved: Round, *, magnitude_radius: float = 1.0, direction_radius: float = 1.0
) -> str:
    """Of `drawing.draw_filtering`: how much of either kind was dropped, by what, and where the filter did worst."""
    cause = causes.of(info, saved, magnitude_radius=magnitude_radius, direction_radius=direction_radius)
    told = [
        f"{_share(cause[:, mask] != 0)} of the {who} cells (client and layer) were dropped{_why(cause[:, mask])}"
        for who, mask in (("malicious", saved.malicious), ("benign", ~saved.malicious))
        if mask.any()
    ]
    sentence = f"{'; '.join(told)}."
    if saved.malicious.any():
        by_layer = (cause[:, saved.malicious] != 0).mean(axis=1)
        worst = int(by_layer.argmin())
        if by_layer[worst] < 1:
            name = list(layers(info.weight))[worst].removeprefix("params/")
            sentence += f" Most malicious clients got through in {name}: {100 * (1 - by_layer[worst]):.0f} % of them."
        else:
            sentence += " No malicious client got through in any layer."
    return sentence


def of_scores(
    info: FilterDiagnostics, saved: Round, *, magnitude_radius: float = 1.0, direction_radius: float = 1.0
) -> str:
    """Of `drawing.draw_scores`: which of the two scores tells malicious clients from benign ones better."""
    if not saved.malicious.any() or saved.malicious.all():
        return "All clients are of one kind: there is nothing to tell apart."
    told = {}
    parts = {"norm": (info.magnitude_score, magnitude_radius), "sign": (info.direction_score, direction_radius)}
    for name, (scores, radius) in parts.items():
        out = ~(layer_rows(scores) < radius) & np.isfinite(layer_rows(scores))
        told[name] = out[:, saved.malicious].mean() - out[:, ~saved.malicious].mean()
    better = max(told, key=lambda name: told[name])
    other = "sign" if better == "norm" else "norm"
    return (
        f"The {better} tells more: malicious cells reach its radius more often than benign ones by "
        f"{100 * told[better]:.0f} percentage points, for the {other} it is {100 * told[other]:.0f}."
    )


def of_rates(frame: pd.DataFrame) -> str:
    """Of one panel of `drawing.draw_rates`: where the two shares together are largest.

    Args:
      frame: from `filtering.rates_against`.
    """
    setting = str(frame.columns[0])
    both = frame["malicious_filtered"].fillna(1.0) + frame["benign_kept"].fillna(1.0)
    best = frame.loc[both.idxmax()]
    return (
        f"The {setting.replace('_', ' ')} that tells the two kinds apart best here is {best[setting]:g}: "
        f"{100 * best['malicious_filtered']:.0f} % of the malicious cells dropped, {100 * best['benign_kept']:.0f} % of the "
        "benign ones kept."
    )


def of_weights(infos: Mapping[str, Any], saved: Round) -> str:
    """Of `drawing.draw_weights`: the share of the result that each rule left to malicious clients."""
    left = {}
    for name, info in infos.items():
        weight = layer_rows(info.weight)
        whole = np.maximum(weight.sum(axis=1), np.finfo(np.float32).tiny)
        left[name] = float((weight[:, saved.malicious].sum(axis=1) / whole).mean())
    ordered = sorted(left, key=lambda name: left[name])
    told = ", ".join(f"{name} {100 * left[name]:.0f} %" for name in ordered)
    return f"Weight that malicious clients ({_share(saved.malicious)} of all) had, in the mean over layers: {told}."


def of_rules(frame: pd.DataFrame, name: str = "lasa") -> str:
    """Of `outcomes.of_rules`: the best rule and the place of one of them.

    Args:
      frame: with `rule`, `accuracy` and `error`.
      name: of the rule whose place is told.
    """
    met = frame.dropna(subset="accuracy").sort_values("accuracy", ascending=False, kind="stable")
    if met.empty:
        return "No rule has an accuracy after this round: all refused it."
    best, own = met.iloc[0], met[met["rule"] == name]
    sentence = f"After this one round the model is best under {best['rule']}: {100 * best['accuracy']:.1f} %."
    if not own.empty and best["rule"] != name:
        place = int((met["accuracy"] > own["accuracy"].iloc[0]).sum()) + 1
        sentence += f" {name} is number {place} of {len(met)} with {100 * own['accuracy'].iloc[0]:.1f} %."
    low = met["accuracy"].iloc[-1]
    spread = 100 * (best["accuracy"] - low)
    near = met.dropna(subset="error")  # NaN: of an update that is not finite
    if not near.empty:
        nearest, own = near.loc[near["error"].idxmin()], near[near["rule"] == name]
        sentence += f" Nearest to the mean of the benign updates is {nearest['rule']}"
        if not own.empty and nearest["rule"] != name:
            place = int((near["error"] < own["error"].iloc[0]).sum()) + 1
            sentence += f"; {name} is number {place}"
        sentence += "."
    return f"{sentence} All rules lie within {spread:.1f} percentage points: one round is not a run."


def of_client(followed: pd.DataFrame) -> str:
    """Of `following.draw`: how often a client was there and in which layers it was dropped.

    Args:
      followed: from `following.follow`.
    """
    first = followed.iloc[0]
    kind = "malicious" if first["malicious"] else "benign"
    rounds = followed["round"].nunique()
    dropped = (followed["cause"] != 0).groupby(followed["layer"], observed=True).mean()
    worst = dropped.idxmax()
    return (
        f"Client {first['client']} is {kind} and took part in {rounds} rounds. It was dropped in "
        f"{_share(followed['cause'] != 0)} of its cells{_why(followed['cause'].to_numpy())}; most often in "
        f"{str(worst).removeprefix('params/')}: {100 * dropped[worst]:.0f} % of its rounds."
    )


def of_difference(info: Any, again: Any, saved: Round, what: str) -> str:
    """What a change of the rule did to the two shares of `filtering.rates`. Args: what: was changed, as "a radius of 2"."""
    before, after = rates(info, saved), rates(again, saved)
    told = [
        f"{name.replace('_', ' ')} {100 * before[name]:.0f} % before, {100 * after[name]:.0f} % now" for name in before
    ]
    return f"With {what}: {'; '.join(told)}."


def _share(mask: Any) -> str:
    return f"{100 * float(np.mean(mask)):.0f} %"


def _why(cause: np.ndarray) -> str:
    """` (sign 80 %, norm 20 %)` of the cells that were dropped; empty if none was."""
    dropped = cause[cause != 0]
    if not dropped.size:
        return ""
    found = np.bincount(dropped, minlength=len(causes.CAUSES)) / dropped.size
    told = sorted(np.flatnonzero(found), key=lambda place: -found[place])
    return f" ({', '.join(f'{causes.CAUSES[place]} {100 * found[place]:.0f} %' for place in told)})"
