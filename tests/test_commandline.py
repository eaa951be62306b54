"""Reading config files and flags."""

import os
import sys
from pathlib import Path

import pytest

from lasa_jax import __main__ as doors
from lasa_jax import commandline, main
from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.inspection import __main__ as inspection
from lasa_jax.launch import sweep

ROOT = Path(__file__).parents[1]

RULES = """
from lasa_jax import aggregators
from lasa_jax.aggregators.base import Scalar


def norm_gate(factor: Scalar = 3.0, word: str = "") -> aggregators.Aggregator:
    return aggregators.norm_clipped_mean(clip_norm=factor)
"""


@pytest.fixture(autouse=True)
def own_path(monkeypatch):
    """What a command appends to Python's path is gone after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def read(*arguments: str):
    given = main.parser().read(arguments)
    return commandline.read_config(given.config, given.settings)


# --- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--config.rounds=100"], "rounds", 100),
        (["--config.rounds=1e2"], "rounds", 100),
        (["--config.rounds=5", "--config.rounds=7"], "rounds", 7),
        (["--config.attack_ratio=0"], "attack_ratio", 0.0),
        (["--config.attack_ratio=1e-1"], "attack_ratio", 0.1),
        (["--config.record_filtering"], "record_filtering", True),
        (["--config.record_filtering=true"], "record_filtering", True),
        (["--config.record_filtering=True"], "record_filtering", True),
        (["--config.record_filtering=false"], "record_filtering", False),
        (["--config.preaggregators.names="], "preaggregators.names", ""),
        (["--config.client.clip_norm=inf"], "client.clip_norm", None),  # as resolved: no clip
        (["--config.client.clip_norm=2"], "client.clip_norm", 2.0),
        (["--config.aggregator.assumed_malicious=3"], "aggregator.assumed_malicious", 3),
        (["--config.aggregator.assumed_malicious=None"], "aggregator.assumed_malicious", None),
        (["--config.aggregator.lasa.num_kept=1e3"], "aggregator.parameters.num_kept", 1000),
        (["--config.data_dir=/a=b"], "data_dir", "/a=b"),
        (
            ["--config.preaggregators.names=clip_to_norm", "--config.preaggregators.clip_to_norm.clip_norm=2"],
            "preaggregators.parameters.clip_to_norm.clip_norm",
            2.0,
        ),
    ],
)
def test_texts_become_values(arguments, field, value):
    found = dict(configs.flatten(read("digits", *arguments).to_dict()))[field]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.rounds=2.5", "config.rounds = '2.5': allowed is a whole number"),
        ("--config.rounds=", "config.rounds = '': allowed is a whole number"),
        ("--config.rounds=None", "config.rounds = 'None': allowed is a whole number"),
        ("--config.rounds=inf", "config.rounds = 'inf': allowed is a whole number"),
        ("--config.rounds=1e999", "config.rounds = '1e999': allowed is a whole number"),
        ("--config.rounds", "config.rounds has no value: allowed is --config.rounds=VALUE"),
        ("--config.num_clients=x", "config.num_clients = 'x': allowed is a whole number or None"),
        ("--config.attack_ratio=many", "config.attack_ratio = 'many': allowed is a number"),
        ("--config.attack_ratio=inf", "config.attack_ratio = inf: allowed is 0 <= config.attack_ratio <= 1"),
        ("--config.attack_ratio=nan", "config.attack_ratio = nan: allowed is 0 <= config.attack_ratio <= 1"),
        ("--config.record_filtering=1", "config.record_filtering = '1': allowed is true or false"),
        ("--config.data_dir=", "config.data_dir = '': allowed is a word or None"),
        ("--config.dataset=", "config.dataset = '': allowed are cifar10"),
        ("--config.aggregator=lasa", "config.aggregator is not a setting (did you mean config.aggregator.name?)"),
        ("--config.=1", "config. is not a setting"),
        ("--config.attack.lie.z=1", "config.attack.lie.z: attack 'lie' is not selected"),
        ("--config.aggregator.norm_gate.factor=1", "config.aggregator.norm_gate.factor is not a setting"),
        ("--rounds=5", "--rounds=5: is not a flag, it is --config.rounds=5"),
        ("--rounds", "--rounds: is not a flag, it is --config.rounds=VALUE"),
        ("rounds=5", "rounds=5: is not a flag, it is --config.rounds=5"),
        ("--attack.name=lie", "--attack.name=lie: is not a flag, it is --config.attack.name=lie"),
        ("--atack_ratio=1", "--atack_ratio=1: is not a flag of lasa-jax run (did you mean --config.attack_ratio?)"),
        ("--wokdir=x", "--wokdir=x: is not a flag of lasa-jax run (did you mean --workdir?)"),
        ("--work=x", "--work=x: is not a flag of lasa-jax run (did you mean --workdir?)"),  # no abbreviations
        ("--tensorboard=1", "lasa-jax run: argument --tensorboard: ignored explicit argument '1'"),
        ("--config=mnist", "digits: is not a flag of lasa-jax run"),
    ],
)
def test_what_is_wrong_is_one_line(argument, message, capsys):
    assert main.main(["digits", argument]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize("argument", ["--rounds=5", "--config.rounds=5", "--config.aggregator.norm_gate.factor=2"])
def test_settings_of_a_sweep_are_in_its_file(argument, capsys):
    assert sweep.main(["table1:digits", "--workdir=x", argument]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {argument}: is not a flag of lasa-jax sweep, whose settings are in its file"


# --- files -------------------------------------------------------------------------------------------------------------

START = "from lasa_jax.config import paper\n\n\ndef get_config(argument=None):\n    config = paper('digits')\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--config=mine.py: no config file of that name; allowed are FILE.py and, of the package, cifar10,"),
        ("x = 1", "--config=mine.py: has no function get_config"),
        ("def get_config(:", "--config=mine.py: line 1: SyntaxError: "),
        ("\nimport nosuch", "--config=mine.py: line 2: ModuleNotFoundError: No module named 'nosuch'"),
        ("def get_config(argument):\n    pass", "--config=mine.py: TypeError: get_config() missing 1 required"),
        (
            f"{START}    config.rounds = len(3)",
            "--config=mine.py: line 6: TypeError: object of type 'int' has no len()",
        ),
        (f"{START}    config.nosuch.x = 1", "--config=mine.py: line 6: AttributeError: "),
        (f"{START}    config.rounds = 0\n    return config", "config.rounds = 0: allowed is 1 <= config.rounds"),
        (f"{START.replace('digits', 'digit')}", "dataset = 'digit': allowed are digits"),
        (START, "--config=mine.py: get_config gives NoneType, allowed is a ConfigDict"),
        (
            "from ml_collections import ConfigDict as get_config",
            "config.preaggregators.names = None: allowed is a word; start the config from lasa_jax.config.default()",
        ),
        (
            "def get_grid(dataset):\n    pass",
            "--config=mine.py: is a sweep, with get_grid and no get_config; `lasa-jax",
        ),
    ],
)
def test_bad_config_files_are_one_line(content, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "mine.py").write_text(content)
    assert main.main(["--config=mine.py", f"--workdir={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_a_sweep_takes_no_config_and_says_what_does(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("\ndef get_grid(dataset):\n    return int(dataset)\n")
    for config, message in {
        "digits": "--config=digits: is a config file, with get_config and no get_grid; `lasa-jax run` takes it",
        "figure2": "--config=figure2: no sweep of that name; allowed are FILE.py and, of the package, ablation,",
        f"{tmp_path / 'mine.py'}:x": f"--config={tmp_path / 'mine.py'}: line 3: ValueError: invalid literal for int()",
        "--config=": "--config=: allowed is FILE or FILE:ARGUMENT, for instance --config=configs/sweeps/figure1.py:digits",
        "--config.rounds=5": "--config.rounds=5: is not a flag of lasa-jax sweep",
    }.items():
        assert sweep.main([config, f"--workdir={tmp_path / 'out'}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
    assert main.main(["--config=configs/sweeps/figure1.py:digits"]) == 2
    assert "`lasa-jax sweep` takes it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits", "configs/digits.py"])
def test_configs_of_the_package(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read(name).attack.name == read(f"--config={name}").attack.name == "byzmean"
    (tmp_path / "configs").mkdir()
    for path in ("digits.py", "configs/digits.py"):  # a file that is here comes first
        (tmp_path / path).write_text(f"{START}    config.attack.name = 'lie'\n    return config\n")
    assert read(name).attack.name == ("lie" if name.endswith(".py") else "byzmean")


@pytest.mark.parametrize("name", ["figure1", "sweeps/figure1.py", "configs/sweeps/figure1.py"])
def test_sweeps_of_the_package(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    located = commandline.located(f"{name}:mnist", "get_grid")
    assert located == f"{(ROOT / 'configs' / 'sweeps' / 'figure1.py').resolve()}:mnist"


def test_the_argument_of_a_config(tmp_path, monkeypatch):
    assert read("cifar10:alpha=0.1").partition.alpha == 0.1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"{START}    config.rounds = int(argument or 3)\n    return config\n")
    assert [read(f"mine.py{argument}").rounds for argument in ("", ":", ":4")] == [3, 3, 4]


def test_folders_of_users_modules_come_last(tmp_path, monkeypatch):
    """The working directory, then the config's folder, at the end: neither shadows a module."""
    before = list(sys.path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "mine.py").write_text(f"import found_while_loading\n{START}    return config\n")
    (tmp_path / "found_while_loading.py").write_text("")
    read(f"--config={tmp_path / 'mine.py'}")
    assert sys.path == [*before, str(tmp_path / "here"), str(tmp_path)]


