"""Runs one federated simulation.

    lasa-jax run digits
    lasa-jax run cifar10:alpha=0.5 --config.attack.name=lie --config.rounds=100 --workdir=DIR
    lasa-jax run cifar10:alpha=0.5 --config.attack.name=lie --config.rounds=100 --workdir=DIR --extend=200
    lasa-jax run --config=my.py --config.aggregator.name=mypkg.rules:norm_gate --config.aggregator.norm_gate.factor=3

Also `python -m lasa_jax.main`. The same command again goes on where it stopped; with --extend=ROUNDS a
finished run is given more rounds. --dry_run prints every setting of the run and stops.
"""

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lasa_jax import commandline
from lasa_jax import config as configs
from lasa_jax.data import cache
from lasa_jax.errors import InputError, count


def parser() -> commandline.Parser:
    """The flags of a run."""
    made = commandline.Parser("run", __doc__)
    made.epilog = commandline.settings_help()
    made.add_config(
        "config, FILE.py or FILE.py:NAME=VALUE, or a name as digits, of the package's configs/; "
        "--config.FIELD=VALUE changes a setting, see below",
        example="configs/digits.py",
        takes_settings=True,
    )
    made.add_path("--workdir", metavar="DIR", help="directory of the run; runs/<what>_<config hash> by default")
    made.add_argument(
        "--extend",
        metavar="ROUNDS",
        type=count,
        help="as if the finished run in DIR had had so many rounds from the start: goes on from its last checkpoint, in "
        "DIR_<ROUNDS>_rounds, or in runs/ by default",
    )
    made.add_argument(
        "--dry_run", action="store_true", help="only print the settings of the run, each as a flag, and its directory"
    )
    made.add_argument("--tensorboard", action="store_true", help="write scalars and filtering images to DIR/tb too")
    made.add_argument(
        "--distributed",
        metavar="PROCESSES",
        help="one run over several processes, each started with this command: 'auto' under SLURM and the like, or "
        "ADDRESS:PORT,PROCESSES,ID of the first process, their number, and this one's, counted from 0",
    )
    return made


def default_workdir(config: ConfigDict) -> Path:
    """`runs/digits_lasa_byzmean_1a2b3c4d5e6f`: the same settings give the same directory."""
    return Path("runs") / configs.run_name(config)


def print_settings(config: ConfigDict, path: Path) -> None:
    """What `--dry_run` prints: what the run would take for every setting, its methods' own included, and its directory.

    Raises:
      InputError: for what the config alone tells that the run would refuse.
    """
    from lasa_jax import build

    build.check_subsets(config)
    build.check_pixels(config)
    for name, value in configs.as_flags(config).items():
        print(f"--config.{name}={shlex.quote(str(value))}")
    print(f"work directory: {path}")


