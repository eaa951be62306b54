"""The forms that a GPU gets, which JAX shows without a compiler for it: `python -m checks.forms [--write]`.

Every rule, attack, pre-aggregator and model is lowered for CUDA inside `ops.compiling_for("gpu")`, on any machine, for 100
updates of the MNIST CNN. What tells good forms from bad ones is counted and compared with docs/results/forms.json: loops,
sorts, and arrays of at least a tenth of the stack that the compiler cannot leave out, since what makes them is no map over
entries. `--write` makes the table anew.
"""

import argparse
import functools
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from checks.accelerator import programs
from lasa_jax import aggregators, attacks, ops
from lasa_jax.testing import built_in

TABLE = Path(__file__).parents[1] / "docs" / "results" / "forms.json"
_LARGE = 0.1  # of the stack
# What writes its result, or keeps it through a loop; everything else may be part of what reads it.
_WRITES = "concatenate|convolution|dot_general|dynamic_update_slice|gather|scatter|select_and_scatter|sort|while"
_WIDTHS = {"f32": 4, "f64": 8, "i32": 4, "ui32": 4, "i1": 1, "i8": 1, "ui8": 1, "bf16": 2, "i64": 8, "ui64": 8}

Forms = dict[str, Any]


def items() -> dict[str, Callable[[Any], programs.Program]]:
    """What is lowered, by name: functions of where the arrays are."""
    one = programs.update()
    found: dict[str, Callable[[Any], programs.Program]] = {}
    for name in aggregators.names():
        found[f"rule {name}"] = functools.partial(programs.rule, built_in(name), one)
    for name, make in aggregators.PREAGGREGATORS.items():
        chained = aggregators.chain(make(), aggregators.median())
        found[f"pre-aggregator {name}, then median"] = functools.partial(programs.rule, chained, one)
    for name in attacks.names():
        found[f"attack {name}"] = functools.partial(programs.attack, attacks.create(name), one)
    for name, numbers in programs.STEPS.items():
        found[f"step of {name}"] = functools.partial(programs.step, *numbers)
    return found


def lowered(make: Callable[[Any], programs.Program], platform: str = "gpu") -> tuple[str, int]:
    """The program's text in StableHLO for a platform, and the bytes of its stack. No compiler for the platform is needed."""
    with ops.compiling_for(platform):
        program = make(SingleDeviceSharding(jax.devices()[0]))
        traced = program.jitted.trace(*program.arguments)
        names = {"gpu": "cuda"}
        return traced.lower(lowering_platforms=(names.get(platform, platform),)).as_text(), program.stack


def count(text: str, stack: int) -> Forms:
    """Loops, sorts and large arrays of a program."""
    sorts: Counter[str] = Counter()
    large: Counter[str] = Counter()
    for operation, shapes in _written(text):
        for shape in shapes:
            if operation == "sort":
                sorts[shape] += 1
            if _bytes(shape) >= _LARGE * stack:
                large[f"{operation} {shape}"] += 1
    return {
        "loops": len(re.findall(r"stablehlo\.while", text)),
        "sorts": dict(sorted(sorts.items())),
        "large arrays": dict(sorted(large.items())),
    }


def _written(text: str) -> list[tuple[str, list[str]]]:
    """Each operation that writes, with the shapes of its results; those with regions have them at their end."""
    found: list[tuple[str, list[str]]] = []
    open_regions: list[tuple[str, int]] = []  # operation, and the spaces before it
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if open_regions and indent == open_regions[-1][1] and line.lstrip().startswith("})"):
            found.append((open_regions.pop()[0], _shapes(line.rsplit("->", 1)[-1])))
            continue
        match = re.search(rf'"?stablehlo\.({_WRITES})"?[ (]', line)
        if match is None:
            continue
        if match[1] == "while":  # its carry stands behind the colon
            found.append(("while", _shapes(line.rsplit(" : ", 1)[-1])))
        elif line.rstrip().endswith("({"):
            open_regions.append((match[1], indent))
        else:
            found.append((match[1], _shapes(line.rsplit("->", 1)[-1])))
    return found


def _shapes(text: str) -> list[str]:
    return re.findall(r"tensor<([^>]*)>", text)


def _bytes(shape: str) -> int:
    *dims, kind = shape.split("x")
    return math.prod(map(int, dims)) * _WIDTHS.get(kind, 0)


def measure() -> dict[str, Forms]:
    """All of them, by name."""
    return {name: count(*lowered(make)) for name, make in items().items()}


def differences(wanted: Mapping[str, Forms], found: Mapping[str, Forms]) -> list[str]:
    """One line for each count that changed."""
    lines = [f"{name}: is not in the table" for name in found if name not in wanted]
    lines += [f"{name}: is in the table only" for name in wanted if name not in found]
    for name in wanted.keys() & found.keys():
        for kind, before in wanted[name].items():
            now = found[name][kind]
            if now != before:
                lines.append(f"{name}: {kind} were {before} and are {now}")
    return sorted(lines)


def main() -> int:
    """Prints what changed; exit code 1 if something did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    found = measure()
    if given.write:
        TABLE.write_text(json.dumps({"jax": jax.__version__, "forms": found}, indent=1) + "\n")
        return 0
    changed = differences(json.loads(TABLE.read_text())["forms"], found)
    print("\n".join(changed) or "nothing changed")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
