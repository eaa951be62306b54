"""Tables as text, figures as bytes, and files that appear whole."""

import math

import pandas as pd
import pytest
from matplotlib.figure import Figure

from lasa_jax.errors import InputError
from lasa_jax.inspection import rendering
from lasa_jax.inspection.rendering import Cell, Table, as_latex, as_markdown, show


def test_special_characters_are_text():
    table = Table("a|b", ("x_y", r"\cmd"), ((Cell("50 % & {#$}"), Cell("~^")),))
    assert r"50 \% \& \{\#\$\} & \textasciitilde{}\textasciicircum{} \\" in as_latex(table)
    assert r"x\_y & \textbackslash{}cmd \\" in as_latex(table)
    assert r"**a\|b**" in as_markdown(table)


def test_a_table_is_shown_whole_where_there_is_no_terminal(capsys):
    show(Table("a caption", ("rule", "x" * 120), ((Cell("LASA"), Cell("1.0", 1)),), notes=("One note.", "Another.")))
    shown = capsys.readouterr().out
    assert "x" * 120 in shown
    assert [line.strip() for line in shown.splitlines()[-2:]] == ["One note.", "Another."]


def test_numbers_have_six_digits():
    frame = pd.DataFrame({"name": ["a"], "share": [1 / 3], "count": [2], "missing": [math.nan]})
    assert rendering.as_csv(frame) == "name,share,count,missing\na,0.333333,2,\n"


def test_pictures_of_a_figure_are_the_same_bytes_again():
    def drawn() -> Figure:
        figure = Figure()
        figure.add_subplot().plot([1, 2], label="line")
        return figure

    files = rendering.pictures("folder/picture", drawn())
    assert list(files) == ["folder/picture.png", "folder/picture.svg"]
    assert files == rendering.pictures("folder/picture", drawn())


def test_files_are_written_below_folders_that_are_no_links(tmp_path):
    rendering.write(tmp_path / "out", {"text.md": "ä", "below/bytes": b"\x00"})
    assert (tmp_path / "out" / "text.md").read_text() == "ä"
    assert (tmp_path / "out" / "below" / "bytes").read_bytes() == b"\x00"
    assert len([path for path in (tmp_path / "out").rglob("*") if path.is_file()]) == 2
    (tmp_path / "out" / "linked").symlink_to(tmp_path)
    with pytest.raises(InputError, match="linked: is a link; remove it"):
        rendering.write(tmp_path / "out", {"linked/text.md": ""})
    with pytest.raises(InputError, match=r"--output=.*text\.md: cannot be written"):
        rendering.write(tmp_path / "out" / "text.md", {"a": ""})
    (tmp_path / "report").symlink_to(tmp_path / "out")
    with pytest.raises(InputError, match="report: is a link; say where to write"):
        rendering.folder(tmp_path, None)
    assert rendering.folder(tmp_path, tmp_path / "elsewhere").name == "elsewhere"


def test_a_caption_is_not_as_narrow_as_its_table(capsys):
    caption = "digits, 20 rounds, fidelity paper: best test accuracy in % at 25 % malicious clients"
    show(Table(caption, ("a", "b"), ((Cell("1"), Cell("2")),)))
    assert capsys.readouterr().out.splitlines()[0].strip() == caption
