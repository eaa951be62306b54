"""The direction of a row and its angle to a vector that everybody knows, for the rules that look at these."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import PyTree, Rows


def cosines_with(rows: Rows, vector: PyTree) -> tuple[jax.Array, jax.Array]:
    """Norm of each row and its cosine with a vector, `(n,)` each, in one reading of the stack.

    The cosine is 0 where the row or the vector is zero, beyond float32 or not finite. Entries of absent rows mean nothing.

    Args:
      rows: as a rule reads them.
      vector: a pytree like one row.
    """

    def measured(row: PyTree, vector: PyTree, length: jax.Array) -> tuple[jax.Array, jax.Array]:
        norm = ops.tree_norm(row)
        by, has_direction = _unit(norm)
        # Divided by a constant first: then neither the product nor a derivative leaves float32, whatever the row's scale.
        scaled = jax.tree.map(lambda x: jnp.where(has_direction, x.astype(norm.dtype), 0) / by, row)
        cosine = ops.tree_dot(scaled, vector) / jnp.where(has_direction, norm / by, 1.0)
        return norm, jnp.where(has_direction & (length > 0), jnp.clip(cosine, -1.0, 1.0), 0.0)

    length = ops.tree_norm(vector)
    by, has_direction = _unit(length)
    unit = jax.tree.map(lambda x: jnp.where(has_direction, x.astype(length.dtype), 0) / by, vector)
    return rows.each(measured, unit, jnp.where(has_direction, length, 0.0))


def rescaled(rows: Rows, norms: jax.Array) -> tuple[Rows, jax.Array]:
    """The rows divided by their norms, these as constants, and what the norms then are: 1, with the norms' derivatives.

    Args:
      rows: as a rule reads them.
      norms: of the rows, `(n,)`. A row without a direction stays as it is.
    """
    by, has_direction = _unit(norms)
    divided = rows.mapped(lambda row, by: jax.tree.map(lambda x: x.astype(by.dtype) / by, row), by)
    return divided, jnp.where(has_direction, norms / by, 1.0)


def _unit(norm: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What to divide by, 1 where there is no direction; and where there is one: the norm is finite and not flushed to 0."""
    has_direction = jnp.isfinite(norm) & (norm >= jnp.finfo(norm.dtype).tiny)
    return jax.lax.stop_gradient(jnp.where(has_direction, norm, 1.0)), has_direction
