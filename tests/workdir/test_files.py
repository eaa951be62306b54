"""Files that are whole or as before, and what is not read."""

import os

import pytest

from lasa_jax.workdir import files


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "a"
    files.replace_file(path, "first")
    files.replace_file(path, b"second")
    assert path.read_bytes() == b"second"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_what_a_crash_or_somebody_left_is_not_written_through(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".a.part").symlink_to(tmp_path / "mine")
    files.replace_file(tmp_path / "a", "text")
    assert ((tmp_path / "a").read_text(), (tmp_path / "mine").read_text()) == ("text", "mine")


def test_a_write_that_fails_leaves_the_file_as_before(tmp_path, monkeypatch):
    files.replace_file(tmp_path / "a", "first")

    def fail(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        files.replace_file(tmp_path / "a", "second")
    assert (tmp_path / "a").read_text() == "first"


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/zero"), os.mkfifo, os.mkdir])
def test_only_files_are_read(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(OSError):  # noqa: PT011  (the system's own words)
        files.read_file(tmp_path / "a")


def test_a_link_is_deleted_and_not_where_it_leads(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    (tmp_path / "link").symlink_to(folder)
    files.delete(tmp_path / "link")
    files.delete(tmp_path / "nothing")
    assert (folder / "mine").read_text() == "mine"
    files.delete(folder)
    assert list(tmp_path.iterdir()) == []


def test_json():
    value = {"a": [1, 0.5, None, {"b": "ü"}], "c": (True,)}
    assert files.parse_json(files.to_json(value).encode()) == {**value, "c": [True]}
    assert files.to_json({"a": float("nan"), "b": [float("inf")]}) == '{"a": null, "b": [null]}\n'


@pytest.mark.parametrize("text", [b"", b"{", b"NaN", b'{"a": -Infinity}', b"\xff", b"[" * 200_000])
def test_what_is_no_json(text):
    with pytest.raises(ValueError):  # noqa: PT011  (of the parser)
        files.parse_json(text)
