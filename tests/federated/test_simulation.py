import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from benchmarks import collectives
from lasa_jax import build, ops
from lasa_jax import config as configs
from lasa_jax.data import FederatedDataset
from lasa_jax.federated import make_mesh, one_round
from lasa_jax.federated.round import draw_clients, round_keys, train_clients


def resolved(**settings):
    config = configs.default()
    config.update_from_flattened_dict(
        {"fidelity": "official", "attack.name": "byzmean", "client.batch_size": 32, "block_rounds": 2, **settings}
    )
    return configs.resolve(config)


@functools.cache
def setup(devices: int, **settings):
    """A simulation of the digits, its point and its data, both with and without the runs axis."""
    config = resolved(**settings)
    run = build.prepare(config)
    simulation = build.place([run], make_mesh(jax.devices()[:devices])).simulation
    return (
        simulation,
        run.point,
        jax.tree.map(jnp.asarray, FederatedDataset(run.dataset.train, run.dataset.test, run.shares)),
    )


def test_each_round_on_8_devices_equals_the_round_on_1():
    """30 clients do not divide over 8 devices; 20 rounds, each from the same start state."""
    one, point, fed = setup(1)
    eight, _, _ = setup(8)
    step_on_one, step_on_eight = (jax.jit(functools.partial(one_round, x.program)) for x in (one, eight))
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    state = jax.device_get(one.program.init(point))
    for index in range(1, 21):
        with jax.set_mesh(one.mesh):
            wanted, metrics = jax.device_get(step_on_one(state, point, fed, index))
        with jax.set_mesh(eight.mesh):
            actual, sharded_metrics = jax.device_get(step_on_eight(state, point, fed, index))
        jax.tree.map(close, actual.variables, wanted.variables)
        np.testing.assert_allclose(sharded_metrics.train_loss, metrics.train_loss, rtol=1e-5)
        for field in ("malicious", "benign", "malicious_filtered", "benign_filtered"):
            np.testing.assert_array_equal(getattr(sharded_metrics, field), getattr(metrics, field))
        state = wanted


def test_local_training_exchanges_the_loss_of_each_client_and_nothing_else():
    simulation, point, fed = setup(8)
    with jax.set_mesh(simulation.mesh):
        state = jax.eval_shape(simulation.program.init, point)

        def train(state, point, fed, index):
            program, keys = simulation.program, round_keys(point.key, index)
            attack, clients = program.make_attack(point.attack), draw_clients(program, point, keys.draw)
            return train_clients(program, attack, state.variables, point, fed, clients, index, key=keys.train)

        text = jax.jit(train).lower(state, point, fed, jnp.int32(1)).compile().as_text()
    assert collectives.count(text) == {"all-gather": (4 * 32, False)}  # 30 clients, and two rows that divide them by 8


@functools.cache
def block(devices: int = 1):
    simulation, point, fed = setup(devices, rounds=3)
    points, shares = jax.tree.map(lambda x: x[None], (point, fed.partition))
    states = simulation.init(points)
    placed = simulation.place(states, points, FederatedDataset(fed.train, fed.test, shares))
    executable, seconds = simulation.compile(*placed)
    assert seconds > 0
    return simulation, executable, placed


def test_block_has_no_host_in_the_loop_and_donates_its_state():
    _, executable, _ = block()
    text = executable.as_text()
    for word in ("callback", "infeed", "outfeed", "send(", "recv("):
        assert word not in text
    assert "input_output_alias" in text
    assert "group_count" not in text  # no grouped convolution


def test_rounds_beyond_the_last_change_nothing():
    simulation, executable, (states, points, fed) = block()
    copy = functools.partial(jax.tree.map, jnp.copy)
    first, metrics = executable(copy(states), points, fed, jnp.int32(0))
    second, last = executable(copy(first), points, fed, jnp.int32(2))  # round 3, and one that does not exist
    third, _ = executable(copy(second), points, fed, jnp.int32(3))
    jax.tree.map(np.testing.assert_array_equal, second.variables, third.variables)
    assert np.isfinite(metrics.test.reported.accuracy).all()
    assert np.isfinite(last.test.reported.accuracy[0, 0])
    # A block is the rounds it says: one round at a time gives the same.
    point, fed_one = jax.tree.map(lambda x: x[0], points), FederatedDataset(*setup(1, rounds=3)[2])
    step = jax.jit(functools.partial(one_round, simulation.program))
    state = jax.tree.map(lambda x: x[0], states)
    for index in (1, 2):
        state, _ = step(state, point, fed_one, jnp.int32(index))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-5), first.variables, state.variables)


