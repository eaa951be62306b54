import csv
import io
import json
import math

import pytest

from lasa_jax.inspection import rendering
from lasa_jax.report import groups, output, results, tables
from tests.report.runs import LAYERS, of, write_run

RULES = {"fedavg": 0.5, "signguard": 0.8, "lasa": 0.9}


def groups_of(root):
    return groups.split(results.load(root))


def group_of(root):
    (group,), line = groups_of(root)
    assert line is None
    return group


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def ranks(table):
    return [[cell.rank for cell in row] for row in table.rows]


@pytest.fixture(scope="module")
def main(tmp_path_factory):
    """Three rules, no attack and two attacks, two seeds: LASA best under attack, FedAvg without."""
    root = tmp_path_factory.mktemp("main")
    for seed in (1, 2):
        wiggle = 0.01 * (seed - 1)
        for rule, value in RULES.items():
            write_run(root, of(rule, "none", seed), [0.1, 0.95 - value / 10 + wiggle])
            write_run(root, of(rule, "byzmean", seed), [value + wiggle, 0.1])  # the best round counts, not the last
            write_run(root, of(rule, "noise", seed), [0.1, value / 2 + wiggle])
    return group_of(root)


def test_rules_by_attacks(main):
    (table,) = tables.tables(main)
    assert table.caption == "digits, small_cnn, 2 rounds, fidelity paper: best test accuracy in %, 25 % malicious"
    assert table.headings == ("rule", "No Attack", "Noise", "ByzMean", "Average w/ attacks")
    assert texts(table) == [
        ["FedAvg", "90.50 ± 0.71", "25.50 ± 0.71", "50.50 ± 0.71", "38.00"],
        ["SignGuard", "87.50 ± 0.71", "40.50 ± 0.71", "80.50 ± 0.71", "60.50"],
        ["LASA", "86.50 ± 0.71", "45.50 ± 0.71", "90.50 ± 0.71", "68.00"],
    ]
    assert ranks(table) == [[0, 1, 0, 0, 0], [0, 2, 2, 2, 2], [0, 0, 1, 1, 1]]
    assert "Mean over 2 seeds, ± their standard deviation (n - 1), in percentage points." in table.notes


def test_as_markdown(main):
    lines = rendering.as_markdown(tables.tables(main)[0]).splitlines()
    assert lines[2:5] == [
        "| rule | No Attack | Noise | ByzMean | Average w/ attacks |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| FedAvg | **90.50 ± 0.71** | 25.50 ± 0.71 | 50.50 ± 0.71 | 38.00 |",
    ]
    assert lines[5].startswith("| SignGuard | <u>87.50 ± 0.71</u> | <u>40.50")


def test_as_latex(main):
    lines = rendering.as_latex(tables.tables(main)[0]).splitlines()
    assert (
        r"LASA & 86.50 $\pm$ 0.71 & \textbf{45.50 $\pm$ 0.71} & \textbf{90.50 $\pm$ 0.71} & \textbf{68.00} \\" in lines
    )
    assert r"\begin{tabular}{lrrrr}" in lines
    assert r"small\_cnn" in lines[2]
    assert r"best test accuracy in \%" in lines[2]


def test_cells_with_settings(main):
    rows = list(csv.DictReader(io.StringIO(rendering.as_csv(tables.cells_with_settings(main)))))
    assert len(rows) == 9
    row = next(row for row in rows if (row["rule"], row["attack"]) == ("LASA", "Noise"))
    assert {name: row[name] for name in ("aggregator.name", "mean", "std", "min", "max", "seeds", "diverged")} == {
        "aggregator.name": "lasa",
        "mean": "45.5",
        "std": "0.707107",
        "min": "45",
        "max": "46",
        "seeds": "2",
        "diverged": "0",
    }


def test_one_seed_has_no_spread_and_what_lacks_a_cell_no_average(tmp_path):
    write_run(tmp_path, of("fedavg", "byzmean"), [0.5], summary={"status": "diverged"})
    write_run(tmp_path, of("fedavg", "lie"), [0.25])
    write_run(tmp_path, of("lasa", "byzmean"), [0.75])
    (table,) = tables.tables(group_of(tmp_path))
    assert texts(table) == [["FedAvg", "25.00", "50.00 †", "37.50"], ["LASA", "-", "75.00", "-"]]
    assert ranks(table) == [[0, 0, 2, 0], [0, 0, 1, 0]]
    assert table.notes[-1] == "†: a run diverged; its best accuracy is that before."


