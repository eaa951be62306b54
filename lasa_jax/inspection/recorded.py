"""Who was dropped in which layer over a whole run, from what a run with `--config.record_filtering=true` wrote.

    table = load("runs/digits_lasa_lie_...")                # a row for each round, client and layer
    draw_rounds(table).savefig("rounds.png")
    draw_clients(table).savefig("clients.png")

One round in full, to be filtered again with other numbers: `rounds` and `filtering`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lasa_jax.errors import InputError
from lasa_jax.inspection.drawing import heatmaps
from lasa_jax.inspection.rendering import Cell, Figure, Table
from lasa_jax.workdir import filtering_files, read_file

_MOST_CLIENTS = 100  # rows of a heatmap that can still be told apart
_COLUMNS = {"round": "i", "client": "i", "malicious": "b", "layer": "O", "kept": "b", "weight": "f"}


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """What a run with `config.record_filtering` wrote of every round so far, see `records.filtering_table` for the columns.

    Raises:
      InputError: if nothing was recorded there, or a file cannot be read or holds something else.
    """
    import pyarrow as pa
    from pyarrow import parquet

    files = filtering_files(path)
    if not Path(path).is_dir():
        raise InputError(f"{path}: is not a directory, allowed is that of a run")
    if not files:
        raise InputError(f"{path}: no filtering was recorded, allowed is a run with --config.record_filtering=true")
    tables: list[pd.DataFrame] = []
    for file in files:
        try:
            table = parquet.read_table(pa.BufferReader(read_file(file))).to_pandas()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from None
        kinds = {name: table[name].dtype.kind for name in table.columns}
        right = all(kinds.get(name) == kind for name, kind in _COLUMNS.items())
        if not right or any(kind != "f" for name, kind in kinds.items() if name not in _COLUMNS) or table.empty:
            raise InputError(f"{file}: is not the filtering that a run records")
        due = tables[-1]["round"].max() + 1 if tables else 1
        if table["round"].min() != due:
            raise InputError(f"{file}: begins with round {table['round'].min()}, where round {due} is due")
        if tables and list(table.columns) != list(tables[0].columns):
            raise InputError(f"{file}: has other columns than the file before it")
        tables.append(table)
    recorded = pd.concat(tables, ignore_index=True)
    recorded["layer"] = pd.Categorical(recorded["layer"], categories=list(dict.fromkeys(recorded["layer"])))
    return recorded


def by_round(recorded: pd.DataFrame) -> pd.DataFrame:
    """Shares of malicious clients dropped and of benign ones kept in each round and layer; NaN where there was none.

    Args:
      recorded: from `load`.

    Returns:
      Columns `round`, `layer`, `malicious_filtered`, `benign_kept`, in the order of rounds and layers.
    """
    kept = recorded.groupby(["round", "layer", "malicious"], observed=True)["kept"].mean().unstack("malicious")
    kept = kept.reindex(columns=[False, True])
    return pd.DataFrame({"malicious_filtered": 1 - kept[True], "benign_kept": kept[False]}).reset_index()


def by_client(recorded: pd.DataFrame) -> pd.DataFrame:
    """Means over the rounds that each client took part in, a row a client and layer, those kept least first in each layer.

    Args:
      recorded: from `load`.

    Returns:
      Columns `layer`, `client`, `malicious`, `rounds`, `kept` (the share of them), and the means of what else was measured;
      scores that are infinite do not count.
    """
    measured = [name for name in recorded.columns if name not in ("round", "client", "malicious", "layer", "kept")]
    finite = recorded[measured].where(np.isfinite(recorded[measured]))
    table = pd.concat([recorded[["client", "malicious", "layer"]], recorded["kept"].astype(float), finite], axis=1)
    by = table.groupby(["layer", "client", "malicious"], observed=True)
    means = by.mean()
    means.insert(0, "rounds", by.size())
    return means.reset_index().sort_values(["layer", "kept"], kind="stable").reset_index(drop=True)


def as_table(recorded: pd.DataFrame) -> Table:
    """Shares of malicious clients dropped and of benign ones kept in each layer, over all rounds that were recorded."""
    kept = recorded.groupby(["layer", "malicious"], observed=True)["kept"].mean().unstack("malicious")
    kept = kept.reindex(columns=[False, True])

    def percent(share: float) -> Cell:
        return Cell("-" if np.isnan(share) else f"{100 * share:.1f}")

    rows = [(Cell(str(layer)), percent(1 - row[True]), percent(row[False])) for layer, row in kept.iterrows()]
    rounds, clients = recorded["round"].nunique(), recorded["client"].nunique()
    caption = f"Filtering over {rounds} rounds, {clients} different clients"
    return Table(caption, ("layer", "malicious dropped, %", "benign kept, %"), tuple(rows))


def draw_rounds(recorded: pd.DataFrame, title: str = "") -> Figure:
    """Heatmaps layer x round: the share of malicious clients that was dropped, and of benign ones that was kept.

    Args:
      recorded: from `load`.
      title: of the whole picture.
    """
    from matplotlib.figure import Figure

    shares = by_round(recorded)
    names = list(recorded["layer"].cat.categories)
    tall = 1.0 + 0.22 * len(names)
    figure = Figure(figsize=(9, 1 + 2 * tall), layout="constrained")
    panels = (("malicious_filtered", "malicious clients dropped (%)"), ("benign_kept", "benign clients kept (%)"))
    for ax, (column, heading) in zip(figure.subplots(2, 1, sharex=True), panels, strict=True):
        share = shares.pivot(index="layer", columns="round", values=column).reindex(names)
        first, last = share.columns[0], share.columns[-1]
        extent = (first - 0.5, last + 0.5, len(names) - 0.5, -0.5)
        how = {"aspect": "auto", "interpolation": "nearest", "cmap": "cividis", "vmin": 0, "vmax": 100}
        ax.set_facecolor("#BBBBBB")
        figure.colorbar(ax.imshow(100 * share.to_numpy(float), extent=extent, **how), ax=ax, label=heading)
        ax.set_yticks(range(len(names)), [name.removeprefix("params/") for name in names], fontsize=8)
    figure.axes[1].set_xlabel("round")
    if title:
        figure.suptitle(title)
    return figure


def draw_clients(recorded: pd.DataFrame, title: str = "") -> Figure:
    """Heatmaps client x layer over a run: means of what was measured, and the share of its rounds a client was kept in.

    Of the norm the mean of log2(norm / median of the layer in that round); scores that are infinite do not count.

    Args:
      recorded: from `load`. Of more than 100 clients those are drawn that took part most often.
      title: of the whole picture.
    """
    taken = recorded.groupby("client")["round"].nunique().sort_values(ascending=False, kind="stable")
    if len(taken) > _MOST_CLIENTS:
        title += f"\nthe {_MOST_CLIENTS} of {len(taken):,} clients that took part most often"
    table = recorded[recorded["client"].isin(taken.index[:_MOST_CLIENTS])].copy()
    panels: list[tuple[str, str, dict[str, Any]]] = []
    if "norm" in table:
        middle = recorded.groupby(["round", "layer"], observed=True)["norm"].transform("median")[table.index]
        table["norm"] = np.log2(np.maximum(table["norm"], 1e-30) / np.maximum(middle, 1e-30)).clip(-4, 4)
        panels.append(("norm", "norm / layer's median, log2", {"cmap": "PuOr_r", "vmin": -2, "vmax": 2}))
    if "purity" in table:
        panels.append(("purity", "purity", {"cmap": "PuOr_r", "vmin": 0, "vmax": 1}))
    for kind in ("magnitude", "direction"):
        if f"{kind}_score" in table:
            table[f"{kind}_score"] = table[f"{kind}_score"].where(np.isfinite(table[f"{kind}_score"]))
            panels.append((f"{kind}_score", f"{kind} MZ-score", {"cmap": "cividis", "vmin": 0, "vmax": 4}))
    table["kept"] = 100 * table["kept"].astype(float)
    panels.append(("kept", "kept in % of its rounds", {"cmap": "cividis", "vmin": 0, "vmax": 100}))
    means = table.groupby(["layer", "client"], observed=True)[[name for name, *_ in panels]].mean()
    malicious = table.groupby("client")["malicious"].first()
    names = list(recorded["layer"].cat.categories)
    drawn = [
        (heading, means[name].unstack("client").reindex(names).to_numpy(float), how) for name, heading, how in panels
    ]
    return heatmaps(drawn, names, malicious.to_numpy(bool), title, clients=malicious.index.to_numpy())
