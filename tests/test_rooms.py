"""The order of the house, read from the imports: a room imports only from rooms above it, and no file is in a circle.

A room is a file or a folder directly under `lasa_jax/`, or one of the folders `launch/` and `configs/`.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = (  # from the ground up
    "errors",
    "ops",
    "models",
    "data",
    "aggregators",
    "attacks",
    "federated",
    "methods",
    "config",
    "commandline",
    "workdir",
    "build",
    "experiment",
    "track",
    "grid",
    "inspection",
    "report",
    "leaderboard",
    "testing",
    "main",
    "launch",
    "configs",
    "__main__",
    "__init__",  # of lasa_jax itself, which hands out what the others define
)
HOUSE = ("lasa_jax", "launch", "configs")
FOLDERS = (*HOUSE, "benchmarks", "checks")
MOST_LINES = 400


def files(root: Path, *folders: str) -> list[Path]:
    """Every Python file of some folders, relative to `root`; what is a link there is read where it lies."""
    found = {path.resolve() for folder in folders for path in (root / folder).rglob("*.py")}
    return sorted(path.relative_to(root.resolve()) for path in found)


def file_of(root: Path, module: str) -> Path | None:
    """The file of a module, relative to `root`; None if it is not of this repository."""
    path = root / module.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file.resolve().relative_to(root.resolve())
    return None


def imported(root: Path, path: Path) -> Iterator[Path]:
    """The files of this repository that a file imports, at its top and inside its functions."""
    for node in ast.walk(ast.parse((root / path).read_text())):
        if isinstance(node, ast.Import):
            modules = [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.parts[: -node.level]) if node.level else ""
            module = ".".join(filter(None, (package, node.module)))
            modules = [(f"{module}.{alias.name}", module) for alias in node.names]  # a submodule, else a name in it
        else:
            continue
        for candidates in modules:
            found = (file_of(root, module) for module in candidates)
            if (file := next(filter(None, found), None)) is not None:
                yield file


def room(path: Path) -> str:
    """The room that a file stands in: `lasa_jax/main.py` in `main`, `launch/sweep.py` in `launch`."""
    return path.parts[1].removesuffix(".py") if path.parts[0] == "lasa_jax" else path.parts[0]


def violations(root: Path) -> list[str]:
    """One line for each import from a room below, or from outside the house."""
    lines = []
    for path in files(root, *HOUSE):
        allowed = ROOMS[: ROOMS.index(room(path)) + 1] if room(path) in ROOMS else ()
        below = sorted({str(file) for file in imported(root, path) if room(file) not in allowed})
        lines += [f"{path} imports {file}" for file in below]
    return lines


def circle(root: Path) -> list[str]:
    """Files that import each other in a ring, the first of them again at the end; empty if there are none."""
    graph = {str(path): {str(file) for file in imported(root, path)} for path in files(root, *FOLDERS)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def long_files(root: Path) -> list[str]:
    """One line for each file that is too long."""
    lengths = {path: len((root / path).read_text().splitlines()) for path in files(root, *FOLDERS)}
    return [f"{path} has {length} lines" for path, length in lengths.items() if length > MOST_LINES]


def test_every_file_stands_in_a_room():
    assert {room(path) for path in files(ROOT, *HOUSE)} <= set(ROOMS)


def test_a_room_imports_only_from_rooms_above_it():
    assert not violations(ROOT), "\n".join(violations(ROOT))


def test_no_file_is_in_a_circle():
    assert not circle(ROOT), " <- ".join(circle(ROOT))


def test_no_file_is_too_long():
    assert not long_files(ROOT), "\n".join(long_files(ROOT))


def house(root: Path, contents: dict[str, str]) -> Path:
    """A house of a few files."""
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_an_import_from_below_is_found(tmp_path):
    root = house(
        tmp_path,
        {
            "lasa_jax/__init__.py": "from lasa_jax.grid.plan import simulate\n",
            "lasa_jax/errors.py": "import json\n",
            "lasa_jax/ops/rows.py": "def f():\n    from lasa_jax import data\n",
            "lasa_jax/data/__init__.py": "from . import prepare\n",
            "lasa_jax/data/prepare.py": "from ..ops.rows import f\nimport lasa_jax.errors\n",
            "lasa_jax/grid/plan.py": "import launch.sweep\nfrom checks import fuzz\nfrom lasa_jax import simulate\n",
            "launch/sweep.py": "from lasa_jax.grid.plan import simulate\n",
            "checks/fuzz.py": "",
        },
    )
    assert violations(root) == [
        "lasa_jax/grid/plan.py imports checks/fuzz.py",
        "lasa_jax/grid/plan.py imports lasa_jax/__init__.py",
        "lasa_jax/grid/plan.py imports launch/sweep.py",
        "lasa_jax/ops/rows.py imports lasa_jax/data/__init__.py",
    ]


def test_a_circle_is_found(tmp_path):
    init, plan, cost = "lasa_jax/grid/__init__.py", "lasa_jax/grid/plan.py", "lasa_jax/grid/cost.py"
    house(
        tmp_path, {init: "from lasa_jax.grid.plan import points\n", plan: "from lasa_jax.grid import cost\n", cost: ""}
    )
    assert circle(tmp_path) == []
    house(tmp_path, {cost: "def f():\n    from lasa_jax.grid import points\n"})
    first, *others = circle(tmp_path)
    assert first == others[-1]
    assert set(others) == {init, plan, cost}


def test_a_long_file_is_found(tmp_path):
    root = house(tmp_path, {"checks/long.py": "x = 1\n" * 401, "checks/short.py": "x = 1\n" * 400})
    assert long_files(root) == ["checks/long.py has 401 lines"]
