"""What a directory holds when a run begins: nothing, another run, a finished one, or checkpoints to go on from."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from lasa_jax import config as configs
from lasa_jax.errors import InputError
from lasa_jax.federated import is_evaluated
from lasa_jax.workdir.directory import Workdir

PyTree = Any


def claim(workdir: Workdir, config: ConfigDict) -> None:
    """Makes the directory that of this config.

    Raises:
      InputError: if it is the directory of another config, naming the first field that differs.
    """
    stored = workdir.config()
    if stored is None:
        if workdir.has_results():
            raise InputError(f"--workdir={workdir.path}: holds results without a config.json; choose another directory")
        workdir.write_config(configs.to_json(config))
        return
    _refuse_another(workdir, stored, configs.as_json(config))


def finished_summary(workdir: Workdir, config: ConfigDict) -> dict[str, Any]:
    """The summary of a finished run.

    Raises:
      InputError: if it is not of this config, or has not what a summary has.
    """
    stored, summary = workdir.config(), workdir.summary()
    if stored is None or summary is None:
        raise InputError(f"--workdir={workdir.path}: holds a summary.json of something else; choose another directory")
    # The data, and with it the id of its source, is not read for a run that is finished.
    plain, asked = configs.without_source(stored), configs.without_source(configs.as_json(config))
    _refuse_another(workdir, plain, asked)
    return summary


def _refuse_another(workdir: Workdir, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    difference = configs.first_difference(stored, asked)
    if difference is not None:
        raise InputError(f"--workdir={workdir.path}: holds another run, {difference}; choose another directory")


def go_back(
    workdirs: Sequence[Workdir], config: ConfigDict, template: PyTree, log: Callable[[str], None]
) -> tuple[int, list[PyTree]]:
    """Takes runs that go on together back to the newest round of which each has an undamaged checkpoint.

    A checkpoint counts only if the metrics up to it are all there, since the summary is made from them. What was written
    of later rounds, which will be computed again, is removed.

    Args:
      workdirs: of the runs.
      config: of any of them.
      template: a state, or its shapes.
      log: called with what a user should know.

    Returns:
      The round, 0 where there is none; and the states after it, none for round 0.
    """
    for last_round in sorted({at for workdir in workdirs for at in workdir.checkpoint_rounds()}, reverse=True):
        due = {index for index in range(1, last_round + 1) if is_evaluated(index, config.eval_every, config.rounds)}
        states = []
        for workdir in workdirs:
            if last_round not in workdir.checkpoint_rounds():
                break
            written = {line["round"] for line in workdir.metrics()}
            state = workdir.restore_checkpoint(last_round, template) if due <= written else None
            if state is None:
                damaged = f"the checkpoint of round {last_round} or its metrics are damaged, trying the one before"
                log(f"{workdir.path}: {damaged}")
                break
            states.append(state)
        if len(states) == len(workdirs):
            for workdir in workdirs:
                _forget_after(workdir, last_round)
                log(f"{workdir.path}: going on after round {last_round}")
            return last_round, states
    for workdir in workdirs:
        _forget_after(workdir, 0)
    return 0, []


def _forget_after(workdir: Workdir, last_round: int) -> None:
    workdir.remove_checkpoints_after(last_round)
    workdir.keep_metrics_until(last_round)
    workdir.keep_filtering_until(last_round)
