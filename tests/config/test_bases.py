"""An attack that builds on another one: `attack.byzmean.base`, whose settings are those of that attack."""

import jax
import numpy as np
import pytest

from lasa_jax import build, commandline, grid, methods
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.grid import cost
from lasa_jax.report import export, results
from lasa_jax.testing import honest
from lasa_jax.testing.attacks import SOME

ON_LIE = {"attack.name": "byzmean", "attack.byzmean.base": "lie", "attack.lie.z": 0.7}
OWN = "from lasa_jax import attacks\n\n\ndef louder(times: attacks.base.Scalar = 2.0) -> attacks.Attack:\n"
OWN += '    """Sends the mean, louder."""\n    return attacks.ipm(-times)\n'


def resolved(**settings):
    return configs.resolve(configs.updated(configs.paper("digits"), settings), settings)


def test_without_a_base_nothing_is_stored_of_one():
    """So that runs which have none are the runs that they were."""
    config = resolved(**{"attack.name": "byzmean"})
    assert set(config.attack) == {"name", "parameters"}
    assert set(config.attack.parameters) == {"z", "variant", "knowledge"}
    assert configs.base_of(config) is None


def test_the_settings_of_the_base_are_stored():
    config = resolved(**ON_LIE, **{"attack.byzmean.m1": 2})
    assert config.attack.parameters.to_dict() == {
        "z": 0.5,
        "variant": "paper",
        "knowledge": "benign",
        "base": "lie",
        "m1": 2,
    }
    assert config.attack.base.to_dict() == {"parameters": {"z": 0.7, "knowledge": "benign"}}
    assert configs.from_json(configs.as_json(config)) == config
    assert resolved(**{**ON_LIE, "fidelity": "official"}).attack.base.parameters.knowledge == "colluders"


def test_a_base_without_settings():
    config = resolved(**{"attack.name": "byzmean", "attack.byzmean.base": "sign_flip"})
    assert configs.from_json(configs.as_json(config)) == config
    assert build.prepare(config).point.attack["base"] == {}


def test_numbers_of_the_base_are_data_of_the_program_and_its_words_are_not():
    first, louder = (resolved(**{**ON_LIE, "attack.lie.z": z}) for z in (0.7, 1.4))
    assert configs.identity(first) != configs.identity(louder)
    assert configs.program_key(first) == configs.program_key(louder)
    others = [
        resolved(**ON_LIE, **{"attack.lie.knowledge": "all"}),
        resolved(**{"attack.name": "byzmean", "attack.byzmean.base": "ipm"}),
        resolved(**{"attack.name": "byzmean"}),
    ]
    assert len({configs.program_key(config) for config in (first, *others)}) == 4


@pytest.mark.parametrize("statistics", ["aggregate", "separate"])
def test_what_is_built_sends_what_the_base_makes(statistics):
    run = build.prepare(resolved(**ON_LIE, batch_stats=statistics))
    assert {name: float(x) for name, x in run.point.attack["base"].items()} == {"z": np.float32(0.7)}
    attack = run.program.make_attack(run.point.attack)
    updates = {"params": honest()}
    sent = attack.craft(updates, attack.init(updates), SOME, key=jax.random.key(0))[0]["params"]["bias"]
    benign = honest()["bias"][~SOME]
    np.testing.assert_allclose(sent.mean(0), benign.mean(0) - 0.7 * benign.std(0, ddof=1), atol=1e-5)


def test_a_base_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "my_bases.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    methods.parameters.cache_clear()
    given = {"attack.name": "byzmean", "attack.byzmean.base": "my_bases:louder", "attack.louder.times": "3"}
    (tmp_path / "config.py").write_text(
        "from lasa_jax import config\n\n\ndef get_config(argument=None):\n    return config.paper('digits')\n"
    )
    config = commandline.read_config(str(tmp_path / "config.py"), given)
    assert config.attack.base.parameters.to_dict() == {"times": 3.0}
    assert list(config.sources) == ["my_bases:louder"]
    assert configs.from_json(configs.as_json(config)) == config
    run = build.prepare(config)
    assert float(run.point.attack["base"]["times"]) == 3
    assert not cost._attack(config).trigger  # a sweep estimates its cost before it runs


def test_a_backdoor_as_a_base_is_evaluated_with_its_trigger():
    assert cost._attack(resolved(**{"attack.name": "byzmean", "attack.byzmean.base": "badnets"})).trigger


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attack.name": "byzmean", "attack.byzmean.base": "lye"},
            "config.attack.byzmean.base = 'lye': allowed are adaptive",
        ),
        (
            {"attack.name": "byzmean", "attack.byzmean.base": "byzmean"},
            "base = 'byzmean': allowed are adaptive, alie",
        ),
        ({**ON_LIE, "attack.ipm.epsilon": 1.0}, r"attack 'ipm' is not selected \(config.attack.name is 'byzmean'\)"),
        ({**ON_LIE, "attack.lie.knowledge": "some"}, "config.attack.lie.knowledge = 'some': allowed are benign"),
        ({"attack.name": "lie", "attack.byzmean.base": "lie"}, "attack 'byzmean' is not selected"),
        (
            {"attack.name": "byzmean", "attack.byzmean.base": "nowhere:f"},
            "config.attack.byzmean.base = 'nowhere:f': there is no module 'nowhere'",
        ),
        ({"attack.name": "byzmean", "attack.byzmean.m1": -1}, "config.attack.byzmean.m1 = -1: allowed is 0 <= m1"),
    ],
)
def test_what_is_no_base_is_one_line(settings, message):
    with pytest.raises(InputError, match=message) as error:
        resolved(**settings)
    assert "\n" not in str(error.value)


def test_an_axis_of_bases():
    base = configs.updated(configs.paper("digits"), {"attack.name": "byzmean"})
    found = grid.points(grid.Grid(base, axes=[{"attack.byzmean.base": [None, "lie", "min_max"]}]))
    names = [configs.base_of(point.config) for point in found]
    assert names == [None, "lie", "min_max"]
    tied = {"attack.byzmean.base": ["lie"] * 2, "attack.lie.z": [0.5, 0.7]}
    assert len(grid.programs(grid.points(grid.Grid(base, axes=[tied])))) == 1
    with pytest.raises(grid.GridError, match="attack 'lie' is not selected"):
        grid.points(grid.Grid(base, points=[{"attack.lie.z": 0.7}]))


def test_reports_name_the_base_and_its_settings():
    stored = configs.as_json(resolved(**ON_LIE))
    flat = results._flat(stored)
    assert (flat["attack.base"], flat["attack.base.z"], flat["attack.z"]) == ("lie", 0.7, 0.5)
    flags = dict(export._settings(stored))
    assert (flags["attack.byzmean.base"], flags["attack.lie.z"]) == ("lie", 0.7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"attack.name": "label_flip", "attack.label_flip.source": 1, "attack.label_flip.target": 10},
            "config.attack.label_flip.target = 10: allowed is .*target <= 9",
        ),
        ({"attack.name": "mimic", "attack.mimic.client": 60}, "config.attack.mimic.client = 60: .*client <= 59"),
        (
            {"attack.name": "byzmean", "attack.byzmean.base": "mimic", "attack.mimic.client": 60},
            "config.attack.mimic.client = 60",
        ),
    ],
)
def test_numbers_of_clients_and_classes_that_the_data_does_not_have(settings, message):
    with pytest.raises(InputError, match=message):
        build.prepare(resolved(**settings))
