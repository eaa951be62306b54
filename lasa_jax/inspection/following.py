"""One client over the rounds of a run that recorded its filter: where it was dropped, and why.

followed = follow(recorded.load(run), client=7, magnitude_radius=2.0)
draw(followed).savefig("client_7.png")
"""

import numpy as np
import pandas as pd

from lasa_jax.errors import InputError
from lasa_jax.inspection import causes
from lasa_jax.inspection.rendering import Figure


def follow(
    recorded: pd.DataFrame, client: int, *, magnitude_radius: float = 1.0, direction_radius: float = 1.0
) -> pd.DataFrame:
    """What was recorded of one client, with the column `cause`: places in `causes.CAUSES`.

    Args:
      recorded: from `recorded.load`, of a run of LASA.
      client: its id.
      magnitude_radius, direction_radius: of the run.

    Raises:
      InputError: if the client took part in no round, or the rule was not LASA.
    """
    own = recorded[recorded["client"] == client]
    if own.empty:
        known = recorded["client"]
        raise InputError(f"client = {client}: took part in no round, allowed are ids of {known.min()} to {known.max()}")
    radii = {"magnitude_radius": magnitude_radius, "direction_radius": direction_radius}
    return own.assign(cause=causes.of_recorded(own, **radii))


def often(recorded: pd.DataFrame, malicious: bool) -> int:
    """The id of the malicious or benign client that took part in the most rounds, the smallest of several.

    Raises:
      InputError: if there is no such client.
    """
    own = recorded[recorded["malicious"] == malicious]
    if own.empty:
        raise InputError(f"malicious = {malicious}: no such client was recorded")
    rounds = own.groupby("client")["round"].nunique()
    return int(rounds.idxmax())


def draw(followed: pd.DataFrame, title: str = "") -> Figure:
    """A column for each of the client's rounds and a row for each layer, coloured by cause.

    Args:
      followed: from `follow`.
      title: of the picture; the client's id if empty.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    grid = followed.pivot_table(index="layer", columns="round", values="cause", observed=True).sort_index()
    size = (max(6.5, 2.0 + 0.3 * grid.shape[1]), 1.5 + 0.28 * grid.shape[0])
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(xlabel="round (those in which the client took part)")
    colours = ListedColormap(list(causes.COLOURS))
    axes.imshow(grid.to_numpy(float), aspect="auto", cmap=colours, vmin=-0.5, vmax=len(causes.CAUSES) - 0.5)
    axes.set_xticks(range(grid.shape[1]), [str(at) for at in grid.columns])
    axes.set_yticks(range(grid.shape[0]), [str(name).removeprefix("params/") for name in grid.index])
    axes.set_xticks(np.arange(0.5, grid.shape[1] - 1), minor=True)
    axes.set_yticks(np.arange(0.5, grid.shape[0] - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="minor", length=0)
    handles = [Patch(color=colour, label=name) for name, colour in zip(causes.CAUSES, causes.COLOURS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="small")
    kind = "malicious" if followed["malicious"].iloc[0] else "benign"
    figure.suptitle(title or f"client {followed['client'].iloc[0]}, {kind}")
    return figure
