"""The process that dies: a module is run as a program, and killed at a chosen moment."""

import functools
import os
import runpy
import signal
import sys
import threading
import time
from typing import Any

# What a process is doing when it is killed, and the longest that a kill waits for, in seconds.
PHASES = {
    "compilation": 2.0,
    "a block": 0.05,
    "a metrics write": 0.003,
    "a checkpoint write": 0.15,
    "a summary write": 0.003,
}


def run(phase: str, nth: int, delay: float, module: str, arguments: list[str]) -> None:
    """Runs a module as a program and kills it `delay` seconds after it began a phase for the `nth` time."""
    from lasa_jax.federated import Simulation
    from lasa_jax.workdir import Workdir

    began, inside = 0, False

    def die() -> None:
        time.sleep(delay)
        if inside:
            os.write(2, b"killed inside\n")
        os.kill(os.getpid(), signal.SIGKILL)

    def begin() -> None:
        nonlocal began, inside
        began, inside = began + 1, True
        if began == nth:
            threading.Thread(target=die, daemon=True).start()

    def watch(owner: type, name: str, *, is_phase: bool, starts_block: bool = False) -> None:
        """The phase lasts as long as the method runs; a block from where it returns to where the next thing begins."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args: Any, **options: Any) -> Any:
            nonlocal inside
            inside = False
            if is_phase:
                begin()
            result = original(*args, **options)
            inside = False
            if starts_block:
                begin()
            return result

        setattr(owner, name, watched)

    in_block = phase == "a block"
    watch(Simulation, "compile", is_phase=phase == "compilation", starts_block=in_block)
    watch(Workdir, "append_metrics", is_phase=phase == "a metrics write", starts_block=in_block)
    watch(Workdir, "save_checkpoint", is_phase=phase == "a checkpoint write", starts_block=in_block)
    watch(Workdir, "write_summary", is_phase=phase == "a summary write")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
