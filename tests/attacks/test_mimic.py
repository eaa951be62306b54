"""Mimic: which client it finds, what it learns and when it reads the stack for it; and a client that is named."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks
from lasa_jax.testing import NUM_CLIENTS as N
from lasa_jax.testing import honest
from lasa_jax.testing.attacks import SOME

KEY = jax.random.key(0)


def test_mimic_copies_the_same_client_in_any_order():
    """A direction of largest spread has no sign: the client may be at its lower end, and come anywhere."""
    rows = np.array([0, -1, -1.1, -0.9, 5, -4.4], np.float32)
    attack = attacks.mimic()
    step = jax.jit(lambda u, malicious: attack.craft(u, attack.init({"w": u["w"][0]}), malicious, key=KEY)[0])
    for order in ([0, 1, 2, 3, 4, 5], [0, 4, 1, 2, 3, 5], [5, 4, 3, 2, 1, 0], [1, 0, 5, 2, 4, 3]):
        for sign in (1, -1):
            updates, malicious = {"w": sign * rows[order][:, None]}, np.array(order) == 0
            assert step(updates, malicious)["w"][malicious] == sign * 5


def test_mimic_copies_from_the_other_end_of_a_direction_that_it_remembers():
    attack, malicious = attacks.mimic(), np.arange(6) == 0
    rows = np.array([0, -1, -1.1, -0.9, 5, -4.4], np.float32)[:, None]
    _, state = attack.craft({"w": rows}, attack.init({"w": rows[0]}), malicious, key=KEY)
    sent, _ = attack.craft({"w": -rows}, state, malicious, key=KEY)
    assert sent["w"][0] == -5


def test_mimic_weights_all_rounds_alike():
    attack = attacks.mimic()
    state = attack.init({"w": np.zeros(3, np.float32)})
    rounds = [np.random.default_rng(seed).standard_normal((N, 3)).astype(np.float32) for seed in range(3)]
    step = jax.jit(lambda u, state: attack.craft(u, state, SOME, key=KEY))
    for rows in rounds:
        _, state = step({"w": rows}, state)
    np.testing.assert_allclose(state.mean["w"], np.mean([rows[~SOME].mean(0) for rows in rounds], axis=0), atol=1e-6)


def test_mimic_learns_the_direction_of_largest_spread():
    """After some rounds the direction is the top right singular vector of the honest updates."""
    rng = np.random.default_rng(0)
    spread = np.array([5.0, 1.0, 1.0, 1.0])
    attack = attacks.mimic()
    state = attack.init({"w": np.zeros(4, np.float32)})
    step = jax.jit(lambda u, state: attack.craft(u, state, SOME, key=KEY))
    for _ in range(20):
        _, state = step({"w": (rng.standard_normal((N, 4)) * spread).astype(np.float32)}, state)
    direction = np.abs(state.direction["w"]) / np.linalg.norm(state.direction["w"])
    assert direction[0] > 0.98
    assert int(state.rounds) == 20


def test_runs_of_one_program_begin_each_for_itself():
    """A run that begins beside one that goes on: the branch of the first round is taken for both, and used by one."""
    attack = attacks.mimic()
    rows = jnp.stack([jnp.asarray(honest(seed)["kernel"]) for seed in range(2)])
    before = attack.init({"w": rows[0][0]})
    craft = functools.partial(attack.craft, malicious=SOME, key=KEY)
    _, later = craft({"w": rows[0]}, before)
    states = jax.tree.map(lambda *x: jnp.stack(x), later, before)
    sent, _ = jax.vmap(lambda u, state: craft(u, state))({"w": rows}, states)
    for index, state in enumerate((later, before)):
        alone, _ = craft({"w": rows[index]}, state)
        np.testing.assert_array_equal(sent["w"][index], alone["w"])


def test_the_stack_is_read_for_the_first_direction_in_a_branch():
    """Of a batch of runs too: one branch that all take together."""
    attack = attacks.mimic()
    rows = {"w": jnp.zeros((3, N, 5))}
    states = jax.vmap(lambda w: attack.init({"w": w[0]}))(rows["w"])
    traced = jax.make_jaxpr(jax.vmap(lambda u, state: attack.craft(u, state, SOME, key=KEY)))(rows, states)
    assert len(re.findall(r"\bcond\[", str(traced))) == 1


def sent_by_copies(client, ids: np.ndarray, malicious: np.ndarray = SOME) -> tuple[np.ndarray, np.ndarray]:
    """What everybody sends where the malicious copy that client, and would send honestly."""
    attack = attacks.mimic(client)
    rows = honest()["kernel"]
    state = attack.init({"w": rows[0]})
    context = aggregators.Context(ids=jnp.asarray(ids, jnp.int32))
    sent, _ = jax.jit(lambda u: attack.craft(u, state, malicious, key=KEY, context=context))({"w": rows})
    return np.asarray(sent["w"]), rows


def test_a_client_that_is_named_is_known_by_its_number_in_the_population():
    ids = np.random.default_rng(0).permutation(100)[:N]
    for place in np.flatnonzero(~SOME):
        sent, rows = sent_by_copies(ids[place], ids)
        np.testing.assert_array_equal(sent[~SOME], rows[~SOME])
        np.testing.assert_array_equal(sent[SOME], np.broadcast_to(rows[place], sent[SOME].shape))


def test_without_that_client_malicious_clients_send_what_is_honest():
    ids = np.arange(N)
    for client in (N, np.flatnonzero(SOME)[0]):  # not drawn; malicious itself
        sent, rows = sent_by_copies(int(client), ids)
        np.testing.assert_array_equal(sent, rows)


def test_what_is_said_without_ids():
    assert attacks.mimic(3).needs == {"ids"}
    assert not attacks.mimic().needs
    with pytest.raises(ValueError, match=r"mimic: context without what it needs, .*Context\(ids=\.\.\.\)"):
        attacks.mimic(3).craft(honest(), (), SOME, key=KEY)
    with pytest.raises(ValueError, match="client = -1: allowed is 0 <= client"):
        attacks.mimic(-1)
