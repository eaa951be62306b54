import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from lasa_jax import data
from lasa_jax.data import cache, partition, prepare, tfds_images
from lasa_jax.errors import InputError


def write_tfds(root, name: str, counts: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A small prepared dataset in TFDS's own format: array_record files of examples, features and info."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer

    builder = tfds.builder(name, data_dir=root, file_format="array_record")
    folder = root / name / str(builder.version)
    folder.mkdir(parents=True)
    serializer = example_serializer.ExampleSerializer(builder.info.features.get_serialized_info())
    rng = np.random.default_rng(0)
    shape = builder.info.features["image"].shape
    written, splits = {}, []
    for split, count in counts.items():
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        labels = rng.integers(0, 10, count)
        writer = ArrayRecordWriter(str(folder / f"{name}-{split}.array_record-00000-of-00001"), "group_size:1")
        for index in range(count):
            png = io.BytesIO()
            Image.fromarray(images[index].squeeze()).save(png, "PNG")
            writer.write(serializer.serialize_example({"image": png.getvalue(), "label": labels[index]}))
        writer.close()
        written[split] = images, labels
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "shardLengths": [str(count)], "numBytes": "1", "filepathTemplate": template})
    info = {"name": name, "version": str(builder.version), "fileFormat": "array_record", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    builder.info.features.save_config(folder)
    return written


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    return root, write_tfds(root, "mnist", {"train": 1203, "test": 31})


@pytest.mark.filterwarnings("ignore")
class TestTFDS:
    def test_reads_what_was_written(self, prepared):
        root, written = prepared
        dataset = data.load("mnist", data_dir=str(root))
        for split, examples in (("train", dataset.train), ("test", dataset.test)):
            np.testing.assert_array_equal(examples.inputs, written[split][0])
            np.testing.assert_array_equal(examples.labels, written[split][1])
        assert dataset.train.inputs.dtype == np.uint8
        assert dataset.num_classes == 10

    def test_second_start_decodes_nothing(self, prepared, monkeypatch):
        root, _ = prepared
        first = data.load("mnist", data_dir=str(root))
        monkeypatch.setattr(tfds_images, "_read_split", None)
        second = data.load("mnist", data_dir=str(root))
        np.testing.assert_array_equal(first.train.inputs, second.train.inputs)

    def test_a_damaged_cache_is_not_believed(self, prepared):
        root, written = prepared
        data.load("mnist", data_dir=str(root))
        folder = cache.directory()
        assert folder is not None
        (entry,) = (folder / "decoded").glob("mnist-*.npz")
        content = bytearray(entry.read_bytes())
        content[len(content) // 2] ^= 1
        entry.write_bytes(content)
        np.testing.assert_array_equal(data.load("mnist", data_dir=str(root)).train.inputs, written["train"][0])
        entry.write_bytes(content[:1000])
        np.testing.assert_array_equal(data.load("mnist", data_dir=str(root)).train.inputs, written["train"][0])

    def test_changed_data_are_read_anew(self, prepared, tmp_path):
        root, _ = prepared
        data.load("mnist", data_dir=str(root))
        shutil.copytree(root / "mnist", tmp_path / "mnist")
        file = next((tmp_path / "mnist").rglob("*train*"))
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(InputError, match="split 'train' cannot be read"):
            data.load("mnist", data_dir=str(tmp_path))

    def test_environment_names_the_directory(self, prepared, monkeypatch):
        root, _ = prepared
        monkeypatch.setenv("TFDS_DATA_DIR", str(root))
        assert len(data.load("mnist").test.labels) == 31

    def test_another_file_format(self, prepared, tmp_path):
        root, _ = prepared
        shutil.copytree(root / "mnist", tmp_path / "mnist")
        info = next((tmp_path / "mnist").rglob("dataset_info.json"))
        info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
        with pytest.raises(InputError, match=r"stored as tfrecord, allowed is array_record.*data\.prepare mnist"):
            data.load("mnist", data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "mnist"])
def test_missing_set_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(InputError) as error:
        data.load(name)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        f"{name}/*/dataset_info.json",
        str(tmp_path),
        "TFDS_DATA_DIR",
        f"python -m lasa_jax.data.prepare {name}",
    ):
        assert part in message


