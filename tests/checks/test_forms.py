"""The forms of a GPU against the committed table: which one changed is said by name."""

import json

import jax
import jax.numpy as jnp
import pytest

from checks import forms


def test_no_form_was_lost():
    stored = json.loads(forms.TABLE.read_text())
    if stored["jax"] != jax.__version__:
        pytest.skip(f"the table was made with JAX {stored['jax']}: python -m checks.forms --write")
    changed = forms.differences(stored["forms"], forms.measure())
    assert not changed, "\n".join(changed)


@pytest.mark.parametrize("name", [name for name in forms.items() if name.startswith("step of")])
def test_models_lower_for_a_tpu_too(name):
    """Rules and attacks do in tests/ops/test_target.py. Training asks for TF32's digits in every product."""
    text, _ = forms.lowered(forms.items()[name], "tpu")
    products = [line for line in text.splitlines() if "dot_general" in line or "stablehlo.convolution" in line]
    assert products
    assert all("HIGH" in line for line in products)


def counted(fn, size: int = 2000) -> forms.Forms:
    x = jax.ShapeDtypeStruct((10, size), jnp.float32)
    return forms.count(jax.jit(fn).trace(x).lower(lowering_platforms=("cuda",)).as_text(), 4 * 10 * size)


def test_what_is_counted():
    """Sorts with their shapes, loops, and what is written out; a map over entries is nothing."""
    assert counted(lambda x: jnp.tanh(x) + 1) == {"loops": 0, "sorts": {}, "large arrays": {}}
    found = counted(lambda x: jnp.sort(jnp.concatenate([x, x]), axis=0, stable=False)[3])
    assert found["sorts"] == {"20x2000xf32": 1}
    assert found["large arrays"] == {"concatenate 20x2000xf32": 1, "sort 20x2000xf32": 1}
    looped = counted(lambda x: jax.lax.fori_loop(0, 3, lambda i, y: y * x, x))
    assert looped["loops"] == 1
    assert looped["large arrays"] == {"while 10x2000xf32": 2}


def test_a_form_that_changes_is_named():
    plain, sorting = counted(jnp.tanh), counted(lambda x: jnp.sort(x, axis=0))
    assert forms.differences({"rule": plain}, {"rule": plain, "new": plain}) == ["new: is not in the table"]
    assert forms.differences({"old": plain}, {}) == ["old: is in the table only"]
    changed = forms.differences({"rule": plain}, {"rule": sorting})
    assert any(line.startswith("rule: sorts were {} and are {") for line in changed)
