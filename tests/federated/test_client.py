import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import data, models, ops
from lasa_jax.federated.client import SGD, LocalTraining, clip_update
from lasa_jax.models import Model
from tests.golden.recordings import recordings

KEY = jax.random.key(3)
NUM = 12  # examples of the counting problem


def counting_problem(epochs: int, batch_size: int) -> tuple[LocalTraining, data.Examples]:
    """Example i moves parameter i alone, by an amount that tells the size of its batch and how often it was seen."""

    def apply(variables, inputs, *, train=False, key=None, mask=None):
        score = inputs @ variables["params"]["p"]
        return jnp.stack([score, jnp.zeros_like(score)], axis=1), variables

    model = Model(lambda key: {"params": {"p": jnp.zeros(NUM)}}, apply)
    examples = data.Examples(jnp.eye(NUM), jnp.zeros(NUM, jnp.int32))
    dataset = data.Dataset("counting", 2, examples, examples, mean=(0.0,), std=(1.0,))
    return LocalTraining(model, dataset, epochs, batch_size, decay_every=1), examples


def train(local, examples, indices, size, sgd=None, key=KEY, round_index=1, **held):
    variables = local.model.init(jax.random.key(0))
    sgd = SGD(0.1, 0.0, 1.0, None) if sgd is None else sgd
    return jax.jit(
        lambda v, train, indices, size: local(
            v, sgd, train, jnp.int32(round_index), indices=indices, size=size, key=key, **held
        )
    )(variables, examples, jnp.asarray(indices, jnp.int32), jnp.int32(size))


@pytest.mark.parametrize(("size", "batch"), [(9, 4), (8, 4), (3, 4), (1, 4), (5, 1)])
def test_an_epoch_sees_each_example_once_and_keeps_the_short_batch(size, batch):
    local, examples = counting_problem(epochs=1, batch_size=batch)
    indices = np.pad(np.arange(NUM)[::-1][:size], (0, NUM - size))
    update, _ = train(local, examples, indices, size)
    moved = np.asarray(update["params"]["p"])
    # The gradient of the loss at score 0 is -1/2, divided by the number of examples in the batch.
    sizes = np.where(moved > 0, 0.05 / np.where(moved > 0, moved, 1), 0)
    short = size % batch
    wanted = [batch] * (size - short) + [short] * short
    np.testing.assert_allclose(sorted(sizes[moved > 0]), sorted(wanted), rtol=1e-5)
    assert set(np.flatnonzero(moved)) == set(indices[:size])


def test_orders_differ_by_epoch_client_and_round():
    local, examples = counting_problem(epochs=1, batch_size=4)

    def short_batch(key):
        moved = train(local, examples, np.arange(NUM), 9, key=key)[0]["params"]["p"]
        return int(jnp.argmax(moved))

    assert len({short_batch(jax.random.key(seed)) for seed in range(6)}) > 2
    several, examples = counting_problem(epochs=4, batch_size=4)
    moved = np.asarray(train(several, examples, np.arange(NUM), 9)[0]["params"]["p"])[:9]
    assert len(np.unique(moved.round(6))) > 2  # not the same short batch twice


def test_padding_is_never_seen():
    local, examples = counting_problem(epochs=3, batch_size=4)
    poisoned = data.Examples(examples.inputs.at[0].set(jnp.nan), examples.labels)
    client = np.array([5, 7, 2, 9, 4])
    clean, clean_loss = train(local, examples, np.pad(client, (0, 3)), 5)
    padded, padded_loss = train(local, poisoned, np.pad(client, (0, 3)), 5)
    np.testing.assert_array_equal(clean["params"]["p"], padded["params"]["p"])
    assert clean_loss == padded_loss
    wider, _ = train(local, poisoned, np.pad(client, (0, 7)), 5)
    np.testing.assert_allclose(clean["params"]["p"], wider["params"]["p"], atol=1e-6)


def test_a_client_without_examples_sends_zero():
    local, examples = counting_problem(epochs=2, batch_size=4)
    update, loss = train(local, examples, np.zeros(4), 0)
    assert not update["params"]["p"].any()
    assert np.isnan(loss)