def test_fewer_seeds_are_marked(tmp_path):
    for seed in (1, 2, 3):
        write_run(tmp_path, of("fedavg", "byzmean", seed), [0.5])
    write_run(tmp_path, of("lasa", "byzmean"), [0.5])
    (table,) = tables.tables(group_of(tmp_path))
    assert texts(table) == [["FedAvg", "50.00 ± 0.00"], ["LASA", "50.00 (1)"]]
    assert ranks(table) == [[0, 1], [0, 1]]  # a tie
    assert "(k): only k seeds are there." in table.notes


def test_a_table_for_every_ratio(tmp_path):
    for ratio in (0.1, 0.3):
        write_run(tmp_path, of("lasa", "byzmean", ratio=ratio), [ratio])
    found = tables.tables(group_of(tmp_path))
    assert [table.caption.rpartition(", ")[2] for table in found] == ["10 % malicious", "30 % malicious"]
    assert [texts(table) for table in found] == [[["LASA", "10.00"]], [["LASA", "30.00"]]]


def test_sparsity_levels(tmp_path):
    """Table 2: attacks by levels, and nothing else where only LASA's level varies."""
    for level, accuracy in ((0.95, 0.2), (0.1, 0.3), (0.5, 0.4)):
        for attack, less in (("noise", 0.0), ("byzmean", 0.1)):
            write_run(tmp_path, of("lasa", attack, lasa__sparsity_level=level), [accuracy - less])
    (table,) = tables.tables(group_of(tmp_path))
    assert table.caption.endswith("25 % malicious, LASA by sparsity level, direction radius 1, magnitude radius 2")
    assert table.headings == ("attack", "0.1", "0.5", "0.95")
    assert texts(table) == [["Noise", "30.00", "40.00", "20.00"], ["ByzMean", "20.00", "30.00", "10.00"]]
    assert ranks(table) == [[0, 2, 1, 0], [0, 2, 1, 0]]


