"""What a page says of each rule: worst attack, accuracy lost, ranks, detection, seconds, and intervals over seeds."""

import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from lasa_jax.leaderboard.declare import BASELINE, NO_ATTACK

_CONFIDENCE = 0.95


def usual_clients(rows: pd.DataFrame) -> int:
    """How many clients a round has for most runs."""
    return int(rows["clients_per_round"].mode().iloc[0])


def own_runs(rows: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The runs of a rule at the number of clients at which it met most: FedAvg is there for rules with fewer, too."""
    own = rows[rows["rule"] == rule]
    return own if own.empty else own[own["clients_per_round"] == usual_clients(own)]


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over seeds in percent, rules by attacks (`none` too); NaN where a rule has fewer seeds than others.

    Only rules with as many clients a round as most, which compare.

    Args:
      rows: of one partition.
    """
    usual = rows[rows["clients_per_round"] == usual_clients(rows)]
    seeds = usual["seed"].nunique()
    by = usual.groupby(["rule", "attack"], sort=False)["accuracy"]
    means = (100 * by.mean()).where(by.count() == seeds)
    return means.unstack("attack")


def mean_ranks(table: pd.DataFrame) -> pd.Series:
    """The mean over attacks of a rule's rank by accuracy, 1 being best, equal ones sharing theirs; rules without a gap only.

    Args:
      table: rules by situations, as `accuracies`.
    """
    complete = table.dropna()
    return complete.rank(ascending=False, method="average").mean(axis=1)


def by_rule(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each rule, in percent, the largest worst accuracy first; NaN where runs do not say.

    Args:
      rows: of one partition, see `leaderboard.rows`.

    Columns:
      rule, parameters, clients: as in the rows.
      without: accuracy without attack. without_less, without_half: the same less FedAvg's without attack, paired by seed,
        and half of its 95 % interval.
      worst, worst_attack: the smallest mean over seeds over attacks, and the attack.
      worst_less, worst_half: the worst less FedAvg's without attack, and half of its interval.
      impact: `without` less `worst`.
      complete: whether it met all attacks with all seeds; else its worst may be worse.
      diverged: whether a run of the worst attack did.
      rank: see `mean_ranks`; NaN for a rule with other clients a round, or a gap.
      malicious_filtered, benign_kept: mean over its runs under attack.
      seconds: of a round, of its fastest run, which whatever else ran has slowed least.
    """
    ranks = mean_ranks(accuracies(rows))
    attacks, seeds = set(rows["attack"]) - {NO_ATTACK}, rows["seed"].nunique()
    made = []
    for rule in rows["rule"].unique():
        own = own_runs(rows, rule)
        clients = usual_clients(own)
        clean, attacked = own[own["attack"] == NO_ATTACK], own[own["attack"] != NO_ATTACK]
        if attacked.empty:
            continue  # FedAvg that others are paired with
        means = attacked.groupby("attack", sort=False)["accuracy"].mean()
        under = str(means.idxmin())
        worst = attacked[attacked["attack"] == under]
        base = rows[(rows["rule"] == BASELINE) & (rows["attack"] == NO_ATTACK) & (rows["clients_per_round"] == clients)]
        row: dict[str, Any] = {"rule": rule, "parameters": own["parameters"].iloc[0], "clients": clients}
        row |= {"without": 100 * clean["accuracy"].mean(), "worst": 100 * means.min(), "worst_attack": under}
        row["without_less"], row["without_half"] = paired(clean, base)
        row["worst_less"], row["worst_half"] = paired(worst, base)
        row["impact"] = row["without"] - row["worst"]
        counts = attacked.groupby("attack")["accuracy"].count()
        row["complete"] = set(counts.index) == attacks and bool((counts == seeds).all())
        row["diverged"] = bool((worst["status"] == "diverged").any())
        row["rank"] = float(ranks.get(rule, math.nan)) if clients == usual_clients(rows) else math.nan
        row |= {name: 100 * attacked[name].mean() for name in ("malicious_filtered", "benign_kept")}
        made.append({**row, "seconds": own["seconds_per_round"].min()})
    frame = pd.DataFrame(made)
    return frame if frame.empty else frame.sort_values("worst", ascending=False, kind="stable", ignore_index=True)


def paired(runs: pd.DataFrame, base: pd.DataFrame) -> tuple[float, float]:
    """Mean of the differences by seed in percentage points, and half of the interval that Student's t gives it.

        half = t(0.975, n - 1) * s / sqrt(n),   s the standard deviation of n differences

    Args:
      runs: of one situation, one for each seed.
      base: the runs that they are paired with by seed.

    Returns:
      NaN for what n is too small for: 0 for both, 1 for the interval.
    """
    both = runs.set_index("seed")["accuracy"] - base.set_index("seed")["accuracy"]
    differences = 100 * both.dropna().to_numpy(float)
    n = len(differences)
    if n == 0:
        return math.nan, math.nan
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * np.std(differences, ddof=1) / math.sqrt(n) if n > 1 else math.nan
    return float(np.mean(differences)), float(half)
