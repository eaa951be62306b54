"""The updates on which laws are tried, how results are compared, and the devices over which clients are sharded."""

import contextlib
import math
import unittest
from collections.abc import Iterator, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from lasa_jax import aggregators, methods, ops
from lasa_jax.aggregators import Aggregator, Context
from lasa_jax.attacks import Attack

PyTree = Any
Updates = dict[str, np.ndarray]
Mask = np.ndarray | jax.Array

NUM_CLIENTS = 16
SHAPES = {"kernel": (6, 5), "bias": (5,), "conv": (3, 3, 2, 4)}  # of the layers of one update


def honest(seed: int = 0, n: int = NUM_CLIENTS) -> Updates:
    """Updates that agree in tendency, as those of honest clients do: leaves `(n, *SHAPES[name])`, float32."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.5 * rng.standard_normal(shape) + 0.3 * rng.standard_normal((n, *shape))).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def flat_rows(updates: PyTree) -> np.ndarray:
    """`(n, d)` in float64 with the layers in the order of `SHAPES`, which a jitted function does not keep."""
    return np.concatenate([np.asarray(updates[name], np.float64).reshape(len(updates[name]), -1) for name in SHAPES], 1)


def as_layers(flat: np.ndarray) -> dict[str, np.ndarray]:
    """One update `(d,)`, in the order of `flat_rows`, as its layers; each of them flat."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])
    return dict(zip(SHAPES, np.split(flat, ends[:-1]), strict=True))


def known(method: Aggregator | Attack, updates: PyTree, ids: Mask | None = None) -> dict[str, Context]:
    """The argument `context` of a rule or an attack, as a call takes it: `aggregate(..., **known(rule, updates))`.

    What a client is known by goes with its id; the rest depends on the shapes of the layers only.

    Args:
      method: empty for one that needs nothing.
      updates: leaves `(n, ...)`.
      ids: int `(n,)`, who sent which update; in order if None.
    """
    if not method.needs:
        return {}
    n = max((len(x) for x in jax.tree.leaves(updates)), default=0)
    ids = jnp.arange(n, dtype=jnp.int32) if ids is None else jnp.asarray(ids, jnp.int32)
    all_honest = honest()

    def of_server(path: Any, x: Any) -> jax.Array:
        like = all_honest.get(str(getattr(path[-1], "key", "")), np.zeros(0)) if path else np.zeros(0)
        return jnp.asarray(like.mean(axis=0), x.dtype) if like.shape[1:] == x.shape[1:] else _pattern(x, 1.0)

    everything = Context(
        params=jax.tree.map(lambda x: _pattern(x, 0.1), updates),
        sizes=1 + ids % 5,
        ids=ids,
        server_update=jax.tree_util.tree_map_with_path(of_server, updates),
        last_update=jax.tree.map(lambda x: _pattern(x, 0.3), updates),
        round_index=jnp.int32(1),
    )
    return {"context": Context(**{name: getattr(everything, name) for name in method.needs})}


def built_in(name: str, num_clients: int = 128) -> Aggregator:
    """A built-in rule with its defaults; one that remembers the population is told that it has so many clients."""
    told = {"num_clients": num_clients} if methods.remembers_clients("aggregator", name) else {}
    return aggregators.create(name, **told)


def initial(updates: PyTree) -> PyTree:
    """The model with which a run begins: what `init` of an attack is given, shaped like one update, whoever sends what."""
    return jax.tree.map(lambda x: _pattern(x, 0.2), updates)


def _pattern(x: Any, times: float) -> jax.Array:
    """Numbers in the shape and the type of one row of a leaf."""
    return (times * jnp.cos(jnp.arange(math.prod(x.shape[1:]), dtype=jnp.float32))).reshape(x.shape[1:]).astype(x.dtype)


def first_row(updates: PyTree) -> PyTree:
    """The update of the first client, leaves `(...)`: what `init` is given."""
    return jax.tree.map(lambda x: x[0], updates)


def marked(rows: Sequence[int], n: int = NUM_CLIENTS) -> np.ndarray:
    """The mask of these rows, bool `(n,)`."""
    return np.isin(np.arange(n), rows)


def filled(updates: Updates, which: np.ndarray, content: float | str) -> Updates:
    """The same updates with the marked rows holding one value, or a copy of client 3 where `content` is "copy"."""
    result = {name: x.copy() for name, x in updates.items()}
    for name, x in result.items():
        x[which] = updates[name][3] if content == "copy" else content
    return result


def assert_close(actual: PyTree, wanted: PyTree, atol: float = 1e-6, what: str = "the result") -> None:
    """Compares two pytrees leaf by leaf, whatever the shape of a leaf: `|actual - wanted| <= atol + 1e-7 |wanted|`.

    Raises:
      AssertionError: with `what`, the leaf and the numbers.
    """
    try:
        chex.assert_trees_all_close(*jax.tree.map(np.ravel, (actual, wanted)), rtol=1e-7, atol=atol)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def assert_same(actual: PyTree, wanted: PyTree, what: str) -> None:
    """Compares two pytrees bit by bit; NaN is equal to NaN."""
    try:
        chex.assert_trees_all_equal(actual, wanted)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def assert_like(actual: PyTree, wanted: PyTree, what: str) -> None:
    """Compares the structure, the shapes and the dtypes of two pytrees of arrays or of `jax.ShapeDtypeStruct`."""
    found, allowed = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)), tree)
        for tree in (actual, wanted)
    )
    if found != allowed:
        raise AssertionError(f"{what}: {found}, allowed is {allowed}")


@contextlib.contextmanager
def sharded_clients() -> Iterator[None]:
    """Inside it the clients lie on several devices: as many as divide `NUM_CLIENTS`.

    Raises:
      unittest.SkipTest: where there is one device only.
    """
    count = math.gcd(NUM_CLIENTS, 2 ** int(math.log2(jax.device_count())))
    if count == 1:
        raise unittest.SkipTest(
            "needs several devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8 before JAX starts"
        )
    kinds = (AxisType.Auto,) * 2
    mesh = jax.make_mesh((1, count), (ops.RUNS, ops.CLIENTS), axis_types=kinds, devices=jax.devices()[:count])
    with jax.set_mesh(mesh):
        yield
