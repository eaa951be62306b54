"""What the machine allows, measured beside every table: a matrix product, and one reading of a stack of updates."""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lasa_jax import models, ops
from lasa_jax.federated import make_mesh

_INPUTS: dict[str, tuple[int, ...]] = {"cnn": (28, 28, 1), "resnet18": (32, 32, 3), "small_cnn": (8, 8, 1)}


def best_of(fn: Callable[..., Any], *arguments: Any, repeat: int = 3) -> float:
    """Seconds of the fastest of a few calls, after one that compiles."""
    jax.block_until_ready(fn(*arguments))
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        jax.block_until_ready(fn(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def processor() -> str:
    """Processor and cores."""
    name = platform.processor() or "processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0] if lines else name
        wide = "AVX-512" if "avx512f" in info.read_text() else "AVX2"
        name = f"{name}, {wide}"
    return f"{name}, {os.cpu_count()} cores"


def machine() -> str:
    """One line: processor, cores, devices, versions."""
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{processor()}; {device}; JAX {jax.__version__}; {time.strftime('%Y-%m-%d')}"


def matrix_product() -> float:
    """Operations a second of a float32 matrix product of 2,048 x 2,048."""
    x = jnp.ones((2048, 2048))
    return 2 * 2048**3 / best_of(jax.jit(lambda x: x @ x), x, repeat=5)


def updates(n: int, model: str = "cnn", seed: int = 0, *, mesh: Mesh | None = None) -> Any:
    """A stack of n updates of a model over the devices of a mesh, all if None: normal numbers with a common part."""
    mesh = make_mesh() if mesh is None else mesh
    made = models.create(model, num_classes=10, input_shape=_INPUTS[model])
    leaves, structure = jax.tree.flatten(jax.eval_shape(made.init, jax.random.key(0)))

    @jax.jit
    def make(key: jax.Array) -> list[jax.Array]:
        keys = jax.random.split(key, len(leaves))
        return [
            0.01 * (jax.random.normal(k, (n, *x.shape)) + jax.random.normal(jax.random.fold_in(k, 1), x.shape))
            for k, x in zip(keys, leaves, strict=True)
        ]

    stack = jax.tree.unflatten(structure, make(jax.random.key(seed)))
    if n % mesh.size:
        raise SystemExit(f"--clients={n}: allowed are multiples of the {mesh.size} devices")
    return jax.block_until_ready(jax.device_put(stack, NamedSharding(mesh, PartitionSpec(ops.CLIENTS))))


def reading(stack: Any) -> float:
    """Seconds of one reading of a stack: the average over clients, as plain as it gets."""
    n = jax.tree.leaves(stack)[0].shape[0]
    weights = jnp.full(n, 1 / n)
    return best_of(jax.jit(lambda stack: jax.tree.map(lambda x: jnp.tensordot(weights, x, 1), stack)), stack, repeat=5)


def compare(
    kind: str, names: Sequence[str], seconds_of: Callable[[str], float], official: Mapping[str, float], stack: Any
) -> None:
    """Prints the machine and a Markdown table: a line a name, beside the official code's recorded ratios.

    Args:
      kind: heading of the first column. names: of the lines. seconds_of: times one of them.
      official: seconds of the official code over those of an average of the stack, by name; "times faster" takes it times
        PyTorch's average of this run, or one reading of the stack where PyTorch is not installed.
      stack: what they work on.
    """
    once, average = reading(stack), torch_average(stack)
    size = sum(x.nbytes for x in jax.tree.leaves(stack))
    print(machine())
    print(
        f"matrix product {matrix_product() / 1e9:.0f} GFLOP/s; one reading of the stack, {size / 1e6:.0f} MB: {once:.3f} s"
    )
    print("PyTorch is not installed\n" if average is None else f"PyTorch's average of the stack: {average:.3f} s\n")
    print(f"| {kind} | seconds | readings of the stack | official code, recorded | times faster |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        seconds = seconds_of(name)
        ratio = official.get(name)
        cells = "- | -" if ratio is None else f"{ratio:,} | {ratio * (average or once) / seconds:.1f}"
        print(f"| {name} | {seconds:.3f} | {seconds / once:.1f} | {cells} |", flush=True)


def torch_average(stack: Any) -> float | None:
    """Seconds of PyTorch's average over clients, None where it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    leaves = [np.asarray(x).reshape(x.shape[0], -1) for x in jax.tree.leaves(stack)]
    flat = torch.from_numpy(np.concatenate(leaves, axis=1))
    return best_of(lambda: flat.mean(0), repeat=5)
