"""Compiles programs for accelerators that are only described: `python -m checks.accelerator h100 [PROGRAM ...]`.

The compiler of the target is enough, no card and no driver: `pip install "jax[cuda12]"` for `h100`,
`pip install "jax[tpu]"` for `v5e`. Set `JAX_PLATFORMS=cpu`. PROGRAM is the beginning of a name, as `mnist` or `rule lasa`;
without one all are compiled, a minute or so each. Rows go to docs/results/accelerator.json as they are done, and a row of
the same commit is not done again. docs/results/accelerator.md is made from them; without a target nothing else happens.
`trips` counts the loops of rules whose length the program does not know, on this machine's processor.
"""

import argparse
import sys
from pathlib import Path

import jax

from checks.accelerator import compiling, page, programs, rows, targets, trips
from lasa_jax import aggregators
from lasa_jax.errors import InputError
from lasa_jax.federated.memory import DoesNotFit


def count_loops() -> None:
    """Puts the trips of all rules into the table, but for those of subsets, which do not end with 100 clients."""
    for name in aggregators.names():
        if name in aggregators.OF_SUBSETS:
            continue
        found = trips.measure(name)
        if found:
            rows.write("trips", name, found)
            print(f"{name}: {found}", flush=True)


def compile_all(target: str, names: list[str], folder: Path | None) -> None:
    """Compiles what is missing in the table.

    Raises:
      InputError: one line, if the target's compiler is missing, or no program has such a name.
    """
    chosen = {name: item for name, item in programs.items().items() if not names or any(map(name.startswith, names))}
    if not chosen:
        raise InputError(f"program {names[0]!r}: allowed are beginnings of {', '.join(programs.items())}")
    for name, item in chosen.items():
        table = rows.read()
        if table.get(target, {}).get(name, {}).get("commit") == compiling.commit() and folder is None:
            print(f"{name}: is in the table", flush=True)
            continue
        try:
            row = rows.of(target, item, compiling.kept(folder, target, name, item), table.get("trips", {}))
        except DoesNotFit as error:
            row = rows.refused(error, compiling.commit())
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            row = rows.refused(error, compiling.commit())
        rows.write(target, name, row)
        print(page.line(name, row), flush=True)


def main() -> int:
    """The command; exit code 2 for what cannot be done, with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=[*targets.TARGETS, "trips"])
    parser.add_argument("program", nargs="*")
    parser.add_argument("--keep", type=Path, help="a folder for compiled texts, which are read again if they are there")
    given = parser.parse_args()
    try:
        if given.target == "trips":
            count_loops()
        elif given.target is not None:
            compile_all(given.target, given.program, given.keep)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    page.write(rows.read())
    return 0


if __name__ == "__main__":
    sys.exit(main())
