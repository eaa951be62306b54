"""Runs that may stand in one table, and the names of their rows and columns.

Runs differ in their rule and attack with their parameters, in the attack ratio and in the seed. Where they differ in
anything else (data, rounds, clients), their accuracies do not compare: they are groups, each with tables of its own.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lasa_jax import methods
from lasa_jax.config import NOT_COMPARED
from lasa_jax.report.results import Results

# As the paper writes them and in its order; what is not here comes after, by its own name, and LASA last.
RULES = {
    "fedavg": "FedAvg",
    "trimmed_mean": "TrMean",
    "median": "Median",
    "geometric_median": "GeoMed",
    "krum": "Krum",
    "multi_krum": "Multi-Krum",
    "bulyan": "Bulyan",
    "dnc": "DnC",
    "signguard": "SignGuard",
    "sparsefed": "SparseFed",
}
ATTACKS = {
    "none": "No Attack",
    "random": "Random",
    "noise": "Noise",
    "sign_flip": "Sign-flip",
    "label_flip": "Label-flip",
    "tailored_trmean": "TailoredTrmean",
    "tailored_krum": "TailoredKrum",
    "min_max": "Min-Max",
    "min_sum": "Min-Sum",
    "min_sum_stealthy": "Min-Sum (stealthy)",
    "lie": "Lie",
    "alie": "ALIE",
    "ipm": "IPM",
    "byzmean": "ByzMean",
    "rop": "ROP",
    "poisonedfl": "PoisonedFL",
    "mpaf": "MPAF",
    "hybrid_sparse": "Hybrid sparse",
    "lasa_attack": "LASA attack",
    "badnets": "BadNets",
    "dba": "DBA",
    "neurotoxin": "Neurotoxin",
    "pgd": "PGD backdoor",
}
_LAST_RULE = {"lasa": "LASA"}

LOST = 0.1  # where nothing else is asked for, a rule breaks at a tenth

# Settings that come with a method. The clip is set by rule, see docs/fidelity.md, section 1.1.
_WITH_THE_RULE = ("client.clip_norm",)
_TITLE = ("dataset", "model", "rounds", "fidelity")
_FIRST = ("dataset", "fidelity", "rounds", "model")


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that compare.

    title: what all of them have in common. folder: a name for its files, empty if there is no other group.
    results: `runs` have the columns `rule` and `attack` beside their fields: the names that tables show, with the parameters
      that tell variants of one method apart. rules, attacks: those names in order.
    variants: for each name in `rules` its rule and the parameters in which it differs from the most central variant.
    lost: the share of its accuracy without attack that a rule has lost at its breaking point, see `report.measures`.
    refused: rule, attack and ratio of the points that no machine could run, see `report.refused`.
    """

    title: str
    folder: str
    results: Results
    rules: tuple[str, ...]
    attacks: tuple[str, ...]
    variants: Mapping[str, tuple[str, Mapping[str, Any]]]
    lost: float = LOST
    refused: tuple[tuple[str, str, float], ...] = ()

    @property
    def runs(self) -> pd.DataFrame:
        """The runs, a row each."""
        return self.results.runs

    @property
    def ratio(self) -> float:
        """The ratio of what is drawn at one attack ratio: with the most pairs of a rule and an attack, then the largest."""
        pairs = self.runs.groupby("attack_ratio")[["rule", "attack"]].apply(lambda runs: len(runs.drop_duplicates()))
        return float(max(pairs.index, key=lambda ratio: (pairs[ratio], ratio)))


def split(results: Results) -> tuple[list[Group], str | None]:
    """The groups of the runs in the order of their settings, and a line with the fields that tell them apart."""
    shared = [field for field in results.fields if field not in NOT_COMPARED and not of_a_method(field)]
    texts = results.runs[shared].map(str)
    differing: list[str] = []  # without those that follow from the others, as the model from the dataset
    for field in sorted(shared, key=lambda field: (_FIRST.index(field) if field in _FIRST else len(_FIRST), field)):
        counts = texts.groupby(differing)[field].nunique() if differing else texts[[field]].nunique()
        if counts.max() > 1:
            differing.append(field)
    if not differing:
        return [_group(results, {}, 1, shared)], None
    groups = []
    for number, (values, part) in enumerate(texts.groupby(differing), 1):
        own = dict(zip(differing, values, strict=True))
        groups.append(_group(results.only(results.runs.loc[part.index]), own, number, shared))
    found = []
    for field in differing:
        counts = texts[field].value_counts().sort_index()
        found.append(f"{field} is " + ", ".join(f"{value} in {count}" for value, count in counts.items()))
    example = f"--where={differing[0]}={groups[0].runs.iloc[0][differing[0]]}"
    return (
        groups,
        f"runs that do not compare: {'; '.join(found)}: a report for each of {len(groups)} groups, {example} takes one",
    )


def of_a_method(field: str, kind: str = "") -> bool:
    """Whether a setting comes with the rule (`kind` "aggregator"), with the "attack", or with any of them."""
    of_rule = field.startswith(("aggregator.", "preaggregators.")) or field in _WITH_THE_RULE
    of_attack = field.startswith("attack.")
    return {"aggregator": of_rule, "attack": of_attack}.get(kind, of_rule or of_attack)