def test_labels_can_be_poisoned():
    local, examples = counting_problem(epochs=1, batch_size=4)
    flip = lambda inputs, labels, key: (inputs, 1 - labels)  # noqa: E731
    update, _ = train(local, examples, np.arange(NUM), 4, poison=flip)
    assert (update["params"]["p"][:4] < 0).all()


def test_inputs_can_be_poisoned_and_each_batch_has_a_key_of_its_own():
    local, examples = counting_problem(epochs=1, batch_size=2)
    doubled, _ = train(local, examples, np.arange(NUM), 4, poison=lambda inputs, labels, key: (2 * inputs, labels))
    plain, _ = train(local, examples, np.arange(NUM), 4)
    assert not np.allclose(doubled["params"]["p"], plain["params"]["p"])
    draws = lambda inputs, labels, key: (inputs * jax.random.normal(key), labels)  # noqa: E731
    drawn, _ = train(local, examples, np.arange(NUM), 4, poison=draws)
    assert len(set(np.abs(np.asarray(drawn["params"]["p"][:4])).round(6))) > 1


def test_a_model_can_be_held_back_after_every_step():
    local, examples = counting_problem(epochs=2, batch_size=2)

    def half_way(model, start):
        return jax.tree.map(lambda new, old: old + jnp.clip(new - old, -1e-3, 1e-3), model, start)

    free, _ = train(local, examples, np.arange(NUM), 4)
    held, _ = train(local, examples, np.arange(NUM), 4, constrain=half_way)
    assert np.abs(free["params"]["p"]).max() > 1e-3
    np.testing.assert_allclose(np.abs(held["params"]["p"]).max(), 1e-3, rtol=1e-6)


def test_steps_are_those_of_plain_sgd_with_momentum():
    """Full batches of the digits, against the update rule written out: v <- m v + g, w <- w - rate v."""
    digits = data.load("digits")
    model = models.create("small_cnn", num_classes=10, input_shape=(8, 8, 1))
    local = LocalTraining(model, digits, epochs=4, batch_size=8, decay_every=2)
    examples = data.Examples(jnp.asarray(digits.train.inputs), jnp.asarray(digits.train.labels))
    client = np.arange(20, 26)
    sgd = SGD(learning_rate=0.2, momentum=0.9, decay=0.5, clip_norm=None)
    update, loss = train(local, examples, np.pad(client, (0, 4)), 6, sgd, round_index=5)

    x, y = digits.normalise(examples.inputs[client]), examples.labels[client]
    variables = model.init(jax.random.key(0))

    def mean_loss(params):
        logits, _ = model.apply({"params": params}, x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    rate = 0.2 * 0.5 ** (5 // 2)
    params, velocity, losses = variables["params"], None, []
    step = jax.jit(jax.value_and_grad(mean_loss))
    for _ in range(4):
        value, gradient = step(params)
        losses.append(value)
        velocity = gradient if velocity is None else jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda w, v: w - rate * v, params, velocity)
    wanted = jax.tree.map(jnp.subtract, params, variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), update["params"], wanted)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)


def test_clip_divides_by_the_excess():
    local, examples = counting_problem(epochs=1, batch_size=4)
    free, _ = train(local, examples, np.arange(NUM), 8)
    norm = float(jnp.linalg.norm(free["params"]["p"]))
    for limit in (norm / 3, 2 * norm):
        clipped, _ = train(local, examples, np.arange(NUM), 8, SGD(0.1, 0.0, 1.0, limit))
        wanted = np.asarray(free["params"]["p"]) / max(1, norm / limit)
        np.testing.assert_allclose(clipped["params"]["p"], wanted, rtol=1e-5)