def print_summary(summary: dict[str, Any], config: ConfigDict, path: Path, console: Console) -> None:
    """The short table at the end of a run."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f} %"

    table = Table()
    table.add_column("result")
    table.add_column("value", justify="right")
    table.add_row("fidelity, attack ratio, seed", f"{config.fidelity}, {percent(config.attack_ratio)}, {config.seed}")
    table.add_row("best test accuracy", f"{percent(summary['best_test_accuracy'])} (round {summary['best_round']})")
    table.add_row("final test accuracy", percent(summary["final_test_accuracy"]))
    if "final_attack_success" in summary:
        final, largest = (percent(summary[f"{which}_attack_success"]) for which in ("final", "largest"))
        table.add_row("attack success, final and largest", f"{final}, {largest}")
    detection = summary["detection"]
    table.add_row("malicious clients filtered", percent(detection["malicious_filtered"]))
    table.add_row("benign clients kept", percent(detection["benign_kept"]))
    seconds = summary["seconds_per_round"]
    table.add_row("seconds per round", "-" if seconds is None else f"{seconds:.3f}")
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


def longer_workdir(workdir: Path, rounds: int) -> Path:
    """`DIR_200_rounds` beside `DIR`."""
    named = workdir if workdir.name not in ("", "..") else workdir.resolve()
    return named.with_name(f"{named.name}_{rounds}_rounds")


def run(
    config: ConfigDict, workdir: Path | None, *, extends: Path | None = None, with_tensorboard: bool = False
) -> None:
    """Runs a resolved config, with a progress bar on a terminal.

    Args:
      config: resolved.
      workdir: the directory; by the settings' name if None.
      extends: that of a finished run with fewer rounds to go on from.
      with_tensorboard: whether to write to `tb/` in the directory too.
    """
    from lasa_jax import (
        experiment,
        report,
        track,
    )  # Orbax and the rest take a second, which bad input need not wait for

    path = default_workdir(config) if workdir is None else workdir
    watch = track.Board(path / "tb") if with_tensorboard else None
    if extends is not None:
        experiment.extend(extends, config, path)
    if jax.process_index() > 0:  # the first process owns the directory and the terminal
        experiment.run(config, path, log=lambda text: None)
        return
    console = Console()
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  accuracy {task.fields[accuracy]}"),
        TextColumn("{task.fields[success]}"),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=console)
    task = progress.add_task("", total=config.rounds, loss="  -  ", accuracy="  -  ", success="")

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    say_sometimes = commandline.sometimes(say)

    def show(_: str, index: int, line: Mapping[str, Any]) -> None:
        loss, accuracy = f"{line['train_loss']:.3f}", f"{100 * line['test_accuracy']:.1f} %"
        success = f"success {100 * line['attack_success']:.1f} %" if "attack_success" in line else ""
        if console.is_terminal:
            progress.start()
            progress.update(task, completed=index, loss=loss, accuracy=accuracy, success=success)
        else:
            say_sometimes(f"round {index}/{config.rounds}  loss {loss}  accuracy {accuracy}  {success}".rstrip())
        if watch is not None:
            watch(line)

    try:
        summary = experiment.run(config, path, on_metrics=show, log=say)
    finally:
        if progress.live.is_started:
            progress.stop()
        if watch is not None:
            watch.close()
    try:
        report.accuracy_curve(path)
    except OSError as error:
        say(f"{path}: accuracy.png cannot be written ({error.strerror})")
    print_summary(summary, config, path, console)


def use_all_cores(clients_per_round: int) -> None:
    """Gives a CPU one device per core, before JAX is used, so that each core trains clients of its own.

    The matrix products of one client are too small to keep two threads busy: half the time a round. At most 8, as each
    holds the examples, and no more than there are clients; `JAX_NUM_CPU_DEVICES` sets another number.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # a container's share of the processor, where there is one
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    flags_say = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" not in os.environ and not flags_say:
        with contextlib.suppress(RuntimeError):  # a user's module has used JAX, which has its devices from then on
            jax.config.update("jax_num_cpu_devices", min(cores, 8, clients_per_round))


def join(processes: str) -> None:
    """Joins the processes of one run, before JAX is used: `"auto"`, or `"ADDRESS:PORT,PROCESSES,ID"`.

    Raises:
      InputError: if it is neither, or the others cannot be found.
    """
    match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", processes)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if processes == "auto":
            jax.distributed.initialize()
        elif match and int(match[3]) < int(match[2]):
            jax.distributed.initialize(match[1], int(match[2]), int(match[3]))
        else:
            raise InputError(
                f"--distributed={processes}: allowed are 'auto' and ADDRESS:PORT,PROCESSES,ID with ID below PROCESSES"
            )
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--distributed={processes}: {' '.join(str(error).split())}") from None


def _run(argv: Sequence[str] | None) -> None:
    given = parser().read(argv)
    cache.keep_compiled_programs()  # before anything is compiled
    config = commandline.read_config(given.config, given.settings)
    commandline.tell_user_functions(configs.user_functions(config))
    path, extends = given.workdir, None
    if given.extend is not None:
        from lasa_jax import experiment

        old, config = config, commandline.read_config(given.config, {**given.settings, "rounds": str(given.extend)})
        experiment.check_extends(old, config)
        extends = default_workdir(old) if path is None else path
        path = None if path is None else longer_workdir(path, given.extend)
    if given.dry_run:
        print_settings(config, default_workdir(config) if path is None else path)
        return
    if given.distributed is not None:
        join(given.distributed)
    else:
        use_all_cores(config.clients_per_round)
    if jax.process_index() == 0:
        commandline.tell_of_idle_gpu()
    run(config, path, extends=extends, with_tensorboard=given.tensorboard)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `run`; returns the exit code.

    Args:
      argv: the arguments; those of this process if None.
    """
    return commandline.exit_code(
        lambda: _run(argv), stopped="stopped; the same command goes on from the last checkpoint"
    )


if __name__ == "__main__":
    sys.exit(main())
