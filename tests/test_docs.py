"""The code in README.md and docs/ runs."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import config as configs
from lasa_jax.aggregators import Aggregator
from lasa_jax.attacks import Attack

ROOT = Path(__file__).parents[1]


def blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


def test_readme_example(capsys):
    (code,) = blocks("README.md")
    names: dict = {}
    exec(code, names)
    assert names["update"]["kernel"].shape == (784, 10)
    filtered = np.asarray(names["info"].weight["kernel"] == 0)
    assert filtered[:5].sum() >= 3
    assert not filtered[5:].all()


@pytest.mark.parametrize("index", [0, 1])
def test_skeletons_of_the_guide(index):
    names: dict = {}
    exec(blocks("docs/adding.md")[index], names)
    updates = {"w": jnp.ones((6, 3)).at[0].set(100.0)}
    if index == 0:
        rule = names["norm_gate"]()
        assert isinstance(rule, Aggregator)
        update, _, info = jax.jit(rule.aggregate)(updates, (), key=jax.random.key(0), num_malicious=1)
        np.testing.assert_allclose(update["w"], 1)
        assert info.weight["w"][0] == 0
    else:
        attack = names["shrink"]()
        assert isinstance(attack, Attack)
        crafted, _ = attack.craft(updates, (), jnp.arange(6) < 1, key=jax.random.key(0))
        np.testing.assert_allclose(crafted["w"][0], 10)


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "configs.md").read_text()
    for field, _ in configs.flatten(configs.default().to_dict()):
        first, *rest = field.split(".")
        if first in ("aggregator", "attack") and rest[0] not in ("name", "assumed_malicious"):
            continue  # a method's own parameters
        assert f"`{field}`" in text, field
