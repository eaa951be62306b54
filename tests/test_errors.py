import os
from pathlib import Path

import pytest

from lasa_jax import commandline, main
from lasa_jax.data import cache, tfds_images
from lasa_jax.errors import InputError, user_path
from lasa_jax.launch import sweep
from lasa_jax.report import results


def test_a_path_may_be_anything_that_the_system_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert user_path("--workdir", "~/x") == tmp_path / "x"
    for text in (".", "..", "link", "link/../a b", "läufe 100%_a=b:c", "not/there/yet"):
        assert user_path("--workdir", text) == Path(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("x" * 300, "File name too long"),
        ("file/below", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("a\0b", "null"),
        ("~nobody_of_that_name/x", "home"),
    ],
)
def test_what_the_system_refuses_is_one_line(text, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=rf"(?s)^--workdir=.*{reason}") as error:
        user_path(f"--workdir={text}", text)
    assert "\n" not in str(error.value)


LONG = "x" * 300


@pytest.mark.parametrize(
    ("command", "argv"),
    [
        (main.main, ["digits", f"--workdir={LONG}"]),
        (main.main, [f"--config={LONG}.py"]),
        (main.main, ["mnist", f"--config.data_dir={LONG}"]),
        (main.main, ["femnist", f"--config.source={LONG}"]),
        (main.main, ["digits", f"--config.dataset={LONG}.npz"]),
        (sweep.main, ["table3:digits", f"--workdir={LONG}"]),
    ],
)
def test_every_path_of_a_command_is_looked_at_alike(command, argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command(argv) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith("error: ")
    assert LONG in line
    assert "File name too long" in line


def test_a_path_that_is_refused_later_is_one_line_too(capsys):
    def command() -> None:
        raise PermissionError(13, "Permission denied", "runs/closed/summary.json")

    assert commandline.exit_code(command) == 2
    assert capsys.readouterr().err == "error: runs/closed/summary.json: cannot be used (Permission denied)\n"


def test_the_paths_of_functions_are_read_alike(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InputError, match="is not a directory"):
        results.load("~/runs")
    monkeypatch.setenv("TFDS_DATA_DIR", "~/data")
    assert tfds_images.resolve_data_dir(None) == (tmp_path / "data", "TFDS_DATA_DIR")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert tfds_images.resolve_data_dir(None)[0] == tmp_path / "tensorflow_datasets"


@pytest.mark.parametrize("root", ["/proc/nowhere", "~nobody_of_that_name"])
def test_a_cache_that_cannot_be_written_is_one_line_and_no_fault(root, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", root)
    monkeypatch.setitem(os.environ, "MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR", ""))
    cache._writable.cache_clear()
    for _ in range(2):
        assert cache.directory() is None
        assert cache.cached("name", {}, ("x",), lambda: {"x": 1}) == {"x": 1}  # type: ignore[dict-item]
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert line.startswith(f"{root}/lasa_jax: nothing is kept there for the next start (")
