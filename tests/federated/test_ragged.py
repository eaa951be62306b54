"""Clients of many sizes, sequences with padding, and batch statistics outside the rule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks, build, experiment, models, ops
from lasa_jax import config as configs
from lasa_jax.data import Dataset, Examples, FederatedDataset, shakespeare
from lasa_jax.federated import LocalTraining, make_mesh, one_round
from lasa_jax.federated.client import SGD
from lasa_jax.federated.evaluation import evaluate
from lasa_jax.federated.memory import _GROUPS, most_at_once
from lasa_jax.federated.round import _step_waste, draw_clients, round_keys, train_clients
from lasa_jax.models import Model

KEY = jax.random.key(3)


@pytest.fixture
def accelerator(monkeypatch):
    """All rows at once, as on an accelerator."""
    for module in (ops.rows, ops.columns):
        monkeypatch.setattr(module, "one_at_a_time", lambda: False)
    monkeypatch.setattr(ops, "one_at_a_time", lambda: False)


@functools.cache
def setup(**settings):
    """Digits, unequally divided, one round's arguments; not under a mesh."""
    config = configs.default()
    config.update_from_flattened_dict(
        {"attack.name": "lie", "client.batch_size": 8, "partition.name": "quantity_skew", **settings}
    )
    config.partition.min_samples = 2
    config = configs.resolve(config)
    _, dataset, shares, program, point = build.prepare(config)
    fed = FederatedDataset(*jax.tree.map(jnp.asarray, (dataset.train, dataset.test, shares)))
    return program, program.init(point), point, fed


def train(program, state, point, fed):
    """Updates, the clients and the step waste of local training in round 1."""

    @jax.jit
    def trained(state, point, fed):
        keys = round_keys(point.key, 1)
        attack, clients = program.make_attack(point.attack), draw_clients(program, point, keys.draw)
        found = train_clients(program, attack, state.variables, point, fed, clients, jnp.int32(1), key=keys.train)
        return found.updates, clients, found.step_waste

    return trained(state, point, fed)


class TestRaggedClients:
    def test_on_a_cpu_a_client_takes_its_own_steps(self):
        program, state, point, fed = setup()
        assert program.ragged
        assert len(np.unique(fed.partition.sizes)) > 10
        _, metrics = jax.jit(functools.partial(one_round, program))(state, point, fed, 1)
        assert metrics.step_waste == 1

    @pytest.mark.usefixtures("accelerator")
    def test_groups_of_like_size_give_the_same_updates(self):
        program, state, point, fed = setup()
        assert most_at_once(program) == -(-30 // _GROUPS)
        grouped, _, waste = train(program, state, point, fed)
        alone, _, none = train(dataclasses.replace(program, client_chunk=1), state, point, fed)
        *_, much = train(dataclasses.replace(program, client_chunk=30), state, point, fed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), grouped, alone)
        assert none == 1
        assert 1 < waste < 0.6 * much

    def test_equal_clients_train_together(self):
        program, *_ = setup(**{"partition.name": "iid"})
        assert not program.ragged
        assert most_at_once(program) == 1
        with ops.compiling_for("gpu"):
            assert most_at_once(program) == program.clients_per_round


def femnist_sizes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Like the writers of FEMNIST: 3 to 525 samples, most with 100 to 350 (LEAF: mean 227, standard deviation 89)."""
    return np.clip(rng.normal(227, 89, count), 3, 525).astype(int)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("devices", [1, 8])
def test_waste_on_sizes_like_those_of_femnist(devices):
    """Under 1.3 with groups of like size, where all clients at once would compute about twice what is needed."""
    with jax.set_mesh(make_mesh(jax.devices()[:devices])):
        for seed in range(20):
            sizes = np.pad(femnist_sizes(np.random.default_rng(seed), 100), (0, -100 % devices))
            steps = jnp.asarray(-(-sizes // 64))
            assert _step_waste(steps, -(-100 // (_GROUPS * devices))) < 1.2
            assert _step_waste(steps, None) > 1.5 - 0.2 * (devices > 1)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("at_once", [1, 3, 5, 16, None])
def test_map_rows_by_cost_keeps_the_order(devices, at_once):
    cost = np.random.default_rng(0).permutation(16)

    def slow(x, steps):
        return jax.lax.fori_loop(0, steps, lambda i, y: y + 1, x)

    with jax.set_mesh(make_mesh(jax.devices()[:devices])):
        result = jax.jit(lambda x, c: ops.map_rows(slow, x, c, at_once=at_once, cost=c))(np.arange(16) * 100, cost)
    np.testing.assert_array_equal(result, np.arange(16) * 100 + cost)


def test_label_flip_reaches_the_malicious_clients_training():
    program, state, point, fed = setup()
    flipped, plain = (
        dataclasses.replace(program, make_attack=lambda _, attack=attack: attack())
        for attack in (attacks.label_flip, attacks.none)
    )
    honest, (_, malicious, _), _ = train(plain, state, point, fed)
    poisoned, *_ = train(flipped, state, point, fed)
    assert 0 < malicious.sum() < 30
    for x, y in zip(jax.tree.leaves(honest), jax.tree.leaves(poisoned), strict=True):
        np.testing.assert_array_equal(x[~malicious], y[~malicious])
    last = "dense2"
    assert not np.allclose(honest["params"][last]["bias"][malicious], poisoned["params"][last]["bias"][malicious])


def sequences(length: int, padding: int, seed: int = 0) -> Examples:
    """Sequences of tokens with the same content, padded at the end."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(1, 90, (6, length + 1))
    inputs, labels = (np.pad(x, ((0, 0), (0, padding))) for x in (whole[:, :-1], whole[:, 1:]))
    return Examples(inputs.astype(np.uint8), labels.astype(np.int32))


