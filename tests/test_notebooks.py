"""Notebooks are stored without output, and run. All of them: `python -m pytest --nbmake notebooks`."""

import os
import shutil
import site
import subprocess
import tomllib
import venv
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
    install = '"..[notebooks]"' if address is None else f'"lasa_jax[notebooks] @ git+{address}"'
    assert f"%pip install --quiet {install}" in first.source
    on_colab = (address or PLACEHOLDER).replace("https://github.com", "https://colab.research.google.com/github")
    assert f"({on_colab}/blob/main/notebooks/{path.name})" in notebook.cells[0].source


@pytest.mark.slow
def test_after_the_first_cell_the_package_is_there(tmp_path):
    """In the same kernel, which an editable install would not do; the environment has all that we need."""
    environment, there = tmp_path / "environment", (ROOT / "build").exists()
    venv.create(environment, with_pip=True, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(
        "\n".join(site.getsitepackages())
    )  # whose own .pth files, as ours, do not count
    source = next(cell.source for cell in read(NOTEBOOKS[0]).cells if cell.cell_type == "code")
    source = source.replace("%matplotlib inline", "")  # the shell below draws nothing
    code = f"""
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
assert not shell.run_cell("import lasa_jax", silent=True).success
for source in ({source!r}, "from lasa_jax.report import compare", "print(compare.__file__, len(compare.printed()))"):
    shell.run_cell(source).raise_error()
"""
    python = environment / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [python, "-c", code],
        cwd=ROOT / "notebooks",
        env=clean,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if not there:
        shutil.rmtree(ROOT / "build", ignore_errors=True)  # pip's, ignored by git
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(packages) in done.stdout


@pytest.mark.parametrize("path", [ROOT / "notebooks" / "quickstart.ipynb", *SLOW])
def test_runs(path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS")  # one device, as a reader has
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read(path)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
