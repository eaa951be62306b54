"""The test examples in few batches, of a size that memory allows."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import build, models, ops
from lasa_jax import config as configs
from lasa_jax.data import Dataset, Examples
from lasa_jax.federated import evaluation, make_mesh, simulation
from lasa_jax.federated.evaluation import evaluate, examples_at_once


@functools.cache
def digits():
    run = build.prepare(configs.resolve(configs.default()))
    state = jax.jit(run.program.init)(run.point)
    return run, state, jax.tree.map(jnp.asarray, run.dataset.test)


def of(name: str, shape: tuple[int, ...], count: int):
    """A program with a model for images, its variables and its test examples, as shapes."""
    model = models.create(name, num_classes=10, input_shape=shape)
    examples = Examples(jax.ShapeDtypeStruct((count, *shape), jnp.uint8), jax.ShapeDtypeStruct((count,), jnp.int32))
    dataset = Dataset(name, 10, examples, examples, (1.0,) * shape[-1], (1.0,) * shape[-1])
    program = digits()[0].program
    training = dataclasses.replace(program.local_training, model=model, dataset=dataset)
    return (
        dataclasses.replace(program, local_training=training),
        jax.eval_shape(model.init, jax.random.key(0)),
        examples,
    )


def test_a_cpu_keeps_its_batches():
    program, variables, test = of("cnn", (28, 28, 1), 10_000)
    with ops.compiling_for("cpu"):
        assert examples_at_once(program, variables, test) == 250


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_at_most_four_batches_on_an_accelerator(platform):
    program, variables, test = of("cnn", (28, 28, 1), 10_000)
    with ops.compiling_for(platform):
        batch = examples_at_once(program, variables, test)
        alone, together = (examples_at_once(*of("small_cnn", (8, 8, 1), 360), runs) for runs in (1, 16))
    assert -(-10_000 // batch) <= 4
    assert alone == together == 360


def test_a_large_model_or_many_runs_go_in_smaller_batches():
    program, variables, test = of("resnet18", (32, 32, 3), 10_000)
    with ops.compiling_for("gpu"):
        one, sixteen = (examples_at_once(program, variables, test, runs) for runs in (1, 16))
    # The widest of ResNet-18's layers takes and gives 64 channels of 32 x 32 pixels, if nothing more.
    assert one * 2 * 64 * 32 * 32 * 4 <= 2**32
    assert sixteen <= one / 8
    assert -(-10_000 // one) <= 40  # what batches of 250 would be


def test_batches_are_equal_and_within_the_bound(monkeypatch):
    program, variables, test = of("mlp", (8, 8, 1), 1000)
    with ops.compiling_for("gpu"):
        sizes = {}
        for bound in (2**32, 3 * 10**5, 10**5, 1):
            monkeypatch.setattr(evaluation, "_ACTIVATIONS", bound)
            sizes[bound] = examples_at_once(program, variables, test)
    assert sizes[2**32] == 1000
    assert 1000 > sizes[3 * 10**5] > sizes[10**5] > sizes[1] == 1
    assert -(-1000 // sizes[3 * 10**5]) * sizes[3 * 10**5] < 1000 + -(-1000 // sizes[3 * 10**5])


def test_the_forms_of_an_accelerator_give_the_same_accuracy():
    run, state, test = digits()

    def both(platform: str):
        with ops.compiling_for(platform):
            return jax.device_get(jax.jit(lambda state: evaluate(run.program, state, test))(state))

    here, there = both("cpu"), both("gpu")
    assert here.reported.accuracy == there.reported.accuracy
    np.testing.assert_allclose(here.reported.loss, there.reported.loss, rtol=1e-6)
    assert here.with_padding is here.without_padding is None  # digits have none


def test_runs_of_a_batch_share_the_memory(monkeypatch):
    """`block` tells how many runs a device evaluates together: one on a CPU, where they follow one another."""
    run, state, _ = digits()
    made = build.place([run], make_mesh(jax.devices()[:1])).simulation
    seen = []

    def spy(program, state, test, batch_size, *, runs, attack):
        seen.append(runs)
        return evaluation.Evaluation(evaluation.Measures(jnp.float32(0), jnp.float32(0)))

    monkeypatch.setattr(simulation, "evaluate", spy)
    monkeypatch.setattr(simulation, "one_round", lambda program, state, *rest: (state, ()))
    lead = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), tree)  # noqa: E731
    data = simulation.FederatedDataset(run.dataset.train, run.dataset.test, lead(run.shares))
    for platform, runs in (("gpu", 3), ("cpu", 1)):
        with jax.set_mesh(made.mesh), ops.compiling_for(platform):
            jax.eval_shape(made.block, lead(state), lead(run.point), data, jnp.int32(0))
        assert set(seen) == {runs}
        seen.clear()
