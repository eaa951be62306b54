"""The code in README.md and docs/ runs."""

import pkgutil
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lasa_jax import aggregators, attacks, data, grid, methods
from lasa_jax import config as configs
from lasa_jax.data import partition
from lasa_jax.testing import ATTACK_LAWS, RULE_LAWS, honest, rules
from lasa_jax.testing import attacks as attack_laws
from tests.aggregators.test_preaggregators import PREAGGREGATORS

ROOT = Path(__file__).parents[1]
CITING = ("lasa_jax", "configs", "benchmarks", "checks", "tests")
ROOMS = "lasa_jax|launch|checks|benchmarks|tests"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


def blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_readme_example(capsys):
    (code,) = blocks("README.md")
    names: dict = {}
    exec(code, names)
    assert names["update"]["kernel"].shape == (784, 10)
    filtered = np.asarray(names["info"].weight["kernel"] == 0)
    assert filtered[:5].sum() >= 3
    assert not filtered[5:].all()


@pytest.fixture(scope="module")
def names() -> dict:
    """What the code of docs/adding.md defines."""
    names: dict = {}
    for code in blocks("docs/adding.md"):
        exec(code, names)
    return names


class TestSkeletonsOfTheGuide:
    """docs/adding.md as a reader follows it: its rule and its attack go through the laws, by the tests that it shows."""

    @pytest.mark.parametrize("law", RULE_LAWS, ids=lambda law: law.__name__)
    def test_rule(self, names, law):
        names["test_norm_gate"](law)

    def test_what_the_rule_promises(self, names):
        for law in names["PROMISED"]:
            names["test_norm_gate"](law)

    def test_rule_traces_once(self, names):
        names["test_norm_gate_traces_once"]()

    def test_rule_of_layers(self, names):
        """Who is long in one layer is dropped there only."""
        updates = honest()
        updates["bias"][4] *= 100
        _, info = rules.run(names["layer_gate"](), updates)
        kept = {layer: np.flatnonzero(np.asarray(weight) == 0).tolist() for layer, weight in info.weight.items()}
        assert kept == {layer: [4] if layer == "bias" else [] for layer in updates}

    def test_preaggregator(self, names):
        updates = honest()
        for x in updates.values():
            x[4] *= 100
        _, info = rules.run(names["rule"], updates)
        assert np.asarray(info.weight["bias"]).tolist() == [0 if i == 4 else np.float32(1 / 15) for i in range(16)]

    @pytest.mark.parametrize(
        "law", [*ATTACK_LAWS, attack_laws.sends_finite_rows, attack_laws.sends_other_rows], ids=lambda law: law.__name__
    )
    def test_attack(self, names, law):
        names["test_shrink"](law)

    def test_attack_does_what_it_says(self, names):
        names["test_shrink_traces_once"]()
        crafted = attack_laws.craft(names["shrink"](factor=0.5), attack_laws.SOME)
        for name, x in honest().items():
            np.testing.assert_array_equal(crafted[name][attack_laws.SOME], 0.5 * x[attack_laws.SOME])


def test_the_example_for_weights_and_biases(monkeypatch):
    """With stand-ins for the sweep and for wandb, whose part in it is `init`, `log` and `finish`."""
    begun, calls = [], []

    class Board:
        def log(self, values: dict, step: int) -> None:
            calls.append((values, step))

        def finish(self) -> None:
            calls.append("finished")

    def init(**given: str) -> Board:
        begun.append(given)
        return Board()

    def run(declared: object, workdir: str, *, on_metrics: Any) -> None:
        for index in (1, 2):
            on_metrics("digits_lasa_lie_1", index, {"test_accuracy": 0.5, "malicious_filtered": {"a": 1}})

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    monkeypatch.setattr(grid, "run", run)
    monkeypatch.setattr(grid, "load", lambda name: None)
    (code,) = blocks("docs/configs.md")
    exec(code, {})
    assert [given["id"] for given in begun] == ["digits_lasa_lie_1"]
    assert calls == [({"test_accuracy": 0.5}, 1), ({"test_accuracy": 0.5}, 2), "finished"]


def test_every_cited_section_of_fidelity_exists():
    """Docstrings and comments say `docs/fidelity.md, section 3.1`; a line may end within that."""
    page = (ROOT / "docs" / "fidelity.md").read_text()
    sections = re.findall(r"^##+ ([\d.]+?)\.? ", page, re.MULTILINE)
    assert sections == sorted(sections, key=lambda number: [int(part) for part in number.split(".")])
    bare, unknown = [], []
    for path in (path for room in CITING for path in sorted((ROOT / room).rglob("*.py"))):
        for cited in re.findall(r"docs/fidelity\.md(?:,\s+(?:#\s+)?section ([\d.]*\d))?", path.read_text()):
            if not cited:
                bare.append(path.name)
            elif cited not in sections:
                unknown.append(f"{path.name}: {cited}")
    for cited in re.findall(r"sections? ([\d.]*\d)", re.sub(r"supplement, section", "", page)):
        if cited not in sections:
            unknown.append(f"fidelity.md: {cited}")
    assert (bare, unknown) == ([], [])


