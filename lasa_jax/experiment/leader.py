"""Several processes of one run, started with `jax.distributed`: the first owns the directories and tells the others."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lasa_jax import methods
from lasa_jax.errors import InputError

Ended = dict[str, Any] | Exception  # the summary of a run, or what ended it

# What can go wrong in one run without the others being wrong: its input, its files, its memory, its numbers, its rule.
RUN_FAILURES = (*methods.FAILURES, MemoryError)


def is_leader() -> bool:
    """Whether this process owns the directories: the only one, or the first of those started with `jax.distributed`."""
    return jax.process_index() == 0


def from_leader(value: Any) -> Any:
    """The leader's JSON value in every process. Nothing is sent where there is one process."""
    if jax.process_count() == 1:
        return value
    sent = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent))))
    sent = sent if is_leader() else np.zeros(length, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())


def on_leader(fn: Callable[[], Any]) -> Any:
    """The JSON value of a call in the leader, or the error that it raised, in every process."""
    if jax.process_count() == 1:
        return fn()
    told: dict[int, Ended] = {}
    if is_leader():
        try:
            told[0] = {"value": fn()}
        except RUN_FAILURES as error:
            told[0] = error
    found = told_by_leader(told)[0]
    if isinstance(found, Exception):
        raise found
    return found["value"]


def told_by_leader(told: Mapping[int, Ended]) -> dict[int, Ended]:
    """What the leader found of runs, alike in every process; errors as lines."""
    if jax.process_count() == 1:
        return dict(told)
    plain = {index: {"error": str(x)} if isinstance(x, Exception) else x for index, x in told.items()}
    return {int(index): InputError(x["error"]) if "error" in x else x for index, x in from_leader(plain).items()}


def agreed(ended: Mapping[int, Ended], count: int) -> dict[int, Ended]:
    """What was found before the first round of so many runs, alike in every process: if one failed, none begins."""
    if jax.process_count() == 1:
        return dict(ended)
    agreed = told_by_leader(ended)
    failed = np.bool_(any(isinstance(x, Exception) for x in ended.values()))
    if np.any(multihost_utils.process_allgather(failed)):
        elsewhere = InputError("another process of this run could not begin: see what it says")
        agreed = {index: ended.get(index, elsewhere) for index in range(count)} | agreed
    return agreed
