"""Who is timed: packages of each simulator's environment, the command of its runner, and how it is run, in words."""

import sys
from typing import NamedTuple

TORCH = "torch==2.13.0"


class Peer(NamedTuple):
    """One row of the table.

    Attributes:
      name: as the table says it.
      environment: folder of its environment; empty for the one that the command runs in.
      requirements: what pip installs there.
      command: arguments of its interpreter, before the flags of `given.Round`; `{workers}` is their number.
      how: workers, threads, and whether clients go together.
      python: the oldest version that the packages take.
      threads: of PyTorch or of NumPy in each process, where they are set.
    """

    name: str
    environment: str
    requirements: tuple[str, ...]
    command: tuple[str, ...]
    how: str
    python: tuple[int, int] = (3, 11)
    threads: int | None = None


def _module(name: str, *flags: str) -> tuple[str, ...]:
    return ("-m", f"benchmarks.peers.{name}", *flags)


_ALTERNATING = "One process trains one client after another, with PyTorch's own number of threads."
PEERS = (
    Peer(
        "lasa_jax",
        "",
        (),
        _module("ours"),
        "One process with a device for each core, as `python -m lasa_jax.main` runs; each device trains its share of the "
        "clients one after another, which is the default on a CPU (on an accelerator they are vectorised). A round is one "
        "call of a compiled program, which normalises images and draws batches too.",
    ),
    Peer(
        "a loop in PyTorch",
        "torch",
        (TORCH, "numpy"),
        _module("torch_loop"),
        f"{_ALTERNATING} The average is added up as the clients come, so that no stack of updates is kept.",
    ),
    Peer(
        "ByzFL",
        "byzfl",
        ("byzfl==0.0.11", "torch==2.14.1", "torchvision==0.29.1"),
        _module("byzfl"),
        f"{_ALTERNATING} Its `Client.compute_model_update` and `Server.update_model_with_weights` with `Average`; examples "
        "come from a `DataLoader`.",
    ),
    Peer(
        "BlazeFL, processes",
        "blazefl",
        ("blazefl[contrib,reproducibility]==2.0.3", TORCH),
        _module("blazefl", "--mode=processes"),
        "Its pool of processes, one for each core with one thread, parameters in shared memory. Clients of a process follow "
        "one another; the pool is made anew in every round.",
        python=(3, 12),
        threads=1,
    ),
    Peer(
        "BlazeFL, threads",
        "blazefl",
        ("blazefl[contrib,reproducibility]==2.0.3", TORCH),
        _module("blazefl", "--mode=threads"),
        "Its pool of threads, one for each core, under an ordinary Python with its lock; an operation of PyTorch has one "
        "thread. Its documentation recommends this mode with a Python without the lock.",
        python=(3, 12),
        threads=1,
    ),
    Peer(
        "BlazeFL 3, threads",
        "blazefl3",
        ("blazefl[contrib,reproducibility]==3.0.0", "torch==2.14.1"),
        _module("blazefl", "--mode=threads"),
        "The same mode of its newest version, which needs Python 3.14.",
        python=(3, 14),
        threads=1,
    ),
    Peer(
        "pfl-research",
        "pfl",
        ("pfl[pytorch]==0.6.0", TORCH),
        ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node={workers}", *_module("pfl")),
        "Its `SimulatedBackend` in as many processes as there are cores, started by `torchrun`, each with one thread and "
        "its share of the cohort. Clients of a process follow one another.",
        threads=1,
    ),
    Peer(
        "Flower",
        "flower",
        ("flwr[simulation]==1.42.0", TORCH),
        _module("flower"),
        "Its simulation in Ray, one core for a client (the default is two), so that a worker for each core trains one "
        "client after another. Ray gives a worker one thread, and messages with parameters go through its store.",
        threads=1,
    ),
)


def chosen(names: str) -> list[Peer]:
    """The peers whose names begin with one of those that commas divide; all of them if empty.

    Raises:
      SystemExit: for a name that none has.
    """
    wanted = [name for name in names.split(",") if name]
    for name in wanted:
        if not any(peer.name.startswith(name) for peer in PEERS):
            sys.exit(f"--peers={name}: allowed are beginnings of {', '.join(peer.name for peer in PEERS)}")
    return [peer for peer in PEERS if not wanted or peer.name.startswith(tuple(wanted))]
