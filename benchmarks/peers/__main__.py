"""Rounds per second of one FedAvg round in other simulators: `python -m benchmarks.peers --environments=FOLDER`.

100 clients with 50 images of MNIST train the paper's CNN for five steps of 10 images by SGD, and the server averages: in
Flower, pfl-research, BlazeFL, ByzFL, a plain loop in PyTorch and lasa_jax, each as its documentation says. Each has an
environment of its own in FOLDER, which is made the first time (several GB each). Runs alternate: every simulator once, then
all of them again. Without `TFDS_DATA_DIR` the images are drawn from a seed. `--output=docs/results/peers.md` writes the
page, and a file of JSON beside it.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import environments, page
from benchmarks.peers.given import Round
from benchmarks.peers.plan import Peer, chosen
from benchmarks.roofline import processor
from lasa_jax import data

ROOT = Path(__file__).parents[2]
LONGEST = 300  # seconds of one run
NOT_PASSED_ON = ("JAX_NUM_CPU_DEVICES", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "XLA_FLAGS")  # they say how a peer is run
EVALUATED = 1000  # training images, at most


class RunFailedError(Exception):
    """Why a run gave no result, in one line."""


def write_examples(path: Path, clients: int, each: int) -> str:
    """Writes the .npz file that `given.examples` and lasa_jax read; returns what it holds, in words.

    MNIST where `TFDS_DATA_DIR` is set, in a random order; else images of a random pattern for each class. In place of a test
    set are the first training images: even one step on few of them lowers their loss.
    """
    count, draw = clients * each, np.random.default_rng(0)
    if os.environ.get("TFDS_DATA_DIR"):
        mnist, words = data.load("mnist"), "MNIST"
        order = draw.permutation(len(mnist.train.labels))[:count]
        inputs, labels = mnist.train.inputs[order], mnist.train.labels[order]
        mean, std = mnist.mean, mnist.std
    else:
        words = "images of MNIST's shape, drawn from a seed"
        labels, patterns = draw.integers(0, 10, count), draw.integers(0, 256, (10, 28, 28, 1))
        inputs = ((patterns[labels] + draw.integers(0, 256, (count, 28, 28, 1))) // 2).astype(np.uint8)
        mean, std = (inputs.mean(),), (inputs.std(),)
    np.savez(
        path,
        train_inputs=inputs,
        train_labels=labels,
        test_inputs=inputs[:EVALUATED],
        test_labels=labels[:EVALUATED],
        client_ids=np.repeat(np.arange(clients), each),
        mean=np.asarray(mean, np.float32),
        std=np.asarray(std, np.float32),
    )
    return words


def result_of(printed: str) -> dict[str, Any]:
    """The line of `given.report` among what a runner printed.

    Raises:
      RunFailedError: if there is none.
    """
    for line in reversed(printed.splitlines()):
        if line.startswith('{"seconds"'):
            return json.loads(line)
    raise RunFailedError("it printed no result")


def why(errors: str) -> str:
    """The line of a traceback that names the first exception, else the last line that is not empty."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return next((line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1] if lines else "")


def run(peer: Peer, python: str, work: Round) -> dict[str, Any]:
    """One run of a peer in a process of its own; what it reports, see `given.report`.

    Raises:
      RunFailedError: with the line of its errors that says why, or if it takes too long.
    """
    environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    if peer.threads is not None:
        environment |= {"OMP_NUM_THREADS": str(peer.threads)}
    command = [python, *(part.format(workers=work.workers) for part in peer.command), *work.arguments()]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its workers can be ended with it
    )
    try:
        printed, errors = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        raise RunFailedError(f"it took more than {LONGEST} s") from None
    finally:
        if process.poll() is None:  # too long, or Ctrl-C
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        raise RunFailedError(why(errors) or f"it ended with code {process.returncode}")
    return result_of(printed)


