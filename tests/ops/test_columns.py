import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from benchmarks import collectives
from lasa_jax import ops
from lasa_jax.aggregators.krum import nearest_window
from lasa_jax.federated import make_mesh

N = 16
floats = st.floats(width=32, allow_subnormal=False)  # NaN and infinities too


def stack(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((N, 3, 50)).astype(np.float32),
        "b": rng.standard_normal((N, 7)).astype(np.float32),
        "o": rng.standard_normal((N, 5, 77)).astype(np.float32),  # of an odd number of columns
        "l": rng.standard_normal((N, 2, 5000)).astype(np.float32),  # of lines longer than a block
        "k": rng.standard_normal((N, 90, 12)).astype(np.float32),  # of whole lines in a block, on a TPU
    }


def flat(tree: dict) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in tree.values()], axis=1)


def squared_distances(x: dict, present: np.ndarray, center: int) -> jax.Array:
    return ops.squared_distances(ops.gram(x, present, center))


SORT = jax.jit(ops.sort_clients)


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, (13, 3), elements=floats), hnp.arrays(bool, 13))
def test_sort_equals_sorting_the_rows_that_are_present(x, present):
    wanted = np.where(np.isnan(x[present]), np.inf, x[present])
    np.testing.assert_array_equal(SORT(x, present)[: present.sum()], np.sort(wanted, axis=0))
    assert np.isposinf(SORT(x, present)[present.sum() :]).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 31, 64, 100, 129])
def test_the_network_sorts_zeros_and_ones(n):
    """The zero-one principle (Knuth, TAOCP 3, section 5.3.4): what sorts all of them sorts everything."""
    x = (np.random.default_rng(n).random((n, 400)) < np.linspace(0, 1, 400)).astype(np.float32)
    if n <= 8:
        x = ((np.arange(2**n)[None, :] >> np.arange(n)[:, None]) & 1).astype(np.float32)  # all of them
    np.testing.assert_array_equal(jax.jit(ops.sort_clients)(x, np.ones(n, bool)), np.sort(x, axis=0))


def test_the_network_compiles_to_one_loop():
    """The size of the program does not grow with the number of clients."""

    def lines(n: int) -> int:
        return len(
            jax.jit(ops.sort_clients).lower(np.zeros((n, 64), np.float32), np.ones(n, bool)).as_text().split("\n")
        )

    assert lines(400) <= lines(20) + 10


@settings(deadline=None, max_examples=100)
@given(
    hnp.arrays(np.float32, (9, 2), elements=st.floats(-100, 100, width=32)),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_average_of_ranks(x, first, count):
    count = min(count, 9 - first)
    ordered = np.sort(x, axis=0)
    wanted = ordered[first : first + count].astype(np.float64).mean(0) if count else np.zeros(2)
    np.testing.assert_allclose(ops.average_of_ranks(ordered, first, count), wanted, atol=1e-4)


WINDOW = jax.jit(nearest_window)


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(np.float32, (9, 3), elements=st.floats(-100, 100, width=32)),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**31),
)
def test_nearest_window(x, count, width, seed):
    """The chosen values are no farther from the center than those that were left out."""
    width = min(width, count)
    center = np.random.default_rng(seed).uniform(-100, 100, 3).astype(np.float32)
    ordered = np.sort(x, axis=0)
    ordered[:count] = np.sort(x[:count], axis=0)
    ordered[count:] = np.inf
    first = np.asarray(WINDOW(ordered, count, center, width))
    assert (first >= 0).all()
    assert (first + width <= count).all()
    for column in range(3):
        distance = np.sort(np.abs(center[column] - ordered[:count, column]))
        chosen = np.abs(center[column] - ordered[first[column] : first[column] + width, column])
        np.testing.assert_array_equal(np.sort(chosen), distance[:width])


