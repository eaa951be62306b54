from lasa_jax.report import groups, results, timings
from tests.report.runs import of, write_run
from tests.report.test_figures import lines
from tests.report.test_tables import group_of, groups_of


def test_by_rule(tmp_path):
    for rule in ("fedavg", "lasa"):
        write_run(tmp_path / "like", of(rule, "lie"), [0.5])
    axes = timings.by_rule(group_of(tmp_path / "like")).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.5]
    assert "30 clients per round, 1 x cpu" in axes.figure.get_suptitle()
    write_run(
        tmp_path / "unlike", of("fedavg", "lie", 1), [0.5], summary={"seconds_per_round": 9.0, "device": "1 x gpu"}
    )
    for seed in (1, 2, 3):
        write_run(tmp_path / "unlike", of("lasa", "lie", seed), [0.5], summary={"seconds_per_round": float(seed)})
    axes = timings.by_rule(group_of(tmp_path / "unlike")).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.0]  # one device, that of the most runs; the fastest of them


def test_runs_that_shared_the_machine_are_told(tmp_path):
    """Two that overlap in time on one machine; one of another machine, and one that does not say when it ran."""
    times = {1: (100.0, 50.0, "a"), 2: (120.0, 50.0, "a"), 3: (110.0, 50.0, "b")}
    for seed, (ended, total, machine) in times.items():
        when = {"ended": ended, "total_seconds": total, "machine": machine, "seconds_per_round": float(seed)}
        write_run(tmp_path, of("lasa", "lie", seed), [0.5], summary=when)
    write_run(tmp_path, of("lasa", "lie", 4), [0.5], summary={"seconds_per_round": 4.0})
    write_run(tmp_path, of("fedavg", "lie", 4), [0.5], summary={**when, "ended": 70.0, "machine": "a"})
    group = group_of(tmp_path)
    assert list(group.runs["alone"]).count(False) == 3
    figure = timings.by_rule(group)
    said = " ".join(figure.get_suptitle().split())
    assert "3 of 5 runs shared the machine (hollow): their seconds do not compare" in said
    assert "1 of 5 do not say" in said
    fedavg, lasa = figure.axes[0].patches
    assert (lasa.get_width(), lasa.get_alpha()) == (3.0, 0.8)  # the fastest of those that did not share
    assert fedavg.get_alpha() == 0.3


def test_a_run_of_another_device_or_group_or_without_seconds_shares_the_machine_too(tmp_path):
    when = {"machine": "a", "total_seconds": 50.0, "seconds_per_round": 1.0}
    for seed in (1, 2, 3):
        write_run(tmp_path, of("lasa", "lie", seed), [0.5], summary={**when, "ended": 100.0 * seed})
    other = {"device": "1 x gpu", "ended": 90.0}
    write_run(tmp_path, of("lasa", "lie", 4), [0.5], summary=when | other)
    write_run(tmp_path, of("lasa", "lie", 5), [0.5], summary={**when, "ended": 190.0, "seconds_per_round": None})
    write_run(tmp_path, of("lasa", "lie"), [0.5], dataset="mnist", summary={**when, "ended": 290.0})
    (digits,), _ = groups.split(results.select(results.load(tmp_path), ["dataset=digits"]))
    assert "3 of 3 runs shared" in " ".join(timings.by_rule(digits).get_suptitle().split())


def test_by_size(tmp_path):
    for n in (10, 20):
        seconds = {"seconds_per_round": n / 10, "num_parameters": 1000}
        write_run(tmp_path, {**of("lasa", "lie"), "clients_per_round": n}, [0.5], summary=seconds)
    write_run(
        tmp_path,
        {**of("lasa", "lie"), "clients_per_round": 20},
        [0.5],
        dataset="mnist",
        summary={"seconds_per_round": 8.0, "num_parameters": 5000},
    )
    found, _ = groups_of(tmp_path)
    by_n, by_d = timings.by_size(found).axes
    assert lines(by_n) == [([10.0, 20.0], [1.0, 2.0])]
    assert lines(by_d) == [([1000.0, 5000.0], [2.0, 8.0])]
    assert by_n.get_xlabel() == "clients per round n (dataset digits, model small_cnn)"
    assert by_d.get_xlabel() == "parameters d (clients per round 20)"
    assert timings.by_size(found[:1]).startswith("cost.png against n and d needs runs that differ in")