def test_pairs_of_radii(tmp_path):
    """Table 3: pairs by attacks, beside the rules by attacks where another rule is there."""
    for direction, magnitude, accuracy in ((1.0, 4.0, 0.2), (1.0, 1.0, 0.3), (3.0, 1.0, 0.1), (math.inf, 1.0, 0.4)):
        radii = {"lasa__direction_radius": direction, "lasa__magnitude_radius": magnitude}
        write_run(tmp_path, of("lasa", "byzmean", **radii), [accuracy])
    group = group_of(tmp_path)
    (table,) = tables.tables(group)
    assert table.headings == ("direction radius", "magnitude radius", "ByzMean")
    assert table.caption.endswith("LASA by filtering radii, sparsity level 0.3")
    assert "30 of 60 clients a round." in table.notes
    assert texts(table) == [["1", "1", "30.00"], ["1", "4", "20.00"], ["3", "1", "10.00"], ["inf", "1", "40.00"]]
    assert ranks(table) == [[0, 0, 2], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    write_run(tmp_path, of("fedavg", "byzmean"), [0.5])
    whole, again = tables.tables(group_of(tmp_path))
    assert texts(again) == texts(table)
    assert [row[0] for row in texts(whole)] == [
        "FedAvg",
        "LASA",
        "LASA (direction_radius 3)",
        "LASA (direction_radius inf)",
        "LASA (magnitude_radius 4)",
    ]


def test_levels_stand_where_they_were_met(tmp_path):
    """Beside a sweep over ratios: no empty columns at the ratios and attacks that only the default level met."""
    for level in (0.1, 0.3, 0.5):
        write_run(tmp_path, of("lasa", "noise", lasa__sparsity_level=level), [level])
    write_run(tmp_path, of("lasa", "byzmean"), [0.9])
    write_run(tmp_path, of("lasa", "noise", ratio=0.1), [0.8])
    write_run(
        tmp_path, of("lasa", "noise", lasa__direction_radius=3.0), [0.7]
    )  # makes 0.3 with radius 1 the central one
    few, whole, by_level = tables.tables(group_of(tmp_path))
    assert texts(few) == [["LASA", "80.00"]]
    assert [row[0] for row in texts(whole)] == [
        *("LASA", "LASA (direction_radius 3)", "LASA (sparsity_level 0.1)", "LASA (sparsity_level 0.5)")
    ]
    assert by_level.headings == ("attack", "0.1", "0.3", "0.5")
    assert texts(by_level) == [["Noise", "10.00", "30.00", "50.00"]]


def test_variants_are_told_apart_by_what_differs(tmp_path):
    for more in ({}, {"lasa__sparsity_level": 0.0}, {"lasa__granularity": "model"}):
        write_run(tmp_path, of("lasa", "byzmean", **more), [0.5])
    write_run(tmp_path, {**of("lasa", "lie"), "attack.lie.z": 1.0}, [0.5])
    write_run(tmp_path, {**of("lasa", "lie"), "attack.lie.z": 2.0}, [0.5])
    group = group_of(tmp_path)
    assert group.rules == ("LASA", "LASA (granularity model)", "LASA (sparsity_level 0)")
    assert group.attacks == ("Lie (z 1)", "Lie (z 2)", "ByzMean")  # neither is central
    assert group.variants["LASA (sparsity_level 0)"] == ("lasa", {"aggregator.sparsity_level": 0.0})


def test_the_clip_of_a_rule_does_not_part_it_from_the_others(tmp_path):
    """As in the official code, FedAvg clips its clients on MNIST and LASA does not."""
    for rule in ("fedavg", "lasa"):
        write_run(tmp_path, {**of(rule, "byzmean"), "fidelity": "official"}, [0.5], dataset="mnist")
    assert set(group_of(tmp_path).runs["client.clip_norm"].map(str)) == {"1.0", "None"}


def test_where_runs_are_kept_does_not_part_them(tmp_path):
    write_run(tmp_path, {**of("fedavg", "byzmean"), "data_dir": "elsewhere", "checkpoint_every": 3}, [0.5])
    write_run(tmp_path, {**of("lasa", "byzmean"), "client_chunk": 2}, [0.5])
    assert len(group_of(tmp_path).runs) == 2


def test_sweeps_that_do_not_compare_are_groups(tmp_path):
    for rule in ("fedavg", "lasa"):
        write_run(tmp_path, of(rule, "byzmean"), [0.5], dataset="digits")
    write_run(tmp_path, of("lasa", "byzmean"), [0.5, 0.75], dataset="digits")
    write_run(tmp_path, of("lasa", "byzmean"), [0.5], dataset="mnist")
    write_run(tmp_path, {**of("lasa", "byzmean"), "fidelity": "official"}, [0.5], dataset="mnist")
    found, line = groups_of(tmp_path)
    assert line == (
        "runs that do not compare: dataset is digits in 3, mnist in 2; fidelity is official in 1, paper in 4; rounds is 1 "
        "in 4, 2 in 1: a report for each of 4 groups, --where=dataset=digits takes one"
    )  # not the model and the clients, which follow from the dataset
    assert [group.folder for group in found] == [
        "1_dataset=digits,fidelity=paper,rounds=1",
        "2_dataset=digits,fidelity=paper,rounds=2",
        "3_dataset=mnist,fidelity=official,rounds=1",
        "4_dataset=mnist,fidelity=paper,rounds=1",
    ]
    assert [texts(tables.tables(group)[0]) for group in found[:2]] == [
        [["FedAvg", "50.00"], ["LASA", "50.00"]],
        [["LASA", "75.00"]],
    ]
    assert output.make(found, {group.folder: tables.tables(group) for group in found})[0].keys() > {
        f"{group.folder}/table.md" for group in found
    }


def test_any_other_setting_parts_runs_and_is_named(tmp_path):
    for momentum in (0.5, 0.9):
        write_run(tmp_path, {**of("lasa", "byzmean"), "client.momentum": momentum}, [0.5])
    found, line = groups_of(tmp_path)
    assert "client.momentum is 0.5 in 1, 0.9 in 1" in line
    assert found[0].title == "digits, small_cnn, 1 rounds, fidelity paper, client.momentum 0.5"


def test_detection(tmp_path):
    """A line a rule, attack, ratio and layer; the mean over seeds; in print over all layers, at the ratio that is drawn."""
    for seed, kept in ((1, 0.5), (2, 1.0)):
        layers = {
            LAYERS[0]: {"malicious_filtered": 1.0, "benign_kept": kept},
            LAYERS[1]: {"malicious_filtered": 0.5, "benign_kept": 1.0},
        }
        found = {"malicious_filtered": 0.75, "benign_kept": (1 + kept) / 2, "layers": layers}
        write_run(tmp_path, of("lasa", "lie", seed), [0.5], summary={"detection": found})
    write_run(tmp_path, of("lasa", "none"), [0.5], filtered=(0, 2))
    write_run(tmp_path, of("fedavg", "lie"), [0.5])
    write_run(tmp_path, of("signguard", "lie", ratio=0.1), [0.5], filtered=(2, 0))
    group = group_of(tmp_path)
    frame = tables.detection(group)
    own = frame[(frame["rule"] == "LASA") & (frame["attack"] == "Lie")]
    assert own.drop(columns=["rule", "attack"]).to_numpy().tolist() == [
        [0.25, "all", 75.0, 12.5, 2],
        [0.25, LAYERS[0], 100.0, 25.0, 2],
        [0.25, LAYERS[1], 50.0, 0.0, 2],
    ]
    assert list(dict.fromkeys(zip(frame["rule"], frame["attack"], strict=True))) == [
        ("FedAvg", "Lie"),
        ("SignGuard", "Lie"),
        ("LASA", "No Attack"),
        ("LASA", "Lie"),
    ]
    table = tables.detection_table(group)
    assert table.headings == ("rule", "No Attack", "Lie")
    assert texts(table) == [["LASA", "- / 20.0", "75.0 / 12.5"]]  # FedAvg filters nobody, SignGuard has another ratio
    text = output.make([group], {"": [table]})[0]["detection.csv"]
    assert text.splitlines()[0] == "rule,attack,attack_ratio,layer,malicious_filtered,benign_filtered,seeds"


def test_no_table_of_detection_where_nobody_is_filtered(tmp_path):
    write_run(tmp_path, of("fedavg", "lie"), [0.5])
    assert tables.detection_table(group_of(tmp_path)) is None


def test_settings_are_those_of_the_configs(tmp_path):
    write_run(tmp_path, of("lasa", "lie", 1), [0.5])
    write_run(tmp_path, {**of("lasa", "lie", 2, lasa__sparsity_level=0.5), "attack.lie.z": 1.5}, [0.5])
    write_run(tmp_path, of("fedavg", "none"), [0.5])
    found = json.loads(tables.settings(group_of(tmp_path)))
    assert found["runs"] == 3
    assert found["devices"] == ["1 x cpu"]
    shared = found["settings"]
    assert (shared["num_clients"], shared["clients_per_round"], shared["client.epochs"]) == (60, 30, 5)
    assert shared["seed"] == [1, 2]
    assert "data_dir" not in shared
    levels = {rule: own.get("aggregator.sparsity_level") for rule, own in found["rules"].items()}
    assert levels == {"FedAvg": None, "LASA (sparsity_level 0.3)": 0.3, "LASA (sparsity_level 0.5)": 0.5}
    assert {own["attack.name"]: own.get("attack.z") for own in found["attacks"].values()} == {"none": None, "lie": 1.5}


def test_success_of_backdoors_beside_the_accuracies(tmp_path):
    """The smallest is the best; runs of other attacks have none."""
    for rule, rates in (("fedavg", (0.75, 0.5)), ("median", (0.25, 0.125)), ("lasa", (0.5, 1.0))):
        for seed in (1, 2):
            write_run(tmp_path, of(rule, "badnets", seed), [0.5, 0.6], success=[1.0, rates[0]])
        write_run(tmp_path, of(rule, "pgd"), [0.5, 0.6], success=[0.0, rates[1]])
        write_run(tmp_path, of(rule, "lie"), [0.5, 0.6])
    group = group_of(tmp_path)
    accuracies, table = tables.tables(group)
    assert accuracies.headings == ("rule", "Lie", "BadNets", "PGD backdoor", "Average w/ attacks")
    assert table.caption == "digits, small_cnn, 2 rounds, fidelity paper: success of backdoors in %, 25 % malicious"
    assert table.headings == ("rule", "BadNets", "PGD backdoor")
    assert texts(table) == [
        ["FedAvg", "75.00 ± 0.00", "50.00 (1)"],
        ["Median", "25.00 ± 0.00", "12.50 (1)"],
        ["LASA", "50.00 ± 0.00", "100.00 (1)"],
    ]
    assert ranks(table) == [[0, 0, 2], [0, 1, 1], [0, 2, 0]]
    rows = csv.DictReader(io.StringIO(rendering.as_csv(tables.cells_with_settings(group))))
    found = {(row["rule"], row["attack"]): row["attack_success"] for row in rows}
    assert found["Median", "BadNets"] == "25"
    assert found["Median", "Lie"] == ""
