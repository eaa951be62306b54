"""Notebooks are stored without output, and run. All of them: `python -m pytest --nbmake notebooks`."""

import importlib.util
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
def test_the_badge_has_the_address_of_the_repository(path):
    """And there is none where pyproject.toml has no address."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository")
    text = read(path).cells[0].source
    if address is None:
        assert "colab" not in text
    else:
        on_colab = address.replace("https://github.com", "https://colab.research.google.com/github")
        assert f"({on_colab}/blob/main/notebooks/{path.name})" in text


def first_cell(path: Path) -> str:
    return next(cell.source for cell in read(path).cells if cell.cell_type == "code")


def installed_by(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, there: bool) -> str | None:
    """What the first cell installs where the notebook lies in a folder, and the package is there or not."""
    magic = '%pip install --quiet "{source[0]}{extra}" {numpy}'
    code = first_cell(path).replace(magic, "installed = source[0]")
    assert magic in first_cell(path)
    found = object() if there else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found if name == "lasa_jax" else object())
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(code.replace("%matplotlib inline", ""), names)
    return names.get("installed")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_takes_what_is_installed_then_the_checkout_then_a_wheel(path, tmp_path, monkeypatch):
    assert installed_by(path, tmp_path, monkeypatch, there=True) is None
    assert installed_by(path, ROOT / "notebooks", monkeypatch, there=False) == ".."
    with pytest.raises(SystemExit, match="put its wheel beside this notebook"):
        installed_by(path, tmp_path, monkeypatch, there=False)
    wheel = tmp_path / "lasa_jax-0.2.0-py3-none-any.whl"
    wheel.touch()
    assert installed_by(path, tmp_path, monkeypatch, there=False) == str(wheel)


@pytest.mark.slow
def test_after_the_first_cell_the_package_is_there(tmp_path):
    """In the same kernel, which an editable install would not do; the environment has all that we need."""
    environment, there = tmp_path / "environment", (ROOT / "build").exists()
    venv.create(environment, with_pip=True, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(
        "\n".join(site.getsitepackages())
    )  # whose own .pth files, as ours, do not count
    source = first_cell(NOTEBOOKS[0]).replace("%matplotlib inline", "")  # the shell below draws nothing
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
