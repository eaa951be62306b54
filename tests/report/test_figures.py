import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from lasa_jax import aggregators
from lasa_jax.inspection import rendering
from lasa_jax.report import figures, style
from tests.report.runs import LAYERS, of, write_run
from tests.report.test_tables import group_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Two rules, two attacks, two ratios, two seeds, and plain averaging without attack."""
    root = tmp_path_factory.mktemp("whole")
    for seed in (1, 2):
        wiggle = 0.02 * (seed - 1)
        write_run(root, of("fedavg", "none", seed), [0.5, 0.9 + wiggle])
        for ratio in (0.1, 0.25):
            for attack, less in (("noise", 0.0), ("byzmean", 0.2)):
                write_run(root, of("median", attack, seed, ratio), [0.2, 0.7 - less - ratio + wiggle])
                write_run(
                    root,
                    of("lasa", attack, seed, ratio),
                    [0.4, 0.85 - less / 10 + wiggle],
                    filtered=(2 if attack == "noise" else 1, 2),
                )
    return group_of(root)


def lines(axes):
    """The lines of a panel: x and y of each."""
    return [(list(line.get_xdata()), np.round(line.get_ydata(), 6).tolist()) for line in axes.lines]


def cells_of(axes):
    return [text.get_text() for text in axes.texts]


def test_ratio(whole):
    figure = figures.ratio(whole)
    noise, byzmean = figure.axes
    assert (noise.get_title(), byzmean.get_title()) == ("Noise", "ByzMean")
    baseline, median, lasa = lines(byzmean)
    assert median == ([10.0, 25.0], [41.0, 26.0])
    assert lasa == ([10.0, 25.0], [84.0, 84.0])
    assert baseline[1] == [91.0, 91.0]
    assert byzmean.lines[0].get_linestyle() == "--"
    assert byzmean.lines[0].get_zorder() < byzmean.lines[1].get_zorder()  # it hides no line
    assert byzmean.get_xticks().tolist() == [10.0, 25.0]
    band = byzmean.collections[0].get_paths()[0].vertices[:, 1]
    assert (round(band.min(), 6), round(band.max(), 6)) == (25.0, 42.0)
    assert byzmean.get_xlabel() == "malicious clients in %"
    assert noise.get_ylabel() == "best test accuracy in %"
    assert [text.get_text() for text in figure.legends[0].texts] == ["Median", "LASA", "FedAvg, no attack"]


def test_lines_that_cannot_be_told_apart_beside_others_are_enlarged(tmp_path):
    for ratio in (0.1, 0.2, 0.3):
        for rule, last in (("fedavg", 0.9 - 2.5 * ratio), ("lasa", 0.97), ("signguard", 0.96 - 0.05 * ratio)):
            for attack in ("noise", "lie"):
                write_run(tmp_path, of(rule, attack, ratio=ratio), [0.1, last - 0.01, last])
    group = group_of(tmp_path)
    for figure in (figures.ratio(group), figures.curves(group)):
        whole, _, enlarged, beside = figure.axes  # two attacks above, the same two below
        assert [axes.get_title() for axes in figure.axes] == ["Noise", "Lie", "", ""]
        assert len(whole.lines) == len(enlarged.lines)
        assert whole.get_ylim()[0] < 16
        low, high = enlarged.get_ylim()
        assert 90 < low < 94.5
        assert 97 < high < 98
        assert beside.get_ylim() == (low, high)
        assert enlarged.get_ylabel() == "enlarged"
        assert enlarged.get_xlabel()
        assert not whole.get_xlabel()


def test_curves_that_end_alike_are_enlarged(tmp_path):
    """Though no rule collapses: all of them begin at the bottom."""
    for rule, last in (("lasa", 0.97), ("signguard", 0.96)):
        write_run(tmp_path, of(rule, "noise"), [0.1, 0.9, last], summary={"test_labels": 360})
    _, enlarged = figures.curves(group_of(tmp_path)).axes
    assert enlarged.get_ylabel() == "enlarged\none test example: 0.28 points"
    assert 95 < enlarged.get_ylim()[0] < 96
    assert 97 < enlarged.get_ylim()[1] < 98


def test_curves(whole):
    figure = figures.curves(whole)
    assert [axes.get_title() for axes in figure.axes] == ["No Attack", "Noise", "ByzMean"]
    assert lines(figure.axes[0])[0] == ([1.0, 2.0], [50.0, 91.0])
    median, lasa = (line for line in lines(figure.axes[2]) if line[0])
    assert median == ([1.0, 2.0], [20.0, 26.0])
    assert lasa == ([1.0, 2.0], [40.0, 84.0])
    assert "25 % malicious" in figure.get_suptitle()


def test_worst_case(whole):
    axes = figures.worst_case(whole).axes[0]
    assert cells_of(axes) == ["41.0\nByzMean", "26.0\nByzMean", "84.0\nByzMean", "84.0\nByzMean"]
    assert [name.get_text() for name in axes.get_yticklabels()] == ["Median", "LASA"]
    assert [name.get_text() for name in axes.get_xticklabels()] == ["10", "25"]


def test_worst_case_of_some_attacks_is_a_bound(tmp_path):
    write_run(tmp_path, of("median", "noise"), [0.5])
    write_run(tmp_path, of("median", "lie"), [0.4])
    write_run(tmp_path, of("lasa", "lie"), [0.6])
    assert cells_of(figures.worst_case(group_of(tmp_path)).axes[0]) == ["40.0\nLie", "≤ 60.0\nLie"]


def test_detection(whole):
    figure = figures.detection(whole)
    true, false, rounds_true, rounds_false = figure.axes[:4]  # all layers are alike: no panel of them
    assert cells_of(true) == ["100.0", "50.0"]  # Noise, ByzMean
    assert cells_of(false) == ["25.0", "25.0"]
    assert [name.get_text() for name in true.get_yticklabels()] == ["LASA"]  # the median weighs everybody
    assert lines(rounds_true) == [([1, 2], [75.0, 75.0])]
    assert lines(rounds_false) == [([1, 2], [25.0, 25.0])]
    assert figures.left_out_of_detection(whole) == ["FedAvg", "Median"]


def test_a_rule_that_decides_layer_by_layer_has_a_panel_of_its_layers(tmp_path):
    shares = {"malicious_filtered": 0.5, "benign_kept": 0.75}
    rates = {"lie": (0.25, 1.0), "noise": (1.0, 0.5)}  # malicious filtered, benign kept in the second layer
    for attack, (filtered, kept) in rates.items():
        layers = {LAYERS[0]: shares, LAYERS[1]: {"malicious_filtered": filtered, "benign_kept": kept}}
        detection = {"detection": {**shares, "layers": layers}}
        write_run(tmp_path, of("lasa", attack), [0.5], filtered=(1, 2), summary=detection)
        write_run(tmp_path, of("signguard", attack), [0.5], filtered=(1, 2))
    group = group_of(tmp_path)
    *_, layers_true, layers_false, _, _ = figures.detection(group).axes[:6]
    assert layers_true.get_title() == "LASA, by layer"
    assert cells_of(layers_true) == ["50.0", "50.0", "100.0", "25.0"]  # layers by Noise, Lie
    assert cells_of(layers_false) == ["25.0", "25.0", "50.0", "0.0"]
    assert [name.get_text() for name in layers_true.get_yticklabels()] == list(LAYERS)


def test_left_out_of_detection_are_rules_of_the_runs_that_it_draws(tmp_path):
    """SignGuard filters at another ratio only: it is not drawn, and so it is named."""
    for ratio, filtered in ((0.1, (1, 0)), (0.25, (0, 0))):
        write_run(tmp_path, of("signguard", "lie", ratio=ratio), [0.5], filtered=filtered)
    write_run(tmp_path, of("lasa", "lie"), [0.5], filtered=(1, 0))
    write_run(tmp_path, of("fedavg", "lie", ratio=0.1), [0.5])
    group = group_of(tmp_path)
    assert group.ratio == 0.25
    assert figures.left_out_of_detection(group) == ["SignGuard"]


def test_detection_by_round_is_under_attack(tmp_path):
    """A run without attack, in which more benign clients are filtered, counts in its own column only."""
    write_run(tmp_path, of("lasa", "lie"), [0.5], filtered=(1, 2))
    write_run(tmp_path, of("lasa", "none"), [0.5], filtered=(0, 5))
    _, false, _, rounds_false = figures.detection(group_of(tmp_path)).axes[:4]
    assert cells_of(false) == ["50.0", "25.0"]  # No Attack, Lie
    assert lines(rounds_false) == [([1], [25.0])]


def test_what_has_no_data_says_why(tmp_path):
    write_run(tmp_path, of("fedavg", "byzmean"), [0.5], summary={"seconds_per_round": None})
    group = group_of(tmp_path)
    said = {name: draw(group) for name, draw in figures.OF_A_GROUP.items()}
    assert said == {
        "ratio": "ratio.png needs runs of one attack at two attack ratios",
        "curves": "curves.png needs two evaluated rounds",
        "worst_case": "worst_case.png needs runs of two attacks",
        "measures": "measures.png needs runs of a rule without attack and under one, or under two",
        "detection": "detection.png needs a rule that filters clients",
        "cost": "cost.png needs runs that were timed",
    }


def test_a_rule_looks_the_same_in_all_reports_and_unlike_the_others(whole, tmp_path):
    """All built-in rules, and two of a user's own."""
    names = [*aggregators.names(), "mine:gate", "mine:other"]
    seen = {(look["color"], str(look["linestyle"])) for look in map(style.of_rule, names)}
    assert len(seen) == len(names)
    many = {
        f"mine:rule{place}": (f"mine:rule{place}", {}) for place in range(30)
    }  # of which some share colour and dash
    assert style.looks(dataclasses.replace(whole, variants=many)) == {name: style.of_rule(name) for name in many}
    usual = ["fedavg", "trimmed_mean", "median", "geometric_median", "krum", "multi_krum", "bulyan", "dnc", "signguard"]
    assert len({style.of_rule(name)["color"] for name in [*usual, "sparsefed", "lasa"]}) == 11
    assert set(style.RULES) == set(aggregators.names())
    write_run(tmp_path, of("lasa", "lie"), [0.5, 0.6])
    alone = figures.curves(group_of(tmp_path)).axes[0].lines[0]
    (lasa,) = (line for line in figures.detection(whole).axes[2].lines)
    colours = {lasa.get_color(), figures.ratio(whole).axes[0].lines[2].get_color(), alone.get_color()}
    assert colours == {style.of_rule("lasa")["color"]}


