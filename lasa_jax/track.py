"""A run to watch while it goes on, in TensorBoard: its scalars, and who was filtered in which layer."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lasa_jax.errors import InputError
from lasa_jax.workdir import records

Figure = Any  # matplotlib's, which is imported only to draw: half a second that a run should not wait for


def draw_layers(line: Mapping[str, Any]) -> Figure:
    """A heatmap of one line of metrics: a row a layer; malicious clients filtered and benign ones kept, as shares."""
    from matplotlib.figure import Figure

    layers = records.detection_rates([line])["layers"]
    columns = ("malicious_filtered", "benign_kept")
    shares = [[float("nan") if (x := rates[name]) is None else x for name in columns] for rates in layers.values()]
    figure = Figure(figsize=(5, 1.5 + 0.25 * len(layers)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns])
    axes.set_yticks(range(len(layers)), list(layers))
    axes.set_title(f"round {line['round']}")
    figure.colorbar(image, label="share of clients")
    return figure


def tensorboard(path: Path) -> Callable[[Mapping[str, Any]], None]:
    """What writes a line of metrics to `path`; the folder is made with the first line.

    A run that goes on after a kill computes rounds again that are written already: from the first line on, older ones of the
    same or later rounds are no longer shown.

    Raises:
      InputError: if tensorboardX is not installed.
    """
    if find_spec("tensorboardX") is None:
        raise InputError("--tensorboard: needs the extra: python -m pip install 'lasa_jax[tensorboard]'")
    from tensorboardX import SummaryWriter

    opened: list[Any] = []

    def write(line: Mapping[str, Any]) -> None:
        step = line["round"]
        if not opened:
            # A thread of its own writes; what it has got is on the disk a second later.
            opened.append(SummaryWriter(str(path), purge_step=step, flush_secs=1))
        writer = opened[0]
        detection = records.detection_rates([line])
        scalars = {name: line[name] for name in ("train_loss", "test_loss", "test_accuracy", "update_norm")}
        scalars |= {name: line[name] for name in records.PADDING_LINE if name in line}
        scalars |= {name: detection[name] for name in ("malicious_filtered", "benign_kept")}
        for name, value in scalars.items():
            if value is not None:
                writer.add_scalar(name, value, step)
        if detection["layers"]:
            writer.add_figure("filtering", draw_layers(line), step, close=False)
        writer.flush()  # what is on the disk is what there is to watch

    return write
