"""Both meshes and both platform forms in which the primitives work."""

import jax
import pytest

from lasa_jax import ops
from lasa_jax.federated import make_mesh


@pytest.fixture(params=[1, 8], ids=["1 device", "8 devices"])
def mesh(request):
    with jax.set_mesh(make_mesh(jax.devices()[: request.param])):
        yield request.param


@pytest.fixture(params=["one row at a time", "all rows"])
def platform(request, monkeypatch):
    """Both ways of taking rows: a CPU's and an accelerator's."""
    for module in (ops.rows, ops.columns):
        monkeypatch.setattr(module, "one_at_a_time", lambda: request.param == "one row at a time")