class TestSequences:
    """The character model, whose every position has a label."""

    def local(self, examples: Examples, counts_padding: bool = False) -> LocalTraining:
        padding = {"padding_label": shakespeare.PADDING, "counts_padding": counts_padding}
        dataset = Dataset("text", 90, examples, examples, mean=(), std=(), **padding)
        model = models.create("lstm", num_classes=90, input_shape=examples.inputs.shape[1:])
        return LocalTraining(model, dataset, epochs=1, batch_size=3, decay_every=1)

    def train(self, examples: Examples, indices=range(4), size: int = 4, counts_padding: bool = False):
        local = self.local(examples, counts_padding)
        variables = local.model.init(jax.random.key(0))
        return jax.jit(
            lambda v, train, indices: local(
                *(v, SGD(1.0, 0.5, 1.0, None), train, jnp.int32(1)),
                indices=indices,
                size=size,
                key=KEY,
            )
        )(variables, jax.tree.map(jnp.asarray, examples), jnp.asarray(list(indices), jnp.int32))

    def test_what_padding_holds_changes_no_bit(self):
        examples = sequences(7, 5)
        other = Examples(examples.inputs.copy(), examples.labels)
        other.inputs[:, 8:] = 33  # behind the last label that counts
        first, loss = self.train(examples)
        second, other_loss = self.train(other)
        jax.tree.map(np.testing.assert_array_equal, first, second)
        assert loss == other_loss

    def test_how_much_padding_there_is_hardly_matters(self):
        first, loss = self.train(sequences(7, 2))
        second, other_loss = self.train(sequences(7, 9))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first, second)
        np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
        third, _ = self.train(sequences(7, 2), indices=[0, 1, 2, 3, 0, 0, 0, 0, 0])  # of the client's row of examples
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), first, third)

    def test_padding_that_counts_is_trained_on(self):
        """One example, one step: the loss is the mean over all positions, of the model that the server sent."""
        examples = sequences(7, 3)
        local = self.local(examples)
        logits = np.asarray(local.model.apply(local.model.init(jax.random.key(0)), examples.inputs[2:3])[0], np.float64)
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(chances, examples.labels[2:3, :, None], axis=2)[0, :, 0]
        updates = {}
        for counts, wanted in ((True, losses.mean()), (False, losses[:7].mean())):
            updates[counts], loss = self.train(examples, indices=[2], size=1, counts_padding=counts)
            np.testing.assert_allclose(loss, wanted, rtol=1e-5)
        biases = [np.asarray(update["params"]["dense"]["bias"])[0] for update in updates.values()]
        assert biases[0] > 0 > biases[1]  # the token of padding becomes likelier only where it is trained on

    @pytest.mark.parametrize("counts_padding", [False, True])
    def test_loss_and_accuracy_are_over_the_labels_that_count(self, counts_padding):
        examples = sequences(5, 4)
        examples.labels[2, 1:] = 0  # one sequence with a single label
        local = self.local(examples, counts_padding)
        variables = local.model.init(jax.random.key(1))
        program, *_ = setup()
        program = dataclasses.replace(program, local_training=local)
        logits = np.asarray(local.model.apply(variables, examples.inputs)[0], np.float64)
        counted = examples.labels != 0
        assert counted.sum() == 5 * 5 + 1
        chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(chances, examples.labels[..., None], axis=2)[..., 0]
        right = logits.argmax(-1) == examples.labels
        state = program.init(setup()[2])._replace(variables=variables)
        found = jax.jit(lambda s: evaluate(program, s, jax.tree.map(jnp.asarray, examples), 4))(state)
        for measures, where in ((found.with_padding, ...), (found.without_padding, counted)):
            np.testing.assert_allclose(measures.loss, losses[where].mean(), rtol=1e-5)
            np.testing.assert_allclose(measures.accuracy, right[where].mean(), rtol=1e-6)
        assert found.reported == (found.with_padding if counts_padding else found.without_padding)


