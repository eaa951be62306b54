"""Every law of attacks catches an attack that breaks it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import attacks, ops
from lasa_jax.attacks import Attack, changed_row, honest_examples, stateless
from lasa_jax.testing import ATTACK_LAWS
from lasa_jax.testing import attacks as laws
from tests.testing.test_rules import alone, drawn_outside, plain


def flipped(factor, which=lambda malicious, present: malicious & present, *, init=stateless, carry=lambda state: state):
    """An attack that is right but for what is given: who sends the own update times `factor(updates, which, present)`."""

    def craft(updates, state, malicious, *, key, present=None, aggregate=None):
        _, present = attacks.checked(updates, malicious, present)
        chosen = which(malicious, present)
        times = factor(updates, chosen, present)

        def row(x):
            column = chosen.reshape((-1,) + (1,) * (x.ndim - 1))
            return jnp.where(column, times * x, x)

        return jax.tree.map(row, updates), carry(state)

    return Attack(init, honest_examples, craft)


def by(number):
    return lambda updates, chosen, present: number


def total(updates, chosen, present):
    """Of the whole stack, the absent rows too."""
    return sum(jnp.sum(x) for x in updates.values())


def draws_one_row(updates, state, malicious, *, key, present=None, aggregate=None):
    def row(old):
        return jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(0), x.shape), old)

    return ops.replace_rows(row, updates, malicious), state


def branches(updates, state, malicious, *, key, present=None, aggregate=None):
    if malicious.any():
        updates = jax.tree.map(jnp.negative, updates)
    return updates, state


def next_class(inputs, labels, **_):
    return inputs, labels + 1


def float_labels(inputs, labels, **_):
    return inputs, labels * 1.0


def float_images(inputs, labels, **_):
    return inputs / 255.0, labels


def counts_all(inputs, labels):
    return inputs, jnp.zeros_like(labels), labels >= 0


def absent_too(malicious, present):
    return malicious


def every_second(malicious, present):
    return jnp.arange(len(malicious)) % 2 == 0


FLIP = flipped(by(-1.0))
CAUGHT = [
    (
        laws.refuses_what_is_no_stack,
        Attack(stateless, honest_examples, lambda updates, state, malicious, **_: (updates, state)),
        "no leaves was taken, allowed is InputError",
    ),
    (laws.only_malicious_rows_change, flipped(by(-1.0), every_second), "benign rows, none of 16 malicious"),
    (
        laws.only_malicious_rows_change,
        Attack(stateless, honest_examples, branches),
        "asks for the value of a traced array",
    ),
    (
        laws.only_malicious_rows_change,
        Attack(stateless, honest_examples, lambda updates, state, malicious, **_: (updates["bias"], state)),
        "what is sent: ",
    ),
    (laws.is_a_function_of_its_key, flipped(lambda *_: drawn_outside(None)), "traced twice, craft is two programs"),
    (
        laws.is_a_function_of_its_key,
        flipped(lambda u, chosen, p: np.random.default_rng().random((16, 1), np.float32)[0]),
        "traced twice, craft has other numbers",
    ),
    (laws.vmap_equals_a_loop, flipped(lambda u, *_: 1 + alone(total(u, None, None))), "run 1 of three"),
    (laws.devices_do_not_matter, flipped(lambda *_: -1.0 * ops.num_shards()), "several devices, against one"),
    (laws.absent_rows_are_neither_read_nor_written, flipped(by(-1.0), absent_too), "absent rows holding 3e"),
    (laws.absent_rows_are_neither_read_nor_written, flipped(total), "absent ones holding nan, against 0"),
    (laws.padding_changes_nothing, flipped(lambda u, chosen, p: 1.0 * len(chosen)), r"\[13, 14, 15\] absent"),
    (functools.partial(laws.padding_changes_nothing, absent=(0, 4, 15)), attacks.noise(), r"\[0, 4, 15\] absent"),
    (
        laws.state_keeps_its_shape,
        flipped(by(-1.0), init=lambda _: jnp.zeros(1), carry=lambda state: jnp.append(state, 0)),
        "the state after round 0",
    ),
    (laws.examples_stay_examples, attacks.none()._replace(poison=next_class), "allowed are 0 to 9"),
    (laws.examples_stay_examples, attacks.none()._replace(poison=float_labels), "poisoned labels: .*float32"),
    (laws.examples_stay_examples, attacks.none()._replace(poison=float_images), "poisoned images: .*float32"),
    (laws.examples_stay_examples, attacks.none()._replace(trigger=counts_all), "counts as a success of the trigger"),
    (laws.keeps_dtypes, flipped(lambda *_: -jnp.ones(())), "what is sent, of bfloat16"),
    (
        laws.keeps_dtypes,
        flipped(by(-1.0), init=lambda params: params, carry=lambda state: jax.tree.map(jnp.float32, state)),
        "the state, of bfloat16",
    ),
    (laws.sends_finite_rows, attacks.nan(), "non-finite"),
    (laws.sends_other_rows, attacks.none(), "one of 16 malicious: they send the honest"),
    (laws.sends_other_rows, attacks.lie(z=0.0, knowledge="colluders"), "one of 16 malicious: they send the honest"),
    (
        laws.draws_for_each_client,
        Attack(stateless, honest_examples, draws_one_row),
        "of the 8 draws of 'bias' are equal",
    ),
    (laws.draws_for_each_client, changed_row(lambda row, _: row), "of the 8 draws of 'bias' are equal"),
    (
        functools.partial(laws.traces_once, numbers={"factor": [1.0, 2.0]}),
        lambda factor: flipped(by(float(factor))),
        "cannot be traced",
    ),
    (functools.partial(laws.traces_once, numbers={"z": [1, 2.0]}), lambda z: flipped(by(z)), "traced 2 times"),
]


@pytest.mark.parametrize(("law", "broken", "message"), CAUGHT, ids=[plain(law).__name__ for law, *_ in CAUGHT])
def test_catches(law, broken, message):
    with pytest.raises(AssertionError, match=message):
        law(broken)


def test_every_law_catches_something():
    promised = {laws.sends_finite_rows, laws.sends_other_rows, laws.draws_for_each_client, laws.traces_once}
    assert {plain(law) for law, *_ in CAUGHT} == {*ATTACK_LAWS, *promised}


@pytest.mark.parametrize("law", ATTACK_LAWS)
def test_an_attack_of_a_users_own_obeys(law):
    """The base of the broken ones is right, so that a law catches what is broken in them."""
    law(FLIP)
