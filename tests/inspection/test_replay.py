"""A round computed again is that of the run."""

import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import aggregators, experiment, grid
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.federated import make_mesh, one_round
from lasa_jax.federated.evaluation import evaluate
from lasa_jax.inspection import filtering, outcomes, recorded, replay, rounds
from lasa_jax.inspection.__main__ import main
from lasa_jax.workdir import Workdir


@pytest.fixture(scope="module")
def config():
    base = configs.default()
    settings = {
        "attack.name": "byzmean",
        "num_clients": 16,
        "clients_per_round": 8,
        "rounds": 2,
        "client.epochs": 2,
        "client.batch_size": 128,  # one batch an epoch: clients have 89 examples
        "client.momentum": 0.0,
    }
    return grid.resolve(base, settings)


@pytest.fixture(scope="module")
def before(config):
    return replay.before_round(config, 2)


def test_the_rule_on_the_replayed_round_does_what_the_round_did(config, before):
    """The state before round 2 is that after round 1, and what is received in it leads to the round's own metrics."""
    step = jax.jit(functools.partial(one_round, before.program))
    fresh = jax.jit(before.program.init)(before.point)
    after, _ = step(fresh, before.point, before.data, jnp.int32(1))
    jax.tree.map(np.testing.assert_array_equal, after.variables, before.state.variables)
    _, metrics = step(before.state, before.point, before.data, jnp.int32(2))
    check(config, before, np.asarray(metrics.malicious_filtered), float(metrics.update_norm))


@pytest.mark.slow
def test_the_replayed_round_is_that_of_a_run(config, before, tmp_path):
    mesh = make_mesh(jax.devices()[:1])
    experiment.run(config, tmp_path / "run", mesh=mesh, log=lambda text: None)
    line = Workdir(tmp_path / "run", lock=False).metrics()[-1]
    check(config, before, np.array(list(line["malicious_filtered"].values())), line["update_norm"])


def check(config, before, malicious_filtered, update_norm):
    updates, malicious, ids = replay.received(before)
    assert ids.tolist() == clients(before).tolist()
    assert malicious.sum() == before.point.malicious[clients(before)].sum() > 0
    rule = aggregators.create(config.aggregator.name, **config.aggregator.parameters)
    update, _, info = jax.jit(lambda x: rule.aggregate(x, (), key=jax.random.key(0), num_malicious=2))(updates)
    assert [int(((w == 0) & malicious).sum()) for w in jax.tree.leaves(info.weight)] == malicious_filtered.tolist()
    total = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(update)))
    assert total == pytest.approx(update_norm, rel=1e-4)


def clients(before):
    return replay.clients_of_round(before)