def test_sample_without_replacement():
    draw = jax.jit(ops.sample_without_replacement, static_argnums=(1, 2))
    for population, count in ((5, 5), (5, 4), (1000, 100), (2**31 - 1, 50)):
        for seed in range(20):
            chosen = np.asarray(draw(jax.random.key(seed), population, count))
            assert len(np.unique(chosen)) == count
            assert 0 <= chosen.min() <= chosen.max() < population


def test_every_sample_is_equally_likely():
    """All 20 sets of 3 out of 6, by a chi-squared test: 19 degrees of freedom exceed 44 once in 1,000 times."""
    keys = jax.random.split(jax.random.key(0), 4000)
    chosen = jax.jit(jax.vmap(lambda key: ops.sample_without_replacement(key, 6, 3)))(keys)
    _, counts = np.unique(np.sort(chosen, axis=1), axis=0, return_counts=True)
    assert len(counts) == 20
    assert ((counts - 200) ** 2 / 200).sum() < 44


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.float32, (4, 7), elements=st.floats(-1e6, 1e6, width=32)), st.integers(0, 9))
def test_sum_of_smallest(x, count):
    wanted = np.sort(x.astype(np.float64), axis=1)[:, :count].sum(1)
    np.testing.assert_allclose(ops.sum_of_smallest(x, count), wanted, rtol=1e-5, atol=1)


@pytest.mark.usefixtures("mesh", "platform")
class TestOverColumns:
    """On one device and on eight, in the forms of all platforms."""

    @pytest.mark.parametrize("width", [16, 4096])
    def test_map_columns(self, width, monkeypatch):
        monkeypatch.setattr(ops.columns, "_block_width", lambda n, columns, *, summed: width)
        weights = np.linspace(-1, 1, N).astype(np.float32)
        result = jax.jit(lambda x, w: ops.map_columns(lambda block, w: w @ block, x, shared=(w,)))(stack(), weights)
        for name, x in stack().items():
            np.testing.assert_allclose(result[name], np.tensordot(weights, x, 1), atol=1e-5)
        ends = jax.jit(lambda x: ops.map_columns(lambda block: (block.min(axis=0), block.max(axis=0)), x))(stack())
        for name, x in stack().items():
            np.testing.assert_array_equal(ends[0][name], x.min(axis=0))
            np.testing.assert_array_equal(ends[1][name], x.max(axis=0))

    def test_sum_columns(self):
        result = jax.jit(lambda x: ops.sum_columns(lambda block: jnp.sum(block, axis=1), x))(stack())
        np.testing.assert_allclose(result, flat(stack()).sum(1), rtol=1e-5, atol=1e-4)

    def test_squared_distances(self):
        x = flat(stack())
        wanted = ((x[:, None] - x[None, :]) ** 2).sum(-1)
        actual = jax.jit(squared_distances)(stack(), np.ones(N, bool), 3)
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
        assert (np.diagonal(actual) == 0).all()

    @pytest.mark.parametrize("content", [np.nan, np.inf, -np.inf, 1e38, 1.5e19, 9e18])
    def test_rows_at_no_finite_distance(self, content):
        updates = stack()
        clean = np.asarray(jax.jit(squared_distances)(updates, np.ones(N, bool), 3))
        updates["w"][5, 0, 7] = content
        present = np.arange(N) != 11
        actual = np.asarray(jax.jit(squared_distances)(updates, present, 3))
        good = present & (np.arange(N) != 5)
        np.testing.assert_array_equal(np.isfinite(actual), good[:, None] & good[None, :])
        np.testing.assert_allclose(actual[np.ix_(good, good)], clean[np.ix_(good, good)], rtol=1e-5, atol=1e-5)

    def test_mix_rows(self):
        mixing = np.random.default_rng(0).random((N, N)).astype(np.float32)
        mixing[:, 4] = 0
        mixing[2, 9] = 0
        updates = stack()
        updates["w"][4] = np.nan
        updates["b"][9, 3] = np.inf
        result = jax.jit(ops.mix_rows)(mixing, updates)
        clean = {name: np.where(np.isfinite(x), x, 0) for name, x in updates.items()}
        np.testing.assert_allclose(result["w"], np.tensordot(mixing, clean["w"], 1), rtol=1e-5, atol=1e-5)
        wanted = np.tensordot(mixing, clean["b"], 1)
        wanted[np.arange(N) != 2, 3] = np.nan  # only row 2 takes nothing of the infinity
        np.testing.assert_allclose(result["b"], wanted, rtol=1e-5, atol=1e-5)


