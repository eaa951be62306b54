"""The same round in other simulators: what is asked of each, what is read back, and what becomes of those that fail."""

import json
import sys

import jax
import numpy as np
import pytest

from benchmarks.peers import __main__ as command
from benchmarks.peers import environments, page, plan
from benchmarks.peers.given import WARM_UP, Clock, Round, examples, parse, report
from lasa_jax import models

NOT_THERE = plan.Peer("nowhere", "", (), ("-c", "import no_such_simulator"), "It is not there.")


@pytest.fixture
def work(tmp_path) -> Round:
    """Four clients with one step of two images, drawn from a seed."""
    work = Round(clients=4, steps=1, batch=2, rounds=1, workers=1, data=tmp_path / "examples.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TFDS_DATA_DIR", raising=False)
        assert "seed" in command.write_examples(work.data, work.clients, work.steps * work.batch)
    return work


def test_every_runner_reads_the_flags_that_it_is_given(work):
    assert parse(work.arguments()) == work


def test_every_package_of_an_environment_is_pinned_and_an_environment_has_one_set():
    by_folder: dict = {}
    for peer in plan.PEERS:
        assert all("==" in requirement or requirement == "numpy" for requirement in peer.requirements), peer.name
        assert by_folder.setdefault(peer.environment, peer.requirements) == peer.requirements
        assert bool(peer.environment) == bool(peer.requirements)
    assert len({peer.name for peer in plan.PEERS}) == len(plan.PEERS)


def test_peers_are_chosen_by_the_beginnings_of_their_names():
    assert [peer.name for peer in plan.chosen("BlazeFL,lasa")] == [
        "lasa_jax",
        *(peer.name for peer in plan.PEERS if "Blaze" in peer.name),
    ]
    with pytest.raises(SystemExit, match="--peers=Fower: allowed are beginnings of lasa_jax, "):
        plan.chosen("Fower")


def test_runners_get_the_images_of_their_clients(work):
    given = examples(work)
    assert given.inputs.shape == (4, 2, 1, 28, 28)
    np.testing.assert_array_equal(given.evaluated[0], given.inputs.reshape(8, 1, 28, 28))
    np.testing.assert_array_equal(given.evaluated[1], given.labels.reshape(8))
    assert abs(given.inputs.mean()) < 1e-4
    assert abs(given.inputs.std() - 1) < 1e-4
    with np.load(work.data) as stored:
        first = (stored["train_inputs"][2] - stored["mean"]) / stored["std"]
        np.testing.assert_allclose(given.inputs[1, 0, 0], first[..., 0], rtol=1e-5, atol=1e-6)
        assert given.labels[1, 0] == stored["train_labels"][2]


class TestReport:
    """A result is one line, of rounds that were all done and of a model that learnt."""

    @staticmethod
    def clock(rounds: int) -> Clock:
        clock = Clock()
        for _ in range(1 + WARM_UP + rounds):
            clock.note()
        return clock

    def test_the_line_is_read_back_whatever_else_is_printed(self, work, capsys):
        report(work, self.clock(1), 2.3, 2.2, ["numpy"])
        found = command.result_of(f"a log\n{capsys.readouterr().out}another\n")
        assert len(found["seconds"]) == work.rounds
        assert (found["loss_before"], found["loss_after"]) == (2.3, 2.2)
        assert found["versions"]["numpy"] == np.__version__

    def test_a_model_that_did_not_learn_is_no_result(self, work):
        for after in (2.3, float("nan")):
            with pytest.raises(SystemExit, match=r"did not fall: 2\.3000 before"):
                report(work, self.clock(1), 2.3, after, [])

    def test_rounds_that_are_missing_are_no_result(self, work):
        with pytest.raises(SystemExit, match="0 rounds were timed, 1 were asked for"):
            report(work, self.clock(0), 2.3, 2.2, [])

    def test_no_line_is_a_failure(self):
        with pytest.raises(command.RunFailedError, match="no result"):
            command.result_of("a log\n")


def test_a_missing_package_becomes_a_row_that_names_it(work, tmp_path):
    rows, busy = command.measure([NOT_THERE], tmp_path, work, repeats=2)
    assert rows[0]["reason"] == "failed: ModuleNotFoundError: No module named 'no_such_simulator'"
    assert len(busy) == 1  # it is not run again
    assert "| nowhere | - | failed: ModuleNotFoundError" in page.table(rows)


