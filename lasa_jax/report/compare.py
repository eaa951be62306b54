"""The paper's numbers beside ours, cell by cell. Printed averages are left out: most are not those of their cells."""

import functools
from importlib import resources
from typing import Any

import pandas as pd

from lasa_jax.errors import InputError
from lasa_jax.report.groups import Group
from lasa_jax.report.tables import Cell, Table, cells

_RATIO = 0.25  # of all published cells, section D.1 of the supplement
_SETTINGS = ("sparsity_level", "direction_radius", "magnitude_radius")
_LEVEL = 0.3
_RADII = {"mnist": (1.0, 2.0), "fashion_mnist": (1.0, 2.0), "femnist": (1.5, 2.0), "shakespeare": (1.5, 2.0)}  # D.1, B
_KEY = ["dataset", "rule", "attack", *_SETTINGS]


@functools.cache
def published() -> pd.DataFrame:
    """A row for every cell of the supplement's tables 1 to 3, in percent.

    Columns: `table`, `dataset`, `rule` and `attack` by their names in a config, `sparsity_level`, `direction_radius` and
    `magnitude_radius` (of LASA; NaN for the other rules), `published`. The column Min-Sum holds for `min_sum` and, on all
    datasets but MNIST, for `min_sum_stealthy` too: the text has it that way, the published code does not.
    """
    rows: list[dict[str, Any]] = []

    def add(table: int, dataset: str, rule: str, attack: str, settings: tuple[float, ...] | None, value: float) -> None:
        known = dict(zip(_SETTINGS, settings or (float("nan"),) * len(_SETTINGS), strict=True))
        for name in ["min_sum", "min_sum_stealthy"] if attack == "min_sum" and dataset != "mnist" else [attack]:
            row = {"table": table, "dataset": dataset, "rule": rule, "attack": name, **known, "published": float(value)}
            rows.append(row)

    for line in _read("table1").drop(columns="average_printed").to_dict("records"):
        dataset, rule = line.pop("dataset"), line.pop("rule")
        for attack, value in line.items():
            add(1, dataset, rule, attack, (_LEVEL, *_RADII[dataset]) if rule == "lasa" else None, value)
    for line in _read("table2").to_dict("records"):
        attack, dataset = line.pop("attack"), line.pop("dataset")
        for level, value in line.items():
            add(2, dataset, "lasa", attack, (float(level.removeprefix("sl_")), *_RADII[dataset]), value)
    for line in _read("table3").to_dict("records"):
        pair = line.pop("direction_radius"), line.pop("magnitude_radius")
        for column, value in line.items():
            dataset, _, attack = column.rpartition("_")
            add(3, dataset, "lasa", attack, (_LEVEL, *pair), value)
    return pd.DataFrame(rows)


def _read(name: str) -> pd.DataFrame:
    """A published table as it is printed, with its source in the first lines of the file."""
    with resources.files("lasa_jax.report").joinpath("published", f"{name}.csv").open() as file:
        return pd.read_csv(file, comment="#")


def compare(group: Group) -> pd.DataFrame:
    """The published cells of which a group has runs.

    Columns: those of `published`, and `ours` (mean over seeds, percent), `spread` (standard deviation over seeds), `seeds`,
    `difference` (ours less published, percentage points), `in_spreads` (difference / spread; NaN for one seed).

    Raises:
      InputError: if the paper has no numbers for the dataset, or none for these runs.
    """
    numbers = published()
    dataset = group.runs.iloc[0]["dataset"]
    if dataset not in set(numbers["dataset"]):
        raise InputError(f"dataset {dataset}: the paper has no table of it, only of {', '.join(_RADII)}")
    found = cells(group)
    first = group.runs.drop_duplicates(["rule", "attack"]).set_index(["rule", "attack"])
    ours = []
    for cell in found.itertuples():
        run = first.loc[(cell.rule, cell.attack)]
        if run["attack.name"] != "none" and abs(cell.attack_ratio - _RATIO) > 1e-9:
            continue
        if run.get("aggregator.granularity", "layer") not in ("layer", None) and run["aggregator.name"] == "lasa":
            continue  # an ablation
        settings = {
            name: run.get(f"aggregator.{name}") if run["aggregator.name"] == "lasa" else None for name in _SETTINGS
        }
        names = {"dataset": dataset, "rule": run["aggregator.name"], "attack": run["attack.name"]}
        ours.append({**names, **settings, "ours": cell.mean, "spread": cell.std, "seeds": cell.seeds})
    frame = pd.DataFrame(ours, columns=[*_KEY, "ours", "spread", "seeds"]).astype(dict.fromkeys(_SETTINGS, float))
    both = frame.merge(numbers, on=_KEY, how="inner", sort=False)
    if both.empty:
        raise InputError(f"{group.title}: no run of it is in the paper's tables, which are at 25 % malicious")
    both["difference"] = both["ours"] - both["published"]
    both["in_spreads"] = both["difference"] / both["spread"].where(both["spread"] > 0)
    order = ["table", *_KEY, "published", "ours", "difference", "spread", "in_spreads", "seeds"]
    return both.sort_values("table", kind="stable")[order].reset_index(drop=True)


def as_table(group: Group, compared: pd.DataFrame) -> Table:
    """For print: a row a cell, and in the notes how far apart each table is."""
    rows = []
    for cell in compared.itertuples():
        setting = {1: "", 2: f"sparsity level {cell.sparsity_level:g}"}.get(
            cell.table, f"radii {cell.direction_radius:g}, {cell.magnitude_radius:g}"
        )
        spread = "" if pd.isna(cell.spread) else f" ± {cell.spread:.2f}"
        units = "-" if pd.isna(cell.in_spreads) else f"{cell.in_spreads:+.1f}"
        texts = (str(cell.table), cell.rule, cell.attack, setting, f"{cell.published:.2f}", f"{cell.ours:.2f}{spread}")
        rows.append(tuple(map(Cell, (*texts, f"{cell.difference:+.2f}", units, str(cell.seeds)))))
    notes = ["The radii are direction, magnitude."]
    for number, part in compared.groupby("table"):
        apart = part["difference"].abs()
        worst = part.loc[apart.idxmax()]
        notes.append(
            f"Table {number}: {len(part)} cells, {apart.mean():.2f} points apart in the mean, at most "
            f"{apart.max():.2f} ({worst['rule']}, {worst['attack']})."
        )
    headings = ("table", "rule", "attack", "setting", "published", "ours", "difference", "in spreads", "seeds")
    caption = f"{group.title}: best test accuracy in %, as published and ours; differences in points"
    return Table(caption, headings, tuple(rows), 4, tuple(notes))
