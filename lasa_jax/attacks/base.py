"""What an attack is, and what its attacker knows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lasa_jax import ops
from lasa_jax.aggregators import Context, Rows
from lasa_jax.errors import InputError, check_choice

PyTree = Any
Scalar = float | jax.Array
Count = int | jax.Array

KNOWLEDGE = ("benign", "colluders", "all")


def stateless(params: PyTree) -> tuple[()]:
    """`init` of an attack that carries nothing from round to round."""
    return ()


def honest_examples(
    inputs: jax.Array, labels: jax.Array, *, num_classes: int, key: jax.Array, client: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`poison` of an attack that does not poison data."""
    return inputs, labels


def unconstrained(params: PyTree, start: PyTree, state: PyTree) -> PyTree:
    """`constrain` of an attack that lets its clients train freely."""
    return params


def unprepared(state: PyTree, context: Context) -> PyTree:
    """`begin` of an attack that learns nothing when a round begins."""
    return state


class Attack(NamedTuple):
    """An attack as pure functions, jittable and vmappable. The last four do nothing unless they are given.

    init: `init(params) -> state`; `params` is one update's worth of arrays.
    poison: `poison(inputs, labels, *, num_classes, key, client) -> (inputs, labels)` of a batch of one malicious client's
      training examples, as stored: images are uint8, before they are normalised. client: its number in the population.
    craft: `craft(updates, state, malicious, *, key, present=None, aggregate=None, context=None) -> (updates, state)`.
      updates: what every client, malicious ones too, would have sent after training, leaves `(n, ...)`. malicious: bool
      `(n,)`. aggregate: the server's rule as a function of updates, for attacks that adapt to it. context: an
      `aggregators.Context` with what the attack needs; an attack that needs nothing is called without. Only malicious
      rows change. Raises InputError for a stack or a mask that is none, see `checked`.
    constrain: `constrain(params, start, state) -> params`, after every local step of a malicious client. params: its model,
      a pytree like one update. start: the global model.
    begin: `begin(state, context) -> state`, when a round begins, before anybody trains.
    trigger: `trigger(inputs, labels) -> (inputs, target labels, counted)` of test examples as stored: with the backdoor's
      trigger, the labels that it aims at, and which examples count in its success rate, bool. None without a backdoor.
    needs: the fields of `aggregators.Context` that `craft` and `begin` read.
    """

    init: Callable[[PyTree], PyTree]
    poison: Callable[..., tuple[jax.Array, jax.Array]]
    craft: Callable[..., tuple[PyTree, PyTree]]
    constrain: Callable[[PyTree, PyTree, PyTree], PyTree] = unconstrained
    begin: Callable[[PyTree, Context], PyTree] = unprepared
    trigger: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]] | None = None
    needs: frozenset[str] = frozenset()

    def knowing(self, context: Context | None) -> dict[str, Context | None]:
        """The argument `context` of a call of `craft`, or no argument where the attack needs none."""
        return {"context": context} if self.needs else {}


def checked(updates: PyTree, malicious: Any, present: Any = None) -> tuple[jax.Array, jax.Array]:
    """Who is malicious among those present, and who is present, bool `(n,)` both: what `craft` begins with.

    Args:
      updates: the stack that `craft` is given, leaves `(n, ...)`.
      malicious: bool `(n,)`.
      present: bool `(n,)`; all if None.

    Raises:
      InputError: for a stack or a mask that is none, as the rules do; see `aggregators.Rows.of`.
    """
    present = Rows.of(updates, present).present
    malicious, n = jnp.asarray(malicious), len(present)
    if malicious.shape != (n,) or malicious.dtype != bool:
        raise InputError(
            f"malicious: {malicious.dtype}{list(malicious.shape)}, allowed is bool[{n}], one for each client"
        )
    return malicious & present, present


def known_rows(knowledge: str, malicious: jax.Array, present: jax.Array) -> jax.Array:
    """The rows from which the attacker takes its statistics, bool `(n,)`.

    Args:
      knowledge: "benign", the benign clients' updates; "colluders", the malicious clients' own honest updates; "all".
      malicious, present: bool `(n,)`.

    Returns:
      The rows; where there is none (knowledge "benign" and nobody is benign), all that are present.

    Raises:
      InputError: for another word.
    """
    check_choice("knowledge", knowledge, KNOWLEDGE)
    chosen = {"benign": ~malicious, "colluders": malicious, "all": jnp.ones_like(malicious)}[knowledge] & present
    return jnp.where(jnp.any(chosen), chosen, present)


def same_row(craft_row: Callable[[PyTree, jax.Array, jax.Array], PyTree]) -> Attack:
    """An attack without memory in which all malicious clients send the same row.

    Args:
      craft_row: `craft_row(updates, malicious, present) -> row`; `malicious` is true for present rows only.
    """

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree]:
        malicious, present = checked(updates, malicious, present)
        row = craft_row(updates, malicious, present)
        return ops.replace_rows(lambda _: row, updates, malicious), state

    return Attack(stateless, honest_examples, craft)


def changed_row(change: Callable[[PyTree, jax.Array], PyTree]) -> Attack:
    """An attack without memory in which every malicious client changes its own honest update, `change(row, key) -> row`."""

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: object = None,
        context: object = None,
    ) -> tuple[PyTree, PyTree]:
        which, _ = checked(updates, malicious, present)
        return ops.replace_rows(change, updates, which, row_keys(key, len(which))), state

    return Attack(stateless, honest_examples, craft)


def simulated_copies(knowledge: str, malicious: jax.Array, present: jax.Array) -> jax.Array:
    """How many copies of the crafted row the attacker adds to the rows it knows, to foresee the server.

    f if it knows the benign rows or all; else `max(1, f^2 // n)`, the same share of its own f rows
    (docs/fidelity.md, section 4.2).
    """
    f, n = jnp.sum(malicious, dtype=jnp.int32), jnp.sum(present, dtype=jnp.int32)
    return jnp.maximum(f**2 // jnp.maximum(n, 1), 1) if knowledge == "colluders" else jnp.maximum(f, 1)


def shaped_like(given: PyTree, params: PyTree, name: str) -> PyTree:
    """What an attack was given for every coordinate, if its leaves are shaped as those of one update.

    Raises:
      InputError: if they are not; `name` is that of the parameter.
    """
    wanted: object = jax.tree.structure(params)
    same = wanted == jax.tree.structure(given) and all(
        jnp.shape(x) == jnp.shape(p) for x, p in zip(jax.tree.leaves(given), jax.tree.leaves(params), strict=True)
    )
    if not same:
        found, allowed = (jax.tree.map(jnp.shape, tree) for tree in (given, params))
        raise InputError(f"{name}: has the shapes {found}, allowed are those of one update, {allowed}")
    return given


def row_keys(key: jax.Array, n: int) -> jax.Array:
    """One key per row that does not depend on how many rows there are, `(n,)`."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(n, dtype=jnp.int32))


def normal_like(key: jax.Array, row: PyTree) -> PyTree:
    """Independent standard normal values in the shape of one update."""
    leaves, structure = jax.tree.flatten(row)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
