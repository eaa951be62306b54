"""The paper's robustness bound and the field's coefficient, measured on a saved round. docs/theory.md explains both.

saved = filtering.load_round("round.npz")        # with nu and zeta, else: noise=0.02, divergence=0.1
frame = against_sparsity(saved, magnitude_radius=2.0)
frame.loc[frame.bound.idxmin(), "sparsity_level"]                   # where the bound is smallest
robustness_coefficient(aggregators.median(), saved.updates, num_malicious=5)
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.flatten_util import ravel_pytree

from lasa_jax import aggregators
from lasa_jax.aggregators import Aggregator, Rows
from lasa_jax.errors import InputError, check_number
from lasa_jax.inspection import replay
from lasa_jax.inspection.filtering import BENIGN, MALICIOUS, Figure, PyTree, Round
from lasa_jax.report.tables import Cell, Table

_LEVELS = tuple(np.linspace(0, 1, 21).round(2).tolist())
_MOST_SUBSETS = 20_000  # that are tried one by one


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


def bound(
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
      noise: nu, the variance of a benign client's stochastic gradient, see `gradient_variances`; the round's own if None.
      divergence: zeta, the variance of the benign clients' full gradients between clients; the round's own if None.
      sparsity_level, magnitude_radius, direction_radius: of LASA.

    Raises:
      InputError: for a number out of range, updates that are not finite, or n <= 2f, where there is no bound.
    """
    nu, zeta = (_known(saved, name, value) for name, value in (("noise", noise), ("divergence", divergence)))
    stack, malicious = _flat(saved.updates), saved.malicious
    n, f = len(malicious), int(malicious.sum())
    if n <= 2 * f:
        raise InputError(f"malicious: {f} of {n} clients, allowed are fewer than half")
    aggregators.lasa(sparsity_level, magnitude_radius, direction_radius)  # checks them
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), saved.updates)
    num_kept = aggregators.num_kept_entries(params, sparsity_level)
    radii = (float(magnitude_radius), float(direction_radius))
    update, weights, sparse = jax.device_get(_unclipped_lasa(saved.updates, num_kept, *radii))
    mean = stack[~malicious].mean(axis=0)
    error = float(np.sum((_flat(jax.tree.map(lambda x: x[None], update))[0] - mean) ** 2))
    kept = _kept_entries(sparse, whole=num_kept >= aggregators.num_kept_entries(params, 0))
    distance = (stack - mean) ** 2
    c_k = float(_quotient((distance * kept).sum(axis=1), distance.sum(axis=1)).max())
    ends = np.cumsum([x[0].size for x in jax.tree.leaves(saved.updates)])[:-1]
    zeroed = np.stack([part.sum(axis=1) for part in np.split(mean**2 * ~kept, ends, axis=1)])  # (layers, n)
    b_k, b_by_layer = (
        float(_quotient(x, np.sum(mean**2))) for x in (zeroed.sum(axis=0).max(), zeroed.max(axis=1).sum())
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
        tightness=float(_quotient(error, kappa(b_k, malicious_bound))),
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
    """`bound` at every sparsity level, a row a level: `frame.loc[frame.bound.idxmin()]` is where the bound is smallest.

    Args:
      saved: the round.
      levels: sparsity levels.
      noise, divergence, magnitude_radius, direction_radius: as of `bound`.
    """
    rows = []
    for level in levels:
        found = bound(
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


def coefficients(saved: Round, rules: Mapping[str, Aggregator], restarts: int = 20) -> pd.DataFrame:
    """Rules on a round, a row each: `rule`, `coefficient` (see `robustness_coefficient`) and `squared_error`.

    Args:
      saved: the round.
      rules: by name.
      restarts: see `robustness_coefficient`.
    """
    f = int(saved.malicious.sum())
    rows = [
        {
            "rule": name,
            "coefficient": robustness_coefficient(rule, saved.updates, f, restarts=restarts),
            "squared_error": squared_error(rule, saved),
        }
        for name, rule in rules.items()
    ]
    return pd.DataFrame(rows)


def coefficients_table(frame: pd.DataFrame) -> Table:
    """For print.

    Args:
      frame: from `coefficients`.
    """
    rows = [(Cell(x.rule), Cell(f"{x.coefficient:.3g}"), Cell(f"{x.squared_error:.3g}")) for x in frame.itertuples()]
    headings = ("rule", "(f, kappa) coefficient, at least", "squared error")
    notes = ("LASA with these radii, other rules with their default numbers; all with their clips.",)
    return Table("Rules on the round", headings, tuple(rows), notes=notes)


def squared_error(rule: Aggregator, saved: Round) -> float:
    """‖F(Delta) - mean of the benign updates‖² of any rule on a round; the rule starts afresh and is told the true f."""
    stack = _flat(saved.updates)
    update = _result(rule, saved.updates, int(saved.malicious.sum()), seed=0)
    return float(np.sum((update - stack[~saved.malicious].mean(axis=0)) ** 2))


def _result(rule: Aggregator, updates: PyTree, num_malicious: int, seed: int) -> np.ndarray:
    """F(Delta), float64 `(d,)`."""
    state = rule.init(jax.tree.map(lambda x: x[0], updates))
    key = jax.random.key(seed)
    update = jax.jit(lambda x: rule.aggregate(x, state, key=key, num_malicious=num_malicious)[0])(updates)
    return _flat(jax.tree.map(lambda x: x[None], update))[0]


def _flat(updates: PyTree) -> np.ndarray:
    """`(n, d)` in float64.

    Raises:
      InputError: if an entry is not finite: the theory has no such updates.
    """
    leaves = [np.asarray(x, np.float64).reshape(len(x), -1) for x in jax.tree.leaves(updates)]
    stack = np.concatenate(leaves, axis=1)
    if not np.isfinite(stack).all():
        raise InputError("updates: hold a NaN or an infinity, allowed are finite numbers")
    return stack


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


def _quotient(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, where 0 / 0 is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((part == 0) & (whole == 0), 0.0, part / whole)


class GradientVariances(NamedTuple):
    """Measured at local models theta_i^s of benign clients i at steps s.

    noise: E‖g - grad L_i(theta_i^s)‖² of a stochastic gradient g, `(steps, clients)`.
    divergence: mean over benign j of ‖grad L_j(theta_i^s) - grad L_B(theta_i^s)‖², `(steps, clients)`.
    nu, zeta: what the assumptions ask for: the largest over the steps of the clients' mean noise; the largest divergence.
    """

    noise: np.ndarray
    divergence: np.ndarray

    @property
    def nu(self) -> float:
        return float(self.noise.mean(axis=1).max())

    @property
    def zeta(self) -> float:
        return float(self.divergence.max())


def gradient_variances(
    loss: Callable[[PyTree, jax.Array, jax.Array], jax.Array],
    models: PyTree,
    inputs: np.ndarray,
    labels: np.ndarray,
    sizes: np.ndarray,
    *,
    batch_size: int,
) -> GradientVariances:
    """The variances of gradients that assumptions 2 and 3 bound, from gradients of every example at given local models.

    Nothing is drawn: with per-example gradients g_1 .. g_N, a batch of b of the N examples without replacement has exactly

        E‖g_batch - mean‖² = (N - b) / (N - 1) * (1/b) * (1/N) sum_j ‖g_j - mean‖²

    and b is the smallest batch of an epoch, since the assumption is to hold for every step. That is right where the loss is
    a mean over examples: no batch normalisation, no dropout. One batch an epoch has no noise at all.

    Args:
      loss: `(params, input, label) -> loss` of one example; `replay.example_loss` gives it for a run.
      models: local models of the benign clients, leaves `(steps, clients, ...)`; `replay.local_models` gives those at the
        start of each epoch. Every leaf is differentiated.
      inputs, labels: of the same clients, `(clients, width, ...)`, padded.
      sizes: how many of them are real, `(clients,)`, at least 1.
      batch_size: of local training.

    Raises:
      InputError: for a client without examples or a batch size below 1.
    """
    check_number("batch_size", batch_size, low=1, whole=True)
    check_number("sizes", sizes, low=1, high=inputs.shape[1], whole=True)
    last = sizes % batch_size
    smallest = np.where(last == 0, batch_size, last)
    counts = (jnp.asarray(sizes), jnp.asarray(smallest))
    real = jnp.arange(inputs.shape[1]) < counts[0][:, None]

    def mean_loss(params: PyTree, inputs: jax.Array, labels: jax.Array, real: jax.Array) -> jax.Array:
        losses = jax.vmap(loss, (None, 0, 0))(params, inputs, labels)
        return jnp.sum(jnp.where(real, losses, 0.0)) / jnp.sum(real)

    def of_model(params: PyTree, client: jax.Array, examples: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        inputs, labels, real = examples
        full = jax.lax.map(lambda own: ravel_pytree(jax.grad(mean_loss)(params, *own))[0], examples)
        divergence = jnp.mean(jnp.sum((full - full.mean(axis=0)) ** 2, axis=1))
        each = jax.vmap(jax.grad(loss), (None, 0, 0))(params, inputs[client], labels[client])
        squares = jax.vmap(lambda g: jnp.sum((ravel_pytree(g)[0] - full[client]) ** 2))(each)
        size, batch = counts[0][client], counts[1][client]
        variance = jnp.sum(jnp.where(real[client], squares, 0.0)) / size
        return variance / batch * (size - batch) / jnp.maximum(size - 1, 1), divergence

    @jax.jit
    def all_models(models: PyTree, examples: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        clients = jnp.arange(len(sizes))
        one = lambda row: of_model(row[0], row[1], examples)  # noqa: E731
        return jax.lax.map(lambda stage: jax.lax.map(one, (stage, clients)), models)

    noise, divergence = all_models(models, (jnp.asarray(inputs), jnp.asarray(labels), real))
    return GradientVariances(np.asarray(noise, np.float64), np.asarray(divergence, np.float64))


def round_variances(before: replay.Before, malicious: np.ndarray) -> GradientVariances:
    """`gradient_variances` of a round's benign clients, at their models at the start of each epoch.

    That takes epochs * clients² full gradients.

    Args:
      before: from `replay.before_round`.
      malicious: bool `(n,)`, from `replay.received`.

    Raises:
      InputError: for a model with batch normalisation or dropout, or a round without benign clients.
    """
    inputs, labels, sizes = replay.local_examples(before)
    model = before.program.local_training.model
    if set(before.state.variables) != {"params"}:
        raise InputError("variances: the model has batch statistics, allowed is one whose loss is a mean over examples")
    if malicious.all():
        raise InputError("variances: no client of the round is benign")
    # Dropout is noise in the gradients of training, which the loss below has not.
    one, other = (
        model.apply(before.state.variables, inputs[:, 0], train=True, key=jax.random.key(k))[0] for k in (0, 1)
    )
    if not np.array_equal(one, other):
        raise InputError("variances: the model has dropout, allowed is one whose training draws nothing but batches")
    return gradient_variances(
        replay.example_loss(before),
        jax.tree.map(lambda x: x[:, ~malicious], replay.local_models(before)),
        inputs[~malicious],
        labels[~malicious],
        sizes[~malicious],
        batch_size=before.program.local_training.batch_size,
    )


def robustness_coefficient(
    rule: Aggregator, updates: PyTree, num_malicious: int, *, restarts: int = 20, seed: int = 0
) -> float:
    """How robust a rule was on one set of updates, whoever was malicious: the field's (f, kappa)-robustness.

        kappa = max over subsets S of n - f clients of ‖F(x) - mean_S‖² / ((1/|S|) sum of ‖x_i - mean_S‖² over S)

    A rule is (f, kappa)-robust if this is at most kappa for all updates; on one set of updates it is a lower bound of the
    rule's kappa. Infinite where S agrees and F(x) is elsewhere. Source: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and
    Stephan, AISTATS 2023.

    All subsets are tried where there are at most 20,000; else swaps of two clients climb from random subsets, so that the
    result is a lower bound of the maximum too.

    Args:
      rule: any rule.
      updates: leaves `(n, ...)`.
      num_malicious: f, `0 <= f < n / 2`; the rule is told it.
      restarts: random subsets from which the search starts.
      seed: of the subsets.

    Raises:
      InputError: for a number out of range, or updates that are not finite.
    """
    stack = _flat(updates)
    n = len(stack)
    check_number("num_malicious", num_malicious, low=0, below=n / 2, whole=True)
    check_number("restarts", restarts, low=1, whole=True)
    away = stack - _result(rule, updates, num_malicious, seed)
    gram = away @ away.T
    rounding = 1e-12 * float(np.median((stack**2).sum(axis=1)))  # of F, which is in float32
    size = n - num_malicious
    if math.comb(n, size) <= _MOST_SUBSETS:
        subsets = np.array(list(itertools.combinations(range(n), size)))
        member = np.zeros((len(subsets), n), bool)
        np.put_along_axis(member, subsets, True, axis=1)
        return float(_ratios(member, gram, rounding).max())
    rng = np.random.default_rng(seed)
    return max(_climb(rng.permutation(n) < size, gram, rounding) for _ in range(restarts))


def _ratios(member: np.ndarray, gram: np.ndarray, rounding: float) -> np.ndarray:
    """‖mean_S‖² / (mean of ‖x_i‖² - ‖mean_S‖²) of rows relative to F, for subsets bool `(subsets, n)`."""
    share = member / member[0].sum()
    error = np.sum((share @ gram) * share, axis=1)
    squares = share @ np.diagonal(gram)
    variance = squares - error
    variance = np.where(variance <= rounding + 1e-14 * squares, 0.0, variance)
    return _quotient(np.where(error <= rounding, 0.0, error), variance)


def _climb(member: np.ndarray, gram: np.ndarray, rounding: float) -> float:
    """The largest ratio that swaps of two clients reach, each time the best of all swaps."""
    best = float(_ratios(member[None], gram, rounding)[0])
    while best < math.inf:
        inside, outside = np.flatnonzero(member), np.flatnonzero(~member)
        leave, enter = (x.ravel() for x in np.meshgrid(inside, outside))
        swapped = np.repeat(member[None], len(leave), axis=0)
        swapped[np.arange(len(leave)), leave] = False
        swapped[np.arange(len(leave)), enter] = True
        ratios = _ratios(swapped, gram, rounding)
        if ratios.max() <= best:
            break
        best, member = float(ratios.max()), swapped[ratios.argmax()]
    return best


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
