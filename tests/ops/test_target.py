"""Programs take the forms of what they are compiled for, whatever this process runs on."""

import re

import jax
import jax.numpy as jnp
import pytest

from lasa_jax import aggregators, attacks, ops
from lasa_jax.testing import honest


def lowered(fn, *arguments, platform: str) -> str:
    """The text of a program for a platform; the compiler of the platform is not needed."""
    with ops.compiling_for(platform):
        names = {"gpu": "cuda"}
        return jax.jit(fn).trace(*arguments).lower(lowering_platforms=(names.get(platform, platform),)).as_text()


def test_outside_of_it_the_process_decides():
    assert ops.platform() == jax.default_backend()
    with ops.compiling_for("gpu"):
        assert ops.platform() == "gpu"
        with ops.compiling_for("tpu"):
            assert ops.platform() == "tpu"
        assert ops.platform() == "gpu"
    assert ops.platform() == jax.default_backend()


def test_another_word():
    with pytest.raises(ValueError, match="platform 'abacus': allowed are cpu, gpu, tpu"), ops.compiling_for("abacus"):
        pass


def test_a_trace_for_one_platform_is_not_reused_for_another():
    """Through nested functions that are jitted once for all."""
    seen = []

    @jax.jit
    def inner(x):
        seen.append(ops.platform())
        return x * (2.0 if ops.one_at_a_time() else 3.0)

    @jax.jit
    def outer(x):
        return inner(x) + 1.0

    results = []
    for platform in ("cpu", "gpu", "cpu"):
        with ops.compiling_for(platform):
            results.append(float(outer(jnp.float32(1))))
    assert results == [3.0, 4.0, 3.0]
    assert seen == ["cpu", "gpu"]  # and the third time the first trace serves again


def test_forms_follow_the_platform():
    """A CPU sorts with a network of comparators and adds row by row; an accelerator has one sort and one reduction."""
    block, present = jnp.ones((8, 64)), jnp.ones(8, bool)
    for platform, sorts in (("cpu", 0), ("gpu", 1), ("tpu", 1)):
        text = lowered(ops.sort_clients, block, present, platform=platform)
        assert len(re.findall(r"stablehlo\.sort", text)) == sorts


def test_sorts_of_values_carry_no_index():
    stack, present = jnp.ones((8, 64)), jnp.ones(8, bool)
    for fn in (ops.sort_clients, ops.masked_median):
        text = lowered(fn, stack, present, platform="gpu")
        assert "is_stable = false" in text
        assert "is_stable = true" not in text


UPDATES = {name: jnp.asarray(x) for name, x in honest().items()}
STEPS = {name: aggregators.chain(make(), aggregators.krum()) for name, make in aggregators.PREAGGREGATORS.items()}
RULES = {**{name: aggregators.create(name) for name in aggregators.names()}, **STEPS}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("name", RULES)
def test_rules_lower_with_whole_products(name, platform):
    """Distances that are off by a rounding to TF32 or bfloat16 choose other clients."""
    rule = RULES[name]
    state = rule.init(jax.tree.map(lambda x: x[0], UPDATES))

    def aggregate(updates):
        return rule.aggregate(updates, state, key=jax.random.key(0), num_malicious=3)

    _assert_whole(lowered(aggregate, UPDATES, platform=platform))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("name", attacks.names())
def test_attacks_lower_with_whole_products(name, platform):
    attack, malicious = attacks.create(name), jnp.arange(16) < 4
    state = attack.init(jax.tree.map(lambda x: x[0], UPDATES))

    def craft(updates):
        def aggregate(rows):
            return aggregators.lasa().aggregate(rows, (), key=jax.random.key(0), num_malicious=3)[0]

        return attack.craft(updates, state, malicious, key=jax.random.key(0), aggregate=aggregate)[0]

    _assert_whole(lowered(craft, UPDATES, platform=platform))


def _assert_whole(text: str) -> None:
    rounded = [
        line.strip()[:200] for line in text.splitlines() if "dot_general" in line and "precision = [HIGHEST" not in line
    ]
    assert not rounded, rounded
