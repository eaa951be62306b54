"""The pages of the notebooks on the site: each is of the cells as they are, and shows what a cell printed and drew."""

import base64
import importlib
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).parents[1]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    return importlib.import_module("run_notebooks")


def test_no_page_is_older_than_its_notebook(pages):
    old = [
        path.stem
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        if not pages.page_of(path).is_file() or pages.mark(path) not in pages.page_of(path).read_text()
    ]
    assert not old, f"docs/notebooks is older than the notebooks: python docs/run_notebooks.py {' '.join(old)}"


def shown(data: dict[str, Any]) -> Any:
    return new_output("display_data", data=data)


def test_what_a_page_shows(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PAGES", tmp_path / "pages")
    drawn = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(drawn, "PNG")
    table = '<style scoped>td {}</style><table border="1" class="dataframe"><tr style=""><td>7</td></tr></table>'
    outputs = [
        new_output("stream", name="stdout", text="half\rwhole\n"),
        new_output("stream", name="stdout", text="\x1b[1mbold\x1b[0m\n"),
        new_output("stream", name="stderr", text="a warning"),
        shown({"image/png": base64.b64encode(drawn.getvalue()).decode(), "text/plain": "<Figure>"}),
        shown({"text/html": table, "text/plain": "7"}),
        shown({"text/html": "<div></div><script>move()</script>"}),
        shown({"application/vnd.jupyter.widget-view+json": {}, "text/plain": "interactive(...)"}),
        shown({"text/plain": "42"}),
    ]
    notebook = new_notebook(
        cells=[
            new_markdown_cell("# A title\n\nText, and [the next](other.ipynb)."),
            new_code_cell('importlib.util.find_spec("lasa_jax")'),
            new_code_cell("draw()", outputs=outputs),
        ]
    )
    path = tmp_path / "made.ipynb"
    nbformat.write(notebook, path)
    pages.render(path, notebook)
    text = pages.page_of(path).read_text()
    assert text.startswith("# A title\n\n*`notebooks/made.ipynb` with what it printed and drew.")
    assert text.endswith(pages.mark(path) + "\n")
    for part in (
        "[the next](other.md)",
        "```python\ndraw()\n```",
        "```text\nwhole\nbold\n```",
        "(made_1.png)",
        "<table><tr><td>7</td></tr></table>",
        '<iframe src="../made_2.html"',
        "```text\n42\n```",
    ):
        assert part in text
    for part in ("find_spec", "a warning", "<Figure>", "interactive(", "dataframe"):
        assert part not in text
    assert sorted(file.name for file in (tmp_path / "pages").iterdir()) == ["made.md", "made_1.png", "made_2.html"]
    before = pages.mark(path)
    notebook.cells[-1].source = "draw(again)"
    nbformat.write(notebook, path)
    assert pages.mark(path) != before


def test_a_file_that_is_too_large_is_not_kept(pages, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    cell = new_code_cell("frames()", outputs=[shown({"text/html": "<script>" + "x" * 2_000_000 + "</script>"})])
    with pytest.raises(SystemExit, match=r"made_1.html would have 2,000,\d+ bytes; at most 1,000,000 are kept"):
        pages.render(tmp_path / "made.ipynb", new_notebook(cells=[new_markdown_cell("# T"), cell]))
