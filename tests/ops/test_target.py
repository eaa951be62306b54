"""Programs take the forms of what they are compiled for, whatever this process runs on."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from lasa_jax import aggregators, attacks, ops, testing
from lasa_jax.aggregators.base import Rows
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
RULES = {**{name: testing.built_in(name) for name in aggregators.names()}, **STEPS}


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("name", RULES)
def test_rules_lower_with_whole_products(name, platform):
    """Distances that are off by a rounding to TF32 or bfloat16 choose other clients."""
    rule = RULES[name]
    state = rule.init(jax.tree.map(lambda x: x[0], UPDATES))

    def aggregate(updates):
        return rule.aggregate(updates, state, key=jax.random.key(0), num_malicious=3, **testing.known(rule, updates))

    _assert_whole(lowered(aggregate, UPDATES, platform=platform))


def laid_out_anew(text: str, entries: int) -> list[str]:
    """Reshapes of arrays of so many entries or more which change the last axis: on a TPU, that of its tiles, a copy."""
    shapes = re.findall(r"stablehlo\.reshape [^\n]*tensor<([\dx]+)x\w+>\) -> tensor<([\dx]+)x\w+>", text)
    sizes = [[[int(x) for x in shape.split("x")] for shape in pair] for pair in shapes]
    return [f"{a} -> {b}" for a, b in sizes if math.prod(a) >= entries and a[-1] != b[-1]]


@pytest.mark.parametrize("name", RULES)
def test_on_a_tpu_layers_stay_as_they_lie(name):
    """Flattened, every layer of every client would be copied."""
    rule, n, layer = RULES[name], 16, (640, 128)
    shapes = {"kernel": (n, *layer), "bias": (n, 7), "flat": (n, math.prod(layer))}
    updates = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}

    def aggregate(updates):
        one = jax.tree.map(lambda x: x[0], updates)
        context = testing.known(rule, updates)
        return rule.aggregate(updates, rule.init(one), key=jax.random.key(0), num_malicious=3, **context)

    text = lowered(aggregate, updates, platform="tpu")
    assert not laid_out_anew(text, n * math.prod(layer))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("name", attacks.names())
def test_attacks_lower_with_whole_products(name, platform):
    attack, malicious = attacks.create(name), jnp.arange(16) < 4
    state = attack.init(jax.tree.map(lambda x: x[0], UPDATES))

    def craft(updates):
        def aggregate(rows):
            return aggregators.lasa().aggregate(rows, (), key=jax.random.key(0), num_malicious=3)[0]

        context = testing.known(attack, updates)
        return attack.craft(updates, state, malicious, key=jax.random.key(0), aggregate=aggregate, **context)[0]

    _assert_whole(lowered(craft, UPDATES, platform=platform))


def _assert_whole(text: str) -> None:
    rounded = [
        line.strip()[:200] for line in text.splitlines() if "dot_general" in line and "precision = [HIGHEST" not in line
    ]
    assert not rounded, rounded


def test_runs_of_a_batch_take_a_branch_together():
    """`vmap` would compute both branches of a condition that each run has for itself."""

    def chosen(flag: jax.Array, x: jax.Array) -> jax.Array:
        taken = jax.lax.cond(ops.any_run(flag), lambda: jnp.sin(x), lambda: x)
        return jnp.where(flag, taken, x)

    flags, x = jnp.array([False, True, False]), jnp.arange(3.0)
    text = lowered(jax.vmap(chosen), flags, x, platform="gpu")
    assert "stablehlo.case" in text or "stablehlo.if" in text
    batched = jax.jit(jax.vmap(chosen))(flags, x)
    assert batched.tolist() == [float(jax.jit(chosen)(flag, one)) for flag, one in zip(flags, x, strict=True)]


def krum_of(num_runs: int | None):
    """Krum for 8 clients of 2^20 entries, of one run or of several."""
    rule = aggregators.krum()
    lead = () if num_runs is None else (num_runs,)

    def aggregate(stack: jax.Array) -> jax.Array:
        return rule.aggregate({"w": stack}, (), key=jax.random.key(0), num_malicious=1)[0]["w"]

    return aggregate if num_runs is None else jax.vmap(aggregate), jax.ShapeDtypeStruct((*lead, 8, 2**20), jnp.float32)


def branches_with_products(jaxpr) -> int:
    """Conditions of which a branch has a matrix product, at any depth."""
    found = 0
    for equation in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr)]
        inner = [x for x in inner if hasattr(x, "eqns")]
        found += sum(map(branches_with_products, inner))
        found += equation.primitive.name == "cond" and any("dot_general" in str(x) for x in inner)
    return found


def is_jaxpr(x) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


@pytest.mark.parametrize("num_runs", [None, 3])
def test_the_second_reading_of_the_distances_is_a_branch_in_a_batch_too(num_runs):
    fn, stack = krum_of(num_runs)
    with ops.compiling_for("gpu"):
        assert branches_with_products(jax.make_jaxpr(fn)(stack).jaxpr) == 1


@pytest.mark.parametrize("name", ["krum", "geometric_median", "bulyan"])
@pytest.mark.parametrize("mixed", [False, True])
def test_distances_on_an_accelerator_copy_a_small_part_of_the_stack(name, mixed):
    """Blocks of columns are slices of the leaves, in one loop for each leaf, without a branch by the index."""
    rule, n = aggregators.create(name), 8
    rule = aggregators.chain(aggregators.nearest_neighbour_mixing(), rule) if mixed else rule
    stack = {"w": jax.ShapeDtypeStruct((n, 2**20), jnp.float32), "v": jax.ShapeDtypeStruct((n, 2**19), jnp.float32)}
    text = lowered(
        lambda u: (
            Rows.of(u).gram
            if name == "bulyan"
            else rule.aggregate(  # whose last step sorts
                u, (), key=jax.random.key(0), num_malicious=1
            )[0]
        ),
        stack,
        platform="gpu",
    )
    copied = re.findall(r"stablehlo.(?:concatenate|dynamic_slice|pad) [^\n]*-> tensor<8x(\d+)xf32>", text)
    assert copied
    assert max(map(int, copied)) < 0.25 * (2**20 + 2**19)


def test_dnc_asks_no_library_for_all_eigenvalues():
    rule, stack = aggregators.dnc(), jax.ShapeDtypeStruct((40, 3000), jnp.float32)
    for platform in ("gpu", "tpu"):
        fn = lambda u: rule.aggregate({"w": u}, (), key=jax.random.key(0), num_malicious=4)[0]  # noqa: E731
        text = lowered(fn, stack, platform=platform)
        assert not re.search(r"(?i)syevd|eigh|cusolver", text)
        assert "stablehlo.while" not in text  # nor do its iterations follow one another


def test_signguard_decides_many_places_in_a_step():
    """No loop of as many steps as there are clients."""
    rule, stack = aggregators.signguard(), jax.ShapeDtypeStruct((41, 3000), jnp.float32)
    text = lowered(
        lambda u: rule.aggregate({"w": u}, (), key=jax.random.key(0), num_malicious=4)[0], stack, platform="gpu"
    )
    conditions = re.findall(r"cond \{(.*?)\} do", text, re.DOTALL)
    assert conditions
    assert not any("dense<41>" in condition for condition in conditions)
