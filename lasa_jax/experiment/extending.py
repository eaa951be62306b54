"""A finished run with more rounds: it begins with the old one's last checkpoint, and ends as if it had had them at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.experiment import leader
from lasa_jax.federated import is_evaluated
from lasa_jax.workdir import Workdir, is_finished, read_batch_sizes, records, resume

_NOT_OF_BITS = ("python", "commit")  # versions that may differ


def check_extends(config: ConfigDict, longer: ConfigDict) -> None:
    """Raises InputError unless two resolved configs differ in their rounds only, and the second has more of them."""
    if longer.rounds <= config.rounds:
        raise InputError(f"--extend={longer.rounds}: allowed is more than config.rounds = {config.rounds}")
    difference = configs.first_difference({**configs.as_json(config), "rounds": longer.rounds}, configs.as_json(longer))
    if difference is not None:
        raise InputError(f"--extend={longer.rounds}: {difference}, since it depends on the number of rounds")


def extend(finished: Path, config: ConfigDict, path: Path, *, batch: int = 1) -> None:
    """Lets a run begin where a finished one with fewer rounds ended; `run` then goes on from there.

    What the old run has up to its last good checkpoint is copied, the checkpoint last: stopped in between, the same call
    does it again. Nothing is done where the new run has a checkpoint or a result. Where several processes share a run, all
    call this.

    Args:
      finished: the directory of the old run.
      config: of the new run, resolved.
      path: its directory; made if it is not there.
      batch: runs that go together in its program.

    Raises:
      InputError: where the result would not be, bit for bit, that of a run which had the rounds from the start; and if the
        old run is not there or not finished, is another one, or has no good checkpoint.
    """
    leader.on_leader(lambda: _extend(finished, config, path, batch))


def _extend(finished: Path, config: ConfigDict, path: Path, batch: int) -> None:
    if is_finished(path):
        return
    where, old = f"--extend={config.rounds}: {finished}", Workdir(finished, lock=False)
    stored, summary = old.config(), old.summary()
    if stored is None:
        raise InputError(f"{where} holds no run; run it without --extend first")
    if summary is None:
        done = max((line["round"] for line in old.metrics()), default=0)
        raise InputError(
            f"{where} is not finished (round {done} of {stored.get('rounds')}); run it without --extend first"
        )
    _check_same_run(where, stored, config)
    _check_same_bits(where, summary, config, stored["rounds"])
    made = _batch_of(finished, stored["rounds"], config)
    if made != batch:
        raise InputError(f"{where} was made in batches of {made}, and this would be {batch}: the result would differ")
    lines = [line["round"] for line in old.metrics()]
    due = [index for index in range(1, config.rounds + 1) if is_evaluated(index, config.eval_every, config.rounds)]
    good = (
        at
        for at in reversed(old.checkpoint_rounds())
        if at % config.eval_every == 0 and {index for index in due if index <= at} <= set(lines) and old.has_whole(at)
    )
    last_round = next(good, None)
    if last_round is None:
        every = "" if config.eval_every == 1 else f" of a round that a longer run evaluates, every {config.eval_every}"
        raise InputError(f"{where} has no good checkpoint{every}")
    with Workdir(path) as workdir:
        resume.claim(workdir, _with_source(config, stored))
        if not workdir.checkpoint_rounds():
            workdir.begin_from(old, last_round)


def _batch_of(finished: Path, rounds: int, config: ConfigDict) -> int:
    """How many runs went together in the program of the old run."""
    old = ConfigDict({**config.to_dict(), "rounds": rounds})
    return read_batch_sizes(finished.parent).get(configs.program_key(old), 1)


def _with_source(config: ConfigDict, stored: Mapping[str, Any]) -> ConfigDict:
    """The config with the id of the old run's data, which the new one must have."""
    named = ConfigDict(config.to_dict())
    if "source_id" in stored:
        named.source_id = stored["source_id"]
    return named


def _check_same_run(where: str, stored: Mapping[str, Any], config: ConfigDict) -> None:
    """Raises InputError unless the old run is that of the config with fewer rounds."""
    rounds = stored.get("rounds")
    plain = {**configs.without_source(stored), "rounds": config.rounds}
    difference = configs.first_difference(plain, configs.as_json(config))
    if difference is not None or not isinstance(rounds, int):
        raise InputError(f"{where} holds another run, {difference or f'config.rounds is {rounds!r} there'}")
    if config.rounds <= rounds:
        raise InputError(f"--extend={config.rounds}: allowed is more than config.rounds = {rounds}")


def _check_same_bits(where: str, summary: Mapping[str, Any], config: ConfigDict, rounds: int) -> None:
    """Raises InputError where a longer run would not have begun with the bits of the old one, which had `rounds`."""
    if summary["status"] != "finished":
        raise InputError(f"{where} {summary['status']} in round {summary['rounds']}: more rounds change nothing")
    there, here = summary.get("versions") or {}, records.versions()
    made = {"devices": summary.get("device"), **{name: there.get(name) for name in here}}
    for name, value in {"devices": records.device(), **here}.items():
        if name not in _NOT_OF_BITS and made[name] != value:
            raise InputError(f"{where} was run with {name} {made[name]}, and this is {value}: the result would differ")
    block = -(-config.block_rounds // config.eval_every) * config.eval_every
    # On a CPU the length of a block changes no bit (tests/test_extending.py); elsewhere it may.
    before, now = min(block, rounds), min(block, config.rounds)
    if jax.devices()[0].platform != "cpu" and before != now:
        raise InputError(f"{where} had {before} rounds in a block, and this has {now}: the result may differ")
