"""How the figures of a report look: a rule has one colour, marker and dash in all of them, and in all reports.

Colours are those of Okabe and Ito, told apart by colour-blind readers too, and lines differ in marker and dash besides.
"""

import math
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lasa_jax.report.groups import Group

# Okabe and Ito (2008), with grey for their black, which is for baselines. Their yellow is too light for a line: in its place
# are Tol's olive, wine and indigo, and a brown. One for each rule of the paper's tables, and Krum.
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#666666", "#999933", "#882255", "#332288", "#8C564B"),
)
_MARKERS = "osD^vPX*<>p"
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)))
_LASA = 1  # the colour that no other rule has

# Colour and dash of each built-in rule by their places in COLOURS and _DASHES. Rules that are usually compared have a colour
# of their own; the others share that of a relative and differ in dash and marker. A new rule takes any free place.
RULES: Mapping[str, tuple[int, int]] = {
    "lasa": (_LASA, 0),
    "fedavg": (6, 0),
    "trimmed_mean": (5, 1),
    "median": (7, 2),
    "geometric_median": (2, 0),
    "krum": (9, 3),
    "multi_krum": (4, 1),
    "bulyan": (3, 2),
    "dnc": (0, 0),
    "signguard": (8, 1),
    "sparsefed": (10, 2),
    "alignins": (8, 3),
    "caf": (0, 1),
    "centered_clipping": (2, 1),
    "cge": (5, 0),
    "flame": (3, 0),
    "fldetector": (9, 1),
    "fltrust": (4, 3),
    "foolsgold": (10, 0),
    "mda": (3, 3),
    "meamed": (7, 0),
    "monna": (5, 2),
    "multi_metric": (0, 3),
    "norm_clipped_mean": (6, 1),
    "robust_learning_rate": (10, 3),
    "signguard_sim": (8, 0),
    "smea": (2, 3),
}
_FREE = tuple(
    place for place in np.ndindex(len(COLOURS), len(_DASHES)) if place not in RULES.values() and place[0] != _LASA
)
_SHADES = (0.0, 0.5, -0.45, 0.25, -0.25, 0.7)  # towards white, and below 0 towards black


def of_rule(method: str, variant: int = 0) -> dict[str, Any]:
    """Colour, marker and dash of a rule, the same in every report.

    Args:
      method: its name in a config. Of one that is not built in, a hash chooses colour and dash among those that no built-in
        rule has, and the marker. Two of them may be alike in colour and dash, and seldom in the marker too.
      variant: 0 has the rule's own colour; others are shades of it with another dash and marker.
    """
    if method in RULES:
        colour, dash = RULES[method]
        marker = colour + 4 * [name for name, (of, _) in RULES.items() if of == colour].index(method)
    else:
        marker, place = divmod(zlib.crc32(method.encode()), len(_FREE))
        colour, dash = _FREE[place]
    shade, turn = _SHADES[variant % len(_SHADES)], variant + variant // len(_SHADES)
    return {
        "color": _shaded(COLOURS[colour], shade),
        "marker": _MARKERS[(marker + turn) % len(_MARKERS)],
        "linestyle": _DASHES[(dash + turn) % len(_DASHES)],
    }


def _shaded(colour: str, shade: float) -> str:
    """The colour mixed with white, or with black where `shade` is below 0."""
    if shade == 0.0:
        return colour
    goal = 1.0 if shade > 0 else 0.0
    red, green, blue = ((1 - abs(shade)) * part + abs(shade) * goal for part in to_rgb(colour))
    return to_hex((red, green, blue))


def looks(*groups: Group) -> dict[str, dict[str, Any]]:
    """How each rule of one or several groups is drawn, by the name that tables show."""
    labels = {label: variant for group in groups for label, variant in group.variants.items()}
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(method for method, _ in labels.values()):
        own = [label for label, (of, _) in labels.items() if of == method]
        own.sort(key=lambda label: bool(labels[label][1]))  # the central variant, which differs in nothing, is first
        found |= {label: of_rule(method, place) for place, label in enumerate(own)}
    return found


def handles(look: Mapping[str, Mapping[str, Any]], rules: Sequence[str]) -> list[Any]:
    """Of the legend, for rules whose looks are known."""
    return [Line2D([], [], label=rule, markersize=4, **look[rule]) for rule in rules]


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
