"""The `lasa-jax` command, also `python -m lasa_jax`: doors to the commands of the package.

    lasa-jax run digits --config.attack.name=lie        one simulation
    lasa-jax sweep figure1:digits --workdir=DIR         many, here or on a cluster
    lasa-jax status DIR                                 how far a sweep is, also while it runs elsewhere
    lasa-jax report DIR                                 tables and figures of run directories
    lasa-jax benchmark digits --workdir=DIR             rules against each other, and against one of your own
    lasa-jax export DIR                                 a CSV with one row for each run, every setting and result
    lasa-jax inspect round RUN 12                       what looks inside a run: who was filtered, a round, the bound
    lasa-jax list                                       rules, pre-aggregators, attacks, datasets and models

`lasa-jax COMMAND --help` shows the flags of a command.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence

# Nothing else is imported before it is known which command it is.
_MODULES = {
    "run": "lasa_jax.main",
    "sweep": "lasa_jax.launch.sweep",
    "status": "lasa_jax.report.status",
    "report": "lasa_jax.report.__main__",
    "benchmark": "lasa_jax.leaderboard.__main__",
    "export": "lasa_jax.report.export",
    "inspect": "lasa_jax.inspection.__main__",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code.

    Args:
      argv: the arguments; those of this process if None.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    if name == "--version":
        print(f"lasa_jax {importlib.import_module('lasa_jax').__version__}")
        return 0
    if name in _MODULES:
        return importlib.import_module(_MODULES[name]).main(rest)

    from lasa_jax import commandline

    return commandline.exit_code(lambda: _list(rest) if name == "list" else _refuse(name))


def _refuse(name: str) -> None:
    from lasa_jax.errors import InputError, nearest

    names = (*_MODULES, "list")
    raise InputError(f"lasa-jax {name}: allowed are {', '.join(names)}{nearest(name, names)}")


def _list(argv: Sequence[str]) -> None:
    """What a config can choose by name, one line each: parameters and their defaults.

        lasa-jax list

    Runs that differ only in parameters before the bar | share a compiled program; those after it are compiled in. A path
    package.module:function is allowed wherever a name is.
    """
    from lasa_jax import commandline, data, models

    commandline.Parser("list", _list.__doc__).read(argv)
    print(
        "Before the bar | are numbers: runs that differ only in them share a compiled program. The rest is compiled in."
    )
    headings = {
        "aggregator": "rules, --config.aggregator.name=NAME --config.aggregator.NAME.PARAMETER=VALUE",
        "preaggregator": "pre-aggregators, --config.preaggregators.names=NAME,NAME; parameters as above",
        "attack": "attacks, --config.attack.name=NAME --config.attack.NAME.PARAMETER=VALUE",
    }
    for kind, heading in headings.items():
        _show(heading, _parameters(kind))
    sources = {name: "source=None" if data.made_from_source(name) else "" for name in data.names()}
    _show("datasets, --config.dataset=NAME --config.PARAMETER=VALUE", sources)
    _show("models, --config.model=NAME", dict.fromkeys(models.names(), ""))
    _show("what decides speed, memory and last bits, --config.SETTING=VALUE", _of_speed())


def _parameters(kind: str) -> dict[str, str]:
    """The parameters of each built-in method, with defaults: numbers of the program, a bar, what is compiled in."""
    from lasa_jax import config as configs
    from lasa_jax import methods
    from lasa_jax.config.settings import NUMBER

    settings, found = configs.all_settings(), {}
    for name in sorted(methods.TABLES[kind]):
        prefix = f"{configs.GROUPS[kind]}.{name}."
        own = {field.removeprefix(prefix): of for field, of in settings.items() if field.startswith(prefix)}
        traced = [f"{parameter}={of.default}" for parameter, of in own.items() if of.role == NUMBER]
        compiled = [f"{parameter}={of.default}" for parameter, of in own.items() if of.role != NUMBER]
        found[name] = " ".join([*traced, *(["|"] if compiled else []), *compiled])
    return found


def _of_speed() -> dict[str, str]:
    """What the settings mean that change how fast a run is, by `setting=default`."""
    from lasa_jax import commandline
    from lasa_jax import config as configs

    names = ("client.precision", "client_chunk", "eval_batch_size", "deterministic")
    return dict(commandline.setting_help(name, configs.SETTINGS[name]) for name in names)


def _show(heading: str, lines: Mapping[str, str]) -> None:
    width = max(map(len, lines))
    print(f"\n{heading}")
    for name, text in lines.items():
        print(f"  {name:<{width}}  {text}".rstrip())


if __name__ == "__main__":
    sys.exit(main())