def test_variants_of_a_rule_are_shades_of_its_colour(tmp_path):
    for level in (0.1, 0.3, 0.5):
        write_run(tmp_path, of("lasa", "lie", lasa__sparsity_level=level), [0.5])
    looks = style.looks(group_of(tmp_path))
    assert len({look["color"] for look in looks.values()}) == len({look["marker"] for look in looks.values()}) == 3
    assert style.of_rule("lasa") in looks.values()


def test_intervals_where_there_are_three_seeds_and_a_warning_where_there_are_fewer(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.6, 0.7), 1):
        for attack in ("lie", "noise"):
            write_run(tmp_path, of("lasa", attack, seed), [accuracy, accuracy], summary={"test_labels": 360})
    group = group_of(tmp_path)
    figure = figures.curves(group)
    assert "mean over 3 seeds, band: its 95 % interval" in figure.get_suptitle()
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    half = 4.302653 * 10 / np.sqrt(3)  # Student's t, two degrees of freedom
    np.testing.assert_allclose([band.min(), band.max()], [60 - half, 60 + half], rtol=1e-6)
    assert cells_of(figures.worst_case(group).axes[0]) == [f"60.0 ± {half:.1f}\nNoise"]
    write_run(tmp_path, of("fedavg", "lie"), [0.5, 0.6])
    said = " ".join(figures.curves(group_of(tmp_path)).get_suptitle().split())
    assert "or smallest to largest where there are fewer than three and differences may be chance" in said
    (tmp_path / "one").mkdir()
    write_run(tmp_path / "one", of("fedavg", "lie"), [0.5, 0.6])
    assert "one seed: differences may be chance" in figures.curves(group_of(tmp_path / "one")).get_suptitle()


