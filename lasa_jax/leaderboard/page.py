"""The page of a benchmark, made of its CSVs alone: a table for each partition, the ranks, and what it does not show."""

import math
import shlex
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lasa_jax.inspection import rendering
from lasa_jax.inspection.rendering import Cell, Table
from lasa_jax.leaderboard import ranks, standing
from lasa_jax.leaderboard.declare import BASELINE, NO_ATTACK

_WIDTH = 120

_READING = (
    "*No attack*: test accuracy in % after the last round, mean over seeds.",
    "*Beside FedAvg*: the same less FedAvg's accuracy without attack, paired by seed, with Student's 95 % interval.",
    "*Worst*: the smallest mean over seeds, over attacks, and *under* which attack; ≤: not all runs are there; †: a run "
    "of it diverged, and counts as 0.",
    "*Lost*: no attack less worst. *Rank*: mean over all situations, no attack too; 1 is best.",
    "*Filtered*, *kept*: malicious and benign clients with weight 0 and with more, in % over rounds and layers, under "
    "attack.",
    "*Seconds*: of a round, training and evaluation included, of the rule's fastest run.",
)


def files(rows: pd.DataFrame, name: str, config: str) -> tuple[dict[str, str | bytes], list[str]]:
    """`{"NAME.md": ..., "NAME_ranks.png": ...}`, and a line for each picture that has no data.

    Args:
      rows: all of the benchmark, see `leaderboard.rows.read`.
      name: of the benchmark.
      config: what the command is given for it, `FILE.py:EDITION` or a name of the package's.
    """
    tables = dict(list(rows.groupby("partition", sort=False)))
    together = pd.concat({key: standing.accuracies(part) for key, part in tables.items()}, axis=1)
    drawn = ranks.of_rules(standing.mean_ranks(together), together.shape[1], f"{name}: mean rank by accuracy")
    made: dict[str, str | bytes] = {}
    missing = [f"not drawn: {drawn}"] if isinstance(drawn, str) else []
    if not isinstance(drawn, str):
        made |= rendering.pictures(f"{name}_ranks", drawn)
    made[f"{name}.md"] = "\n".join(
        [
            f"# Benchmark of rules: {name}",
            "",
            _wrapped(_about(rows)),
            "",
            *(f"- {_wrapped(line, indent=2)}" for line in _READING),
            "",
            *(f"## {key}\n\n{rendering.as_markdown(of_partition(part, str(key)))}" for key, part in tables.items()),
            *([] if isinstance(drawn, str) else _of_ranks(name)),
            "## What this does not show",
            "",
            *(f"- {_wrapped(line, indent=2)}" for line in _not_shown(rows)),
            "",
            "## Your own rule",
            "",
            _wrapped(
                f"One command adds a row, and runs nothing but that rule: `lasa-jax benchmark {shlex.quote(config)} "
                "--rule=my_rules:norm_gate --workdir=DIR --beside=FOLDER`, where FOLDER is the one that this page is in. "
                f"The CSVs in `{name}/` hold every run; `--page` makes the page of them again."
            ),
            "",
        ]
    )
    return made, missing


def of_partition(rows: pd.DataFrame, partition: str) -> Table:
    """The table of one partition, a row for each rule."""
    found = standing.by_rule(rows)
    headings = ("rule", "no attack", "beside FedAvg", "worst", "under", "worst beside FedAvg", "lost", "rank")
    lines = []
    for row in found.itertuples():
        mark = "" if row.complete else "≤ "
        texts = [_rule(row, rows), _number(row.without), _interval(row.without_less, row.without_half)]
        texts += [f"{mark}{_number(row.worst)}{' †' if row.diverged else ''}", row.worst_attack]
        texts += [_interval(row.worst_less, row.worst_half), _number(row.impact), _number(row.rank, 1)]
        texts += [_number(row.malicious_filtered, 0), _number(row.benign_kept, 0), _number(row.seconds, 3)]
        lines.append(tuple(map(Cell, texts)))
    seeds = rows["seed"].nunique()
    notes = ("Of one seed there is no interval.",) if seeds == 1 else ()
    return Table(
        f"{partition}: test accuracy in %, {_several(seeds, 'seed')}",
        (*headings, "filtered", "kept", "seconds"),
        tuple(lines),
        notes=notes,
    )


