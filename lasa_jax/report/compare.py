"""The paper's numbers beside ours, cell by cell. Printed averages are left out: most are not those of their cells."""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

import pandas as pd

from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.inspection.rendering import Cell, Table
from lasa_jax.report.groups import NOT_COMPARED, Group
from lasa_jax.report.tables import NO_ATTACK, cells

_RATIO = 0.25  # of all cells of the paper, section D.1 of the supplement
_SETTINGS = ("sparsity_level", "direction_radius", "magnitude_radius")
_LEVEL = 0.3
_RADII = {"mnist": (1.0, 2.0), "fashion_mnist": (1.0, 2.0), "femnist": (1.5, 2.0), "shakespeare": (1.5, 2.0)}  # D.1, B
# What the paper prints is over every position of a sequence, padding too, whatever a run reports.
_MEASURE = {"shakespeare": "best_test_accuracy_with_padding"}
_KEY = ["dataset", "rule", "attack", *_SETTINGS]
# What a cell of the paper does not fix, or what is in the key: LASA's numbers. `fidelity` only decides other settings.
_FREE = (*NOT_COMPARED, "fidelity", "aggregator.name", "attack.name", *(f"aggregator.{name}" for name in _SETTINGS))


@functools.cache
def printed() -> pd.DataFrame:
    """A row for every cell of the supplement's tables 1 to 3, in percent.

    Columns: `table`, `dataset`, `rule` and `attack` by their names in a config, `sparsity_level`, `direction_radius` and
    `magnitude_radius` (of LASA; NaN for the other rules), `paper`, and `doubtful`: why the number may be a misprint, or
    empty. The column Min-Sum holds for `min_sum` and, on all datasets but MNIST, for `min_sum_stealthy` too: the text has
    it that way, the official code does not.
    """
    rows: list[dict[str, Any]] = []

    def add(
        table: int,
        dataset: str,
        rule: str,
        attack: str,
        settings: tuple[float, ...] | None,
        value: float,
        doubtful: str = "",
    ) -> None:
        known = dict(zip(_SETTINGS, settings or (float("nan"),) * len(_SETTINGS), strict=True))
        for name in ["min_sum", "min_sum_stealthy"] if attack == "min_sum" and dataset != "mnist" else [attack]:
            row = {"table": table, "dataset": dataset, "rule": rule, "attack": name, **known}
            rows.append({**row, "paper": float(value), "doubtful": doubtful})

    for line in _read("table1").to_dict("records"):
        dataset, rule, average = line.pop("dataset"), line.pop("rule"), line.pop("average_printed")
        attacked = [value for attack, value in line.items() if attack != "none"]
        off = round(len(attacked) * average - sum(attacked))
        doubtful = f"the printed average asks for {off:+d} points in the cells of this row" if off else ""
        for attack, value in line.items():
            settings = (_LEVEL, *_RADII[dataset]) if rule == "lasa" else None
            add(1, dataset, rule, attack, settings, value, doubtful if attack != "none" else "")
    for line in _read("table2").to_dict("records"):
        attack, dataset = line.pop("attack"), line.pop("dataset")
        misplaced = attack == "min_max" and dataset in ("femnist", "shakespeare")
        doubtful = "at level 0.3 this row has Table 1's TailoredTrmean" if misplaced else ""
        for level, value in line.items():
            add(2, dataset, "lasa", attack, (float(level.removeprefix("sl_")), *_RADII[dataset]), value, doubtful)
    for line in _read("table3").to_dict("records"):
        pair = line.pop("direction_radius"), line.pop("magnitude_radius")
        for column, value in line.items():
            dataset, _, attack = column.rpartition("_")
            add(3, dataset, "lasa", attack, (_LEVEL, *pair), value)
    return pd.DataFrame(rows)


def _read(name: str) -> pd.DataFrame:
    """A table of the paper as it is printed, with its source in the first lines of the file."""
    with resources.files("lasa_jax.report").joinpath("paper", f"{name}.csv").open() as file:
        return pd.read_csv(file, comment="#")


@functools.cache
def _as_in_the_paper(dataset: str, rule: str, attack: str) -> dict[str, Any]:
    """The settings of a cell of the paper by the names of `results.Results`, without those that it leaves open."""
    config = configs.paper(dataset)
    config.fidelity, config.aggregator.name, config.attack.name = "official", rule, attack
    resolved = configs.resolve(config)
    flat = {field.replace(".parameters.", "."): value for field, value in configs.flatten(configs.as_json(resolved))}
    natural = ("num_clients",) if flat["num_clients"] is None else ()  # as many as the data has
    return {field: value for field, value in flat.items() if field not in (*_FREE, *natural)}