def test_clip_equals_the_recorded_one():
    recording = next(r for r in recordings() if "clip/rows" in r)
    wanted = recording["clip/rows"]
    for row, clipped in zip(recording["honest"][: len(wanted)], wanted, strict=True):
        np.testing.assert_allclose(clip_update(row, recording["clip/limit"]), clipped, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
def test_clients_of_different_sizes_together(at_once):
    """A client takes its own number of steps, whoever trains beside it."""
    local, examples = counting_problem(epochs=2, batch_size=4)
    sizes = jnp.array([9, 0, 3, 12, 5])
    keys = jax.random.split(KEY, 5)
    variables = local.model.init(KEY)

    def one(indices, size, key):
        sgd = SGD(0.1, 0.9, 1.0, None)
        return local(variables, sgd, examples, 1, indices=indices, size=size, key=key)[0]

    indices = jnp.stack([jnp.roll(jnp.arange(NUM), shift) for shift in range(5)])
    together = jax.jit(lambda: ops.map_rows(one, indices, sizes, keys, at_once=at_once))()
    alone_one = jax.jit(one)
    for row in range(5):
        alone = alone_one(indices[row], sizes[row], keys[row])
        np.testing.assert_allclose(together["params"]["p"][row], alone["params"]["p"], atol=1e-6)


def local_update(precision, learning_rate=0.1):
    """The update of one client of the digits, and its compiled program."""
    dataset = data.load("digits")
    model = models.create("small_cnn", num_classes=10, input_shape=dataset.input_shape)
    local = LocalTraining(model, dataset, epochs=2, batch_size=8, decay_every=1, precision=precision)
    variables = model.init(jax.random.key(0))
    sgd = SGD(jnp.float32(learning_rate), 0.9, 1.0, None)

    def call(variables, train):
        return local(
            variables,
            sgd,
            train,
            jnp.int32(1),
            indices=jnp.arange(20),
            size=jnp.int32(20),
            key=KEY,
        )

    compiled = jax.jit(call).lower(variables, dataset.train).compile()
    update, loss = compiled(variables, dataset.train)
    assert {x.dtype for x in (*jax.tree.leaves(update), loss)} == {jnp.dtype("float32")}
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(update)]), compiled.as_text()


def test_precision_of_local_training():
    single, text = local_update("float32")
    assert "f64[" not in text
    assert "bf16[" not in text
    double, text = local_update("float64")
    assert "f64[" in text
    half, text = local_update("bfloat16")
    assert "bf16[" in text
    assert 0 < np.abs(single - double).max() < 1e-5 * np.abs(double).max()
    assert 1e-4 < np.linalg.norm(half - double) / np.linalg.norm(double) < 0.2


def test_tf32_is_float32_on_a_cpu():
    np.testing.assert_array_equal(local_update("tf32")[0], local_update("float32")[0])


@pytest.mark.parametrize(
    ("precision", "wanted"), [("tf32", "HIGH"), ("float32", "HIGHEST"), ("bfloat16", "DEFAULT"), ("float64", "HIGHEST")]
)
def test_products_of_training_have_their_precision_on_accelerators(precision, wanted):
    """Gradients too: nothing is left to the default of a platform, which may round operands to bfloat16."""
    dataset = data.load("digits")
    model = models.create("small_cnn", num_classes=10, input_shape=dataset.input_shape)
    local = LocalTraining(model, dataset, epochs=1, batch_size=8, decay_every=1, precision=precision)

    def call(variables, train):
        same = {"indices": jnp.arange(8), "size": jnp.int32(8), "key": KEY}
        return local(variables, SGD(0.1, 0.9, 1.0, None), train, jnp.int32(1), **same)

    variables = jax.eval_shape(model.init, jax.random.key(0))
    with ops.compiling_for("gpu"):
        text = jax.jit(call).trace(variables, dataset.train).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line or "stablehlo.convolution" in line]
    assert len(products) > 8
    assert any("stablehlo.convolution" in line for line in products)
    # a product says its operands' precisions as [HIGH, HIGH], a convolution as [#stablehlo<precision HIGH>, ...]
    found = [set(re.findall(r"precision (\w+)>|precision = \[(\w+)", line)) for line in products]
    named = [{one or other for one, other in line} or {"DEFAULT"} for line in found]
    assert named == [{wanted}] * len(products)


