"""The steps that are timed are training."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks import steps


@pytest.mark.parametrize("name", ["cnn", "lstm"])
def test_five_steps_move_every_layer(name):
    run, arguments = steps.trained(name)
    before, after = arguments[0], run(*arguments)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y) & jnp.all(jnp.isfinite(y))), before, after)
    assert all(jax.tree.leaves(moved)), moved


def test_another_model(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["steps", "abacus"])
    with pytest.raises(SystemExit):
        steps.main()
    assert "MODEL=abacus: allowed are cnn, resnet18, lstm" in capsys.readouterr().err
