"""Where public implementations compute something else than the paper they cite: `python -m checks.definitions`.

Each case has an input of at most ten numbers, the result by the paper's definition, written here once more in NumPy, and
the result of the package that is installed. Packages that are not installed are named and left out. Nothing of lasa_jax is
imported, so the script runs from the repository's root in any environment that has NumPy:

    python -m pip install numpy byzfl==0.0.11 && python -m checks.definitions

`--write` puts what was run into docs/results/definitions.json, keeps the cases of packages that are not at hand, and makes
docs/results/definitions.md anew from all of them.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parents[1] / "docs" / "results"
Rows = np.ndarray
_ALIKE = 1e-4

BLANCHARD = "Blanchard et al., NeurIPS 2017"
MHAMDI = "El Mhamdi, Guerraoui and Rouault, ICML 2018"
YIN = "Yin et al., ICML 2018"
WEISZFELD = "Weiszfeld, 1937"


def krum_order(rows: Rows, f: int) -> list[int]:
    """Clients by Krum's score, the best first: the squared distances to the n - f - 2 nearest others, added up."""
    apart = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    scores = [np.sort(np.delete(apart[i], i))[: max(len(rows) - f - 2, 1)].sum() for i in range(len(rows))]
    return [int(i) for i in np.argsort(scores, kind="stable")]


def krum(rows: Rows, f: int) -> Rows:
    """The client of the smallest score."""
    return rows[krum_order(rows, f)[0]]


def multi_krum(rows: Rows, f: int) -> Rows:
    """The mean of the n - f clients of the smallest scores."""
    return rows[krum_order(rows, f)[: len(rows) - f]].mean(0)


def bulyan(rows: Rows, f: int) -> Rows:
    """n - 2f clients, each the best by Krum of those left; then in each coordinate the n - 4f nearest their median."""
    left, chosen = list(range(len(rows))), []
    while len(chosen) < len(rows) - 2 * f:
        chosen.append(left.pop(krum_order(rows[left], f)[0]))
    x = rows[chosen]
    nearest = np.argsort(np.abs(x - np.median(x, axis=0)), axis=0, kind="stable")[: len(x) - 2 * f]
    return np.take_along_axis(x, nearest, axis=0).mean(0)


def trimmed_mean(rows: Rows, f: int) -> Rows:
    """The mean of each coordinate without its f smallest and f largest values."""
    return np.sort(rows, axis=0)[f : len(rows) - f].mean(0)


def median(rows: Rows, f: int) -> Rows:
    """The usual median of each coordinate."""
    return np.median(rows, axis=0)


def geometric_median(rows: Rows, f: int) -> Rows:
    """The point with the smallest sum of distances, by Weiszfeld's steps from the mean."""
    z = rows.mean(0)
    for _ in range(10_000):
        weight = 1 / np.maximum(np.linalg.norm(rows - z, axis=1), 1e-9)
        z = (weight[:, None] * rows).sum(0) / weight.sum()
    return z


class Case(NamedTuple):
    """An implementation that differs.

    Attributes:
      package: as pip calls it.
      method: what the package calls it, and how it was called.
      paper: that the package's own documentation or source cites for it.
      defined: what the paper says.
      computed: what the package does.
      definition: of rows and f.
      run: the package's function, of rows and f; it imports the package.
      rows: `(n, d)`, at most ten numbers.
      f: how many malicious clients are assumed.
    """

    package: str
    method: str
    paper: str
    defined: str
    computed: str
    definition: Callable[[Rows, int], Rows]
    run: Callable[[Rows, int], Any]
    rows: Sequence[Sequence[float]]
    f: int


def _byzfl(name: str, **parameters: Any) -> Callable[[Rows, int], Any]:
    """A rule of ByzFL; it is told f if it takes one."""

    def run(rows: Rows, f: int) -> Any:
        rule = getattr(importlib.import_module("byzfl"), name)
        return rule(**(parameters or {"f": f}) if name != "GeometricMedian" else parameters)(rows)

    return run


