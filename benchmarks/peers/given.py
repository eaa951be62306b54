"""What every runner is given and what it gives back: arguments, examples of clients, and one line of JSON.

NumPy only: a runner has the packages of its own environment.
"""

import argparse
import functools
import json
import math
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

LEARNING_RATE = 0.01  # of SGD without momentum, the same in every runner
LAYERS = {
    "conv1": (32, 1, 5, 5),
    "conv2": (64, 32, 5, 5),
    "dense1": (512, 64 * 7 * 7),
    "dense2": (10, 512),
}  # outputs first
WARM_UP = 1  # rounds that are not timed: they compile, start workers and fill caches


class Round(NamedTuple):
    """The work of a runner.

    Attributes:
      clients: how many there are; all train in every round.
      steps: local steps of a client, one pass over its examples.
      batch: examples of a step.
      rounds: to be timed, after `WARM_UP` others.
      workers: processes or threads that train clients side by side, where the simulator has them.
      data: the .npz file of the examples, as `examples` makes it.
    """

    clients: int
    steps: int
    batch: int
    rounds: int
    workers: int
    data: Path

    def arguments(self) -> list[str]:
        """Flags that `parse` reads back."""
        return [f"--{name}={value}" for name, value in self._asdict().items()]


def parse(argv: Sequence[str] | None = None) -> Round:
    """The work that the flags of a runner say."""
    parser = argparse.ArgumentParser()
    for name in ("clients", "steps", "batch", "rounds", "workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    return Round(**vars(parser.parse_args(argv)))


class Examples(NamedTuple):
    """Normalised images and labels, ready for a model of PyTorch: nobody's loader is timed.

    Attributes:
      inputs: float32, `(clients, steps * batch, 1, 28, 28)`.
      labels: int64, `(clients, steps * batch)`.
      evaluated: the first of them, float32 `(images, 1, 28, 28)` and int64 `(images,)`, on which the model is evaluated.
    """

    inputs: np.ndarray
    labels: np.ndarray
    evaluated: tuple[np.ndarray, np.ndarray]


@functools.cache
def examples(work: Round) -> Examples:
    """Reads the .npz file: uint8 images `(examples, 28, 28, 1)`, those of a client one after another."""
    with np.load(work.data) as arrays:
        mean, std = arrays["mean"], arrays["std"]

        def images(name: str) -> np.ndarray:
            normal = ((arrays[name].astype(np.float32) - mean) / std).astype(np.float32)
            return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))

        each = work.steps * work.batch
        inputs, labels = images("train_inputs"), arrays["train_labels"].astype(np.int64)
        assert np.array_equal(arrays["client_ids"], np.repeat(np.arange(work.clients), each))
        return Examples(
            inputs.reshape(work.clients, each, 1, 28, 28),
            labels.reshape(work.clients, each),
            (images("test_inputs"), arrays["test_labels"].astype(np.int64)),
        )


def first_weights() -> dict[str, np.ndarray]:
    """Of the paper's CNN before the first round, by name, as PyTorch lays them out; the same for every runner.

    Uniform within 1 / sqrt(inputs of a unit), as PyTorch draws them, and as lasa_jax does.
    """
    draw, weights = np.random.default_rng(1), {}
    for name, shape in LAYERS.items():
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        weights[f"{name}.weight"] = draw.uniform(-bound, bound, shape).astype(np.float32)
        weights[f"{name}.bias"] = draw.uniform(-bound, bound, shape[0]).astype(np.float32)
    return weights


class Clock:
    """Notes the end of every round; the first note is the start of the first round."""

    def __init__(self) -> None:
        self._noted: list[float] = []

    def note(self) -> None:
        """A round has ended."""
        self._noted.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Of each round after the warm-up."""
        return np.diff(self._noted)[WARM_UP:].tolist()


def report(work: Round, clock: Clock, before: float, after: float, packages: Sequence[str]) -> None:
    """Prints the line of a runner: seconds of rounds, loss before and after, versions.

    Raises:
      SystemExit: if another number of rounds was done, or the global model did not learn.
    """
    seconds = clock.seconds()
    if len(seconds) != work.rounds:
        raise SystemExit(f"{len(seconds)} rounds were timed, {work.rounds} were asked for")
    if not (math.isfinite(after) and after < before):
        raise SystemExit(f"the loss of the global model did not fall: {before:.4f} before, {after:.4f} after")
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
    print(
        json.dumps({"seconds": seconds, "loss_before": before, "loss_after": after, "versions": versions}), flush=True
    )
