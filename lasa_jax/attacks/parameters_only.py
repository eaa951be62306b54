"""A wrapper that keeps the running statistics of batch norm from an attack, in the manner of `optax.masked`."""

from collections.abc import Callable

import jax

from lasa_jax.attacks.base import Attack, PyTree, checked


def parameters_only(attack: Attack) -> Attack:
    """Lets an attack craft the parameters of the updates only; malicious clients send honest running statistics.

    An update is a dict of collections, `{"params": ..., "batch_stats": ...}`. Without a second collection the wrapper
    changes nothing. See `aggregators.parameters_only` for the server's side.

    Args:
      attack: any attack. One that adapts to the rule is given it as a function of parameters.
    """

    def init(params: PyTree) -> PyTree:
        return attack.init({"params": params["params"]})

    def craft(
        updates: PyTree,
        state: PyTree,
        malicious: jax.Array,
        *,
        key: jax.Array,
        present: jax.Array | None = None,
        aggregate: Callable[[PyTree], PyTree] | None = None,
    ) -> tuple[PyTree, PyTree]:
        checked(updates, malicious, present)

        def foresee(rows: PyTree) -> PyTree:
            assert aggregate is not None
            return {"params": aggregate({**updates, **rows})["params"]}

        crafted, state = attack.craft(
            {"params": updates["params"]},
            state,
            malicious,
            key=key,
            present=present,
            aggregate=None if aggregate is None else foresee,
        )
        return {**updates, **crafted}, state

    return Attack(init, attack.poison_labels, craft)
