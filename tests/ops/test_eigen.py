"""The top eigenpair from products alone, and cosine distances from squared distances and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import ops


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e10, 1e37])
def test_the_top_eigenpair_at_every_size(size):
    factor = np.random.default_rng(0).standard_normal((9, 5))
    matrix = factor @ factor.T
    values, vectors = np.linalg.eigh(matrix)
    scale = size / matrix.max()
    value, vector = jax.jit(ops.top_eigenpair)(jnp.asarray(scale * matrix, jnp.float32))
    assert abs(value / (scale * values[-1]) - 1) < 1e-5
    assert abs(abs(np.dot(vector, vectors[:, -1])) - 1) < 1e-5


def test_the_top_eigenpair_of_zeros_is_zero():
    value, vector = ops.top_eigenpair(jnp.zeros((4, 4)))
    assert value == 0
    assert not vector.any()


@pytest.mark.parametrize("size", [1e-15, 1.0, 1e15])
def test_cosine_distances(size):
    """Also of nearly the same directions, of a zero, and of a row that is not usable."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 40))
    x[1] = x[0] + 1e-3 * x[1]
    x[2] = 0
    norms = np.linalg.norm(x, axis=1)
    unit = x / np.where(norms > 0, norms, 1)[:, None]
    wanted = ((unit[:, None] - unit[None]) ** 2).sum(-1) / 2
    wanted[2] = wanted[:, 2] = 1
    np.fill_diagonal(wanted, 0)
    squared = size**2 * ((x[:, None] - x[None]) ** 2).sum(-1)
    squared[5] = squared[:, 5] = np.inf
    found = ops.cosine_distances(jnp.asarray(squared, jnp.float32), jnp.asarray(size * norms, jnp.float32))
    np.testing.assert_allclose(found[:5, :5], wanted[:5, :5], rtol=2e-4, atol=1e-9)
    assert np.isinf(found[5]).all()
    np.testing.assert_array_equal(found, found.T)
