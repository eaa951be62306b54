"""What devices can do, from data sheets by the kind that JAX names, and the memory that a program may take of one."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

_USABLE = 0.95  # of what the device hands out: the rest is for gaps between buffers
_PREALLOCATED = 0.75  # of a GPU's memory, which is what JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise


class Card(NamedTuple):
    """Figures of one device, of data sheets: what a program can reach at best.

    Attributes:
      memory: bytes.
      bandwidth: bytes per second between the device and its memory.
      products: operations per second of matrix products, by `LocalTraining.precision`.
      launch: seconds from one kernel to the next where they do nothing.
    """

    memory: float
    bandwidth: float
    products: Mapping[str, float]
    launch: float


def _gpu(
    gigabytes: float, gigabytes_a_second: float, float32: float, tf32: float, bfloat16: float, float64: float
) -> Card:
    teraflops = {"float32": float32, "tf32": tf32, "bfloat16": bfloat16, "float64": float64}
    return Card(gigabytes * 1e9, gigabytes_a_second * 1e9, {name: x * 1e12 for name, x in teraflops.items()}, 4e-6)


def _tpu(gibibytes: float, gigabytes_a_second: float, bfloat16: float) -> Card:
    """A TPU multiplies in passes of bfloat16: one, three for TF32's digits, six for float32's. It has no float64."""
    passes = {"bfloat16": 1, "tf32": 3, "float32": 6, "float64": 100}
    products = {name: bfloat16 * 1e12 / count for name, count in passes.items()}
    return Card(gibibytes * 2**30, gigabytes_a_second * 1e9, products, 1e-6)


# By a part of the device's kind, special ones before general ones. Products without sparsity.
_CARDS = {
    "B200": _gpu(180, 8000, 75, 1100, 2250, 37),
    "H200": _gpu(141, 4800, 67, 495, 989, 67),
    "H100 PCIe": _gpu(80, 2000, 51, 378, 756, 51),
    "H100 NVL": _gpu(94, 3900, 60, 418, 835, 60),
    "H100": _gpu(80, 3350, 67, 495, 989, 67),
    "A100-SXM4-40GB": _gpu(40, 1555, 19.5, 156, 312, 19.5),
    "A100-PCIE-40GB": _gpu(40, 1555, 19.5, 156, 312, 19.5),
    "A100": _gpu(80, 1935, 19.5, 156, 312, 19.5),
    "L40S": _gpu(48, 864, 91, 183, 362, 1.4),
    "L4": _gpu(24, 300, 30, 60, 121, 0.5),
    "A10": _gpu(24, 600, 31, 62, 125, 0.5),
    "RTX 4090": _gpu(24, 1008, 82, 82, 165, 1.3),
    "RTX 3090": _gpu(24, 936, 35, 35, 71, 0.6),
    "V100": _gpu(16, 900, 15.7, 15.7, 15.7, 7.8),
    "T4": _gpu(15, 320, 8.1, 8.1, 8.1, 0.25),
    "TPU v6": _tpu(31.25, 1640, 918),
    "TPU v5 lite": _tpu(15.75, 819, 197),
    "TPU v5": _tpu(95, 2765, 459),
    "TPU v4": _tpu(30.75, 1228, 275),
    "TPU v3": _tpu(15.75, 450, 61),
    "TPU v2": _tpu(7.5, 350, 23),
}
UNKNOWN = _gpu(16, 300, 8, 8, 8, 0.25)  # a card that the table does not have is taken for a small one


def of(device: jax.Device) -> Card:
    """The figures of a device by its `device_kind`, those of a small card for a kind that is not known."""
    return next((card for part, card in _CARDS.items() if part in device.device_kind), UNKNOWN)


def memory(device: jax.Device) -> int:
    """Bytes that a program may take of a device.

    That is what the device says that it hands out; for one that says nothing, the card's figure, of which JAX takes three
    quarters on a GPU. CPU devices share the memory of the machine. Where a run spans several processes it is the smallest
    figure of all of them, so that all compile the same program.
    """
    try:
        says = (device.memory_stats() or {}).get("bytes_limit", 0)
    except jax.errors.JaxRuntimeError:  # a device that is only described, or another process's
        says = 0
    if device.platform == "cpu":
        says = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(jax.local_devices(backend="cpu"))
    if not says:
        says = of(device).memory * (1 if device.platform == "tpu" else _PREALLOCATED)
    usable = int(_USABLE * says)
    if jax.process_count() > 1:
        usable = int(np.min(multihost_utils.process_allgather(np.int32(usable >> 20)))) << 20
    return usable
