import io
import os
import re
import sys
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


class _Full(io.StringIO):
    """A stream on a full disk, with a number of its own."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def fileno(self) -> int:
        return self._number


def test_a_command_ends_whatever_becomes_of_its_output(tmp_path, monkeypatch):
    def command() -> int:
        print("one line")
        (tmp_path / "result").touch()
        return 7

    number = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr(sys, "stdout", _Full(number))
    assert commandline.exit_code(command) == 7
    assert (tmp_path / "result").exists()
    os.write(number, b"to nowhere")
    assert (tmp_path / "out").stat().st_size == 0  # from then on nothing is written
    monkeypatch.setattr(sys, "stdout", None)  # closed by the shell
    assert commandline.exit_code(command) == 7
    assert sys.stdout is None


def test_what_is_said_sometimes_waits_for_its_time(monkeypatch):
    now, said = [100.0], []
    monkeypatch.setattr(commandline.time, "monotonic", lambda: now[0])
    say = commandline.sometimes(said.append)
    for moment in (100, 101, 109.9, 110, 115, 130):
        now[0] = moment
        say(str(moment))
    assert said == ["100", "110", "130"]


def test_outside_of_a_terminal_a_sweep_tells_of_each_point(tmp_path, capsys):
    (tmp_path / "few.py").write_text(
        "from lasa_jax import config, grid\n\n\ndef get_grid(dataset):\n    base = config.paper(dataset)\n"
        "    base.rounds = base.client.epochs = 1\n    base.aggregator.name = 'fedavg'\n"
        "    return grid.Grid(base, [{'seed': [1, 2]}])\n"
    )
    command = [f"--config={tmp_path / 'few.py'}:digits", f"--workdir={tmp_path / 'out'}", "--threads=1"]
    assert sweep.main(command) == 0
    lines = capsys.readouterr().err.strip().split("\n")
    assert [re.sub(r"[\d.]+ %", "x %", line) for line in lines] == [
        f"{n}/2 fedavg none x %, {left} left"
        for n, left in ((1, lines[0].split(", ")[1].removesuffix(" left")), (2, "0 s"))
    ]
    assert sweep.main(command) == 0
    assert not capsys.readouterr().err  # the plan says how many were finished before
