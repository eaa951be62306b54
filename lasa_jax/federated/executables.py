"""The compiled programs of a process, shared by the runs and threads that ask for them."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax

from lasa_jax.data import FederatedDataset
from lasa_jax.federated.memory import DoesNotFit
from lasa_jax.federated.simulation import Simulation
from lasa_jax.federated.types import Point, Program, State


class Executables:
    """The compiled programs of this process, so that runs that differ in numbers only compile once.

    The eight that were used last are kept: on a CPU a program takes about a thousand of the 65,530 memory maps that Linux
    allows a process, and a sweep may have more programs than that.
    """

    def __init__(self, keep: int = 8, memory_limit: int | None = None) -> None:
        """Args: keep: programs. memory_limit: bytes that each may take of a device, see `Simulation`."""
        self._keep = keep
        self._memory_limit = memory_limit
        self._count = 0
        self._compiled: dict[Any, Any] = {}  # the one used last comes last
        self._refused: dict[Any, DoesNotFit] = {}  # found out once, since that takes as long as to compile
        self._locks: dict[Any, threading.Lock] = {}
        self._inits: dict[str, Callable[[Point], State]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many were compiled, those that were let go included."""
        return self._count

    def init(self, key: str, program: Program) -> Callable[[Point], State]:
        """`points -> states` before the first round, leaves `(runs, ...)`, compiled once for a program."""
        with self._lock:
            return self._inits.setdefault(key, jax.jit(jax.vmap(program.init)))

    def get(
        self, key: str, simulation: Simulation, arguments: tuple[State, Point, FederatedDataset]
    ) -> tuple[jax.stages.Compiled, float]:
        """The executable of a program, and the seconds that it took to compile now: 0 if it was there.

        Threads that ask for the same program wait for the one that compiles it.

        Raises:
          DoesNotFit: as `Simulation.compile`.
        """
        shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), arguments)
        whole = (key, simulation.mesh, jax.tree.structure(arguments), tuple(jax.tree.leaves(shapes)))
        with self._lock:
            lock = self._locks.setdefault(whole, threading.Lock())
        with lock:
            with self._lock:
                executable, seconds = self._compiled.pop(whole, None), 0.0
            if whole in self._refused:
                raise self._refused[whole]
            if executable is None:
                if self._memory_limit is not None:
                    simulation = dataclasses.replace(simulation, memory_limit=self._memory_limit)
                try:
                    executable, seconds = simulation.compile(*arguments)
                except DoesNotFit as error:
                    self._refused[whole] = error
                    raise
            with self._lock:
                self._count += seconds > 0
                self._compiled[whole] = executable
                for oldest in list(self._compiled)[: -self._keep]:
                    del self._compiled[oldest]
            return executable, seconds
