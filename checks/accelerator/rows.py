"""Rows of the table, kept as JSON: what a compiled program costs on its target."""

import json
from collections.abc import Mapping
from typing import Any

from checks.accelerator import bound, hlo, trips
from checks.accelerator.compiling import ROOT, Compiled
from checks.accelerator.programs import Item
from checks.accelerator.targets import TARGETS
from lasa_jax.workdir import replace_file

TABLE = ROOT / "docs" / "results" / "accelerator.json"
_LARGEST = 10

Row = dict[str, Any]


def of(target: str, item: Item, made: Compiled, counted: Mapping[str, trips.Trips]) -> Row:
    """What a program costs: memory in bytes, seconds, and its largest kernels.

    Args:
      target: that it was compiled for.
      item: the program.
      made: what it was compiled to.
      counted: trips of the loops of rules, by rule.
    """
    module, figures = hlo.parse(made.text), TARGETS[target]
    loops = dict(counted.get(item.rule or "", {}))
    if (steps := item.steps()) is not None:
        loops["client.py LocalTraining.__call__.<locals>.epoch"] = [steps]
    found = bound.of(module, figures, trips.given(loops))
    exact = bound.of(module, figures, trips.given(loops), products_in="float32")
    once = bound.of(module, figures)
    seconds = {"": found.seconds, ", products in float32": exact.seconds, ", open loops once": once.seconds}
    return {
        "commit": made.commit,
        "jax": made.jax,
        "devices": made.devices,
        "compiling s": made.seconds,
        "peak": made.peak,
        "temporaries": made.temporaries,
        "stack": made.stack,
        "launches": found.launches,
        "bytes": round(found.bytes),
        "products": {kind: round(count) for kind, count in sorted(found.products.items())},
        "collectives": found.collectives,
        "loops": [list(loop) for loop in found.loops],
        **{f"bound s{kind}": None if found.unknown else round(time, 7) for kind, time in seconds.items()},
        "unknown": found.unknown,
        "largest": [_kernel(one) for one in _largest(found)],
    }


def refused(error: Exception, commit: str) -> Row:
    """A program that the target has no room for: what the compiler said."""
    return {"commit": commit, "refused": str(error).strip().splitlines()[0][:300]}


def _largest(found: bound.Bound) -> list[bound.Kernel]:
    """The ten that take longest; what is the same kernel from the same place counts together."""
    together: dict[tuple[str, str, str], bound.Kernel] = {}
    for one in found.kernels:
        key = (one.op, one.shape, one.path)
        times = one.times + (together[key].times if key in together else 0)
        together[key] = one._replace(times=times)
    return sorted(together.values(), key=lambda one: -one.times * one.seconds)[:_LARGEST]


def _kernel(one: bound.Kernel) -> Row:
    """One of the largest, as short as it can be told apart."""
    shape = one.shape if len(one.shape) < 60 else f"{one.shape[:57]}..."
    return {
        "kernel": f"{one.op} {shape}",
        "from": "/".join(one.path.split("/")[-3:]),
        "times": one.times,
        "seconds": float(f"{one.times * one.seconds:.3g}"),
        "read": round(one.charge.read),
        "written": round(one.charge.written),
        "products": {kind: round(count) for kind, count in one.charge.products.items()},
    }


def read() -> dict[str, dict[str, Row]]:
    """The table that is kept: rows by column and name. A column is a target, or a target and "before".

    "trips" is one too: the trips of the loops of each rule that has some of unknown length.
    """
    return json.loads(TABLE.read_text()) if TABLE.is_file() else {}


def write(column: str, name: str, row: Row) -> None:
    """Puts one row into the table, so that what was done before an end is not lost."""
    table = read()
    table.setdefault(column, {})[name] = row
    replace_file(TABLE, json.dumps(table, indent=1) + "\n")
