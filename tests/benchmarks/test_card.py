"""`benchmarks.card` without a card: what is kept of a run that fails, is cut off and goes on, and parts at a small size."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.card import __main__ as card
from benchmarks.card import convolution, golden, items, precision, tables
from benchmarks.card.items import Item, Prepared
from tests.golden.recordings import assert_near, noting

ROOT = Path(__file__).parents[2]


class Part:
    """A part of three items that compute nothing, in place of `rules`; `broken` is the one that fails."""

    def __init__(self, monkeypatch, path: Path):
        self.path, self.measured, self.seen, self.broken = path, [], [], ""
        part = SimpleNamespace(items=lambda small: [self.item(name) for name in ("a", "b", "c")], table=self.table)
        monkeypatch.setitem(sys.modules, "benchmarks.card.rules", part)

    def item(self, name: str) -> Item:
        def measure() -> items.Facts:
            self.seen.append(json.loads(self.path.read_text())["items"])
            if name == self.broken:
                raise ZeroDivisionError("of the card")
            self.measured.append(name)
            return {"seconds": 2.0, "low": 1.0, "high": float("inf")}

        # c needs least: it is measured first.
        return Item(name, lambda: Prepared({"compile_seconds": 1.0, "needed_bytes": -ord(name)}, measure))

    @staticmethod
    def table(found: tables.Items) -> list[str]:
        return tables.by_item(found, {"compile": tables.compile_seconds, "ms": tables.milliseconds})

    def run(self, *flags: str) -> int:
        return card.main(["rules", f"--out={self.path}", *flags])

    def kept(self) -> dict:
        return json.loads(self.path.read_text())


@pytest.fixture
def part(monkeypatch, tmp_path) -> Part:
    return Part(monkeypatch, tmp_path / "rules.json")


class TestWhatIsKept:
    def test_every_item_is_written_before_the_next(self, part):
        assert part.run("--commit=abc") == 0
        assert part.measured == ["c", "b", "a"]
        first, second, third = part.seen
        assert all(facts == {"compile_seconds": 1, "needed_bytes": -ord(name)} for name, facts in first.items())
        assert [second["c"].get("done"), second["b"].get("done"), third["b"].get("done")] == [True, None, True]
        head = part.kept()["head"]
        assert (head["part"], head["small"], head["commit"]) == ("rules", False, "abc")
        assert (head["jax"], head["device"]) == (jax.__version__, jax.devices()[0].device_kind)
        assert len(head["sources"]) == 12
        assert part.kept()["items"]["a"]["high"] is None  # JSON has no infinity

    def test_an_item_that_fails_is_tried_again_and_the_others_are_not(self, part, capsys):
        part.broken = "b"
        assert part.run() == 1
        assert part.measured == ["c", "a"]
        assert part.kept()["items"]["b"]["error"] == "ZeroDivisionError: of the card"
        assert "| b | ZeroDivisionError: of the card |  |" in capsys.readouterr().out
        part.broken = ""
        assert part.run() == 0
        assert part.measured == ["c", "a", "b"]
        assert "error" not in part.kept()["items"]["b"]
        assert part.run() == 0
        assert part.run("--anew", "--only=a") == 0
        assert part.measured == ["c", "a", "b", "a"]
        assert list(part.kept()["items"]) == ["a"]

    def test_what_is_not_reached_is_left_for_the_same_command(self, part, capsys):
        assert part.run("--minutes=1e-9") == 1
        assert "0 items failed and 3 were not reached" in capsys.readouterr().out
        assert part.measured == []
        assert part.run() == 0

    def test_the_table_measures_nothing(self, part, capsys):
        part.run("--only=a")
        capsys.readouterr()
        assert part.run("--table") == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith("rules: ")
        assert lines[3:] == [
            "| item | compile | ms |",
            "| --- | --- | --- |",
            "| a | 1.0 | 2,000.000 (1,000.000 to -) |",
        ]
        assert part.measured == ["a"]

    def test_results_of_other_code_or_devices_are_not_mixed(self, part, capsys):
        part.run("--only=a")
        stored = part.kept()
        stored["head"]["device"] = "another"
        part.path.write_text(json.dumps(stored))
        capsys.readouterr()
        assert part.run() == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --out={part.path}: has device 'another', and this is")
        assert part.run("--small") == 2

    @pytest.mark.parametrize("content", ["", "[]", '{"head": {}}', None])
    def test_a_file_that_is_no_result(self, part, content, capsys):
        if content is not None:
            part.path.write_text(content)
        assert part.run("--table") == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["rulse"],
            "PART 'rulse' is not known: allowed are convolution, golden, precision, round, rules (did you mean",
        ),
        (["rules", "--minutes=0"], "--minutes = 0.0: allowed is 0 < --minutes"),
        (["convolution", "--only=knn"], "--only=knn: is in no name of the part 'convolution'"),
        (["rules", "--smal"], "--smal: is not a flag of python -m benchmarks.card (did you mean --small?)"),
        ([], "python -m benchmarks.card: the following arguments are required: PART"),
    ],
)
def test_bad_flags_are_one_line(flags, told, capsys):
    assert card.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {told}")
    assert error.count("\n") == 1


def test_seconds_are_of_calls_whose_arguments_are_there():
    log = []
    facts = items.seconds(
        lambda x: log.append("call") or x, fresh=lambda: log.append("fresh") or (jnp.ones(2),), most_calls=2
    )
    assert log[:4] == ["fresh", "call"] * 2  # two that warm up
    assert log[4:] == ["fresh", "fresh", "call", "call"] * 15
    assert facts["blocks"] == 15
    assert 0 < facts["low"] <= facts["seconds"] <= facts["high"]


def test_a_part_goes_on(tmp_path, capsys):
    """One form of a convolution, first for one shape and then for the other too."""
    command = ["convolution", "--small", f"--out={tmp_path}/found.json"]
    assert card.main([*command, "--only=3 x 2 x 8^2 x 1, 3^2 -> 4; patches"]) == 0
    before = json.loads((tmp_path / "found.json").read_text())["items"]
    assert card.main([*command, "--only=; patches"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["items"]
    assert [len(before), len(found)] == [1, len(convolution.SMALL)]
    assert found | before == found
    assert all(facts["seconds"] > 0 and facts["needed_bytes"] > 0 for facts in found.values())
    lines = capsys.readouterr().out.splitlines()[-len(found) :]
    assert all(line.count("| - ") == len(convolution.FORMS) - 1 and "**" in line for line in lines)


def test_convolutions_are_traced_in_the_form_that_is_named():
    shape = convolution.SMALL[0]
    texts = {form: convolution.lowered(shape, form).as_text() for form in convolution.FORMS}
    groups = f"feature_group_count = {shape.clients} "
    grouped = {"auto", "grouped"}  # where patches are larger than the result, as here
    assert {form for form, text in texts.items() if groups in text} == grouped
    assert {form for form, text in texts.items() if "stablehlo.convolution" in text} == grouped | {"one by one"}
    products = {form: texts[form].count("stablehlo.dot_general") for form in ("patches", "taps")}
    assert products == {"patches": 3, "taps": 3 * shape.kernel**2}
    assert "stablehlo.while" in texts["one by one"]


@pytest.mark.thorough
def test_forms_agree():
    shape, rng = convolution.SMALL[1], np.random.default_rng(0)
    given = [rng.standard_normal(size, np.float32) for size in convolution._sizes(shape)]
    results = [convolution.lowered(shape, form).compile()(*given) for form in ("patches", "one by one")]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_differences_are_noted():
    with noting() as differences:
        assert_near([1.0, np.nan], [1.0, np.nan])
        assert_near([1.0, 200.0], [1.5, 199.0], rtol=0.01, atol=1)
        with pytest.raises(AssertionError):
            assert_near([1.0], [np.inf])
    assert [one.used for one in differences] == [0, 0.5 / 1.015, np.inf]
    assert differences[1] == (0.5, 1.015)


def test_golden_tells_what_is_not_as_recorded(monkeypatch, tmp_path, capsys):
    wrong = {"right": lambda: assert_near(1.0, 1.0), "wrong": lambda: assert_near(1.0, 2.0, atol=0.5)}
    monkeypatch.setattr(golden, "cases", lambda: {"median, a1_n20_f4": wrong})
    assert card.main(["golden", "--small", f"--out={tmp_path}/found.json", "--only=median"]) == 1
    facts = json.loads((tmp_path / "found.json").read_text())["items"]["median, a1_n20_f4"]
    assert [line.split(":")[0] for line in facts["wrong"]] == ["wrong"]
    assert (facts["largest"], facts["allowed"]) == (1.0, 0.5 + 2e-7)
    assert "| median | 2 | 2 | 1.0e+00 | 5.0e-01 | 1 cases are not |" in capsys.readouterr().out


@pytest.mark.thorough
def test_golden_has_every_case_of_the_tests():
    """As pytest collects them: a mark that is read wrongly would leave some out."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "", "--collect-only", "tests/golden/test_golden.py"]
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert collected.count("::test_") == sum(map(len, golden.cases().values()))


