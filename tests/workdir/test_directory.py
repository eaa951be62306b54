"""The open directory of a run: its files, written and read back."""

import numpy as np
import pandas as pd
import pytest

from lasa_jax.errors import InputError
from lasa_jax.workdir import Workdir, filtering_files, is_finished, records
from tests.workdir.test_records import line


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, allowed is a directory"):
        Workdir(tmp_path / "file")
    with pytest.raises(InputError, match=r"cannot be used \(Not a directory\)"):
        Workdir(tmp_path / "file" / "below")


def test_reading_makes_nothing(tmp_path):
    workdir = Workdir(tmp_path / "new", lock=False)
    assert (workdir.config(), workdir.summary(), workdir.metrics(), workdir.checkpoint_rounds()) == (None, None, [], [])
    assert not workdir.has_results()
    workdir.close()
    assert not (tmp_path / "new").exists()


def test_metrics_are_appended_and_cut(tmp_path):
    with Workdir(tmp_path) as workdir:
        workdir.keep_metrics_until(0)
        workdir.append_metrics([line(1), line(2)])
        workdir.append_metrics([line(3)])
        assert workdir.metrics() == [line(1), line(2), line(3)]
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"round": 4, "te')
        workdir.keep_metrics_until(2)
        workdir.append_metrics([line(3, malicious=1)])
        assert workdir.metrics() == [line(1), line(2), line(3, malicious=1)]
        assert workdir.has_results()


def test_a_summary_finishes_a_run(tmp_path):
    variables = {"w": np.zeros(3, np.float32)}
    summary = records.summary(
        [line(1)], variables, status="finished", seed=1, config_id="x", compile_seconds=1.0, total_seconds=2.0
    )
    with Workdir(tmp_path) as workdir:
        assert not is_finished(tmp_path)
        workdir.write_summary(summary | {"more": float("inf")})
        assert is_finished(tmp_path)
        assert workdir.summary() == summary | {"more": None}
        workdir.write_summary(summary | {"seed": None})
        with pytest.raises(InputError, match=r"is not the summary of a run \(seed\); choose another directory"):
            workdir.summary()


@pytest.mark.parametrize(
    ("content", "said"), [("[]", "must hold a JSON object"), ("{", "cannot be read"), ("NaN", "NaN is no JSON")]
)
def test_a_config_of_something_else(tmp_path, content, said):
    with Workdir(tmp_path) as workdir:
        workdir.write_config(content)
        with pytest.raises(InputError, match=said):
            workdir.config()


def test_filtering_is_kept_by_its_first_round(tmp_path):
    with Workdir(tmp_path) as workdir:
        for first_round in (1, 3, 1_000_000):
            workdir.write_filtering(first_round, pd.DataFrame({"round": [first_round]}))
        (tmp_path / "filtering" / "round_mine.parquet").write_text("")
        files = filtering_files(tmp_path)
        assert [file.stem for file in files] == ["round_000001", "round_000003", "round_1000000"]
        assert pd.read_parquet(files[1])["round"].tolist() == [3]
        workdir.keep_filtering_until(2)
        assert filtering_files(tmp_path) == files[:1]
        (tmp_path / "filtering").rename(tmp_path / "elsewhere")
        (tmp_path / "filtering").symlink_to(tmp_path / "elsewhere")
        assert filtering_files(tmp_path) == []
        with pytest.raises(InputError, match="the filtering of round 5 cannot be written"):
            workdir.write_filtering(5, pd.DataFrame())
