import importlib.util
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from lasa_jax import aggregators, attacks, commandline, grid
from lasa_jax import config as configs
from lasa_jax.data import partition
from lasa_jax.errors import InputError, check_number

FOLDER = Path(__file__).parents[2] / "configs"


def load(name: str, argument: str | None = None):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


def resolved(name: str, argument: str | None = None, **settings):
    config = load(name, argument)
    config.update_from_flattened_dict(settings)
    return configs.resolve(config, settings)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_every_config_resolves(path):
    methods = [{"aggregator.name": name} for name in aggregators.names()]
    methods += [{"attack.name": name} for name in attacks.names()]
    for fidelity in ("paper", "official"):
        for method in methods:
            assert configs.identity(resolved(path.stem, fidelity=fidelity, **method))
    assert f"--config=configs/{path.name}" in (FOLDER / path.name).read_text()


PAPER = {  # appendix B of the supplement, and docs/fidelity.md, section 1.2
    "mnist": (6000, 100, 180, 5, 10, 2.0),
    "fashion_mnist": (6000, 100, 180, 5, 10, 2.0),
    "femnist": (None, 100, 300, 1, 64, 2.0),
    "shakespeare": (None, 100, 1000, 1, 4, 2.0),
    "cifar10": (100, 25, 200, 3, 64, 1.0),
    "cifar100": (100, 25, 200, 3, 64, 1.0),
}


@pytest.mark.parametrize(("name", "settings"), PAPER.items())
def test_the_papers_settings(name, settings):
    config = resolved(name, **{"aggregator.name": "lasa"})
    parameters = config.aggregator.parameters
    found = (config.num_clients, config.clients_per_round, config.rounds, config.client.epochs)
    assert (*found, config.client.batch_size, parameters.magnitude_radius) == settings
    natural = name in ("femnist", "shakespeare")
    assert (parameters.direction_radius, parameters.sparsity_level) == (1.5 if natural else 1.0, 0.3)
    sgd = (config.client.learning_rate, config.client.momentum, config.client.decay_every)
    assert sgd == {"shakespeare": (1.0, 0.5, 10), "femnist": (0.1, 0.9, 10)}.get(name, (0.1, 0.9, 1))
    assert config.attack_ratio == 0.25
    assert config.fidelity == "paper"


def test_the_number_of_natural_clients_can_be_set():
    """From the command line too, where an override must have the type of the field."""
    config = load("femnist")
    assert config.num_clients is None
    assert config.get_type("num_clients") is int
    assert resolved("femnist", num_clients=50, clients_per_round=20).num_clients == 50


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("argument", ["alpha=0.5", "shards=2", "gamma=0.5", "quantity=1.0"])
def test_every_argument_of_a_config_divides_the_papers_clients(name, argument):
    config = configs.resolve(load(name, argument))
    count = 100 if name == "cifar100" else 10
    labels = np.random.default_rng(0).integers(0, count, 60_000 if "mnist" in name else 50_000)
    shares = partition.divide(config.partition, labels, None, num_clients=config.num_clients, seed=1)
    assert len(shares.sizes) == config.num_clients
    sizes, classes = shares.sizes, [len(np.unique(labels[r[:s]])) for r, s in zip(*shares, strict=True)]
    if argument.startswith(("alpha", "quantity")):
        assert sizes.max() > 1.5 * sizes.min()
    if argument == "shards=2" and name != "cifar100":
        assert np.median(classes) <= 4


def test_what_fidelity_decides():
    def decided(name, fidelity, rule="fedavg", attack="byzmean"):
        config = resolved(name, **{"fidelity": fidelity, "aggregator.name": rule, "attack.name": attack})
        parameters = config.attack.parameters
        return (
            config.client.learning_rate_decay,
            config.client.clip_norm,
            parameters.get("variant"),
            parameters.get("knowledge"),
        )

    assert decided("mnist", "paper") == (0.99, None, "paper", "benign")
    assert decided("mnist", "official") == (0.999, 1.0, "official", "all")
    assert decided("mnist", "official", rule="lasa") == (0.999, None, "official", "all")
    assert decided("mnist", "official", attack="lie") == (0.999, 1.0, None, "colluders")
    assert decided("cifar10", "official") == (0.99, None, "official", "all")
    assert decided("cifar100", "paper", attack="lie") == (0.99, None, None, "benign")


