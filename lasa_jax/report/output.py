"""The files of a report: everything is made first, then each file is replaced whole, and old ones are removed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lasa_jax.errors import InputError
from lasa_jax.inspection import rendering
from lasa_jax.inspection.rendering import Table
from lasa_jax.report import figures, measures, tables, timings
from lasa_jax.report.groups import Group

_TABLES = ("table.md", "table.csv", "table.tex", "measures.csv", "detection.csv", "settings.json")
_FIGURES = (*figures.OF_A_GROUP, *figures.OF_BACKDOORS)
_OWN = (*_TABLES, *(f"{name}.{kind}" for name in _FIGURES for kind in rendering.KINDS))


def make(groups: Sequence[Group], made: Mapping[str, Sequence[Table]]) -> tuple[dict[str, str | bytes], list[str]]:
    """The files of a report by their path below its folder, and a line for every figure that has no data.

    Args:
      groups: a folder each if there are several.
      made: the tables of each group by its folder.
    """
    files: dict[str, str | bytes] = {}
    missing: list[str] = []

    def add(place: str, drawn: Figure | str, name: str, title: str) -> None:
        if isinstance(drawn, str):
            missing.append(f"not drawn: {drawn}{title}")
        else:
            files.update(rendering.pictures(f"{place}{name}", drawn))

    for group in groups:
        place = f"{group.folder}/" if group.folder else ""
        title = f" ({group.folder})" if group.folder else ""
        files[f"{place}table.md"] = "\n".join(map(rendering.as_markdown, made[group.folder]))
        files[f"{place}table.tex"] = "\n".join(map(rendering.as_latex, made[group.folder]))
        files[f"{place}table.csv"] = rendering.as_csv(_cells(group))
        files[f"{place}measures.csv"] = rendering.as_csv(measures.by_rule(group))
        files[f"{place}detection.csv"] = rendering.as_csv(tables.detection(group))
        files[f"{place}settings.json"] = tables.settings(group)
        of_backdoors = figures.OF_BACKDOORS if tables.has_backdoors(group) else {}
        for name, draw in {**figures.OF_A_GROUP, **of_backdoors}.items():
            add(place, draw(group), name, title)
    if len(groups) > 1:
        add("", timings.by_size(groups), "cost", "")
    return files, missing


def _cells(group: Group) -> pd.DataFrame:
    """The cells of the tables with their settings, and what `measures` says of each."""
    key = ["rule", "attack", "attack_ratio"]
    said = measures.by_attack(group)[[*key, "final", "impact", "worst_tenth"]]
    return tables.cells_with_settings(group).merge(said, on=key, how="left", sort=False)


def write(path: Path, files: Mapping[str, str | bytes], *, own: Sequence[str] = _OWN) -> None:
    """Writes the files, each whole, and removes those that an earlier report left and this one does not have.

    Args:
      path: the folder; made if it is not there.
      files: text or bytes by path below the folder.
      own: names of files that are a report's, and may be removed.

    Raises:
      InputError: if a folder is a link or cannot be written.
    """
    rendering.write(path, files)
    try:
        for below in [path, *(place for place in path.glob("[0-9]*_*=*") if place.is_dir() and not place.is_symlink())]:
            for name in own:
                if str((below / name).relative_to(path)) not in files:
                    (below / name).unlink(missing_ok=True)
            if below != path and not any(below.iterdir()):
                below.rmdir()
    except OSError as error:
        raise InputError(f"--output={path}: cannot be written ({error.strerror})") from None
