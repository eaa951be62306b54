"""What the command lines share: a config file with overrides, and one line on standard error for whatever is wrong."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from lasa_jax import config as configs
from lasa_jax.data import cache
from lasa_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file("config", lock_config=True, help_string="file of the config, see configs/")


def resolved_config() -> ConfigDict:
    """The config that the command line names, checked and decided, see `config.resolve`."""
    return configs.resolve(_CONFIG.value, list(config_flags.get_override_values(flags.FLAGS["config"])))


class Parser(argparse.ArgumentParser):
    """Of command lines without a config: says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


def _parse(argv: list[str]) -> list[str]:
    """Reads the command line; whatever is wrong with it or with the config file becomes one line."""
    for argument in argv[1:]:
        match = re.fullmatch(r"--?config\.([^=]+)(=.*)?", argument)
        if match:
            configs.check_fields([match[1]])
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS["config"].value is None:
            raise InputError("--config: is missing, for instance --config=configs/digits.py")
        flags.FLAGS["config"].value.to_dict()  # a file that could not be loaded raises only when it is touched
        return rest
    except InputError:
        raise
    except flags.Error as error:
        boolean = re.fullmatch(r"flag --(\S+): \('Non-boolean argument to boolean flag', .*\)", str(error))
        if boolean:
            raise InputError(f"--{boolean[1]}: allowed are true and false") from None
        raise InputError(_one_line(str(error))) from None
    except OSError:  # of ml_collections, which says only where it looked
        given = next(a for a in re.findall(r"--?config[= ](\S+)", " ".join(argv)))
        raise InputError(f"--config={given}: no config file of that name") from None
    except (AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"--config: {type(error).__name__}: {_one_line(str(error))}") from None


def _one_line(message: str) -> str:
    """The last thing a message says: ml_collections wraps a config file's own error in a traceback."""
    *_, last = re.split(r"\w+(?:\.\w+)*\.InputError: ", message)
    return " ".join(last.split())


def entry_point(run: Callable[[Sequence[str]], None]) -> None:
    """Calls `run` with the arguments that are no flags.

    The exit code is 0; with one line on standard error it is 2 for bad input, and 130 where the user stopped it.
    """
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file it writes
    cache.keep_compiled_programs()

    def fail(error: InputError) -> int:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def main(argv: Sequence[str]) -> int:
        try:
            run(argv[1:])
        except InputError as error:
            return fail(error)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
            return 130
        return 0

    try:
        app.run(main, flags_parser=_parse)
    except InputError as error:
        sys.exit(fail(error))
