"""A checked cache of decoded arrays in the user's cache directory, so that images are decoded once, not at every start."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np


def directory() -> Path | None:
    """`$XDG_CACHE_HOME/lasa_jax`, or `~/.cache/lasa_jax`; None, with one line on standard error, if it cannot be written."""
    return _writable(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lasa_jax")


@functools.cache
def _writable(path: Path) -> Path | None:
    """A folder, made if it is not there; looked at once, so that its line is printed once."""
    try:
        path = path.expanduser()
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, RuntimeError) as error:  # a user without a home is a RuntimeError
        reason = getattr(error, "strerror", None) or error
        print(f"{path}: nothing is kept there for the next start ({reason})", file=sys.stderr)
        _keep_matplotlib_quiet()
        return None
    return path


def _keep_matplotlib_quiet() -> None:
    """Gives matplotlib, which has its cache beside ours and warns in long lines, a folder until this process ends."""
    if "MPLCONFIGDIR" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="matplotlib-")
        os.environ["MPLCONFIGDIR"] = folder.name
        atexit.register(folder.cleanup)


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs here for the next start, unless `JAX_COMPILATION_CACHE_DIR` says where.

    Beside them it keeps which kernels a GPU's compiler chose by timing, so that programs to come get the same ones.
    """
    if "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" not in os.environ:
        jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (path := directory()) is not None:
        jax.config.update("jax_compilation_cache_dir", str(path / "xla"))


def data_files(folder: Path) -> list[Path]:
    """The files of a prepared set; those whose names begin with a dot are an operating system's."""
    return [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]


def fingerprint(files: list[Path]) -> list[list[str | int]]:
    """Name, size and time of change of each file: what a cache entry was made from."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]


# What NumPy and zipfile raise on an archive that is missing, cut off or has flipped bits.
DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


def cached(
    name: str, key: object, fields: tuple[str, ...], build: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """The arrays that `build` returns, read from the cache where it holds them undamaged.

    An entry is a NumPy archive named by the hash of `key`. Archives carry a CRC-32 of every array, which is verified on
    reading; an entry that is damaged or cannot be read is built again. Entries are written to a temporary file and
    renamed, so that no process ever sees half of one. A cache that cannot be written is not an error.

    Args:
      name: first part of the file name.
      key: everything the arrays depend on, as JSON.
      fields: names of the arrays.
      build: makes the arrays.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = directory()
    if folder is None:
        return build()
    path = folder / "decoded" / f"{name}-{digest}.npz"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return {field: archive[field] for field in fields}
    except DAMAGE:
        arrays = build()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.stem, suffix=".tmp", delete=False) as whole:
            try:
                np.savez(whole, **arrays)  # type: ignore[arg-type]
                os.replace(whole.name, path)
            except OSError:
                os.unlink(whole.name)
                raise
    return arrays
