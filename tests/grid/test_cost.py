"""What decides the cost of a run: methods that keep as much share it."""

import pytest

from lasa_jax import config as configs
from lasa_jax.grid import cost


def key(**settings):
    return cost._methods_key(configs.resolve(configs.updated(configs.paper("digits"), settings)))


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregator.name": "sparsefed"},
        {"aggregator.name": "fltrust"},
        {"aggregator.name": "fldetector"},
        {"attack.name": "neurotoxin"},
        {"attack.name": "poisonedfl"},
    ],
)
def test_what_keeps_more_costs_more(settings):
    assert key(**settings) != key(**{"aggregator.name": "median", "attack.name": "lie"})


def test_what_keeps_nothing_costs_the_same():
    wanted = key(**{"aggregator.name": "lasa", "attack.name": "none"})
    for rule, attack in (("median", "lie"), ("krum", "zero"), ("flame", "byzmean")):
        assert key(**{"aggregator.name": rule, "attack.name": attack}) == wanted
