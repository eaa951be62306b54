"""Counts what makes the compiled programs fast, and compares it with the committed table: `python -m checks.causes`.

Seconds depend on the machine and on who else uses it; these numbers do not. For every rule (40 clients, 200,064 entries) and
for a round of the digits: bytes of temporaries as a multiple of the stack of updates, sorts over more values than there are
clients, reductions of a whole update that XLA turned into windows (and so wrote their operand first), convolutions that are
grouped or dilated, and calls to the host. `--write` makes docs/results/causes.json anew.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.collectives import stack
from benchmarks.rules import lowered
from lasa_jax import aggregators, build
from lasa_jax import config as configs
from lasa_jax.federated import make_mesh
from lasa_jax.testing import built_in

TABLE = Path(__file__).parents[1] / "docs" / "results" / "causes.json"
CLIENTS, ENTRIES = 40, 200_064
_HOST = ("callback", "infeed", "outfeed", "send(", "recv(")

Causes = dict[str, float]


def count(compiled: Any, bytes_of_stack: int) -> Causes:
    """The causes of one compiled program."""
    text = compiled.as_text()

    def sizes(operation: str) -> list[int]:
        lines = re.findall(rf" = (.*?) {operation}\(", text)
        shapes = [re.findall(r"\w+\[([\d,]*)\]", line) for line in lines]
        return [max(int(np.prod([int(x) for x in dims.split(",") if x])) for dims in shape) for shape in shapes]

    slow = [
        line for line in text.splitlines() if " convolution(" in line and re.search("group_count=|hs_dilate=", line)
    ]
    return {
        "temporaries / stack": round(compiled.memory_analysis().temp_size_in_bytes / bytes_of_stack, 2),
        "large sorts": sum(size > CLIENTS**2 for size in sizes("sort")),
        "large reductions in windows": sum(size >= ENTRIES // 64 for size in sizes("reduce-window")),
        "grouped or dilated convolutions": len(slow),
        "host calls": sum(text.count(word) for word in _HOST),
    }


def of_rule(name: str) -> Causes:
    """Causes of one aggregation on one device."""
    aggregation = lowered(built_in(name), stack(CLIENTS, ENTRIES), CLIENTS // 5)
    return count(aggregation.compile(), 4 * CLIENTS * ENTRIES)


def of_block() -> Causes:
    """Causes of a block of rounds of the digits: LASA against ByzMean."""
    config = configs.paper("digits")
    config.update_from_flattened_dict({"fidelity": "official", "attack.name": "byzmean"})
    config = configs.resolve(config)
    simulation, states, points, fed = build.simulation([config], make_mesh(jax.devices()[:1]))
    compiled, _ = simulation.compile(states, points, fed)
    d = sum(x.size for x in jax.tree.leaves(states.variables))
    return count(compiled, 4 * config.clients_per_round * d)


def measure() -> dict[str, Causes]:
    """All of them, by name."""
    return {name: of_rule(name) for name in aggregators.names()} | {"a block of rounds": of_block()}


def differences(wanted: Mapping[str, Causes], found: Mapping[str, Causes]) -> list[str]:
    """One line for each cause that changed; temporaries may move by a twentieth of a stack."""
    lines = [f"{name}: is not in the table" for name in found.keys() - wanted.keys()]
    for name in sorted(wanted.keys() & found.keys()):
        for cause, before in wanted[name].items():
            now = found[name][cause]
            if abs(now - before) > (0.05 if "/" in cause else 0):
                lines.append(f"{name}: {cause} was {before:g} and is {now:g}")
    return lines


def main() -> int:
    """Prints what changed; exit code 1 if something did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    found = measure()
    if parser.parse_args().write:
        TABLE.write_text(json.dumps({"jax": jax.__version__, "causes": found}, indent=1) + "\n")
        return 0
    changed = differences(json.loads(TABLE.read_text())["causes"], found)
    print("\n".join(changed) or "nothing changed")
    return bool(changed)


if __name__ == "__main__":
    sys.exit(main())