def test_preparing_without_tensorflow_names_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    assert prepare.main(["mnist"]) == 2
    assert ".[prepare]" in capsys.readouterr().err


def test_unknown_dataset():
    with pytest.raises(InputError, match="did you mean 'mnist'"):
        data.load("minst")


def test_digits():
    dataset = data.load("digits")
    assert dataset.train.inputs.shape == (1437, 8, 8, 1)
    assert dataset.test.inputs.shape == (360, 8, 8, 1)
    x = dataset.normalise(jnp.asarray(dataset.train.inputs))
    assert abs(float(x.mean())) < 1e-3
    assert abs(float(x.std()) - 1) < 1e-3


def test_crop_and_flip():
    dataset = data.Dataset("x", 2, None, None, (0.0,), (1.0,), crop="constant")
    image = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1)
    padded = np.pad(image, ((0, 0), (4, 4), (4, 4), (0, 0)))[0]
    windows = {padded[i : i + 8, j : j + 8].tobytes(): (i, j, False) for i in range(9) for j in range(9)}
    windows |= {padded[i : i + 8, j : j + 8][:, ::-1].tobytes(): (i, j, True) for i in range(9) for j in range(9)}
    result = np.asarray(dataset.augment(jax.random.key(0), jnp.tile(image, (500, 1, 1, 1))))
    seen = [windows[x.tobytes()] for x in result]  # every result is one of the 162 possible windows
    assert {x[0] for x in seen} == set(range(9))
    assert {x[1] for x in seen} == set(range(9))
    assert 150 < sum(x[2] for x in seen) < 350


LABELS = np.random.default_rng(0).integers(0, 10, 3000)


