"""Tables as in the paper: rules by attacks, LASA's sparsity levels, LASA's radii; and who was filtered."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lasa_jax.config import UNIDENTIFYING
from lasa_jax.inspection.rendering import Cell, Table
from lasa_jax.report.groups import ATTACKS, Group, of_a_method
from lasa_jax.report.refused import TOO_MANY

NO_ATTACK = ATTACKS["none"]
_RADII = ("aggregator.direction_radius", "aggregator.magnitude_radius")
_LEVEL = "aggregator.sparsity_level"
_FEWEST = 3  # sparsity levels or pairs of radii that make a table of their own


def cells(group: Group, accuracy: str = "best_test_accuracy") -> pd.DataFrame:
    """A row for every rule, attack and ratio of a group: best test accuracy over its seeds, in percent.

    Args:
      group: of runs.
      accuracy: the column of `Results.runs` that is taken, for datasets whose accuracy is measured in two ways.

    Columns: `rule`, `attack`, `attack_ratio`, `mean`, `std` (of the sample, n - 1; NaN for one seed), `min`, `max`, `seeds`,
    `diverged` (how many of them).
    """
    runs = group.runs.assign(
        accuracy=100 * group.runs[accuracy], diverged=(group.runs["status"] == "diverged").astype(int)
    )
    by = runs.groupby(["rule", "attack", "attack_ratio"], sort=False)
    found = by["accuracy"].agg(["mean", "std", "min", "max"])
    found["seeds"], found["diverged"] = by.size(), by["diverged"].sum()
    found = found.reset_index()
    order = [found["rule"].map(group.rules.index), found["attack"].map(group.attacks.index), found["attack_ratio"]]
    return found.loc[pd.concat(order, axis=1).sort_values(by=["rule", "attack", "attack_ratio"]).index].reset_index(
        drop=True
    )


def tables(group: Group) -> list[Table]:
    """The tables that the axes of a group make.

    Rules by attacks for every attack ratio; LASA's sparsity levels or pairs of radii where there are three, and then without
    the first kind if nothing else would stand in it.
    """
    found = cells(group)
    main, special = [], []
    for ratio, part in found.groupby("attack_ratio"):
        of_lasa, covered = _of_lasa(group, part, float(ratio))
        if not covered >= set(zip(part["rule"], part["attack"], strict=True)):
            main.append(_main(group, part, float(ratio)))
        special += of_lasa
    return main + special + success_tables(group)


def has_backdoors(group: Group) -> bool:
    """Whether the success of an attack with a trigger was measured in one of the runs."""
    return bool(group.runs["final_attack_success"].notna().any())


def success_tables(group: Group) -> list[Table]:
    """For each attack ratio how often the triggers of backdoors work after the last round, rules by attacks."""
    made = []
    measured = cells(group, "final_attack_success").dropna(subset="mean")
    for ratio, found in measured.groupby("attack_ratio"):
        rules = [rule for rule in group.rules if rule in set(found["rule"])]
        attacks = [attack for attack in group.attacks if attack in set(found["attack"])]
        grid = {(row.rule, row.attack): row for row in found.itertuples()}
        columns = []
        for attack in attacks:
            those = [grid.get((rule, attack)) for rule in rules]
            places = _ranks([None if cell is None else -cell.mean for cell in those])
            columns.append(
                [Cell(_accuracy(c, found["seeds"].max()), rank) for c, rank in zip(those, places, strict=True)]
            )
        rows = tuple((Cell(rule), *row) for rule, row in zip(rules, zip(*columns, strict=True), strict=True))
        caption = f"{group.title}: success of backdoors in %, {100 * float(ratio):g} % malicious"
        what = "Share of the test images of other classes that the trigger turns into the target, after the last round."
        made.append(Table(caption, ("rule", *attacks), rows, notes=(what, *_notes(group, found, "column", "smallest"))))
    return made


def cells_with_settings(group: Group) -> pd.DataFrame:
    """`cells`, and in further columns the group, the rule by its name in a config, and what its variants differ in.

    Where there are backdoors, `attack_success` is their mean success after the last round, in percent.
    """
    found = cells(group)
    if has_backdoors(group):
        keys = ["rule", "attack", "attack_ratio"]
        success = cells(group, "final_attack_success")[[*keys, "mean"]].rename(columns={"mean": "attack_success"})
        found = found.merge(success, on=keys, how="left", sort=False)
    settings = sorted({field for _, special in group.variants.values() for field in special})
    names = pd.DataFrame(
        [{"rule": label, "aggregator.name": group.variants[label][0]} for label in group.rules], dtype=object
    )
    found = found.merge(names, on="rule", how="left", sort=False)
    for field in settings:
        first = group.runs.groupby("rule")[field].first()
        found[field] = found["rule"].map(first)
    found.insert(0, "group", group.title)
    return found


def _main(group: Group, found: pd.DataFrame, ratio: float) -> Table:
    """Rules by attacks with the average over the attacks, as Table 1 of the paper."""
    refused = [(rule, attack) for rule, attack, at in group.refused if at == ratio]
    rules = [rule for rule in group.rules if rule in set(found["rule"])]
    rules += [rule for rule in dict.fromkeys(rule for rule, _ in refused) if rule not in rules]
    attacks = [attack for attack in group.attacks if attack in set(found["attack"])]
    grid = {(row.rule, row.attack): row for row in found.itertuples()}
    real = [attack for attack in attacks if attack != NO_ATTACK]
    columns = [[grid.get((rule, attack)) for rule in rules] for attack in attacks]
    texts = [_column(column, found) for column in columns]
    for attack, met, shown in zip(attacks, columns, texts, strict=True):
        for place, (rule, value) in enumerate(zip(rules, met, strict=True)):
            if value is None and (rule, attack) in refused:
                shown[place] = Cell(TOO_MANY)
    if len(real) > 1:
        averages: list[float | None] = []
        for rule in rules:
            means = [cell.mean for attack in real if (cell := grid.get((rule, attack))) and not pd.isna(cell.mean)]
            averages.append(sum(means) / len(means) if len(means) == len(real) else None)
        ranks = _ranks(averages)
        column = [Cell("-" if v is None else f"{v:.2f}", r) for v, r in zip(averages, ranks, strict=True)]
        texts.append(column)
    headings = ("rule", *attacks, *["Average w/ attacks"] * (len(real) > 1))
    return Table(
        f"{group.title}: best test accuracy in %{'' if not real else f', {100 * ratio:g} % malicious'}",
        headings,
        tuple((Cell(rule), *row) for rule, row in zip(rules, zip(*texts, strict=True), strict=True)),
        notes=(*_notes(group, found, "column"), *refused_note(group, ratio)),
    )


def refused_note(group: Group, ratio: float) -> list[str]:
    """The line below a table in which points of a sweep were refused, see `report.refused`."""
    rules = dict.fromkeys(rule for rule, _, at in group.refused if at == ratio)
    return [f"{TOO_MANY}: {', '.join(rules)} would walk over too many subsets of so many clients."] if rules else []


def detection(group: Group) -> pd.DataFrame:
    """Who was filtered: a row for every rule, attack, ratio and layer, means over seeds in percent.

    Columns: `rule`, `attack`, `attack_ratio`, `layer` ("all" for all together), `malicious_filtered` (true positives),
    `benign_filtered` (false positives), `seeds`. NaN where there was nobody to filter.
    """
    columns = ["run", "rule", "attack", "attack_ratio"]
    shares = ["malicious_filtered", "benign_kept"]
    whole = group.runs[[*columns, *shares]].assign(layer="all")
    rows = pd.concat([whole, group.results.layers.merge(group.runs[columns], on="run")], ignore_index=True)
    by = rows.groupby(["rule", "attack", "attack_ratio", "layer"], sort=False)
    found = (100 * by[shares].mean()).assign(seeds=by.size()).reset_index()
    found["benign_filtered"] = 100 - found.pop("benign_kept")
    layers = list(dict.fromkeys(rows["layer"]))
    places = {"rule": group.rules.index, "attack": group.attacks.index, "layer": layers.index}
    order = pd.DataFrame({name: found[name].map(place) for name, place in places.items()})
    order.insert(2, "attack_ratio", found["attack_ratio"])
    found = found.loc[order.sort_values(list(order.columns)).index].reset_index(drop=True)
    return found[["rule", "attack", "attack_ratio", "layer", "malicious_filtered", "benign_filtered", "seeds"]]


def detection_table(group: Group) -> Table | None:
    """`detection` over all layers at the ratio that is drawn, rules by attacks; None if no rule filters."""
    found = detection(group)
    found = found[(found["layer"] == "all") & (found["attack_ratio"] == group.ratio)]
    filters = found[(found["malicious_filtered"] > 0) | (found["benign_filtered"] > 0)]
    rules = [rule for rule in group.rules if rule in set(filters["rule"])]
    if not rules:
        return None
    attacks = [attack for attack in group.attacks if attack in set(found["attack"])]
    grid = {(row.rule, row.attack): row for row in found.itertuples()}

    def share(value: float) -> str:
        return "-" if pd.isna(value) else f"{value:.1f}"

    rows = []
    for rule in rules:
        cells = [grid.get((rule, attack)) for attack in attacks]
        texts = ["-" if c is None else f"{share(c.malicious_filtered)} / {share(c.benign_filtered)}" for c in cells]
        rows.append((Cell(rule), *map(Cell, texts)))
    caption = f"{group.title}: malicious / benign clients filtered in %, {100 * group.ratio:g} % malicious"
    return Table(caption, ("rule", *attacks), tuple(rows), notes=("Counted are pairs of a client and a layer.",))


def settings(group: Group) -> str:
    """Everything that the runs of a group were run with, as JSON: what they share, and the parameters of each variant."""

    def values(runs: pd.DataFrame, fields: Sequence[str]) -> dict[str, Any]:
        """The value of each field, a list where there are several; without fields that are nowhere set."""
        found: dict[str, Any] = {}
        for field in fields:
            different = runs[field].dropna().drop_duplicates().tolist()
            if different:
                found[field] = different[0] if len(different) == 1 else sorted(different, key=str)
        return found

    fields = list(group.results.fields)
    of_methods = {name: [field for field in fields if of_a_method(field, name)] for name in ("aggregator", "attack")}
    shared = [field for field in fields if not any(field in own for own in of_methods.values())]
    whole = {
        "runs": len(group.runs),
        "devices": sorted(set(group.runs["device"])),
        "settings": values(group.runs, [field for field in shared if field not in UNIDENTIFYING]),
        "rules": {
            rule: values(group.runs[group.runs["rule"] == rule], of_methods["aggregator"]) for rule in group.rules
        },
        "attacks": {
            attack: values(group.runs[group.runs["attack"] == attack], of_methods["attack"]) for attack in group.attacks
        },
    }
    return json.dumps(whole, indent=2, default=str) + "\n"


def _variants(group: Group, fields: Sequence[str]) -> list[str]:
    """The labels of the rule that has these parameters, as far as its variants differ in nothing else."""
    methods = {method for method, special in group.variants.values() if set(special) & set(fields)}
    if len(methods) != 1:
        return []
    return [
        label
        for label, (method, special) in group.variants.items()
        if method in methods and set(special) <= set(fields)
    ]


def _of_lasa(group: Group, found: pd.DataFrame, ratio: float) -> tuple[list[Table], set[tuple[str, str]]]:
    """Tables 2 and 3 of the paper at one attack ratio, and the pairs of a rule and an attack that stand in them.

    An attack has a place where two of the variants met it.
    """
    made = []
    covered: set[tuple[str, str]] = set()
    settings = group.runs.drop_duplicates("rule").set_index("rule")
    for fields in ([_LEVEL], list(_RADII)):
        part = found[found["rule"].isin(_variants(group, fields))]
        met = part["attack"].value_counts()
        part = part[part["attack"].isin(met[met > 1].index)]
        variants = [rule for rule in group.rules if rule in set(part["rule"])]
        if len(variants) < _FEWEST:
            continue
        covered |= set(zip(part["rule"], part["attack"], strict=True))
        attacks = [attack for attack in group.attacks if attack in set(part["attack"])]
        rows = settings.loc[variants, fields].astype(float).sort_values(fields)
        grid = {(row.rule, row.attack): row for row in part.itertuples()}
        columns = [_column([grid.get((rule, attack)) for rule in rows.index], part) for attack in attacks]
        caption = f"{group.title}: best test accuracy in %, {100 * ratio:g} % malicious, "
        rule = variants[0].partition(" (")[0]
        if fields == [_LEVEL]:
            headings = ("attack", *(f"{level:g}" for level in rows[_LEVEL]))
            lines = tuple((Cell(attack), *column) for attack, column in zip(attacks, columns, strict=True))
            fixed = _fixed(settings.loc[variants[0]], _RADII)
            made.append(
                Table(f"{caption}{rule} by sparsity level{fixed}", headings, lines, 1, _notes(group, part, "row"))
            )
        else:
            headings = ("direction radius", "magnitude radius", *attacks)
            lines = tuple(
                (Cell(f"{pair[0]:g}"), Cell(f"{pair[1]:g}"), *line)
                for pair, line in zip(rows.itertuples(index=False), zip(*columns, strict=True), strict=True)
            )
            fixed = _fixed(settings.loc[variants[0]], (_LEVEL,))
            notes = _notes(group, part, "column")
            made.append(Table(f"{caption}{rule} by filtering radii{fixed}", headings, lines, 2, notes))
    return made, covered


def _column(values: Sequence[Any], found: pd.DataFrame) -> list[Cell]:
    """Cells that are ranked among each other; the values are rows of `cells`, None where no run is."""
    ranks = _ranks([None if value is None or pd.isna(value.mean) else value.mean for value in values])
    return [Cell(_accuracy(value, found["seeds"].max()), rank) for value, rank in zip(values, ranks, strict=True)]


def _accuracy(value: Any, seeds: int) -> str:
    """`97.94 ± 0.12`, with a dagger if a run diverged and the number of seeds in brackets if it is less than elsewhere."""
    if value is None or pd.isna(value.mean):
        return "-"
    spread = "" if pd.isna(value.std) else f" ± {value.std:.2f}"
    mark = " †" if value.diverged else ""
    fewer = f" ({value.seeds})" if value.seeds < seeds else ""
    return f"{value.mean:.2f}{spread}{mark}{fewer}"


def _ranks(values: Sequence[float | None]) -> list[int]:
    """1 for the largest as printed, 2 for the second, 0 for the rest; values that print the same share a rank."""
    printed = [None if value is None else round(value, 2) for value in values]
    best = sorted({value for value in printed if value is not None}, reverse=True)[:2]
    alone = sum(value is not None for value in printed) < 2
    return [0 if value is None or alone or value not in best else best.index(value) + 1 for value in printed]


def _fixed(run: pd.Series, fields: Sequence[str]) -> str:
    """LASA's numbers that a table does not vary, for its caption."""
    return "".join(f", {field.partition('.')[2].replace('_', ' ')} {run[field]:g}" for field in fields if field in run)


def _notes(group: Group, found: pd.DataFrame, where: str, best: str = "best") -> tuple[str, ...]:
    most = found["seeds"].max()
    first = group.runs.iloc[0]
    notes = [f"Bold: {best} of the {where}; underlined: second."]
    if "clients_per_round" in first and "num_clients" in first:
        population = "all" if pd.isna(first["num_clients"]) else f"{first['num_clients']:,}"
        notes.append(f"{first['clients_per_round']} of {population} clients a round.")
    if most > 1:
        notes.append(f"Mean over {most} seeds, ± their standard deviation (n - 1), in percentage points.")
    if (found["seeds"] < most).any():
        notes.append("(k): only k seeds are there.")
    if (found["diverged"] > 0).any():
        notes.append("†: a run diverged; its best accuracy is that before.")
    return tuple(notes)
