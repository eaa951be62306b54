"""Names to functions: built-in tables, and `package.module:function` paths of a user's own code.

Wherever a config takes a name it takes such a path too: a rule, an attack, a pre-aggregator, a dataset, a model. This is
the one place that imports a user's code, from the Python path, the working directory and the folder of the config file.

The annotation of a parameter says what it is to a compiled program. `Scalar` and `Count` may be traced, so that runs which
differ in them share a program; `int`, `float`, `bool` and `str` are compiled in.
"""

import contextlib
import functools
import hashlib
import importlib
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lasa_jax import aggregators, attacks, data
from lasa_jax.data import Dataset
from lasa_jax.errors import InputError, call_named, find_named, nearest

Numbers = Mapping[str, Any]  # arrays by name, data of the compiled program

TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "aggregator": aggregators.RULES,
    "attack": attacks.ATTACKS,
    "preaggregator": aggregators.PREAGGREGATORS,
}

# What a module of somebody else's may raise while it is imported, or a function of it when it is called.
FAILURES = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, RuntimeError, SyntaxError, TypeError, ValueError),
)


class Parameter(NamedTuple):
    """A parameter of a rule, an attack or a pre-aggregator.

    Attributes:
      default: of the signature.
      kind: `int`, `float`, `bool` or `str`; None for an array, which callers from Python may give and a config may not.
      traced: whether a number of it is data of the compiled program.
    """

    default: Any
    kind: type | None
    traced: bool


def is_path(name: str) -> bool:
    """Whether a name is the path of a user's function, `package.module:function`."""
    return ":" in name


def label(name: str) -> str:
    """What tables show: `mypkg.rules.norm_gate` for `mypkg.rules:norm_gate`; built-in names as they are."""
    return name.replace(":", ".")


def settings_name(name: str) -> str:
    """The part of a name by which its settings are called: `norm_gate` of `mypkg.rules:norm_gate`."""
    return name.rpartition(":")[2]


def find(kind: str, name: str) -> Callable[..., Any]:
    """The function of a built-in name or of a path.

    Args:
      kind: "aggregator", "attack" or "preaggregator"; "dataset" and "model" have paths only, see `imported`.
      name: of `TABLES[kind]`, or `package.module:function`.

    Raises:
      InputError: if there is none of that name, or the module fails while it is imported.
    """
    if is_path(name):
        return imported(_setting(kind), name)
    module, dot, function = name.rpartition(".")
    if dot:
        raise InputError(f"config.{_setting(kind)} = {name!r} is not known (did you mean '{module}:{function}'?)")
    try:
        return find_named(kind, TABLES[kind], name)
    except InputError as error:
        raise InputError(f"config.{_setting(kind)}: {error} or a path package.module:function") from None


def _setting(kind: str) -> str:
    return {"preaggregator": "preaggregators.names", "dataset": "dataset", "model": "model"}.get(kind, f"{kind}.name")


