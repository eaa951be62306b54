"""What rules are compared by, on runs with known numbers."""

import dataclasses
import json
import math
import shutil

import pandas as pd
import pytest

from lasa_jax.inspection import rendering
from lasa_jax.report import comparison, figures, measures, output, results, tables
from lasa_jax.workdir import write_failure, write_points
from tests.report.runs import of, write_run
from tests.report.test_tables import group_of, groups_of, texts


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two rules, three attacks at two ratios, two seeds; the median holds, the average breaks under ByzMean at 25 %."""
    root = tmp_path_factory.mktemp("whole")
    at = {"noise": (0.85, 0.8), "lie": (0.82, 0.76), "byzmean": (0.8, 0.1)}  # of the average, by ratio
    for seed in (1, 2):
        wiggle = 0.02 * (seed - 1)
        write_run(root, of("fedavg", "none", seed), [0.5, 0.9 + wiggle], summary={"worst_tenth_accuracy": 0.6})
        write_run(root, of("median", "none", seed), [0.5, 0.8 + wiggle])
        for place, ratio in enumerate((0.1, 0.25)):
            for attack, accuracies in at.items():
                tenth = {"worst_tenth_accuracy": accuracies[place] / 2}
                write_run(root, of("fedavg", attack, seed, ratio), [0.05, accuracies[place] + wiggle], summary=tenth)
                write_run(root, of("median", attack, seed, ratio), [0.05, 0.78 + wiggle])
    return group_of(root)


def row(frame: pd.DataFrame, **values) -> dict:
    """The one row with these values."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    (found,) = frame.to_dict("records")
    return found


def test_impact_is_what_the_same_rule_has_lost(whole):
    found = measures.by_attack(whole)
    assert len(found) == 14
    lost = row(found, rule="FedAvg", attack="ByzMean", attack_ratio=0.25)
    assert (round(lost["accuracy"], 6), round(lost["without"], 6), round(lost["impact"], 6)) == (11.0, 91.0, 80.0)
    assert (round(lost["final"], 6), lost["worst_tenth"]) == (11.0, 5.0)
    assert math.isnan(lost["success"])
    assert round(row(found, rule="Median", attack="Lie", attack_ratio=0.1)["impact"], 6) == 2.0


def test_the_worst_attack_of_a_rule(whole):
    found = measures.by_rule(whole)
    assert list(zip(found["rule"], found["attack_ratio"], strict=True)) == [
        *(("FedAvg", 0.1), ("Median", 0.1), ("FedAvg", 0.25), ("Median", 0.25))
    ]
    average = row(found, rule="FedAvg", attack_ratio=0.25)
    assert (round(average["worst"], 6), average["worst_attack"], average["attacks"]) == (11.0, "ByzMean", 3)
    assert round(average["mean_impact"], 6) == round((80.0 + 14.0 + 10.0) / 3, 6)
    assert average["worst_tenth"] == 5.0  # under ByzMean; 60 without attack
    assert average["complete"]
    assert not average["diverged"]


@pytest.mark.parametrize(("lost", "average", "median"), [(0.1, 0.1, None), (0.5, 0.25, None), (0.02, 0.1, 0.1)])
def test_breaking_points(whole, lost, average, median):
    """At 10 % the average has 81, 83 and 86 of 91: 81.9 is a tenth less."""
    group = dataclasses.replace(whole, lost=lost)
    found = measures.breaking_points(group)
    assert set(found["up_to"]) == {0.25}
    for rule, at in (("FedAvg", average), ("Median", median)):
        smallest = found[found["rule"] == rule]["breaks_at"].min()
        assert (None if math.isnan(smallest) else smallest) == at
        assert measures.by_rule(group).set_index("rule")["breaks_at"][rule].isna().all() == (at is None)
    by_attack = row(measures.breaking_points(whole), rule="FedAvg", attack="Noise")
    assert by_attack["breaks_at"] == 0.25


def test_tables(whole):
    *_, at_25, breaking = measures.tables(whole)
    assert at_25.headings == (
        "rule",
        "No Attack",
        "worst",
        "under",
        "lost to it",
        "lost in the mean",
        "worst tenth",
        "breaks at",
    )
    assert texts(at_25) == [
        ["FedAvg", "91.00", "11.00", "ByzMean", "80.00", "34.67", "5.00", "10 %"],
        ["Median", "81.00", "79.00", "Noise", "2.00", "2.00", "-", "none up to 25 %"],
    ]
    assert [[cell.rank for cell in line] for line in at_25.rows] == [[0, 1, 2, 0, 2, 2, 0, 0], [0, 2, 1, 0, 1, 1, 0, 0]]
    assert at_25.caption.endswith("measures of each rule in %, 25 % malicious")
    assert texts(breaking) == [
        ["FedAvg", "25 %", "25 %", "10 %"],
        ["Median", *["none up to 25 %"] * 3],
    ]


def test_a_run_that_diverged_has_no_accuracy(tmp_path):
    write_run(tmp_path, of("fedavg", "none"), [0.9])
    write_run(tmp_path, of("fedavg", "lie"), [0.7])
    write_run(tmp_path, of("fedavg", "nan"), [0.8], summary={"status": "diverged", "best_test_accuracy": None})
    group = group_of(tmp_path)
    found = row(measures.by_rule(group), rule="FedAvg")
    assert (found["worst"], found["worst_attack"], found["diverged"]) == (0.0, "nan", True)
    (table,) = measures.tables(group)
    assert texts(table)[0][2:4] == ["0.00 †", "nan"]
    assert [text.get_text() for text in figures.worst_case(group).axes[0].texts] == ["0.0\nnan"]