def _rule(row: Any, rows: pd.DataFrame) -> str:
    """Its name, with chosen parameters and other clients a round."""
    special = [row.parameters] if row.parameters else []
    if row.clients != standing.usual_clients(rows):
        special.append(f"{row.clients} clients")
    return f"{row.rule} ({', '.join(special)})" if special else str(row.rule)


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def _interval(less: float, half: float) -> str:
    if math.isnan(less):
        return "-"
    return f"{round(less, 2) + 0.0:+.2f}" + ("" if math.isnan(half) else f" ± {half:.2f}")


def _about(rows: pd.DataFrame) -> str:
    """What was run, where."""
    first = rows.iloc[0]
    attacks = [name for name in rows["attack"].unique() if name != NO_ATTACK]
    return (
        f"{rows['rule'].nunique()} rules on {first['dataset']}: {first['rounds']} rounds, "
        f"{standing.usual_clients(rows)} clients a round, {100 * first['attack_ratio']:g} % malicious, "
        f"{_several(rows['seed'].nunique(), 'seed')}, {', '.join(map(str, rows['partition'].unique()))}. "
        f"Attacks: {', '.join(f'`{name}`' for name in attacks)}. "
        f"{len(rows)} runs of lasa_jax {_all(rows['version'])} on {_all(rows['device'])}."
    )


def _several(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _all(values: pd.Series) -> str:
    return ", ".join(sorted(set(values)))


def _of_ranks(name: str) -> list[str]:
    """The picture, and how it is read."""
    said = (
        "A situation is an attack (or none) in a partition. The bar is half the critical difference of Nemenyi's test to "
        "each side of the mean rank: two rules whose bars overlap are not told apart at 5 %. In grey: those that are not "
        "told apart from the first. Situations share data and seeds, so that the test is less sure than its level."
    )
    return ["## Ranks", "", f"![mean ranks of the rules]({name}_ranks.png)", "", _wrapped(said), ""]


def _not_shown(rows: pd.DataFrame) -> Sequence[str]:
    """Limits of the numbers above."""
    seeds, tuned = rows["seed"].nunique(), (rows["parameters"] != "").any()
    defaults = "Other parameters than the defaults, of rules and of attacks; edition `tuned` chooses those of rules."
    chosen = (
        "Other parameters: those of rules were chosen on held-out training examples, from a few candidates each; attacks "
        "have their defaults."
    )
    chance = "Chance: one seed, and no interval."
    if seeds > 1:
        chance = (
            f"Chance beyond {seeds} seeds: an interval says how far seeds differ, not other data or attacks, and which "
            f"attack is worst is read off the same runs{'; with so few it is wide' if seeds < 4 else ''}."
        )
    lines = [
        f"Other data, models, numbers of clients or ratios: one dataset ({rows.iloc[0]['dataset']}), one model, "
        f"{100 * rows.iloc[0]['attack_ratio']:g} % malicious. A rule that is first here may not be elsewhere.",
        "Attacks that were not run. One that knows the rule can take down a rule that stands here; edition `adaptive` has "
        "attacks that search against each rule.",
        chosen if tuned else defaults,
        chance,
        "Servers that misjudge: every rule that takes the number of malicious clients is told their share of the "
        "population. FLTrust trains on examples that the others do not have.",
        "Seconds elsewhere. They are of a small model on this device, and mostly training.",
    ]
    few = sorted(set(rows["clients_per_round"]) - {standing.usual_clients(rows)})
    if few:
        lines.append(
            f"Rules with {', '.join(map(str, few))} clients a round beside the others: they are paired with {BASELINE} at "
            "as many, and have no rank."
        )
    return lines


def _wrapped(text: str, indent: int = 0) -> str:
    """Lines of Markdown that are not too long."""
    return textwrap.fill(
        text, _WIDTH - indent, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
