"""The largest eigenvalue of a small symmetric matrix, from products alone."""

import jax
import jax.numpy as jnp

from lasa_jax.ops.rows import product


def top_eigenpair(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Largest eigenvalue and its unit eigenvector of a positive semidefinite matrix: `(n, n)` to `()` and `(n,)`.

    Squared again and again, the matrix becomes `u u^T`: after 30 squarings an eigenvalue that is smaller by 1e-7 relative,
    all that float32 tells, has vanished. An eigenvalue solver would give all n, and runs on the host's terms on a GPU.
    The vector of a matrix of zeros is zero.
    """

    def scaled(power: jax.Array) -> jax.Array:
        trace = jnp.trace(power)
        return power / jnp.where(trace > 0, trace, 1.0)

    # The reciprocal of a trace of 1e38 would be flushed to zero.
    down = jnp.where(jnp.max(jnp.diagonal(matrix)) > 1e18, 2.0**-64, 1.0).astype(matrix.dtype)
    power = scaled(matrix * down)
    for _ in range(10):
        for _ in range(3):  # from a trace of 1 the eighth power stays in range for 10,000 clients
            power = product(power, power)
        power = scaled(power)
    u = power[:, jnp.argmax(jnp.diagonal(power))]
    u = u / jnp.maximum(jnp.sqrt(jnp.sum(u**2)), 1e-30)
    return jnp.sum(u * product(matrix * down, u)) / down, u
