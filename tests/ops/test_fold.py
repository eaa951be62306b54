"""Readings of all layers together, in the forms of accelerators, on the CPU: values, derivatives, and few operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import ops
from lasa_jax.ops import order

# Large and small layers, some with a rest behind whole blocks, one empty.
SHAPES = ((40, 100), (7,), (3, 1024), (0, 4), (2,), (1, 5, 3))


@pytest.fixture(autouse=True, params=["gpu", "tpu"])
def platform(request):
    with ops.compiling_for(request.param):
        yield request.param


def row(scale=1.0):
    rng = np.random.default_rng(0)
    return [jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape in SHAPES]


@pytest.mark.parametrize("by_leaf", [False, True])
def test_fold(by_leaf):
    leaves = row()
    most, negative = ops.fold(
        leaves, lambda x: (jnp.abs(x), (x < 0).astype(jnp.int32)), ("max", "add"), by_leaf=by_leaf
    )
    groups = leaves if by_leaf else [jnp.concatenate([x.ravel() for x in leaves])]
    wanted = [(np.max(np.abs(x), initial=0), np.sum(np.asarray(x) < 0)) for x in groups]
    np.testing.assert_array_equal(np.atleast_1d(most), [pair[0] for pair in wanted])
    np.testing.assert_array_equal(np.atleast_1d(negative), [pair[1] for pair in wanted])
    assert negative.dtype == jnp.int32


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_norms_at_any_scale(scale):
    leaves = row(scale)
    flat = [np.asarray(x, np.float64).ravel() for x in leaves]
    largest, norm = jax.jit(ops.tree_size)(leaves)
    assert largest == max(np.abs(x).max(initial=0) for x in flat).astype(np.float32)
    np.testing.assert_allclose(norm, np.linalg.norm(np.concatenate(flat)), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(ops.leaf_norms)(leaves), [np.linalg.norm(x) for x in flat], rtol=1e-6)


def test_the_derivative_of_a_layers_norm_is_its_direction():
    leaves = row()
    slopes = jax.grad(lambda leaves: ops.leaf_norms(leaves)[0])(leaves)
    np.testing.assert_allclose(slopes[0], leaves[0] / jnp.linalg.norm(leaves[0]), rtol=1e-5)
    assert not np.any(slopes[1])


def test_a_value_that_is_not_finite_shows():
    leaves = row()
    assert np.isnan(ops.tree_size([leaves[0].at[0, 0].set(jnp.nan), *leaves[1:]])[0])
    assert np.isinf(ops.tree_size([*leaves[:1], leaves[1].at[0].set(-jnp.inf), *leaves[2:]])[0])


def test_a_weighted_sum_of_small_layers_reads_no_row_of_weight_zero():
    stack = [jnp.stack([x, 2 * x, jnp.full_like(x, jnp.nan)]) for x in row()]
    weights = [jnp.asarray([i, 1.0, 0.0]) for i in range(len(stack))]
    total = jax.jit(ops.weighted_sum)(weights, stack)
    for i, (x, actual) in enumerate(zip(row(), total, strict=True)):
        np.testing.assert_allclose(actual, (i + 2) * x, rtol=1e-6)


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "tiny", "infinite", "columns"])
def test_the_search_for_a_threshold_finds_the_same(kind):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=shape).astype(np.float32) for shape in ((300, 200), (10,), (5, 7), (9000, 4))]
    change = {
        "normal": lambda x: x,
        "ties": lambda x: np.round(3 * x),
        "zeros": lambda x: np.where(np.abs(x) < 1, 0, x),
        "tiny": lambda x: x * np.float32(1e-40),
        "infinite": lambda x: np.where(x > 1, np.inf, x),
        "columns": lambda x: x * np.float32(4.0) ** np.arange(x.shape[-1]) if x.shape[-1] < 8 else x,
    }[kind]
    parts = [change(x).astype(np.float32) for x in parts]
    ordered = np.sort(np.abs(np.concatenate([x.ravel() for x in parts])))[::-1]
    search = jax.jit(order._search)
    for k in (0, 1, 2, 20_000, ordered.size):
        threshold, passes = search(tuple(map(jnp.asarray, parts)), jnp.int32(k))
        assert threshold == (ordered[k - 1] if k else np.inf), k
        assert passes <= (8 if kind in ("normal", "columns") else 33)
        few = [x.ravel()[: order._FEW // 4] for x in parts]  # which are sorted
        ordered_few = np.sort(np.abs(np.concatenate(few)))[::-1]
        threshold, passes = search(tuple(map(jnp.asarray, few)), jnp.int32(min(k, ordered_few.size)))
        assert threshold == (ordered_few[min(k, ordered_few.size) - 1] if k else np.inf), k
        assert passes == 1


@pytest.mark.parametrize(("examples", "products"), [(10, 2), (17, 3)])
def test_few_examples_make_a_dense_gradient_without_a_product(examples, products, platform):
    x, w = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(examples, 6), (6, 5)]))

    def loss(x, w, product):
        return jnp.sum(jnp.sin(product(x, w)))

    ours = jax.grad(lambda x, w: loss(x, w, ops.dense), argnums=(0, 1))
    theirs = jax.grad(lambda x, w: loss(x, w, jnp.matmul), argnums=(0, 1))(x, w)
    for a, b in zip(jax.jit(ours)(x, w), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert jax.jit(ours).lower(x, w).as_text().count("stablehlo.dot_general") == (products if platform == "gpu" else 3)


@pytest.mark.parametrize("shape", [(6,), (3, 4, 6)])
def test_a_dense_layer_of_other_axes_is_a_product(shape):
    x, w = jnp.ones(shape), jnp.ones((6, 5))
    ours, theirs = (jax.grad(lambda x, w, f=f: jnp.sum(f(x, w) ** 2), (0, 1))(x, w) for f in (ops.dense, jnp.matmul))
    jax.tree.map(np.testing.assert_allclose, ours, theirs)


def test_a_dense_gradient_has_the_type_of_its_input_and_a_gradient():
    x, w = jnp.ones((3, 6), jnp.bfloat16), jnp.ones((6, 5))
    with jax.numpy_dtype_promotion("standard"):
        grads = jax.jit(jax.grad(lambda x, w: jnp.sum(ops.dense(x, w)), (0, 1)))(x, w)
    assert [grad.dtype for grad in grads] == [jnp.bfloat16, jnp.float32]

    def loss(w):
        return jnp.sum(ops.dense(jnp.ones((3, 6)), w) ** 3)

    twice = jax.jit(jax.grad(lambda w: jnp.sum(jax.grad(loss)(w))))(w)
    np.testing.assert_allclose(
        twice, np.full((6, 5), 3 * 36.0 * 6), rtol=1e-5
    )  # 3 examples, the second derivative of y^3
    with ops.compiling_for("gpu"), pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (w,), (w,))


def test_layers_without_entries():
    leaves = [jnp.zeros((0, 3)), jnp.zeros(0)]
    assert ops.leaf_norms(leaves).tolist() == [0, 0]
    assert [float(number) for number in ops.tree_size(leaves)] == [0, 0]
    assert ops.magnitude_threshold(leaves, 2) == 0
