"""Writes run directories with known numbers, through the same functions as a run."""

import functools
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lasa_jax import config as configs
from lasa_jax import grid
from lasa_jax.workdir import Workdir

LAYERS = ("params/dense/bias", "params/dense/kernel")


@functools.cache
def _resolved(dataset: str, method: tuple[tuple[str, Any], ...]) -> ConfigDict:
    """Resolving builds the method, which takes a tenth of a second."""
    return grid.resolve(configs.paper(dataset), dict(method))


def write_run(
    root: Path,
    settings: dict[str, Any],
    accuracies: list[float],
    *,
    dataset: str = "digits",
    name: str | None = None,
    filtered: tuple[int, int] = (0, 0),
    finished: bool = True,
    summary: dict[str, Any] | None = None,
    success: list[float] | None = None,
) -> Path:
    """A run of as many rounds as there are accuracies.

    Args:
      settings: fields of the config. filtered: of 2 malicious and of 8 benign clients, in each layer and round.
      finished: without, there is no summary.json. summary: what is other in it.
      success: of a trigger, after each round.
    """
    numbers = {name: settings[name] for name in ("seed", "attack_ratio")}
    method = tuple((field, value) for field, value in settings.items() if field not in numbers)
    config = ConfigDict(_resolved(dataset, method).to_dict() | numbers | {"rounds": len(accuracies)})
    path = root / (configs.run_name(config) if name is None else name)
    malicious, benign = (0, 10) if config.attack.name == "none" else (2, 8)
    with Workdir(path) as workdir:
        workdir.write_config(configs.to_json(config))
        workdir.append_metrics(
            {
                "round": index,
                "test_accuracy": accuracy,
                "test_loss": 1.0,
                "train_loss": 1.0,
                "update_norm": 1.0,
                "step_waste": 1.0,
                "assumed_malicious": None,
                "malicious": malicious,
                "benign": benign,
                "malicious_filtered": dict.fromkeys(LAYERS, min(filtered[0], malicious)),
                "benign_filtered": dict.fromkeys(LAYERS, filtered[1]),
                "seconds_per_round": 0.5,
                **({} if success is None else {"attack_success": success[index - 1]}),
            }
            for index, accuracy in enumerate(accuracies, 1)
        )
        rates = {
            "malicious_filtered": filtered[0] / malicious if malicious else None,
            "benign_kept": (benign - filtered[1]) / benign,
        }
        whole = {
            "status": "finished",
            "best_test_accuracy": max(accuracies),
            "final_test_accuracy": accuracies[-1],
            "rounds": len(accuracies),
            "best_round": 1 + accuracies.index(max(accuracies)),
            "seed": config.seed,
            "parameters_sha256": "0" * 64,
            "compile_seconds": 0.0,
            "seconds_per_round": 0.5,
            "detection": {**rates, "layers": dict.fromkeys(LAYERS, rates)},
            "device": "1 x cpu",
        }
        if success is not None:
            whole |= {"final_attack_success": success[-1], "largest_attack_success": max(success)}
        if finished:
            workdir.write_summary(whole | (summary or {}))
    return path


def of(rule: str, attack: str, seed: int = 1, ratio: float = 0.25, **more: Any) -> dict[str, Any]:
    """Settings of a run; `more` as `lasa__sparsity_level=0.5`."""
    parameters = {f"aggregator.{name.replace('__', '.')}": value for name, value in more.items()}
    return {"aggregator.name": rule, "attack.name": attack, "seed": seed, "attack_ratio": ratio, **parameters}
