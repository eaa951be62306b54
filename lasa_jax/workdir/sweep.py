"""The sizes of a sweep's batches, in the `sweep.json` of its directory."""

from collections.abc import Mapping
from pathlib import Path

from lasa_jax.errors import InputError
from lasa_jax.workdir.files import parse_json, read_file, replace_file, to_json
from lasa_jax.workdir.locks import file_lock


def read_batch_sizes(workdir: Path) -> dict[str, int]:
    """The sizes of a sweep's batches by program, from its `sweep.json`; empty before the first.

    Raises:
      InputError: if the file is not what `write_batch_sizes` wrote.
    """
    path = workdir / "sweep.json"
    try:
        stored = parse_json(read_file(path))["batch"]
        if not all(isinstance(size, int) and size > 0 for size in stored.values()):
            raise ValueError("sizes are positive integers")
        return stored
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None


def write_batch_sizes(workdir: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """Keeps the sizes of a sweep's batches in `sweep.json` in place of older ones, and returns all that are there.

    Raises:
      InputError: if the directory cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with file_lock(workdir / ".sweep.lock"):  # the jobs of a cluster start together
            known = {**read_batch_sizes(workdir), **sizes}
            replace_file(workdir / "sweep.json", to_json({"batch": dict(sorted(known.items()))}, indent=2))
    except OSError as error:
        raise InputError(f"--workdir={workdir}: cannot be used ({error.strerror})") from None
    return known
