"""The tenth of the clients that the model serves worst, against NumPy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import build, experiment, ops
from lasa_jax import config as configs
from lasa_jax.data import FederatedDataset, Partition, partition
from lasa_jax.federated import make_mesh
from lasa_jax.federated.fairness import worst_tenth
from lasa_jax.workdir import Workdir
from tests.test_experiment import small

DIRICHLET = {"partition.name": "dirichlet", "partition.alpha": 0.3, "partition.min_samples": 2}


@functools.cache
def setup():
    """Digits, unequally divided over 60 clients, a quarter of them malicious, and a model that is a little trained."""
    config = configs.default()
    config.update_from_flattened_dict({"attack.name": "lie", "model": "mlp", **DIRICHLET})
    run = build.prepare(configs.resolve(config))
    fed = FederatedDataset(*jax.tree.map(jnp.asarray, (run.dataset.train, run.dataset.test, run.shares)))
    training = run.program.local_training

    def loss(variables):
        logits = training.model.apply(variables, training.dataset.normalise(fed.train.inputs))[0]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), fed.train.labels[:, None], axis=1))

    def step(_, variables):
        return jax.tree.map(lambda x, g: x - 0.1 * g, variables, jax.grad(loss)(variables))

    state = run.program.init(run.point)
    return run, state._replace(variables=jax.jit(lambda x: jax.lax.fori_loop(0, 20, step, x))(state.variables)), fed


def expected(run, variables, malicious, share: float = 0.1) -> float:
    """The definition, client by client."""
    training = run.program.local_training
    logits = training.model.apply(variables, training.dataset.normalise(jnp.asarray(run.dataset.train.inputs)))[0]
    right = np.argmax(np.asarray(logits), axis=-1) == run.dataset.train.labels
    own = [right[row[:size]].mean() for row, size in zip(*run.shares, strict=True)]
    benign = np.sort([accuracy for accuracy, bad in zip(own, malicious, strict=True) if not bad])
    return float(benign[: math.ceil(share * len(benign) - 1e-9)].mean())


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("batch_size", [None, 100])
def test_the_worst_of_the_benign_clients(platform, batch_size):
    run, state, fed = setup()
    assert run.program.measures_clients
    malicious = np.asarray(run.point.malicious)
    assert malicious.sum() == 15
    with ops.compiling_for(platform):
        found = jax.jit(lambda state: worst_tenth(run.program, state, run.point, fed, batch_size))(state)
    assert found.dtype == jnp.float32
    wanted = expected(run, state.variables, malicious)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert 0 < wanted < 0.95 * expected(run, state.variables, malicious, share=1.0)
    everybody = np.zeros_like(malicious)
    honest = run.point._replace(malicious=jnp.asarray(everybody))
    found = worst_tenth(run.program, state, honest, fed, batch_size)
    np.testing.assert_allclose(found, expected(run, state.variables, everybody), rtol=1e-6)


def test_a_model_of_nan_serves_nobody():
    run, state, fed = setup()
    broken = state._replace(variables=jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), state.variables))
    assert worst_tenth(run.program, broken, run.point, fed) == 0
    nobody = run.point._replace(malicious=jnp.ones_like(run.point.malicious))
    assert jnp.isnan(worst_tenth(run.program, state, nobody, fed))


def test_on_eight_devices():
    run, state, fed = setup()
    alone = worst_tenth(run.program, state, run.point, fed, 100)
    with jax.set_mesh(make_mesh(jax.devices()[:8])):
        together = jax.jit(lambda state: worst_tenth(run.program, state, run.point, fed, 100))(state)
    np.testing.assert_allclose(alone, together, rtol=1e-6)


def test_padding_does_not_count():
    """Sequences of two labels: of each client the labels that are no padding."""
    run, state, _ = setup()
    training = run.program.local_training
    labels = jnp.asarray([[1, 0], [0, 0], [1, 1]], jnp.int32)

    class Ones:
        @staticmethod
        def apply(variables, inputs):
            return jnp.broadcast_to(jnp.asarray([0.0, 1.0]), (*inputs.shape, 2)), variables

    dataset = dataclasses.replace(training.dataset, mean=(), std=(), padding_label=0, counts_padding=False)
    program = dataclasses.replace(
        run.program, local_training=dataclasses.replace(training, model=Ones, dataset=dataset)
    )
    shares = Partition(jnp.asarray([[0, 1], [1, 1], [2, 0]], jnp.int32), jnp.asarray([2, 2, 1], jnp.int32))
    train = dataset.train._replace(inputs=jnp.zeros((3, 2), jnp.uint8), labels=labels)
    point = run.point._replace(malicious=jnp.zeros(3, bool))
    found = worst_tenth(program, state, point, FederatedDataset(train, train, shares), 2)
    assert found == 1  # the client of padding alone is not measured
    counting = dataclasses.replace(
        program,
        local_training=dataclasses.replace(
            program.local_training, dataset=dataclasses.replace(dataset, counts_padding=True)
        ),
    )
    assert worst_tenth(counting, state, point, FederatedDataset(train, train, shares), 2) == 0


def test_a_run_tells_it_after_its_last_round_alone(tmp_path):
    config = small(rounds=4, model="mlp", **{"partition.name": "shards", "attack.name": "lie", "checkpoint_every": 2})
    summary = experiment.run(config, tmp_path / "run", mesh=make_mesh(jax.devices()[:1]), log=lambda text: None)
    *before, last = Workdir(tmp_path / "run", lock=False).metrics()
    assert not [line for line in before if "worst_tenth_accuracy" in line]
    assert 0 <= last["worst_tenth_accuracy"] == summary["worst_tenth_accuracy"] <= 1
    longer = small(rounds=6, model="mlp", **{"partition.name": "shards", "attack.name": "lie", "checkpoint_every": 2})
    experiment.extend(tmp_path / "run", longer, tmp_path / "long")
    begun = Workdir(tmp_path / "long", lock=False).metrics()
    assert len(begun) == 4
    assert not [line for line in begun if "worst_tenth_accuracy" in line]


def test_in_memory_and_where_clients_are_alike():
    settings = {
        "model": "mlp",
        "rounds": 2,
        "client.epochs": 1,
        "attack.name": "sign_flip",
        "aggregator.name": "fedavg",
    }
    settings |= {"num_clients": 20, "clients_per_round": 6}
    history = experiment.simulate(configs.paper("digits"), **settings, **DIRICHLET)
    config = configs.updated(configs.paper("digits"), {**settings, **DIRICHLET})
    run = build.prepare(configs.resolve(config))
    wanted = expected(run, history.variables, np.asarray(run.point.malicious))
    np.testing.assert_allclose(history.worst_tenth_accuracy, wanted, rtol=1e-6)
    assert experiment.simulate(configs.paper("digits"), **settings).worst_tenth_accuracy is None


def test_every_partition_is_alike_or_not():
    assert set(partition.ALIKE) < set(partition.SETTINGS)
    assert not set(partition.ALIKE) & set(partition.RAGGED)
