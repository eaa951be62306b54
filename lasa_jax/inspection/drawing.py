"""Pictures of a saved round that was filtered again, and the heatmap of clients and layers that other pictures share.

    info = filtering.lasa(saved, magnitude_radius=2.0)
    draw_filtering(info, saved, magnitude_radius=2.0).savefig("filtering.png")

Colours are those of Okabe and Ito and of maps that colour-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lasa_jax.aggregators import FilterDiagnostics
from lasa_jax.errors import check_choice
from lasa_jax.inspection import causes
from lasa_jax.inspection.filtering import layer_rows
from lasa_jax.inspection.rendering import Figure
from lasa_jax.inspection.rounds import Round, layers

BENIGN, MALICIOUS = "#0072B2", "#D55E00"
_CAUSE = "kept, or dropped by"
_MOST_SIDE_BY_SIDE = 16  # layers, before the panels are stacked instead


def draw_filtering(
    info: FilterDiagnostics,
    saved: Round,
    *,
    magnitude_radius: float,
    direction_radius: float = 1.0,
    title: str = "",
) -> Figure:
    """Heatmaps client x layer: norm, purity, both MZ-scores, and who was dropped by what. The malicious are the rows on top.

    The norm is shown relative to the layer's median. The scores change colour at their radius; one that is infinite (all
    clients alike) is grey, and so is a client whose update is not finite.

    Args:
      info: from `filtering.lasa`.
      saved: the round.
      magnitude_radius, direction_radius: that `info` was computed with.
      title: of the whole picture.
    """
    from matplotlib.colors import ListedColormap, TwoSlopeNorm

    radii = {"magnitude_radius": magnitude_radius, "direction_radius": direction_radius}
    cause = causes.of(info, saved, **radii)
    read = cause != causes.CAUSES.index("not finite")  # of the others no number means anything
    norm = np.ma.masked_where(~read, layer_rows(info.norm))
    middle = np.ma.median(norm, axis=1, keepdims=True)
    doubled = np.log2(np.maximum(norm, 1e-30) / np.maximum(middle, 1e-30)).filled(np.nan)
    scale = float(np.clip(np.nanmax(np.abs(doubled), initial=0.0), 0.5, 4))
    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("norm / layer's median, log2", doubled, {"cmap": "PuOr_r", "vmin": -scale, "vmax": scale}),
        (
            "purity",
            np.where(read, layer_rows(info.purity), np.nan),
            {"cmap": "PuOr_r", "norm": TwoSlopeNorm(0.5, 0, 1)},
        ),
    ]
    scores = (
        ("magnitude", info.magnitude_score, magnitude_radius),
        ("direction", info.direction_score, direction_radius),
    )
    for name, values, radius in scores:
        score = layer_rows(values)
        score = np.where(np.isfinite(score) & read, score, np.nan)
        centre = radius if np.isfinite(radius) else max(1.0, float(np.nanmax(score, initial=1.0)))
        top = max(2 * centre, min(4 * centre, float(np.nanmax(score, initial=0.0))))
        panels.append(
            (f"{name} MZ-score, radius {radius:g}", score, {"cmap": "PuOr_r", "norm": TwoSlopeNorm(centre, 0, top)})
        )
    last = len(causes.CAUSES) - 0.5
    panels.append((_CAUSE, cause, {"cmap": ListedColormap(list(causes.COLOURS)), "vmin": -0.5, "vmax": last}))
    return heatmaps(panels, list(layers(info.weight)), saved.malicious, title, saved.names())


def draw_weights(infos: Mapping[str, Any], saved: Round, title: str = "") -> Figure:
    """Heatmaps client x layer of the weight that each rule gave, times n: 1 is the share in a plain mean, 0 is dropped.

    Args:
      infos: diagnostics by the name of the rule, from `filtering.apply`.
      saved: the round; its malicious clients are the rows on top.
      title: of the whole picture.
    """
    shares = {name: layer_rows(info.weight) * len(saved.malicious) for name, info in infos.items()}
    top = max(2.0, *(float(share.max()) for share in shares.values()))
    panels = [
        (f"{name}, weight x n", share, {"cmap": "cividis", "vmin": 0, "vmax": top}) for name, share in shares.items()
    ]
    names = list(layers(next(iter(infos.values())).weight))
    return heatmaps(panels, names, saved.malicious, title, saved.names())


def draw_scores(
    info: FilterDiagnostics,
    saved: Round,
    *,
    magnitude_radius: float,
    direction_radius: float = 1.0,
    only: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Histograms of both MZ-scores in each layer, benign and malicious clients on top of each other, the radius dashed.

    Args:
      info: from `filtering.lasa`.
      saved: the round.
      magnitude_radius, direction_radius: that `info` was computed with.
      only: names of the layers that are shown; the first eight if None.
      title: of the whole picture.

    Raises:
      InputError: for a layer that there is not.
    """
    from matplotlib.figure import Figure

    found = list(layers(info.weight))
    names = found[:8] if only is None else list(only)
    for name in names:
        check_choice("layer", name, tuple(found))
    figure = Figure(figsize=(1.2 + 2.0 * len(names), 4.6), layout="constrained")
    grid = figure.subplots(2, len(names), sharey="row", sharex="row", squeeze=False)
    rows = (
        ("magnitude", info.magnitude_score, magnitude_radius),
        ("direction", info.direction_score, direction_radius),
    )
    for line, (kind, scores, radius) in zip(grid, rows, strict=True):
        by_layer = layers(scores)
        finite = [x[np.isfinite(x)] for x in by_layer.values()]
        top = max([3.0, *([1.2 * radius] if np.isfinite(radius) else []), *(float(x.max()) for x in finite if x.size)])
        edges = np.linspace(0, top, 25)
        for ax, name in zip(line, names, strict=True):
            score = by_layer[name]
            parts = [score[mask & np.isfinite(score)] for mask in (saved.malicious, ~saved.malicious)]
            ax.hist(parts, edges, stacked=True, color=[MALICIOUS, BENIGN], label=["malicious", "benign"])
            if np.isfinite(radius):
                ax.axvline(radius, color="black", linestyle="--", linewidth=1.2, label=f"radius {radius:g}")
            ax.set_xlabel(f"{kind} MZ-score", fontsize=8)
            ax.tick_params(labelsize=7)
            if kind == "magnitude":
                ax.set_title(name.removeprefix("params/"), fontsize=9)
        line[0].set_ylabel("clients")
        line[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))  # beside the last panel
    if title:
        figure.suptitle(title)
    return figure


