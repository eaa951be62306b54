"""Notebooks are stored without output, and run. All of them: `python -m pytest --nbmake notebooks`."""

import tomllib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PLACEHOLDER = "https://github.com/REPLACE_WITH_OWNER/lasa_jax"  # until pyproject.toml has an address under project.urls
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SLOW = [pytest.param(path, marks=pytest.mark.slow, id=path.stem) for path in NOTEBOOKS if path.stem != "quickstart"]


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_output(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in cells] == [[]] * len(cells)
    assert [cell.execution_count for cell in cells] == [None] * len(cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_from_the_repository(path):
    """Below the badge; without an address, from the checkout, and the badge has the placeholder."""
    notebook = read(path)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository")
    install = '-e "..[notebooks]"' if address is None else f'"lasa_jax[notebooks] @ git+{address}"'
    assert 'find_spec("lasa_jax") is None' in first.source
    assert f"%pip install --quiet {install}" in first.source
    on_colab = (address or PLACEHOLDER).replace("https://github.com", "https://colab.research.google.com/github")
    assert f"({on_colab}/blob/main/notebooks/{path.name})" in notebook.cells[0].source


@pytest.mark.parametrize("path", [ROOT / "notebooks" / "quickstart.ipynb", *SLOW])
def test_runs(path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # one device, as a reader has
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read(path)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
