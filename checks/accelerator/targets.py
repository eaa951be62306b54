"""Devices that are described, not at hand: their compilers need no card, and the figures that a bound charges."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

from lasa_jax.errors import InputError


class Target(NamedTuple):
    """A kind of device that is compiled for.

    Attributes:
      title: for the page.
      platform: as `ops.compiling_for` takes it.
      install: what brings its compiler.
      topology: the name of a described machine of at least four devices, or the file of a description of one.
      bandwidth: bytes per second between the device and its memory.
      products: operations per second of matrix products, by what multiplies: float32, tf32, bfloat16, float64.
      launch: seconds from one kernel to the next where they do nothing.
      check: seconds until the host has seen whether a loop of unknown length goes on, or which branch is taken.
    """

    title: str
    platform: str
    install: str
    topology: str
    bandwidth: float
    products: Mapping[str, float]
    launch: float
    check: float


# Of data sheets, but for 400 of the 495 TFLOP/s of TF32 that an H100 is said to have: what large products reach.
TARGETS = {
    "h100": Target(
        "one H100 (SXM, 80 GB)",
        "gpu",
        "jax[cuda12]",
        "h100_sxm.txtpb",
        3.35e12,
        {"float32": 67e12, "tf32": 400e12, "bfloat16": 800e12, "float64": 67e12},
        4e-6,
        12e-6,
    ),
    # A TPU multiplies in passes of bfloat16, three for TF32's digits and six for float32's. Loops are its own.
    "v5e": Target(
        "one TPU v5e (16 GB)",
        "tpu",
        "jax[tpu]",
        "v5e:2x2",
        0.819e12,
        {"float32": 197e12 / 6, "tf32": 197e12 / 3, "bfloat16": 197e12, "float64": 197e12 / 100},
        1e-6,
        0.0,
    ),
}


def devices(name: str, count: int) -> list[jax.Device]:
    """Descriptions of so many devices of a target, at most four.

    Raises:
      InputError: one line, for a target that is not known, or whose compiler is not installed.
    """
    if name not in TARGETS:
        raise InputError(f"target {name!r}: allowed are {', '.join(TARGETS)}")
    target = TARGETS[name]
    try:
        if target.platform == "gpu":
            text = (Path(__file__).parent / target.topology).read_text()
            described = topologies.get_topology_desc(platform="cuda", target_config=text, topology=f"1x1x{count}")
        else:
            os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no server is asked what machine this is
            described = topologies.get_topology_desc(platform="tpu", topology_name=target.topology)
    except (RuntimeError, ValueError) as error:  # JAX's own errors are RuntimeErrors
        said = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"target {name!r}: cannot be compiled for here, pip install '{target.install}' brings its compiler ({said})"
        ) from error
    return list(described.devices)[:count]
