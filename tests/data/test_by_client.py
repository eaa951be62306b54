"""FEMNIST and Shakespeare: made from raw files in each source's own format, found again, and refused where they are bad."""

import gzip
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from lasa_jax import data
from lasa_jax.data import by_client, femnist, partition, shakespeare
from lasa_jax.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore")  # of TFDS
RAW = Path(__file__).parents[3] / "shared" / "data" / "raw"


def leaf_user(seed: int, count: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"x": (rng.integers(0, 256, (count, 784)) / 255).tolist(), "y": rng.integers(0, 62, count).tolist()}


def write_json(path: Path, users: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = [len(user["y"]) for user in users.values()]
    text = json.dumps({"users": list(users), "num_samples": counts, "user_data": users})
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)


@pytest.fixture
def leaf(tmp_path) -> Path:
    """Three writers in two training files, one of them in both."""
    source = tmp_path / "leaf"
    write_json(source / "train" / "a.json", {"w2": leaf_user(0, 5), "w1": leaf_user(1, 3)})
    write_json(source / "train" / "b.json.gz", {"w3": leaf_user(2, 2), "w1": leaf_user(3, 4)})
    write_json(source / "test" / "a.json", {"w1": leaf_user(4, 2), "w2": leaf_user(5, 1)})
    return source


