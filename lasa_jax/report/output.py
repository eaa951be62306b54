"""What a report writes: everything is made first, then each file is replaced whole."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lasa_jax.errors import InputError
from lasa_jax.report import figures, tables
from lasa_jax.report.groups import Group
from lasa_jax.report.tables import Table
from lasa_jax.workdir import replace_file

_KINDS = ("png", "svg")
_TABLES = ("table.md", "table.csv", "table.tex", "detection.csv", "settings.json")
_OWN = (*_TABLES, *(f"{name}.{kind}" for name in figures.OF_A_GROUP for kind in _KINDS))


def folder(directory: Path, output: str | None) -> Path:
    """Where the files go: `DIR/report`, or what the user says.

    Raises:
      InputError: if `DIR/report` is a link, which may lead anywhere.
    """
    if output is not None:
        return Path(output)
    path = directory / "report"
    if path.is_symlink():
        raise InputError(f"{path}: is a link; say where to write with --output=DIR")
    return path


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
            return
        for kind in _KINDS:
            files[f"{place}{name}.{kind}"] = figures.as_bytes(drawn, kind)

    for group in groups:
        place = f"{group.folder}/" if group.folder else ""
        title = f" ({group.folder})" if group.folder else ""
        files[f"{place}table.md"] = "\n".join(map(tables.as_markdown, made[group.folder]))
        files[f"{place}table.tex"] = "\n".join(map(tables.as_latex, made[group.folder]))
        files[f"{place}table.csv"] = tables.as_csv(group)
        detected = tables.detection(group)
        files[f"{place}detection.csv"] = detected.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        files[f"{place}settings.json"] = tables.settings(group)
        for name, draw in figures.OF_A_GROUP.items():
            add(place, draw(group), name, title)
    if len(groups) > 1:
        add("", figures.cost_by_size(groups), "cost", "")
    return files, missing


def write(path: Path, files: Mapping[str, str | bytes], *, own: Sequence[str] = _OWN) -> None:
    """Writes the files, each whole, and removes those that an earlier report left and this one does not have.

    Args:
      path: the folder; made if it is not there.
      files: text or bytes by path below the folder.
      own: names of files that are a report's, and may be removed.

    Raises:
      InputError: if a folder is a link or cannot be written.
    """
    try:
        for name, content in files.items():
            place = path / name
            if place.parent != path and place.parent.is_symlink():
                raise InputError(f"{place.parent}: is a link; remove it, or choose another --output")
            place.parent.mkdir(parents=True, exist_ok=True)
            replace_file(place, content)
        for below in [path, *(place for place in path.glob("[0-9]*_*=*") if place.is_dir() and not place.is_symlink())]:
            for name in own:
                if str((below / name).relative_to(path)) not in files:
                    (below / name).unlink(missing_ok=True)
            if below != path and not any(below.iterdir()):
                below.rmdir()
    except OSError as error:
        raise InputError(f"--output={path}: cannot be written ({error.strerror})") from None
