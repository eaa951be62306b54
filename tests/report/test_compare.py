from pathlib import Path

import pandas as pd
import pytest

from lasa_jax.errors import InputError
from lasa_jax.report import compare
from tests.report.runs import of, write_run
from tests.report.test_tables import group_of

SHARED = Path(__file__).parents[3] / "shared" / "paper"


@pytest.mark.parametrize("name", ["table1", "table2", "table3"])
def test_printed_files_are_the_supplement(name):
    own = compare._read(name)
    if not (SHARED / f"{name}.csv").is_file():
        pytest.skip("../shared/paper is not there")
    pd.testing.assert_frame_equal(own, pd.read_csv(SHARED / f"{name}.csv"))


def printed(**where):
    cells = compare.printed()
    for name, value in where.items():
        cells = cells[cells[name] == value]
    return cells


def test_printed_cells():
    """Some as printed in the supplement, typed here again."""
    assert compare.printed().groupby("table").size().tolist() == [243 + 18, 84, 42]  # 18: Min-Sum stealthy or not
    assert printed(table=1, dataset="mnist", rule="signguard", attack="byzmean")["paper"].tolist() == [97.63]
    assert printed(table=1, dataset="femnist", rule="dnc", attack="min_sum_stealthy")["paper"].tolist() == [80.37]
    assert printed(table=1, dataset="mnist", attack="min_sum_stealthy").empty
    assert printed(table=2, dataset="shakespeare", attack="noise", sparsity_level=0.95)["paper"].tolist() == [63.546]
    radii = {"direction_radius": 3.0, "magnitude_radius": 2.0}
    assert printed(table=3, dataset="fashion_mnist", attack="byzmean", **radii)["paper"].tolist() == [67.25]


def test_the_tables_agree_where_they_overlap():
    """The supplement states LASA's default cells in all three tables: our reading of its radii makes them one cell."""
    cells = printed(rule="lasa", attack="byzmean", sparsity_level=0.3)
    for dataset, (direction, magnitude) in compare._RADII.items():
        own = cells[(cells["dataset"] == dataset) & (cells["direction_radius"] == direction)]
        own = own[own["magnitude_radius"] == magnitude]["paper"]
        assert len(own) >= 2
        assert own.max() - own.min() < 0.01


def run_on_mnist(root, settings, accuracy, rounds=180):
    write_run(root, {"fidelity": "official", **settings}, [accuracy] * rounds, dataset="mnist")


def test_cells_beside_the_papers(tmp_path):
    for seed, accuracy in ((1, 0.97), (2, 0.98)):
        run_on_mnist(tmp_path, of("signguard", "byzmean", seed), accuracy)
        run_on_mnist(tmp_path, of("lasa", "byzmean", seed, lasa__sparsity_level=0.5), accuracy)
    run_on_mnist(tmp_path, of("lasa", "byzmean"), 0.9)
    run_on_mnist(tmp_path, of("lasa", "byzmean", ratio=0.1), 0.1)  # at another ratio
    run_on_mnist(tmp_path, of("median", "byzmean"), 0.1)  # not in the paper
    for ratio in (0.1, 0.3):  # without attack no ratio matters, and one is enough
        run_on_mnist(tmp_path, of("fedavg", "none", ratio=ratio), 0.9)
    group = group_of(tmp_path)
    compared = compare.compare(group)
    shown = compared[["table", "rule", "sparsity_level", "paper", "ours", "difference", "in_spreads", "seeds"]].round(3)
    assert shown.astype(object).where(shown.notna(), None).to_numpy().tolist() == [
        [1, "fedavg", None, 97.85, 90.0, -7.85, None, 1],
        [1, "signguard", None, 97.63, 97.5, -0.13, -0.184, 2],
        [1, "lasa", 0.3, 97.94, 90.0, -7.94, None, 1],
        [2, "lasa", 0.3, 97.943, 90.0, -7.943, None, 1],
        [2, "lasa", 0.5, 97.821, 97.5, -0.321, -0.454, 2],
        [3, "lasa", 0.3, 97.943, 90.0, -7.943, None, 1],
    ]
    assert set(compared["differs"]) == {""}
    table = compare.as_table(group, compared)
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows[1] == ["1", "signguard", "byzmean", "", "97.63", "97.50 ± 0.71", "-0.13", "-0.2", "2"]
    assert rows[4] == ["2", "lasa", "byzmean", "sparsity level 0.5", "97.82", "97.50 ± 0.71", "-0.32", "-0.5", "2"]
    assert rows[5][3] == "radii 1, 2"
    assert table.notes[1] == "Table 1: 3 cells, 5.31 points apart in the mean, at most 7.94 (lasa, byzmean)."


