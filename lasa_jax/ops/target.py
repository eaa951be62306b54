"""What a program is compiled for: forms of a computation are chosen by the target, not by the process that traces it."""

import contextlib
from collections.abc import Iterator

import jax

PLATFORMS = ("cpu", "gpu", "tpu")

# Part of the key of every trace that JAX keeps: one that was made for a platform is never reused for another.
_target = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Within it, what is traced takes the forms that suit a platform. Outside of it they suit the process's own backend.

    `federated.Simulation.compile` enters it with the platform of its mesh. It serves to compile or lower for a device
    that this process does not have.

    Args:
      platform: "cpu", "gpu" or "tpu"; "cuda" and "rocm" are gpu.

    Raises:
      ValueError: for another word.
    """
    named = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
    if named not in PLATFORMS:
        raise ValueError(f"platform {platform!r}: allowed are {', '.join(PLATFORMS)}")
    with _target(named):
        yield


def platform() -> str:
    """The platform that is compiled for where this is traced: "cpu", "gpu" or "tpu"."""
    return _target.value or jax.default_backend()