def test_what_all_rows_share_does_not_cancel():
    """Rows 1e-3 apart and 1e3 away from zero: |x|^2 + |y|^2 - 2 x y alone would be nothing but rounding."""
    rng = np.random.default_rng(0)
    common = (1e3 * rng.standard_normal(5000)).astype(np.float32)
    apart = (2.0**-10 * rng.integers(-8, 8, (N, 5000))).astype(np.float32)
    x = (common + apart).astype(np.float32)
    exact = ((x.astype(np.float64)[:, None] - x.astype(np.float64)[None, :]) ** 2).sum(-1)
    actual = jax.jit(squared_distances)({"w": x}, np.ones(N, bool), 0)
    np.testing.assert_allclose(actual, exact, rtol=1e-4)


@pytest.mark.parametrize(
    "work",
    [
        lambda x, p: squared_distances(x, p, 0),
        lambda x, p: ops.map_columns(
            lambda block, p: ops.average_of_ranks(ops.sort_clients(block, p), 2, 40), x, shared=(p,)
        ),
    ],
    ids=["squared_distances", "sort_clients"],
)
def test_no_second_stack(work):
    """What a column-wise rule needs beside the stack and one update: a few blocks that fit in cache."""
    shapes = {"a": jax.ShapeDtypeStruct((50, 300, 300), np.float32), "b": jax.ShapeDtypeStruct((50, 300), np.float32)}
    compiled = jax.jit(work).lower(shapes, jax.ShapeDtypeStruct((50,), bool)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * 4 * 50 * 300 * 301


@pytest.mark.parametrize("d", [13_706, 300_000])
def test_blocks_are_of_like_width(d):
    """No block is nearly empty: at most four of a hundred columns that are sent are padding."""
    mesh, n = make_mesh(), 32
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ops.CLIENTS))
    shapes = {"w": jax.ShapeDtypeStruct((n, d), np.float32, sharding=spec)}
    for work in (
        lambda x: ops.map_columns(lambda block: jnp.max(block, axis=0), x),
        lambda x: ops.sum_columns(lambda block: block @ block.T, x),
    ):
        with jax.set_mesh(mesh):
            text = jax.jit(work).lower(shapes).compile().as_text()
        assert 1 <= collectives.count(text)["all-to-all"][0] / (4 * d * n / 8) < 1.04


def test_devices_swap_columns_once():
    """Sharded, a column-wise rule sends each entry of the stack once, a few at a time, and gathers one update."""
    mesh = make_mesh()
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(ops.CLIENTS))
    n, d = 128, 1 << 20
    shapes = {"w": jax.ShapeDtypeStruct((n, d), np.float32, sharding=spec)}
    with jax.set_mesh(mesh):
        lowered = jax.jit(lambda x: ops.map_columns(lambda block: jnp.max(block, axis=0), x)).lower(shapes)
    compiled = lowered.compile()
    text = compiled.as_text()
    assert text.count(" all-to-all(") == 1
    assert text.count(" all-gather(") == 1
    assert " all-reduce(" not in text
    sent = {kind: size for kind, (size, _) in collectives.count(text).items()}
    assert sent == pytest.approx({"all-to-all": 4 * d * n / 8, "all-gather": 4 * d}, rel=0.02)
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * 4 * d * n / 8  # no second copy of the device's rows
