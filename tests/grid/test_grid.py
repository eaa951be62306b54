"""Grids: their points, programs and faults."""

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from lasa_jax import aggregators, attacks, grid
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from tests.grid.sweeps import SMALL, SWEEPS, base


def test_sweep_of_the_costs_varies_clients_and_model():
    found = grid.points(grid.load(f"{SWEEPS / 'cost'}.py:digits"))
    assert len(found) == len(grid.programs(found)) == 72
    assert sorted({(point.config.clients_per_round, point.config.model) for point in found}) == [
        (n, model) for n in (7, 15, 22, 30) for model in ("cnn", "small_cnn")
    ]
    assert len(grid.points(grid.load(f"{SWEEPS / 'cost'}.py:mnist"))) == 36


@pytest.mark.parametrize(
    ("name", "points", "programs"),
    [("figure1", 363, 21), ("table1", 243, 81), ("table2", 63, 3), ("table3", 42, 2), ("ablation", 54, 9)],
)
@pytest.mark.parametrize("dataset", ["digits", "mnist", "femnist", "cifar10"])
def test_the_papers_sweeps(name, points, programs, dataset):
    """The supplement's experiments, exactly: how many runs, and how many compiled programs."""
    found = grid.points(grid.load(f"{SWEEPS / name}.py:{dataset}"))
    assert len(found) == points
    assert len(grid.programs(found)) == programs
    assert {point.config.dataset for point in found} == {dataset}
    assert {point.config.fidelity for point in found} == {"official"}
    assert f"configs/sweeps/{name}.py:digits" in (SWEEPS / f"{name}.py").read_text()


def test_the_sweep_of_all_pairs():
    """Every rule and attack that has a name, the triggered ones apart; words may follow the dataset."""
    declared = grid.load(f"{SWEEPS / 'pairs'}.py:digits,seeds=2,rounds=3")
    rules, those, seeds = (values for axis in declared.axes for values in axis.values())
    triggered = {name for name in attacks.names() if attacks.create(name).trigger is not None}
    assert list(rules) == aggregators.names()
    assert set(those) == set(attacks.names()) - triggered
    assert list(seeds) == [1, 2]
    assert (declared.base.rounds, declared.base.fidelity, declared.base.clients_per_round) == (3, "official", 30)
    few = {(point["aggregator.name"], point["clients_per_round"]) for point in declared.points}
    assert few == {("fedavg", 15), ("mda", 15), ("smea", 15)}
    assert len(declared.points) == 3 * 2 * len(those)
    one = grid.points(grid.Grid(declared.base, axes=[{"seed": seeds}], points=declared.points[:1]))
    assert len(one) == 3
    assert len(grid.programs(one)) == 2  # two seeds share one
    other = grid.load(f"{SWEEPS / 'pairs'}.py:mnist,clients=20,fidelity=paper,alpha=0.1").base
    assert (other.clients_per_round, other.fidelity, other.partition.name) == (20, "paper", "dirichlet")
    with pytest.raises(InputError, match="'attack' is not known, allowed are alpha, shards"):
        grid.load(f"{SWEEPS / 'pairs'}.py:digits,attack=lie")


def test_points_are_the_product_and_tied_fields_change_together():
    radii = {"aggregator.lasa.magnitude_radius": [1.0, 2.0], "aggregator.lasa.direction_radius": [3.0, 4.0]}
    found = grid.points(grid.Grid(base(), [radii, {"seed": [1, 2, 3]}], [{"seed": 9}]))
    parameters = [point.config.aggregator.parameters for point in found]
    pairs = [(p.magnitude_radius, p.direction_radius) for p in parameters]
    assert pairs == [(1.0, 3.0)] * 3 + [(2.0, 4.0)] * 3 + [(2.0, 1.0)]
    assert [point.config.seed for point in found] == [1, 2, 3, 1, 2, 3, 9]


def test_a_point_carries_its_name_and_its_program():
    for point in grid.points(grid.Grid(base(), SMALL)):
        assert point == grid.Point(point.config, configs.run_name(point.config), configs.program_key(point.config))


def test_nothing_is_counted_twice():
    found = grid.points(grid.Grid(base(), [{"seed": [1, 1, 2]}], [{"seed": 2}, {"data_dir": "elsewhere", "seed": 1}]))
    assert [point.config.seed for point in found] == [1, 2]


NUMBERS = {
    "seed": 7,
    "attack_ratio": 0.1,
    "client.learning_rate": 0.05,
    "client.momentum": 0.5,
    "client.learning_rate_decay": 0.9,
    "aggregator.assumed_malicious": 3,
    "aggregator.lasa.sparsity_level": 0.7,
    "aggregator.lasa.magnitude_radius": float("inf"),
    "attack.lie.z": 1.5,
    "checkpoint_every": 7,
}
WORDS = {
    "aggregator.lasa.granularity": "model",
    "attack.lie.knowledge": "all",
    "client.epochs": 2,
    "client.clip_norm": 1.0,
    "rounds": 5,
    "num_clients": 30,
    "batch_stats": "separate",
}


