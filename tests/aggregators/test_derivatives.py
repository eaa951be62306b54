"""Gradients through every rule are finite wherever the updates lie, and are those of the rule where it is smooth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators
from lasa_jax.testing import built_in, known
from lasa_jax.testing.stacks import first_row

N = 6
KEY = jax.random.key(0)
# Compiled fast, since each is run a few times only.
OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
RULES = {
    **{name: built_in(name) for name in aggregators.names()},
    "geometric_median, official": aggregators.geometric_median(variant="official"),
    "geometric_median of what is clipped, sparse and mixed": aggregators.chain(
        aggregators.reject_nonfinite(),
        aggregators.clip_to_median_norm(),
        aggregators.keep_top_k(),
        aggregators.nearest_neighbour_mixing(),
        aggregators.geometric_median(),
    ),
    "median of buckets of what is clipped": aggregators.chain(
        aggregators.clip_to_norm(), aggregators.bucketing(), aggregators.median()
    ),
}
RNG = np.random.default_rng(0)
ORDINARY = {"w": RNG.standard_normal((N, 3, 2)).astype(np.float32), "b": RNG.standard_normal((N, 2)).astype(np.float32)}
DIRECTION = {
    "w": RNG.standard_normal((N, 3, 2)).astype(np.float32),
    "b": RNG.standard_normal((N, 2)).astype(np.float32),
}
TOWARDS = {"w": RNG.standard_normal((3, 2)).astype(np.float32), "b": RNG.standard_normal(2).astype(np.float32)}


CONSTANT = ("caf",)  # its weights move with the updates, and are constants where it is differentiated


def each(change):
    return {name: change(x).astype(np.float32) for name, x in ORDINARY.items()}


def client_1_sends(value):
    return each(lambda x: np.where((np.arange(N) == 1).reshape((-1,) + (1,) * (x.ndim - 1)), value, x))


STACKS = {
    "ordinary": ORDINARY,
    "identical": each(lambda x: np.repeat(x[:1], N, axis=0)),
    "zeros": each(np.zeros_like),
    "one of zeros": client_1_sends(0),
    "a layer of zeros": {**ORDINARY, "b": 0 * ORDINARY["b"]},
    "ties": each(np.sign),
    "two clients three times": each(lambda x: x[[0, 1, 0, 1, 0, 1]]),
    "a majority in one point": each(lambda x: x[[0, 0, 0, 0, 1, 2]]),
    "on a line": each(lambda x: np.ones_like(x) * np.arange(N).reshape((-1,) + (1,) * (x.ndim - 1))),
    "tiny": each(lambda x: 1e-30 * x),
    "below the smallest normal number": each(lambda x: 1e-42 * x),
    "one huge": client_1_sends(1e38),
    "one of infinities": client_1_sends(np.inf),
    "one of NaN": client_1_sends(np.nan),
}


@pytest.mark.parametrize("name", RULES)
def test_gradients_are_finite_and_right(name):
    rule = RULES[name]

    def gain(updates, present):
        state, context = rule.init(first_row(updates)), known(rule, updates)
        update = rule.aggregate(updates, state, key=KEY, num_malicious=1, present=present, **context)[0]
        return sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(update), jax.tree.leaves(TOWARDS), strict=True))

    derivative = jax.jit(jax.value_and_grad(gain), compiler_options=OPTIONS)
    everybody, alone = np.ones(N, bool), np.arange(N) == 0
    for what, updates in STACKS.items():
        for present in (everybody, np.arange(N) != 1, alone):
            for layer, x in derivative(updates, present)[1].items():
                assert np.isfinite(x).all(), f"{what}, {present.sum()} present: {layer}"
                assert not np.asarray(x)[~present].any(), (
                    f"{what}: an absent client of {present.sum()} has a derivative"
                )

    if name in CONSTANT:
        return

    def moved(step):
        return float(derivative(jax.tree.map(lambda x, d: x + step * d, ORDINARY, DIRECTION), everybody)[0])

    slopes = jax.tree.map(lambda g, d: np.sum(g * d), derivative(ORDINARY, everybody)[1], DIRECTION)
    assert abs(sum(map(float, slopes.values())) - (moved(2e-3) - moved(-2e-3)) / 4e-3) < 0.01