@pytest.mark.parametrize("name", figures.OF_A_GROUP)
def test_nothing_overlaps_and_bytes_repeat(whole, name):
    figure = figures.OF_A_GROUP[name](whole)
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    frame = figure.bbox
    labels = [axes.xaxis.label for axes in figure.axes] + [axes.title for axes in figure.axes] + list(figure.legends)
    boxes = [box for label in labels if (box := label.get_window_extent()).width > 0]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    assert not [1 for i, one in enumerate(boxes) for other in boxes[:i] if one.overlaps(other)]
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        first = rendering.figure_bytes(figures.OF_A_GROUP[name](whole), kind)
        assert first.startswith(start)
        assert first == rendering.figure_bytes(figures.OF_A_GROUP[name](whole), kind)


def test_success_of_backdoors_by_round(tmp_path):
    write_run(tmp_path, of("fedavg", "badnets"), [0.5, 0.6], success=[0.25, 0.75])
    write_run(tmp_path, of("fedavg", "lie"), [0.5, 0.6])
    figure = figures.success(group_of(tmp_path))
    (panel,) = figure.axes
    assert (panel.get_title(), panel.get_ylabel()) == ("BadNets", "attack success in %")
    assert lines(panel) == [([1, 2], [25.0, 75.0])]
    write_run(tmp_path / "short", of("fedavg", "dba"), [0.5], success=[0.25])
    assert "needs two evaluated rounds under a backdoor" in figures.success(group_of(tmp_path / "short"))
