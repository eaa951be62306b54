"""The directory of a run: the one place that knows its files, writes them atomically and reads them back.

config.json      the resolved config
metrics.jsonl    one line for each evaluated round
summary.json     written last: a run that has it is finished
checkpoints/     round_000010/ by Orbax, and round_000010.json: its manifest with the SHA-256 of every file
filtering/       round_000001.parquet: what the rule made of each client from that round on, one file per block; if recorded
accuracy.png     drawn by the report
.lock            held with flock while a process works here, so that a kill leaves nothing stale

The directory of a sweep holds one such directory for each run, and

points.json      the points it was asked for last, with their resolved configs
sweep.json       how many runs were in a batch of each program
failed/          NAME.json: what a point ended with that has failed, until it runs again

Nothing here is believed because it is here: text is JSON of the form that is written, links and devices are not read, and
a checkpoint counts only if its files have the SHA-256 of its manifest. docs/reliability.md says what that survives.

In this folder: `directory` has Workdir, `checkpoints` what it keeps of a run's state, `records` what a run records and the
form of it, `forms` how a form is checked, `resume` what a run that begins finds, `sweep` the points and batches of a sweep,
`files` and `locks` what all of them stand on.
"""

from lasa_jax.workdir.directory import Workdir, filtering_files, is_finished
from lasa_jax.workdir.files import read_file, replace_file
from lasa_jax.workdir.locks import InUseError, holder, is_held
from lasa_jax.workdir.sweep import (
    forget_failures,
    read_batch_sizes,
    read_failure,
    read_points,
    write_batch_sizes,
    write_failure,
    write_points,
)

__all__ = [
    "InUseError",
    "Workdir",
    "filtering_files",
    "forget_failures",
    "holder",
    "is_finished",
    "is_held",
    "read_batch_sizes",
    "read_failure",
    "read_file",
    "read_points",
    "replace_file",
    "write_batch_sizes",
    "write_failure",
    "write_points",
]
