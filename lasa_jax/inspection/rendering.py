"""What is shown and written: tables as text, figures as bytes, and files that appear whole. The report uses it too."""

import dataclasses
import io
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.console import Group as Lines
from rich.table import Table as RichTable
from rich.text import Text

from lasa_jax.errors import InputError
from lasa_jax.workdir import replace_file

Figure = Any  # matplotlib's, which is imported only to draw: half a second that a run should not wait for

KINDS = ("png", "svg")  # of every picture
_PIPED_WIDTH = 200  # characters, where there is no terminal to fit


class Cell(NamedTuple):
    """A field of a table. rank: 1 is bold, 2 underlined."""

    text: str
    rank: int = 0


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as text. labels: how many columns at the left name the row. notes: lines below it."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: int = 1
    notes: tuple[str, ...] = ()


def show(table: Table) -> None:
    """Prints a table to the terminal, or wide enough for a file. Caption and notes have lines of their own."""
    console = Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False)
    console.print(as_rich(table))


def as_rich(table: Table) -> Lines:
    """For the terminal: caption and notes are as wide as the terminal, also where the table is narrow."""
    made = RichTable()
    for index, heading in enumerate(table.headings):
        made.add_column(Text(heading), justify="left" if index < table.labels else "right")
    for row in table.rows:
        made.add_row(*(Text(cell.text, style=("", "bold", "underline")[cell.rank]) for cell in row))
    caption = [Text(table.caption, style="italic")] if table.caption else []
    return Lines(*caption, made, *(Text(note) for note in table.notes))


def as_markdown(table: Table) -> str:
    """A pipe table; second best is underlined by HTML, since Markdown has no underline."""
    marks = (("", ""), ("**", "**"), ("<u>", "</u>"))

    def line(texts: Sequence[str]) -> str:
        return f"| {' | '.join(texts)} |"

    bars = ["---" if index < table.labels else "---:" for index in range(len(table.headings))]
    rows = [[f"{marks[cell.rank][0]}{_pipes(cell.text)}{marks[cell.rank][1]}" for cell in row] for row in table.rows]
    lines = [line([_pipes(heading) for heading in table.headings]), line(bars), *(line(row) for row in rows)]
    return "\n".join([f"**{_pipes(table.caption)}**", "", *lines, "", *table.notes, ""])


def _pipes(text: str) -> str:
    return re.sub(r"([|*_<>`\\\[])", r"\\\1", text)


def as_latex(table: Table) -> str:
    """A table environment that needs the package booktabs."""
    marks = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")
    rows = [" & ".join(marks[cell.rank].format(_latex(cell.text)) for cell in row) + r" \\" for row in table.rows]
    columns = "l" * table.labels + "r" * (len(table.headings) - table.labels)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.caption)}. {_latex(' '.join(table.notes))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(map(_latex, table.headings)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_LATEX |= {character: rf"\{character}" for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def as_csv(frame: pd.DataFrame) -> str:
    """A table of numbers with six digits, without the index."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def figure_bytes(figure: Figure, kind: str) -> bytes:
    """A figure as `png` or `svg`, the same bytes for the same data and the same version of matplotlib."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "lasa_jax"}):
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def pictures(name: str, figure: Figure) -> dict[str, bytes]:
    """The files of a figure: `{"NAME.png": ..., "NAME.svg": ...}`."""
    return {f"{name}.{kind}": figure_bytes(figure, kind) for kind in KINDS}


def folder(directory: Path, output: Path | None) -> Path:
    """Where the files go: `DIR/report`, or what the user says.

    Raises:
      InputError: if `DIR/report` is a link, which may lead anywhere.
    """
    if output is not None:
        return output
    path = directory / "report"
    if path.is_symlink():
        raise InputError(f"{path}: is a link; say where to write with --output=DIR")
    return path


def write(path: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes files, each of which appears whole or not at all.

    Args:
      path: the folder; made if it is not there.
      files: text or bytes by path below the folder.

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
    except OSError as error:
        raise InputError(f"--output={path}: cannot be written ({error.strerror})") from None
