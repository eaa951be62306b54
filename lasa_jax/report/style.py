"""How the figures of a report look: a rule has one colour, marker and dash in all of them.

Colours are those of Okabe and Ito, told apart by colour-blind readers too, and lines differ in marker and dash besides.
"""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lasa_jax.report.groups import Group

# Okabe and Ito (2008) with grey for their black, which is for baselines, and Tol's olive and wine for their yellow, which is
# too light for a line: nine, as many as the paper has rules.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#666666", "#999933", "#882255")
_MARKERS = "osD^vPX*<>"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))


def of_line(index: int) -> dict[str, Any]:
    """Of line number `index`; the first 45 differ in colour or dash, and neighbours in colour, marker and dash."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _DASHES[(index + 2 * (index // len(COLOURS))) % len(_DASHES)],
    }


def handles(group: Group, rules: Sequence[str]) -> list[Any]:
    """Of the legend: a rule looks the same in all figures of a group."""
    return [Line2D([], [], label=rule, markersize=4, **of_line(group.rules.index(rule))) for rule in rules]


def legend(figure: Figure, handles: list[Any]) -> None:
    """Below the panels, as many columns as fit; the figure grows by its lines."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.07 * longest + 0.75))))
    lines = math.ceil(len(handles) / columns)
    columns = math.ceil(len(handles) / lines)  # as even as they can be
    figure.set_figheight(figure.get_figheight() + 0.1 + 0.2 * lines)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize="small", handlelength=3
    )


def heatmap(
    figure: Figure,
    axes: Axes,
    values: np.ndarray,
    texts: Any,
    rows: Sequence[str],
    columns: Sequence[str],
    width: float,
    label: str,
) -> None:
    """Annotated cells of percentages; grey where there is no value.

    Args:
      width: of a column in inches, about; names that are wider are turned.
      label: of the bar of colours; none if it is empty.
    """
    colours = mpl.colormaps["cividis"].with_extremes(bad="#dddddd")
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(values.shape):
        light = values[row, column] > 50
        axes.text(
            column,
            row,
            texts[row][column],
            ha="center",
            va="center",
            fontsize="small",
            color="black" if light else "white",
        )
    axes.set_xticks(range(len(columns)), columns)
    if 0.08 * max(map(len, columns)) > width:
        axes.tick_params("x", rotation=25)
        for name in axes.get_xticklabels():
            name.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if label:
        figure.colorbar(image, ax=axes, label=label)


def wrapped(title: str, inches: float) -> str:
    """A title in lines that fit a figure of that width."""
    width = max(20, int(inches / 0.085))
    return "\n".join(part for line in title.splitlines() for part in textwrap.wrap(line, width))
