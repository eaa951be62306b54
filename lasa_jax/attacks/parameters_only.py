"""A wrapper that keeps the running statistics of batch norm from an attack, in the manner of `optax.masked`."""

from collections.abc import Callable

import jax

from lasa_jax.aggregators import Context
from lasa_jax.attacks.base import Attack, PyTree, checked, unconstrained


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
        context: Context | None = None,
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
            **attack.knowing(None if context is None else context.parameters_only()),
        )
        return {**updates, **crafted}, state

    def constrain(params: PyTree, start: PyTree, state: PyTree) -> PyTree:
        part = attack.constrain({"params": params["params"]}, {"params": start["params"]}, state)
        return {**params, **part}

    return attack._replace(
        init=init,
        craft=craft,
        constrain=attack.constrain if attack.constrain is unconstrained else constrain,
        begin=lambda state, context: attack.begin(state, context.parameters_only()),
    )