def test_fidelity_decides_which_form_is_trained_on_and_reported():
    """Both are measured; a run of another dataset has none."""
    examples = sequences(4, 3)
    dataset = Dataset(
        "shakespeare", 90, examples, examples, (), (), client_ids=np.arange(6) // 2, padding_label=shakespeare.PADDING
    )
    few = {"rounds": 1, "num_clients": 3, "clients_per_round": 2, "client.epochs": 1, "client.batch_size": 2}
    few |= {"partition.name": "natural", "partition.min_samples": 1, "model": "lstm", "aggregator.name": "fedavg"}
    ran = {fidelity: experiment.simulate(dataset, fidelity=fidelity, **few) for fidelity in ("paper", "official")}
    losses = {}
    for fidelity, own in (("paper", "without_padding"), ("official", "with_padding")):
        history = ran[fidelity]
        assert (history.test_loss, history.test_accuracy) == getattr(history, own)
        assert history.with_padding.loss != history.without_padding.loss
        losses[fidelity] = float(history.with_padding.loss[0])
    assert losses["official"] < losses["paper"]  # it was trained on


class TestBatchStatistics:
    """A model whose statistics move a thousand times as much as its one parameter."""

    def run(self, batch_stats: str, rule: str, attack: str = "sign_flip", clip_norm: float | None = None):
        program, _, point, fed = setup()

        def apply(variables, inputs, *, train=False, key=None, mask=None):
            score = jnp.mean(inputs, axis=(1, 2, 3)) * variables["params"]["p"]
            logits = jnp.pad(score[:, None], ((0, 0), (0, 9)))
            moved = {"mean": variables["batch_stats"]["mean"] + 1000 * jnp.mean(inputs)}
            return logits, {**variables, "batch_stats": moved} if train else variables

        model = Model(lambda key: {"params": {"p": jnp.float32(1)}, "batch_stats": {"mean": jnp.zeros(2)}}, apply)
        separate = batch_stats == "separate"
        local = dataclasses.replace(program.local_training, model=model, clips_parameters_only=separate)
        made = attacks.create(attack), aggregators.create(rule)
        if separate:
            made = attacks.parameters_only(made[0]), aggregators.parameters_only(made[1])
        program = dataclasses.replace(
            program, local_training=local, make_attack=lambda _: made[0], make_aggregator=lambda _: made[1]
        )
        point = point._replace(attack={}, aggregator={}, sgd=point.sgd._replace(clip_norm=clip_norm))
        state = program.init(point)
        updates, (_, malicious, _), _ = train(program, state, point, fed)
        after, metrics = jax.jit(functools.partial(one_round, program))(state, point, fed, 1)
        moved = jax.tree.map(jnp.subtract, after.variables, state.variables)
        return jax.device_get((updates, malicious, moved, metrics))

    def test_aggregate_leaves_them_in_the_update(self):
        updates, malicious, moved, metrics = self.run("aggregate", "fedavg")
        signs = np.where(malicious, -1, 1)
        np.testing.assert_allclose(
            moved["batch_stats"]["mean"], (signs[:, None] * updates["batch_stats"]["mean"]).mean(0), 1e-4
        )
        assert metrics.update_norm > 100
        assert len(metrics.malicious_filtered) == 2

    def test_separate_takes_them_out_of_norms_and_distances(self):
        """Krum chooses by the parameter alone; the statistics follow its choice."""
        updates, malicious, moved, metrics = self.run("separate", "krum")
        signs = np.where(malicious, -1, 1)
        p = signs * updates["params"]["p"]
        (chosen,) = np.flatnonzero(np.isclose(p, moved["params"]["p"], rtol=1e-6))
        np.testing.assert_allclose(moved["batch_stats"]["mean"], updates["batch_stats"]["mean"][chosen], 1e-5)
        assert metrics.malicious_filtered.shape == (2,)
        assert metrics.malicious_filtered.tolist() == [malicious.sum() - malicious[chosen]] * 2

    def test_separate_leaves_them_to_neither_attack_nor_clip(self):
        updates, _, moved, _ = self.run("separate", "fedavg", attack="nan")
        np.testing.assert_allclose(moved["batch_stats"]["mean"], updates["batch_stats"]["mean"].mean(0), 1e-5)
        assert np.isnan(moved["params"]["p"])
        free, *_ = self.run("separate", "fedavg")
        clipped, *_ = self.run("separate", "fedavg", clip_norm=1e-6)
        np.testing.assert_array_equal(clipped["batch_stats"]["mean"], free["batch_stats"]["mean"])
        np.testing.assert_allclose(np.abs(clipped["params"]["p"]), 1e-6, rtol=1e-3)
        whole, *_ = self.run("aggregate", "fedavg", clip_norm=1e-6)
        assert np.abs(whole["batch_stats"]["mean"]).max() < 1e-6


def test_the_limit_of_the_rule_is_reported():
    program, state, point, fed = setup()
    bulyan = dataclasses.replace(program, make_aggregator=lambda _: aggregators.bulyan())
    point = point._replace(aggregator={}, assumed_malicious=jnp.int32(20))
    _, metrics = jax.jit(functools.partial(one_round, bulyan))(state, point, fed, 1)
    assert metrics.assumed_malicious == (30 - 3) // 4
    fedavg = dataclasses.replace(program, make_aggregator=lambda _: aggregators.fedavg())
    assert jax.jit(functools.partial(one_round, fedavg))(state, point, fed, 1)[1].assumed_malicious == -1
