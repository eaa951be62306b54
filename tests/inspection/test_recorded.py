"""What a run records of each client and layer: written a block at a time, read with suspicion, drawn."""

import json
import shutil
import threading

import jax
import numpy as np
import pandas as pd
import pytest

from lasa_jax import config as configs
from lasa_jax import experiment
from lasa_jax.errors import InputError
from lasa_jax.federated import make_mesh
from lasa_jax.inspection import recorded
from lasa_jax.inspection.__main__ import main

ROUNDS, CLIENTS = 6, 9


def small(**settings):
    config = configs.default()
    config.update_from_flattened_dict(
        {
            "rounds": ROUNDS,
            "num_clients": 20,
            "clients_per_round": CLIENTS,
            "client.epochs": 1,
            "attack.name": "lie",
            "block_rounds": 2,
            "checkpoint_every": 4,
            "record_filtering": True,
            **settings,
        }
    )
    return configs.resolve(config)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "run"
    experiment.run(small(), path, mesh=make_mesh(jax.devices()[:1]), log=lambda text: None)
    return path


def test_every_client_and_layer_of_every_round_is_there_and_agrees_with_the_metrics(run):
    table = recorded.load(run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    layers = list(lines[0]["malicious_filtered"])
    assert list(table["layer"].cat.categories) == layers
    assert len(table) == ROUNDS * CLIENTS * len(layers)
    assert list(table["round"].unique()) == list(range(1, ROUNDS + 1))
    scores = ["direction_score", "magnitude_score", "norm", "purity"]
    assert list(table.columns) == ["round", "client", "malicious", "layer", "kept", "weight", *scores]
    assert table[scores].notna().all().all()
    assert (table.groupby("client")["malicious"].nunique() == 1).all()
    for line in lines:
        here = table[(table["round"] == line["round"]) & ~table["kept"]]
        for malicious, name in ((True, "malicious_filtered"), (False, "benign_filtered")):
            counts = here[here["malicious"] == malicious]["layer"].value_counts()
            assert {layer: int(counts[layer]) for layer in layers} == line[name]
    by_round = recorded.by_round(table)
    assert len(by_round) == ROUNDS * len(layers)


def test_a_recorded_entry_takes_at_most_24_bytes(run):
    """What docs/report.md promises; short blocks have the largest share of headers."""
    table = recorded.load(run)
    stored = sum(file.stat().st_size for file in (run / "filtering").iterdir())
    headers = 8_000 * len(list((run / "filtering").iterdir()))
    assert stored - headers < 24 * len(table)


def test_what_a_stopped_run_recorded_beyond_its_checkpoint_is_recorded_again(run, tmp_path):
    stop, seen = threading.Event(), []

    def watch(_, index, metrics):
        seen.append(index)
        if index == 6 - 1:  # in the block after the checkpoint of round 4
            stop.set()

    config = small(rounds=8, block_rounds=1)
    with pytest.raises(experiment.Stopped):
        experiment.run(config, tmp_path / "run", on_metrics=watch, stop=stop, log=lambda text: None)
    assert recorded.load(tmp_path / "run")["round"].max() == 5
    experiment.run(config, tmp_path / "run", log=lambda text: None)
    experiment.run(config, tmp_path / "whole", log=lambda text: None)
    again, whole = (recorded.load(tmp_path / name) for name in ("run", "whole"))
    assert again.equals(whole)


def test_rows_that_only_fill_a_device_are_not_clients(run, tmp_path):
    """9 clients on 2 devices are 10 rows."""
    experiment.run(small(), tmp_path, mesh=make_mesh(jax.devices()[:2]), log=lambda text: None)
    table = recorded.load(tmp_path)
    alone = recorded.load(run)
    assert len(table) == len(alone)
    first = table["round"] == 1
    assert table[first]["client"].equals(alone[first]["client"])
    np.testing.assert_allclose(table[first]["norm"], alone[first]["norm"], rtol=1e-4)


def test_a_rule_without_scores_records_its_weights(tmp_path):
    experiment.run(small(**{"aggregator.name": "multi_krum", "rounds": 2}), tmp_path, log=lambda text: None)
    table = recorded.load(tmp_path)
    assert list(table.columns) == ["round", "client", "malicious", "layer", "kept", "weight"]
    assert 0 < table["kept"].mean() < 1
    recorded.draw_clients(table)


def test_nothing_is_recorded_unless_asked(tmp_path):
    experiment.run(small(record_filtering=False, rounds=2), tmp_path, log=lambda text: None)
    assert not (tmp_path / "filtering").exists()
    with pytest.raises(InputError, match=r"record_filtering=true"):
        recorded.load(tmp_path)


def test_command_draws_and_prints(run, capsys):
    assert main(["filtering", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "benign kept, %" in printed
    assert {path.name for path in (run / "report").iterdir()} >= {
        "filtering.csv",
        "filtering_clients.csv",
        "filtering_clients.png",
        "filtering_clients.svg",
        "filtering_rounds.png",
        "filtering_rounds.svg",
    }


def test_means_by_client():
    """Client 7 took part twice; a score that is infinite is no part of the mean."""
    table = pd.DataFrame(
        {
            "round": [1, 1, 2],
            "client": [7, 3, 7],
            "malicious": [True, False, True],
            "layer": pd.Categorical(["a", "a", "a"]),
            "kept": [False, True, True],
            "weight": [0.0, 1.0, 0.5],
            "norm": [1.0, 2.0, 3.0],
            "magnitude_score": [np.inf, 0.5, 4.0],
        }
    )
    found = recorded.by_client(table)
    assert list(found.columns) == [
        "layer",
        "client",
        "malicious",
        "rounds",
        "kept",
        "weight",
        "norm",
        "magnitude_score",
    ]
    assert found.drop(columns="layer").to_numpy().tolist() == [
        [7, True, 2, 0.5, 0.25, 2.0, 4.0],
        [3, False, 1, 1.0, 1.0, 2.0, 0.5],
    ]


def test_of_many_clients_the_most_frequent_are_drawn(run):
    table = recorded.load(run)
    table["client"] = np.arange(len(table))
    figure = recorded.draw_clients(table, "many")
    assert "the 100 of 432 clients that took part most often" in figure.get_suptitle()
    assert figure.axes[0].images[0].get_array().shape[0] == 100


def test_norms_are_relative_to_all_clients_of_a_round(monkeypatch):
    """Also where few of them are drawn."""
    norms = [1.0, 2.0, 4.0]
    table = pd.DataFrame(
        {"round": 1, "client": [0, 1, 2], "malicious": False, "layer": "a", "kept": True, "norm": norms}
    )
    table["layer"] = table["layer"].astype("category")
    monkeypatch.setattr(recorded, "_MOST_CLIENTS", 1)
    drawn = recorded.draw_clients(table).axes[0].images[0].get_array()
    assert drawn.tolist() == [[-1.0]]  # half the median of the three


def test_a_file_that_is_missing_is_named(run, tmp_path):
    shutil.copytree(run / "filtering", tmp_path / "filtering")
    first, second, _ = sorted((tmp_path / "filtering").iterdir())
    second.unlink()
    with pytest.raises(InputError, match=r"begins with round 5, where round 3 is due"):
        recorded.load(tmp_path)
    first.unlink()
    with pytest.raises(InputError, match=r"begins with round 5, where round 1 is due"):
        recorded.load(tmp_path)
    with pytest.raises(InputError, match=r"is not a directory"):
        recorded.load(tmp_path / "typo")


def test_damaged_files_are_one_line(run, tmp_path, capsys):
    """Bytes changed or cut at random: refused, or still a table; never a traceback."""
    source = sorted((run / "filtering").iterdir())[0].read_bytes()
    (tmp_path / "filtering").mkdir()
    file = tmp_path / "filtering" / "round_000001.parquet"
    rng = np.random.default_rng(0)
    said = []
    for _ in range(60):
        changed = bytearray(source[: rng.integers(len(source))] if rng.random() < 0.3 else source)
        for at in rng.integers(len(changed), size=rng.integers(1, 20)) if changed else ():
            changed[at] = rng.integers(256)
        file.write_bytes(changed)
        try:
            recorded.load(tmp_path)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 20
    assert not any("\n" in line for line in said)
    file.unlink()
    file.symlink_to(sorted((run / "filtering").iterdir())[0].absolute())
    assert main(["filtering", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