def test_numbers_share_a_program_and_words_do_not():
    plain = configs.program_key(configs.resolve(base()))
    for field, value in NUMBERS.items():
        assert configs.program_key(grid.resolve(base(), {field: value})) == plain, field
    for field, value in WORDS.items():
        assert configs.program_key(grid.resolve(base(), {field: value})) != plain, field


def test_all_faults_are_named_before_the_first_run():
    faulty = grid.Grid(
        base(),
        [
            {"sead": [1]},
            {"seed": []},
            {"attack_ratio": [0.1, 0.2], "client.momentum": [0.5]},
        ],
    )
    with pytest.raises(grid.GridError) as error:
        grid.points(faulty)
    assert error.value.faults == [
        "axis seed: is empty",
        "axis attack_ratio, client.momentum: tied fields must have as many values as each other (attack_ratio 2, "
        "client.momentum 1)",
        "config.sead is not a setting (did you mean config.seed?)",
    ]
    with pytest.raises(grid.GridError, match="axis seed: is in 2 axes, and only the last would count"):
        grid.points(grid.Grid(base(), [{"seed": [1, 2]}, {"seed": [3, 4]}]))
    with pytest.raises(grid.GridError) as error:
        grid.points(grid.Grid(base(), [{"attack_ratio": [0.1, 1.5]}, {"aggregator.name": ["lasa", "lassa"]}]))
    assert len(error.value.faults) == 2
    assert any("attack_ratio = 1.5" in fault for fault in error.value.faults)
    with pytest.raises(grid.GridError, match=r"config\.seed = 'x': allowed is a value of type int"):
        grid.points(grid.Grid(base(), [{"seed": ["x"]}]))


@pytest.mark.parametrize(
    ("axes", "points", "faults"),
    [
        (
            [{"aggregator.name": ["lasa", "krum"]}, {"aggregator.lasa.sparsity_level": [0.1, 0.5]}],
            [],
            ["config.aggregator.lasa.sparsity_level: aggregator 'lasa' is not selected"],
        ),
        (
            [{"partition.alpha": [0.1, 0.5]}],
            [],
            ["config.partition.alpha: is of the partition dirichlet, quantity_skew"],
        ),
        (
            [],
            [{"attack.lie.z": 1.0, "attack.name": "zero"}, {"partition.gamma": 0.5}],
            ["config.attack.lie.z: attack 'lie' is not selected", "config.partition.gamma: is of the partition"],
        ),
    ],
)
def test_settings_without_effect_are_refused(axes, points, faults):
    with pytest.raises(grid.GridError) as error:
        grid.points(grid.Grid(base(), axes, points))
    assert len(error.value.faults) == len(faults)
    assert all(found.startswith(fault) for found, fault in zip(error.value.faults, faults, strict=True))


def test_numpy_makes_axes():
    axes = [{"seed": np.arange(3)}, {"record_filtering": np.array([False, True])}, {"rounds": [np.int32(5)]}]
    found = grid.points(grid.Grid(base(), axes))
    assert [point.config.seed for point in found] == [0, 0, 1, 1, 2, 2]
    assert all(type(value) is int for point in found for value in (point.config.seed, point.config.rounds))


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"seed": [1]}, "axes and points are lists of dictionaries"),
        ([], "has neither axes nor points"),
        (["seed"], "'seed' is not a dictionary of fields"),
        ([{"aggregator.name": "lasa"}], "axis aggregator.name: 'lasa' is not a list of values"),
        ([{"seed": 1}], "axis seed: 1 is not a list of values"),
        ([{"seed": b"12"}], "axis seed: b'12' is not a list of values"),
        ([{"seed": np.array([[1], [2]])}], r"axis seed: array\(\[\[1\], \[2\]\]\) is not a list of values$"),
        ([{"seed": np.array(1)}], r"axis seed: array\(1\) is not a list of values"),
    ],
)
def test_what_is_no_grid(axes, message):
    with pytest.raises(grid.GridError, match=message):
        grid.points(grid.Grid(base(), axes))


@pytest.mark.parametrize("holder", [np.array, jnp.array, pd.Series, pd.Index, tuple])
def test_an_axis_may_be_any_array(holder):
    """Its values are Python's in the configs."""
    points = grid.points(grid.Grid(base(), [{"seed": holder([3, 4])}]))
    assert [(type(point.config.seed), point.config.seed) for point in points] == [(int, 3), (int, 4)]
