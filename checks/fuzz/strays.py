"""Folders and texts with what editors and operating systems leave in them: read as without, or one line that names it."""

import gzip
import io
import os
import random
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich.console import Console

from checks.fuzz.data_files import write_sources
from checks.fuzz.directories import small_config
from checks.fuzz.failures import Failures, contents, outcome
from lasa_jax import data, experiment, main, report
from lasa_jax.data import shakespeare
from lasa_jax.errors import InputError, is_mark
from lasa_jax.federated import Executables
from lasa_jax.report import results
from lasa_jax.workdir import Workdir

# Files beside the data: of macOS, Windows, network disks, editors, office programs, version control and downloads.
FILES = [".DS_Store", "._{name}", ".nfs000000000001", ".{name}.swp", ".{name}.swo", "{name}~", "#{name}#", ".#{name}"]
FILES += ["~${name}", ".~lock.{name}#", "Thumbs.db", "ehthumbs.db", "desktop.ini", "Icon\r", ".directory", ".gitkeep"]
FILES += [".gitignore", "{name}.bak", "{name}.orig", "{name}.part", "{name}.crdownload", "{name}.tmp", ".{name}.Xq3fZt"]
FILES += ["README.md", "LICENSE", "{name}.lock", ".sync_{name}.db", ".fuse_hidden0001"]
FOLDERS = ["__MACOSX", ".git", ".ipynb_checkpoints", ".Trash-1000", "@eaDir", ".Spotlight-V100", "lost+found", ".idea"]
NOTHING_SEEN = "\ufeff\u200b\u200c\u200d\u2060\u00ad\u200e\u200f\u202a\u202e\u2066\u061c\u180e\ufe0f\ufe0e"
NOTHING_SEEN += "\u034f\x00\x01\x1a\x7f\x9f"
SPACES = "\u00a0\u202f\u2007\u2009\u3000\u205f\u1680\u2003"


