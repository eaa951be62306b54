"""Functions of a user's own package where a config takes a name."""

import json
import sys
import textwrap

import pytest

from lasa_jax import aggregators, build, experiment, grid, methods
from lasa_jax import config as configs
from lasa_jax.errors import InputError

MODULE = """
    import functools
    import jax
    import jax.numpy as jnp
    from lasa_jax import ops
    from lasa_jax.errors import InputError, check_number
    from lasa_jax.aggregators.base import Aggregator, Diagnostics, Rows, Scalar, equal_weights, stateless
    from lasa_jax.attacks.base import changed_row

    def norm_gate(factor: Scalar = 2.0, at_least: int = 1, open: bool = False) -> Aggregator:
        def aggregate(updates, state, *, key, num_malicious, present=None):
            rows = Rows.of(updates, present)
            norms = rows.each(ops.tree_norm)
            kept = rows.present & (norms <= factor * ops.masked_median(norms, rows.present))
            weight = equal_weights(rows, kept)
            return rows.weighted_sum(weight), state, Diagnostics(weight)
        return Aggregator(stateless, aggregate)

    def lasa(factor: Scalar = 3.0) -> Aggregator:
        return norm_gate(factor)

    def shrink(factor: Scalar = 0.5):
        return lambda rows, *, key, num_malicious: rows.mapped(
            lambda row, by: jax.tree.map(lambda x: x * by, row), jnp.full(rows.present.shape, factor)
        )

    def turn(factor: Scalar = 1.0):
        return changed_row(lambda row, key: jax.tree.map(lambda x: -factor * x, row))

    def decides(factor: Scalar = 2.0) -> Aggregator:
        if factor > 1:
            return norm_gate(1.0)
        return norm_gate(factor)

    def breaks(factor: Scalar = 2.0) -> Aggregator:
        def aggregate(updates, state, *, key, num_malicious, present=None):
            return updates["nothing"]
        return Aggregator(stateless, aggregate)

    def needs(factor) -> Aggregator:
        return norm_gate()

    def gives_nothing() -> Aggregator:
        return None

    def no_keywords():
        return Aggregator(stateless, lambda updates, state: None)

    def two_results():
        return Aggregator(stateless, lambda updates, state, **known: (updates, state))

    def returns_the_stack():
        return Aggregator(stateless, lambda updates, state, **known: (updates, state, Diagnostics(updates)))

    def _mean(updates):
        return jax.tree.map(lambda x: x.mean(0), updates)

    def other_state():
        weight = lambda u: jax.tree.map(lambda x: jnp.ones(len(x)), u)
        return Aggregator(stateless, lambda u, state, **known: (_mean(u), jnp.zeros(2), Diagnostics(weight(u))))

    def one_weight():
        return Aggregator(stateless, lambda u, state, **known: (_mean(u), state, Diagnostics(jnp.ones(4))))

    def keeps_the_axis():
        from lasa_jax.attacks.base import same_row
        return same_row(lambda u, *masks: jax.tree.map(lambda x: x[:2], u))

    def one_argument():
        return changed_row(lambda row: row)

    def aggregator(factor: Scalar = 0.5):
        return shrink(factor)

    def checks(factor: Scalar = 2.0) -> Aggregator:
        check_number("factor", factor, above=0)
        return norm_gate(factor)

    def refuses():
        raise InputError("is not for today")

    partly = functools.partial(norm_gate, factor=3.0)
"""
SMALL = {"rounds": 2, "num_clients": 8, "clients_per_round": 4, "client.epochs": 1}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of somebody's, on Python's path for this test only."""
    (tmp_path / "strangers.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "strangers.py"
    sys.modules.pop("strangers", None)
    methods.parameters.cache_clear()


def resolved(**settings):
    settings = {name.replace("__", "."): value for name, value in settings.items()}
    return configs.resolve(configs.updated(configs.paper("digits"), {**SMALL, **settings}), settings)


@pytest.mark.usefixtures("module")
class TestSettings:
    def test_parameters_are_settings_with_the_types_of_the_signature(self):
        config = resolved(aggregator__name="strangers:norm_gate", aggregator__norm_gate__factor=3)
        assert config.aggregator.parameters.to_dict() == {"factor": 3.0, "at_least": 1, "open": False}
        with pytest.raises(
            InputError, match=r"config\.aggregator\.norm_gate\.at_least = 'many': allowed is a value of"
        ):
            resolved(aggregator__name="strangers:norm_gate", aggregator__norm_gate__at_least="many")
        with pytest.raises(InputError, match=r"norm_gate\.factr is not a setting \(did you mean config.*factor"):
            resolved(aggregator__name="strangers:norm_gate", aggregator__norm_gate__factr=1.0)

    def test_a_builtins_name_has_the_settings_of_what_is_selected(self):
        config = resolved(aggregator__name="strangers:lasa", aggregator__lasa__factor=2.5)
        assert config.aggregator.parameters.to_dict() == {"factor": 2.5}
        with pytest.raises(InputError, match="sparsity_level is not a setting"):
            resolved(aggregator__name="strangers:lasa", aggregator__lasa__sparsity_level=0.5)
        assert resolved(aggregator__lasa__sparsity_level=0.5).aggregator.parameters.sparsity_level == 0.5

    def test_preaggregators_in_order(self):
        config = resolved(
            preaggregators__names="clip_to_norm, strangers:shrink", preaggregators__clip_to_norm__clip_norm=2.0
        )
        assert config.preaggregators.names == "clip_to_norm,strangers:shrink"
        assert config.preaggregators.parameters.to_dict() == {
            "clip_to_norm": {"clip_norm": 2.0},
            "shrink": {"factor": 0.5},
        }
        with pytest.raises(InputError, match="preaggregator 'bucketing' is not selected"):
            resolved(preaggregators__bucketing__bucket_size=3)

    def test_config_json_comes_back(self):
        config = resolved(
            aggregator__name="strangers:norm_gate",
            attack__name="strangers:turn",
            preaggregators__names="strangers:shrink",
        )
        again = configs.from_json(json.loads(configs.to_json(config)))
        assert configs.identity(again) == configs.identity(config)
        assert configs.run_name(config).startswith("digits_strangers-norm_gate_strangers-turn_")

    def test_numbers_share_a_program_and_the_rest_does_not(self):
        name = {"aggregator.name": ["strangers:norm_gate"]}
        traced = grid.points(grid.Grid(configs.paper("digits"), [name, {"aggregator.norm_gate.factor": [1.0, 2.0]}]))
        assert len(grid.programs(traced)) == 1
        compiled_in = grid.Grid(configs.paper("digits"), [name, {"aggregator.norm_gate.at_least": [1, 2]}])
        assert len(grid.programs(grid.points(compiled_in))) == 2

    def test_a_plan_says_what_is_compiled_in(self, tmp_path):
        axes = [{"aggregator.name": ["strangers:norm_gate"]}, {"aggregator.norm_gate.at_least": [1, 2]}]
        lines = grid.plan(grid.Grid(configs.paper("digits"), axes), tmp_path / "sweep").lines()
        assert "compiled in: norm_gate.at_least: annotate it as Scalar to share a program" in lines

    def test_fields_of_rules_that_a_point_does_not_select_are_refused(self):
        """Two points would be the same run. A single point, or tied fields, say the same without it."""
        axes = [{"aggregator.name": ["strangers:norm_gate", "fedavg"]}, {"aggregator.norm_gate.factor": [1.0, 2.0]}]
        with pytest.raises(grid.GridError, match="no aggregator 'norm_gate' is selected, but fedavg"):
            grid.points(grid.Grid(configs.paper("digits"), axes))
        with pytest.raises(grid.GridError, match=r"but fedavg; points= sets it where it has an effect$"):
            grid.points(grid.Grid(configs.paper("digits"), axes))
        single = [{"aggregator.name": "fedavg"}]
        axes = [{"aggregator.name": ["strangers:norm_gate"]}, axes[1]]
        assert len(grid.points(grid.Grid(configs.paper("digits"), axes, single))) == 3


BAD = {
    "no_such_module:rule": "there is no module 'no_such_module' in the working directory",
    "strangers:nosuch": "strangers has no function 'nosuch', its functions are norm_gate, lasa, shrink, turn, decides",
    "strangers:norm_gat": "(did you mean 'norm_gate'?)",
    "strangers:jnp": "strangers has no function 'jnp'",
    "strangers:partly": "is a partial, allowed is a function or a class that is written in a Python file",
    "strangers:": "allowed is package.module:function",
    "my rules:gate": "allowed is package.module:function",
    "strangers:needs": "parameter 'factor' must have a default",
    "strangers:gives_nothing": "gives NoneType, allowed is lasa_jax.aggregators.Aggregator",
    "strangers:refuses": "strangers:refuses: is not for today",
    "strangers:turn": "gives Attack, allowed is lasa_jax.aggregators.Aggregator",
    "krumm": "aggregator 'krumm' is not known",
    "strangers.norm_gate": "is not known (did you mean 'strangers:norm_gate'?)",
    "strangers.py:norm_gate": "or what is installed (without .py)",
}


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("name", BAD)
def test_bad_names_are_one_line(name):
    with pytest.raises(InputError) as error:
        resolved(aggregator__name=name)
    assert BAD[name] in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("module")
def test_a_number_out_of_range_is_named_as_a_setting():
    with pytest.raises(InputError, match=r"^config\.aggregator\.checks\.factor = -1\.0: allowed is 0 < factor$"):
        resolved(aggregator__name="strangers:checks", aggregator__checks__factor=-1)


def test_a_module_that_is_not_there_later():
    """A worker of a cluster has a resolved config, and may not see the module."""
    with pytest.raises(InputError, match=r"^gone:rule: there is no module 'gone' in the working"):
        methods.source_file("gone:rule")


def test_a_module_that_fails(module):
    module.write_text("import nothing_of_that_name\n")
    with pytest.raises(InputError, match="there is no module 'nothing_of_that_name' in the"):
        resolved(aggregator__name="strangers:norm_gate")
    module.write_text("1 / 0\n")
    with pytest.raises(InputError, match="ZeroDivisionError: division by zero"):
        resolved(aggregator__name="strangers:norm_gate")


@pytest.mark.usefixtures("module")
class TestRuns:
    def test_it_trains(self):
        settings = {"aggregator.name": "strangers:norm_gate", "attack.name": "strangers:turn"}
        history = experiment.simulate("digits", **SMALL, **settings, **{"preaggregators.names": "strangers:shrink"})
        assert len(history.test_accuracy) == 2

    def test_a_step_may_have_any_name(self):
        settings = {"preaggregators.names": "strangers:aggregator", "preaggregators.aggregator.factor": 0.25}
        point = build.prepare(resolved(**settings)).point
        assert float(point.aggregator["steps"]["aggregator"]["factor"]) == 0.25
        assert "magnitude_radius" in point.aggregator["rule"]

    def test_steps_are_those_of_a_chain(self):
        named = experiment.simulate(
            "digits", **SMALL, **{"preaggregators.names": "clip_to_norm,bucketing", "aggregator.name": "median"}
        )
        rule = aggregators.chain(aggregators.clip_to_norm(), aggregators.bucketing(), aggregators.median())
        given = experiment.simulate("digits", **SMALL, aggregator=rule)
        assert (named.test_loss == given.test_loss).all()

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (
                "decides",
                "Python cannot decide on a traced number; use jnp.where, or annotate the parameter as int or float",
            ),
            ("breaks", "KeyError: 'nothing'"),
        ],
    )
    def test_what_a_rule_raises_is_one_line_with_its_place(self, module, function, reason):
        line = next(i for i, text in enumerate(module.read_text().splitlines(), 1) if f"def {function}" in text) + 1
        line += function == "breaks"
        with pytest.raises(InputError) as error:
            experiment.simulate("digits", **SMALL, **{"aggregator.name": f"strangers:{function}"})
        assert f"strangers:{function}: strangers.py, line {line}: {reason}" in str(error.value)

    def test_an_edited_rule_is_another_run(self, module, tmp_path):
        config = resolved(aggregator__name="strangers:norm_gate")
        path = tmp_path / "run"
        experiment.run(config, path)
        module.write_text(module.read_text() + "\n# edited\n")
        with pytest.raises(
            InputError, match=r"strangers\.py is another version than the one that the run was declared"
        ):
            experiment.run(config, tmp_path / "other")
        edited = resolved(aggregator__name="strangers:norm_gate")
        assert configs.identity(edited) != configs.identity(config)
        with pytest.raises(InputError, match=r"holds another run, config\.sources\.strangers:norm_gate is"):
            experiment.run(edited, path)


WRONG = {
    "aggregator.name": {
        "no_keywords": "got an unexpected keyword argument 'key'",
        "two_results": "aggregate gives a tuple of 2, allowed is (update, state, diagnostics)",
        "returns_the_stack": "the update['params']['conv1']['bias']: float32(4, 16), allowed is float32(16,), shaped like",
        "other_state": "the state after a round: is float32(2,), allowed is a tree shaped like that of init",
        "one_weight": "weight: is float32(4,), allowed is a tree (n,) in each layer of the update",
    },
    "attack.name": {
        "keeps_the_axis": "row: has the shape (2, 16), allowed is (16,), without the axis of clients",
        "one_argument": "takes 1 positional argument but 2 were given",
    },
}


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(("field", "name"), [(field, name) for field, names in WRONG.items() for name in names])
def test_what_does_not_keep_the_contract_is_one_line_before_compiling(field, name):
    with pytest.raises(InputError) as error:
        experiment.simulate("digits", **SMALL, **{field: f"strangers:{name}"})
    assert WRONG[field][name] in str(error.value)
    assert f"strangers:{name}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_in_place_of_a_rule():
    with pytest.raises(
        InputError, match=r"aggregator: is function, allowed is a lasa_jax\.aggregators\.Aggregator; call it"
    ):
        experiment.simulate("digits", **SMALL, aggregator=aggregators.krum)


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ({"sizes"}, "aggregator: needs = {'sizes'}, allowed is a frozenset of params, sizes"),
        (frozenset({"size"}), "needs = frozenset.*size.*, allowed is a frozenset of params, sizes"),
        (frozenset({"ids"}), "aggregator: fedavg: context without what it needs"),  # it reads another one
    ],
)
def test_needs_are_what_a_round_knows_and_what_is_read(needs, message):
    rule = aggregators.fedavg(weighting="size")._replace(needs=needs)
    with pytest.raises(InputError, match=message):
        experiment.simulate("digits", **SMALL, aggregator=rule)


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"aggregator.sparsity_level": 0.5}, "did you mean config.aggregator.lasa.sparsity_level?"),
        ({"aggregator.norm_gate.factor": 2.0}, "no aggregator 'norm_gate' is selected, but lasa"),
        ({"aggregator.name": "strangers:norm_gate", "aggregator.factor": 2.0}, "config.aggregator.norm_gate.factor?"),
    ],
)
def test_hints(settings, hint):
    with pytest.raises(InputError) as error:
        configs.updated(configs.paper("digits"), settings)
    assert hint in str(error.value)