def _flower(name: str) -> Callable[[Rows, int], Any]:
    """A strategy of Flower, given one reply for each row."""

    def run(rows: Rows, f: int) -> Any:
        app, messages = importlib.import_module("flwr.app"), importlib.import_module("flwr.app.message.message")
        strategy = getattr(importlib.import_module("flwr.serverapp.strategy"), name)(num_malicious_nodes=f)
        replies = []
        for number, row in enumerate(rows, start=1):
            said = messages.Metadata(
                run_id=1,
                message_id=str(number),
                src_node_id=number,
                dst_node_id=1,
                reply_to_message_id="",
                group_id="",
                created_at=1.0,
                ttl=10.0,
                message_type="train",
            )
            arrays, metrics = app.ArrayRecord([row.astype(np.float32)]), app.MetricRecord({"num-examples": 1})
            content = app.RecordDict({"arrays": arrays, "metrics": metrics})
            replies.append(messages.make_message(metadata=said, content=content))
        return strategy.aggregate_train(1, replies)[0].to_numpy_ndarrays()[0]

    return run


def _flexclash(name: str) -> Callable[[Rows, int], Any]:
    """A defence of FLEX-Clash, given a model of one layer for each row."""

    def run(rows: Rows, f: int) -> Any:
        defence = getattr(importlib.import_module("flexclash.pool.defences"), name)
        n = len(rows)
        told = {"trimmed_mean": {"trim_proportion": f / n}, "multikrum": {"f": f, "m": n - f}}.get(name, {})
        aggregator = {"weights": [[row] for row in rows]}
        defence(aggregator, None, **told)
        return aggregator["aggregated_weights"][0]

    return run


def _line(*values: float) -> list[list[float]]:
    return [[float(value)] for value in values]


CASES = (
    Case(
        "byzfl",
        "Krum(f=1)",
        BLANCHARD,
        "n - f - 2 nearest others count",
        "n - f - 1 count, one more",
        krum,
        _byzfl("Krum"),
        _line(12, 6, 2, 1, 8),
        1,
    ),
    Case(
        "byzfl",
        "MultiKrum(f=1)",
        BLANCHARD,
        "n - f - 2 nearest others count; the mean of the n - f best",
        "n - f - 1 count, one more",
        multi_krum,
        _byzfl("MultiKrum"),
        _line(28, 13, 29, 9, 0),
        1,
    ),
    Case(
        "byzfl",
        "GeometricMedian()",
        WEISZFELD,
        "the point with the smallest sum of distances",
        "three steps towards it from zero; ByzFL's parameter `T`, 3 by default, is the number of steps",
        geometric_median,
        _byzfl("GeometricMedian"),
        _line(11, 28, 0, 8, 7),
        1,
    ),
    Case(
        "flwr",
        "strategy.Bulyan(num_malicious_nodes=1)",
        MHAMDI,
        "n - 2f clients, chosen by Krum one at a time, each among those that are left",
        "the n - 2f best of one scoring",
        bulyan,
        _flower("Bulyan"),
        _line(8, 0, 6, 2, 12, 1, 11),
        1,
    ),
    Case(
        "flwr",
        "strategy.Krum(num_malicious_nodes=1)",
        BLANCHARD,
        "squared distances between clients",
        "‖a‖² + ‖b‖² - 2⟨a, b⟩ in float32, which loses the distance where values are large beside their differences",
        krum,
        _flower("Krum"),
        _line(1000.7, 1000.2, 1001.2, 1000.0, 1001.1),
        1,
    ),
    Case(
        "flexclash",
        "median()",
        YIN,
        "of an even number the mean of the middle two",
        "the upper one",
        median,
        _flexclash("median"),
        _line(10, 8, 26, 29, 6, 27),
        1,
    ),
    Case(
        "flexclash",
        "trimmed_mean(trim_proportion=0.2)",
        YIN,
        "the share 0.2 is dropped at each end, one of five",
        "one value fewer is dropped at the upper end",
        trimmed_mean,
        _flexclash("trimmed_mean"),
        _line(26, 2, 9, 1, 4),
        1,
    ),
    Case(
        "flexclash",
        "multikrum(f=1, m=4)",
        BLANCHARD,
        "the mean of the m best",
        "their upper median",
        multi_krum,
        _flexclash("multikrum"),
        _line(0, 2, 3, 9, 40),
        1,
    ),
)


