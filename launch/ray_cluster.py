"""A sweep on a Ray cluster: one worker a GPU, each takes batches of the program that it has compiled.

Ray places the workers and notices those that are lost; which batch comes next is `grid.Queue`'s business, as on one machine.
"""

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lasa_jax import grid, methods, track
from lasa_jax.data import cache
from lasa_jax.errors import InputError
from lasa_jax.federated import Executables
from lasa_jax.workdir import is_finished, read_batch_sizes, write_batch_sizes, write_failure

_LOSSES = 3  # of its worker, after which a batch counts as failed: perhaps it is what kills them
_PASSED_ON = ("TFDS_DATA_DIR", "XDG_CACHE_HOME", "JAX_", "XLA_", "LASA_JAX_")


class Worker:
    """What runs in a Ray actor: the programs that it compiled."""

    def __init__(self, workdir: Path, search: Sequence[str], tensorboard: bool = False) -> None:
        methods.search_also(*search)
        cache.keep_compiled_programs()
        self._workdir = workdir
        self._tensorboard = tensorboard
        self._executables = Executables()

    def ready(self) -> None:
        """Nothing, if this machine sees the directory of the sweep, and has what TensorBoard needs if that is asked for.

        Raises:
          InputError: if it does not.
        """
        if self._tensorboard:
            track.check_installed()
        if not read_batch_sizes(self._workdir):
            host = os.uname().nodename
            raise InputError(
                f"--workdir={self._workdir}: on {host} this is not the directory that the sweep was started in"
            )

    def sizes(self, points: Sequence[grid.Point], batch: int | None) -> dict[str, int]:
        """`grid.batch_sizes` where the accelerator is."""
        return grid.batch_sizes(points, self._workdir, batch=batch)

    def run(self, batch: grid.Batch) -> list[grid.Outcome]:
        """Runs a batch."""
        return grid.run_together(
            batch,
            self._workdir,
            executables=self._executables,
            tensorboard=self._tensorboard,
            log=lambda text: None,
        )

    def compiled(self) -> int:
        """How many programs."""
        return len(self._executables)


def run(
    points: Sequence[grid.Point],
    workdir: str | Path,
    *,
    address: str | None,
    gpus: float | None,
    batch: int | None,
    on_outcome: Callable[[grid.Outcome], None],
    log: Callable[[str], None],
    tensorboard: bool = False,
) -> int:
    """Runs the points that are not finished on the workers of a cluster.

    A worker that is lost is replaced, and its batch goes on elsewhere from its last checkpoints. A worker for which there
    is nothing left is ended, so that it holds no GPU.

    Args:
      points: from `grid.points`.
      workdir: a directory that all machines of the cluster see under this path.
      address: of the cluster, as in `ray.init`.
      gpus: of each worker; 1 if None, or none where the cluster has none.
      batch: as in `grid.run`.
      on_outcome: called after each point, finished ones included.
      log: called when a worker is lost.
      tensorboard: as in `grid.run`.

    Returns:
      How many programs the workers compiled; those of lost workers are not known.

    Raises:
      InputError: if Ray is not installed, there is no cluster, or it has no CPU or no such GPU.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--backend=ray: needs Ray, pip install 'lasa_jax[cluster]'") from None
    path = Path(workdir).absolute()
    if gpus is not None and not (gpus >= 0 and gpus == int(min(gpus, 1e6))):
        raise InputError(f"--gpus={gpus:g}: allowed is a whole number from 0 on")
    if address is not None and address != "auto":
        _check_listening(address)
    passed_on = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    try:
        ray.init(address=address or "auto", runtime_env={"env_vars": passed_on}, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--address={address or 'auto'}: {' '.join(str(error).split())}") from None
    try:
        gpus, count = _workers([node["Resources"] for node in ray.nodes() if node["Alive"]], gpus, address or "auto")
        return _run(ray, points, path, count, gpus, batch, on_outcome, log, tensorboard)
    finally:
        ray.shutdown()


def _workers(machines: Sequence[Mapping[str, float]], gpus: float | None, address: str) -> tuple[float, int]:
    """GPUs of each worker, and how many workers the machines of a cluster hold; each needs a CPU where its GPU is.

    Args:
      machines: what each has, `{"CPU": 16.0, "GPU": 1.0}`.
      gpus: as asked for; 1 if None, or none where no machine has one.
      address: of the cluster, for messages.

    Raises:
      InputError: if there is no such machine: a worker would be waited for without an end.
    """
    able = [(machine.get("CPU", 0.0), machine.get("GPU", 0.0)) for machine in machines if machine.get("CPU", 0.0) >= 1]
    if not able:
        raise InputError(f"--address={address}: the cluster has no CPU, and each worker needs one")
    largest = max(gpu for _, gpu in able)
    if gpus is None:
        gpus = min(1.0, max(machine.get("GPU", 0.0) for machine in machines))
        if gpus > largest:
            raise InputError(
                f"--address={address}: machines with a GPU have no CPU, and each worker needs one beside it"
            )
    count = sum(int(min(cpu, gpu // gpus) if gpus else cpu) for cpu, gpu in able)
    if count < 1:
        raise InputError(f"--gpus={gpus:g}: allowed are 0 to {largest:g}, as many as a machine of the cluster has")
    return gpus, count


def _check_listening(address: str) -> None:
    """Raises InputError unless something listens at `HOST:PORT`: Ray tries for minutes before it says so."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(f"--address={address}: no Ray cluster answers there ({error})") from None


