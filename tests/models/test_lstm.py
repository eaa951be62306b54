"""The recurrent layer's gradient, in the form that is fast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import ops
from lasa_jax.models import lstm

STEPS = jax.random.normal(jax.random.key(0), (7, 3, 16))
RECURRENT = jax.random.normal(jax.random.key(1), (4, 16))


def plain_scan(steps, recurrent):
    """The equations as they stand, with JAX's own gradient."""

    def step(carry, x_t):
        h, c = carry
        i, f, g, o = jnp.split(x_t + h @ recurrent, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((steps.shape[1], recurrent.shape[0]))
    return jax.lax.scan(step, (zeros, zeros), steps)[1]


def loss(recur, steps, recurrent):
    return jnp.sum(jnp.sin(recur(steps, recurrent)))


def scans(jaxpr):
    """Every scan of a program, those inside of others too."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                closed = getattr(inner, "jaxpr", inner)
                if hasattr(closed, "eqns"):
                    yield from scans(closed)
        if equation.primitive.name == "scan":
            yield equation


def given(fn) -> list[tuple[int, ...]]:
    """Shapes of what a step of a scan gives: what it carries on, and its outputs."""
    found = []
    for equation in scans(jax.make_jaxpr(fn)(STEPS, RECURRENT).jaxpr):
        found += [variable.aval.shape for variable in equation.params["jaxpr"].jaxpr.outvars]
    return found


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_outputs_and_gradients_are_those_of_the_scan(platform):
    with ops.compiling_for(platform):
        (outputs, pull_back), (wanted, pull_back_wanted) = (
            jax.vjp(recur, STEPS, RECURRENT) for recur in (lstm._recur, plain_scan)
        )
        actual, reference = pull_back(jnp.sin(wanted)), pull_back_wanted(jnp.sin(wanted))
    for x, y in zip((outputs, *actual), (wanted, *reference), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_each_client_with_its_own_kernel():
    kernels = jnp.stack([RECURRENT, 2 * RECURRENT])
    grads = jax.vmap(jax.grad(lambda r: loss(lstm._recur, STEPS, r)))(kernels)
    for grad, kernel in zip(grads, kernels, strict=True):
        np.testing.assert_allclose(grad, jax.grad(lambda r: loss(plain_scan, STEPS, r))(kernel), rtol=1e-5, atol=1e-6)


def test_no_step_carries_the_kernels_gradient():
    plain, ours = (
        given(jax.grad(lambda s, r, recur=recur: loss(recur, s, r), argnums=1)) for recur in (plain_scan, lstm._recur)
    )
    assert RECURRENT.shape in plain  # or this test looks at nothing
    assert RECURRENT.shape not in ours


def test_a_step_writes_few_arrays():
    """Each array that a step of a scan writes is a kernel of its own on an accelerator."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda s: loss(lstm._recur, s, RECURRENT)))(STEPS).jaxpr
    written = [len(scan.outvars) - scan.params["num_carry"] for scan in scans(jaxpr)]
    assert written == [2, 1]


@pytest.mark.parametrize(("platform", "copies"), [("cpu", True), ("gpu", False)])
def test_a_cpu_transposes_the_kernel_once_and_an_accelerator_not_at_all(platform, copies):
    with ops.compiling_for(platform):
        jaxpr = jax.make_jaxpr(jax.grad(lambda s: loss(lstm._recur, s, RECURRENT)))(STEPS).jaxpr
    backward = [scan for scan in scans(jaxpr) if scan.params["reverse"]]
    assert len(backward) == 1
    assert ("optimization_barrier" in str(jaxpr)) == copies
    assert ("transpose[" in str(backward[0].params["jaxpr"])) == (not copies)


@pytest.mark.parametrize(("platform", "unrolled"), [("cpu", False), ("gpu", True)])
def test_accelerators_take_several_steps_in_one_pass_of_the_loop(platform, unrolled):
    with ops.compiling_for(platform):
        jaxpr = jax.make_jaxpr(lambda s: lstm._recur(s, RECURRENT))(STEPS).jaxpr
    assert all((scan.params["unroll"] > 1) == unrolled for scan in scans(jaxpr))
