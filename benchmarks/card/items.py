"""One item of a part: what is prepared beside the others, and what is measured alone."""

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from lasa_jax.federated import memory

T = TypeVar("T")
Facts = dict[str, Any]  # of one item, as JSON


class Prepared(NamedTuple):
    """An item of which all is compiled.

    Attributes:
      facts: what is known so far.
      measure: what is left to do, alone on the device; None if nothing is.
    """

    facts: Facts
    measure: Callable[[], Facts] | None


class Item(NamedTuple):
    """One line of a part's table.

    Attributes:
      name: of the line.
      prepare: called in a thread beside those of other items, so that a card with many cores compiles them together.
    """

    name: str
    prepare: Callable[[], Prepared]


def once(make: Callable[[], T]) -> Callable[[], T]:
    """A function that makes something when it is first asked for, for all threads; it is kept from then on."""
    lock, made = threading.Lock(), list[T]()

    def get() -> T:
        with lock:
            if not made:
                made.append(make())
            return made[0]

    return get


def accelerator() -> str:
    """The platform of this process; `gpu` on a CPU, where the forms of a card can be tried."""
    return "gpu" if jax.default_backend() == "cpu" else jax.default_backend()


def compiled(lower: Callable[[], jax.stages.Lowered]) -> tuple[jax.stages.Compiled, Facts]:
    """The executable of what is lowered, the seconds that tracing and compiling took, and what it says of its memory."""
    began = time.perf_counter()
    executable = lower().compile()
    return executable, {"compile_seconds": time.perf_counter() - began, **memory_of(executable)}


def memory_of(executable: jax.stages.Compiled) -> Facts:
    """Bytes that a program needs in all, and of its temporaries, by the compiler's own analysis."""
    told = executable.memory_analysis()
    temporary = None if told is None else told.temp_size_in_bytes
    return {"needed_bytes": memory.needed(executable), "temporary_bytes": temporary}


def seconds(
    call: Callable[..., Any],
    *,
    fresh: Callable[[], tuple] | None = None,
    most_calls: int = 32,
    most_seconds: float = 6.0,
) -> Facts:
    """How long a call takes: blocks of calls, each waited for, after two calls that warm up.

    A block has as many calls as fill a fiftieth of a second, so that the way from the host to the device counts once where
    a device is given work ahead.

    Args:
      call: returns arrays; all that it returns within a block is kept until the block is done.
      fresh: makes the arguments of one call, before the block; for programs to which arguments are given away.
      most_calls: of a block.
      most_seconds: no further block begins then, but three there are. There are fifteen at most.

    Returns:
      `seconds` of one call, the median over blocks; `low` and `high`, the quartiles; `blocks`.
    """
    make = (lambda: ()) if fresh is None else fresh

    def block(calls: int) -> float:
        arguments = jax.block_until_ready([make() for _ in range(calls)])
        began = time.perf_counter()
        jax.block_until_ready([call(*given) for given in arguments])
        return (time.perf_counter() - began) / calls

    block(1)
    calls = int(np.clip(0.02 / block(1), 1, most_calls))
    found: list[float] = []
    while len(found) < 3 or (len(found) < 15 and sum(found) * calls < most_seconds):
        found.append(block(calls))
    low, median, high = np.quantile(found, (0.25, 0.5, 0.75)).tolist()
    return {"seconds": median, "low": low, "high": high, "blocks": len(found)}


def peak_bytes() -> int | None:
    """Most bytes that were ever in use on the device since the process began; None where the device does not say."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def with_peak(measure: Callable[[], Facts]) -> Facts:
    """What is measured, and `peak_bytes` if it raised the device's peak, None if the peak is an earlier item's."""
    before = peak_bytes()
    facts = measure()
    after = peak_bytes()
    return {**facts, "peak_bytes": after if after != before else None}
