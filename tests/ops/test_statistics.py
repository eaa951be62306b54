import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from lasa_jax import ops

values = hnp.arrays(np.float32, (9, 2), elements=st.floats(-1e6, 1e6, width=32))
masks = hnp.arrays(bool, 9)


@settings(deadline=None, max_examples=100)
@given(values, masks, st.booleans())
def test_masked_median(x, present, lower):
    wanted = np.full(2, np.nan)
    if present.any():
        wanted = np.quantile(x[present], 0.5, axis=0, method="lower" if lower else "linear")
    x[~present] = np.nan
    np.testing.assert_allclose(ops.masked_median(x, present, lower=lower), wanted, rtol=1e-6, atol=1e-30)


@settings(deadline=None, max_examples=100)
@given(values, masks)
def test_masked_std(x, present):
    wanted = x[present].astype(np.float64).std(axis=0) if present.any() else np.zeros(2)
    x[~present] = np.inf
    np.testing.assert_allclose(ops.masked_std(x, present), wanted, rtol=1e-4, atol=0.25)  # rounding of the mean


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_tree_norm(scale):
    rng = np.random.default_rng(0)
    tree = {"a": (scale * rng.standard_normal((7, 3))).astype(np.float32), "b": np.zeros(4, np.float32)}
    wanted = np.sqrt(np.sum(tree["a"].astype(np.float64) ** 2))
    np.testing.assert_allclose(ops.tree_norm(tree), wanted, rtol=1e-5)


def test_tree_norm_of_many_large_entries():
    np.testing.assert_allclose(ops.tree_norm(np.full(1_000_000, 5e17, np.float32)), 5e20, rtol=1e-5)


def test_tree_norm_of_zeros_and_of_what_is_not_finite():
    assert ops.tree_norm({"a": jnp.zeros(3)}) == 0
    assert np.isnan(ops.tree_norm({"a": jnp.array([jnp.nan, 1.0])}))
    assert np.isinf(ops.tree_norm({"a": jnp.array([jnp.inf, 1.0])}))


def test_tree_norm_of_zeros_that_the_compiler_knows():
    assert jax.jit(lambda: ops.tree_norm({"w": jnp.zeros(5)}))() == 0


def test_total_keeps_its_precision_at_resnet_size():
    x = np.random.default_rng(0).random(11_173_962, dtype=np.float32)
    wanted = x.astype(np.float64).sum()
    assert abs(float(ops.total(x)) - wanted) / wanted < 1e-6


def relative(ours, wanted):
    return float(np.linalg.norm(np.asarray(ours, np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def resnet_sized():
    """Three updates of ResNet-18's size in three layers, and the same in float64, `(3, d)`.

    Their mean is far from zero, which is what makes a sum in one go lose digits.
    """
    rng = np.random.default_rng(0)
    sizes = (4800, 512, 11_173_962 - 5312)
    stack = {f"{m:08d}": (0.3 + rng.standard_normal((3, m), dtype=np.float32)) * np.float32(1e-3) for m in sizes}
    return stack, np.concatenate([stack[name] for name in sorted(stack)], axis=1).astype(np.float64)


def test_norms_of_11_million_entries(resnet_sized):
    stack, exact = resnet_sized
    np.testing.assert_allclose(ops.map_rows(ops.tree_norm, stack), np.linalg.norm(exact, axis=1), rtol=1e-5)


def test_products_of_11_million_entries(resnet_sized):
    stack, exact = resnet_sized
    for i, j in ((0, 1), (0, 2), (2, 2)):
        ours = ops.tree_dot(*({name: x[at] for name, x in stack.items()} for at in (i, j)))
        np.testing.assert_allclose(ours, exact[i] @ exact[j], rtol=1e-5)


def test_means_of_11_million_entries(resnet_sized):
    stack, exact = resnet_sized
    mean, std = ops.mean_and_std(stack, np.ones(3, bool))
    assert relative(np.concatenate([mean[name] for name in sorted(stack)]), exact.mean(0)) < 1e-5
    assert relative(np.concatenate([std[name] for name in sorted(stack)]), exact.std(0, ddof=1)) < 1e-5


def test_distances_of_11_million_entries(resnet_sized):
    stack, exact = resnet_sized
    ours = np.asarray(ops.squared_distances(ops.gram(stack, np.ones(3, bool), np.int32(0))))
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert ours[i, j] == pytest.approx(np.sum((exact[i] - exact[j]) ** 2), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (7,), (13, 4), (1, 6, 3), (5, 1, 3), (11, 1)])
def test_largest_magnitude_and_counts(shape):
    x = np.asarray(jax.random.normal(jax.random.key(0), shape))
    assert ops.largest_magnitude(jnp.asarray(x)) == (np.abs(x).max() if x.size else 0)
    positive, negative = ops.counts(jnp.asarray(x) > 0, jnp.asarray(x) < 0)
    assert (positive, negative) == ((x > 0).sum(), (x < 0).sum())
    for bad in (np.nan, np.inf, -np.inf):
        if x.size:
            changed = x.copy()
            changed.flat[-1] = bad
            largest = ops.largest_magnitude(jnp.asarray(changed))
            assert np.isnan(largest) if np.isnan(bad) else np.isposinf(largest)


def test_counting_a_large_array_writes_nothing():
    """XLA's tree of windows would write the bools first."""
    x = np.zeros((400, 1000), np.float32)
    count = jax.jit(lambda x: (*ops.counts(x > 0, x < 0), ops.largest_magnitude(x))).lower(x).compile()
    assert count.memory_analysis().temp_size_in_bytes < 1000
