"""Arrays of a user's own: what is kept, what is refused in one line, and that partitions take them."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from lasa_jax import data
from lasa_jax.data import partition
from lasa_jax.errors import InputError

RNG = np.random.default_rng(0)
X, TEST_X = RNG.normal(3, 2, (60, 4)), RNG.normal(3, 2, (20, 4))
Y, TEST_Y = np.arange(60) % 3, np.arange(20) % 3
OWNERS = np.repeat(["beth", "al", "cy"], 20)


def made(**changed):
    arrays = {"train_inputs": X, "train_labels": Y, "test_inputs": TEST_X, "test_labels": TEST_Y, **changed}
    split = {name: (arrays.pop(f"{name}_inputs"), arrays.pop(f"{name}_labels")) for name in ("train", "test")}
    return {**split, **arrays}


def load(**changed):
    return data.from_arrays("mypkg:table", made(**changed))


class TestKept:
    def test_a_table_is_normalised_by_feature(self):
        x = np.concatenate([X, np.full((60, 1), 7.0)], axis=1)
        dataset = load(train_inputs=x, test_inputs=x[:20])
        assert (dataset.name, dataset.num_classes, dataset.input_shape, dataset.label_shape) == (
            "mypkg:table",
            3,
            (5,),
            (),
        )
        assert (dataset.train.inputs.dtype, dataset.train.labels.dtype) == (np.float32, np.int32)
        assert (dataset.example.shape, dataset.example.dtype) == ((5,), np.float32)
        normal = np.asarray(dataset.normalise(jnp.asarray(dataset.train.inputs)))
        np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(normal.std(0), [1, 1, 1, 1, 0], atol=1e-5)  # the last feature is constant

    def test_images_stay_uint8_and_are_normalised_by_channel(self):
        images = RNG.integers(0, 256, (5000, 2, 3, 3), dtype=np.uint8)  # more than are squared at a time
        dataset = load(train_inputs=images, train_labels=np.arange(5000) % 3, test_inputs=images[:20])
        assert dataset.train.inputs.dtype == np.uint8
        np.testing.assert_allclose(dataset.mean, images.mean((0, 1, 2)))
        np.testing.assert_allclose(dataset.std, images.std((0, 1, 2)))
        assert dataset.example.dtype == np.float32

    def test_tokens_with_a_label_each(self):
        tokens = RNG.integers(0, 50, (60, 8))
        dataset = load(
            train_inputs=tokens, train_labels=tokens % 5, test_inputs=tokens[:20], test_labels=tokens[:20] % 5
        )
        assert (dataset.train.inputs.dtype, dataset.mean, dataset.label_shape) == (np.int32, (), (8,))
        assert (dataset.example.shape, dataset.example.dtype) == ((8,), np.int32)

    def test_a_column_of_labels_is_flattened(self):
        dataset = load(train_labels=Y[:, None].astype(float), test_labels=(TEST_Y[:, None]))
        np.testing.assert_array_equal(dataset.train.labels, Y)
        assert dataset.test.labels.shape == (20,)

    def test_given_normalisation(self):
        dataset = load(mean=1, std=[1, 2, 3, 4])
        assert (dataset.mean, dataset.std) == ((1,), (1, 2, 3, 4))
        x = jnp.asarray(dataset.train.inputs)
        np.testing.assert_allclose(dataset.normalise(x), (X - 1) / [1, 2, 3, 4], rtol=1e-5)
        np.testing.assert_array_equal(load(mean=(), std=()).normalise(x), x)

    def test_lists_and_booleans(self):
        dataset = data.from_arrays("x", {"train": ([[True], [False]], [0, 1]), "test": [[[True]], [0]]})
        assert dataset.train.inputs.tolist() == [[1.0], [0.0]]

    def test_every_partition_takes_them(self):
        dataset = load(client_ids=OWNERS)
        assert dataset.client_ids.tolist() == [1] * 20 + [0] * 20 + [2] * 20
        options = {"alpha": 1.0, "min_samples": 1, "gamma": 0.5, "classes_per_client": 2}
        for name, own in partition.SETTINGS.items():
            settings = {"name": name, **{key: options[key] for key in own}}
            shares = partition.divide(settings, dataset.train.labels, dataset.client_ids, num_clients=3, seed=0)
            assert len(shares.sizes) == 3


class TestIdentity:
    def test_is_that_of_the_arrays(self):
        assert re.fullmatch("[0-9a-f]{64}", load().source_id)
        assert load().source_id == load(train_labels=Y.astype(np.uint8), test_inputs=TEST_X.tolist()).source_id

    @pytest.mark.parametrize(
        "changed",
        [
            {"train_inputs": X + np.eye(60, 4) * 1e-5},
            {"train_labels": (Y + 1) % 3},
            {"test_inputs": TEST_X[::-1]},
            {"test_labels": TEST_Y[::-1]},
            {"client_ids": OWNERS},
            {"mean": 0, "std": 1},
        ],
    )
    def test_any_change_is_other_data(self, changed):
        assert load(**changed).source_id != load().source_id


NAN = np.where(np.arange(60)[:, None] == 7, np.nan, X)

BAD = [
    ({"train_labels": Y - 1}, "the train labels go from -1 to 1, allowed are 0 to classes - 1"),
    ({"test_labels": TEST_Y + 2**31}, "the test labels go from 2147483648"),
    ({"train_labels": Y + 0.5}, "the train labels are not whole numbers, one is 0.5"),
    ({"train_labels": np.where(Y == 1, np.nan, Y)}, "the train labels are not whole numbers, one is nan"),
    ({"train_labels": Y.astype(str)}, "the train labels are <U21, allowed are whole numbers from 0"),
    ({"train_labels": Y[:, None, None]}, r"the train labels have the shape \(60, 1, 1\), allowed are \(examples,\)"),
    (
        {"train_labels": np.where(np.arange(60) == 7, 10**6, Y)},
        "labels go to 1000000, and only 4 of these 1000001 classes have an example",
    ),
    ({"train_labels": 0 * Y, "test_labels": 0 * TEST_Y}, "all labels are 0, allowed are at least two classes"),
    ({"test_labels": np.eye(3, dtype=int)[TEST_Y]}, r"one of the train labels has the shape \(\), of test \(3,\)"),
    ({"train_inputs": NAN}, "the train inputs are not finite in 1 of 60 examples, first in example 7"),
    ({"test_inputs": TEST_X * 1e39}, "the test inputs are not finite in 20 of 20 examples"),
    ({"train_inputs": X[:59]}, "'train' has 59 inputs and 60 labels"),
    ({"test_inputs": TEST_X[:0], "test_labels": TEST_Y[:0]}, r"the test inputs have the shape \(0, 4\)"),
    ({"test_labels": TEST_Y[:0]}, r"the test labels have the shape \(0,\)"),
    ({"train_inputs": X[:, 0]}, r"the train inputs have the shape \(60,\), allowed is \(examples, ...\)"),
    ({"train_inputs": X.astype(str)}, "the train inputs are <U"),
    ({"train_inputs": X.astype(complex)}, "the train inputs are complex128, allowed are"),
    ({"train_inputs": X.astype(object)}, "the train inputs are object, allowed are"),
    ({"train_inputs": [[1.0], [1.0, 2.0]]}, "the train inputs are no array: setting an array element"),
    ({"train_inputs": np.full((60, 4), 2**40)}, "whole numbers are tokens, allowed is int32"),
    ({"test_inputs": TEST_X[:, :3]}, r"one of the train inputs has the shape \(4,\), of test \(3,\)"),
    ({"test_inputs": TEST_X.astype(np.uint8)}, "the train inputs are float32 and those of test uint8"),
    ({"client_ids": OWNERS[:5]}, r"client_ids have the shape \(5,\), allowed is one for each of 60 training examples"),
    ({"client_ids": np.array([1, "a", None] * 20, object)}, "client_ids cannot be sorted"),
    ({"client_ids": np.where(Y == 1, np.nan, Y)}, r"client_ids: 20 are missing \(NaN\)"),
    ({"mean": 0.0}, "has one of mean and std, allowed are both or neither"),
    ({"mean": 0.0, "std": [1, 0, 1, 1]}, "std is 0 somewhere"),
    ({"mean": [0, 1], "std": 1}, "mean must be finite: one number, or 4"),
    ({"mean": "a", "std": 1}, "mean are no numbers"),
    ({"clients": OWNERS}, "'clients' is not known, allowed are train, test, client_ids, mean, std"),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_what_is_wrong_is_one_line(changed, message):
    with pytest.raises(InputError, match=message) as error:
        load(**changed)
    assert str(error.value).startswith("config.dataset = 'mypkg:table': ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ([X, Y], "gives a list, allowed is a dict with 'train' and 'test', each"),
        ({"train": (X, Y)}, "has no 'test', only 'train'"),
        ({"train": (X, Y), "test": TEST_X}, "'test' is a ndarray, allowed is a pair"),
    ],
)
def test_another_thing(gives, message):
    with pytest.raises(InputError, match=f"config.dataset = 'f': {message}"):
        data.from_arrays("f", gives)


class TestFile:
    ARRAYS = {"train_inputs": X, "train_labels": Y, "test_inputs": TEST_X, "test_labels": TEST_Y}  # noqa: RUF012

    def test_is_the_same_as_from_a_function(self, tmp_path, monkeypatch):
        np.savez(tmp_path / "table.npz", **self.ARRAYS, client_ids=OWNERS)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        wanted = load(client_ids=OWNERS)
        for path in ("table.npz", "~/table.npz", str(tmp_path / "table.npz")):
            found = data.load(path)
            assert (found.name, found.source_id) == (path, wanted.source_id)
            np.testing.assert_array_equal(found.client_ids, wanted.client_ids)

    def test_no_source_beside_it(self, tmp_path):
        with pytest.raises(InputError, match=r"config.source = 'x': dataset .* is not made from a raw source"):
            data.load(str(tmp_path / "table.npz"), source="x")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (None, "no such file"),
            (b"text", "cannot be read: ValueError"),
            (b"PK\x03\x04 cut off", "cannot be read: BadZipFile"),
            ({"train_inputs": X}, "has no 'train_labels', only 'train_inputs'"),
            (
                {**ARRAYS, "client_id": OWNERS},
                "'client_id' is not known, allowed are train_inputs, .*, client_ids, mean",
            ),
            (
                {**ARRAYS, "client_ids": np.array([None] * 60)},
                "cannot be read: ValueError: Object arrays cannot be loaded",
            ),
            ({**ARRAYS, "train_labels": Y - 1}, "the train labels go from -1 to 1"),
        ],
    )
    def test_what_is_wrong_is_one_line(self, tmp_path, content, message):
        file = tmp_path / "table.npz"
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            np.savez(file, **content)
        with pytest.raises(InputError, match=message) as error:
            data.load(str(file))
        assert str(error.value).startswith(f"config.dataset = '{file}': ")
        assert "\n" not in str(error.value)

    def test_an_array_by_itself(self, tmp_path):
        with (tmp_path / "one.npz").open("wb") as file:
            np.save(file, X)
        with pytest.raises(InputError, match=r"is no \.npz file"):
            data.load(str(tmp_path / "one.npz"))


def test_unknown_names_say_what_else_is_allowed():
    with pytest.raises(InputError, match=r"config.dataset = 'imagenet': allowed are .*shakespeare or an \.npz file"):
        data.load("imagenet")
