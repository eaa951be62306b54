"""Every law of aggregation rules catches a rule that breaks it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, ops
from lasa_jax.aggregators import Aggregator, Assumed, Diagnostics, Rows, stateless
from lasa_jax.testing import RULE_LAWS, as_layers, flat_rows, promises, rules


def rule_of(result, weights=None, *, init=stateless, carry=lambda state, rows: state, info=None) -> Aggregator:
    """A rule that is right but for what is given: `result(rows, weight)`, by default the weighted sum; `weights(rows)`."""

    def aggregate(updates, state, *, key, num_malicious, present=None):
        rows = Rows.of(updates, present)
        weight = (weights or equal)(rows)
        update = result(rows, weight)
        told = Diagnostics(jax.tree.map(lambda _: weight, rows.stack)) if info is None else info(rows, num_malicious)
        return update, carry(state, rows), told

    return Aggregator(init, aggregate)


def equal(rows):
    return rows.present / jnp.maximum(rows.count, 1).astype(jnp.float32)


def weighted(rows, weight):
    return rows.weighted_sum(weight)


def scaled(factor):
    return lambda rows, weight: jax.tree.map(lambda x: factor(rows) * x, rows.weighted_sum(weight))


def multiplied(rows, weight):
    """What a weighted sum must not be: 0 * NaN is NaN."""
    return jax.tree.map(lambda x: jnp.tensordot(weight, x, 1), rows.written)


def finite_rows(rows):
    kept = rows.present & rows.each(aggregators.is_finite)
    return kept / jnp.maximum(jnp.sum(kept), 1).astype(jnp.float32)


def first_of_equals(rows):
    """The longest client; of those that are as long but for a tenth the first."""
    norms = jnp.where(rows.present, jnp.round(rows.each(ops.tree_norm) / 10), -1.0)
    return (jnp.arange(len(norms)) == jnp.argmax(norms)).astype(jnp.float32)


def plain_mean(updates, state, *, key, num_malicious, present=None):
    """Reads the leaves themselves, and takes whatever it gets."""
    weight = jax.tree.map(lambda x: jnp.ones(x.shape[:1]), updates)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), updates), state, Diagnostics(weight)


def indexing(updates, state, *, key, num_malicious, present=None):
    return jax.tree.map(lambda x: x[0], jax.tree.leaves(updates)[0]), state, Diagnostics(())


@jax.custom_batching.custom_vmap
def alone(x):
    return x


@alone.def_vmap
def together(size, batched, x):
    return x - x.mean(0), batched[0]


def drawn_outside(rows):
    return np.float32(np.random.default_rng().random())


def sorted_values(rows, weight):
    return jax.tree.map(lambda x: jnp.sort(jnp.where(jnp.isfinite(x), x, 0.0), axis=0)[8], rows.written)


def largest_coordinate(rows, weight):
    total = rows.weighted_sum(weight)
    return jax.tree.map(lambda x: jnp.where(x >= jnp.sort(x.ravel())[-1], x, 0.0), total)


def without_maps(rows, weight):
    return ops.weighted_sum(weight, rows.stack)


def history(state, rows):
    return jnp.concatenate([state, rows.count[None]])


def assumed(rows, num_malicious):
    return Assumed(jax.tree.map(lambda _: equal(rows), rows.stack), jnp.asarray(num_malicious))


def minus_share(limited):
    """The mean without a share that is counted in f, which is recorded."""

    def aggregate(updates, state, *, key, num_malicious, present=None):
        rows = Rows.of(updates, present)
        weight = equal(rows)
        f = jnp.asarray(num_malicious)
        update = jax.tree.map(lambda x: x * (1 + f), rows.weighted_sum(weight))
        recorded = jnp.clip(f, 0, 5) if limited else f
        return update, state, Assumed(jax.tree.map(lambda _: weight, rows.stack), recorded)

    return Aggregator(stateless, aggregate)


def floated(factor=1.0):
    return rule_of(scaled(lambda rows: float(factor)))


def branching(updates, state, *, key, num_malicious, present=None):
    if num_malicious > 1:
        return plain_mean(updates, state, key=key, num_malicious=num_malicious, present=present)
    raise NotImplementedError


def mean_by_definition(updates):
    return as_layers(flat_rows(updates).mean(0))


MEAN = rule_of(weighted)
CAUGHT = [
    (rules.refuses_what_is_no_stack, Aggregator(stateless, plain_mean), "no leaves was taken, allowed is InputError"),
    (rules.refuses_what_is_no_stack, Aggregator(stateless, indexing), "no leaves: IndexError"),
    (rules.gives_an_update_and_weights, rule_of(lambda rows, _: rows.stack), "the result: .*16"),
    (rules.gives_an_update_and_weights, rule_of(weighted, info=lambda rows, _: Diagnostics(equal(rows))), "weight: "),
    (rules.gives_an_update_and_weights, rule_of(weighted, lambda rows: -equal(rows)), "-0.0625 of client"),
    (rules.gives_an_update_and_weights, rule_of(weighted, lambda rows: equal(rows) / 0.0), "non-finite"),
    (rules.jit_equals_eager, rule_of(scaled(drawn_outside)), "compiled, against eager"),
    (rules.jit_equals_eager, Aggregator(stateless, branching), "asks for the value of a traced array"),
    (rules.vmap_equals_a_loop, rule_of(lambda r, w: jax.tree.map(alone, r.weighted_sum(w))), "run 0 of two"),
    (rules.devices_do_not_matter, rule_of(scaled(lambda rows: ops.num_shards())), "several devices, against one"),
    (rules.order_does_not_matter, rule_of(weighted, first_of_equals), "clients in another order, f = 0"),
    (
        rules.absent_rows_do_not_exist,
        rule_of(weighted, lambda rows: rows.present / len(rows.present)),
        "against no such rows",
    ),
    (rules.absent_rows_do_not_exist, rule_of(multiplied), "absent rows holding nan"),
    (
        rules.absent_rows_do_not_exist,
        rule_of(weighted, info=lambda r, _: Diagnostics(jax.tree.map(lambda x: jnp.ones(len(x)), r.stack))),
        "of absent clients",
    ),
    (
        rules.nobody_changes_nothing,
        rule_of(weighted, lambda r: jnp.ones(len(r.present)) / r.count),
        "nobody is present",
    ),
    (rules.weight_zero_never_multiplies, rule_of(multiplied, finite_rows), "clients of weight 0 sent nan"),
    (rules.limits_what_it_assumes, minus_share(limited=False), "f = -1: the rule used -1"),
    (rules.limits_what_it_assumes, minus_share(limited=True), "f = 0, against f = -1"),
    (rules.limits_what_it_assumes, rule_of(scaled(lambda rows: jnp.inf)), "non-finite"),
    (rules.state_keeps_its_shape, rule_of(weighted, init=lambda _: jnp.zeros(1, int), carry=history), "after round 0"),
    (
        rules.state_keeps_its_shape,
        rule_of(weighted, init=lambda _: jnp.zeros(()), carry=lambda *_: ()),
        "after round 0",
    ),
    (rules.reads_through_rows, Aggregator(stateless, plain_mean), "does not read its updates through Rows"),
    (rules.reads_through_rows, rule_of(without_maps), "against its rows written"),
    (rules.keeps_dtypes, rule_of(scaled(lambda rows: jnp.ones(()))), "the result of bfloat16"),
    (rules.writes_no_second_stack, rule_of(sorted_values), "allowed is a quarter"),
    (rules.writes_no_second_stack, rule_of(largest_coordinate), "coordinates are sorted"),
    (promises.scales, aggregators.norm_clipped_mean(1.0), r"against 4 F\(x\)"),
    (promises.translates, aggregators.norm_clipped_mean(1.0), r"against F\(x\) \+ 2"),
    (promises.agrees, rule_of(weighted, lambda rows: rows.present * 1.0), "equal clients, against one"),
    (promises.is_finite, MEAN, "sent nan, and update"),
    (promises.stands_bad_rows, MEAN, "3 of 16 clients sent nan: F is"),
    (promises.stands_bad_rows, rule_of(weighted, finite_rows), "3 of 16 clients sent 0.0|sent 100000000.0"),
    (
        functools.partial(promises.stands_as_many_as, limit=7),
        aggregators.trimmed_mean(2),
        "7 of 16 clients sent nan: F",
    ),
    (functools.partial(promises.follows, definition=mean_by_definition), aggregators.median(), "3 clients, seed 0"),
    (functools.partial(promises.traces_once, numbers={"factor": [1.0, 2.0]}), floated, "cannot be traced"),
    (
        functools.partial(
            promises.traces_once, numbers={"k": [1.0, 2.0]}, definition=lambda updates, k: mean_by_definition(updates)
        ),
        lambda k=1.0: rule_of(scaled(lambda rows: k)),
        "traced {'k': 2.0}, against concrete",
    ),
    (
        functools.partial(promises.traces_once, numbers={"k": [1, 2.0]}),
        lambda k=1: rule_of(scaled(lambda _: k)),
        "2 times",
    ),
]


def plain(law):
    return getattr(law, "func", law)


@pytest.mark.parametrize(("law", "broken", "message"), CAUGHT, ids=[plain(law).__name__ for law, *_ in CAUGHT])
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_catches(law, broken, message):
    with pytest.raises(AssertionError, match=message):
        law(broken)


def test_every_law_catches_something():
    promised = {law for name, law in vars(promises).items() if getattr(law, "__module__", "") == promises.__name__}
    public = {law for law in promised if callable(law) and not law.__name__.startswith("_")} - {promises.with_bad_rows}
    assert {plain(law) for law, *_ in CAUGHT} == {*RULE_LAWS, *public}


@pytest.mark.parametrize("law", RULE_LAWS)
def test_a_rule_of_a_users_own_obeys(law):
    """The base of the broken ones is right, so that a law catches what is broken in them."""
    law(MEAN)
