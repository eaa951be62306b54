"""Who was dropped in which layer and why: one round's updates saved, filtered again with other numbers, and drawn.

    save_round("round.npz", Round(*replay.received(before)))           # what the server received
    saved = load_round("round.npz")
    info = lasa(saved, sparsity_level=0.3, magnitude_radius=2.0)       # the filter again, nothing is trained
    draw_filtering(info, saved, magnitude_radius=2.0).savefig("filtering.png")

`python -m lasa_jax.inspection round RUN 12` writes such a file for a round of a run.

Colours are those of Okabe and Ito and of maps that colour-blind readers can tell apart.
"""

import os
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from lasa_jax import aggregators
from lasa_jax.aggregators import Aggregator, FilterDiagnostics
from lasa_jax.errors import InputError, check_choice, check_number
from lasa_jax.workdir.records import layer_names

PyTree = Any
Figure = Any  # matplotlib's, which is imported only to draw: half a second that a run should not wait for

BENIGN, MALICIOUS = "#0072B2", "#D55E00"
_MOST_SIDE_BY_SIDE = 16  # layers, before the panels are stacked instead
_PREFIX = "updates/"


class Round(NamedTuple):
    """What the server received in one round.

    updates: nested dicts of arrays `(n, ...)`. malicious: bool `(n,)`, the truth that the server does not know. clients:
    their ids in the population, int `(n,)`, as in what a run records. noise, divergence: nu and zeta of the theory, see
    `robustness.bound`. The last three are None where they are not known.
    """

    updates: PyTree
    malicious: np.ndarray
    clients: np.ndarray | None = None
    noise: float | None = None
    divergence: float | None = None

    def names(self) -> np.ndarray:
        """What the clients are called: their ids, or their rows where those are not known."""
        return np.arange(len(self.malicious)) if self.clients is None else self.clients


def layers(tree: PyTree) -> dict[str, Any]:
    """The leaves of a pytree by readable names in the order of its flattened form: `{"params/conv1/kernel": ...}`."""
    return dict(zip(layer_names(tree), jax.tree.leaves(tree), strict=True))


def save_round(path: str | os.PathLike[str], saved: Round) -> None:
    """Writes a round to an .npz file, which appears whole or not at all.

    Args:
      path: the file.
      saved: the round.

    Raises:
      InputError: if the arrays do not have one row a client, or the file cannot be written.
    """
    arrays: dict[str, Any] = {_PREFIX + name: np.asarray(leaf) for name, leaf in layers(saved.updates).items()}
    mask = np.asarray(saved.malicious, bool)
    if mask.ndim != 1 or not arrays or any(x.shape[:1] != mask.shape for x in arrays.values()):
        found = ", ".join(str(x.shape) for x in arrays.values())
        raise InputError(
            f"updates: allowed are arrays with a row for each of {mask.shape} clients, found {found or 'none'}"
        )
    if saved.clients is not None and np.shape(saved.clients) != mask.shape:
        raise InputError(f"clients: allowed is an id for each of {mask.shape} clients, found {np.shape(saved.clients)}")
    for name, value in (("noise", saved.noise), ("divergence", saved.divergence)):
        if value is not None:
            check_number(name, value, low=0, high=sys.float_info.max)
            arrays[name] = np.float64(value)
    if saved.clients is not None:
        arrays["clients"] = np.asarray(saved.clients, np.int64)
    arrays["malicious"] = mask
    path = Path(path)
    check_file(path)
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def check_file(path: Path) -> None:
    """Raises InputError if a file cannot be put there, so that nothing is computed in vain."""
    if path.is_dir() or not path.name or not path.parent.is_dir():
        raise InputError(f"{str(path)!r}: cannot be written, allowed is a file in a folder that is there")


