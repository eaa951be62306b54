"""What the rules share that remember each client of the population by its id."""

import jax
import jax.numpy as jnp

from lasa_jax.aggregators.base import Context, PyTree, Rows
from lasa_jax.aggregators.context import needed
from lasa_jax.errors import InputError, check_number


def check_num_clients(num_clients: int | None) -> None:
    """Raises InputError unless it is None, for a config that says it elsewhere, or a whole number from 1 on."""
    if num_clients is not None:
        check_number("num_clients", num_clients, low=1, whole=True)


def population(num_clients: int | None, name: str) -> int:
    """The size of the population, for `init`.

    Raises:
      InputError: if it was not given.
    """
    if num_clients is None:
        raise InputError(f"{name}: num_clients = None, allowed is the size of the population, {name}(num_clients=...)")
    return num_clients


def ids_of(rows: Rows, context: Context | None, needs: frozenset[str], name: str) -> tuple[jax.Array, Context]:
    """The client that each row is from, int32 `(n,)`; and the context, which has what the rule needs.

    Raises:
      InputError: if something is missing, or rows are mixed from several clients.
    """
    known = needed(context, needs, name)
    if rows.sources is not None:
        raise InputError(f"{name}: rows are mixed from several clients, allowed are pre-aggregators that mix none")
    return jnp.asarray(known.ids, jnp.int32), known


def named_layers(params: PyTree) -> list[str]:
    """The names of the layers in their order, as `params/conv1/bias`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]


def only(ids: jax.Array, which: jax.Array, table: jax.Array) -> jax.Array:
    """The ids of the marked clients; of the others a place beyond the table's end, where nothing is written."""
    return jnp.where(which, ids, len(table))


def mean_of_last(values: jax.Array, count: jax.Array) -> jax.Array:
    """Mean of the values in the slots that are filled, `(n, window)` and `(n,)` to `(n,)`; 0 where none is."""
    there = jnp.arange(values.shape[1], dtype=jnp.int32)[None] < count[:, None]
    number = jnp.clip(count, 1, values.shape[1]).astype(values.dtype)
    return jnp.sum(jnp.where(there, values, 0.0), axis=1) / number
