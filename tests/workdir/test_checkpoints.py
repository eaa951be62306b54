"""Checkpoints: what is kept, what is not restored, and what a fault leaves."""

import contextlib
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from lasa_jax.errors import InputError
from lasa_jax.workdir import Workdir, checkpoints
from lasa_jax.workdir.checkpoints import Checkpoints

STATE = {"w": jax.numpy.arange(1000.0), "key": jax.random.key(3), "round": jax.numpy.int32(7)}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints of rounds 1 and 2 of a run."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    saved = Checkpoints(folder)
    for last_round in (1, 2):
        saved.save(last_round, STATE, keep=2)
    return folder


@pytest.fixture
def copy(two, tmp_path):
    """A copy, to be damaged."""
    shutil.copytree(two, tmp_path / "checkpoints")
    return Checkpoints(tmp_path / "checkpoints")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pair(last_round: int) -> list[str]:
    return [f"round_{last_round:06d}", f"round_{last_round:06d}.json"]


def test_what_is_restored_is_what_was_saved(copy):
    restored = copy.restore(2, jax.eval_shape(lambda: STATE))
    for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(STATE), strict=True):
        assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(restored["w"], STATE["w"])
    np.testing.assert_array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(STATE["key"]))


def test_so_many_are_kept(copy):
    copy.save(3, STATE, keep=2)
    assert (copy.rounds(), names(copy.folder)) == ([2, 3], pair(2) + pair(3))
    copy.save(4, STATE, keep=1)
    assert names(copy.folder) == pair(4)


@pytest.mark.parametrize("name", [".DS_Store", "d/._data", ".nfs000000000001", "Thumbs.db", ".git/all"])
def test_a_mark_of_a_system_does_no_harm(name, copy):
    """They appear by themselves where somebody looks into a folder: no reason to lose a checkpoint."""
    mark = copy.folder / "round_000002" / name
    mark.parent.mkdir(exist_ok=True)
    mark.write_bytes(b"\0")
    restored = copy.restore(2, jax.eval_shape(lambda: STATE))
    np.testing.assert_array_equal(restored["w"], STATE["w"])


def test_later_ones_are_removed(copy):
    copy.remove_after(1)
    assert names(copy.folder) == pair(1)
    copy.remove_after(0)
    assert copy.rounds() == []


def largest(folder: Path) -> Path:
    return max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)


def flip(folder: Path) -> None:
    content = bytearray(largest(folder).read_bytes())
    content[len(content) // 2] ^= 4
    largest(folder).write_bytes(content)


def to_fifo(folder: Path) -> None:
    path = largest(folder)
    path.unlink()
    os.mkfifo(path)


def to_link(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def to_folder(folder: Path) -> None:
    folder.with_suffix(".json").unlink()
    folder.with_suffix(".json").mkdir()


def open_files() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


DAMAGES = {
    "a bit flipped": flip,
    "cut off": lambda folder: os.truncate(largest(folder), 10),
    "a file lost": lambda folder: largest(folder).unlink(),
    "all lost": shutil.rmtree,
    "a file more": lambda folder: (folder / "more").write_text(""),
    "a pipe in place of a file": to_fifo,
    "a link in place of the folder": to_link,
    "a folder in place of the manifest": to_folder,
    "no JSON in the manifest": lambda folder: folder.with_suffix(".json").write_text("{"),
    "a list in the manifest": lambda folder: folder.with_suffix(".json").write_text("[]"),
    "the manifest of another round": lambda folder: shutil.copy(
        folder.parent / "round_000001.json", folder.with_suffix(".json")
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_not_restored_and_can_be_written_anew(copy, damage):
    DAMAGES[damage](copy.folder / "round_000002")
    assert copy.rounds() == [1, 2]
    assert copy.restore(2, STATE) is None
    assert copy.restore(1, STATE) is not None
    assert [path for path in open_files() if path.startswith(str(copy.folder))] == []
    copy.remove_after(1)
    assert names(copy.folder) == pair(1)
    copy.save(2, STATE, keep=2)
    assert copy.restore(2, STATE) is not None


def test_what_a_kill_left_is_no_checkpoint_and_goes(copy):
    shutil.copytree(copy.folder / "round_000002", copy.folder / "round_000003")  # killed before the manifest
    (copy.folder / "round_000004.orbax-checkpoint-tmp").mkdir()
    (copy.folder / ".round_000004.json.part").write_text("{")
    assert copy.rounds() == [1, 2]
    copy.save(3, STATE, keep=2)
    assert names(copy.folder) == pair(2) + pair(3)


def test_another_state_is_not_restored(copy):
    assert copy.restore(2, {"other": STATE["w"]}) is None


def test_a_full_disk_leaves_the_good_ones_and_one_line(copy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 0))
        with pytest.raises(OSError, match="No space left") as error:
            copy.save(3, STATE, keep=2)
        assert error.value.errno == errno.ENOSPC
        line = r"the checkpoint of round 3 cannot be written \(No space left on device\); nothing is lost"
        with Workdir(copy.folder.parent) as workdir, pytest.raises(InputError, match=line):
            workdir.save_checkpoint(3, STATE, keep=2)
    assert names(copy.folder) == pair(1) + pair(2)


def test_a_write_that_orbax_gives_up_leaves_the_good_ones(copy, monkeypatch):
    """TensorStore reports what the disk said in the middle of a long ValueError."""

    def give_up(self, directory: Path, state: object) -> None:
        (copy.folder / "round_000003.orbax-checkpoint-tmp").mkdir()
        raise ValueError("Error writing\n 'a/b': File too large [os_error_code='27'] [source locations='x.cc:1']")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", give_up)
    with pytest.raises(OSError, match=r"^File too large$"):
        copy.save(3, STATE, keep=2)
    assert names(copy.folder) == pair(1) + pair(2)


def test_threads_save_side_by_side(tmp_path):
    """Orbax numbers its operations per process; several at once, and files are lost."""

    def save(name: str) -> bool:
        with Workdir(tmp_path / name) as workdir:
            for last_round in range(1, 9):
                workdir.save_checkpoint(last_round, STATE, keep=1)
            restored = workdir.restore_checkpoint(8, STATE)
        return restored is not None and bool((restored["w"] == STATE["w"]).all())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(save, "abcd")) == [True] * 4