def test_an_attack_that_others_met_may_be_worse(tmp_path):
    write_run(tmp_path, of("median", "noise"), [0.5])
    write_run(tmp_path, of("median", "lie"), [0.4])
    write_run(tmp_path, of("lasa", "lie"), [0.6])
    (table,) = measures.tables(group_of(tmp_path))
    assert [line[2] for line in texts(table)] == ["40.00", "≤ 60.00"]
    assert "≤: the rule has not met every attack that others met." in table.notes


def test_success_of_backdoors(tmp_path):
    write_run(tmp_path, of("median", "none"), [0.9])
    success = {"Lie": 0.25, "Noise": 0.75}  # any two attacks: the runs say it
    for attack in ("lie", "noise"):
        write_run(tmp_path, of("median", attack), [0.85])
    group = group_of(tmp_path)
    runs = group.runs.assign(final_attack_success=group.runs["attack"].map(success))
    group = dataclasses.replace(group, results=dataclasses.replace(group.results, runs=runs))
    found = row(measures.by_rule(group), rule="Median")
    assert (found["success"], found["success_attack"]) == (75.0, "Noise")
    (table,) = measures.tables(group)
    assert table.headings[-2:] == ("success of a backdoor", "which")
    assert texts(table)[0][-2:] == ["75.00", "Noise"]


def test_nothing_to_compare_with(tmp_path):
    write_run(tmp_path, of("median", "lie"), [0.5])
    group = group_of(tmp_path)
    assert measures.tables(group) == []
    assert comparison.of_rules(group) == "measures.png needs runs of a rule without attack and under one, or under two"
    write_run(tmp_path, of("median", "none"), [0.5])
    assert len(measures.tables(group_of(tmp_path))) == 1


def test_figure(whole):
    figure = comparison.of_rules(whole)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        *("best test accuracy in %", "breaks at, % malicious", "worst tenth of clients in %")
    ]
    accuracies, breaking, tenths = figure.axes
    assert [name.get_text() for name in accuracies.get_yticklabels()] == ["FedAvg", "Median"]
    assert [text.get_text() for text in accuracies.texts] == ["ByzMean", "Noise"]
    assert [text.get_text() for text in breaking.texts] == ["10", "none"]
    assert [round(bar.get_width(), 6) for bar in tenths.patches] == [5.0, 0.0]
    figure.draw_without_rendering()
    boxes = [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    first = rendering.figure_bytes(comparison.of_rules(whole), "svg")
    assert first == rendering.figure_bytes(comparison.of_rules(whole), "svg")


def test_files(whole):
    files, missing = output.make([whole], {"": measures.tables(whole)})
    assert {"measures.csv", "measures.png", "measures.svg"} <= files.keys()
    assert not [line for line in missing if "measures" in line]
    assert files["table.csv"].splitlines()[0].endswith("final,impact,worst_tenth")


def refuse(root, settings, error):
    """A point of a sweep that failed, as `grid.run` keeps it."""
    path = write_run(root, settings, [0.5], finished=False)
    planned = {"program": "a", "costs": "b", "config": json.loads((path / "config.json").read_text())}
    shutil.rmtree(path)
    write_failure(root, path.name, error)
    return path.name, planned


TOO_MANY = "InputError: config.aggregator.name = 'krum': too many subsets, 2.0e+06 of 23 out of 30 clients"


def test_cells_with_too_many_subsets(tmp_path):
    for attack in ("none", "lie"):
        for rule in ("fedavg", "lasa"):
            write_run(tmp_path, of(rule, attack), [0.5])
    points = [refuse(tmp_path, of("krum", attack), TOO_MANY) for attack in ("none", "lie")]
    points.append(refuse(tmp_path, of("bulyan", "lie"), "MemoryError: no memory"))  # will be tried again
    write_points(tmp_path, dict(points))
    group = group_of(tmp_path)
    assert group.refused == (("Krum", "No Attack", 0.25), ("Krum", "Lie", 0.25))
    (table,) = tables.tables(group)
    assert texts(table) == [
        ["FedAvg", "50.00", "50.00"],
        ["LASA", "50.00", "50.00"],
        ["Krum", "too many subsets", "too many subsets"],
    ]
    assert table.notes[-1] == "too many subsets: Krum would walk over too many subsets of so many clients."
    assert measures.tables(group)[0].notes[-1] == table.notes[-1]
    assert results.select(results.load(tmp_path), ["attack.name=lie"]).refused[0]["attack.name"] == "lie"


def test_refused_points_stand_with_the_runs_that_they_compare_with(tmp_path):
    write_run(tmp_path, of("fedavg", "lie"), [0.5])
    write_run(tmp_path, {**of("fedavg", "lie"), "clients_per_round": 15}, [0.5])
    write_points(tmp_path, dict([refuse(tmp_path, of("krum", "lie"), TOO_MANY)]))
    found, _ = groups_of(tmp_path)
    assert [(group.runs.iloc[0]["clients_per_round"], len(group.refused)) for group in found] == [(15, 0), (30, 1)]