def busy_cores(seconds: float = 1.0) -> float:
    """How many cores are at work while this process waits: what else the machine does. NaN where /proc is missing."""

    def ticks() -> int:
        first = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        user, nice, system, _, _, irq, soft = map(int, first[:7])
        return user + nice + system + irq + soft

    if not Path("/proc/stat").exists():
        return float("nan")
    before = ticks()
    time.sleep(seconds)
    return (ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def measure(
    peers: Sequence[Peer], folder: Path, work: Round, repeats: int, pythons: Sequence[str] = ()
) -> tuple[list[dict[str, Any]], list[float]]:
    """Runs every peer, then all of them again; a peer that fails is not run again.

    Returns:
      a row for each peer, with `seconds` of the rounds of each repeat or the `reason` why there are none; and `busy_cores`
      before each run.
    """
    rows: dict[str, dict[str, Any]] = {}
    ready: list[tuple[Peer, str]] = []
    for peer in peers:
        rows[peer.name] = {"name": peer.name, "requirements": peer.requirements, "how": peer.how, "seconds": []}
        try:
            ready.append((peer, environments.python_of(peer, folder, pythons)))
        except environments.RefusedError as refused:
            rows[peer.name]["reason"] = f"cannot be installed: {refused}"
    others = []
    for repeat in range(repeats):
        for peer, python in ready:
            row = rows[peer.name]
            if "reason" in row:
                continue
            others.append(busy_cores())
            began = time.perf_counter()
            try:
                result = run(peer, python, work)
            except RunFailedError as failure:
                row["reason"] = f"failed: {failure}"
            else:
                row["seconds"].append(result.pop("seconds"))
                row |= result
            took = f"{time.perf_counter() - began:.0f} s"
            said = row.get("reason") or f"{np.median(row['seconds'][-1]):.2f} s per round"
            print(f"repeat {repeat + 1}, {peer.name}: {said} ({took})", flush=True)
    return list(rows.values()), others


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, required=True, help="folder of the simulators' environments")
    parser.add_argument("--peers", default="", help="beginnings of their names, divided by commas; all of them")
    parser.add_argument("--pythons", default="", help="more interpreters for environments, divided by commas")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5, help="local steps of a client")
    parser.add_argument("--batch", type=int, default=10, help="images of a step")
    parser.add_argument("--rounds", type=int, default=3, help="that are timed in a run, after one that is not")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each simulator")
    parser.add_argument("--output", type=Path, help="the page; JSON goes beside it")
    given = parser.parse_args(argv)
    for name in ("clients", "steps", "batch", "rounds", "repeats"):
        if (value := getattr(given, name)) < 1:
            parser.error(f"--{name}={value}: allowed are whole numbers from 1")
    return given


def found(given: argparse.Namespace) -> Mapping[str, Any]:
    """Measures; everything that the page says."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "examples.npz"
        images = write_examples(file, given.clients, given.steps * given.batch)
        work = Round(given.clients, given.steps, given.batch, given.rounds, cores, file)
        pythons = [python for python in given.pythons.split(",") if python]
        began = time.perf_counter()
        rows, others = measure(chosen(given.peers), given.environments, work, given.repeats, pythons)
    return {
        "machine": processor(),
        "date": time.strftime("%Y-%m-%d"),
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "images": images,
        "evaluated": min(EVALUATED, given.clients * given.steps * given.batch),
        "repeats": given.repeats,
        "work": {name: value for name, value in work._asdict().items() if name != "data"},
        "busy_cores": [round(share, 2) for share in others],
        "rows": rows,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the page and writes it where that is asked for; 1 if not even lasa_jax was timed."""
    given = arguments(argv)
    if given.output is not None and not given.output.parent.is_dir():
        sys.exit(f"--output={given.output}: there is no folder {given.output.parent}")
    result = found(given)
    text = page.page(result)
    print(text)
    if given.output is not None:
        given.output.write_text(text)
        given.output.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    return int(all(row.get("reason") for row in result["rows"]))


if __name__ == "__main__":
    sys.exit(main())