def run(case: Case) -> dict[str, Any]:
    """What a case gave, as the table keeps it.

    Raises:
      ImportError: if its package is not installed.
    """
    version = importlib.metadata.version(case.package)
    rows = np.asarray(case.rows, np.float64)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # of the packages
        found = np.ravel(np.asarray(case.run(rows.copy(), case.f), np.float64))
    wanted = np.ravel(case.definition(rows, case.f))
    return {
        "package": case.package,
        "version": version,
        "method": case.method,
        "paper": case.paper,
        "defined": case.defined,
        "computed": case.computed,
        "rows": rows.ravel().tolist() if rows.shape[1] == 1 else rows.tolist(),
        "by definition": [float(f"{x:.6g}") for x in wanted],
        "by the package": [float(f"{x:.6g}") for x in found],
    }


def page(kept: Sequence[dict[str, Any]]) -> str:
    """The page, of what was run."""
    versions = sorted({f"{one['package']}=={one['version']}" for one in kept})
    lines = [
        "# Definitions and implementations",
        "",
        "These public implementations differ from the paper that they cite. Each number under *updates* is the update",
        "of one client, with one coordinate; f = 1 where the method has an f. `python -m checks.definitions` runs them",
        "again where the packages are installed:",
        "",
        f"    python -m pip install numpy {' '.join(versions)}",
        "",
        "It needs nothing else of this repository, and prints both results. A difference is no mistake by itself: some are",
        "choices that the package's own documentation states. [How to test a rule of your own](../conformance.md).",
        "",
        "| package | method | the paper | the package | updates | by the paper | by the package |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in kept:
        numbers = (", ".join(f"{x:g}" if x < 1000 else f"{x:.1f}" for x in one[name]) for name in _NUMBERS)
        said = (f"{one['package']} {one['version']}", f"`{one['method']}`", f"{one['defined']} ({one['paper']})")
        lines.append(f"| {' | '.join((*said, one['computed'], *numbers))} |")
    return "\n".join([*lines, ""])


_NUMBERS = ("rows", "by definition", "by the package")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what is installed. 1 if an implementation no longer differs from its definition."""
    parser = argparse.ArgumentParser(prog="python -m checks.definitions", description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="keep what was run, and make the page anew")
    options = parser.parse_args(arguments)
    table = FOLDER / "definitions.json"
    kept = {(one["package"], one["method"]): one for one in json.loads(table.read_text())} if table.exists() else {}
    agreeing = 0
    for case in CASES:
        try:
            one = run(case)
        except ImportError as error:
            print(f"{case.package} {case.method}: not run, {error}")
            continue
        kept[case.package, case.method] = one
        agrees = np.allclose(one["by definition"], one["by the package"], rtol=0, atol=_ALIKE)
        agreeing += agrees
        print(f"{case.package} {one['version']} {case.method}: {one['rows']}{', no difference any more' * agrees}")
        print(f"  by the paper   {one['by definition']}  {case.defined} ({case.paper})")
        print(f"  by the package {one['by the package']}  {case.computed}")
    if options.write:
        ordered = [kept[key] for case in CASES if (key := (case.package, case.method)) in kept]
        table.write_text(json.dumps(ordered, indent=1) + "\n")
        (FOLDER / "definitions.md").write_text(page(ordered))
    return int(agreeing > 0)


if __name__ == "__main__":
    sys.exit(main())