class TestFEMNIST:
    def test_reads_what_was_written(self, leaf, tmp_path):
        dataset = data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))
        assert np.bincount(dataset.client_ids).tolist() == [7, 5, 2]  # w1 is joined from two files
        first = np.array([*leaf_user(1, 3)["x"], *leaf_user(3, 4)["x"]])
        np.testing.assert_array_equal(dataset.train.inputs[:7].reshape(7, 784), np.rint(255 * first))
        assert dataset.train.labels[:7].tolist() == leaf_user(1, 3)["y"] + leaf_user(3, 4)["y"]
        assert dataset.test.labels.tolist() == leaf_user(4, 2)["y"] + leaf_user(5, 1)["y"]
        assert (dataset.train.inputs.dtype, dataset.input_shape, dataset.num_classes) == (np.uint8, (28, 28, 1), 62)
        white = np.full((1, 28, 28, 1), 255, np.uint8)
        np.testing.assert_allclose(dataset.normalise(white), -1)  # (0.5 - x) / 0.5 of LEAF's 1.0
        settings = {"name": "natural", "min_samples": 3}
        shares = partition.divide(settings, dataset.train.labels, dataset.client_ids, num_clients=None, seed=1)
        assert shares.sizes.tolist() == [7, 5]

    def test_is_found_again_without_the_source(self, leaf, tmp_path, monkeypatch):
        folder = str(tmp_path / "tfds")
        first = data.load("femnist", data_dir=folder, source=str(leaf))
        monkeypatch.setattr(femnist.leaf, "read", None)
        for source in (None, str(leaf)):
            again = data.load("femnist", data_dir=folder, source=source)
            np.testing.assert_array_equal(again.train.inputs, first.train.inputs)

    def test_two_sources_do_not_mix(self, leaf, tmp_path):
        folder = str(tmp_path / "tfds")
        data.load("femnist", data_dir=folder, source=str(leaf))
        write_json(leaf / "train" / "c.json", {"w9": leaf_user(9, 6)})
        assert len(np.unique(data.load("femnist", data_dir=folder, source=str(leaf)).client_ids)) == 4
        with pytest.raises(InputError, match=r"sets made from 2 sources \(\w+, \w+\); choose one with --config.source"):
            data.load("femnist", data_dir=folder)

    def test_nothing_prepared_says_what_to_do(self, tmp_path):
        with pytest.raises(InputError, match=r"looked for femnist/\*/1.0.0.*--config.source=PATH"):
            data.load("femnist", data_dir=str(tmp_path))

    def test_a_directory_that_cannot_be_written(self, leaf, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="cannot be written in"):
            data.load("femnist", data_dir=str(tmp_path / "file"), source=str(leaf))

    def test_hdf5(self, leaf, tmp_path):
        """TensorFlow Federated's form of the same writers gives the same set."""
        folder = tmp_path / "tff"
        folder.mkdir()
        users = {
            "train": {"w1": [leaf_user(1, 3), leaf_user(3, 4)], "w2": [leaf_user(0, 5)], "w3": [leaf_user(2, 2)]},
            "test": {"w1": [leaf_user(4, 2)], "w2": [leaf_user(5, 1)]},
        }
        for part, writers in users.items():
            with h5py.File(folder / f"fed_emnist_{part}.h5", "w") as file:
                for writer, found in writers.items():
                    x, y = (np.concatenate([user[name] for user in found]) for name in ("x", "y"))
                    file[f"examples/{writer}/pixels"] = x.reshape(-1, 28, 28).astype(np.float32)
                    file[f"examples/{writer}/label"] = y.astype(np.int32)
        found = data.load("femnist", data_dir=str(tmp_path / "a"), source=str(folder))
        same = data.load("femnist", data_dir=str(tmp_path / "b"), source=str(leaf))
        for part, other in ((found.train, same.train), (found.test, same.test)):
            np.testing.assert_array_equal(part.inputs, other.inputs)
            np.testing.assert_array_equal(part.labels, other.labels)
        np.testing.assert_array_equal(found.client_ids, same.client_ids)
        assert found.source_id != same.source_id

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda w: w.__setitem__("label", np.array([62, 0])),
                "train.h5: client 'w1': y must be whole numbers from 0 to 61",
            ),
            (lambda w: w.__setitem__("label", np.array([0])), "client 'w1' must have as many label as pixels"),
            (lambda w: w.__setitem__("pixels", np.zeros((2, 27, 28))), r"client 'w1': x has the shape \(2, 756\)"),
            (lambda w: w.__setitem__("pixels", np.full((2, 28, 28), 255.0)), "client 'w1': x must lie between 0 and 1"),
            (lambda w: w.pop("label"), "fed_emnist_train.h5: is not TensorFlow Federated's FEMNIST"),
            (lambda w: None, "fed_emnist_test.h5: is not TensorFlow Federated's FEMNIST"),
        ],
    )
    def test_bad_hdf5(self, change, message, tmp_path):
        writer = {"pixels": np.ones((2, 28, 28)), "label": np.array([0, 61])}
        change(writer)
        with h5py.File(tmp_path / "fed_emnist_train.h5", "w") as file:
            for name, values in writer.items():
                file[f"examples/w1/{name}"] = values
        with pytest.raises(InputError, match=message) as error:
            data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(tmp_path))
        assert "\n" not in str(error.value)

    def test_a_folder_that_is_no_source(self, tmp_path):
        with pytest.raises(
            InputError, match=r"must be a folder with train/.*json, as LEAF writes, or one with fed_emnist"
        ):
            data.load("femnist", data_dir=str(tmp_path), source=str(tmp_path))

    def test_a_damaged_set_is_one_line(self, leaf, tmp_path):
        data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))
        (file,) = (tmp_path / "tfds").rglob("*train.array_record*")
        file.write_bytes(file.read_bytes()[:-50])
        with pytest.raises(InputError, match=r"cannot be read: .* remove it to make it anew"):
            data.load("femnist", data_dir=str(tmp_path / "tfds"))


def spoilt(change) -> dict:
    users = {"w1": leaf_user(1, 3), "w2": leaf_user(0, 5)}
    change(users)
    return users


