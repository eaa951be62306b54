"""Eight host devices for every test, and a cache directory of its own so that no test reads what another run left."""

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("XDG_CACHE_HOME", str(folder))
    jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))  # several tests build the same program
    yield
    patch.undo()