def _differs(run: pd.Series) -> str:
    """The settings in which a run is not the paper's, with the paper's values: `rounds 60 (180)`."""
    expected = _as_in_the_paper(run["dataset"], run["aggregator.name"], run["attack.name"])
    ours = {
        field: value
        for field, value in run.items()
        if field in expected or (str(field).startswith(("aggregator.", "attack.")) and field not in _FREE)
    }
    found = []
    for field in sorted({*expected, *map(str, ours)}):
        own, papers = (_shown(values.get(field)) for values in (ours, expected))
        if own != papers:
            found.append(f"{field} {own} ({papers})")
    return ", ".join(found)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) or value is None or pd.isna(value):
        return "unset"
    return f"{float(value):g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def compare(group: Group) -> pd.DataFrame:
    """The paper's cells of which a group has runs.

    Columns: those of `paper`, and `ours` (mean over seeds, percent), `spread` (standard deviation over seeds), `seeds`,
    `difference` (ours less the paper's, percentage points), `in_spreads` (difference / spread; NaN for one seed), `differs`:
    the settings in which our runs are not the paper's with `fidelity=official`, or empty. Runs of an attack at another
    ratio than 25 % are left out; without attack one ratio is taken, the nearest. On Shakespeare the accuracy counts padding,
    as the paper's does; `ours` is NaN for runs that did not measure that.

    Raises:
      InputError: if the paper has no numbers for the dataset, or none for these runs.
    """
    numbers = printed()
    dataset = group.runs.iloc[0]["dataset"]
    if dataset not in set(numbers["dataset"]):
        raise InputError(f"dataset {dataset}: the paper has no table of it, only of {', '.join(_RADII)}")
    found = cells(group, _MEASURE.get(dataset, "best_test_accuracy"))
    found["apart"] = (found["attack_ratio"] - _RATIO).abs()
    found = found[(found["apart"] < 1e-9) | (found["attack"] == NO_ATTACK)]
    found = found.loc[found.sort_values("apart", kind="stable").drop_duplicates(["rule", "attack"]).index].sort_index()
    first = group.runs.drop_duplicates(["rule", "attack"]).set_index(["rule", "attack"])
    ours = []
    for cell in found.itertuples():
        run = first.loc[(cell.rule, cell.attack)]
        names = {"dataset": dataset, "rule": run["aggregator.name"], "attack": run["attack.name"]}
        if not ((numbers["rule"] == names["rule"]) & (numbers["attack"] == names["attack"])).any():
            continue
        settings = {name: run.get(f"aggregator.{name}") if names["rule"] == "lasa" else None for name in _SETTINGS}
        measured = {"ours": cell.mean, "spread": cell.std, "seeds": cell.seeds, "differs": _differs(run)}
        ours.append({**names, **settings, **measured})
    frame = pd.DataFrame(ours, columns=[*_KEY, "ours", "spread", "seeds", "differs"])
    both = frame.astype(dict.fromkeys(_SETTINGS, float)).merge(numbers, on=_KEY, how="inner", sort=False)
    if both.empty:
        raise InputError(f"{group.title}: no run of it is in the paper's tables, which are at 25 % malicious")
    both["difference"] = both["ours"] - both["paper"]
    both["in_spreads"] = both["difference"] / both["spread"].where(both["spread"] > 0)
    order = ["table", *_KEY, "paper", "doubtful", "ours", "difference", "spread", "in_spreads", "seeds", "differs"]
    return both.sort_values("table", kind="stable")[order].reset_index(drop=True)


def as_table(group: Group, compared: pd.DataFrame) -> Table:
    """For print: a row a cell, and in the notes how far apart each table is where the runs are the paper's."""
    differ = (compared["differs"] != "").any()
    rows = []
    for cell in compared.itertuples():
        setting = {1: "", 2: f"sparsity level {cell.sparsity_level:g}"}.get(
            cell.table, f"radii {cell.direction_radius:g}, {cell.magnitude_radius:g}"
        )
        spread = "" if pd.isna(cell.spread) else f" ± {cell.spread:.2f}"
        units = "-" if pd.isna(cell.in_spreads) else f"{cell.in_spreads:+.1f}"
        papers = f"{cell.paper:.2f}{' ?' if cell.doubtful else ''}"
        ours = "-" if pd.isna(cell.ours) else f"{cell.ours:.2f}{spread}"
        texts = [str(cell.table), cell.rule, cell.attack, setting, papers, ours]
        # Zero is added to what is rounded, so that none is printed as -0.00.
        texts += [
            "-" if pd.isna(cell.difference) else f"{round(cell.difference, 2) + 0.0:+.2f}",
            units,
            str(cell.seeds),
            *([cell.differs] if differ else []),
        ]
        rows.append(tuple(map(Cell, texts)))
    notes = ["The radii are direction, magnitude."]
    if group.runs.iloc[0]["dataset"] in _MEASURE:
        notes.append("Accuracies here count padding, as the paper's do, also those of runs that report them without.")
    for number, part in compared.groupby("table"):
        alike = part[(part["differs"] == "") & part["difference"].notna()]
        left = len(part) - len(alike)
        text = f"Table {number}: {len(alike)} cell{'s' * (len(alike) != 1)}"
        if len(alike):
            apart = alike["difference"].abs()
            worst = alike.loc[apart.idxmax()]
            text += f", {apart.mean():.2f} points apart in the mean, at most {apart.max():.2f}"
            text += f" ({worst['rule']}, {worst['attack']})"
        notes.append(text + (f"; not counted: {left} of runs that differ from the paper's." if left else "."))
    for reason, part in compared[compared["doubtful"] != ""].groupby("doubtful"):
        where = sorted(
            {f"table {cell.table}, {cell.rule if cell.table == 1 else cell.attack}" for cell in part.itertuples()}
        )
        notes.append(f"?: {reason} ({'; '.join(where)}).")
    headings = ["table", "rule", "attack", "setting", "paper", "ours", "difference", "in spreads", "seeds"]
    headings += ["differs from the paper's run in (paper's)"] if differ else []
    caption = f"{group.title}: best test accuracy in %, as printed in the paper and ours; differences in points"
    return Table(caption, tuple(headings), tuple(rows), 4, tuple(notes))
