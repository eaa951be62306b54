"""Curves of one run."""

import os

from lasa_jax.workdir import Workdir


def accuracy_curve(path: str | os.PathLike[str]) -> None:
    """Draws `accuracy.png` in a run's directory: test accuracy in percent against the round, and the success of an attack
    with a trigger. Nothing if no round was evaluated.
    """
    from matplotlib.figure import Figure  # half a second that a run should not wait for

    workdir = Workdir(path, lock=False)
    lines = [line for line in workdir.metrics() if line["test_accuracy"] is not None]
    if not lines:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    title = workdir.path.absolute().name
    axes = figure.add_subplot(xlabel="round", ylabel="test examples in %", ylim=(0, 100), title=title)
    axes.plot([line["round"] for line in lines], [100 * line["test_accuracy"] for line in lines], label="test accuracy")
    hit = [(line["round"], 100 * line["attack_success"]) for line in lines if line.get("attack_success") is not None]
    if hit:
        axes.plot(*zip(*hit, strict=True), linestyle="--", label="attack success")
        axes.legend()
    axes.grid(alpha=0.3)
    workdir.write_figure("accuracy.png", figure)