def test_every_method_has_its_line():
    first = (ROOT / "README.md").read_text()
    assert f"{len(aggregators.names()) - 1} other rules and {len(attacks.names()) - 1} attacks" in first
    assert len(first.splitlines()) <= 130
    text = (ROOT / "docs" / "methods.md").read_text()
    for name in (*aggregators.names(), *attacks.names(), *PREAGGREGATORS):
        assert f"`{name}`" in text, name


def test_every_method_is_in_the_page_which():
    """As an entry: `which.md` says of each what it assumes, stops and misses."""
    entries = re.findall(r"^- ((?:`\w+`(?:, )?)+)", (ROOT / "docs" / "which.md").read_text(), re.MULTILINE)
    named = {name for entry in entries for name in re.findall(r"`(\w+)`", entry)}
    assert set(aggregators.names()) | set(attacks.names()) | set(PREAGGREGATORS) == named


def test_every_method_has_its_formula_in_the_reference():
    """A line of the table that is typeset: the formulas in docstrings are plain text."""
    for page, names in (("aggregators", aggregators.names()), ("attacks", attacks.names())):
        lines = (ROOT / "docs" / "reference" / f"{page}.md").read_text().splitlines()
        with_formula = " ".join(line.split("|")[1] for line in lines if line.startswith("| `") and line.count("$") >= 2)
        for name in names:
            assert f"`{name}`" in with_formula, name


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_links_to_headings_lead_somewhere():
    """As the site names headings: small letters, no punctuation, a hyphen for a space."""
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", page.read_text()):
            text = (page.parent / target if target else page).read_text()
            headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
            known = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in known, f"{page.name}: {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_named_file_and_command_exists(page):
    """Paths, dotted names and `python -m` of our own rooms; `my_...` and `NAME` stand for a reader's files."""
    text = page.read_text()
    missing = []
    for path in re.findall(rf"(?<![\w./])(?:{ROOMS}|configs|docs|notebooks)/[\w./*-]*[\w/]", text):
        at_hand = any(any(folder.glob(path.rstrip("/"))) for folder in (ROOT, page.parent))  # a link is from its page
        if not at_hand and not re.search(r"/(my_\w+|NAME)\.py", path):
            missing.append(path)
    for module in re.findall(rf"python -m ((?:{ROOMS})[\w.]*)\b", text):
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").is_file() and not (path / "__main__.py").is_file():
            missing.append(f"python -m {module}")
    for name in re.findall(rf"(?<![\w./-])(?:{ROOMS})(?:\.\w+)+", text):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing, sorted(set(missing))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lists_nest_by_four_spaces(page):
    """With two, which other readers of Markdown take, a nested list of the site is flat."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    indents = {len(spaces) for spaces in re.findall(r"^( +)(?:[-*]|\d+\.) ", text, re.MULTILINE)}
    assert all(indent % 4 == 0 for indent in indents)


def test_the_guides_sweep():
    (code,) = blocks("docs/sweeps.md")
    names: dict = {}
    exec(code, names)
    found = grid.points(names["get_grid"]("digits"))
    assert (len(found), len(grid.programs(found))) == (18, 2)
    text = (ROOT / "docs" / "sweeps.md").read_text()
    for path in (ROOT / "configs" / "sweeps").glob("[a-z]*.py"):
        assert f"`{path.name}`" in text


def test_the_sweep_of_ones_own_rule(names, tmp_path, monkeypatch):
    """As docs/adding.md has it: the rule in a file beside the sweep."""
    (tmp_path / "my_rules.py").write_text(blocks("docs/adding.md")[0])
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = grid.points(names["get_grid"]("digits"))
    finally:
        sys.modules.pop("my_rules", None)
        methods.parameters.cache_clear()
    assert (len(found), len(grid.programs(found))) == (45, 9)


def test_every_dataset_and_partition_is_documented():
    text = (ROOT / "docs" / "datasets.md").read_text()
    for name in (*data.names(), *partition.SETTINGS):
        assert f"`{name}`" in text, name
    for path in (ROOT / "configs").glob("[a-z]*.py"):
        assert f"configs/{path.name}" in (ROOT / "README.md").read_text()


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "configs.md").read_text()
    for field in configs.SETTINGS:
        assert f"`{field}`" in text, field