def test_two_runs_in_one_program():
    """Runs that share a program do not mix: each equals the run alone."""
    simulation, executable, (_, points, fed) = block()
    _, other, _ = setup(1, rounds=3)
    other = other._replace(key=jax.random.key(9), malicious=jnp.roll(other.malicious, 7))
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), points, other)
    two = jax.tree.map(lambda x: jnp.concatenate([x, x]), fed.partition)
    both_states = simulation.init(both)
    with jax.set_mesh(simulation.mesh):
        together, metrics = jax.jit(simulation.block)(
            both_states, both, FederatedDataset(fed.train, fed.test, two), jnp.int32(0)
        )
    for run in range(2):
        alone = jax.tree.map(lambda x, r=run: x[r : r + 1], both)
        wanted, alone_metrics = executable(simulation.init(alone), alone, fed, jnp.int32(0))
        jax.tree.map(
            lambda a, b, r=run: np.testing.assert_allclose(a[r], b[0], atol=1e-4), together.variables, wanted.variables
        )
        np.testing.assert_array_equal(metrics.rounds.malicious[run], alone_metrics.rounds.malicious[0])
    assert not np.array_equal(metrics.rounds.train_loss[0], metrics.rounds.train_loss[1])


@pytest.mark.parametrize("rows", [8, 2, 1])
def test_meshes_of_runs_and_clients_agree(rows):
    """Eight runs of 25 clients on 8 x 1, 2 x 4 and 1 x 8 devices: each round as on one device, from the same state."""
    one, point, fed = setup(1, clients_per_round=25, rounds=2)
    runs = [point._replace(key=jax.random.key(seed)) for seed in range(8)]
    points = jax.tree.map(lambda *x: jnp.stack(x), *runs)
    states = one.init(points)
    eight = FederatedDataset(fed.train, fed.test, jax.tree.map(lambda x: jnp.stack([x] * 8), fed.partition))
    simulation = dataclasses.replace(one, mesh=make_mesh(runs=rows), block_rounds=1)
    placed = simulation.place(states, points, eight)
    executable, _ = simulation.compile(*placed)
    together, metrics = jax.device_get(executable(*placed, np.int32(0)))
    if rows == 8:  # runs do not know of each other
        assert not collectives.count(executable.as_text())
    step = jax.jit(functools.partial(one_round, one.program))
    for run, alone in enumerate(runs):
        wanted, wanted_metrics = step(one.program.init(alone), alone, fed, jnp.int32(1))
        jax.tree.map(
            lambda a, b, r=run: np.testing.assert_allclose(a[r], b, atol=1e-4), together.variables, wanted.variables
        )
        np.testing.assert_array_equal(metrics.rounds.malicious_filtered[run, 0], wanted_metrics.malicious_filtered)


@pytest.mark.parametrize(("rule", "form"), [("lasa", "all rows"), ("krum", "all rows"), ("dnc", "one row at a time")])
def test_nothing_crosses_runs_on_a_mesh_of_runs_and_clients(rule, form, monkeypatch):
    """Four runs on 2 x 2 devices, in both orders of runs and clients: devices of one row exchange, and no others do."""
    for module in (ops, ops.rows, ops.columns):
        monkeypatch.setattr(module, "one_at_a_time", lambda: form == "one row at a time")
    small = {"model": "mlp", "rounds": 1, "num_clients": 12, "clients_per_round": 6, "client.epochs": 1}
    runs = [resolved(**small, **{"aggregator.name": rule, "block_rounds": 1, "seed": seed}) for seed in range(4)]
    simulation, *placed = build.simulation(runs, make_mesh(jax.devices()[:4], runs=2))
    found = collectives.groups(simulation.compile(*placed)[0].as_text())
    kinds = {kind for kind, _ in found}
    assert "all-reduce" in kinds
    assert all(set(group) in ({0, 1}, {2, 3}) for _, groups in found for group in groups)
    # What is small is whole on every device; the columns of krum's distances change places, within a row.
    assert kinds <= {"all-reduce", "all-gather", "all-to-all" if rule == "krum" else ""}


