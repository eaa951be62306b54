"""Runs one federated simulation: `python -m lasa_jax.main --config=configs/digits.py`.

Any setting can be given on the command line: `--config.aggregator.name=fedavg --config.rounds=100`. The run lives in
`--workdir`; the same command again goes on where it stopped. docs/configs.md lists the settings.
"""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lasa_jax import config as configs
from lasa_jax import experiment, report
from lasa_jax.data import cache
from lasa_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="file of the config, see configs/")
_WORKDIR = flags.DEFINE_string("workdir", None, "directory of the run; runs/<what>_<config hash> by default")


def default_workdir(config: ConfigDict) -> Path:
    """`runs/digits_lasa_byzmean_1a2b3c4d5e6f`: the same settings give the same directory."""
    return Path("runs") / f"{config.dataset}_{config.aggregator.name}_{config.attack.name}_{configs.identity(config)}"


def print_summary(summary: dict[str, Any], path: Path, console: Console) -> None:
    """The short table at the end of a run."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    table = Table()
    table.add_column("result")
    table.add_column("value", justify="right")
    table.add_row("best test accuracy", f"{percent(summary['best_test_accuracy'])} (round {summary['best_round']})")
    table.add_row("final test accuracy", percent(summary["final_test_accuracy"]))
    detection = summary["detection"]
    table.add_row("malicious clients filtered", percent(detection["malicious_filtered"]))
    table.add_row("benign clients kept", percent(detection["benign_kept"]))
    seconds = summary["seconds_per_round"]
    table.add_row("seconds a round", "-" if seconds is None else f"{seconds:.3f}")
    table.add_row("compile seconds", f"{summary['compile_seconds']:.1f}")
    table.add_row("state", f"{summary['status']} after {summary['rounds']} rounds")
    table.add_row("work directory", str(path))
    console.print(table)
    layers = detection["layers"]
    if 0 < len(layers) <= 20 and any(rates["benign_kept"] != 1 for rates in layers.values()):
        table = Table()
        for heading in ("layer", "malicious filtered", "benign kept"):
            table.add_column(heading, justify="left" if heading == "layer" else "right")
        for layer, rates in layers.items():
            table.add_row(layer, percent(rates["malicious_filtered"]), percent(rates["benign_kept"]))
        console.print(table)


def run(config: ConfigDict, overrides: Sequence[str], workdir: str | None) -> None:
    """Resolves a config and runs it, with a progress bar."""
    config = configs.resolve(config, overrides)
    path = Path(workdir) if workdir else default_workdir(config)
    console = Console()
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console)
    task = progress.add_task("", total=config.rounds, loss="  -  ", accuracy="  -  ")

    def show(line: Mapping[str, Any]) -> None:
        loss, accuracy = f"{line['train_loss']:.3f}", f"{100 * line['test_accuracy']:.1f} %"
        progress.start()
        progress.update(task, completed=line["round"], loss=loss, accuracy=accuracy)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    try:
        summary = experiment.run(config, path, on_line=show, log=say)
    finally:
        if progress.live.is_started:
            progress.stop()
    try:
        report.accuracy_curve(path)
    except OSError as error:
        say(f"{path}: accuracy.png cannot be written ({error.strerror})")
    print_summary(summary, path, console)


def _main(argv: Sequence[str]) -> int:
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; settings are given as --config.NAME=VALUE")
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    run(_CONFIG.value, list(overrides), _WORKDIR.value)
    return 0


def _parse(argv: list[str]) -> list[str]:
    """Reads the command line; whatever is wrong with it or with the config file becomes one line."""
    for argument in argv[1:]:
        match = re.fullmatch(r"--?config\.([^=]+)(=.*)?", argument)
        if match:
            configs.check_field(match[1])
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["config"].value is None:
            raise InputError("--config: is missing, for instance --config=configs/digits.py")
        flags.FLAGS["config"].value.to_dict()  # a file that could not be loaded raises only when it is touched
        return rest
    except InputError:
        raise
    except flags.Error as error:
        raise InputError(_one_line(str(error))) from None
    except OSError:  # of ml_collections, which says only where it looked
        given = next(a for a in re.findall(r"--?config[= ](\S+)", " ".join(argv)))
        raise InputError(f"--config={given}: no config file of that name") from None
    except (AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"--config: {type(error).__name__}: {_one_line(str(error))}") from None


def _one_line(message: str) -> str:
    """The last thing a message says: ml_collections wraps a config file's own error in a traceback."""
    *_, last = re.split(r"\w+(?:\.\w+)*\.InputError: ", message)
    return " ".join(last.split())


def entry_point() -> None:
    """The command line: exit code 0, or 2 with one line on standard error for bad input."""
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # compiled programs are kept for the next start
        jax.config.update("jax_compilation_cache_dir", str(cache.directory() / "xla"))

    def fail(error: InputError) -> int:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def main(argv: Sequence[str]) -> int:
        try:
            return _main(argv)
        except InputError as error:
            return fail(error)

    try:
        app.run(main, flags_parser=_parse)
    except InputError as error:
        sys.exit(fail(error))


if __name__ == "__main__":
    entry_point()
