"""The sizes of a sweep's batches."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from lasa_jax.errors import InputError
from lasa_jax.workdir import read_batch_sizes, write_batch_sizes


def test_jobs_that_start_together_lose_nothing(tmp_path):
    workdir = tmp_path / "sweep"
    assert read_batch_sizes(workdir) == {}
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda size: write_batch_sizes(workdir, {f"program{size}": size}), range(1, 13)))
    sizes = {f"program{size}": size for size in range(1, 13)}
    assert read_batch_sizes(workdir) == sizes
    assert write_batch_sizes(workdir, {"program1": 5}) == sizes | {"program1": 5}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"batch": [1]}', '{"batch": {"a": 0}}', '{"batch": {"a": "1"}}'])
def test_a_file_of_something_else(tmp_path, content):
    (tmp_path / "sweep.json").write_text(content)
    for use in (read_batch_sizes, lambda path: write_batch_sizes(path, {"a": 1})):
        with pytest.raises(InputError, match=r"sweep\.json: cannot be read"):
            use(tmp_path)
    assert (tmp_path / "sweep.json").read_text() == content


def test_a_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        write_batch_sizes(tmp_path / "file", {"a": 1})
