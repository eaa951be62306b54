"""The paper's robustness bound, measured on a saved round. docs/theory.md explains it.

saved = rounds.load_round("round.npz")           # with nu and zeta, else: noise=0.02, divergence=0.1
frame = against_sparsity(saved, magnitude_radius=2.0)
frame.loc[frame.bound.idxmin(), "sparsity_level"]                   # where the bound is smallest
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from lasa_jax import aggregators
from lasa_jax.aggregators import Rows
from lasa_jax.errors import InputError, check_number
from lasa_jax.inspection.coefficient import quotient
from lasa_jax.inspection.drawing import BENIGN, MALICIOUS
from lasa_jax.inspection.rendering import Cell, Figure, Table
from lasa_jax.inspection.rounds import PyTree, Round, as_matrix

_LEVELS = tuple(np.linspace(0, 1, 21).round(2).tolist())


class Bound(NamedTuple):
    """Equation (14) on one round, and the parts that it is made of.

    squared_error: ‖F(Delta) - mean of the benign updates‖². bound: kappa. tightness: their quotient, at most 1 where the
    bound holds; where it is larger although all assumptions hold, it is the proof that does not (docs/theory.md).
    layered_bound: kappa with b_by_layer for b_k, and with C_λm² only of malicious clients that some layer keeps: what the
    steps of the proof give. c_k: largest share of ‖Delta_i - mean‖² that is in client i's kept entries. b_k: largest share
    of ‖mean‖² that is in the entries that client i zeroed. b_by_layer: the same for each layer, where the clients may
    differ, added up. update_bound: C², the largest ‖Delta_i‖² of a benign client. malicious_bound: C_λm², of a malicious
    one. noise, divergence: nu and zeta. smallest_kept: min |S^l| over the layers. enough_kept: whether it is at
    least n/2 - f, which the proof assumes. benign_variance: (1/|B|) sum of ‖Delta_i - mean‖² over benign i.
    lemma_4: 2 nu + zeta, which is to bound it. epsilon_low, epsilon_high: conditions 1 and 2 hold for the positive epsilon
    between them. conditions_hold: whether there is one.
    """

    squared_error: float
    bound: float
    tightness: float
    layered_bound: float
    c_k: float
    b_k: float
    b_by_layer: float
    update_bound: float
    malicious_bound: float
    noise: float
    divergence: float
    smallest_kept: int
    enough_kept: bool
    benign_variance: float
    lemma_4: float
    epsilon_low: float
    epsilon_high: float
    conditions_hold: bool


def measure(
    saved: Round,
    *,
    noise: float | None = None,
    divergence: float | None = None,
    sparsity_level: float = 0.3,
    magnitude_radius: float = 1.0,
    direction_radius: float = 1.0,
) -> Bound:
    """The error of LASA without its clip on one round, and the bound of the supplement's equation (14) on it.

        kappa = c_k (1 + f / (n - 2f)) (4 nu + 2 zeta + 4 C_λm² + 4 C²) + b_k C²
        c_k = max_i ‖[Delta_i - mean]_{K_i}‖² / ‖Delta_i - mean‖²,    b_k = max_i ‖[mean]_{K_i^-}‖² / ‖mean‖²
        condition 1: c_k <= 1 / (1 + epsilon),    condition 2: b_k / c_k <= epsilon ((4 nu + 2 zeta + 4 C_λm²) / C² + 4)

    mean is that of the benign updates, K_i are the entries of client i that sparsification keeps and K_i^- the others; the
    maxima are over benign and malicious clients. Source: section F.2. The paper assumes: no clip of the updates, local SGD
    without momentum, a learning rate of at most 1 / (2 tau) for tau local steps, and |S^l| >= n/2 - f in every layer
    (`enough_kept`). Even then the bound may be broken, and `layered_bound` holds, see docs/theory.md.
    Whether a saved round was trained so is for the caller to know.

    Args:
      saved: the round; its malicious mask says who is benign.
      noise: nu, the variance of a benign client's stochastic gradient, see `variances`; the round's own if None.
      divergence: zeta, the variance of the benign clients' full gradients between clients; the round's own if None.
      sparsity_level, magnitude_radius, direction_radius: of LASA.

    Raises:
      InputError: for a number out of range, updates that are not finite, or n <= 2f, where there is no bound.
    """
    nu, zeta = (_known(saved, name, value) for name, value in (("noise", noise), ("divergence", divergence)))
    stack, malicious = as_matrix(saved.updates), saved.malicious
    n, f = len(malicious), int(malicious.sum())
    if n <= 2 * f:
        raise InputError(f"malicious: {f} of {n} clients, allowed are fewer than half")
    aggregators.lasa(sparsity_level, magnitude_radius, direction_radius)  # checks them
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), saved.updates)
    num_kept = aggregators.num_kept_entries(params, sparsity_level)
    radii = (float(magnitude_radius), float(direction_radius))
    update, weights, sparse = jax.device_get(_unclipped_lasa(saved.updates, num_kept, *radii))
    mean = stack[~malicious].mean(axis=0)
    error = float(np.sum((as_matrix(jax.tree.map(lambda x: x[None], update))[0] - mean) ** 2))
    kept = _kept_entries(sparse, whole=num_kept >= aggregators.num_kept_entries(params, 0))
    distance = (stack - mean) ** 2
    c_k = float(quotient((distance * kept).sum(axis=1), distance.sum(axis=1)).max())
    ends = np.cumsum([x[0].size for x in jax.tree.leaves(saved.updates)])[:-1]
    zeroed = np.stack([part.sum(axis=1) for part in np.split(mean**2 * ~kept, ends, axis=1)])  # (layers, n)
    b_k, b_by_layer = (
        float(quotient(x, np.sum(mean**2))) for x in (zeroed.sum(axis=0).max(), zeroed.max(axis=1).sum())
    )
    squares = (stack**2).sum(axis=1)
    chosen = np.stack([np.asarray(w) != 0 for w in jax.tree.leaves(weights)])  # (layers, n)
    update_bound = float(squares[~malicious].max())
    malicious_bound = float(squares[malicious].max(initial=0.0))
    kept_bound = float(squares[malicious & chosen.any(axis=0)].max(initial=0.0))

    def kappa(b: float, of_malicious: float) -> float:
        spread = 4 * nu + 2 * zeta + 4 * of_malicious + 4 * update_bound
        return c_k * (1 + f / (n - 2 * f)) * spread + b * update_bound

    spread = 4 * nu + 2 * zeta + 4 * malicious_bound
    smallest = int(chosen.sum(axis=1).min())
    low = b_k * update_bound / (c_k * (spread + 4 * update_bound)) if c_k * update_bound > 0 else math.inf
    high = 1 / c_k - 1 if c_k > 0 else math.inf
    return Bound(
        squared_error=error,
        bound=kappa(b_k, malicious_bound),
        tightness=float(quotient(error, kappa(b_k, malicious_bound))),
        layered_bound=kappa(b_by_layer, kept_bound),
        c_k=c_k,
        b_k=b_k,
        b_by_layer=b_by_layer,
        update_bound=update_bound,
        malicious_bound=malicious_bound,
        noise=nu,
        divergence=zeta,
        smallest_kept=smallest,
        enough_kept=smallest >= n / 2 - f,
        benign_variance=float(distance[~malicious].sum(axis=1).mean()),
        lemma_4=2 * nu + zeta,
        epsilon_low=low,
        epsilon_high=high,
        conditions_hold=high > 0 and low <= high and low < math.inf,
    )


def _known(saved: Round, name: str, given: float | None) -> float:
    """nu or zeta, as given or as the round has it."""
    value = getattr(saved, name) if given is None else given
    if value is None:
        raise InputError(
            f"{name}: the round does not say it; give it, or save the round with `inspection round --variances`"
        )
    check_number(name, value, low=0)
    return float(value)


def against_sparsity(
    saved: Round,
    levels: Sequence[float] = _LEVELS,
    *,
    noise: float | None = None,
    divergence: float | None = None,
    magnitude_radius: float = 1.0,
    direction_radius: float = 1.0,
) -> pd.DataFrame:
    """`measure` at every sparsity level, a row a level: `frame.loc[frame.bound.idxmin()]` is where the bound is smallest.

    Args:
      saved: the round.
      levels: sparsity levels.
      noise, divergence, magnitude_radius, direction_radius: as in `measure`.
    """
    rows = []
    for level in levels:
        found = measure(
            saved,
            noise=noise,
            divergence=divergence,
            sparsity_level=level,
            magnitude_radius=magnitude_radius,
            direction_radius=direction_radius,
        )
        rows.append({"sparsity_level": level, **found._asdict()})
    return pd.DataFrame(rows)


def as_table(frame: pd.DataFrame) -> Table:
    """The main columns of `against_sparsity`; the smallest error and bound are marked as best, and named in the notes.

    Args:
      frame: from `against_sparsity`.
    """
    shown = {
        "squared_error": "squared error",
        "bound": "bound (14)",
        "tightness": "tightness",
        "layered_bound": "bound by layers",
        "c_k": "c_k",
        "b_k": "b_k",
        "b_by_layer": "b by layers",
    }
    best = {name: frame["sparsity_level"][frame[name].idxmin()] for name in ("squared_error", "bound")}
    rows = []
    for _, row in frame.iterrows():
        numbers = [Cell(f"{row[name]:.3g}", int(best.get(name) == row["sparsity_level"])) for name in shown]
        said = ["hold" if row["conditions_hold"] else "no epsilon", f"{row['smallest_kept']}"]
        rows.append((Cell(f"{row['sparsity_level']:g}"), *numbers, *map(Cell, said)))
    first = frame.iloc[0]
    notes = [
        f"The error is smallest at sparsity level {best['squared_error']:g}, the bound at {best['bound']:g}.",
        f"nu {first['noise']:.3g}, zeta {first['divergence']:.3g}, C² {first['update_bound']:.3g}, "
        f"C_λm² {first['malicious_bound']:.3g}.",
    ]
    if frame["enough_kept"].all():
        notes.append("Every layer keeps at least n/2 - f clients, as the proof assumes.")
    else:
        notes.append(
            "Some layer keeps fewer than n/2 - f clients: the proof does not cover those rows; take larger radii."
        )
    lemma = f"Benign updates vary by {first['benign_variance']:.3g}, Lemma 4 says at most {first['lemma_4']:.3g}"
    if first["benign_variance"] > first["lemma_4"]:
        lemma += ": that is not so here, and nothing says that the bound holds"
    notes += [f"{lemma}.", "It assumes SGD without momentum and clip, and a learning rate of at most 1 / (2 tau), too."]
    if over := frame[frame["tightness"] > 1]["sparsity_level"].tolist():
        notes.append(
            f"The error is larger than the bound at sparsity level {', '.join(f'{level:g}' for level in over)}."
        )
    headings = ("sparsity level", *shown.values(), "conditions 1, 2", "fewest kept")
    return Table("The paper's bound on a round", headings, tuple(rows), notes=tuple(notes))


def draw_against_sparsity(frame: pd.DataFrame, title: str = "") -> Figure:
    """Error and bound, tightness, and c_k and b_k against the sparsity level; stars mark the smallest error and bound.

    Args:
      frame: from `against_sparsity`.
      title: of the whole picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    level = frame["sparsity_level"]
    lines = (("bound", "bound, equation (14)", MALICIOUS, "s--"), ("squared_error", "squared error", BENIGN, "o-"))
    left.plot(level, frame["layered_bound"], "v:", color="#666666", markersize=4, label="bound by layers")
    for column, label, colour, style in lines:
        left.plot(level, frame[column], style, color=colour, markersize=4, label=label)
        least = frame[column].idxmin()
        left.plot(level[least], frame[column][least], "*", color=colour, markersize=14, markeredgecolor="black")
    left.set(yscale="log", ylabel="squared distance to the benign mean")
    middle.plot(level, frame["tightness"], "o-", color=BENIGN, markersize=4)
    middle.set(yscale="log", ylabel="tightness: error / bound")
    right.plot(level, frame["c_k"], "o-", color=BENIGN, markersize=4, label="c_k, of the distances, kept")
    right.plot(level, frame["b_k"], "s--", color=MALICIOUS, markersize=4, label="b_k, of the mean, zeroed")
    right.set(ylabel="share", ylim=(-0.03, 1.03))
    for ax in (left, middle, right):
        ax.set_xlabel("sparsity level")
        ax.grid(alpha=0.3)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    if title:
        figure.suptitle(title)
    return figure


@jax.jit
def _unclipped_lasa(
    updates: PyTree, num_kept: Any, magnitude_radius: Any, direction_radius: Any
) -> tuple[PyTree, PyTree, PyTree]:
    """The update, the weights, and the sparsified stack."""
    sparsify = aggregators.keep_top_k(num_kept=num_kept)
    rule = aggregators.chain(sparsify, aggregators.layer_filter(magnitude_radius, direction_radius))
    update, _, info = rule.aggregate(updates, (), key=jax.random.key(0), num_malicious=0)
    return update, info.weight, sparsify(Rows.of(updates), key=jax.random.key(0), num_malicious=0).written


def _kept_entries(sparse: PyTree, *, whole: bool) -> np.ndarray:
    """K_i, bool `(n, d)`: what `keep_top_k` left of each update; all of it if `whole`, and all of vectors."""

    def kept(x: np.ndarray) -> np.ndarray:
        return np.ones((len(x), x[0].size), bool) if whole or x.ndim < 3 else x.reshape(len(x), -1) != 0

    return np.concatenate([kept(x) for x in jax.tree.leaves(sparse)], axis=1)
