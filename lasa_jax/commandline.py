"""What the commands share: a config file with settings by hand, and one line on standard error for whatever is wrong.

    --config=FILE.py:ARGUMENT --config.rounds=100 --config.aggregator.name=mypkg.rules:norm_gate

A file that is not here is looked up in the package, where `digits`, `digits.py` and `configs/digits.py` are the same.
"""

import argparse
import contextlib
import importlib.util
import inspect
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from lasa_jax.errors import InputError, nearest, user_path, whole_number

if TYPE_CHECKING:  # `config` and `methods` take seconds to import, which --help and what only reads should not wait for
    from ml_collections import ConfigDict

    from lasa_jax.config import Setting

_CONFIGS = Path(__file__).parent / "configs"  # of the package
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")

# For what a file must define, what such a file is called and the command that takes it.
_COMMAND_OF = {
    "get_config": ("config file", "lasa-jax run"),
    "get_grid": ("sweep", "lasa-jax sweep"),
    "get_benchmark": ("benchmark", "lasa-jax benchmark"),
}
# And the folder of the package's, below `configs`.
_FOLDER_OF = {"get_config": "", "get_grid": "sweeps", "get_benchmark": "benchmarks"}

_ALLOWED = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


class Parser(argparse.ArgumentParser):
    """The flags of a command, shown in the order in which they are added; what is wrong with them is an InputError."""

    def __init__(self, command: str, description: str | None) -> None:
        """Args: command: as after `lasa-jax`, for instance `"run"`. description: shown by `--help`, with an example."""
        super().__init__(
            prog=f"lasa-jax {command}",
            description=inspect.cleandoc(description or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self._example: str | None = None
        self._takes_settings = False
        self._paths: dict[str, str] = {}  # the flags that take a path, by the names of their values

    def add_path(self, flag: str, **more: Any) -> None:
        """Adds a flag, or an argument without one, whose value is a path of the user's, see `errors.user_path`.

        Args:
          flag: `"--workdir"`, or `"directory"`.
          **more: as in `add_argument`.
        """
        self._paths[self.add_argument(flag, **more).dest] = flag

    def add_config(self, what: str, *, example: str, takes_settings: bool = False) -> None:
        """Adds `--config`, which may also be the first argument without a flag.

        Args:
          what: the file is, for `--help`.
          example: a value, for the error if there is none.
          takes_settings: whether `--config.FIELD=VALUE` are flags too.
        """
        self.add_argument("--config", metavar="FILE", help=f"{what}; may be given without --config=")
        self.add_argument("positional", nargs="?", help=argparse.SUPPRESS)
        self._example, self._takes_settings = example, takes_settings

    def read(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The values of the flags, and `settings`: the text of each `--config.FIELD=TEXT` by field, None without a text.

        Args:
          argv: the arguments; those of this process if None.

        Raises:
          InputError: for what is no flag, with what may be meant, and for values that a flag does not take.
        """
        self.add_argument("-h", "--help", action="help", help="shows this")
        settings: dict[str, str | None] = {}
        rest = []
        for argument in sys.argv[1:] if argv is None else argv:
            match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
            if match and self._takes_settings:
                settings[match[1]] = match[2]
            else:
                rest.append(argument)
        given, unknown = self.parse_known_intermixed_args(rest)
        if self._example is not None and given.positional is not None:
            if given.config is not None:
                unknown.append(given.positional)
            given.config = given.positional
        if unknown:
            raise InputError(self._not_a_flag(unknown[0]))
        if self._example is not None and not given.config:
            missing = "--config: is missing" if given.config is None else "--config=: allowed is FILE or FILE:ARGUMENT"
            raise InputError(f"{missing}, for instance --config={self._example}")
        for name, flag in self._paths.items():
            if (text := getattr(given, name)) is not None:
                setattr(given, name, user_path(f"{flag}={text}" if flag.startswith("-") else text or flag, text))
        given.settings = settings
        return given

    def error(self, message: str) -> NoReturn:
        """Raises InputError in place of printing the usage."""
        raise InputError(f"{self.prog}: {message}")

    def _not_a_flag(self, argument: str) -> str:
        """What to say to an argument that is not known."""
        name, equals, text = argument.lstrip("-").partition("=")
        flags = [flag.removeprefix("--") for action in self._actions for flag in action.option_strings]
        fields: list[str] = []
        if self._example is not None:
            from lasa_jax import config as configs

            field, known = name.removeprefix("config."), list(configs.all_settings())
            if self._takes_settings:
                fields = known
                if field in known:
                    return f"{argument}: is not a flag, it is --config.{field}={text if equals else 'VALUE'}"
            elif field in known or name.startswith("config."):
                return f"{argument}: is not a flag of {self.prog}, whose settings are in its file"
        hint = nearest(name, flags, "--") or nearest(name, fields, "--config.") or "; see --help"
        return f"{argument}: is not a flag of {self.prog}{hint}"


def settings_help() -> str:
    """Every setting with its default and its words, for `--help`."""
    from lasa_jax import config as configs

    settings = (setting_help(field, setting) for field, setting in configs.SETTINGS.items())
    lines = [
        "settings, with the defaults that config files start from (docs/configs.md says what each means):",
        *(f"  {'--config.' + name:<42} {means}" for name, means in settings),
        "",
        "Rules, attacks and pre-aggregators have parameters, --config.aggregator.lasa.sparsity_level=0.5: `lasa-jax list`.",
    ]
    return "\n".join(lines)


def setting_help(field: str, setting: "Setting") -> tuple[str, str]:
    """`client_chunk=None`, and what the setting means with the words that it takes."""
    words = f": {', '.join(setting.allowed)}" if isinstance(setting.allowed, tuple) else ""
    default = str(setting.default).lower() if setting.kind is bool else setting.default
    return f"{field}={default}", f"{setting.means}{words}"


def exit_code(command: Callable[[], int | None], *, stopped: str = "stopped") -> int:
    """Runs a command and returns its exit code.

    That is what `command` returns, or 0; with one line on standard error for each fault it is 2 for bad input, and 130
    where the user stopped it. A command goes on to its end where nobody can read its output any more.

    Args:
      command: what to run.
      stopped: what to say after Ctrl-C.
    """
    from absl import logging

    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes
    with _steady_output():
        try:
            return command() or 0
        except InputError as error:
            for fault in str(error).split("\n"):  # a grid has all of its faults
                print(f"error: {fault}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print(stopped, file=sys.stderr)
            return 130
        except OSError as error:  # a path that the system refuses later than when it was given
            if error.filename is None:
                raise
            print(f"error: {error.filename}: cannot be used ({error.strerror})", file=sys.stderr)
            return 2
        except SystemExit as end:  # argparse, after --help
            if end.code:
                raise
            return 0


class _Steady:
    """A stream that ends where nobody can read it any more, as after `| head` or on a full disk; the command goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text, or nothing from the first one on that could not be written."""
        with self._until_refused():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """The same for what waits to be written."""
        with self._until_refused():
            self._stream.flush()

    @contextlib.contextmanager
    def _until_refused(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def _steady_output() -> Iterator[None]:
    """Lets a command finish and write its files whatever becomes of its output; letters that it lacks become `?`."""
    streams = sys.stdout, sys.stderr
    try:
        with contextlib.ExitStack() as opened:
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                if stream is None:  # closed by the shell: its number must not go to a file of results
                    stream = opened.enter_context(open(os.devnull, "w"))
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="replace")
                setattr(sys, name, _Steady(stream))
            yield
            sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = streams


def sometimes(say: Callable[[str], None], *, every: float = 10.0) -> Callable[[str], None]:
    """`say`, but only for texts that come `every` seconds after the last that was said: outside of a terminal."""
    said = [-every]

    def say_sometimes(text: str) -> None:
        if time.monotonic() - said[0] >= every:
            say(text)
            said[0] = time.monotonic()

    return say_sometimes


def duration(seconds: float) -> str:
    """`"12 min"`: seconds in words, for a line."""
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1 else f"{seconds:.0f} s"


def located(config: str, kind: str) -> str:
    """`FILE:ARGUMENT` with the whole path of the file, here or in the package.

    Args:
      config: as given.
      kind: what the file is wanted for, of `_COMMAND_OF`.

    Raises:
      InputError: if there is no such file.
    """
    name, colon, argument = config.partition(":")
    if name.endswith(".py") and (file := user_path(f"--config={name}", name)).is_file():
        return f"{file.resolve()}{colon}{argument}"
    inside = name.removeprefix("configs/").removesuffix(".py")
    folder = _CONFIGS / _FOLDER_OF[kind]
    for place in (folder, _CONFIGS, *(_CONFIGS / other for other in _FOLDER_OF.values())):
        if os.path.isfile(path := place / f"{inside}.py"):
            return f"{path.resolve()}{colon}{argument}"
    names = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    raise InputError(
        f"--config={name}: no {_COMMAND_OF[kind][0]} of that name; allowed are FILE.py and, of the package, "
        f"{', '.join(names)}{nearest(inside.rpartition('/')[2], names)}"
    )


def call(config: str, kind: str, default: str | None = None) -> Any:
    """What the function of a file returns for the argument; the folders of users' modules are searched from then on.

    Args:
      config: `FILE` or `FILE:ARGUMENT`, as given.
      kind: the function's name, of `_COMMAND_OF`.
      default: the argument, if none is given; None to call the function without one.

    Raises:
      InputError: if there is no such file or function, or the file fails.
    """
    from lasa_jax import methods

    where, path = f"--config={config.partition(':')[0]}", located(config, kind).partition(":")[0]
    methods.search_also(Path.cwd(), Path(path).parent)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{where}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if hasattr(module, kind):
            argument = config.partition(":")[2] or default
            return getattr(module, kind)(*(() if argument is None else (argument,)))
    except InputError:
        raise
    except methods.FAILURES as error:
        raise InputError(f"{where}: {_line_of(error, path)}{type(error).__name__}: {_message(error)}") from None
    for other, (what, command) in _COMMAND_OF.items():
        if hasattr(module, other):
            raise InputError(f"{where}: is a {what}, with {other} and no {kind}; `{command}` takes it")
    raise InputError(f"{where}: has no function {kind}")


def _line_of(error: Exception, path: str) -> str:
    """`"line 3: "`: the last line of the file that an error went through."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    return f"line {lines[-1]}: " if lines else ""


def _message(error: Exception) -> str:
    return " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())


def read_config(config: str, settings: Mapping[str, str | None]) -> "ConfigDict":
    """The config of a run, checked and decided, see `config.resolve`.

    Args:
      config: `FILE` or `FILE:ARGUMENT`, as given.
      settings: the text of each setting given by hand, by its field; None where a flag has no text.

    Raises:
      InputError: one line that names the setting or the file, and what is allowed.
    """
    from ml_collections import ConfigDict

    from lasa_jax import config as configs

    base = call(config, "get_config")
    if not isinstance(base, ConfigDict):
        raise InputError(
            f"--config={config.partition(':')[0]}: get_config gives {type(base).__name__}, allowed is a "
            "ConfigDict of lasa_jax.config.default()"
        )
    selecting = (*configs.SELECTING, *configs.BASES)
    words = {field: text for field, text in settings.items() if field in selecting and text is not None}
    selected = configs.chosen(configs.updated(base, words))
    configs.check_fields(settings, selected)
    known = configs.all_settings(selected)
    values = {field: _value(field, text, known[field]) for field, text in settings.items()}
    return configs.resolve(configs.updated(base, values), list(values))


def _value(field: str, text: str | None, setting: "Setting") -> Any:
    """The value that a text stands for; its range is checked where the config is resolved."""
    if text is None:
        if setting.kind is bool:
            return True
        raise InputError(f"config.{field} has no value: allowed is --config.{field}=VALUE")
    if text == "None" and setting.optional:
        return None
    try:
        value = _CONVERT[setting.kind](text)
    except (KeyError, ValueError, OverflowError):
        value = None
    if value is None or (value == "" and setting.optional):
        allowed = f"{_ALLOWED[setting.kind]}{' or None' if setting.optional else ''}"
        raise InputError(f"config.{field} = {text!r}: allowed is {allowed}")
    return value


_CONVERT: dict[type, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: whole_number,
    float: float,
    str: str,
}


def tell_user_functions(paths: Iterable[str]) -> None:
    """Prints the file of each function of a user's own, before it is used. Args: paths: `package.module:function`."""
    from lasa_jax import methods

    for path in dict.fromkeys(paths):
        print(f"using {path} from {methods.source_file(path)}", file=sys.stderr, flush=True)


def tell_of_idle_gpu() -> None:
    """Says in one line that JAX runs on the CPU where the machine has an NVIDIA device, unless JAX_PLATFORMS asks for it."""
    import jax

    device = shutil.which("nvidia-smi") or _NVIDIA_DRIVER.exists()
    if device and "JAX_PLATFORMS" not in os.environ and jax.default_backend() == "cpu":
        print(
            'JAX runs on the CPU, and this machine has an NVIDIA device: pip install "lasa_jax[cuda12]" lets JAX use it',
            file=sys.stderr,
        )
