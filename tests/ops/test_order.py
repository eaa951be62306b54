import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from lasa_jax import ops
from lasa_jax.ops.order import _search

THRESHOLD = jax.jit(ops.magnitude_threshold)
floats = st.floats(width=32, allow_nan=False, allow_subnormal=False)


def kth_largest(values: np.ndarray, k: int) -> np.float32:
    return np.sort(np.abs(values))[-k]


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, 37, elements=floats), st.integers(1, 37))
def test_equals_sorting(values, k):
    assert THRESHOLD(values, k) == kth_largest(values, k)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, 64, elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3e38])), st.integers(1, 64))
def test_masses_of_ties(values, k):
    assert THRESHOLD(values, k) == kth_largest(values, k)


@pytest.mark.parametrize("spread", ["normal", "heavy", "mostly_zero", "rounded", "equal"])
@pytest.mark.parametrize("level", [0.0, 0.3, 0.9, 0.999])
def test_large_arrays_in_few_passes(spread, level):
    m = 400_000  # large enough for the sampled first interval
    rng = np.random.default_rng(0)
    values = rng.standard_normal(m).astype(np.float32)
    if spread == "heavy":
        values *= np.exp(3 * rng.standard_normal(m)).astype(np.float32)
    elif spread == "mostly_zero":
        values[rng.random(m) < 0.8] = 0
    elif spread == "rounded":
        values = np.round(values * 16) / 16
    elif spread == "equal":
        values[:] = 1.5
    k = max(1, int(m * (1 - level)))
    threshold, passes = jax.jit(_search)((values,), jnp.int32(k))
    assert threshold == kth_largest(values, k)
    assert passes <= 33
    if spread == "normal":
        assert passes <= 10  # bisection alone takes 31


def test_no_value_is_large_enough_for_k_of_zero():
    assert THRESHOLD(np.ones(5, np.float32), 0) == np.inf


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_several_arrays_of_any_type_count_together(dtype):
    rng = np.random.default_rng(0)
    parts = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((200, 300), (7,), (400, 250), (1, 1, 3))]
    joined = np.concatenate([np.asarray(x, np.float32).ravel() for x in parts])
    for k in (1, 10, 50_000, joined.size):
        assert THRESHOLD(parts, k) == kth_largest(joined, k)


def test_never_sorts():
    text = jax.jit(lambda x: ops.magnitude_threshold(x, 1000)).lower(np.zeros(500_000, np.float32)).compile().as_text()
    assert " sort(" not in text


@pytest.mark.parametrize(("population", "count"), [(1, 1), (5, 5), (50, 7), (5_000, 20), (100_000, 10_000)])
def test_sample_without_replacement(population, count):
    draw = jax.jit(lambda key: ops.sample_without_replacement(key, population, count))
    samples = np.stack([draw(jax.random.key(seed)) for seed in range(200)])
    assert samples.shape == (200, count)
    assert samples.min() >= 0
    assert samples.max() < population
    assert all(len(set(sample)) == count for sample in samples.tolist())
    # Every integer is as likely: the mean of all draws is near the middle.
    spread = population / np.sqrt(12 * samples.size)
    assert abs(samples.mean() - (population - 1) / 2) < 5 * spread


def test_a_sample_larger_than_the_population_is_refused():
    with pytest.raises(ValueError, match="at most 3"):
        ops.sample_without_replacement(jax.random.key(0), 3, 4)