class TestPartition:
    @pytest.mark.parametrize(
        "make",
        [
            lambda seed: partition.iid(LABELS, 70, seed),
            lambda seed: partition.class_balanced(LABELS, 20, seed),
            lambda seed: partition.dirichlet(LABELS, 20, 0.5, seed),
            lambda seed: partition.shards(LABELS, 20, 2, seed),
            lambda seed: partition.gamma_similarity(LABELS, 20, 0.5, seed),
            lambda seed: partition.quantity_skew(LABELS, 20, 5.0, seed),
        ],
        ids=["iid", "class_balanced", "dirichlet", "shards", "gamma_similarity", "quantity_skew"],
    )
    def test_disjoint_and_a_function_of_the_seed(self, make):
        first, same, other = make(1), make(1), make(2)
        np.testing.assert_array_equal(first.indices, same.indices)
        assert not np.array_equal(first.indices, other.indices)
        assert first.indices.shape == other.indices.shape  # seeds share a program
        used = np.concatenate([row[:size] for row, size in zip(*first, strict=True)])
        assert len(np.unique(used)) == len(used)
        assert used.min() >= 0
        assert used.max() < len(LABELS)

    def test_iid_sizes(self):
        assert (partition.iid(LABELS, 70, 1).sizes == 42).all()

    def test_class_balanced(self):
        indices, _ = partition.class_balanced(LABELS, 20, 1)
        counts = np.stack([np.bincount(LABELS[row], minlength=10) for row in indices])
        assert (counts == counts[0]).all()
        assert (counts[0] == np.bincount(LABELS) // 20).all()

    def test_dirichlet_uses_all_and_is_skewed_by_alpha(self):
        def spread(alpha):
            indices, sizes = partition.dirichlet(LABELS, 20, alpha, 1)
            assert sizes.sum() == len(LABELS)
            assert sizes.min() >= 10
            shares = [np.bincount(LABELS[r[:s]], minlength=10) / s for r, s in zip(indices, sizes, strict=True)]
            return np.std(shares)

        assert spread(0.1) > 1.5 * spread(1.0) > 3 * spread(100.0)

    def test_dirichlet_out_of_reach(self):
        with pytest.raises(InputError, match=r"min_samples = 149: not reached"):
            partition.dirichlet(LABELS, 20, 0.1, 1, min_samples=149)
        with pytest.raises(InputError, match=r"min_samples = 200: allowed are 0 to 150"):
            partition.dirichlet(LABELS, 20, 0.1, 1, min_samples=200)

    @pytest.mark.parametrize(("min_samples", "alpha", "draws"), [(10, 0.5, 50), (9, 0.5, 50), (9, 1e4, 300)])
    def test_what_cannot_be_is_decided_by_few_draws(self, min_samples, alpha, draws):
        labels = np.repeat(np.arange(10), 6000)
        with pytest.raises(InputError, match=f"min_samples = {min_samples}: not reached by {draws} draws"):
            partition.dirichlet(labels, 6000, alpha, 1, min_samples=min_samples)

    @pytest.mark.parametrize("classes", [1, 2, 5])
    def test_shards(self, classes):
        indices, sizes = partition.shards(LABELS, 20, classes, 1)
        found = [len(np.unique(LABELS[row])) for row in indices]
        assert (sizes == 3000 // (20 * classes) * classes).all()
        assert 0.8 * classes <= np.median(found) <= 2 * classes  # two shards of one class; a shard across two classes

    def test_gamma_similarity_goes_from_sorted_to_iid(self):
        def classes(gamma):
            indices, sizes = partition.gamma_similarity(LABELS, 20, gamma, 1)
            assert (sizes == 150).all()
            return np.mean([len(np.unique(LABELS[row])) for row in indices])

        assert classes(0.0) <= 2
        assert 2 < classes(0.03) < classes(0.2) <= classes(1.0) == 10

    def test_quantity_skew(self):
        def largest(alpha):
            indices, sizes = partition.quantity_skew(LABELS, 20, alpha, 1, min_samples=10)
            assert (sizes.sum(), sizes.min() >= 10) == (3000, True)
            assert indices.shape[1] == min(1 << (int(sizes.max()) - 1).bit_length(), 3000)
            return sizes.max()

        assert largest(0.2) > 2 * largest(2.0) > 2 * largest(200.0)
        with pytest.raises(InputError, match="min_samples = 200: allowed are 0 to 150"):
            partition.quantity_skew(LABELS, 20, 1.0, 1, min_samples=200)

    def test_shards_need_examples(self):
        with pytest.raises(InputError, match="classes_per_client = 200: allowed are 1 to 150"):
            partition.shards(LABELS, 20, 200, 1)

    @pytest.mark.parametrize(
        ("settings", "labels", "ids", "clients", "message"),
        [
            (
                {"name": "natural", "min_samples": 1},
                LABELS,
                None,
                None,
                "'natural': the data has no clients of its own",
            ),
            ({"name": "iid"}, LABELS, None, None, "config.num_clients: must be set for the partition 'iid'"),
            (
                {"name": "shards", "classes_per_client": 2},
                np.zeros((50, 4), np.int32),
                None,
                5,
                "every position of a sequence has a label; allowed are iid, natural, quantity_skew",
            ),
            ({"name": "natural", "min_samples": 1}, LABELS, LABELS, 11, "config.num_clients = 11: allowed are 1 to 10"),
        ],
    )
    def test_what_cannot_be_divided(self, settings, labels, ids, clients, message):
        with pytest.raises(InputError, match=message):
            partition.divide(settings, labels, ids, num_clients=clients, seed=1)

    def test_some_of_the_natural_clients(self):
        settings = {"name": "natural", "min_samples": 1}
        whole = partition.divide(settings, LABELS, LABELS, num_clients=None, seed=1)
        some, other = (partition.divide(settings, LABELS, LABELS, num_clients=4, seed=seed) for seed in (1, 2))
        assert len(whole.sizes) == 10
        assert some.indices.shape == other.indices.shape == (4, whole.indices.shape[1])
        assert not np.array_equal(some.indices, other.indices)

    def test_natural(self):
        ids = np.array([7, 3, 7, 7, 5, 3])
        indices, sizes = partition.natural(ids, min_samples=2)
        assert sizes.tolist() == [2, 3]
        assert indices[0][:2].tolist() == [1, 5]
        assert indices[1].tolist() == [0, 2, 3]

    def test_more_clients_than_examples(self):
        with pytest.raises(InputError, match="num_clients = 4000: allowed are 1 to 3000"):
            partition.iid(LABELS, 4000, 1)
