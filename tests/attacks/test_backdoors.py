"""Backdoors: what is stamped and relabelled, how clients are held back, and how often the trigger works in the end."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lasa_jax
from lasa_jax import aggregators, attacks, build, data
from lasa_jax import config as configs
from lasa_jax.aggregators import Context
from lasa_jax.data import FederatedDataset
from lasa_jax.errors import InputError
from lasa_jax.federated import evaluation, make_mesh, one_round
from lasa_jax.federated.round import draw_clients, round_keys, train_clients

KEY = jax.random.key(5)
IMAGES = jnp.asarray(np.random.default_rng(0).integers(0, 200, (400, 12, 10, 3)), jnp.uint8)
LABELS = jnp.arange(400, dtype=jnp.int32) % 7


def poisoned(attack, images=IMAGES, labels=LABELS, *, client=0, key=KEY):
    found = jax.jit(lambda x, y: attack.poison(x, y, num_classes=7, key=key, client=jnp.int32(client)))(images, labels)
    return jax.tree.map(np.asarray, found)


def stamps(images, value) -> set[tuple[int, int]]:
    """Rows and columns at which every image has the value in all channels."""
    return set(map(tuple, np.argwhere((np.asarray(images) == value).all(axis=(0, 3))).tolist()))


def test_badnets_stamps_the_corner_and_relabels_a_share():
    images, labels = poisoned(attacks.badnets(target=4, share=0.3, size=2, margin=1))
    changed = (images != IMAGES).any(axis=(1, 2, 3))
    assert 0.2 < changed.mean() < 0.4  # binomial, standard deviation 0.023
    assert (labels[changed] == 4).all()
    np.testing.assert_array_equal(labels[~changed], LABELS[~changed])
    assert stamps(images[changed], 255) == {(9, 7), (9, 8), (10, 7), (10, 8)}
    elsewhere = np.ones((12, 10), bool)
    elsewhere[9:11, 7:9] = False
    np.testing.assert_array_equal(images[:, elsewhere], IMAGES[:, elsewhere])
    again = poisoned(attacks.badnets(target=4, share=0.3, size=2, margin=1), key=jax.random.key(6))[0]
    assert ((again != IMAGES).any(axis=(1, 2, 3)) != changed).any()


@pytest.mark.parametrize(("share", "those"), [(0.0, 0), (1.0, 400)])
def test_nobody_or_everybody_is_poisoned(share, those):
    assert (poisoned(attacks.badnets(target=6, share=share))[0] != IMAGES).any(axis=(1, 2, 3)).sum() == those


def test_dba_shares_its_bars_out():
    attack = attacks.dba(target=1, share=1.0, size=4, gap=2, value=201)
    lie = {0: (0, 0), 1: (0, 6), 2: (3, 0), 3: (3, 6)}  # row (p // 2) (1 + gap), column (p mod 2) (size + gap)
    whole = set()
    for client in range(9):
        row, column = lie[client % 4]
        bar = {(row, column + at) for at in range(4)}
        assert stamps(poisoned(attack, client=client)[0], 201) == bar
        whole |= bar
    assert stamps(attack.trigger(IMAGES, LABELS)[0], 201) == whole


def test_a_trigger_counts_no_image_of_its_target():
    attack = attacks.badnets(target=2, size=3)
    images, wanted, counted = attack.trigger(IMAGES, LABELS)
    assert (wanted == 2).all()
    np.testing.assert_array_equal(counted, np.asarray(LABELS) != 2)
    assert stamps(images, 255) == {(row, column) for row in (9, 10, 11) for column in (7, 8, 9)}
    assert images.dtype == jnp.uint8


def test_numbers_are_stamped_with_the_value_that_is_set():
    numbers = IMAGES.astype(jnp.float32) / 100
    images, _ = poisoned(attacks.badnets(share=1.0, size=1, value=-3.5), numbers)
    assert stamps(images, -3.5) == {(11, 9)}
    assert images.dtype == np.float32


@pytest.mark.parametrize(
    ("pixels", "value"),
    [([0, 0, 0, 16], 16.0), ([255, 255, 0, 255], 0.0), ([-1.5, 0.5, 0.5, 1.0], -1.5), ([3, 3], 3.0)],
)
def test_ink_on_paper_of_any_colour(pixels, value):
    assert attacks.trigger_value(np.array(pixels)) == value


TOKENS = (jnp.zeros((4, 80), jnp.uint8), jnp.zeros((4, 80), jnp.int32))
WRONG = [
    (attacks.badnets(), TOKENS, "inputs are uint8[80] with several labels each, allowed are images"),
    (attacks.badnets(), (jnp.zeros((4, 8), jnp.float32), LABELS[:4]), "inputs are float32[8] with a label each"),
    (attacks.dba(), (jnp.zeros((4, 8, 8, 1), jnp.int32), LABELS[:4]), "inputs are int32[8, 8, 1] with a label each"),
    (attacks.pgd(), (jnp.zeros((4, 8, 8, 1)), LABELS[:4]), "value = None: allowed for images of float32 is a number"),
    (attacks.badnets(value=256), (IMAGES, LABELS), "value = 256: allowed is 0 <= value <= 255"),
    (attacks.badnets(size=10, margin=1), (IMAGES, LABELS), "size = 10 and margin = 1: the trigger has 11 x 11 pixels"),
    (
        attacks.dba(size=5, gap=1),
        (IMAGES, LABELS),
        "size = 5 and gap = 1: the trigger has 3 x 11 pixels, allowed are 12 x 10",
    ),
]


@pytest.mark.parametrize(("attack", "batch", "line"), WRONG)
def test_what_is_no_image_or_too_small_is_refused(attack, batch, line):
    for ask in (attack.trigger, functools.partial(attack.poison, num_classes=7, key=KEY, client=0)):
        with pytest.raises(InputError, match=re.escape(line)):
            ask(*batch)


def test_the_target_is_a_class():
    with pytest.raises(InputError, match="target = 7: allowed is 0 <= target <= 6"):
        attacks.badnets(target=7).poison(IMAGES, LABELS, num_classes=7, key=KEY, client=0)
    with pytest.raises(
        InputError, match=re.escape("config.attack.dba.target = 10: allowed is config.attack.dba.target <= 9")
    ):
        prepared("dba", **{"attack.dba.target": 10})


def test_a_run_refuses_what_does_not_fit_before_it_compiles():
    with pytest.raises(
        InputError, match=re.escape("config.attack.name = 'badnets': size = 9 and margin = 0: the trigger")
    ):
        prepared("badnets", **{"attack.badnets.size": 9})
    table = data.Examples(np.zeros((40, 5), np.float32), np.arange(40, dtype=np.int32) % 2)
    rows = data.Dataset("rows", 2, table, table, (), ())
    few = {"model": "mlp", "num_clients": 4, "clients_per_round": 2}
    with pytest.raises(
        InputError, match=re.escape("config.attack.name = 'pgd': inputs are float32[5] with a label each")
    ):
        lasa_jax.simulate(rows, **{"attack.name": "pgd", **few})
    with pytest.raises(InputError, match=re.escape("attack: inputs are float32[5] with a label each")):
        lasa_jax.simulate(rows, attack=attacks.badnets(value=1), **few)


# How neurotoxin and pgd hold their clients back.


def update_of(seed: int):
    draw = np.random.default_rng(seed).standard_normal
    return {"w": jnp.asarray(draw((20, 10)), jnp.float32), "b": jnp.asarray(draw(50), jnp.float32)}


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize("free_share", [0.0, 0.5, 0.95, 1.0])
def test_neurotoxin_frees_what_the_server_moved_least(free_share):
    attack = attacks.neurotoxin(free_share=free_share)
    last, start, params = update_of(1), update_of(2), update_of(3)
    free = attack.begin((), Context(last_update=last))
    held = flat(attack.constrain(params, start, free))
    k = int(250 * (1 - free_share))
    frozen = np.argsort(-np.abs(flat(last)))[:k]
    assert flat(free).sum() == 250 - k
    np.testing.assert_array_equal(held[frozen], flat(start)[frozen])
    rest = np.setdiff1d(np.arange(250), frozen)
    np.testing.assert_array_equal(held[rest], flat(params)[rest])


def test_neurotoxin_begins_free_and_spares_what_a_sparse_server_left_alone():
    attack = attacks.neurotoxin(free_share=0.5)
    zeros = jax.tree.map(jnp.zeros_like, update_of(1))
    assert flat(attack.begin((), Context(last_update=zeros))).all()
    sparse = {**zeros, "b": zeros["b"].at[:7].set(1.0)}  # fewer than the half that is frozen
    assert flat(attack.begin((), Context(last_update=sparse))).sum() == 243
    with pytest.raises(InputError, match="neurotoxin: context without what it needs"):
        attack.begin((), Context())


@pytest.mark.parametrize("radius", [0.5, 1e3])
def test_pgd_projects_to_a_ball_around_the_global_model(radius):
    start, params = update_of(2), update_of(3)
    held = attacks.pgd(radius=radius).constrain(params, start, ())
    moved = flat(params) - flat(start)
    if radius > np.linalg.norm(moved):
        np.testing.assert_array_equal(flat(held), flat(params))
    else:
        wanted = flat(start) + moved * radius / np.linalg.norm(moved)
        np.testing.assert_allclose(flat(held), wanted, atol=1e-6)
    at_rest = attacks.pgd(radius=radius).constrain(start, start, ())
    np.testing.assert_array_equal(flat(at_rest), flat(start))


def test_the_boost_is_applied_to_the_own_update():
    updates = {"w": np.arange(12, dtype=np.float32).reshape(4, 3)}
    sent = attacks.badnets(boost=10).craft(updates, (), np.arange(4) < 2, key=KEY)[0]["w"]
    np.testing.assert_array_equal(sent, updates["w"] * np.array([10, 10, 1, 1], np.float32)[:, None])


# In whole rounds of the digits.


@functools.cache
def prepared(attack: str, **settings):
    small = {"num_clients": 12, "clients_per_round": 8, "attack_ratio": 0.5, "client.epochs": 1, "rounds": 2}
    return build.prepare(
        configs.resolve(configs.updated(configs.default(), {**small, "attack.name": attack, **settings}))
    )


def trained(attack: str, last_update=None, **settings):
    """The updates of a first round, and who is malicious."""
    run = prepared(attack, **settings)
    fed = jax.tree.map(jnp.asarray, FederatedDataset(run.dataset.train, run.dataset.test, run.shares))
    state, keys = run.program.init(run.point), round_keys(run.point.key, jnp.int32(1))
    with jax.set_mesh(make_mesh(jax.devices()[:1])):
        clients = draw_clients(run.program, run.point, keys.draw)
        made = run.program.make_attack(run.point.attack)
        begun = made.begin(state.attack, Context(last_update=last_update))
        args = (run.program, begun, state.variables, run.point, fed, clients, jnp.int32(1))
        updates = jax.jit(lambda: train_clients(*args, key=keys.train))().updates
    return jax.device_get(updates), np.asarray(clients.malicious)


def norms(updates) -> np.ndarray:
    return np.sqrt(sum((x.reshape(len(x), -1) ** 2).sum(1) for x in jax.tree.leaves(updates)))


def test_clients_of_pgd_end_within_the_radius_and_only_they():
    updates, malicious = trained("pgd", **{"attack.pgd.radius": 0.05})
    assert 0 < malicious.sum() < len(malicious)
    np.testing.assert_allclose(norms(updates)[malicious], 0.05, rtol=1e-4)
    assert (norms(updates)[~malicious] > 0.1).all()


def test_clients_of_neurotoxin_move_only_what_is_free():
    variables = jax.eval_shape(prepared("neurotoxin").program.init, prepared("neurotoxin").point).variables
    last = jax.tree.map(lambda x: jnp.zeros(x.shape).at[0].set(1.0), variables)
    updates, malicious = trained("neurotoxin", last, **{"attack.neurotoxin.free_share": 0.0})
    for update, moved in zip(jax.tree.leaves(updates), jax.tree.leaves(last), strict=True):
        frozen = np.asarray(moved) == 1
        assert not update[malicious][:, frozen].any()
        assert update[~malicious][:, frozen].any()
        assert frozen.all() or update[malicious][:, ~frozen].any()


def test_the_trigger_has_the_value_of_the_images():
    assert float(prepared("badnets").point.attack["value"]) == 16.0
    assert float(prepared("badnets", **{"attack.badnets.value": 3.0}).point.attack["value"]) == 3.0


@pytest.mark.parametrize("devices", [1, 8])
def test_success_is_the_share_of_stamped_images_of_other_classes(devices):
    """Against the predictions of the model on images that are stamped here."""
    run = prepared("badnets", **{"attack.badnets.target": 3})
    test = jax.tree.map(jnp.asarray, run.dataset.test)
    state = run.program.init(run.point)
    with jax.set_mesh(make_mesh(jax.devices()[:devices])):
        ask = jax.jit(
            lambda s: evaluation.evaluate(run.program, s, test, 100, attack=run.point.attack)
        )  # 4 batches, padded
        found, plain = ask(state), jax.jit(lambda s: evaluation.evaluate(run.program, s, test, 100))(state)
    stamped = np.array(run.dataset.test.inputs)
    stamped[:, -3:, -3:] = 16
    training = run.program.local_training
    logits = training.model.apply(state.variables, training.dataset.normalise(jnp.asarray(stamped)))[0]
    others = run.dataset.test.labels != 3
    np.testing.assert_allclose(found.success, (np.argmax(logits, -1) == 3)[others].mean(), rtol=1e-6)
    assert plain.success is None
    np.testing.assert_array_equal(found.reported.accuracy, plain.reported.accuracy)
    broken = state._replace(variables=jax.tree.map(lambda x: x * jnp.nan, state.variables))
    with jax.set_mesh(make_mesh(jax.devices()[:devices])):
        assert np.isnan(ask(broken).success)


def test_a_backdoor_gets_into_the_mean_and_not_past_the_median():
    short = {"rounds": 12, "num_clients": 40, "clients_per_round": 20, "participation": "fixed", "client.epochs": 2}
    attack = attacks.badnets(target=7, share=0.5, value=16)
    mean, median = (lasa_jax.simulate("digits", aggregator=rule, attack=attack, **short) for rule in BOTH)
    assert mean.attack_success.shape == (12,)
    assert mean.attack_success[-1] > 0.8
    assert median.attack_success[-1] < 0.5 * mean.attack_success[-1]
    assert (mean.malicious.sum(1) == 5).all()
    assert lasa_jax.simulate("digits", rounds=1, **{"client.epochs": 1}).attack_success is None


BOTH = (aggregators.fedavg(), aggregators.median())


@pytest.mark.parametrize("name", attacks.BACKDOORS)
def test_a_round_keeps_the_state(name):
    run = prepared(name)
    fed = jax.tree.map(jnp.asarray, FederatedDataset(run.dataset.train, run.dataset.test, run.shares))
    state = jax.eval_shape(run.program.init, run.point)
    after, _ = jax.eval_shape(lambda s: one_round(run.program, s, run.point, fed, jnp.int32(1)), state)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


# A fixed number of malicious clients in each round.


def draws(run, count: int, devices: int = 1):
    keys = jax.vmap(functools.partial(jax.random.fold_in, KEY))(jnp.arange(count))
    with jax.set_mesh(make_mesh(jax.devices()[:devices])):
        return jax.device_get(
            jax.jit(lambda: jax.lax.map(lambda key: draw_clients(run.program, run.point, key), keys))()
        )


@pytest.mark.parametrize("devices", [1, 8])
def test_a_fixed_number_takes_part(devices):
    """5 of 20 are malicious, 3 of 13 in each round."""
    few = {"num_clients": 20, "clients_per_round": 13, "attack_ratio": 0.25, "participation": "fixed"}
    found = draws(prepared("lie", **few), 400, devices)
    rows = found.present.sum(1)
    assert (rows == 13).all()
    assert (found.malicious.sum(1) == 3).all()
    ids = found.ids[:, :13]
    assert all(len(set(row)) == 13 for row in ids.tolist())
    malicious = np.asarray(prepared("lie", **few).point.malicious)
    counts = np.bincount(ids.ravel(), minlength=20)
    np.testing.assert_allclose(counts[malicious], 400 * 3 / 5, atol=45)  # binomial, standard deviation 10
    np.testing.assert_allclose(counts[~malicious], 400 * 10 / 15, atol=45)
    np.testing.assert_allclose(found.malicious[:, :13].sum(0), 400 * 3 / 13, atol=45)  # no row says anything
    np.testing.assert_array_equal(ids, draws(prepared("lie", **few), 400).ids[:, :13])


@pytest.mark.parametrize(
    ("attack", "ratio", "wanted"), [("lie", 0.0, 0), ("lie", 0.29, 5), ("lie", 1.0, 20), ("none", 0.5, 0)]
)
def test_how_many_take_part(attack, ratio, wanted):
    all_of_them = {"num_clients": 20, "clients_per_round": 20, "attack_ratio": ratio, "participation": "fixed"}
    run = prepared(attack, **all_of_them)
    assert int(run.point.participating) == wanted
    assert (draws(run, 3).malicious.sum(1) == wanted).all()


def test_who_is_drawn_is_as_ever_where_no_number_is_fixed():
    run = prepared("lie")
    assert run.point.participating == ()
    key = jax.random.key(9)
    ids = draw_clients(run.program, run.point, key).ids
    np.testing.assert_array_equal(
        ids, np.argsort(np.asarray(jax.random.bits(key, (12,), jnp.uint32)), kind="stable")[:8]
    )


def test_the_number_is_data_of_the_program():
    one, other = (prepared("lie", participation="fixed", attack_ratio=ratio) for ratio in (0.25, 0.5))
    assert configs.program_key(one.config) == configs.program_key(other.config)
    assert configs.program_key(one.config) != configs.program_key(prepared("lie").config)
    assert [int(run.point.participating) for run in (one, other)] == [2, 4]
    with pytest.raises(InputError, match=r"config\.participation = 'some': allowed are drawn, fixed"):
        prepared("lie", participation="some")