def test_padding_is_a_setting_of_shakespeare_only():
    """What identifies a run of another dataset does not know it."""
    assert resolved("shakespeare").padding == "ignored"
    assert resolved("shakespeare", fidelity="official").padding == "counted"
    by_hand = resolved("shakespeare", padding="counted")
    assert by_hand.padding == "counted"
    assert configs.identity(by_hand) != configs.identity(resolved("shakespeare"))
    assert configs.from_json(configs.as_json(by_hand)).padding == "counted"
    assert "padding" not in resolved("femnist", fidelity="official")
    with pytest.raises(InputError, match=r"config.padding = 'counted': dataset 'femnist' has no padding"):
        resolved("femnist", padding="counted")
    with pytest.raises(InputError, match=r"config.padding = 'count': allowed are by_fidelity, counted, ignored"):
        resolved("shakespeare", padding="count")


def test_what_is_set_by_hand_wins_over_fidelity():
    config = resolved(
        "mnist",
        **{
            "fidelity": "official",
            "aggregator.name": "fedavg",
            "attack.name": "byzmean",
            "attack.byzmean.variant": "paper",
            "client.clip_norm": math.inf,
            "client.learning_rate_decay": 0.9,
        },
    )
    assert config.attack.parameters.variant == "paper"
    assert config.attack.parameters.knowledge == "all"
    assert config.client.clip_norm is None
    assert config.client.learning_rate_decay == 0.9


# Parameters that replay what was recorded, from Python: no settings.
ARRAYS = {"dnc": {"coordinates"}, "hybrid_sparse": {"mask"}, "mpaf": {"base"}, "poisonedfl": {"sign"}}


def test_tables_are_made_from_the_signatures():
    config = configs.default()
    for kind, functions in (("aggregator", aggregators.RULES), ("attack", attacks.ATTACKS)):
        for name, function in functions.items():
            assert set(config[kind][name]) == set(inspect.signature(function).parameters) - ARRAYS.get(name, set())
    assert config.aggregator.lasa.sparsity_level == 0.3


def test_what_of_a_method_is_compiled_in():
    """Words, switches and sizes are; every other number is data, so that a grid over it is one program."""
    from lasa_jax import methods

    compiled = {}
    for kind, create in (("aggregator", aggregators), ("attack", attacks)):
        for name in create.names():
            parameters = resolved("digits", **{f"{kind}.name": name, "fidelity": "official"})[kind].parameters
            traced, words = methods.split(kind, name, parameters.to_dict())
            compiled[name] = sorted(words)
            assert set(traced) | set(words) == set(parameters)
    assert compiled["lasa"] == ["granularity", "weighting"]
    assert compiled["dnc"] == ["variant"]
    assert compiled["geometric_median"] == ["max_iterations", "variant", "weighting"]
    assert compiled["signguard"] == ["coordinate_fraction", "variant"]
    assert compiled["min_sum"] == ["direction", "knowledge", "squared"]
    assert compiled["adaptive"] == ["knowledge", "num_magnitudes", "num_refinements", "objective"]


def test_numbers_that_are_left_to_the_method_can_be_set():
    config = resolved("digits", **{"aggregator.name": "dnc", "aggregator.dnc.num_coordinates": 50})
    assert config.aggregator.parameters.num_coordinates == 50
    with pytest.raises(InputError, match=r"config\.aggregator\.dnc\.num_iterations = 0"):
        resolved("digits", **{"aggregator.name": "dnc", "aggregator.dnc.num_iterations": 0})