def test_runs_that_are_not_the_papers_say_so_and_do_not_count(tmp_path):
    run_on_mnist(tmp_path, of("signguard", "byzmean"), 0.97)
    run_on_mnist(tmp_path, {**of("signguard", "lie"), "attack.lie.z": 3.0}, 0.2)
    run_on_mnist(tmp_path, {**of("fedavg", "lie"), "client.clip_norm": 5.0}, 0.2)
    run_on_mnist(tmp_path, of("bulyan", "lie", bulyan__variant="paper"), 0.2)
    run_on_mnist(tmp_path, of("lasa", "lie", lasa__granularity="model"), 0.2)
    group = group_of(tmp_path)
    compared = compare.compare(group)
    told = {(row.rule, row.attack): row.differs for row in compared.itertuples()}
    assert told == {
        ("signguard", "byzmean"): "",
        ("signguard", "lie"): "attack.z 3 (0.5)",
        ("fedavg", "lie"): "client.clip_norm 5 (1)",
        ("bulyan", "lie"): "aggregator.variant paper (official)",
        ("lasa", "lie"): "aggregator.granularity model (layer)",
    }
    table = compare.as_table(group, compared)
    assert table.headings[-1].startswith("differs")
    assert table.notes[1] == (
        "Table 1: 1 cell, 0.63 points apart in the mean, at most 0.63 (signguard, byzmean); "
        "not counted: 4 of runs that differ from the paper's."
    )


def test_on_shakespeare_the_papers_accuracy_counts_padding(tmp_path):
    """Whatever a run reports; one that did not measure it is no number, and does not count."""
    both = {"best_test_accuracy_with_padding": 0.5, "best_test_accuracy_without_padding": 0.6}
    for rule, summary in (("signguard", both), ("fedavg", {})):
        write_run(tmp_path / "paper", of(rule, "byzmean"), [0.6], dataset="shakespeare", summary=summary)
    official = {**of("dnc", "lie"), "fidelity": "official"}
    write_run(tmp_path / "official", official, [0.5], dataset="shakespeare", summary=both)
    group = group_of(tmp_path / "paper")
    compared = compare.compare(group).set_index("rule")
    assert compared.loc["signguard", "ours"] == 50
    assert "padding ignored (counted)" in compared.loc["signguard", "differs"]
    assert pd.isna(compared.loc["fedavg", "ours"])
    table = compare.as_table(group, compare.compare(group))
    assert [cell.text for cell in table.rows[0]][5:7] == ["-", "-"]
    assert "count padding" in table.notes[1]
    (cell,) = compare.compare(group_of(tmp_path / "official")).itertuples()
    assert (cell.ours, cell.differs) == (50, "rounds 1 (1000)")


def test_no_difference_has_no_minus(tmp_path):
    run_on_mnist(tmp_path, of("signguard", "byzmean"), 0.97629)
    group = group_of(tmp_path)
    assert compare.as_table(group, compare.compare(group)).rows[0][6].text == "+0.00"


def test_runs_of_other_rounds_are_not_the_papers(tmp_path):
    run_on_mnist(tmp_path, of("signguard", "byzmean"), 0.97, rounds=2)
    compared = compare.compare(group_of(tmp_path))
    assert compared["differs"].tolist() == ["rounds 2 (180)"]
    assert compare.as_table(group_of(tmp_path), compared).notes[1] == (
        "Table 1: 0 cells; not counted: 1 of runs that differ from the paper's."
    )


def test_doubtful_numbers_are_marked(tmp_path):
    """In MNIST's row of FedAvg eight cells add up to 454.91, eight times the printed 56.36 is 450.88."""
    (reason,) = set(printed(table=1, dataset="mnist", rule="fedavg", attack="lie")["doubtful"])
    assert reason == "the printed average asks for -4 points in the cells of this row"
    assert set(printed(table=1, dataset="mnist", rule="lasa")["doubtful"]) == {""}
    rows = compare.printed().query("table == 1 and attack == 'lie' and doubtful != ''")
    assert len(rows) == 22  # of 27, as shared/paper says
    level = printed(table=2, dataset="femnist", attack="min_max", sparsity_level=0.3).iloc[0]
    (elsewhere,) = printed(table=1, dataset="femnist", rule="lasa", attack="tailored_trmean")["paper"]
    assert abs(level["paper"] - elsewhere) < 0.005
    assert "TailoredTrmean" in level["doubtful"]
    run_on_mnist(tmp_path, of("fedavg", "lie"), 0.97)
    table = compare.as_table(group_of(tmp_path), compare.compare(group_of(tmp_path)))
    assert table.rows[0][4].text == "96.86 ?"
    assert table.notes[2] == f"?: {reason} (table 1, fedavg)."


def test_datasets_that_the_paper_does_not_have(tmp_path):
    write_run(tmp_path, of("lasa", "byzmean"), [0.5])
    with pytest.raises(
        InputError, match=r"^dataset digits: the paper has no table of it, only of mnist, fashion_mnist, femnist"
    ):
        compare.compare(group_of(tmp_path))


def test_runs_that_the_paper_does_not_have(tmp_path):
    write_run(tmp_path, of("lasa", "byzmean", ratio=0.1), [0.5], dataset="mnist")
    with pytest.raises(InputError, match="no run of it is in the paper's tables, which are at 25 % malicious"):
        compare.compare(group_of(tmp_path))