def test_a_round_of_a_run_from_its_checkpoint_and_its_command(tmp_path, capsys, monkeypatch):
    """The stored config is that of the run; only rounds since the checkpoint are played; clients join with the record."""
    base = {"attack.name": "noise", "num_clients": 16, "clients_per_round": 8, "client.epochs": 1, "rounds": 4}
    more = {"checkpoint_every": 2, "block_rounds": 2, "client.momentum": 0.0, "record_filtering": True}
    config = grid.resolve(configs.default(), base | more)
    run = tmp_path / "run"
    experiment.run(config, run, mesh=make_mesh(jax.devices()[:1]), log=lambda text: None)
    stored = Workdir(run, lock=False).config()
    assert configs.as_json(configs.from_json(stored)) == configs.as_json(config)

    whole = replay.before_round(config, 4)
    played = []
    monkeypatch.setattr(replay, "one_round", lambda *arguments: played.append(1) or one_round(*arguments))
    short = replay.before_round(configs.from_json(stored), 4, run)
    assert len(played) == 1  # a trace: of round 3
    assert (whole.start, short.start) == (0, 2)
    assert replay.before_round(config, 3, run).start == 2
    assert len(played) == 1  # round 3 comes after the checkpoint of round 2
    other = grid.resolve(configs.default(), base | more | {"seed": 7})
    with pytest.raises(InputError, match=r"holds another run, config\.seed is 1 there and 7 here"):
        replay.before_round(other, 4, run)
    with pytest.raises(InputError, match=r"has no config\.json"):
        replay.before_round(config, 4, tmp_path / "nowhere")
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(json.dumps({**json.loads(text), "source_id": "another"}))
    with pytest.raises(InputError, match="other data of digits"):
        replay.before_round(config, 4, run)
    (run / "config.json").write_text(text)
    manifest = run / "checkpoints" / "round_000002.json"
    sound = manifest.read_text()
    manifest.write_text("{}")
    assert replay.before_round(config, 2, run).start == 0  # of a damaged checkpoint nothing is believed
    assert replay.before_round(config, 4, run).start == 0
    manifest.write_text(sound)
    for found, expected in zip(jax.tree.leaves(short.state), jax.tree.leaves(whole.state), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)

    path = tmp_path / "round.npz"
    assert main(["round", str(run), "4", f"--output={path}", "--variances"]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines()[0] == "played from the checkpoint of round 2"
    assert shown.err.rstrip().endswith("as in the run")
    saved = rounds.load_round(path)
    assert saved.noise > 0 < saved.divergence
    info = filtering.lasa(saved, magnitude_radius=config.aggregator.parameters.magnitude_radius)
    again = filtering.table(info, saved).set_index(["client", "layer"]).sort_index()
    kept = recorded.load(run).query("round == 4").astype({"layer": str}).set_index(["client", "layer"]).sort_index()
    assert again.index.equals(kept.index)
    assert (again.malicious == kept.malicious).all()
    assert (again.kept == kept.kept).all()
    np.testing.assert_allclose(again.norm, kept.norm, rtol=1e-3, atol=1e-6)

    metrics = run / "metrics.jsonl"
    metrics.write_text(re.sub(r'("round": 4,.*"update_norm": )[0-9.e-]+', r"\g<1>7.5", metrics.read_text()))
    assert main(["round", str(run), "4", f"--output={path}"]) == 0
    assert "7.5 in the run: with other versions" in capsys.readouterr().err
    metrics.write_text("\n".join(metrics.read_text().splitlines()[:3]) + "\n")
    assert main(["round", str(run), "4", f"--output={path}"]) == 0
    assert "has not recorded its own" in capsys.readouterr().err
    assert main(["round", str(run), "4", f"--output={tmp_path}"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    for wrong, said in (("5", "round_index = 5"), ("0", "round_index = 0")):
        assert main(["round", str(run), wrong]) == 2
        assert said in capsys.readouterr().err
    (run / "config.json").unlink()
    assert main(["round", str(run), "4"]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_stored_configs_that_are_not_of_this_version():
    config = grid.resolve(configs.paper("mnist"), {"fidelity": "official", "aggregator.name": "fedavg"})
    for changed in (config, grid.resolve(configs.paper("mnist"), {"aggregator.name": "lasa", "attack.name": "lie"})):
        stored = json.loads(configs.to_json(changed))
        assert configs.as_json(configs.from_json({**stored, "source_id": "x"})) == stored
    unclipped = grid.resolve(configs.paper("mnist"), {"fidelity": "official", "client.clip_norm": math.inf})
    assert configs.from_json(configs.as_json(unclipped)).client.clip_norm is None
    stored = json.loads(configs.to_json(config))
    without = {**stored, "client": {name: x for name, x in stored["client"].items() if name != "precision"}}
    for wrong, said in (
        (without, "another version of lasa_jax, config.client.precision is None there"),
        ({**stored, "colour": 1}, "config.colour is not a setting"),
        ({**stored, "rounds": "many"}, "config.json: "),
        ({**stored, "attack_ratio": 10**400}, "config.json: "),
        ({**stored, "aggregator": {"name": "krumm", "parameters": {}}}, "krumm"),
        ({**stored, "aggregator": 3}, "aggregator"),
    ):
        with pytest.raises(InputError, match=said) as error:
            configs.from_json(wrong)
        assert "\n" not in str(error.value)


def test_local_models_start_at_the_global_one_and_lead_to_the_update(before):
    models = replay.local_models(before)
    for stages, start in zip(jax.tree.leaves(models), jax.tree.leaves(before.state.variables), strict=True):
        assert stages.shape == (2, 8, *start.shape)
        np.testing.assert_array_equal(stages[0], np.broadcast_to(start, stages[0].shape))
    # One batch an epoch, no momentum: the update is the sum of the two steps, each the gradient at the stage's start.
    inputs, labels, sizes = replay.local_examples(before)
    assert (sizes <= 128).all()
    updates, malicious, _ = replay.received(before)
    loss = replay.example_loss(before)
    client = int(np.flatnonzero(~malicious)[0])
    size = int(sizes[client])
    assert inputs.shape[:2] == labels.shape

    @jax.jit
    @jax.grad
    def gradient(variables):
        return jax.vmap(loss, (None, 0, 0))(variables, inputs[client, :size], labels[client, :size]).mean()

    moved = jax.tree.map(lambda x: 0.0 * x[0, client], models)
    for stage in range(2):
        step = gradient(jax.tree.map(lambda x, stage=stage: x[stage, client], models))
        moved = jax.tree.map(lambda total, g: total - before.point.sgd.learning_rate * g, moved, step)
    for found, expected in zip(jax.tree.leaves(moved), jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(found, expected[client], rtol=1e-3, atol=1e-5)


def test_rounds_that_are_not_in_the_run(config):
    for wrong in (0, 3, 1.5):
        with pytest.raises(InputError, match="round_index"):
            replay.before_round(config, wrong)


def test_the_round_under_other_rules(config, before):
    """The run's own rule leads to the accuracy after the round; rules that know sizes and the global model are tried too."""
    own = before.program.make_aggregator(before.point.aggregator)
    rules = {"own": own, "sizes": aggregators.fedavg(weighting="size"), "fltrust": aggregators.fltrust()}
    found = outcomes.of_rules(before, rules).set_index("rule")
    after, _ = jax.jit(functools.partial(one_round, before.program))(
        before.state, before.point, before.data, jnp.int32(2)
    )
    expected = evaluate(before.program, after, before.data.test).reported.accuracy
    assert found.loc["own", "accuracy"] == pytest.approx(float(expected), abs=0.005)
    assert found.loc["sizes", "accuracy"] > 0
    assert found.loc["sizes", "benign_kept"] == 1
    assert (found["error"].drop("fltrust") >= 0).all()
    assert found.loc["fltrust", "refused"].startswith("needs server_update")
    assert np.isnan(found.loc["fltrust", "accuracy"])


@pytest.mark.slow
def test_what_clients_would_have_sent_without_the_attack(before):
    honest, sent = outcomes.honest(before), replay.play(before)
    benign = ~sent.malicious
    kernel = ("params", "dense1", "kernel")
    one, other = (
        functools.reduce(lambda tree, name: tree[name], kernel, tree) for tree in (honest.updates, sent.updates)
    )
    np.testing.assert_allclose(one[benign], other[benign], rtol=1e-4, atol=1e-6)
    assert not np.allclose(one[~benign], other[~benign], rtol=1e-2)
