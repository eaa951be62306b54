"""The page of results: a table, how each simulator was run, and what the table does not show."""

from collections.abc import Mapping
from typing import Any

import numpy as np

ABOUT = """
## What the table does not show

- Evaluation, checkpoints and metrics: no round is evaluated, and processes start, compile and warm up outside of the time.
- Accelerators. On one GPU clients of lasa_jax are vectorised, and the others keep a GPU busy in ways of their own.
- Attacks and rules. All average; a robust rule is where stacks of updates are read many times, see
  [the performance page](../performance.md).
- More machines, clients that differ in size, and messages between real devices, which some of the others are made for.
- Other settings of the others: each is run as its documentation says for one machine, not tuned beyond that. Their authors
  may know faster ways.
"""


def middle(row: Mapping[str, Any]) -> float:
    """Seconds of a round: the median over runs of the median over rounds."""
    return float(np.median([np.median(rounds) for rounds in row["seconds"]]))


def times_ours(row: Mapping[str, Any], ours: Mapping[str, Any] | None) -> str:
    """Seconds over those of lasa_jax, the median over repeats of the ratio within a repeat; "-" where there is none."""
    if ours is None:
        return "-"
    pairs = zip(row["seconds"], ours["seconds"], strict=True)
    return f"{np.median([np.median(theirs) / np.median(own) for theirs, own in pairs]):.2f}"


def table(rows: list[Mapping[str, Any]]) -> str:
    """A line for each simulator, those without a result last."""
    timed = sorted((row for row in rows if not row.get("reason")), key=middle)
    ours = next((row for row in timed if row["name"] == "lasa_jax"), None)
    lines = [
        "| simulator | rounds per second | seconds per round (medians of runs) | seconds, lasa_jax = 1 | loss | versions |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in timed:
        runs = [np.median(rounds) for rounds in row["seconds"]]
        cells = (
            row["name"],
            f"{1 / middle(row):.3f}",
            f"{middle(row):.2f} ({min(runs):.2f} to {max(runs):.2f})",
            times_ours(row, ours),
            f"{row['loss_before']:.4f} to {row['loss_after']:.4f}",
            ", ".join(f"{name} {version}" for name, version in row["versions"].items()),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows:
        if row.get("reason"):
            asked = ", ".join(row["requirements"])
            reason = row["reason"].replace("|", "\\|")
            lines.append(f"| {row['name']} | - | {reason} | - | - | {asked} |")
    return "\n".join(lines)


def beside(busy: list[float]) -> str:
    """What else the machine did, as measured between the runs."""
    if not busy or np.isnan(busy).any():
        return "What else the machine did was not measured."
    numbers = f"{np.median(busy):.2f} cores at the median, {max(busy):.2f} at most"
    if np.median(busy) < 0.1:
        return f"Between the runs other work took {numbers}."
    return (
        f"**Other work ran beside it**: between the runs it took {numbers}. It slows simulators that wait for all of their "
        "threads in every operation most, so that neither seconds nor ratios are those of a quiet machine."
    )


def page(result: Mapping[str, Any]) -> str:
    """The whole page as Markdown.

    Args:
      result: what `python -m benchmarks.peers` writes as JSON.
    """
    work = result["work"]
    images = work["steps"] * work["batch"]
    lines = [
        "# The same round in other simulators",
        "",
        f"`python -m benchmarks.peers --environments=FOLDER`, {result['date']}, {result['minutes']:g} minutes once the "
        f"environments were made. {result['machine']}.",
        f"{beside(result['busy_cores'])}",
        "",
        f"One round of FedAvg: {work['clients']} clients with {images} images each ({result['images']}) train the paper's "
        f"CNN (1,663,370 parameters) for {work['steps']} steps of {work['batch']} images by SGD without momentum at a "
        "learning rate of 0.01, and the server averages. All clients take part in every round. "
        f"A run has one round that is not timed and {work['rounds']} that are; {result['repeats']} runs of each simulator "
        "alternate with those of the others. The loss is that of the global model on the first "
        f"{result['evaluated']:,} training images, before the first round and {work['rounds'] + 1} rounds later. All begin "
        "with the same weights, so that equal falls are equal work; they draw batches and dropout differently.",
        "",
        table(result["rows"]),
        "",
        "## How each was run",
        "",
        *(f"- **{row['name']}**: {row['how']}" for row in result["rows"]),
        "",
        "Runners on PyTorch get images that are normalised already, so that no loader's transforms are timed.",
        ABOUT.rstrip(),
    ]
    return "\n".join(lines) + "\n"