@pytest.mark.thorough
def test_golden_runs_the_tests(tmp_path):
    longest = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # JAX writes no two executables at a time
    try:
        status = card.main(["golden", "--small", f"--out={tmp_path}/found.json", "--only=median, a1"])
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", longest)
    assert status == 0
    found = json.loads((tmp_path / "found.json").read_text())["items"]
    assert found  # more of them where all recordings are at hand
    for facts in found.values():
        assert facts["comparisons"] >= facts["cases"] > 0
        assert facts["wrong"] == []
        assert 0 <= facts["used"] <= 1


def test_errors_are_relative_to_float64():
    def build(name: str):
        return lambda: jnp.array([1.0, 2.0]) + (name == "tf32"), {}

    work = precision.Work(build)
    found = {name: work.prepare(name).measure() for name in ("tf32", "float32")}
    assert found["tf32"]["largest_error"] == 0.5
    assert found["tf32"]["norm_error"] == pytest.approx(np.sqrt(2 / 5))
    assert found["float32"]["largest_error"] == 0


@pytest.mark.thorough
def test_a_round_needs_no_tensorflow(tmp_path):
    code = f"""
import sys
from benchmarks.card.__main__ import main
assert main(["round", "--small", "--out={tmp_path}/found.json", "--only=digits, tf32"]) == 0
assert main(["precision", "--small", "--out={tmp_path}/precision.json", "--only=product, lstm"]) == 0
print([name for name in sys.modules if name in ("tensorflow", "tensorflow_datasets")])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    (facts,) = json.loads((tmp_path / "found.json").read_text())["items"].values()
    assert facts["finite"]
    assert (facts["rounds"], facts["runs"]) == (10, 1)
    errors = json.loads((tmp_path / "precision.json").read_text())["items"]
    assert errors["product, lstm, step; bfloat16"]["norm_error"] > errors["product, lstm, step; float32"]["norm_error"]