# --- functions of a user's own -----------------------------------------------------------------------------------------


@pytest.fixture
def brought(tmp_path, monkeypatch) -> str:
    """A package with a rule in the working directory; the flag that selects it."""
    (tmp_path / "brought_pkg").mkdir()
    (tmp_path / "brought_pkg" / "__init__.py").write_text("")
    (tmp_path / "brought_pkg" / "rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    yield "--config.aggregator.name=brought_pkg.rules:norm_gate"
    for name in ("brought_pkg.rules", "brought_pkg"):
        sys.modules.pop(name, None)


def test_parameters_of_a_users_function(brought):
    settings = ("--config.aggregator.norm_gate.factor=1e1", "--config.aggregator.norm_gate.word=")
    found = read("digits", *settings, brought)  # in any order
    assert found.aggregator.parameters.to_dict() == {"factor": 10.0, "word": ""}
    with pytest.raises(InputError, match=r"config.aggregator.norm_gate.factor = 'x': allowed is a number"):
        read("digits", brought, "--config.aggregator.norm_gate.factor=x")
    with pytest.raises(InputError, match=r"config.aggregator.norm_gate.facto is not a setting .did you mean"):
        read("digits", brought, "--config.aggregator.norm_gate.facto=1")
    with pytest.raises(InputError, match="there is no module 'nosuch' in the working directory"):
        read("digits", "--config.aggregator.name=nosuch:rule")


def test_a_function_that_the_file_selects(brought, tmp_path):
    """Its parameters are flags, and where the command line selects another, it is not imported."""
    content = "    config.aggregator.name = 'brought_pkg.rules:norm_gate'\n    return config\n"
    (tmp_path / "mine.py").write_text(START + content)
    assert read("mine.py", "--config.aggregator.norm_gate.factor=2").aggregator.parameters.factor == 2.0
    (tmp_path / "mine.py").write_text(START + content.replace("brought_pkg.rules", "nosuch"))
    assert read("mine.py", "--config.aggregator.name=median").aggregator.name == "median"


def test_commands_that_compute_say_which_file_is_used(brought, tmp_path, monkeypatch, capsys):
    line = f"using brought_pkg.rules:norm_gate from {tmp_path}/brought_pkg/rules.py"
    monkeypatch.setattr(main, "run", lambda *_, **__: print("the run", file=sys.stderr))
    assert main.main(["digits", brought]) == 0
    assert capsys.readouterr().err.splitlines() == [line, "the run"]
    assert inspection.main(["partition", "digits", brought]) == 0
    assert capsys.readouterr().err.splitlines() == [line]
    (tmp_path / "small.py").write_text(
        "from lasa_jax.config import paper\nfrom lasa_jax.grid import Grid\n\n\ndef get_grid(dataset):\n"
        "    names = ['fedavg', 'brought_pkg.rules:norm_gate']\n"
        "    return Grid(paper(dataset), [{'aggregator.name': names}, {'seed': [1, 2]}])\n"
    )
    assert sweep.main(["small.py", f"--workdir={tmp_path / 'out'}", "--dry_run"]) == 0
    assert capsys.readouterr().err.splitlines() == [line]
    assert main.main(["digits"]) == 0
    assert capsys.readouterr().err.splitlines() == ["the run"]


# --- exit codes and what the machine has -------------------------------------------------------------------------------


def test_exit_codes(capsys):
    def raises(error):
        def command():
            raise error

        return command

    assert commandline.exit_code(lambda: None) == 0
    assert commandline.exit_code(lambda: 1) == 1
    assert commandline.exit_code(raises(SystemExit(0))) == 0
    assert capsys.readouterr().err == ""
    assert commandline.exit_code(raises(InputError("seed: wrong\nrounds: wrong"))) == 2
    assert capsys.readouterr().err == "error: seed: wrong\nerror: rounds: wrong\n"
    assert commandline.exit_code(raises(KeyboardInterrupt), stopped="go on with it") == 130
    assert capsys.readouterr().err == "go on with it\n"
    with pytest.raises(ValueError, match="ours"):  # a mistake of ours has its traceback
        commandline.exit_code(raises(ValueError("ours")))


@pytest.mark.parametrize("sign", ["nvidia-smi", "driver"])
def test_an_nvidia_device_that_is_not_used(sign, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(main, "run", lambda *_, **__: None)
    monkeypatch.setattr(commandline, "_NVIDIA_DRIVER", tmp_path / "version")
    commands = {"run": ["digits"], "sweep": ["table3:digits", f"--workdir={tmp_path / 'out'}", "--dry_run"]}

    def told(command: str) -> list[str]:
        assert doors.main([command, *commands[command]]) == 0
        return capsys.readouterr().err.splitlines()

    assert told("run") == []
    if sign == "driver":
        (tmp_path / "version").write_text("")
    else:
        (tmp_path / "nvidia-smi").touch(mode=0o755)
        monkeypatch.setenv("PATH", f"{os.environ['PATH']}{os.pathsep}{tmp_path}")
    for command in commands:
        (line,) = told(command)
        assert "JAX runs on the CPU" in line
        assert 'pip install "lasa_jax[cuda12]"' in line
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # somebody wants that
    assert told("run") == []
