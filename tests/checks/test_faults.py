"""Some faults made on real runs: `python -m checks.faults` makes the others, on sweeps too."""

import json
import shutil

import pytest

from checks.faults.catalogue import QUICK, faults
from checks.faults.runs import Runner, compare

MADE = (  # what the tests of experiments do not make
    "SIGKILL in a metrics write of a run",
    "SIGKILL in a checkpoint write of a run",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Faults by name, to be made in one folder."""
    folder = tmp_path_factory.mktemp("faults")
    runner = Runner(folder, folder / "xla")
    return dict(faults(runner, QUICK, sweeps=False))


@pytest.mark.parametrize("name", MADE)
def test_nothing_is_lost(made, name):
    count = made[name]()
    assert (count.survived, count.lost, count.duplicated) == (1, 0, 0)


def test_what_is_lost_or_twice_is_counted(made, tmp_path_factory):
    """The benchmark must not be blind: a line that is missing, one that is there twice, another model."""
    whole = next(path for path in tmp_path_factory.getbasetemp().glob("faults*/whole"))
    for change, wanted in [
        (lambda lines: lines[:-1], (0, 1, 0)),
        (lambda lines: [*lines, lines[-1]], (0, 0, 1)),
    ]:
        after = tmp_path_factory.mktemp("after") / "run"
        shutil.copytree(whole, after)
        lines = (after / "metrics.jsonl").read_text().splitlines(keepends=True)
        (after / "metrics.jsonl").write_text("".join(change(lines)))
        assert compare(whole, after)[:3] == wanted
    summary = json.loads((after / "summary.json").read_text())
    (after / "summary.json").write_text(json.dumps({**summary, "parameters_sha256": "0"}))
    assert compare(whole, after)[:3] == (0, 1, 1)
