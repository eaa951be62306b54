"""From configs to placed runs."""

import jax
import pytest

from lasa_jax import aggregators, attacks, build, experiment, grid
from lasa_jax import config as configs
from lasa_jax.errors import InputError

SMALL = {"rounds": 2, "num_clients": 8, "clients_per_round": 4, "client.epochs": 1}


def resolved(**settings):
    return configs.resolve(configs.updated(configs.paper("digits"), {**SMALL, **settings}))


def test_runs_have_a_leading_axis():
    placed = build.simulation([resolved(seed=1), resolved(seed=2)])
    assert {x.shape[0] for x in jax.tree.leaves((placed.states, placed.points, placed.data.partition))} == {2}


def test_points_that_give_other_numbers_are_other_programs(tmp_path):
    """A number that is left out is no data of the program: such runs cannot go through it side by side."""
    base = configs.updated(configs.paper("digits"), {**SMALL, "aggregator.name": "krum"})
    declared = grid.Grid(
        base, points=[{"aggregator.krum.assumed_malicious": f, "seed": s} for f in (None, 1) for s in (1, 2)]
    )
    assert len(grid.programs(grid.points(declared))) == 2
    outcomes = grid.run(declared, tmp_path, batch=2, log=lambda text: None)
    assert [outcome.error for outcome in outcomes] == [None] * 4


@pytest.mark.parametrize("name", ["dirichlet", "quantity_skew"])
def test_whether_clients_are_ragged_does_not_depend_on_the_seed(name):
    settings = {"partition.name": name, "partition.min_samples": 1}
    programs = [build.prepare(resolved(seed=seed, **settings)).program for seed in (1, 2)]
    assert [program.ragged for program in programs] == [True, True]
    assert not build.prepare(resolved()).program.ragged


def test_statistics_are_kept_apart_in_one_place():
    apart = build.prepare(resolved(batch_stats="separate")).program
    assert apart.local_training.clips_parameters_only
    state = apart.make_attack({}).init({"params": {"w": jax.numpy.zeros(2)}, "batch_stats": {"m": jax.numpy.zeros(2)}})
    assert state == ()


class TestSimulate:
    def test_functions_in_place_of_names(self):
        named = experiment.simulate("digits", **SMALL, **{"aggregator.name": "krum", "attack.name": "lie"})
        told = []
        given = experiment.simulate(
            "digits",
            **SMALL,
            aggregator=aggregators.krum(),
            attack=attacks.lie(),
            on_metrics=lambda *metrics: told.append(metrics),
        )
        assert [(name, index) for name, index, _ in told] == [("digits", index) for index in given.evaluated]
        assert [metrics["test_accuracy"] for *_, metrics in told] == given.test_accuracy.tolist()
        assert (named.test_loss == given.test_loss).all()
        assert named.evaluated.tolist() == [1, 2]
        assert named.clients.shape == named.malicious.shape == next(iter(named.weights.values())).shape == (2, 4)

    def test_a_config_and_what_is_evaluated(self):
        config = configs.updated(configs.paper("digits"), {**SMALL, "eval_every": 2, "rounds": 3})
        history = experiment.simulate(config)
        assert history.evaluated.tolist() == [2, 3]
        assert history.train_loss.shape == (3,)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"aggregator": aggregators.krum(), "aggregator.lasa.sparsity_level": 0.9}, "since aggregator= is given"),
            ({"rownds": 2}, r"config\.rownds is not a setting \(did you mean config\.rounds\?\)"),
            ({"rounds": "many"}, "config.rounds = 'many': allowed is a value of type int"),
        ],
    )
    def test_bad_settings_are_one_line(self, settings, message):
        with pytest.raises(InputError, match=message):
            experiment.simulate("digits", **{**SMALL, **settings})
