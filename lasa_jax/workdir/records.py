"""What a run records: one line for each evaluated round, what was filtered, and its summary; made and checked here."""

import functools
import hashlib
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from lasa_jax.workdir.files import parse_json
from lasa_jax.workdir.forms import Form, is_count, is_mapping, is_number, is_record, is_text, or_null, wrong_fields

if TYPE_CHECKING:  # who reads a directory needs no engine, which takes a second to import
    import pandas as pd

    from lasa_jax.federated import BlockMetrics, Evaluation, Simulation

PyTree = Any

# What must be in a line of metrics.jsonl, as `lines` makes it, and in summary.json, as `summary` makes it.
LINE: Form = {
    "round": lambda value: is_count(value) and value > 0,
    **dict.fromkeys(("malicious", "benign"), is_count),
    **dict.fromkeys(("malicious_filtered", "benign_filtered"), is_mapping(is_count)),
    **dict.fromkeys(("test_accuracy", "test_loss", "train_loss", "update_norm", "step_waste"), or_null(is_number)),
    "assumed_malicious": or_null(is_count),
    "seconds_per_round": is_number,
}
# And of a dataset with padding, which has both forms of what is measured.
PADDING_LINE: Form = {
    f"test_{name}_{way}": or_null(is_number)
    for way in ("with_padding", "without_padding")
    for name in ("accuracy", "loss")
}
# And under an attack with a trigger.
SUCCESS_LINE: Form = {"attack_success": or_null(is_number)}
_RATES: Form = dict.fromkeys(("malicious_filtered", "benign_kept"), or_null(is_number))
SUMMARY: Form = {
    **dict.fromkeys(("status", "parameters_sha256"), is_text),
    **dict.fromkeys(("rounds", "seed"), is_count),
    **dict.fromkeys(("best_test_accuracy", "final_test_accuracy", "seconds_per_round"), or_null(is_number)),
    "best_round": or_null(is_count),
    "compile_seconds": is_number,
    "detection": is_record({**_RATES, "layers": is_mapping(is_record(_RATES))}),
}
# And in the last line of a run whose clients differ.
LAST_LINE: Form = {"worst_tenth_accuracy": or_null(is_number)}


