"""One row for each run below a directory, with every setting and result, for a spreadsheet or pandas.

    lasa-jax export sweeps/figure1
    lasa-jax export sweeps --out=all.csv --last=5

DIR may be a sweep, a run, or a folder of sweeps; the file is written whole, DIR/runs.csv by default. A setting's column has
the name of its flag, --config.NAME. The command reads the files of that folder only, imports nobody's module, and can be
called while the sweep runs. Also `python -m lasa_jax export`.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lasa_jax import commandline
from lasa_jax.errors import InputError, count
from lasa_jax.report import standing
from lasa_jax.report.directories import one_line
from lasa_jax.report.standing import Standing
from lasa_jax.workdir import Workdir, records, replace_file

_FIRST = ("run", "status", "note")
_OF_SUMMARY = (
    *("best_test_accuracy", "best_round", "final_test_accuracy", "assumed_malicious", "num_parameters"),
    *("best_test_accuracy_with_padding", "best_test_accuracy_without_padding"),
    *("final_attack_success", "largest_attack_success"),
    *("compile_seconds", "total_seconds", "parameters_sha256", "config_id", "device"),
    "worst_tenth_accuracy",
)
_VERSIONS = ("python", "lasa_jax", "commit", "jax", "jaxlib", "flax", "optax", "numpy")
RESULTS = (
    *("rounds_done", "best_test_accuracy", "best_round", "final_test_accuracy", "mean_of_last_test_accuracy"),
    *("best_test_accuracy_with_padding", "best_test_accuracy_without_padding"),
    *("final_attack_success", "largest_attack_success"),
    *(f"final_{name}" for name in records.PADDING_LINE),
    *("final_test_loss", "final_train_loss", "malicious_filtered", "benign_kept", "assumed_malicious"),
    "worst_tenth_accuracy",
    *("seconds_per_round", "compile_seconds", "total_seconds", "num_parameters", "parameters_sha256", "config_id"),
    *("device", *(f"version.{name}" for name in _VERSIONS)),
)


def table(runs: Sequence[Standing], last: int = 10) -> str:
    """The runs as CSV: a line of names, then a row for each run.

    Columns, always in this order: `run` (its path below the directory), `status` (`finished`, `diverged`, `running`,
    `waiting` or `failed`), `note` (why it failed, how far it is), every setting of any run in the order of the alphabet, and
    `RESULTS`. Cells are empty where a run has no such setting, or has not ended: of a run that goes on there is nothing but
    `rounds_done` and `seconds_per_round`. Shares are in [0, 1].

    Args:
      runs: from `standing.load`.
      last: how many evaluated rounds at the end `mean_of_last_test_accuracy` is the mean of.
    """
    settings = [dict(_settings(run.config)) for run in runs]
    names = sorted({name for of in settings for name in of})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIRST, *names, *RESULTS])
    for run, of in zip(runs, settings, strict=True):
        state = run.state if run.summary is None else str(run.summary["status"])
        results = {"note": run.note, **_results(run, last)}
        cells = [run.name, state, results["note"], *(of.get(name, "") for name in names), *map(results.get, RESULTS)]
        writer.writerow(one_line(cell) if isinstance(cell, str) else cell for cell in cells)
    return text.getvalue()


def _settings(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a resolved config by the name of its flag, `aggregator.lasa.sparsity_level`, as the flag takes it."""
    for name, value in config.items():
        if isinstance(value, Mapping) and name == "parameters" and prefix in ("aggregator.", "attack."):
            yield from _settings(value, f"{prefix}{str(config.get('name')).rpartition(':')[2]}.")
        elif isinstance(value, Mapping) and prefix + name == "attack.base":  # under the name of that attack
            called = str(config["parameters"].get("base")).rpartition(":")[2]
            yield from _settings(value.get("parameters", {}), f"attack.{called}.")
        elif isinstance(value, Mapping) and name == "parameters":
            yield from _settings(value, prefix)
        elif isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{name}.")
        elif prefix + name == "client.clip_norm" and value is None:
            yield prefix + name, math.inf  # as resolved: no clip; None as a flag would leave it to the fidelity
        else:
            yield prefix + name, str(value) if value is None or isinstance(value, list) else value


def _results(run: Standing, last: int) -> dict[str, Any]:
    """What a run brought, by column; `note` where its metrics cannot be read."""
    results: dict[str, Any] = {"rounds_done": run.done, "seconds_per_round": run.seconds}
    if run.summary is None:
        return results
    lines: list[dict[str, Any]] = []
    try:
        lines = Workdir(run.path, lock=False).metrics()
    except InputError as error:
        results["note"] = str(error)
    accuracies = [line["test_accuracy"] for line in lines if line["test_accuracy"] is not None][-last:]
    results |= {name: run.summary.get(name) for name in _OF_SUMMARY}
    results |= {name: run.summary["detection"][name] for name in ("malicious_filtered", "benign_kept")}
    results["mean_of_last_test_accuracy"] = sum(accuracies) / len(accuracies) if accuracies else None
    for name in ("test_loss", "train_loss", *records.PADDING_LINE) if lines else ():
        results[f"final_{name}"] = lines[-1].get(name)
    versions = run.summary.get("versions")
    if isinstance(versions, Mapping):
        results |= {f"version.{name}": versions.get(name) for name in _VERSIONS}
    return results


def _run(argv: Sequence[str] | None) -> None:
    parser = commandline.Parser("export", __doc__)
    parser.add_path("directory", metavar="DIR", help="of a sweep, a run, or several")
    parser.add_path("--out", metavar="FILE", help="where to write; DIR/runs.csv by default")
    last = "evaluated rounds in mean_of_last_test_accuracy; 10 by default"
    parser.add_argument("--last", metavar="N", type=count, default=10, help=last)
    given = parser.read(argv)
    runs, left_out = standing.load(given.directory)
    path: Path = given.out if given.out is not None else given.directory / "runs.csv"
    text = table(runs, given.last)
    what = f"--out={path}" if given.out is not None else str(path)
    if path.is_dir() or path.is_symlink():
        raise InputError(f"{what}: is {'a link' if path.is_symlink() else 'a folder'}, allowed is a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text)
    except OSError as error:
        raise InputError(f"{what}: cannot be written ({error.strerror})") from None
    for line in left_out:
        print(line)
    ended = sum(run.state == "finished" for run in runs)
    print(f"export: {path}: {len(runs)} run{'s' * (len(runs) != 1)}, {ended} finished")


def main(argv: Sequence[str] | None = None) -> int:
    """The command `export`: exit code 0, or 2 with one line on standard error for bad input.

    Args:
      argv: the arguments; those of this process if None.
    """
    return commandline.exit_code(lambda: _run(argv))
