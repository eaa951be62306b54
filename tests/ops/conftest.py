"""Both meshes and the forms of all platforms in which the primitives work."""

import jax
import pytest

from lasa_jax import ops
from lasa_jax.federated import make_mesh


@pytest.fixture(params=[1, 8], ids=["1 device", "8 devices"])
def mesh(request):
    with jax.set_mesh(make_mesh(jax.devices()[: request.param])):
        yield request.param


@pytest.fixture(params=["cpu", "gpu", "tpu"])
def platform(request):
    """The ways of taking rows and columns: a CPU's, a GPU's and a TPU's."""
    with ops.compiling_for(request.param):
        yield request.param
