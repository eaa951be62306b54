"""Mimic (Karimireddy, He and Jaggi, ICLR 2022, section 3): malicious clients all copy one honest client."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.attacks.base import Attack, PyTree, all_present, honest_labels, known_rows


class MimicState(NamedTuple):
    """What the attacker has learnt so far: a running mean of honest updates and the direction in which they differ most."""

    mean: PyTree
    direction: PyTree
    rounds: jax.Array


def mimic() -> Attack:
    """Malicious clients send the honest update that is farthest out in the direction in which honest updates differ most.

    They pass for honest, but give one client's data a weight that it should not have. With t rounds seen:

        mu <- t / (1 + t) * mu + 1 / (1 + t) * mean of x_i
        v  <- t / (1 + t) * v  + 1 / (1 + t) * sum of (x_i - mu) <x_i - mu, v / |v|>     (one step towards the top direction)
        row = x_i of the benign client with the largest <x_i - mu, v>

    In the first round v is the deviation of the first benign client. Clients change from round to round here, so the one
    that is copied is chosen anew every round, where the paper fixes one after a while.
    """

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
    ) -> tuple[PyTree, MimicState]:
        present = all_present(updates, present)
        known = known_rows("benign", malicious, present)
        kind = ops.wide(updates)
        rounds = state.rounds.astype(kind)
        seen = rounds / (1.0 + rounds)
        share = known.astype(kind) / jnp.maximum(jnp.sum(known, dtype=jnp.int32), 1).astype(kind)
        wide = functools.partial(jax.tree.map, lambda x: x.astype(kind))
        mean = jax.tree.map(
            lambda m, x: seen * m + (1 - seen) * x, wide(state.mean), wide(ops.weighted_sum(share, updates))
        )
        only_first = (jnp.arange(len(known)) == jnp.argmax(known)).astype(jnp.float32)
        first = jax.tree.map(jnp.subtract, ops.weighted_sum(only_first, updates), mean)
        direction = jax.tree.map(lambda v, x: jnp.where(state.rounds == 0, x, v), state.direction, first)
        length = jnp.maximum(ops.tree_norm(direction), 1e-30)
        unit = jax.tree.map(lambda v: v / length, direction)

        def along(direction: PyTree) -> jax.Array:
            def dot(row: PyTree, mean: PyTree, v: PyTree) -> jax.Array:
                return ops.tree_dot(jax.tree.map(jnp.subtract, row, mean), v)

            return jnp.where(known, ops.map_rows(dot, updates, shared=(mean, direction)), 0.0)

        weights = along(unit)
        pulled = jax.tree.map(lambda x, m: x - jnp.sum(weights) * m, ops.weighted_sum(weights, updates), mean)
        direction = jax.tree.map(lambda v, x: seen * v + (1 - seen) * x, direction, pulled)
        target = jnp.argmax(jnp.where(known, along(direction), -jnp.inf))
        row = ops.weighted_sum((jnp.arange(len(known)) == target).astype(jnp.float32), updates)
        crafted = ops.replace_rows(lambda _: row, updates, malicious & present)
        direction = jax.tree.map(lambda v, like: v.astype(like.dtype), direction, state.direction)
        return crafted, MimicState(mean, direction, state.rounds + 1)

    return Attack(init, honest_labels, craft)
