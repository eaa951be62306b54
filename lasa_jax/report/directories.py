"""Which directories are those of runs, whatever else lies beside them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

FILES = ("config.json", "metrics.jsonl", "summary.json")  # of a run


def one_line(text: str) -> str:
    """At most 500 printable characters: names of files and damaged contents may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:500]


def run_directories(root: Path, left_out: list[str], names: Sequence[str] = FILES) -> Iterator[Path]:
    """The directories at or below `root` that hold a file of a run, in order. Checkpoints are not searched.

    Args:
      root: where to look; links that lead out of it are not followed.
      left_out: gets one line for what cannot be looked at.
      names: of the files that make a directory count.
    """

    def unreadable(error: OSError) -> None:
        left_out.append(one_line(f"{error.filename}: cannot be read ({error.strerror}), left out"))

    for folder, below, files in os.walk(root, onerror=unreadable):
        path = Path(folder)
        for name in sorted(below):
            if (path / name).is_symlink():  # os.walk does not follow it; what it names inside of root is found anyway
                if not _is_inside(path / name, root):
                    place = (path / name).relative_to(root)
                    left_out.append(one_line(f"{place}: is a link that leads outside of {root}, left out"))
                below.remove(name)
        below[:] = sorted(name for name in below if name != "checkpoints")
        here = [name for name in names if name in files or name in below]
        outside = [name for name in here if not _is_inside(path / name, root)]
        for name in outside:
            place = (path / name).relative_to(root)
            left_out.append(one_line(f"{place}: is a link that leads outside of {root}, its run is left out"))
        if here and not outside:
            yield path


def _is_inside(path: Path, root: Path) -> bool:
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError):  # a link in a circle
        return False
