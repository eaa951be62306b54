"""How robust a rule was on a saved round: the field's (f, kappa) coefficient. docs/theory.md explains it.

robustness_coefficient(aggregators.median(), saved.updates, num_malicious=5)
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pandas as pd

from lasa_jax.aggregators import Aggregator
from lasa_jax.errors import check_number
from lasa_jax.inspection.rendering import Cell, Table
from lasa_jax.inspection.rounds import PyTree, Round, as_matrix, check_needs

_MOST_SUBSETS = 20_000  # that are tried one by one


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
    stack = as_matrix(updates)
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


def squared_error(rule: Aggregator, saved: Round) -> float:
    """‖F(Delta) - mean of the benign updates‖² of any rule on a round; the rule starts afresh and is told the true f."""
    stack = as_matrix(saved.updates)
    update = _result(rule, saved.updates, int(saved.malicious.sum()), seed=0)
    return float(np.sum((update - stack[~saved.malicious].mean(axis=0)) ** 2))


def of_rules(saved: Round, rules: Mapping[str, Aggregator], restarts: int = 20) -> pd.DataFrame:
    """Rules on a round, a row each: `rule`, `coefficient` (see `robustness_coefficient`) and `squared_error`.

    Args:
      saved: the round.
      rules: by name.
      restarts: see `robustness_coefficient`.

    Raises:
      InputError: for a rule that needs to know more than the updates, which are what is saved.
    """
    for name, rule in rules.items():
        check_needs(name, rule)
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


def as_table(frame: pd.DataFrame) -> Table:
    """For print.

    Args:
      frame: from `of_rules`.
    """
    rows = [(Cell(x.rule), Cell(f"{x.coefficient:.3g}"), Cell(f"{x.squared_error:.3g}")) for x in frame.itertuples()]
    headings = ("rule", "(f, kappa) coefficient, at least", "squared error")
    notes = ("LASA with these radii, other rules with their default numbers; all with their clips.",)
    return Table("Rules on the round", headings, tuple(rows), notes=notes)


def quotient(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, where 0 / 0 is 0."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((part == 0) & (whole == 0), 0.0, part / whole)


def _result(rule: Aggregator, updates: PyTree, num_malicious: int, seed: int) -> np.ndarray:
    """F(Delta), float64 `(d,)`."""
    state = rule.init(jax.tree.map(lambda x: x[0], updates))
    key = jax.random.key(seed)
    update = jax.jit(lambda x: rule.aggregate(x, state, key=key, num_malicious=num_malicious)[0])(updates)
    return as_matrix(jax.tree.map(lambda x: x[None], update))[0]


def _ratios(member: np.ndarray, gram: np.ndarray, rounding: float) -> np.ndarray:
    """‖mean_S‖² / (mean of ‖x_i‖² - ‖mean_S‖²) of rows relative to F, for subsets bool `(subsets, n)`."""
    share = member / member[0].sum()
    error = np.sum((share @ gram) * share, axis=1)
    squares = share @ np.diagonal(gram)
    variance = squares - error
    variance = np.where(variance <= rounding + 1e-14 * squares, 0.0, variance)
    return quotient(np.where(error <= rounding, 0.0, error), variance)


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
