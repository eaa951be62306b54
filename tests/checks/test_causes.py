"""The counted causes of speed, against the committed table: which one changed is said by name."""

import json

import jax
import jax.numpy as jnp
import pytest

from checks import causes


def test_nothing_that_makes_it_fast_was_lost():
    stored = json.loads(causes.TABLE.read_text())
    if stored["jax"] != jax.__version__:
        pytest.skip(f"the table was made with JAX {stored['jax']}: python -m checks.causes --write")
    changed = causes.differences(stored["causes"], causes.measure())
    assert not changed, "\n".join(changed)


def test_a_cause_that_changes_is_named():
    x = jax.ShapeDtypeStruct((causes.CLIENTS, causes.ENTRIES), jnp.float32)
    bytes_of_stack = 4 * causes.CLIENTS * causes.ENTRIES
    kind = causes.count(jax.jit(lambda x: jnp.sum(x)).lower(x).compile(), bytes_of_stack)
    slow = causes.count(
        jax.jit(lambda x: jnp.sort(x, axis=1)[:, 0] + jnp.sort(x, axis=1)[:, 1]).lower(x).compile(), bytes_of_stack
    )
    assert causes.differences({"rule": kind}, {"rule": kind, "new": kind}) == ["new: is not in the table"]
    changed = causes.differences({"rule": kind}, {"rule": slow})
    assert "rule: large sorts was 0 and is 1" in changed
    assert any(line.startswith("rule: temporaries / stack was 0 and is") for line in changed)