def _group(results: Results, own: Mapping[str, str], number: int, shared: Sequence[str]) -> Group:
    """A group of the runs, where `own` tells it apart from the others, and its runs are alike in the `shared` fields."""
    runs = results.runs.copy()
    parameters = [field for field in results.fields if not field.endswith(".name")]
    of_rules = [field for field in parameters if of_a_method(field, "aggregator")]
    of_attacks = [field for field in parameters if of_a_method(field, "attack")]
    rules, runs["rule"] = _label(runs, "aggregator.name", of_rules, {**RULES, **_LAST_RULE})
    attacks, runs["attack"] = _label(runs, "attack.name", of_attacks, ATTACKS)
    first = runs.iloc[0]
    shown = {field: methods.label(str(first[field])) for field in _TITLE}
    words = [f"{shown['rounds']} rounds" if field == "rounds" else shown[field] for field in _TITLE[:-1]]
    words += [f"fidelity {first['fidelity']}"]
    words += [f"{field} {value}" for field, value in own.items() if field not in _TITLE]
    name = re.sub(r"[^\w.=,-]", "_", ",".join(f"{field}={value}" for field, value in own.items()))[:100]
    return Group(
        title=", ".join(words),
        folder=f"{number}_{name}" if own else "",
        results=results.only(runs),
        rules=tuple(rules),
        attacks=tuple(attacks),
        variants=rules,
        refused=_refused(results, first, shared, attacks),
    )


def _refused(
    results: Results, first: pd.Series, shared: Sequence[str], attacks: Mapping[str, tuple[str, Any]]
) -> tuple[tuple[str, str, float], ...]:
    """The refused points of a group, by the names that its tables show.

    Args:
      results: with the points.
      first: a run of the group.
      shared: the fields in which the runs of a group are alike.
      attacks: the labels of the group's attacks, with their methods.
    """
    cells: dict[tuple[str, str, float], None] = {}  # a set that keeps its order
    for point in results.refused:
        if all(_same(point.get(field), first[field]) for field in shared):
            rule, attack = point["aggregator.name"], point["attack.name"]
            labels = [label for label, (method, _) in attacks.items() if method == attack]
            shown = {**RULES, **_LAST_RULE}.get(rule, methods.label(rule))
            for label in labels if len(labels) == 1 else [ATTACKS.get(attack, methods.label(attack))]:
                cells[shown, label, float(point["attack_ratio"])] = None
    return tuple(cells)


def _same(value: Any, other: Any) -> bool:
    """Whether two settings are alike, where None and what is not there are."""
    return (pd.isna(value) and pd.isna(other)) or str(value) == str(other)


def _label(
    runs: pd.DataFrame, field: str, parameters: Sequence[str], names: Mapping[str, str]
) -> tuple[dict[str, tuple[str, dict[str, Any]]], pd.Series]:
    """The labels in order, each with its method and what is special about the variant, and the label of every run.

    Of a method with several variants the central one, with the fewest differences to the others, has the method's name
    alone, and the others add their differences to it: `LASA (sparsity_level 0.5)`. Where several are as central, none is
    alone, and each adds what any of them differ in.
    """
    labels: dict[str, tuple[str, dict[str, Any]]] = {}
    column = pd.Series("", index=runs.index, dtype=object)
    known = list(names)
    for method in sorted(set(runs[field]), key=lambda name: _place(name, known)):
        own = runs[runs[field] == method]
        keys = own[list(parameters)].map(lambda value: "unset" if pd.isna(value) else value)
        variants = [
            dict(zip(parameters, values, strict=True)) for values in keys.drop_duplicates().itertuples(index=False)
        ]
        variants.sort(key=lambda variant: [_sortable(value) for value in variant.values()])
        apart = [sum(len(_differences(one, other)) for other in variants) for one in variants]
        plain = [one.get("preaggregators.names") in (None, "") for one in variants]
        if any(plain):  # a rule without steps before it is the one that others are variants of
            apart = [count if alone else max(apart) + 1 for count, alone in zip(apart, plain, strict=True)]
        centre = variants[apart.index(min(apart))]
        varied = {name for variant in variants for name in _differences(centre, variant)}
        alone = apart.count(min(apart)) == 1
        variants.sort(key=lambda variant: [_sortable(item) for item in _differences(centre, variant).items()])
        for variant in variants:
            special = _differences(centre, variant)
            told = special if alone else {name: variant[name] for name in sorted(varied)}
            short = ", ".join(
                _said(name, value) for name, value in told.items() if not _comes_with_a_step(name, variants)
            )
            label = names.get(method, methods.label(method)) + (f" ({short})" if short else "")
            labels[label] = (method, special)
            column[own.index[(keys == pd.Series(variant)).all(axis=1)]] = label
    return labels, column


def _comes_with_a_step(field: str, variants: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a setting is of a pre-aggregator that not all variants have: its name says enough."""
    is_of_step = field.startswith("preaggregators.") and field != "preaggregators.names"
    return is_of_step and any(variant[field] == "unset" for variant in variants)


def _said(field: str, value: Any) -> str:
    """`sparsity_level 0.5`; of pre-aggregators `after clip_to_norm`."""
    if field == "preaggregators.names":
        return f"after {methods.label(value).replace(',', ', ')}" if value else "alone"
    return f"{field.rpartition('.')[2]} {_text(value)}"


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    """Known names in their order, then the others, then LASA."""
    return (len(known) + 1 if name in _LAST_RULE else known.index(name) if name in known else len(known)), name


def _differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in which two variants differ, with the values of the other."""
    return {field: value for field, value in other.items() if value != one[field]}


def _sortable(value: Any) -> tuple:
    """Numbers by size, then text."""
    if isinstance(value, tuple):
        return tuple(_sortable(item) for item in value)
    return (0, value, "") if isinstance(value, int | float) else (1, 0, str(value))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
