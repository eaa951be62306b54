"""Mimic (Karimireddy, He and Jaggi, ICLR 2022, section 3): malicious clients all copy one honest client."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators import Context
from lasa_jax.aggregators.context import needed
from lasa_jax.attacks.base import Attack, Count, PyTree, checked, honest_examples, known_rows, stateless
from lasa_jax.errors import check_number

_IDS = frozenset({"ids"})


class MimicState(NamedTuple):
    """What the attacker has learnt so far: a running mean of honest updates and the direction in which they differ most."""

    mean: PyTree
    direction: PyTree
    rounds: jax.Array


def mimic(client: Count | None = None) -> Attack:
    """Malicious clients send the honest update that is farthest out in the direction in which honest updates differ most.

    They pass for honest, but give one client's data a weight that it should not have. With t rounds seen:

        mu <- t / (1 + t) * mu + 1 / (1 + t) * mean of x_i
        v  <- t / (1 + t) * v  + 1 / (1 + t) * sum of (x_i - mu) <x_i - mu, v / |v|>     (one step towards the top direction)
        row = x_i of the benign client with the largest |<x_i - mu, v>|

    A direction of largest spread has no sign, so the client may be at either end. In the first round v is the deviation of
    the benign client that is farthest from mu: what is sent does not depend on the order of the clients. Clients change
    from round to round here, so the one that is copied is chosen anew every round, where the paper fixes one after a while.

    Args:
      client: who is copied, by its number in the population, `>= 0`; found as above if None. It needs `Context.ids`. In
        rounds without it, and if it is malicious itself, malicious clients send what they would honestly. May be traced.

    Raises:
      InputError: for a number out of range; from `craft` with a client, for a context without ids.
    """
    if client is not None:
        check_number("client", client, low=0, whole=True)
        return _mimic_of(client)

    def init(params: PyTree) -> MimicState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return MimicState(zeros, jax.tree.map(jnp.copy, zeros), jnp.int32(0))

    def craft(
        updates: PyTree,
        state: MimicState,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: object = None,
    ) -> tuple[PyTree, MimicState]:
        malicious, present = checked(updates, malicious, present)
        known = known_rows("benign", malicious, present)
        kind = ops.wide(updates)
        rounds = state.rounds.astype(kind)
        seen = rounds / (1.0 + rounds)
        share = known.astype(kind) / jnp.maximum(jnp.sum(known, dtype=jnp.int32), 1).astype(kind)
        before, now = _as_type((state.mean, ops.weighted_sum(share, updates)), kind)
        mean = jax.tree.map(lambda m, x: seen * m + (1 - seen) * x, before, now)

        def moved(row: PyTree, mean: PyTree) -> PyTree:
            return jax.tree.map(lambda x, m: x.astype(kind) - m, row, mean)

        def of_client(index: jax.Array) -> PyTree:
            return ops.weighted_sum((jnp.arange(len(known), dtype=jnp.int32) == index).astype(kind), updates)

        def farthest() -> PyTree:
            def squared(row: PyTree, mean: PyTree) -> jax.Array:
                away = moved(row, mean)
                return ops.tree_dot(away, away)

            apart = ops.map_rows(squared, updates, shared=(mean,))
            return moved(of_client(jnp.argmax(jnp.where(known, apart, -jnp.inf)).astype(jnp.int32)), mean)

        # The stack is read for it in the first round only.
        starts = state.rounds == 0
        first = jax.lax.cond(ops.any_run(starts), farthest, lambda: jax.tree.map(jnp.zeros_like, mean))
        direction = jax.tree.map(lambda v, x: jnp.where(starts, x, v), _as_type(state.direction, kind), first)
        length = jnp.maximum(ops.tree_norm(direction), 1e-30)
        unit = jax.tree.map(lambda v: v / length, direction)

        def along(direction: PyTree) -> jax.Array:
            def dot(row: PyTree, mean: PyTree, v: PyTree) -> jax.Array:
                return ops.tree_dot(moved(row, mean), v)

            return jnp.where(known, ops.map_rows(dot, updates, shared=(mean, direction)), 0.0)

        weights = along(unit)
        summed = _as_type(ops.weighted_sum(weights, updates), kind)
        pulled = jax.tree.map(lambda x, m: x - jnp.sum(weights) * m, summed, mean)
        direction = jax.tree.map(lambda v, x: seen * v + (1 - seen) * x, direction, pulled)
        target = jnp.argmax(jnp.where(known, jnp.abs(along(direction)), -jnp.inf)).astype(jnp.int32)
        row = of_client(target)
        crafted = ops.replace_rows(lambda _: row, updates, malicious)
        mean, direction = (
            jax.tree.map(lambda x, like: x.astype(like.dtype), new, old)
            for new, old in ((mean, state.mean), (direction, state.direction))
        )
        return crafted, MimicState(mean, direction, state.rounds + 1)

    return Attack(init, honest_examples, craft)


def _mimic_of(client: Count) -> Attack:
    """Copies the client of that number in the population."""

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: Context | None = None,
    ) -> tuple[PyTree, PyTree]:
        malicious, present = checked(updates, malicious, present)
        ids = needed(context, _IDS, "mimic").ids
        copied = (ids == jnp.asarray(client, jnp.int32)) & present & ~malicious
        row = ops.weighted_sum(copied.astype(ops.wide(updates)), updates)
        return ops.replace_rows(lambda _: row, updates, malicious & jnp.any(copied)), state

    return Attack(stateless, honest_examples, craft, needs=_IDS)


def _as_type(tree: PyTree, kind: jnp.dtype) -> PyTree:
    return jax.tree.map(lambda x: x.astype(kind), tree)
