"""How much each client counts in a mean: all alike, or by the number of its examples."""

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators.base import Context, PyTree, Rows, equal_weights
from lasa_jax.aggregators.context import needed
from lasa_jax.errors import check_choice

_SIZES = frozenset({"sizes"})


def needs_of(weighting: str) -> frozenset[str]:
    """What a rule with this weighting needs to know: nothing for "equal", the clients' sizes for "size".

    Raises:
      InputError: for another word.
    """
    check_choice("weighting", weighting, ("equal", "size"))
    return _SIZES if weighting == "size" else frozenset()


def sizes_of(rows: Rows, weighting: str, context: Context | None, name: str) -> jax.Array | None:
    """The size of each row, `(n,)` of type `rows.dtype`; None where all count alike.

    A row that is mixed from several clients has the weighted sum of their sizes.

    Args:
      rows: as the rule reads them.
      weighting: of the rule.
      context: as the rule was given it.
      name: of the rule, for messages.

    Raises:
      InputError: if the sizes are needed and missing.
    """
    if weighting == "equal":
        return None
    sizes = jnp.asarray(needed(context, _SIZES, name).sizes, rows.dtype)
    return sizes if rows.sources is None else ops.product(rows.sources, sizes)


def mean_weights(rows: Rows, chosen: jax.Array, sizes: jax.Array | None) -> PyTree:
    """Diagnostics' `weight` of a rule that averages the `chosen` clients, bool `(n,)`, by their sizes where given.

    Clients without examples have weight 0, and so has everybody where no client has any.
    """
    if sizes is None:
        return equal_weights(rows, chosen)
    share = shares(chosen, sizes)
    return jax.tree.map(lambda _: share, rows.stack)


def shares(chosen: jax.Array, sizes: jax.Array) -> jax.Array:
    """Size over the sum of the chosen clients' sizes, by column: bool `(n, ...)` and sizes `(n,)` to `(n, ...)`."""
    counted = jnp.where(chosen, sizes.reshape((-1,) + (1,) * (chosen.ndim - 1)), 0.0)
    total = jnp.sum(counted, axis=0, keepdims=True)
    return counted / jnp.where(total > 0, total, 1.0)
