"""What a round knows beside the updates, for the rules and attacks that need it."""

from typing import Any, NamedTuple

import jax

from lasa_jax.errors import InputError

PyTree = Any


class Context(NamedTuple):
    """What a round knows beside the updates. A field that nobody needs is None.

    Attributes:
      params: the global model, a pytree like one update.
      sizes: int32 `(n,)`, how many training examples each client has, 0 in absent rows.
      ids: int32 `(n,)`, each client's number in the population; those of absent rows mean nothing.
      server_update: an update that the server trained on examples of its own, as a client would; like one update.
      last_update: what the rule returned in the round before; zeros in the first round; like one update.
      round_index: int32, counted from 1.
    """

    params: PyTree = None
    sizes: jax.Array | None = None
    ids: jax.Array | None = None
    server_update: PyTree = None
    last_update: PyTree = None
    round_index: int | jax.Array | None = None

    def parameters_only(self) -> "Context":
        """The same with the collection "params" of each pytree only, see `aggregators.parameters_only`."""

        def part(tree: PyTree) -> PyTree:
            return None if tree is None else {"params": tree["params"]}

        return self._replace(
            params=part(self.params), server_update=part(self.server_update), last_update=part(self.last_update)
        )


def needed(context: Context | None, needs: frozenset[str], name: str) -> Context:
    """The context, which must have what a rule or an attack needs.

    Args:
      context: as `aggregate` or `craft` was given it.
      needs: of the rule or the attack.
      name: of it, for messages.

    Raises:
      InputError: for a field that is missing.
    """
    context = Context() if context is None else context
    missing = ", ".join(f"{field}=..." for field in sorted(needs) if getattr(context, field) is None)
    if missing:
        raise InputError(f"{name}: context without what it needs, allowed is context=aggregators.Context({missing})")
    return context
