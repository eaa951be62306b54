import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import ops
from lasa_jax.federated import make_mesh

N = 16


def stack(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((N, 3, 5)).astype(np.float32),
        "b": rng.standard_normal((N, 4)).astype(np.float32),
    }


@pytest.mark.usefixtures("mesh", "platform")
class TestPrimitives:
    def test_map_rows(self):
        result = jax.jit(lambda x, y: ops.map_rows(lambda row, z: row["w"].sum() + z, x, y))(
            stack(), np.arange(float(N))
        )
        np.testing.assert_allclose(result, stack()["w"].sum((1, 2)) + np.arange(N), rtol=1e-5, atol=1e-5)

    def test_map_rows_reads_what_it_closes_over(self):
        shift = jnp.arange(3.0)
        result = jax.jit(lambda x, shift: ops.map_rows(lambda row: row["w"].sum(1) + shift, x))(stack(), shift)
        np.testing.assert_allclose(result, stack()["w"].sum(2) + np.arange(3.0), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("count", [0, 1, 5, N])
    def test_replace_rows(self, count):
        which = np.zeros(N, bool)
        which[np.random.default_rng(1).permutation(N)[:count]] = True
        new = jax.jit(
            lambda x, which, y: ops.replace_rows(lambda row, z: jax.tree.map(lambda x: 2 * x + z, row), x, which, y)
        )(stack(), which, np.arange(N, dtype=np.float32))
        for name, old in stack().items():
            wanted = 2 * old + np.arange(N).reshape((-1,) + (1,) * (old.ndim - 1))
            np.testing.assert_allclose(new[name][which], wanted[which], rtol=1e-6)
            np.testing.assert_array_equal(new[name][~which], old[~which])

    def test_weighted_sum(self):
        x = stack()
        weights = {"w": np.linspace(-1, 1, N).astype(np.float32), "b": np.ones(N, np.float32)}
        result = jax.jit(ops.weighted_sum)(weights, x)
        for name in x:
            np.testing.assert_allclose(result[name], np.tensordot(weights[name], x[name], 1), atol=1e-5)

    @pytest.mark.parametrize("poison", [np.nan, np.inf, 3e38])
    def test_weight_zero_selects_nothing(self, poison):
        x = stack()
        weights = np.ones(N, np.float32)
        weights[[2, 9]] = 0
        clean = jax.jit(ops.weighted_sum)(weights, x)
        for leaf in x.values():
            leaf[[2, 9]] = poison
        poisoned = jax.jit(ops.weighted_sum)(weights, x)
        jax.tree.map(np.testing.assert_array_equal, clean, poisoned)

    def test_row_map_runs_before_the_sum(self):
        x = stack()
        result = jax.jit(
            lambda x, z: ops.weighted_sum(jnp.ones(N), x, z, row_map=lambda row, z: jax.tree.map(lambda x: x * z, row))
        )(x, np.arange(N, dtype=np.float32))
        np.testing.assert_allclose(result["b"], np.tensordot(np.arange(N), x["b"], 1), rtol=1e-5, atol=1e-4)

    def test_half_precision_is_added_in_single(self):
        x = {"w": jnp.asarray(stack()["w"], jnp.bfloat16)}
        result = jax.jit(ops.weighted_sum)(np.full(N, 1 / N, np.float32), x)["w"]
        assert result.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            result.astype(np.float32), np.asarray(x["w"], np.float32).mean(0), rtol=0.01, atol=1e-6
        )

    @pytest.mark.parametrize("marked", [[], [3], [1, 4, 5, 9], list(range(N))])
    def test_mean_and_std(self, marked):
        x = stack()
        which = np.isin(np.arange(N), marked)
        for leaf in x.values():
            leaf[~which] = np.nan
        mean, std = jax.jit(ops.mean_and_std)(x, which)
        for name, leaf in x.items():
            chosen = leaf[which].astype(np.float64)
            wanted_mean = chosen.mean(0) if marked else np.zeros(leaf.shape[1:])
            wanted_std = chosen.std(0, ddof=1) if len(marked) > 1 else np.zeros(leaf.shape[1:])
            np.testing.assert_allclose(mean[name], wanted_mean, atol=1e-6)
            np.testing.assert_allclose(std[name], wanted_std, atol=1e-6)


def test_rows_stay_on_their_devices_and_numbers_go_to_all():
    with jax.set_mesh(make_mesh()):
        result = jax.jit(lambda x: ops.map_rows(lambda row: (row["w"], row["w"].sum(), row["b"].max()), x))(stack())
    rows, *numbers = (x.sharding for x in result)
    assert rows.spec == jax.sharding.PartitionSpec(ops.CLIENTS)
    assert all(x.is_fully_replicated for x in numbers)


def test_rows_that_do_not_divide_are_refused():
    with jax.set_mesh(make_mesh()), pytest.raises(ValueError, match="15 rows do not divide over 8 devices"):
        ops.map_rows(lambda x: x, np.ones((15, 2), np.float32))


@pytest.mark.parametrize("size", [1e-4, 300.0])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_deviations_of_half_precision_are_added_in_float32(size, platform):
    """The square of 300 is beyond float16, and that of 1e-4 has hardly a digit there."""
    rows = np.array([[size], [-size], [2 * size], [-2 * size], [0.0]], np.float16)
    with ops.compiling_for(platform):
        _, std = ops.mean_and_std({"w": jnp.asarray(rows)}, jnp.arange(5) < 4)
    assert std["w"].dtype == jnp.float16
    np.testing.assert_allclose(std["w"], rows[:4].astype(np.float64).std(ddof=1), rtol=2e-3, atol=6e-8)
