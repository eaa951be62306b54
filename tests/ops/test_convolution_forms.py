"""The form of a convolution on an accelerator follows what is batched, and no form changes a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lasa_jax import ops
from lasa_jax.ops import convolution


def values_and_gradients(convolve, images, kernels):
    def loss(images, kernel):
        return jnp.sum(jnp.sin(convolve(images, kernel)))

    return jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1))))(images, kernels)


@pytest.mark.parametrize("form", ops.BATCHED_FORMS)
@pytest.mark.parametrize("clients", [1, 3])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (1, 1), (2, 0), (2, 1)])
def test_forward_and_gradients_are_those_of_lax(form, clients, stride, padding, monkeypatch):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(clients, 2, 7, 8, 3)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(clients, 3, 3, 3, 4)), jnp.float32)

    def reference(x, w):
        sides = [(padding, padding)] * 2
        return lax.conv_general_dilated(x, w, (stride, stride), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    monkeypatch.setattr(convolution, "LARGE_PATCHES", 0)  # or "auto" is "patches"
    with ops.compiling_for("tpu" if form == "auto" else "gpu"), ops.convolving_by(form):
        ours = values_and_gradients(lambda x, w: ops.conv2d(x, w, stride=stride, padding=padding), images, kernels)
    theirs = values_and_gradients(reference, images, kernels)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("clients", "features", "platform", "direct"),
    [
        (None, 4, "gpu", True),
        (1, 4, "gpu", True),
        (3, 4, "gpu", True),  # in groups: patches would be larger than the result
        (3, 27, "gpu", False),
        (3, 4, "tpu", False),
    ],
)
def test_kernels_of_many_clients_become_patches_where_these_are_small(clients, features, platform, direct):
    def gradient(x, w):
        return jax.grad(lambda x, w: jnp.sum(ops.conv2d(x, w, stride=2, padding=1) ** 2), argnums=(0, 1))(x, w)

    lead = () if clients is None else (clients,)
    shapes = [jax.ShapeDtypeStruct((*lead, *shape), jnp.float32) for shape in [(2, 8, 8, 3), (3, 3, 3, features)]]
    with ops.compiling_for(platform):
        text = jax.jit(gradient if clients is None else jax.vmap(gradient)).lower(*shapes).as_text()
    assert ("stablehlo.convolution" in text) == direct


def lowered(form: str, clients: int = 3, platform: str = "gpu") -> str:
    """The text of the gradient for clients that each have a kernel."""

    def gradient(x, w):
        return jax.grad(lambda x, w: jnp.sum(ops.conv2d(x, w, padding=1) ** 2), argnums=(0, 1))(x, w)

    shapes = [jax.ShapeDtypeStruct((clients, *shape), jnp.float32) for shape in [(2, 8, 8, 3), (3, 3, 3, 4)]]
    with ops.compiling_for(platform), ops.convolving_by(form):
        return jax.jit(jax.vmap(gradient)).lower(*shapes).as_text()


def test_each_form_reaches_the_program():
    patches, taps, grouped = (lowered(form) for form in ("patches", "taps", "grouped"))
    assert "feature_group_count = 3" in grouped
    assert "stablehlo.convolution" not in patches + taps
    assert patches.count("stablehlo.dot_general") == 3
    assert taps.count("stablehlo.dot_general") == 3 * 9


def test_auto_makes_only_large_patches_again(monkeypatch):
    patches = 3 * 2 * 8 * 8 * 9 * 3 * 4  # bytes: clients, images, pixels, positions, channels, float32
    monkeypatch.setattr(convolution, "LARGE_PATCHES", patches)
    assert "optimization_barrier" not in lowered("auto", platform="tpu")
    assert "optimization_barrier" not in lowered("patches")
    jax.clear_caches()
    monkeypatch.setattr(convolution, "LARGE_PATCHES", patches - 1)
    assert "optimization_barrier" in lowered("auto", platform="tpu")
    assert "optimization_barrier" not in lowered("patches")


def test_images_batched_over_one_kernel_are_one_batch():
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 2, 8, 8, 3), (3, 3, 3, 4)]))

    def many(x, w):
        return jax.vmap(lambda x: ops.conv2d(x, w, padding=1))(x)

    with ops.compiling_for("gpu"):
        text = jax.jit(many).lower(x, w).as_text()
        actual = many(x, w)
    assert "(tensor<10x8x8x3xf32>, tensor<3x3x3x4xf32>)" in text
    assert "feature_group_count = 1" in text
    np.testing.assert_allclose(actual, jnp.stack([ops.conv2d(one, w, padding=1) for one in x]), rtol=2e-5, atol=2e-5)


def test_another_form():
    allowed = "allowed are auto, patches, taps, grouped"
    with pytest.raises(ValueError, match=f"form 'winograd': {allowed}"), ops.convolving_by("winograd"):
        pass