def _run(
    ray: Any,
    points: Sequence[grid.Point],
    workdir: Path,
    count: int,
    gpus: float,
    batch: int | None,
    on_outcome: Callable[[grid.Outcome], None],
    log: Callable[[str], None],
    tensorboard: bool = False,
) -> int:
    for outcome in grid.finished(points, workdir, log=lambda text: None):
        on_outcome(outcome)
    if all(is_finished(workdir / point.name) for point in points):
        return 0
    grid.begin(points, workdir, points)
    log("waiting for the first worker")
    actor = ray.remote(num_cpus=1, num_gpus=gpus)(Worker)
    of_worker = (workdir, methods.searched(), tensorboard)
    first = actor.remote(*of_worker)
    try:
        sizes = ray.get(first.sizes.remote(points, batch))
    except ray.exceptions.RayTaskError as error:
        raise InputError(" ".join(str(error.cause).split())) from None
    except ray.exceptions.RayError as error:
        raise InputError(f"--backend=ray: the first worker ended at once ({' '.join(str(error).split())})") from None
    sizes = write_batch_sizes(workdir, sizes)
    todo = grid.batches(points, workdir, sizes)
    waiting, losses, compiled, unstarted = grid.Queue(todo), Counter[str](), 0, 0
    # What each worker is at: a batch, or None while it starts.
    busy: dict[Any, tuple[Any, grid.Batch | None]] = {}

    def start(worker: Any) -> None:
        busy[worker.ready.remote()] = (worker, None)

    def fail(lost: grid.Batch, error: str) -> None:
        for point in lost.points:
            write_failure(workdir, point.name, error)
            on_outcome(grid.Outcome(point, workdir / point.name, None, error))

    start(first)
    for _ in range(min(count, len(todo)) - 1):
        start(actor.remote(*of_worker))
    while any(taken is not None for _, taken in busy.values()) or len(waiting):
        (ready, *_), _ = ray.wait(list(busy))
        worker, taken = busy.pop(ready)
        try:
            answer = ray.get(ready)
        except ray.exceptions.RayActorError:
            if taken is not None:
                name = taken.points[0].name
                losses[name] += 1
                log(f"{workdir / name}: its worker was lost")
                if losses[name] < _LOSSES:
                    waiting.put_back(taken)
                else:
                    fail(taken, f"its worker was lost {_LOSSES} times")
            else:
                unstarted += 1
                if unstarted >= _LOSSES * count:
                    raise InputError(
                        f"--backend=ray: {unstarted} workers ended before they had begun; see Ray's logs"
                    ) from None
            with contextlib.suppress(ray.exceptions.RayError):  # it may only be out of reach, and hold its locks
                ray.kill(worker)
            start(actor.remote(*of_worker))
            continue
        except ray.exceptions.RayTaskError as error:
            if taken is None:  # its machine is not fit; another worker would come up there again
                log(" ".join(str(error.cause).split()))
                ray.kill(worker)
                if not busy:
                    raise InputError(" ".join(str(error.cause).split())) from None
                continue
            fail(taken, " ".join(str(error.cause).split()))
            answer = []
        if taken is None:
            unstarted = 0
        else:
            for outcome in answer:
                on_outcome(outcome)
        following = waiting.take(None if taken is None else taken.program)
        if following is None:
            with contextlib.suppress(ray.exceptions.RayActorError):  # lost when it was done
                compiled += ray.get(worker.compiled.remote())
            ray.kill(worker)
        else:
            busy[worker.run.remote(following)] = (worker, following)
    return compiled
