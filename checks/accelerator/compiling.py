"""A program compiled for a described target, as data: its text and the compiler's own account of its memory."""

import gzip
import json
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import jax

from checks.accelerator import programs, targets

ROOT = Path(__file__).parents[2]


class Compiled(NamedTuple):
    """What the compiler made.

    Attributes:
      text: the optimised HLO of one device.
      peak: bytes of one device while it runs, arguments included.
      temporaries: bytes beside arguments and results.
      stack: bytes of the stack of updates on one device.
      devices: how many it was compiled for.
      seconds: that tracing and compiling took here.
      commit: the last one of `lasa_jax`.
      jax: the version.
    """

    text: str
    peak: int
    temporaries: int
    stack: int
    devices: int
    seconds: float
    commit: str
    jax: str


def commit() -> str:
    """The last commit that changed the package; with a mark where files of it have changed since."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "lasa_jax")
    return git("log", "-1", "--format=%h", "--", "lasa_jax") + (" and changes" if changed else "")


def compile_for(target: str, name: str, item: programs.Item) -> Compiled:
    """Compiles one program.

    Raises:
      InputError: if the target's compiler is not installed.
      JaxRuntimeError: if the program does not fit the target.
    """
    described = targets.devices(target, item.devices)
    began = time.perf_counter()
    made = item.make(described)
    seconds = time.perf_counter() - began
    told, text = made.compiled.memory_analysis(), made.compiled.as_text()
    assert told is not None
    assert text is not None
    held = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    return Compiled(
        text,
        held + told.temp_size_in_bytes,
        told.temp_size_in_bytes,
        made.stack,
        item.devices,
        round(seconds, 1),
        commit(),
        jax.__version__,
    )


def kept(folder: Path | None, target: str, name: str, item: programs.Item) -> Compiled:
    """The program from a folder of compiled ones if it is there and of this commit, else compiled and put there."""
    if folder is None:
        return compile_for(target, name, item)
    path = folder / f"{target}-{re.sub('[^a-z0-9_]+', '-', name)}.json.gz"
    if path.is_file():
        found = Compiled(**json.loads(gzip.decompress(path.read_bytes())))
        if found.commit == commit():
            return found
    made = compile_for(target, name, item)
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(made._asdict()).encode()))
    return made