def test_groups_are_read_in_every_form():
    start = "  %x = f32[2]{0} "
    lines = {
        "all-reduce(%a), replica_groups={{0,1},{2,3}}, to_apply=%add": [[0, 1], [2, 3]],
        "all-reduce(%a), replica_groups=[2,2]<=[4], to_apply=%add": [[0, 1], [2, 3]],
        "all-gather(%a), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}": [[0, 2], [1, 3]],
        "all-gather(%a), replica_groups=mesh['a'=2,'b'=2] {'b'}, use_global_device_ids=true": [[0, 1], [2, 3]],
        "all-to-all(%a), replica_groups=mesh['runs'=2,'clients'=2] {'runs'}, dimensions={0}": [[0, 2], [1, 3]],
        "collective-permute(%a), source_target_pairs={{1,0},{3,2}}": [[1, 0], [3, 2]],
    }
    for line, groups in lines.items():
        assert collectives.groups(start + line) == [(line.split("(")[0], groups)]
    with pytest.raises(ValueError, match="not known"):
        collectives.groups(start + "all-reduce(%a), replica_groups=?")


def test_lasa_exchanges_one_model_and_a_small_table():
    """4 d bytes, and for each client and layer a few numbers: as plain averaging."""
    n, layers = 32, 2
    for d in (1 << 16, 1 << 17):
        kinds = collectives.of_rule("lasa", n, d)
        assert kinds.keys() == {"all-reduce", "all-gather"}
        assert not any(looped for _, looped in kinds.values())
        assert 0 <= sum(size for size, _ in kinds.values()) - 4 * d <= 16 * n * layers
    assert collectives.of_rule("fedavg", n, d) == {"all-reduce": (4 * d, False)}


def test_collectives_are_counted():
    """By hand: an all-reduce of 3 x 4 floats; one in a loop that runs three times; one in a loop that ends when it likes."""

    def reduce(x):
        total = functools.partial(jax.lax.psum, axis_name="clients")
        return jax.shard_map(total, in_specs=PartitionSpec("clients"), out_specs=PartitionSpec())(x)

    def loop(x):
        return jax.lax.fori_loop(0, 3, lambda i, x: x + jnp.sum(reduce(x)), x)

    def open_loop(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 9, lambda x: x + jnp.sum(reduce(x)), x)

    x = jax.ShapeDtypeStruct((24, 4), jnp.float32)
    assert collectives.count(collectives.compiled(reduce, x)) == {"all-reduce": (4 * 3 * 4, False)}
    assert collectives.count(collectives.compiled(loop, x)) == {"all-reduce": (3 * 4 * 3 * 4, False)}
    assert collectives.count(collectives.compiled(open_loop, x))["all-reduce"][1]


def test_clients_are_drawn_without_replacement():
    simulation, point, _ = setup(1)

    def draw(i):
        return draw_clients(simulation.program, point, jax.random.fold_in(jax.random.key(0), i)).ids

    draws = jax.vmap(draw)(jnp.arange(200))
    for row in np.asarray(draws):
        assert len(set(row.tolist())) == 30
    counts = np.bincount(np.asarray(draws).ravel(), minlength=60)
    assert abs(counts - 100).max() < 45  # binomial, standard deviation 7


@pytest.mark.parametrize(("ratio", "ids", "assumed"), [(0.0, 0, 0), (0.25, 15, 7), (0.29, 17, 8), (1.0, 60, 30)])
def test_share_of_malicious_clients(ratio, ids, assumed):
    _, point, _ = setup(1, attack_ratio=ratio)
    assert int(point.malicious.sum()) == ids
    assert int(point.assumed_malicious) == assumed


def test_malicious_clients_of_a_smaller_ratio_are_among_those_of_a_larger():
    small, large = (setup(1, attack_ratio=ratio)[1].malicious for ratio in (0.1, 0.3))
    assert bool((large | ~small).all())


def test_a_mesh_row_must_divide():
    with pytest.raises(ValueError, match="8 devices do not divide into 3 rows"):
        make_mesh(runs=3)