BAD = {
    "a client with no sample": (
        lambda u: u["w2"].update(x=[], y=[]),
        "'w2' must have as many y as x, and at least one",
    ),
    "fewer labels": (lambda u: u["w2"]["y"].pop(), "'w2' must have as many y as x"),
    "labels out of range": (lambda u: u["w1"]["y"].__setitem__(0, 62), "'w1': y must be whole numbers from 0 to 61"),
    "labels that are no integers": (lambda u: u["w1"]["y"].__setitem__(0, 1.5), "'w1': y must be whole numbers"),
    "a wrong shape": (lambda u: u["w1"].update(x=[[0.5] * 783] * 3), r"'w1': x has the shape \(3, 783\), must be"),
    "a ragged shape": (lambda u: u["w1"]["x"].__setitem__(0, [0.5]), "'w1': x must be images of 784 numbers"),
    "pixels out of range": (lambda u: u["w1"]["x"][0].__setitem__(0, 255), "'w1': x must lie between 0 and 1"),
    "pixels that are NaN": (lambda u: u["w1"]["x"][0].__setitem__(0, float("nan")), "'w1': x must lie between 0 and 1"),
    "words for pixels": (lambda u: u["w1"]["x"][0].__setitem__(0, "a"), "'w1': x must be images"),
    "numbers without end": (lambda u: u["w1"]["x"][0].__setitem__(0, 10**400), "'w1': x must be images"),
    "no x": (lambda u: u["w1"].pop("x"), "'w1' has no x and y in user_data"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_clients_are_named_with_their_file(name, leaf, tmp_path):
    change, message = BAD[name]
    write_json(leaf / "train" / "a.json", spoilt(change))
    with pytest.raises(InputError, match=message) as error:
        data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))
    assert str(leaf / "train" / "a.json") in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "tfds" / "femnist").exists()  # nothing is half made


@pytest.mark.parametrize("name", ["a.json", "b.json.gz"])
def test_truncated_files(name, leaf, tmp_path):
    file = leaf / "train" / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InputError, match=rf"{name}: is not a whole JSON file"):
        data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold an object with a list 'users'"),
        ('{"users": ["a", "a"], "user_data": {}}', "a client is listed twice"),
        ('{"users": ["a"], "user_data": {}}', "client 'a' has no x"),
    ],
)
def test_other_json(content, message, leaf, tmp_path):
    (leaf / "train" / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))


def test_sources_that_are_no_source(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("femnist", "shakespeare"):
        with pytest.raises(InputError, match="no such file or folder"):
            data.load(name, data_dir=str(tmp_path), source=str(tmp_path / "nothing"))
        with pytest.raises(InputError, match=r"config.source = .*must be a"):
            data.load(name, data_dir=str(tmp_path), source=str(tmp_path / "empty"))
    with pytest.raises(InputError, match="dataset 'digits' is not made from a raw source"):
        data.load("digits", source="x")


def test_files_beside_the_data_are_not_read(tmp_path):
    for part, seed in (("train", 1), ("test", 2)):
        write_json(tmp_path / "leaf" / part / "all.json", {"anne": leaf_user(seed, 12)})
    expected = data.load("femnist", data_dir=str(tmp_path / "a"), source=str(tmp_path / "leaf"))
    for name in ("._all.json", ".all.json.swp", "~$all.json", "Thumbs.db", "all.json~", "README"):
        (tmp_path / "leaf" / "train" / name).write_bytes(b"\0not JSON")
    (tmp_path / "leaf" / "train" / "folder.json").mkdir()
    found = data.load("femnist", data_dir=str(tmp_path / "b"), source=str(tmp_path / "leaf"))
    assert found.source_id == expected.source_id
    np.testing.assert_array_equal(found.train.inputs, expected.train.inputs)
    (tmp_path / "b" / "femnist" / found.source_id / "1.0.0" / "._dataset_info.json").write_bytes(b"\0")
    (tmp_path / "b" / "femnist" / ".Trash" / "1.0.0").mkdir(parents=True)
    (tmp_path / "b" / "femnist" / ".Trash" / "1.0.0" / "dataset_info.json").touch()
    data.load("femnist", data_dir=str(tmp_path / "b"))


@pytest.mark.parametrize("copy", ["train/all (1).json", "train/all.json.gz", "test/more.json"])
def test_examples_that_are_read_twice_are_refused(copy, tmp_path):
    leaf = tmp_path / "leaf"
    train = {"anne": leaf_user(1, 12), "bob": leaf_user(2, 12)}
    write_json(leaf / "train" / "all.json", train)
    write_json(leaf / "test" / "all.json", {"anne": leaf_user(3, 12), "bob": leaf_user(4, 12)})
    data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))
    write_json(leaf / copy, {"anne": leaf_user(5, 12), "bob": {"x": train["bob"]["x"][:3], "y": train["bob"]["y"][:3]}})
    with pytest.raises(InputError, match="have 3 examples of the same clients in common") as error:
        data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))
    assert str(leaf / copy) in str(error.value)
    assert str(leaf / "train" / "all.json") in str(error.value)


