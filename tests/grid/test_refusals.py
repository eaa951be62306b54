"""Points of a sweep that cannot be run: they are named in the plan, fail by themselves, and the others go on."""

import pytest

from lasa_jax import build, grid
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.workdir import is_finished

LIGHT = {"rounds": 1, "num_clients": 60, "clients_per_round": 30, "client.epochs": 1, "model": "mlp"}


@pytest.mark.parametrize("attack", [{"attack.name": "dba"}, {"attack.name": "byzmean", "attack.byzmean.base": "dba"}])
def test_a_backdoor_on_text_is_refused_before_data_is_read(attack, tmp_path):
    base = configs.paper("shakespeare")
    base.data_dir = str(tmp_path)
    found = grid.points(grid.Grid(base, points=[attack]))
    line = (
        f"config.attack.name = {attack['attack.name']!r}: the trigger of dba is made of pixels, and shakespeare is text"
    )
    with pytest.raises(InputError, match=line):
        build.prepare(found[0].config)
    (shown,) = grid.plan(found, tmp_path).refused
    assert shown.startswith(f"1 points, {line}")


@pytest.mark.parametrize("first", ["mda", "fedavg"])
def test_a_rule_with_too_many_subsets_does_not_stop_a_sweep(first, tmp_path):
    base = configs.updated(configs.paper("digits"), LIGHT)
    rules = [{"aggregator.name": name} for name in dict.fromkeys((first, "fedavg", "mda"))]
    few = {"aggregator.name": "mda", "aggregator.assumed_malicious": 1}
    found = grid.points(grid.Grid(base, points=[*rules, few]))
    plan = grid.plan(found, tmp_path)
    reason = "1 points, config.aggregator.name = 'mda': too many subsets, 2.0e+06 of 23 out of 30 clients"
    assert [line.startswith(f"cannot be run: {reason}") for line in plan.lines()].count(True) == 1
    assert plan.points == 3
    assert plan.finished == 0
    outcomes = grid.run(found, tmp_path, log=lambda text: None)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert len(failed) == 1
    assert "too many subsets" in failed[0].error
    assert sum(is_finished(tmp_path / point.name) for point in found) == 2
    assert grid.plan(found, tmp_path).finished == 2