def layer_names(variables: PyTree) -> list[str]:
    """Readable names of the layers in the order of the flattened variables, `"params/conv1/kernel"`."""
    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def lines(
    metrics: "BlockMetrics", done: int, count: int, simulation: "Simulation", layers: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    """One line for each evaluated round of a block of one run, covering the rounds since the line before.

    Args:
      metrics: of this run, leaves `(block_rounds, ...)`, on the host.
      done: rounds before the block.
      count: rounds of the block that count.
      simulation: says which rounds are evaluated.
      layers: from `layer_names`.
      seconds: wall time of a round of this run.
    """
    written = []
    first = 0
    for index in range(count):
        number = done + index + 1
        if number % simulation.eval_every and number != simulation.rounds:
            continue
        covered = slice(first, index + 1)
        rounds = metrics.rounds
        written.append(
            {
                "round": number,
                **_tested(metrics.test, index),
                "train_loss": float(np.mean(rounds.train_loss[covered])),
                "update_norm": float(rounds.update_norm[index]),
                "step_waste": float(np.mean(rounds.step_waste[covered])),
                "assumed_malicious": None if (used := int(rounds.assumed_malicious[index])) < 0 else used,
                "malicious": int(rounds.malicious[covered].sum()),
                "benign": int(rounds.benign[covered].sum()),
                "malicious_filtered": dict(
                    zip(layers, rounds.malicious_filtered[covered].sum(0).tolist(), strict=True)
                ),
                "benign_filtered": dict(zip(layers, rounds.benign_filtered[covered].sum(0).tolist(), strict=True)),
                "seconds_per_round": seconds,
            }
        )
        if number == simulation.rounds and metrics.worst_tenth is not None:
            written[-1]["worst_tenth_accuracy"] = float(metrics.worst_tenth[index])
        first = index + 1
    return written


def _tested(test: "Evaluation", index: int) -> dict[str, float]:
    """What a line says of the global model: both ways of counting where there is padding, the success of a backdoor."""
    ways = {"": test.reported, "_with_padding": test.with_padding, "_without_padding": test.without_padding}
    told = {
        f"test_{name}{way}": float(getattr(measures, name)[index])
        for way, measures in ways.items()
        if measures is not None
        for name in ("accuracy", "loss")
    }
    return told if test.success is None else {**told, "attack_success": float(test.success[index])}


def parse_lines(content: bytes) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to one that is cut off, has another form or other layers, or repeats a round."""
    parsed: list[dict[str, Any]] = []
    for text in content.split(b"\n"):
        try:
            line = parse_json(text)
        except ValueError:
            break
        if not isinstance(line, dict) or wrong_fields(line, LINE):
            break
        if any(not form.keys().isdisjoint(line) and wrong_fields(line, form) for form in (PADDING_LINE, SUCCESS_LINE)):
            break
        if parsed and line["round"] <= parsed[-1]["round"]:
            break
        layers = (parsed or [line])[0]["malicious_filtered"].keys()
        if line["malicious_filtered"].keys() != layers or line["benign_filtered"].keys() != layers:
            break
        if not LAST_LINE.keys().isdisjoint(line) and wrong_fields(line, LAST_LINE):
            break
        parsed.append(line)
    return parsed


def as_not_the_last(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line without what only the last line of a run has: a run that goes on from it has that later."""
    return {name: value for name, value in line.items() if name not in LAST_LINE}


def filtering_table(metrics: "BlockMetrics", done: int, count: int, layers: Sequence[str]) -> "pd.DataFrame | None":
    """What the rule made of each client in each layer of the rounds of a block, None where it is not recorded.

    Args:
      metrics: of one run, leaves `(block_rounds, ...)`, on the host.
      done: rounds before the block.
      count: rounds of the block that count.
      layers: from `layer_names`.

    Returns:
      A row for each round, client and layer, in this order: `round`, `client` (its id in the population), `malicious`,
      `layer`, `kept` (whether its weight is not 0), `weight`, and what else the rule's diagnostics have; for LASA
      `direction_score`, `magnitude_score`, `norm`, `purity`.
    """
    recorded = metrics.rounds.filtering
    if recorded is None:
        return None
    import pandas as pd  # slow to import, and most runs record none

    rounds, clients = recorded.client[:count].shape
    fields = {
        name: np.asarray(values[:count]).transpose(0, 2, 1).ravel()  # (rounds, layers, n)
        for name, values in recorded.fields.items()
    }
    table = pd.DataFrame(
        {
            "round": np.repeat(np.arange(done + 1, done + count + 1, dtype=np.int32), clients * len(layers)),
            "client": np.repeat(recorded.client[:count].ravel(), len(layers)),
            "malicious": np.repeat(recorded.malicious[:count].ravel(), len(layers)),
            "layer": pd.Categorical(list(layers) * (rounds * clients), categories=list(layers)),
            "kept": fields["weight"] != 0,
            "weight": fields.pop("weight"),
            **fields,
        }
    )
    return table[table["client"] >= 0]


def detection_rates(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of malicious clients filtered and of benign clients kept, per layer and over all layers.

    Counted over all rounds that the metrics lines cover; None where there was nobody to count.
    """

    def rate(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    malicious, benign = (sum(line[kind] for line in lines) for kind in ("malicious", "benign"))
    layers = list(lines[0]["malicious_filtered"]) if lines else []
    filtered = {layer: sum(line["malicious_filtered"][layer] for line in lines) for layer in layers}
    lost = {layer: sum(line["benign_filtered"][layer] for line in lines) for layer in layers}
    return {
        "malicious_filtered": rate(sum(filtered.values()), malicious * len(layers)),
        "benign_kept": rate(benign * len(layers) - sum(lost.values()), benign * len(layers)),
        "layers": {
            layer: {
                "malicious_filtered": rate(filtered[layer], malicious),
                "benign_kept": rate(benign - lost[layer], benign),
            }
            for layer in layers
        },
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result's bits; in a checkout also the commit of this one."""
    found = {"python": platform.python_version()}
    for name in ("lasa_jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a folder that was not installed
            found[name] = "unknown"
    return found | _commit()


@functools.cache
def _commit() -> dict[str, str]:
    """The commit of the checkout that this package lies in, with `-dirty` where files differ; empty outside of one."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return {}
    command = ("git", "--no-optional-locks", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--exclude=*")
    try:
        told = subprocess.run([*command, "--dirty"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):  # no git here, or it does not answer
        return {}
    return {"commit": told.stdout.strip()}


def device() -> str:
    """The devices of this process, `8 x NVIDIA H100`."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def parameters_sha256(variables: PyTree) -> str:
    """The SHA-256 of the bytes of a model's variables, leaf by leaf: the same for the same bits."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def summary(
    lines: Sequence[Mapping[str, Any]],
    variables: PyTree,
    *,
    status: str,
    seed: int,
    config_id: str,
    compile_seconds: float,
    total_seconds: float,
    test_labels: int | None = None,
) -> dict[str, Any]:
    """What summary.json holds.

    Args:
      lines: all lines of metrics.jsonl.
      variables: of the final model, arrays on the host.
      status: `finished` or `diverged`.
      seed: of the run.
      config_id: of the run.
      compile_seconds: of the process that finished.
      total_seconds: of the process that finished.
      test_labels: how many labels the test accuracy is a share of; None if nobody counted.
    """

    def highest(field: str) -> float | None:
        return max((line[field] for line in lines if line[field] is not None), default=None)

    best = highest("test_accuracy")
    measures = ("test_accuracy_with_padding", "test_accuracy_without_padding")
    by_padding = {f"best_{field}": highest(field) for field in measures if lines and field in lines[0]}
    success = [line["attack_success"] for line in lines if "attack_success" in line]
    of_the_attack: dict[str, float | None] = {}
    if success:
        of_the_attack = {"final_attack_success": success[-1], "largest_attack_success": highest("attack_success")}
    return {
        "status": status,
        "best_test_accuracy": best,
        **by_padding,
        "final_test_accuracy": lines[-1]["test_accuracy"] if lines else None,
        **of_the_attack,
        "best_round": next((line["round"] for line in lines if line["test_accuracy"] == best), None),
        "rounds": lines[-1]["round"] if lines else 0,
        "seed": seed,
        "detection": detection_rates(lines),
        **{field: lines[-1][field] for field in LAST_LINE if lines and field in lines[-1]},
        "assumed_malicious": lines[-1]["assumed_malicious"] if lines else None,
        "seconds_per_round": float(np.mean([line["seconds_per_round"] for line in lines])) if lines else None,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(variables)),  # entries of an update, d
        "compile_seconds": compile_seconds,
        "total_seconds": total_seconds,
        "ended": time.time(),  # with the machine and the seconds it says which runs shared one
        "machine": platform.node(),
        "test_labels": test_labels,
        "parameters_sha256": parameters_sha256(variables),
        "config_id": config_id,
        "device": device(),
        "versions": versions(),
    }
