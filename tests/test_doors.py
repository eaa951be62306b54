"""The doors of the `lasa-jax` command: help, the list of names, and where each leads."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import lasa_jax
from lasa_jax import __main__ as doors
from lasa_jax import aggregators, attacks, data, main, models
from lasa_jax import config as configs
from lasa_jax.inspection import __main__ as inspection
from lasa_jax.launch import sweep
from lasa_jax.leaderboard import __main__ as benchmark
from lasa_jax.report import __main__ as report
from lasa_jax.report import export, status

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["run"], "--config --workdir --extend --dry_run --tensorboard --distributed"),
        (
            ["sweep"],
            "--config --workdir --dry_run --batch --threads --extend --tensorboard --backend --address --gpus --jobs "
            "--slurm",
        ),
        (["status"], "DIR time left"),
        (["export"], "DIR --out --last"),
        (["benchmark"], "--config --workdir --quick --rule --beside --output --dry_run --page --threads"),
        (["report"], "--output --where compare"),
        (
            ["inspect"],
            "--config --output --variances --noise --divergence --rules --magnitude_radius --direction_radius filtering "
            "round robustness partition",
        ),
        (["inspect", "partition"], "--config --output"),
        (["list"], "list"),
        ([], "run sweep status report benchmark export inspect list"),
    ],
)
def test_help(arguments, shown, capsys):
    """Every flag, `--config` first, and an example."""
    assert doors.main([*arguments, "--help"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in shown.split())
    if arguments != ["inspect", "partition"]:  # the example is in the help of `inspect`
        assert re.search(rf"^ +{' '.join(['lasa-jax', *arguments])}", text, re.MULTILINE)
    options = [line.split()[0] for line in text.splitlines() if line.startswith("  --")]
    if "--config" in shown and arguments != ["inspect"]:
        assert options[0] == "--config"
    if arguments == ["run"]:
        assert "lasa-jax list" in text
        for field, setting in configs.SETTINGS.items():
            default = str(setting.default).lower() if setting.kind is bool else setting.default
            assert f"--config.{field}={default}" in options
        says_what_speed_is_made_of(text)


def says_what_speed_is_made_of(text):
    """Each of these settings has one line, which says what it costs and what None means."""
    for name, words in {
        "client.precision=tf32": "on a GPU float32 is up to 8 times slower than tf32, bfloat16 twice as fast: float32, tf32",
        "client_chunk=None": "None: one on a CPU, else as many as a quarter of the device's memory holds",
        "eval_batch_size=None": "None: 250 on a CPU, else what fits",
        "deterministic=false": "on a GPU the same bits in every process, slower",
    }.items():
        (line,) = (line for line in text.splitlines() if line.split()[:1] and name in line.split()[0])
        assert words in line


def test_list(capsys):
    assert doors.main(["list"]) == 0
    shown = capsys.readouterr().out
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in shown.splitlines() if line.startswith("  ")}
    names = (*aggregators.names(), *attacks.names(), *aggregators.PREAGGREGATORS, *data.names(), *models.names())
    settings = [line for line in lines if "=" in line]
    assert [line.partition("=")[0] for line in settings] == [
        *("client.precision", "client_chunk", "eval_batch_size", "deterministic")
    ]
    assert sorted(lines.keys() - settings) == sorted(names)
    says_what_speed_is_made_of(shown)
    assert lines["lasa"] == (
        "sparsity_level=0.3 magnitude_radius=1.0 direction_radius=1.0 num_kept=None | granularity=layer weighting=equal"
    )
    assert lines["median"] == ""
    assert lines["min_max"] == "| knowledge=by_fidelity direction=std"
    assert lines["bucketing"] == "bucket_size=2" or lines["bucketing"] == "| bucket_size=2"
    assert doors.main(["list", "extra"]) == 2


def test_doors_lead_to_the_same_functions(monkeypatch):
    modules = {
        "run": main,
        "sweep": sweep,
        "status": status,
        "report": report,
        "benchmark": benchmark,
        "export": export,
    }
    for name, module in {**modules, "inspect": inspection}.items():
        monkeypatch.setattr(module, "main", lambda argv, name=name: [name, *argv])
        assert doors.main([name, "x", "--y"]) == [name, "x", "--y"]


def test_an_unknown_command(capsys):
    assert doors.main(["reprot"]) == 2
    assert capsys.readouterr().err == (
        "error: lasa-jax reprot: allowed are run, sweep, status, report, benchmark, export, inspect, list "
        "(did you mean 'report'?)\n"
    )
    assert doors.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lasa_jax {lasa_jax.__version__}\n"


def test_one_version_everywhere():
    assert metadata.version("lasa_jax") == lasa_jax.__version__
    assert f"\nversion: {lasa_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {lasa_jax.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


def test_help_waits_for_nothing():
    code = "import sys, lasa_jax.__main__ as doors; doors.main(['--help']); print({'jax', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")


def test_the_command_in_an_empty_folder(tmp_path):
    small = ("rounds=1", "num_clients=8", "clients_per_round=4", "client.epochs=1")
    done = subprocess.run(
        [sys.executable, "-m", "lasa_jax", "run", "digits", "--workdir=run", *(f"--config.{text}" for text in small)],
        cwd=tmp_path,
        env={**os.environ, "XLA_FLAGS": "", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "finished after 1 rounds" in done.stdout
    assert (tmp_path / "run" / "summary.json").exists()
