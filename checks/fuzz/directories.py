"""Run directories as somebody else may have left them."""

import io
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from checks.fuzz.failures import Failures, contents, outcome
from checks.fuzz.mutations import mutate_bytes, mutate_json
from lasa_jax import config as configs
from lasa_jax import experiment, main, report
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables


def small_config() -> Any:
    """A run of the digits that takes a moment."""
    config = configs.paper("digits")
    light = {"rounds": 3, "num_clients": 8, "clients_per_round": 4, "client.epochs": 1, "block_rounds": 1}
    config.update_from_flattened_dict({**light, "checkpoint_every": 1, "aggregator.name": "median"})
    return configs.resolve(config)


def damage_directory(path: Path, chance: random.Random) -> str:
    """Damages one file of a run directory, and says which and how."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != ".lock")
    if chance.random() < 0.7:
        files = [file for file in files if file.parent == path and file.suffix in (".json", ".jsonl")]
    target = chance.choice(files)
    content = target.read_bytes()
    kind = chance.randrange(12)
    if kind == 0:
        target.unlink()
        return f"{target.name} removed"
    if kind == 1:
        target.unlink()
        os.symlink(chance.choice(["/dev/zero", "/etc/passwd", "/nonexistent", str(path)]), target)
        return f"{target.name} a link"
    if kind == 2:
        target.unlink()
        os.mkfifo(target)
        return f"{target.name} a pipe"
    if kind == 3:
        target.unlink()
        target.mkdir()
        return f"{target.name} a folder"
    if kind == 4 and target.parent == path:
        name = chance.choice(
            ["round_99999999.json", "round_000009.json", "round_1.json", "round_x.json", "round_00000x"]
        )
        (path / "checkpoints" / name).write_bytes(content)
        return f"{name} added"
    if target.suffix in (".json", ".jsonl"):
        target.write_bytes(mutate_json(content, chance))
    else:
        target.write_bytes(mutate_bytes(content, chance))
    return f"{target.name} mutated"


def fuzz(count: int, seed: int = 0) -> tuple[int, Failures]:
    """Two in three are finished runs, which are read; one in three goes on."""
    failures, config, shared = Failures(), small_config(), Executables()
    quiet: dict[str, Any] = {"executables": shared, "log": lambda text: None}
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary) / "whole"
        wanted = experiment.run(config, whole, **quiet)["parameters_sha256"]
        for index in range(count):
            chance = random.Random(seed * 10**9 + index)
            path = Path(temporary) / "run"
            shutil.copytree(whole, path)
            if index % 3 == 0:
                (path / "summary.json").unlink()
            what = damage_directory(path, chance)
            before = contents(path)

            def use(path: Path = path) -> str:
                summary = experiment.run(config, path, **quiet)
                report.accuracy_curve(path)
                main.print_summary(summary, config, path, Console(file=io.StringIO()))
                return summary["parameters_sha256"]

            digest, wrong = outcome(use)
            if isinstance(digest, InputError):
                if contents(path) != before and "metrics.jsonl" not in str(digest):
                    wrong = f"refused ({digest}), and changed the directory"
            elif wrong is None and index % 3 == 0 and digest != wanted:
                wrong = "went on to another model"
            if wrong is not None:
                failures.append(f"directory {index}, {what}: {wrong}")
            shutil.rmtree(path)
    return count, failures
