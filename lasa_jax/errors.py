"""The one error that a user is shown without a traceback, and the check of a number that raises it."""

import math

import jax
import numpy as np


class InputError(ValueError):
    """A setting, a file or a directory is not as it must be: one line that names it, its value and what is allowed."""


def check_number(
    name: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> None:
    """Raises InputError unless `low <= value <= high` and `above < value < below`, and `value` is an integer if `whole`.

    Infinity passes where no bound excludes it, NaN never does. A traced array has no value yet and passes.
    """
    if isinstance(value, jax.core.Tracer):
        return
    bounds = [f"{low:g} <= "] * (low > -math.inf) + [f"{above:g} < "] * (above > -math.inf)
    bounds += ["{}"] + [f" <= {high:g}"] * (high < math.inf) + [f" < {below:g}"] * (below < math.inf)
    allowed = "".join(bounds).format(name) if len(bounds) > 1 else "any number"
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} = {value!r}: allowed is {allowed}") from None
    # Positive form, so that NaN fails.
    good = (numbers >= low) & (numbers <= high) & ~np.isnan(numbers)
    good &= (numbers > above) | (above == -math.inf)
    good &= (numbers < below) | (below == math.inf)
    if whole:
        allowed = f"{allowed}, a whole number"
        good &= numbers == np.floor(numbers)
    if not good.all():
        raise InputError(f"{name} = {value!r}: allowed is {allowed}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises InputError unless `value` is one of the allowed words."""
    if value not in allowed:
        raise InputError(f"{name} = {value!r}: allowed are {', '.join(allowed)}")
