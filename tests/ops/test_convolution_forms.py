"""The form of a convolution on an accelerator follows what is batched, and no form changes a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lasa_jax import ops


def values_and_gradients(convolve, images, kernels):
    def loss(images, kernel):
        return jnp.sum(jnp.sin(convolve(images, kernel)))

    return jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1))))(images, kernels)


@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_forward_and_gradients_are_those_of_lax(clients, stride, padding):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(clients, 2, 7, 8, 3)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(clients, 3, 3, 3, 4)), jnp.float32)

    def reference(x, w):
        sides = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, w, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    with ops.compiling_for("gpu"):
        ours = values_and_gradients(lambda x, w: ops.conv2d(x, w, stride=stride, padding=padding), images, kernels)
    theirs = values_and_gradients(reference, images, kernels)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("clients", "direct"), [(None, True), (1, True), (3, False)])
def test_only_kernels_of_many_clients_become_patches(clients, direct):
    def gradient(x, w):
        return jax.grad(lambda x, w: jnp.sum(ops.conv2d(x, w, stride=2, padding=1) ** 2), argnums=(0, 1))(x, w)

    lead = () if clients is None else (clients,)
    shapes = [jax.ShapeDtypeStruct((*lead, *shape), jnp.float32) for shape in [(2, 8, 8, 3), (3, 3, 3, 4)]]
    with ops.compiling_for("gpu"):
        text = jax.jit(gradient if clients is None else jax.vmap(gradient)).lower(*shapes).as_text()
    assert ("stablehlo.convolution" in text) == direct