def load_round(path: str | os.PathLike[str]) -> Round:
    """Reads what `save_round` wrote.

    Raises:
      InputError: if the file cannot be read or holds something else.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        # NumPy's own words advise to unpickle what is no archive.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is no whole .npz file"
        raise InputError(f"{path}: cannot be read as a saved round ({reason})") from None
    mask, clients, *numbers = (arrays.pop(name, None) for name in ("malicious", "clients", "noise", "divergence"))
    whole = mask is not None and mask.dtype == bool and mask.ndim == 1 and bool(arrays)
    whole = whole and (clients is None or (clients.dtype.kind == "i" and clients.shape == mask.shape))
    whole = whole and all(x is None or (x.dtype.kind == "f" and x.ndim == 0 and 0 <= x < np.inf) for x in numbers)
    if not whole or any(not name.startswith(_PREFIX) or x.shape[:1] != mask.shape for name, x in arrays.items()):
        raise InputError(f"{path}: is no saved round, allowed is what lasa_jax.inspection.filtering.save_round writes")
    updates: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.removeprefix(_PREFIX).split("/")
        table = updates
        for folder in folders:
            table = table.setdefault(folder, {})
        table[last] = array
    noise, divergence = (None if x is None else float(x) for x in numbers)
    return Round(updates, mask, clients, noise, divergence)


def apply(rule: Aggregator, saved: Round, num_malicious: int | None = None) -> Any:
    """The diagnostics of any rule on a saved round, as NumPy arrays; the rule starts afresh.

    Args:
      rule: for instance `aggregators.dnc()`.
      saved: the round.
      num_malicious: the server's f; the true number if None.
    """
    f = int(saved.malicious.sum()) if num_malicious is None else num_malicious
    state = rule.init(jax.tree.map(lambda x: x[0], saved.updates))
    return jax.device_get(jax.jit(_diagnostics, static_argnums=0)(rule, saved.updates, state, f))


def _diagnostics(rule: Aggregator, updates: PyTree, state: PyTree, num_malicious: Any) -> Any:
    return rule.aggregate(updates, state, key=jax.random.key(0), num_malicious=num_malicious)[2]


def lasa(
    saved: Round, *, sparsity_level: float = 0.3, magnitude_radius: float = 1.0, direction_radius: float = 1.0
) -> FilterDiagnostics:
    """LASA's filter on a saved round, compiled once for all numbers. See `aggregators.lasa` for them.

    Raises:
      InputError: for a number out of range.
    """
    aggregators.lasa(sparsity_level, magnitude_radius, direction_radius)  # checks them
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), saved.updates)
    num_kept = aggregators.num_kept_entries(params, sparsity_level)
    return jax.device_get(_lasa(saved.updates, num_kept, float(magnitude_radius), float(direction_radius)))


@jax.jit
def _lasa(updates: PyTree, num_kept: Any, magnitude_radius: Any, direction_radius: Any) -> FilterDiagnostics:
    rule = aggregators.lasa(magnitude_radius=magnitude_radius, direction_radius=direction_radius, num_kept=num_kept)
    return _diagnostics(rule, updates, (), 0)


def table(info: Any, saved: Round) -> pd.DataFrame:
    """Diagnostics of a rule on a round, as a table with a row for each client and layer.

    Columns: client (its id as in what a run records, else its row in the stack), layer, malicious, kept (weight not 0), and
    every field of the diagnostics that has a number a client and layer: `weight`, and for LASA `norm`, `purity`,
    `magnitude_score`, `direction_score`.
    """
    n = len(saved.malicious)
    names = list(layers(info.weight))
    rows = pd.DataFrame(
        {
            "client": np.tile(saved.names(), len(names)),
            "layer": np.repeat(names, n),
            "malicious": np.tile(saved.malicious, len(names)),
            "kept": _stacked(info.weight).ravel() != 0,
        }
    )
    for field, value in info._asdict().items():
        leaves = layers(value)
        if list(leaves) == names and all(np.shape(x) == (n,) for x in leaves.values()):
            rows[field] = _stacked(value).ravel()
    return rows


def _stacked(tree: PyTree) -> np.ndarray:
    """`(layers, n)` of a pytree with leaves `(n,)`."""
    return np.stack([np.asarray(x) for x in layers(tree).values()])


def rates(info: Any, saved: Round) -> dict[str, float]:
    """Share of malicious clients that were dropped and of benign ones that were kept, over all layers; NaN if none."""
    kept = _stacked(info.weight) != 0
    dropped, stayed = 1 - kept[:, saved.malicious], kept[:, ~saved.malicious]
    return {
        "malicious_filtered": float(dropped.mean()) if dropped.size else np.nan,
        "benign_kept": float(stayed.mean()) if stayed.size else np.nan,
    }


def rates_against(saved: Round, setting: str, values: Sequence[float], **others: float) -> pd.DataFrame:
    """What changes when one number of LASA moves: a row a value, with `rates`.

    Args:
      saved: the round.
      setting: "sparsity_level", "magnitude_radius" or "direction_radius".
      values: of the setting.
      **others: the two numbers that stay, as of `lasa`.
    """
    check_choice("setting", setting, ("sparsity_level", "magnitude_radius", "direction_radius"))
    return pd.DataFrame(
        [{setting: value, **rates(lasa(saved, **{**others, setting: value}), saved)} for value in values]
    )


def draw_filtering(
    info: FilterDiagnostics,
    saved: Round,
    *,
    magnitude_radius: float,
    direction_radius: float = 1.0,
    title: str = "",
) -> Figure:
    """Heatmaps client x layer: norm, purity, both MZ-scores, and who was kept. Malicious clients are the rows on top.

    The norm is shown relative to the layer's median. The scores change colour at their radius; one that is infinite (all
    clients alike) is grey.

    Args:
      info: from `lasa`.
      saved: the round.
      magnitude_radius, direction_radius: that `info` was computed with.
      title: of the whole picture.
    """
    from matplotlib.colors import ListedColormap, TwoSlopeNorm

    norm = _stacked(info.norm)
    middle = np.median(norm, axis=1, keepdims=True)
    doubled = np.log2(np.maximum(norm, 1e-30) / np.maximum(middle, 1e-30))
    scale = float(np.clip(np.abs(doubled).max(), 0.5, 4))
    panels: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("norm / layer's median, log2", doubled, {"cmap": "PuOr_r", "vmin": -scale, "vmax": scale}),
        ("purity", _stacked(info.purity), {"cmap": "PuOr_r", "norm": TwoSlopeNorm(0.5, 0, 1)}),
    ]
    scores = (
        ("magnitude", info.magnitude_score, magnitude_radius),
        ("direction", info.direction_score, direction_radius),
    )
    for name, values, radius in scores:
        score = _stacked(values)
        score = np.where(np.isfinite(score), score, np.nan)
        centre = radius if np.isfinite(radius) else max(1.0, float(np.nanmax(score, initial=1.0)))
        top = max(2 * centre, min(4 * centre, float(np.nanmax(score, initial=0.0))))
        panels.append(
            (f"{name} MZ-score, radius {radius:g}", score, {"cmap": "PuOr_r", "norm": TwoSlopeNorm(centre, 0, top)})
        )
    kept = (_stacked(info.weight) != 0).astype(float)
    panels.append(("kept", kept, {"cmap": ListedColormap(["#222222", "#E8E8E8"]), "vmin": 0, "vmax": 1}))
    return heatmaps(panels, list(layers(info.weight)), saved.malicious, title, saved.names())


def draw_weights(infos: Mapping[str, Any], saved: Round, title: str = "") -> Figure:
    """Heatmaps client x layer of the weight that each rule gave, times n: 1 is the share in a plain mean, 0 is dropped.

    Args:
      infos: diagnostics by the name of the rule, from `apply`.
      saved: the round; its malicious clients are the rows on top.
      title: of the whole picture.
    """
    shares = {name: _stacked(info.weight) * len(saved.malicious) for name, info in infos.items()}
    top = max(2.0, *(float(share.max()) for share in shares.values()))
    panels = [
        (f"{name}, weight x n", share, {"cmap": "cividis", "vmin": 0, "vmax": top}) for name, share in shares.items()
    ]
    names = list(layers(next(iter(infos.values())).weight))
    return heatmaps(panels, names, saved.malicious, title, saved.names())


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
        if heading == "kept":
            bar.set_ticks([0.25, 0.75], labels=["dropped", "kept"])
        bar.set_label(heading, fontsize=9)
        bar.ax.tick_params(labelsize=7)
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
      info: from `lasa`.
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
    """Malicious clients dropped and benign clients kept against what moved, a panel a frame from `rates_against`."""
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
