"""How a block of rounds grows with runs of a program and with devices: `python -m benchmarks.blocks [--dataset=digits]`.

LASA against ByzMean, as in the official code; several runs have seeds of their own. Prints two Markdown tables: runs of
one program on one device, and devices for one run (each number of devices in a process of its own, on a CPU as so many
host devices, which share the cores). Seconds are those of the fastest of three blocks. Memory is what the program needs
on a device, its arguments (but the examples), results and temporaries, over the stacks of updates of its runs.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.roofline import machine
from lasa_jax import build
from lasa_jax import config as configs
from lasa_jax.federated import make_mesh

RUNS = (1, 2, 4, 8, 16, 32)
DEVICES = (1, 2, 4, 8)


def seeds(run: build.Run, count: int) -> list[build.Run]:
    """So many runs of one program that differ in their random keys."""
    return [run._replace(point=run.point._replace(key=jax.random.key(i))) for i in range(count)]


def measure(dataset_name: str, runs: int, devices: int, rounds: int) -> dict[str, float]:
    """One program: seconds per round and run, memory of a device over the stacks of its runs, and compile seconds."""
    if len(jax.devices()) < devices:
        raise SystemExit(f"{devices} devices: there are {len(jax.devices())}")
    config = configs.paper(dataset_name)
    config.update_from_flattened_dict(
        {"fidelity": "official", "attack.name": "byzmean", "rounds": rounds, "block_rounds": rounds}
    )
    config = configs.resolve(config)
    simulation, *placed = build.place(seeds(build.prepare(config), runs), make_mesh(jax.devices()[:devices]))
    states = placed[0]
    executable, compile_seconds = simulation.compile(*placed)
    memory = executable.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    used -= memory.alias_size_in_bytes + sum(x.nbytes for x in jax.tree.leaves((placed[2].train, placed[2].test)))
    stack = 4 * config.clients_per_round * sum(x.size // runs for x in jax.tree.leaves(states.variables))
    seconds = []
    for _ in range(3):
        states, points, fed = placed
        given = jax.block_until_ready(jax.tree.map(jnp.copy, states))
        began = time.perf_counter()
        jax.block_until_ready(executable(given, points, fed, np.int32(0)))
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": min(seconds) / rounds / runs,
        "memory": used / (runs * stack / devices),
        "compile": compile_seconds,
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--rounds", type=int, default=10, help="of a block")
    parser.add_argument("--one", type=int, nargs=2, metavar=("RUNS", "DEVICES"), help="prints this one as JSON")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.dataset, *given.one, given.rounds)))
        return

    def line(runs: int, devices: int, name: int) -> str:
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_ENABLE_COMPILATION_CACHE": "false"}
        command = [
            sys.executable,
            "-m",
            "benchmarks.blocks",
            f"--dataset={given.dataset}",
            f"--rounds={given.rounds}",
            "--one",
            str(runs),
            str(devices),
        ]
        found = json.loads(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout)
        return f"| {name} | {found['seconds']:.4f} | {found['memory']:.2f} | {found['compile']:.1f} |"

    tables = (("runs", [(r, 1) for r in RUNS]), ("devices", [(1, d) for d in DEVICES]))
    for index, (kind, sizes) in enumerate(tables):
        print(f"\n| {kind} | seconds per round and run | memory of a device / its stacks | compile, s |")
        print("| --- | --- | --- | --- |")
        for size in sizes:
            print(line(*size, size[index]), flush=True)
    print(f"\n{machine()}")  # last: this process must not take an accelerator's memory from the others


if __name__ == "__main__":
    main()
