"""Rules that know more than the updates, in whole runs: memory by client, what fits, and the server's examples."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lasa_jax import build, experiment, ops
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.federated import DoesNotFit, make_mesh, memory
from lasa_jax.grid import cost

SMALL = {"rounds": 4, "num_clients": 21, "clients_per_round": 10, "client.epochs": 1}
SMALL |= {"attack_ratio": 0.2, "model": "mlp"}


def declared(**settings):
    return configs.updated(configs.paper("digits"), {**SMALL, **settings})


def resolved(**settings):
    return configs.resolve(declared(**settings))


def simulated(devices: int = 1, **settings):
    mesh = make_mesh(jax.devices()[:devices])
    return experiment.simulate(declared(**settings), mesh=mesh)


class TestArrays:
    """`ops.take_clients` and `ops.put_clients`."""

    def memory(self, count: int, shards: int):
        rows = {"w": np.arange(count * 6, dtype=np.float32).reshape(count, 3, 2), "b": np.arange(count * 1.0)[:, None]}
        rows["b"] = rows["b"].astype(np.float32)
        return rows, ops.padded({name: ops.ByClient(jnp.asarray(x), count) for name, x in rows.items()}, 0, shards)

    @pytest.mark.parametrize("devices", [1, 8])
    def test_take_and_put(self, devices):
        count, n = 21, 16
        rows, kept = self.memory(count, devices)
        rng = np.random.default_rng(0)
        ids, which = rng.permutation(count)[:n].astype(np.int32), rng.random(n) < 0.7
        new = {name: rng.standard_normal((n, *x.shape[1:])).astype(np.float32) for name, x in rows.items()}
        with jax.set_mesh(make_mesh(jax.devices()[:devices])):
            taken = jax.jit(ops.take_clients)(kept, ids)
            changed = jax.jit(ops.put_clients)(kept, ids, which, new)
        assert jax.tree.structure(changed) == jax.tree.structure(kept)
        for name, x in rows.items():
            np.testing.assert_array_equal(taken[name], x[ids])
            wanted = x.copy()
            wanted[ids[which]] = new[name][which]
            np.testing.assert_array_equal(ops.unpadded(changed)[name].rows, wanted)

    def test_padding_is_nobodys(self):
        rows, kept = self.memory(21, 8)
        assert kept["w"].rows.shape == (24, 3, 2)
        np.testing.assert_array_equal(ops.unpadded(kept)["w"].rows, rows["w"])
        assert ops.padded(kept, 0, 4)["w"].rows.shape == (24, 3, 2)


@pytest.mark.parametrize("rule", ["foolsgold", "fldetector"])
def test_eight_devices_equal_one(rule):
    """21 clients do not divide over 8 devices, nor do those of a round; draws do not depend on the rows that fill it up."""
    settings = {"aggregator.name": rule, "attack.name": "lie"}
    settings |= {"aggregator.fldetector.start_round": 2, "clients_per_round": 21} if rule == "fldetector" else {}
    one, eight = simulated(**settings), simulated(8, **settings)
    for name, weights in one.weights.items():
        np.testing.assert_allclose(eight.weights[name], weights, atol=2e-3)
    np.testing.assert_allclose(eight.test_loss, one.test_loss, rtol=2e-3)


def test_memory_lies_on_the_devices_that_share_the_clients():
    placed = build.simulation([resolved(**{"aggregator.name": "foolsgold"})], make_mesh())
    for node in placed.states.aggregator:
        assert node.rows.sharding.spec == PartitionSpec(ops.RUNS, ops.CLIENTS)
        assert node.rows.shape[1] == 24
        assert node.rows.addressable_shards[0].data.shape[1] == 3
    executable, _ = placed.simulation.compile(placed.states, placed.points, placed.data)
    states, _ = executable(placed.states, placed.points, placed.data, np.int32(0))
    for node in states.aggregator:
        assert node.rows.sharding.spec == PartitionSpec(ops.RUNS, ops.CLIENTS)
        assert np.asarray(node.rows)[:, :21].any()


@pytest.mark.parametrize("rows", [1, 2])
def test_runs_side_by_side(rows):
    runs = [resolved(**{"aggregator.name": "foolsgold"}, seed=seed) for seed in (1, 2)]
    placed = build.simulation(runs, make_mesh(jax.devices()[:4], runs=rows))
    executable, _ = placed.simulation.compile(placed.states, placed.points, placed.data)
    states, _ = executable(placed.states, placed.points, placed.data, np.int32(0))
    for index, config in enumerate(runs):
        alone = build.simulation([config], make_mesh(jax.devices()[:1]))
        executable, _ = alone.simulation.compile(alone.states, alone.points, alone.data)
        wanted, _ = executable(alone.states, alone.points, alone.data, np.int32(0))
        close = functools.partial(np.testing.assert_allclose, atol=2e-3)
        jax.tree.map(lambda a, b, i=index, close=close: close(a[i], b[0]), states.variables, wanted.variables)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_run_goes_on_with_what_it_remembers(tmp_path, devices):
    """Stopped and started again, on the same devices; its checkpoint has the population and no padding."""
    settings = {"aggregator.name": "foolsgold", "checkpoint_every": 2, "block_rounds": 2}
    mesh = make_mesh(jax.devices()[:devices])
    config = resolved(**settings)
    whole = experiment.run(config, tmp_path / "whole", mesh=mesh, log=lambda text: None)
    first = tmp_path / "whole" / "checkpoints"
    assert first.is_dir()
    (tmp_path / "whole" / "summary.json").unlink()
    for path in first.glob("round_000004*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    again = experiment.run(config, tmp_path / "whole", mesh=mesh, log=lambda text: None)
    assert again["final_test_accuracy"] == whole["final_test_accuracy"]


class TestFits:
    def test_what_a_population_needs_is_counted(self):
        config, plain = resolved(**{"aggregator.name": "foolsgold"}), resolved(**{"aggregator.name": "fedavg"})
        run = build.prepare(config)
        state = jax.eval_shape(run.program.init, run.point)
        model = memory.footprint(run.program).model
        assert memory.remembered(state) == 21 * model
        assert memory.remembered(state, 8) == 3 * model
        assert cost.of(config).run - cost.of(plain).run == 2 * 21 * model  # a round writes anew what it carries
        last = build.prepare(
            resolved(**{"aggregator.name": "foolsgold", "aggregator.foolsgold.features": "last_layer"})
        )
        assert 0 < memory.remembered(jax.eval_shape(last.program.init, last.point)) < 21 * model

    def test_what_does_not_fit_is_one_line_before_anything_is_made(self):
        run = build.prepare(resolved(**{"aggregator.name": "foolsgold"}))
        placed = build.place([run], make_mesh(jax.devices()[:1]))
        small = dataclasses.replace(placed.simulation, memory_limit=10**5)
        with pytest.raises(DoesNotFit) as error:
            small.remembered(placed.points)
        assert str(error.value).startswith(
            "config.num_clients = 21: what the rule or the attack remembers of each client"
        )
        assert "a program may take 0.00 GB of" in str(error.value)

    def test_a_config_may_say_the_population_itself(self):
        config = resolved(**{"aggregator.name": "foolsgold", "aggregator.foolsgold.num_clients": 30})
        assert build.prepare(config).program.make_aggregator({"steps": {}, "rule": {}}) is not None
        config = resolved(**{"aggregator.name": "foolsgold", "aggregator.foolsgold.num_clients": 20})
        with pytest.raises(InputError, match=r"config\.aggregator\.foolsgold\.num_clients = 20: allowed is 21 <="):
            build.prepare(config)


class TestRootExamples:
    SETTINGS = {"aggregator.name": "fltrust", "attack.name": "sign_flip", "rounds": 8, "client.epochs": 2}  # noqa: RUF012

    def test_fltrust_trains_on_digits(self):
        history = simulated(**self.SETTINGS)
        assert history.test_accuracy[-1] > 0.5
        for weights in history.weights.values():
            # Who sends the opposite is not trusted; the others are.
            assert weights[history.malicious].max(initial=0) < 0.05
            assert weights[~history.malicious].mean() > 0.05

    def test_the_server_takes_as_many_steps_as_a_client(self):
        """Four times as many, and the rows, all as long as its own update, overshoot: accuracy stayed near chance."""
        settings = {**self.SETTINGS, "attack.name": "none", "client.epochs": 5, "rounds": 15}
        assert simulated(**settings).test_accuracy[-1] > 0.8

    def test_other_root_examples_are_another_run(self):
        one, other = (simulated(**self.SETTINGS, root_examples=count) for count in (100, 40))
        assert not np.array_equal(one.test_loss, other.test_loss)
        again = simulated(**self.SETTINGS)
        np.testing.assert_array_equal(one.test_loss, again.test_loss)

    def test_more_than_there_are_is_one_line(self):
        config = resolved(**self.SETTINGS, root_examples=5000)
        with pytest.raises(InputError, match=r"config\.root_examples = 5000: allowed is config\.root_examples <= \d+$"):
            build.prepare(config)

    def test_a_rule_that_asks_for_none_draws_none(self):
        assert build.prepare(resolved(**{"aggregator.name": "fedavg"}, root_examples=5000)).point.root == ()


@pytest.mark.parametrize("rule", ["fedavg", "geometric_median", "norm_clipped_mean", "lasa"])
def test_rules_by_size_train(rule):
    settings = {"aggregator.name": rule, f"aggregator.{rule}.weighting": "size"}
    history = simulated(**settings, **{"partition.name": "quantity_skew", "partition.min_samples": 1})
    assert np.isfinite(history.test_loss).all()
    weights = history.weights["params/dense1/bias"]
    assert len(np.unique(weights.round(5))) > 3