def imported(setting: str | None, path: str) -> Callable[..., Any]:
    """The function of a path; its module is imported where it was not.

    Args:
      setting: that has the path, for messages; None where the path is known without it.
      path: `package.module:function`.

    Raises:
      InputError: if there is no such module or function, or the module fails while it is imported.
    """
    module_name, _, function_name = path.partition(":")
    where = path if setting is None else f"config.{setting} = {path!r}"
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise InputError(f"{where}: allowed is package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = " (without .py)" if module_name.endswith(".py") else ""
        looked = "the working directory, the folder of the config, or what is installed"
        raise InputError(f"{where}: there is no module {error.name!r} in {looked}{hint}") from None
    except FAILURES as error:
        raise InputError(f"{where}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    function = getattr(module, function_name, None)
    if not callable(function):
        found = [name for name, value in vars(module).items() if _is_written_in(module_name, value)]
        raise InputError(
            f"{where}: {module_name} has no function {function_name!r}, its functions are {', '.join(found) or 'none'}"
            f"{nearest(function_name, found)}"
        )
    if _written_in(function) is None:  # a functools.partial, an object with __call__: no text that identifies a run
        kind = type(function).__name__
        raise InputError(f"{where}: is a {kind}, allowed is a function or a class that is written in a Python file")
    return function


def _written_in(function: Callable[..., Any]) -> str | None:
    """The file that a function or a class is written in; None for any other object, and for what is built in."""
    try:
        return inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None


def _is_written_in(module_name: str, value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == module_name and not value.__name__.startswith("_")


def dataset(name: str, *, data_dir: str | None = None, source: str | None = None) -> Dataset:
    """The dataset of a built-in name, of an `.npz` file, or of a user's function without arguments.

    Args:
      name: as `config.dataset`.
      data_dir: as in `data.load`.
      source: as in `data.load`.

    Raises:
      InputError: if there is no such dataset, or its arrays are not those of one.
    """
    if not is_path(name):
        return data.load(name, data_dir=data_dir, source=source)
    if source is not None:
        raise InputError(f"config.source = {source!r}: dataset {name!r} is not made from a raw source")
    function = imported("dataset", name)
    needed = [one.name for one in inspect.signature(function).parameters.values() if one.default is one.empty]
    if needed:
        raise InputError(
            f"config.dataset = {name!r}: takes {', '.join(needed)}, allowed is a function without arguments"
        )
    with naming_the_line([name]):
        made = function()
    return data.from_arrays(name, made)


def source_file(path: str) -> Path:
    """The file that a user's function is written in.

    Raises:
      InputError: as `imported`: a worker of a cluster may not see the module.
    """
    return Path(_written_in(imported(None, path)) or "")


def source_sha256(path: str) -> str:
    """SHA-256 of the file that a user's function is written in: an edited rule is another run."""
    return hashlib.sha256(source_file(path).read_bytes()).hexdigest()


_searched: list[str] = []  # of this process, since Python's path is


def search_also(*folders: str | Path) -> None:
    """Adds folders to the end of Python's path, where they shadow no module: modules of users may lie there."""
    for folder in folders:
        resolved = str(Path(folder).resolve())
        if resolved not in sys.path:
            sys.path.append(resolved)
        if resolved not in _searched:
            _searched.append(resolved)


def searched() -> tuple[str, ...]:
    """The folders that `search_also` was given: workers of a cluster search them too."""
    return tuple(_searched)


@functools.cache
def parameters(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    """The parameters of a rule, an attack or a pre-aggregator, by name.

    Raises:
      InputError: for a parameter that has no default, or none of the annotations that a config can set.
    """
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError) as error:
        raise InputError(f"{function.__qualname__}: its annotations cannot be read ({error})") from None
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            raise InputError(
                f"{function.__qualname__}: parameter {name!r} must have a default; allowed is a function of settings that "
                "returns the rule, step or attack, see docs/adding.md"
            )
        hint = hints.get(name, type(parameter.default))
        kinds = (hint, *typing.get_args(hint))
        kind = next((kind for kind in (bool, int, float, str) if kind in kinds), None)
        found[name] = Parameter(parameter.default, kind, kind is not None and jax.Array in kinds)
    return types.MappingProxyType(found)


def split(kind: str, name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The given parameters of a method: those that are data of the compiled program, and those that are compiled in."""
    known = parameters(find(kind, name))
    traced = {parameter: value for parameter, value in given.items() if known[parameter].traced}
    return traced, {parameter: value for parameter, value in given.items() if parameter not in traced}


def remembers_clients(kind: str, name: str) -> bool:
    """Whether a method has a parameter `num_clients`: it keeps something for each client of the population, by its id."""
    return "num_clients" in parameters(find(kind, name))


def create(kind: str, name: str, given: Mapping[str, Any]) -> Any:
    """The rule, the attack or the pre-aggregator with these parameters.

    Raises:
      InputError: for an unknown name or parameter, a value out of range, or a function of a user's that fails.
    """
    if not is_path(name):
        return call_named(kind, TABLES[kind], name, given)
    function = find(kind, name)
    made = call_named(kind, {name: function}, name, given)
    wanted = {"aggregator": aggregators.Aggregator, "attack": attacks.Attack}.get(kind)
    if wanted is not None and not isinstance(made, wanted):
        raise InputError(f"{name}: gives {type(made).__name__}, allowed is lasa_jax.{kind}s.{wanted.__name__}")
    if wanted is None and not callable(made):
        raise InputError(f"{name}: gives {type(made).__name__}, allowed is a function of rows, see docs/adding.md")
    return made


@contextlib.contextmanager
def naming_the_line(paths: Iterable[str]) -> Iterator[None]:
    """Turns what a user's function raises into one line that names the function and the line in its file.

    Args:
      paths: of the functions that are called, `package.module:function`.

    Raises:
      InputError: in place of an error that went through a line of one of their files. Other errors pass as they are.
    """
    try:
        yield
    except FAILURES as error:
        # An InputError is one line already; where it was made of another error, that one has the place in the file.
        cause = error.__cause__ if isinstance(error, InputError) else error
        if isinstance(cause, FAILURES):
            for path in paths:
                file, line = source_file(path), 0
                for frame in traceback.extract_tb(cause.__traceback__):
                    line = (frame.lineno or 0) if Path(frame.filename) == file else line
                if line:
                    raise InputError(f"{path}: {file.name}, line {line}: {_reason(cause)}") from None
        raise


def _reason(error: Exception) -> str:
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return (
            "Python cannot decide on a traced number; use jnp.where, or annotate the parameter as int or float, which "
            "compiles it in"
        )
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def factory(kind: str, name: str, compiled_in: Mapping[str, Any]) -> Callable[[Numbers], Any]:
    """`numbers -> rule` or `numbers -> attack`, with the parameters that are compiled in."""
    return lambda traced: create(kind, name, {**compiled_in, **traced})