def test_arguments_of_a_config_file():
    assert load("cifar10").partition.name == "class_balanced"
    config = load("cifar10", "alpha=0.1")
    assert (config.partition.name, config.partition.alpha) == ("dirichlet", 0.1)
    config = load("fashion_mnist", "shards=3")
    assert (config.partition.name, config.partition.classes_per_client) == ("shards", 3)
    assert load("mnist", "gamma=0.2").partition.gamma == 0.2
    assert load("cifar100", "quantity=2").partition.name == "quantity_skew"
    with pytest.raises(InputError, match="allowed is one of alpha, shards"):
        load("cifar10", "alpha=0.1,shards=2")
    with pytest.raises(InputError, match="'beta' is not known, allowed are alpha"):
        load("cifar10", "beta=1")
    with pytest.raises(InputError, match="alpha = 'x', allowed is a number"):
        load("cifar10", "alpha=x")


BAD = [
    ({"attack.name": "lye"}, "config.attack.name: attack 'lye' is not known.*did you mean 'lie'"),
    ({"aggregator.name": "mean"}, "config.aggregator.name: aggregator 'mean' is not known"),
    ({"attack_ratio": 1.2}, "config.attack_ratio = 1.2: allowed is 0 <= config.attack_ratio <= 1"),
    ({"clients_per_round": 61}, "clients_per_round = 61: allowed are 1 to config.num_clients = 60"),
    ({"aggregator.lasa.sparsity_level": 1.5}, "config.aggregator.lasa.sparsity_level = 1.5"),
    ({"client.learning_rate": math.nan}, "config.client.learning_rate = nan"),
    ({"client.learning_rate": 0.0}, "config.client.learning_rate = 0.0"),
    ({"client.momentum": 1.0}, "config.client.momentum = 1.0"),
    ({"client.epochs": 0}, "config.client.epochs = 0"),
    ({"rounds": 0}, "config.rounds = 0: allowed is 1 <= config.rounds"),
    ({"seed": -1}, "config.seed = -1"),
    ({"dataset": "imagenet"}, "config.dataset = 'imagenet': allowed are cifar10"),
    ({"model": "vit"}, "config.model = 'vit'"),
    ({"fidelity": "both"}, "config.fidelity = 'both': allowed are paper, official"),
    ({"partition.name": "x"}, "config.partition.name = 'x'"),
    ({"attack.lie.z": 1.0}, r"config.attack.lie.z: attack 'lie' is not selected \(config.attack.name is 'byzmean'\)"),
    ({"attack.byzmean.variant": "x"}, "config.attack.byzmean.variant = 'x': allowed are paper, official"),
    ({"aggregator.assumed_malicious": 31}, "config.aggregator.assumed_malicious = 31"),
    ({"partition.alpha": 0.1}, "config.partition.alpha: is of the partition dirichlet, quantity_skew"),
    ({"partition.gamma": 0.1}, "config.partition.gamma: is of the partition gamma_similarity"),
    ({"partition.name": "gamma_similarity", "partition.gamma": 1.5}, "config.partition.gamma = 1.5"),
    ({"partition.name": "shards", "partition.classes_per_client": 0}, "config.partition.classes_per_client = 0"),
    ({"num_clients": None}, "config.num_clients: must be set for the partition 'iid'"),
    ({"num_clients": 0}, "config.num_clients = 0"),
    ({"batch_stats": "x"}, "config.batch_stats = 'x': allowed are aggregate, separate"),
    (
        {"aggregator.name": "multi_krum", "aggregator.multi_krum.num_selected": 5},
        "config.aggregator.multi_krum.num_selected = 5: the variant 'official'",
    ),
    ({"aggregator.name": "signguard", "aggregator.signguard.lower": 5.0}, "config.aggregator.signguard.upper = 3.0"),
    ({"rounds": 10**11}, "config.rounds = 100000000000: allowed is 1 <= config.rounds <= 1e"),
    ({"source": "somewhere"}, "config.source = 'somewhere'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_bad_settings_are_one_line(settings, message):
    with pytest.raises(InputError, match=message) as error:
        resolved("digits", **settings)
    assert "\n" not in str(error.value)


def test_a_field_that_is_not_known():
    config = configs.default()
    with config.unlocked():
        config.atack_ratio = 0.1
    with pytest.raises(InputError, match=r"config.atack_ratio is not a setting \(did you mean config.attack_ratio\?\)"):
        configs.resolve(config)


def test_identity_names_the_run_and_not_where_its_data_lies():
    first, same, other = (resolved("digits", **s) for s in ({}, {"data_dir": "elsewhere"}, {"seed": 2}))
    assert configs.identity(first) == configs.identity(same) != configs.identity(other)
    difference = configs.first_difference(configs.as_json(first), configs.as_json(other))
    assert difference == "config.seed is 1 there and 2 here"
    assert configs.first_difference(configs.as_json(first), configs.as_json(same)) is None


def test_numpy_numbers_are_pythons():
    """In JSON, and where numbers are told from words, which are compiled in."""
    ours, theirs = configs.paper("digits"), configs.paper("digits")
    ours.aggregator.lasa.sparsity_level = 0.5
    theirs.aggregator.lasa = ConfigDict({**theirs.aggregator.lasa.to_dict(), "sparsity_level": np.float32(0.5)})
    ours, theirs = configs.resolve(ours), configs.resolve(theirs)
    assert type(theirs.aggregator.parameters.sparsity_level) is float
    assert configs.to_json(ours) == configs.to_json(theirs)


def test_an_integer_beyond_floats_is_one_line():
    with pytest.raises(InputError, match="allowed is"):
        check_number("x", 10**400, low=0)


def test_an_integer_beyond_floats_in_a_sweep_is_one_line():
    with pytest.raises(InputError, match=r"config.attack_ratio = 10+: allowed is a value of type float"):
        grid.resolve(configs.paper("digits"), {"attack_ratio": 10**400})


@pytest.mark.parametrize("field", ["rounds", "client.epochs", "record_filtering", "aggregator.assumed_malicious"])
def test_a_config_file_may_use_numpy(field):
    config, expected = configs.default(), True if field == "record_filtering" else 3
    *tables, last = field.split(".")
    table = config
    for name in tables:
        table = table[name]
    setattr(table, last, np.asarray([expected])[0])
    assert type(table[last]) is type(expected)
    assert table[last] == expected


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "digits",
            {
                "attack.name": "byzmean",
                "attack.byzmean.base": "min_max",
                "attack.min_max.direction": "sign",
                "preaggregators.names": "clip_to_norm",
                "preaggregators.clip_to_norm.clip_norm": 2.0,
            },
        ),
        ("mnist", {"aggregator.name": "fedavg", "client.clip_norm": float("inf")}),  # official: 1.0
        (
            "cifar10",
            {"aggregator.name": "geometric_median", "aggregator.geometric_median.refinements": None},
        ),  # there: 0
        ("femnist", {}),
    ],
)
def test_the_settings_as_flags_make_the_same_run(name, settings):
    base = configs.paper(name)
    base.fidelity = "official"
    run = configs.resolve(configs.updated(base, settings))
    words = [f"{field}={value}" for field, value in configs.as_flags(run).items()]
    given = dict(word.split("=", 1) for word in words)
    again = commandline.read_config(name, given)
    assert configs.identity(again) == configs.identity(run)
    assert "aggregator.krum.variant" not in given


def test_digits_can_be_divided_as_unevenly_as_the_supplement_divides():
    config = configs.paper("digits")
    configs.set_partition(config, "alpha=0.1")
    labels = np.arange(1437) % 10
    shares = partition.divide(configs.resolve(config).partition, labels, None, num_clients=60, seed=1)
    assert shares.sizes.min() >= 2
    assert shares.sizes.max() > 60
