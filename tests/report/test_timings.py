from lasa_jax.report import timings
from tests.report.runs import of, write_run
from tests.report.test_figures import lines
from tests.report.test_tables import group_of, groups_of


def test_by_rule(tmp_path):
    for rule in ("fedavg", "lasa"):
        write_run(tmp_path / "like", of(rule, "lie"), [0.5])
    axes = timings.by_rule(group_of(tmp_path / "like")).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.5]
    assert "30 clients a round, 1 x cpu" in axes.figure.get_suptitle()
    write_run(
        tmp_path / "unlike", of("fedavg", "lie", 1), [0.5], summary={"seconds_per_round": 9.0, "device": "1 x gpu"}
    )
    for seed in (1, 2, 3):
        write_run(tmp_path / "unlike", of("lasa", "lie", seed), [0.5], summary={"seconds_per_round": float(seed)})
    axes = timings.by_rule(group_of(tmp_path / "unlike")).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [1.0]  # one device, that of the most runs; the fastest of them


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
    assert by_n.get_xlabel() == "clients a round n (dataset digits, model small_cnn)"
    assert by_d.get_xlabel() == "parameters d (clients per round 20)"
    assert timings.by_size(found[:1]).startswith("cost.png against n and d needs runs that differ in")