def test_a_run_that_hangs_is_ended(work, monkeypatch):
    monkeypatch.setattr(command, "LONGEST", 0.5)
    hangs = plan.Peer("hangs", "", (), ("-c", "import time; time.sleep(600)"), "")
    with pytest.raises(command.RunFailedError, match=r"more than 0\.5 s"):
        command.run(hangs, sys.executable, work)


def test_what_pip_refuses_becomes_a_row_with_its_reason(work, tmp_path, monkeypatch):
    said = (
        "ERROR: Ignored the following versions that require a different python version: 2.0.3 Requires-Python >=3.12; "
    )
    said += "3.0.0 Requires-Python >=3.14\nERROR: No matching distribution found for blazefl==3.0.0\n"
    assert environments.reason(said, ("blazefl==3.0.0",)) == (
        "Ignored the following versions that require a different python version: 3.0.0 Requires-Python >=3.14; "
        "No matching distribution found for blazefl==3.0.0"
    )

    def refuses(peer, folder, more):
        raise environments.RefusedError("no matching distribution")

    monkeypatch.setattr(environments, "python_of", refuses)
    rows, busy = command.measure([plan.chosen("Flower")[0]], tmp_path, work, repeats=2)
    assert (rows[0]["reason"], busy) == ("cannot be installed: no matching distribution", [])
    assert "flwr[simulation]==" in page.table(rows)


def test_pip_is_asked_in_an_environment_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    peer = plan.Peer("nowhere", "nowhere", ("no-such-simulator==1.0",), (), "")
    for _ in range(2):  # a failed environment is not taken for a finished one
        with pytest.raises(environments.RefusedError, match="No matching distribution found for no-such-simulator"):
            environments.python_of(peer, tmp_path)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "requirements.txt").write_text("no-such-simulator==1.0\n")
    assert environments.python_of(peer, tmp_path) == str(tmp_path / "nowhere" / "bin" / "python")


def test_an_interpreter_is_new_enough_or_this_one(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environments.interpreter((3, 11), ["/no/such/python"]) == sys.executable
    assert environments.interpreter((99, 0), ["/no/such/python"]) == sys.executable


def test_the_page_takes_ratios_within_a_repeat():
    """The machine is twice as slow in the second repeat: the ratio is 3 in both."""
    rows = [
        {"name": "lasa_jax", "seconds": [[1.0, 1.0, 5.0], [2.0, 2.0, 2.0]], "loss_before": 2.3, "loss_after": 2.2},
        {"name": "other", "seconds": [[3.0, 3.0, 3.0], [6.0, 6.0, 1.0]], "loss_before": 2.3, "loss_after": 2.2},
    ]
    for row in rows:
        row |= {"versions": {"python": "3"}, "how": "As it is.", "requirements": []}
    first, second = page.table(rows).splitlines()[2:]
    assert first.startswith("| lasa_jax | 0.667 | 1.50 (1.00 to 2.00) | 1.00 | 2.3000 to 2.2000 |")
    assert second.startswith("| other | 0.222 | 4.50 (3.00 to 6.00) | 3.00 |")


def test_the_page_says_whether_other_work_ran():
    assert "Other work ran beside it" in page.beside([0.0, 1.5, 2.0])
    assert "Other work ran" not in page.beside([0.0, 0.02, 0.01])


def test_all_begin_with_the_same_model(work):
    torch = pytest.importorskip("torch")
    from benchmarks.peers import network, ours

    given = examples(work)
    theirs = network.first()
    assert sum(x.numel() for x in theirs.parameters()) == 1_663_370
    model = models.create("cnn", num_classes=10, input_shape=(28, 28, 1))
    like = jax.tree.map(lambda x: x[None], model.init(jax.random.key(0))["params"])
    params = jax.tree.map(lambda x: x[0], ours.first_params(like))
    inputs = given.evaluated[0]
    logits, _ = model.apply({"params": params}, inputs.transpose(0, 2, 3, 1))
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.slow
def test_lasa_jax_is_timed_and_learns(tmp_path, monkeypatch):
    """The whole command with our own runner at a tiny size, and the page and the JSON that it writes."""
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    output = tmp_path / "peers.md"
    flags = ["--clients=2", "--steps=2", "--batch=4", "--rounds=1", "--repeats=1", "--peers=lasa_jax"]
    assert command.main([f"--environments={tmp_path}", f"--output={output}", *flags]) == 0
    result = json.loads(output.with_suffix(".json").read_text())
    (row,) = result["rows"]
    assert len(row["seconds"]) == 1
    assert row["loss_after"] < row["loss_before"]
    assert output.read_text() == page.page(result)
    assert "for 2 steps of 4 images" in output.read_text()