def draw_rates(frames: Sequence[pd.DataFrame], title: str = "") -> Figure:
    """Malicious clients dropped and benign clients kept against what moved, one panel for each frame.

    Args:
      frames: from `filtering.rates_against`.
      title: of the whole picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.8 + 3.2 * len(frames), 3.2), layout="constrained")
    for ax, frame in zip(figure.subplots(1, len(frames), sharey=True, squeeze=False)[0], frames, strict=True):
        setting = frame.columns[0]
        lines = (("malicious_filtered", MALICIOUS, "o-"), ("benign_kept", BENIGN, "s--"))
        for column, colour, style in lines:
            label = column.replace("_", " ")
            ax.plot(frame[setting], 100 * frame[column], style, color=colour, markersize=4, label=label)
        ax.set(xlabel=setting.replace("_", " "), ylim=(-3, 103))
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.axes[0].set_ylabel("clients and layers (%)")
    if title:
        figure.suptitle(title)
    return figure


def heatmaps(
    panels: Sequence[tuple[str, np.ndarray, dict[str, Any]]],
    names: Sequence[str],
    malicious: np.ndarray,
    title: str,
    clients: np.ndarray,
) -> Figure:
    """One heatmap a panel `(heading, (layers, n), how)`, clients as rows with the malicious on top.

    clients: what the rows are called, `(n,)`.
    """
    from matplotlib.figure import Figure
    from matplotlib.transforms import blended_transform_factory

    n, count = len(malicious), len(panels)
    order = np.argsort(~malicious, kind="stable")
    bad = int(malicious.sum())
    stacked = len(names) > _MOST_SIDE_BY_SIDE
    tall = min(12.0, 1.2 + 0.16 * n)
    wide = max(1.9, 0.26 * len(names))
    if stacked:
        figure = Figure(figsize=(wide + 2, 1.5 + tall * count), layout="constrained")
        axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    else:
        figure = Figure(figsize=(1 + (wide + 0.7) * count, 1.6 + tall), layout="constrained")
        axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    shown = [name.removeprefix("params/") for name in names]
    for place, (ax, (heading, values, how)) in enumerate(zip(axes, panels, strict=True)):
        ax.set_facecolor("#BBBBBB")  # of scores that are infinite
        image = ax.imshow(values.T[order], aspect="auto", interpolation="nearest", **how)
        bar = figure.colorbar(image, ax=ax, location="right" if stacked else "top", shrink=0.9, pad=0.01)
        bar.set_label(heading, fontsize=9)
        bar.ax.tick_params(labelsize=7)
        if heading == _CAUSE:
            bar.set_ticks(range(len(causes.CAUSES)), labels=causes.CAUSES)
        if stacked and place < count - 1:
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xticks(range(len(names)), shown, rotation=90, fontsize=8)
        ax.tick_params(left=False)
        if 0 < bad < n:
            ax.axhline(bad - 0.5, color="black", linewidth=1.5)
        if stacked or place == 0:
            step = max(1, n // 50)
            ax.set_yticks(range(0, n, step), clients[order][::step], fontsize=7)
            for label, client in zip(ax.get_yticklabels(), order[::step], strict=True):
                label.set_color(MALICIOUS if malicious[client] else BENIGN)
            beside = blended_transform_factory(ax.transAxes, ax.transData)
            for text, first, last, colour in (("malicious", 0, bad, MALICIOUS), ("benign", bad, n, BENIGN)):
                if last > first:
                    kwargs = {"transform": beside, "color": colour, "clip_on": False}
                    ax.plot([-0.02, -0.02], [first - 0.4, last - 0.6], linewidth=4, solid_capstyle="butt", **kwargs)
                    ax.text(-0.26, (first + last - 1) / 2, text, rotation=90, ha="center", va="center", **kwargs)
            ax.tick_params(axis="y", pad=6)
            ax.set_ylabel("client", fontsize=8, loc="top")
    if title:
        figure.suptitle(title)
    return figure
