"""One round under other rules, where running statistics are kept from them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, attacks, grid
from lasa_jax import config as configs
from lasa_jax.inspection import outcomes, replay
from lasa_jax.models import Model


@pytest.fixture(scope="module")
def before():
    """A model that says 3 until its running statistics have moved, and then 0."""
    settings = {"num_clients": 8, "clients_per_round": 5, "rounds": 1, "client.epochs": 1, "client.batch_size": 256}
    found = replay.before_round(grid.resolve(configs.default(), settings), 1)

    def apply(variables, inputs, *, train=False, key=None, mask=None):
        says = jnp.mean(inputs) * variables["params"]["p"] + jnp.array([1e6 * variables["batch_stats"]["m"], 1e3])
        logits = jnp.zeros((len(inputs), 10)).at[:, jnp.array([0, 3])].set(says)
        return logits, {**variables, "batch_stats": {"m": variables["batch_stats"]["m"] + 1}} if train else variables

    model = Model(lambda key: {"params": {"p": jnp.ones(2)}, "batch_stats": {"m": jnp.float32(0)}}, apply)
    program = dataclasses.replace(
        found.program,
        local_training=dataclasses.replace(found.program.local_training, model=model, clips_parameters_only=True),
        make_attack=lambda _: attacks.parameters_only(attacks.sign_flip()),
        make_aggregator=lambda _: aggregators.parameters_only(aggregators.krum()),
    )
    point = found.point._replace(attack={}, aggregator={}, root=jnp.arange(40, dtype=jnp.int32))
    return found._replace(program=program, point=point, state=program.init(point), ruled=("params",))


def test_running_statistics_are_averaged_by_the_weights_of_each_rule(before):
    """Of fltrust the server's own update has them too."""
    found = outcomes.of_rules(before, {"krum": aggregators.krum(), "fltrust": aggregators.fltrust()})
    labels = np.asarray(before.data.test.labels)
    assert found["refused"].tolist() == ["", ""]
    np.testing.assert_allclose(found["accuracy"], (labels == 0).mean(), rtol=1e-6)
    assert (labels == 0).mean() != (labels == 3).mean()
    assert (found["benign_kept"] * found["error"]).notna().all()
