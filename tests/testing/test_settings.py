"""Rules, pre-aggregators, attacks and whole runs under the settings that a program may have given to JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks, simulate
from lasa_jax.federated import make_mesh
from lasa_jax.testing import assert_close, built_in, honest, known, settings
from lasa_jax.testing.attacks import SOME, eager
from lasa_jax.testing.stacks import assert_same, first_row
from tests.aggregators.test_battery import RULES
from tests.attacks.test_battery import ATTACKS

VARIANTS = {
    **{name: case.make() for name, case in RULES.items()},
    **{
        f"{name}, official": aggregators.create(name, variant="official")
        for name in ("bulyan", "signguard", "signguard_sim", "sparsefed")
    },
    "lasa, coordinate": aggregators.lasa(granularity="coordinate"),
    "flame, updates": aggregators.flame("updates"),
    "monna, of a client": aggregators.monna(trusted=1),
    "robust_learning_rate, median": aggregators.robust_learning_rate(base="median"),
    "robust_learning_rate, weighted": aggregators.robust_learning_rate(base="weighted_mean"),
}
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
KEY = jax.random.key(0)


@pytest.mark.parametrize("name", VARIANTS)
def test_rules_keep_types(name):
    settings.rule_keeps_types(VARIANTS[name])


def test_no_tracer_leaks():
    """What holds a tracer after its trace has ended; looked for in rules and attacks that keep something or loop."""
    updates = honest(n=6)
    with jax.checking_leaks():
        for name in ("lasa", "bulyan", "geometric_median"):
            rule = RULES[name].make()
            jax.eval_shape(lambda u, r=rule: r.aggregate(u, (), key=KEY, num_malicious=1)[0], updates)
        for name in ("adaptive", "mimic"):
            state = ATTACKS[name].init(first_row(updates))
            jax.eval_shape(lambda u, a=ATTACKS[name], s=state: eager(a, u, s, KEY, jnp.arange(6) < 1)[0], updates)


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_keep_types(name):
    settings.attack_keeps_types(ATTACKS[name])


@pytest.mark.parametrize("step", aggregators.PREAGGREGATORS)
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64"])
def test_every_preaggregator_with_every_rule_in_every_type(step, kind):
    with settings.wide_and_strict():
        updates = {layer: jnp.asarray(x, kind) for layer, x in honest().items()}
        updates["bias"] = jnp.asarray(updates["bias"], jnp.float32)  # leaves may differ
        for name in aggregators.names():
            rule = aggregators.chain(aggregators.PREAGGREGATORS[step](), built_in(name))
            if "ids" in rule.needs and step in ("bucketing", "nearest_neighbour_mixing"):  # which it refuses
                continue
            state = rule.init(first_row(updates))
            result = jax.eval_shape(
                lambda u, s, r=rule: r.aggregate(u, s, key=KEY, num_malicious=3, **known(r, u))[:2], updates, state
            )
            wanted = (first_row(updates), state)
            assert jax.tree.map(lambda x: x.dtype, result) == jax.tree.map(lambda x: x.dtype, wanted), name


@pytest.mark.parametrize("name", RULES)
def test_float64_is_what_numpy_says(name):
    """To the digits of float64 where a rule has no tolerance of its own: nothing on the way was float32."""
    with settings.wide():
        updates = {layer: jnp.asarray(x, jnp.float64) for layer, x in honest().items()}
        rule = RULES[name].make()
        compiled = jax.jit(
            lambda u: rule.aggregate(u, rule.init(first_row(u)), key=KEY, num_malicious=3, **known(rule, u))[0],
            compiler_options=FAST,
        )
        result = jax.tree.map(np.asarray, compiled(updates))
        assert_close(result, RULES[name].definition(honest()), atol=1e-6 if name == "geometric_median" else 1e-13)


@pytest.mark.parametrize("name", ["adaptive", "alie", "byzmean", "mimic", "min_max", "noise", "tailored_krum"])
def test_attacks_send_the_same_with_64_bits_and_nans_are_looked_for(name):
    attack = ATTACKS[name]

    def sent(updates):
        return eager(attack, updates, attack.init(first_row(updates)), KEY, jnp.asarray(SOME))[0]

    with jax.debug_nans(True):
        wanted = jax.jit(sent, compiler_options=FAST)(honest())
    with settings.wide():
        assert_close(jax.jit(sent, compiler_options=FAST)(honest()), wanted, atol=1e-6)


def test_a_run_has_the_same_bits_under_every_setting():
    """The second of three rounds is not evaluated, for which nothing may be NaN."""
    config = {"rounds": 3, "eval_every": 3, "model": "mlp", "client.epochs": 1, "attack_ratio": 0.2}
    attack, mesh = attacks.byzmean(), make_mesh(jax.devices()[:1])

    def final():
        return simulate("digits", attack=attack, mesh=mesh, **config).variables

    wanted = final()
    with settings.wide():
        assert_same(final(), wanted, "64 bits")
    with settings.strict(), jax.debug_nans(True), jax.default_matmul_precision("bfloat16"):
        assert_same(final(), wanted, "strict promotion, NaN looked for")


def test_another_prng_draws_something_else():
    config = {"rounds": 1, "model": "mlp", "client.epochs": 1, "mesh": make_mesh(jax.devices()[:1])}
    with jax.default_prng_impl("rbg"):
        variables = simulate("digits", attack=attacks.noise(), **config).variables
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(variables))
