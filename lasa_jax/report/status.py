"""How far a sweep is: its points by state, what ended those that failed, and the time left from measured rounds.

    lasa-jax status sweeps/figure1
    lasa-jax status /shared/table1           while the sweep runs in another process, on Ray or on SLURM

DIR may also be one run, or a folder of sweeps. It reads the files of that folder only, disturbs nobody, and imports nobody's
module. Also `python -m lasa_jax status`.
"""

from collections.abc import Sequence
from pathlib import Path

from lasa_jax import commandline
from lasa_jax.report import standing
from lasa_jax.report.standing import Standing


def lines(runs: Sequence[Standing]) -> list[str]:
    """What `status` prints: one line for each state and for the time left, then one for each run of which more is known."""
    told = [f"points: {len(runs)}"]
    by_state = {state: [run for run in runs if run.state == state] for state in standing.STATES}
    told += [f"{state}: {len(those)}" for state, those in by_state.items()]
    if by_state["running"] or by_state["waiting"]:
        told.append(f"time left: {_time_left(runs, going_on=bool(by_state['running']))}")
    for state in ("running", "waiting", "failed", "finished"):
        noted = [run for run in by_state[state] if run.note]
        if noted:
            told += ["", f"{state}:", *(f"  {run.name}{_differing(run)}: {run.note}" for run in noted)]
    return told


def _differing(run: Standing) -> str:
    return f" ({run.differs})" if run.differs else ""


def _time_left(runs: Sequence[Standing], *, going_on: bool) -> str:
    seconds = standing.seconds_left(runs)
    if seconds is None:
        return "not known before the first measured rounds"
    return f"{commandline.duration(seconds)}{'' if going_on else ' once it goes on; no process works here'}"


def _run(argv: Sequence[str] | None) -> None:
    parser = commandline.Parser("status", __doc__)
    parser.add_path("directory", metavar="DIR", help="of a sweep, a run, or several")
    given = parser.read(argv)
    runs, left_out = standing.load(Path(given.directory))
    for line in (*lines(runs), *left_out):
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `status`: exit code 0, or 2 with one line on standard error for bad input.

    Args:
      argv: the arguments; those of this process if None.
    """
    return commandline.exit_code(lambda: _run(argv))