def test_the_table_of_counts():
    """The page has the counts that `TestRealFiles` finds in the files themselves."""
    page = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text()
    assert "105 writers: 14,708 and 1,685, 4 to 165 each" in page
    assert "1,128 roles, 62,061 pieces" in page


@pytest.mark.skipif(not RAW.is_dir(), reason="the real files are not here")
class TestRealFiles:
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        return str(tmp_path_factory.mktemp("tfds"))

    def test_femnist(self, folder):
        dataset = data.load("femnist", data_dir=folder, source=str(RAW / "femnist"))
        sizes = np.bincount(dataset.client_ids)
        assert (len(dataset.train.labels), len(dataset.test.labels)) == (14_708, 1_685)
        assert (len(sizes), sizes.min(), np.median(sizes), sizes.max()) == (105, 4, 152, 165)
        assert len(np.unique(dataset.train.labels)) == 62

    def test_shakespeare(self, folder):
        dataset = data.load("shakespeare", data_dir=folder, source=str(RAW / "shakespeare" / "plays.txt.gz"))
        assert len(np.unique(dataset.client_ids)) == 1_128
        assert len(dataset.train.labels) == 62_061
        assert (dataset.train.labels == shakespeare.OTHER).mean() < 1e-5


def test_the_identity_of_a_source_is_its_content(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("1")
    first = by_client.source_id(tmp_path, [file])
    os.utime(file, (0, 0))
    assert by_client.source_id(tmp_path, [file]) == first
    file.write_text("2")
    assert by_client.source_id(tmp_path, [file]) != first


def test_linked_folders_and_files_that_do_not_count(leaf, tmp_path):
    """LEAF keeps other folders beside the two; and these may be links."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for part in ("train", "test"):
        (linked / part).symlink_to(leaf / part)
    first = by_client.source_id(leaf, femnist.leaf.files(leaf))
    assert by_client.source_id(linked, femnist.leaf.files(linked)) == first
    (leaf / "all_data").mkdir()
    (leaf / "all_data" / "more.json").write_text("{}")
    assert by_client.source_id(leaf, femnist.leaf.files(leaf)) == first
    (leaf / "test" / "a.json").write_text("{}")
    assert by_client.source_id(linked, femnist.leaf.files(linked)) != first


def test_another_process_that_was_faster_is_no_error(leaf, tmp_path, monkeypatch):
    folder = str(tmp_path / "tfds")
    make = by_client._builder

    def slow(*arguments):
        make(*arguments).download_and_prepare()  # the other one
        return Slow()

    class Slow:
        def download_and_prepare(self):
            raise OSError(39, "Directory not empty")

    monkeypatch.setattr(by_client, "_builder", slow)
    assert len(data.load("femnist", data_dir=folder, source=str(leaf)).train.labels) == 14


def test_a_damaged_description_is_one_line(leaf, tmp_path):
    data.load("femnist", data_dir=str(tmp_path / "tfds"), source=str(leaf))
    (file,) = (tmp_path / "tfds").rglob("dataset_info.json")
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"cannot be read: JSONDecodeError.*remove it"):
        data.load("femnist", data_dir=str(tmp_path / "tfds"))