@pytest.mark.parametrize("ragged", [False, True])
def test_an_accelerator_knows_how_many_steps_clients_of_one_size_take(ragged):
    """A count that only the client knows is checked by the host after every step; the results are the same."""
    dataset = data.load("digits")
    model = models.create("small_cnn", num_classes=10, input_shape=dataset.input_shape)
    local = LocalTraining(model, dataset, epochs=2, batch_size=8, decay_every=1, ragged=ragged)
    variables, examples = model.init(jax.random.key(0)), jax.tree.map(jnp.asarray, dataset.train)

    def train(size):  # of the last client, which has a step fewer
        same = {"indices": jnp.arange(20), "key": KEY}
        return local(variables, SGD(0.1, 0.9, 1.0, None), examples, jnp.int32(1), size=size, **same)

    sizes = jnp.array([20, 18, 16], jnp.int32)
    with ops.compiling_for("gpu"):
        counted = str(jax.make_jaxpr(jax.vmap(train))(sizes))
        together = jax.vmap(train)(sizes)
    assert ("while[" in counted) == ragged
    alone = [train(size) for size in sizes]
    chex.assert_trees_all_close(together, jax.tree.map(lambda *x: jnp.stack(x), *alone), atol=1e-5)


@pytest.mark.parametrize(("form", "grouped"), [("patches", False), ("grouped", True)])
def test_the_form_of_convolutions_reaches_the_program(form, grouped):
    shape = (8, 8, 1)
    images = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    model = models.create("small_cnn", num_classes=2, input_shape=shape)
    examples = data.Examples(np.zeros(images.shape, np.float32), np.zeros(4, np.int32))
    dataset = data.Dataset("zeros", 2, examples, examples, mean=(0.0,), std=(1.0,))
    local = LocalTraining(model, dataset, epochs=1, batch_size=2, decay_every=1, convolution=form)

    def clients(variables, train, keys):
        def one(key):
            sgd = SGD(0.1, 0.0, 1.0, None)
            return local(
                variables,
                sgd,
                train,
                jnp.int32(1),
                indices=jnp.arange(4),
                size=jnp.int32(4),
                key=key,
            )

        return jax.vmap(one)(keys)

    with ops.compiling_for("gpu"):
        text = jax.jit(clients).lower(model.init(KEY), examples, jax.random.split(KEY, 3)).as_text()
    assert ("feature_group_count = 3" in text) == grouped


def test_double_precision_keeps_steps_that_are_lost_beside_a_weight():
    """Steps of 1e-10 beside weights of 0.1, whose neighbours in float32 are 7e-9 away."""
    single, double = (local_update(precision, learning_rate=1e-9)[0] for precision in ("float32", "float64"))
    assert np.mean(single == 0) > 0.5
    assert np.mean(double == 0) < 0.3  # behind units that are off


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
@pytest.mark.parametrize(("name", "shape"), [("cnn", (28, 28, 1)), ("lstm", (6,)), ("resnet18", (8, 8, 3))])
@pytest.mark.parametrize("mapped", ["one after another", "together"])
def test_every_model_trains_in_every_precision(name, shape, precision, mapped):
    """Dropout, batch norm, crops and flips included."""
    is_image = len(shape) == 3
    inputs = np.zeros((4, *shape), np.uint8 if is_image else np.int32)
    labels = np.zeros(4 if is_image else (4, *shape), np.int32)
    examples = data.Examples(inputs, labels)
    norm = {"mean": (0.0,) * shape[-1], "std": (1.0,) * shape[-1]} if is_image else {"mean": (), "std": ()}
    dataset = data.Dataset("some", 10, examples, examples, crop="reflect" if is_image else None, **norm)
    model = models.create(name, num_classes=10, input_shape=shape)
    local = LocalTraining(model, dataset, epochs=1, batch_size=2, decay_every=1, precision=precision)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    sgd = SGD(0.1, 0.9, 1.0, None)

    def one(variables, train, indices, size, key):
        return local(variables, sgd, train, jnp.int32(1), indices=indices, size=size, key=key)

    def many(variables, train, indices, sizes, keys):
        if mapped == "together":
            return jax.vmap(lambda *own: one(variables, train, *own))(indices, sizes, keys)
        return ops.map_rows(
            lambda indices, size, key, variables, train: one(variables, train, indices, size, key),
            *(indices, sizes, keys),
            shared=(variables, train),
        )

    clients = (np.zeros((3, 4), np.int32), np.full(3, 4, np.int32), jax.random.split(KEY, 3))
    updates, losses = jax.jit(many).lower(variables, examples, *clients).out_info
    assert {x.dtype for x in (*jax.tree.leaves(updates), losses)} == {jnp.dtype("float32")}
