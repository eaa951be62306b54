"""ByzMean (Xu, Huang, Song and Lan, ICDCS 2022): makes the plain mean what another attack sends."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators import Context
from lasa_jax.attacks.base import (
    KNOWLEDGE,
    Attack,
    Count,
    PyTree,
    Scalar,
    checked,
    honest_examples,
    known_rows,
    stateless,
)
from lasa_jax.attacks.statistical import lie_row
from lasa_jax.errors import check_choice, check_number

BASES: dict[str, Callable[..., Attack]] = {}  # the attacks that it may build on, by name: `lasa_jax.attacks` names them


def byzmean(
    z: Scalar = 0.5,
    variant: str = "paper",
    knowledge: str = "benign",
    base: str | Attack | None = None,
    m1: Count | None = None,
) -> Attack:
    """ByzMean with Lie, or any other attack, as its base: makes the plain mean equal to what the base sends.

        beta  = mean - z * std                               sent by the first m1 malicious clients
        gamma = ((n - m1) * beta - sum of benign) / m2       sent by the other m2 = f - m1

    so that the mean over all n rows is beta. A base of its own, whose clients may send different rows, takes the place of
    Lie: each of the first m1 sends the base's row, beta is their mean, and that of all malicious clients' where m1 is 0.

    Args:
      z: of the Lie row; 0.5 in the supplement (section C). May be traced. Not used with a base.
      variant: "paper" is the above. "official" is what the official code sends (docs/fidelity.md, section 4.1): all f
        rows are `((n - f - m1) * beta - sum of all n honest rows) / m2`, the base's row itself if f = 1.
      knowledge: whose updates beta is taken from, see `known_rows`. As in the official code: "all". Not used with a base.
      base: another attack, or the name of one, with its own defaults; in a config its settings are those of that attack.
        What it poisons, remembers and needs, it does here too. Lie, with the z and the knowledge above, if None.
      m1: how many clients send the base's row, `>= 0` and at most f - 1; floor(f / 2), as in the supplement, if None. May be
        traced.

    Raises:
      InputError: for a value out of range, or a base that is no other attack.
    """
    check_number("z", z)
    check_choice("variant", variant, ("paper", "official"))
    check_choice("knowledge", knowledge, KNOWLEDGE)
    if m1 is not None:
        check_number("m1", m1, low=0, whole=True)
    named = base if isinstance(base, Attack) or base is None else _named(base)

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
        n, f = jnp.sum(present, dtype=jnp.int32), jnp.sum(malicious, dtype=jnp.int32)
        first = f // 2 if m1 is None else jnp.clip(jnp.asarray(m1, jnp.int32), 0, jnp.maximum(f - 1, 0))
        m2 = jnp.maximum(f - first, 1)
        if variant == "paper":
            coefficient, summed = n - first, present & ~malicious
            sends_beta = malicious & (jnp.cumsum(malicious, dtype=jnp.int32) <= first)
        else:
            coefficient, summed = n - f - first, present
            sends_beta = malicious & (f == 1)
        kind = ops.wide(updates)
        total = ops.weighted_sum(summed.astype(kind), updates)
        if named is None:
            beta = lie_row(updates, known_rows(knowledge, malicious, present), z)
        else:
            updates, state = named.craft(
                updates, state, malicious, key=key, present=present, aggregate=aggregate, **named.knowing(context)
            )
            counted = jnp.where(jnp.any(sends_beta), sends_beta, malicious)
            share = counted.astype(kind) / jnp.maximum(jnp.sum(counted, dtype=jnp.int32), 1).astype(kind)
            beta = jax.tree.map(lambda x: x.astype(kind), ops.weighted_sum(share, updates))
        coefficient, divisor = coefficient.astype(kind), m2.astype(kind)
        gamma = jax.tree.map(lambda b, s: (coefficient * b - s.astype(kind)) / divisor, beta, total)
        if named is not None:
            return ops.replace_rows(lambda _: gamma, updates, malicious & ~sends_beta), state

        def row(_: PyTree, is_beta: jax.Array) -> PyTree:
            return jax.tree.map(lambda b, g: jnp.where(is_beta, b, g), beta, gamma)

        return ops.replace_rows(row, updates, malicious, sends_beta), state

    return Attack(stateless, honest_examples, craft) if named is None else named._replace(craft=craft)


def _named(base: str) -> Attack:
    """The attack of that name, with its defaults."""
    check_choice("base", base, tuple(sorted(BASES)))
    return BASES[base]()