def litter(folder: Path, chance: random.Random) -> str:
    """Puts one stray beside a file below a folder, and says what."""
    beside = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    if chance.random() < 0.25:
        stray = beside.parent / chance.choice(FOLDERS)
        stray.mkdir()
        (stray / beside.name).write_bytes(chance.choice([b"", beside.read_bytes()]))
    else:
        stray = beside.parent / chance.choice(FILES).format(name=beside.name)
        if stray.exists():
            return f"{stray.name} (there)"
        like = chance.choice([b"", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", beside.read_bytes(), None])
        stray.write_bytes(like) if like is not None else stray.symlink_to(chance.choice(["gone", beside.name]))
    return str(stray.relative_to(folder))


def litter_text(text: str, chance: random.Random) -> tuple[str, str]:
    """A text as another editor would have saved it, and what was done to it."""
    kind = chance.randrange(6)
    if kind == 0:
        return "\ufeff" + text, "byte order mark"
    if kind == 1:
        return text.replace("\n", chance.choice(["\r\n", "\r"])), "other ends of lines"
    if kind == 2:
        apart = re.compile(r"(?m)^(.*==|[A-Z]+\.|)$")  # titles, speakers, empty lines
        return apart.sub(lambda line: line[1] + chance.choice(["", " ", "\t"]), text), "spaces at ends"
    if kind == 3:
        return text.rstrip("\n") + chance.choice(["", "\n\n\n", "\x1a", "\n\x0c"]), "another end"
    mark = chance.choice(SPACES if kind == 4 else NOTHING_SEEN)
    found = text.replace(" ", mark) if kind == 4 else _with_marks(text, mark, chance)
    return found, f"U+{ord(mark):04X} {unicodedata.name(mark, '')}"


def _with_marks(text: str, mark: str, chance: random.Random) -> str:
    places = {chance.randrange(len(text)) for _ in range(chance.randint(1, 8))}
    return "".join(mark + letter if at in places else letter for at, letter in enumerate(text))


def same(a: Any, b: Any) -> bool:
    """Whether two datasets have the same examples."""
    parts = [(one.train.inputs, one.train.labels, one.client_ids, one.test.inputs, one.test.labels) for one in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*parts, strict=True))


class Places:
    """What strays are put into, each made once: sources of data, prepared sets, a run, a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_sources(folder / "good")
        self.play = gzip.decompress((folder / "good" / "plays" / "all.txt.gz").read_bytes()).decode()
        sources = {"femnist": folder / "good" / "leaf", "shakespeare": folder / "good" / "plays" / "all.txt.gz"}
        self.sets = {
            name: data.load(name, data_dir=str(folder / "prepared"), source=str(path)) for name, path in sources.items()
        }
        self.config, self.executables = small_config(), Executables()
        self.summary = self.run(folder / "run")
        self.state = {"kernel": jnp.arange(400.0).reshape(20, 20)}
        with Workdir(folder / "saved") as workdir:
            workdir.save_checkpoint(1, self.state, keep=1)

    def run(self, path: Path) -> dict[str, Any]:
        """The run goes on, or is read."""
        return experiment.run(self.config, path, executables=self.executables, log=lambda text: None)

    def source(self, work: Path, chance: random.Random) -> tuple[str, Callable[[], str | None]]:
        """LEAF's files among strays."""
        shutil.copytree(self.folder / "good" / "leaf", work / "leaf")
        what = litter(work / "leaf", chance)

        def use() -> str | None:
            found = data.load("femnist", data_dir=str(work / "out"), source=str(work / "leaf"))
            return None if same(found, self.sets["femnist"]) else "other examples"

        return what, use

    def text(self, work: Path, chance: random.Random) -> tuple[str, Callable[[], str | None]]:
        """Plays as another editor saved them."""
        text, what = litter_text(self.play, chance)
        work.mkdir()
        (work / "plays.txt").write_bytes(text.encode())

        def use() -> str | None:
            parts = shakespeare._read(work / "plays.txt")
            wanted = shakespeare._read(self.folder / "good" / "plays" / "all.txt.gz")
            for part, clients in wanted.items():
                for ours, theirs in zip(parts[part], clients, strict=True):
                    if ours.client != theirs.client or not np.array_equal(ours.labels, theirs.labels):
                        return f"other text of {theirs.client!r} ({ours.client!r})"
            return None

        return what, use

    def prepared(self, work: Path, chance: random.Random) -> tuple[str, Callable[[], str | None]]:
        """Prepared sets among strays."""
        shutil.copytree(self.folder / "prepared", work)
        name = chance.choice(sorted(self.sets))
        what = litter(work if chance.random() < 0.3 else work / name, chance)

        def use() -> str | None:
            return None if same(data.load(name, data_dir=str(work)), self.sets[name]) else "other examples"

        return what, use

    def directory(self, work: Path, chance: random.Random) -> tuple[str, Callable[[], str | None]]:
        """A finished run that is read, or one that goes on from its last checkpoint."""
        shutil.copytree(self.folder / "run", work)
        goes_on = chance.random() < 0.4
        if goes_on:
            (work / "summary.json").unlink()
        stray = what = litter(work, chance)

        def use() -> str | None:
            summary = self.run(work)
            report.accuracy_curve(work)
            main.print_summary(summary, self.config, work, Console(file=io.StringIO()))
            found = results.load(work)
            if len(found.runs) != 1 or not all(Path(stray).name in line for line in found.left_out):
                return f"{len(found.runs)} runs, left out: {found.left_out}"
            return None if summary["parameters_sha256"] == self.summary["parameters_sha256"] else "another model"

        return what + (", goes on" if goes_on else ""), use

    def checkpoint(self, work: Path, chance: random.Random) -> tuple[str, Callable[[], str | None]]:
        """A checkpoint with a stray beside its files is the same checkpoint, or is refused as damaged."""
        shutil.copytree(self.folder / "saved", work)
        what = litter(work / "checkpoints", chance)

        def use() -> str | None:
            with Workdir(work) as workdir:
                restored = workdir.restore_checkpoint(1, self.state)
            if restored is None:
                return "thrown away for a mark of a system" if is_mark(Path(what).name) else None
            return None if np.array_equal(restored["kernel"], self.state["kernel"]) else "another state"

        return what, use


def fuzz(count: int, seed: int = 0) -> tuple[int, Failures]:
    """A stray, or a text of another editor, in each kind of place by turns."""
    failures = Failures()
    with tempfile.TemporaryDirectory() as temporary:
        places = Places(Path(temporary))
        kinds = (places.source, places.text, places.prepared, places.directory, places.checkpoint)
        for index in range(count):
            chance = random.Random(seed * 10**9 + index)
            kind, work = kinds[index % len(kinds)], Path(temporary) / "work"
            what, use = kind(work, chance)
            before = contents(work)
            result, wrong = outcome(use)
            if isinstance(result, InputError):
                if Path(what).name not in str(result) and kind != places.text:
                    wrong = wrong or f"refused without its name: {str(result)[:200]}"
                elif kind in (places.text, places.checkpoint):
                    wrong = f"refused: {str(result)[:200]}"
                elif contents(work) != before:
                    wrong = "refused, and changed the folder"
            else:
                wrong = wrong or result
            if wrong is not None:
                failures.append(f"stray {index}, {kind.__name__}, {what!r}: {wrong}")
            shutil.rmtree(work)
    return count, failures
