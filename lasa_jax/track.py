"""Runs to watch while they go on, in TensorBoard: their scalars, and who was filtered in which layer."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lasa_jax.errors import InputError
from lasa_jax.workdir import records

Figure = Any  # matplotlib's, which is imported only to draw: half a second that a run should not wait for


def draw_layers(line: Mapping[str, Any]) -> Figure:
    """A heatmap of one line of metrics, one row for each layer: shares of malicious clients filtered, of benign kept."""
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


def check_installed() -> None:
    """Raises InputError if tensorboardX is not installed."""
    if find_spec("tensorboardX") is None:
        raise InputError("--tensorboard: needs the extra: python -m pip install 'lasa_jax[tensorboard]'")


_drawing = threading.Lock()  # matplotlib shares its fonts between the threads of a sweep


class Board:
    """What writes lines of metrics of one run to a folder that TensorBoard reads; the folder is made with the first line.

    Who watches must not end a run: where the folder cannot be written, that is said once, and no more is written there.

    A run that goes on after a kill computes rounds again that are written already: from the first line on, older ones of the
    same or later rounds are no longer shown.
    """

    def __init__(self, path: Path) -> None:
        """Args: path: the folder. Raises InputError if tensorboardX is not installed."""
        check_installed()
        self._path = path
        self._writer: Any = None
        self._given_up = False

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Writes one line of metrics.jsonl."""
        if not self._given_up:
            with self._giving_up():
                self._write(line)

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._given_up = True
            text = f"{self._path}: cannot be written ({error.strerror}); the run goes on, and no more is written there"
            print(text, file=sys.stderr, flush=True)

    def _write(self, line: Mapping[str, Any]) -> None:
        step = line["round"]
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # A thread of its own writes; what it has got is on the disk a second later.
            self._writer = SummaryWriter(str(self._path), purge_step=step, flush_secs=1)
        detection = records.detection_rates([line])
        scalars = {name: line[name] for name in ("train_loss", "test_loss", "test_accuracy", "update_norm")}
        scalars |= {name: line[name] for name in (*records.PADDING_LINE, *records.SUCCESS_LINE) if name in line}
        scalars |= {name: detection[name] for name in ("malicious_filtered", "benign_kept")}
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)
        if detection["layers"]:
            with _drawing:
                self._writer.add_figure("filtering", draw_layers(line), step, close=False)
        self._writer.flush()  # what is on the disk is what there is to watch

    def close(self) -> None:
        """Waits until everything is written, and ends the thread that does."""
        if self._writer is not None and not self._given_up:
            with self._giving_up():
                self._writer.close()


@contextlib.contextmanager
def boards(workdir: Path) -> Iterator[Callable[[str, int, Mapping[str, Any]], None]]:
    """An `on_metrics` that writes each run to the `tb/` of its directory below `workdir`; all are closed at the end.

    Raises:
      InputError: if tensorboardX is not installed.
    """
    check_installed()
    known: dict[str, Board] = {}
    with contextlib.ExitStack() as opened:

        def write(run: str, _: int, line: Mapping[str, Any]) -> None:
            if run not in known:
                known[run] = Board(workdir / run / "tb")
                opened.callback(known[run].close)
            known[run](line)

        yield write
