"""Does a long run stay as it began? `python -m checks.long_run [--rounds=2000]`.

LASA against ByzMean on the digits, a few clients. Prints the resident set on the way, how often the round was traced, what
XLA compiled after the first block, and the files that are left. Exit code 1 if

    the resident set after round 200 and at the end differ by 2 % or more,
    the round was traced more than once, or anything was compiled after the first checkpoint,
    another file than those of a run is there, or more checkpoints than `keep_checkpoints`.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lasa_jax import config as configs
from lasa_jax import experiment
from lasa_jax.federated import Simulation

ALLOWED = 0.02
SETTLED = 200  # rounds
SETTINGS = {
    "num_clients": 12,
    "clients_per_round": 6,
    "client.epochs": 1,
    "aggregator.name": "lasa",
    "attack.name": "byzmean",
    "block_rounds": 20,
    "checkpoint_every": 100,
    "keep_checkpoints": 2,
}


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class LongRun(NamedTuple):
    """What was seen of one run.

    memory: bytes resident after a round. traces: of the round. late: programs that XLA compiled after the first checkpoint.
    files: names that are left. keep: checkpoints that may stay. status: of the summary.
    """

    memory: dict[int, int]
    traces: int
    late: int
    files: list[str]
    keep: int
    status: str


def watch(rounds: int, workdir: Path) -> LongRun:
    """Runs `rounds` rounds in a directory and measures on the way."""
    config = configs.paper("digits")
    config.update_from_flattened_dict(SETTINGS | {"rounds": rounds})
    config = configs.resolve(config)
    memory: dict[int, int] = {}
    traces, late = 0, 0
    block = Simulation.block

    def traced(self: Simulation, *arguments: Any) -> Any:
        nonlocal traces
        traces += 1
        return block(self, *arguments)

    def compiled(event: str, seconds: float, **_: Any) -> None:
        nonlocal late
        if event.endswith("backend_compile_duration") and max(memory, default=0) > config.checkpoint_every:
            late += 1

    def on_metrics(_: str, index: int, metrics: Mapping[str, Any]) -> None:
        memory[index] = resident()

    Simulation.block = traced  # type: ignore[method-assign]
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        summary = experiment.run(config, workdir, on_metrics=on_metrics, log=lambda text: None)
    finally:
        Simulation.block = block  # type: ignore[method-assign]
        jax.monitoring.unregister_event_duration_listener(compiled)
    files = sorted(str(path.relative_to(workdir)) for path in (*workdir.iterdir(), *workdir.glob("checkpoints/*")))
    return LongRun(memory, traces, late, files, config.keep_checkpoints, summary["status"])


def faults(seen: LongRun) -> list[str]:
    """What did not stay as it began."""
    last = max(seen.memory)
    change = abs(seen.memory[last] / seen.memory[min(SETTLED, last)] - 1)
    found = (
        [f"the resident set changed by {change:.2%}, allowed is less than {ALLOWED:.0%}"] if change >= ALLOWED else []
    )
    if seen.traces != 1 or seen.late:
        found.append(f"{seen.traces} traces, {seen.late} programs compiled after the first checkpoint")
    kept = [f"checkpoints/round_{number:06d}" for number in (last - 100 * i for i in range(seen.keep)) if number > 0]
    wanted = {
        "checkpoints",
        ".lock",
        "config.json",
        "metrics.jsonl",
        "summary.json",
        *kept,
        *(f"{k}.json" for k in kept),
    }
    if set(seen.files) != wanted:
        found.append(f"files: {sorted(set(seen.files) ^ wanted)}")
    return found


def main() -> int:
    """Prints what was seen; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000, help="a multiple of 100")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = watch(given.rounds, Path(folder) / "run")
    for number in sorted({20, 100, SETTLED, *range(500, given.rounds + 1, 500), given.rounds} & set(seen.memory)):
        print(f"resident set after round {number:>5}: {seen.memory[number] / 2**20:.1f} MiB")
    last, settled = seen.memory[max(seen.memory)], seen.memory[min(SETTLED, max(seen.memory))]
    print(f"change from round {SETTLED} to the end: {last / settled - 1:+.2%}, allowed less than {ALLOWED:.0%}")
    print(f"traces of the round: {seen.traces}; programs compiled after the first checkpoint: {seen.late}")
    print(f"files: {', '.join(seen.files)}")
    found = faults(seen)
    for text in found:
        print(text, file=sys.stderr)
    print(f"{seen.status} after {max(seen.memory)} rounds, {len(found)} faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
