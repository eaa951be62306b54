"""What a comparison with one of our methods found, in words."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

MOST_SHOWN = 20


class Finding(NamedTuple):
    """A check that does not hold.

    Attributes:
      check: its name.
      failed, tried: on how many of the inputs it does not hold, and how many there were.
      inputs: the arguments of the first of these calls, by name.
      wanted: what holds for our method there; of several that are allowed the nearest.
      found: what the function gave: an array, or one line about what it raised.
      difference: the largest over all inputs, infinite where shapes differ, numbers are not finite or it raised.
    """

    check: str
    failed: int
    tried: int
    inputs: Mapping[str, np.ndarray]
    wanted: np.ndarray | str
    found: np.ndarray | str
    difference: float

    def __str__(self) -> str:
        shown = {**self.inputs, "wanted": self.wanted, "found": self.found}
        lines = [f"  DIFFERS  {self.check}: on {self.failed} of {self.tried} inputs, by up to {self.difference:.3g}"]
        lines += [f"             {name:8} {_text(value)}" for name, value in shown.items()]
        return "\n".join(lines)


class Report(NamedTuple):
    """What holds of a function and what differs. `print` shows it whole.

    Attributes:
      like: our method and its parameters, as text.
      library: whose arrays the function was given.
      held: of each check that holds, on how many inputs.
      failures: the checks that do not; empty where the function is what it is compared with.
      not_asked: checks that were left out, and why.
      hint: what would make it agree, where that was found.
    """

    like: str
    library: str
    held: Mapping[str, int]
    failures: tuple[Finding, ...]
    not_asked: Mapping[str, str]
    hint: str

    def __str__(self) -> str:
        total = len(self.held) + len(self.failures)
        lines = [f"{self.like}, given arrays of {self.library}: {len(self.held)} of {total} checks hold"]
        lines += [f"  holds    {check}: {count} input{'s' * (count != 1)}" for check, count in self.held.items()]
        lines += [str(finding) for finding in self.failures]
        lines += [f"  not asked: {check}, {why}" for check, why in self.not_asked.items()]
        return "\n".join(lines + [f"  hint: {self.hint}"] * bool(self.hint))


class Trial:
    """Collects comparisons, check by check.

    Args:
      tolerance: two results are the same if no entry differs by more than this times the scale of the input, which is the
        median norm of its finite rows, or the wanted entry where that is larger.
      without: names of checks that are left out.
    """

    def __init__(self, tolerance: float, without: Collection[str] = ()) -> None:
        self.tolerance = tolerance
        self.tried: dict[str, int] = {}
        self.failures: dict[str, Finding] = {}
        self.not_asked: dict[str, str] = dict.fromkeys(without, "as told")

    def compare(
        self,
        check: str,
        inputs: Mapping[str, np.ndarray],
        found: np.ndarray | str,
        *allowed: np.ndarray,
        scale: float | None = None,
    ) -> bool:
        """Whether what was found is one of the results that are allowed; it is kept in either case.

        Args:
          check: its name.
          inputs: the arguments of the call by name; the first says the scale where none is given.
          found: see `Finding`.
          allowed: one result or more.
          scale: of the input.
        """
        if check in self.not_asked:
            return True
        scale = typical_norm(next(iter(inputs.values()))) if scale is None else scale
        gaps = [self._gap(found, wanted, scale) for wanted in allowed]
        best = int(np.argmin([beyond for _, beyond in gaps]))
        difference, beyond = gaps[best]
        return self._keep(check, beyond <= 0, inputs, allowed[best], found, difference)

    def hold(self, check: str, holds: bool, inputs: Mapping[str, np.ndarray], wanted: str, found: str) -> bool:
        """Keeps a check that is answered by yes or no."""
        return check in self.not_asked or self._keep(check, holds, inputs, wanted, found, np.inf)

    def agrees(self, found: np.ndarray | str, wanted: np.ndarray, scale: float) -> bool:
        """Whether two results are the same."""
        return self._gap(found, wanted, scale)[1] <= 0

    def _gap(self, found: np.ndarray | str, wanted: np.ndarray, scale: float) -> tuple[float, float]:
        """The largest difference, and by how much it is beyond what is allowed."""
        if isinstance(found, str) or found.shape != wanted.shape or not np.isfinite(found).all():
            return np.inf, np.inf
        gap = np.abs(found - wanted)
        allowed = self.tolerance * np.maximum(scale, np.abs(wanted))
        return float(gap.max(initial=0)), float((gap - allowed).max(initial=-1))

    def _keep(
        self,
        check: str,
        holds: bool,
        inputs: Mapping[str, np.ndarray],
        wanted: np.ndarray | str,
        found: np.ndarray | str,
        difference: float,
    ) -> bool:
        tried = self.tried[check] = self.tried.get(check, 0) + 1
        before = self.failures.get(check)
        if not holds and before is None:
            self.failures[check] = Finding(check, 1, tried, dict(inputs), wanted, found, difference)
        elif before is not None:
            worst = before.difference if holds else max(before.difference, difference)
            self.failures[check] = before._replace(failed=before.failed + (not holds), tried=tried, difference=worst)
        return holds

    def report(self, like: str, library: str, hint: str = "") -> Report:
        """All of it."""
        held = {check: count for check, count in self.tried.items() if check not in self.failures}
        return Report(like, library, held, tuple(self.failures.values()), self.not_asked, hint)


def typical_norm(rows: np.ndarray) -> float:
    """The median norm of the rows that are finite and not zero; 1 where there is none."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=-1)
    norms = norms[np.isfinite(norms) & (norms > 0)]
    return float(np.median(norms)) if norms.size else 1.0


def _text(value: np.ndarray | str) -> str:
    """Numbers with six digits, rows in one line, the first `MOST_SHOWN` of each."""
    if isinstance(value, str):
        return value
    if value.dtype == bool or value.ndim == 0:
        return str(value.tolist())
    if value.ndim == 1:
        more = f", and {value.size - MOST_SHOWN} more" if value.size > MOST_SHOWN else ""
        return "[" + ", ".join(f"{x:.6g}" for x in value[:MOST_SHOWN].tolist()) + more + "]"
    return "[" + ", ".join(_text(row) for row in value) + "]"
