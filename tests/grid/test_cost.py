"""What a batch needs of a device, and how long a plan takes."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from lasa_jax import build, grid, ops
from lasa_jax import config as configs
from lasa_jax.federated import Executables, cards, make_mesh, memory
from lasa_jax.grid import cost, work
from lasa_jax.workdir import write_batch_sizes
from tests.grid.sweeps import SMALL, base


@dataclasses.dataclass
class Device:
    """A device that is only described."""

    device_kind: str
    platform: str


class TestFitting:
    H100 = Device("NVIDIA H100 80GB HBM3", "gpu")

    def fitting(self, *, devices=1, count=1000, limit=10**11, **settings):
        config = configs.resolve(base(**settings))
        return cost.fitting(config, count, devices=[self.H100] * devices, limit=limit)

    def test_small_runs_go_together_until_launches_are_hidden(self):
        assert 8 < self.fitting() < 200

    def test_runs_with_work_enough_go_alone(self):
        assert self.fitting(model="cnn", num_clients=200, clients_per_round=200, **{"client.epochs": 5}) == 1

    def test_no_more_than_the_memory_holds(self):
        config = configs.resolve(base())
        with ops.compiling_for("gpu"):
            one = cost.of(config, 10**11)
        assert self.fitting(limit=10**11) > 4
        assert self.fitting(limit=int((one.data + 4.5 * one.run) / 0.8)) == 4

    def test_no_more_than_there_are_and_whole_rows(self):
        assert self.fitting(count=5) == 5
        assert self.fitting(count=16, devices=8) == 16
        assert self.fitting(count=13, devices=8) == 16

    def test_one_on_a_cpu(self):
        assert cost.fitting(configs.resolve(base()), 1000) == 1


def test_work_is_counted_through_loops_and_calls():
    x = jax.ShapeDtypeStruct((8, 8), np.float32)

    def three(x):
        return jax.lax.scan(lambda y, _: (jax.jit(lambda z: z @ z)(y) + 1, None), x, length=3)[0]

    assert work.of(three, x) == work.Work(3 * 3 * 256, 3 * 2 * 8**3, 3)
    assert work.of(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x), x).operations == 2 * 2 * 8**3
    images, kernel = jax.ShapeDtypeStruct((2, 9, 9, 3), np.float32), jax.ShapeDtypeStruct((3, 3, 3, 5), np.float32)
    assert (
        work.of(
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ),
            images,
            kernel,
        ).operations
        == 2 * (2 * 7 * 7 * 5) * 27
    )


def test_seconds_are_of_launches_and_of_the_longer_of_bytes_and_products():
    card = cards.Card(0, 100.0, {"tf32": 10.0}, 2.0)
    one = cost.Cost(0, 0, work.Work(200.0, 50.0, 4), "tf32")
    assert one.seconds(card) == 4 * 2 + 5
    assert one.seconds(card, runs=4) == 4 * 2 / 4 + 5
    assert dataclasses.replace(one, round=work.Work(900.0, 50.0, 4)).seconds(card) == 4 * 2 + 9


def test_a_plan_without_measurements_counts_compiling(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "card_here", lambda: cards.Card(0, 1e30, dict.fromkeys(("tf32",), 1e30), 0.0))
    found = grid.points(grid.Grid(base(), SMALL))
    assert grid.plan(found, tmp_path, threads=1).seconds == pytest.approx(2 * cost.compiling())


def test_a_batch_that_does_not_fit_is_made_smaller(tmp_path):
    """By the compiled program's own analysis; a size that results were made with stays, and its refusal is one line."""
    found = grid.points(grid.Grid(base(model="mlp", **{"aggregator.name": "fedavg"}), [{"seed": list(range(16))}]))
    needs = []
    for count in (8, 16):
        placed = build.place([build.prepare(point.config) for point in found[:count]], make_mesh(runs=8))
        needs.append(memory.needed(placed.simulation.compile(*placed[1:])[0]))
    assert needs[0] < needs[1]
    less = Executables(memory_limit=sum(needs) // 2)
    outcomes = grid.run(found, tmp_path, batch=16, executables=less, log=lambda text: None)
    assert [outcome.error for outcome in outcomes] == [None] * 16
    assert set(grid.batch_sizes(found, tmp_path).values()) == {8}
    shutil.rmtree(tmp_path / found[0].name)
    again = grid.run(found, tmp_path, executables=Executables(memory_limit=1000), log=lambda text: None)
    assert [outcome.error is None for outcome in again] == [False] + [True] * 15
    assert again[0].error.startswith("DoesNotFit: config.client_chunk = None: one client at a time need")
    assert set(grid.batch_sizes(found, tmp_path).values()) == {8}


def test_a_size_that_nothing_was_made_with_can_be_changed(tmp_path):
    found = grid.points(grid.Grid(base(), SMALL))
    workdir_sizes = grid.batch_sizes(found, tmp_path, batch=3)
    write_batch_sizes(tmp_path, workdir_sizes)
    assert set(grid.batch_sizes(found, tmp_path).values()) == {3}
    assert set(write_batch_sizes(tmp_path, grid.batch_sizes(found, tmp_path, batch=2)).values()) == {2}


def key(**settings):
    return cost._methods_key(configs.resolve(configs.updated(configs.paper("digits"), settings)))


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregator.name": "sparsefed"},
        {"aggregator.name": "fltrust"},
        {"aggregator.name": "fldetector"},
        {"attack.name": "neurotoxin"},
        {"attack.name": "poisonedfl"},
    ],
)
def test_what_keeps_more_costs_more(settings):
    assert key(**settings) != key(**{"aggregator.name": "median", "attack.name": "lie"})


def test_what_keeps_nothing_costs_the_same():
    wanted = key(**{"aggregator.name": "lasa", "attack.name": "none"})
    for rule, attack in (("median", "lie"), ("krum", "zero"), ("flame", "byzmean")):
        assert key(**{"aggregator.name": rule, "attack.name": attack}) == wanted
