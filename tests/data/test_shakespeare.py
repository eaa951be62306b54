"""Shakespeare: from a play or from raw files in each source's own format."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from lasa_jax import data
from lasa_jax.data import shakespeare
from lasa_jax.errors import InputError
from tests.data.test_by_client import write_json

pytestmark = pytest.mark.filterwarnings("ignore")  # of TFDS


PLAYS = """== A Play ==

ANNE.
To be, or not to be.

BOB.
Whether 'tis nobler
in the mind.

[Exit]

ANNE.
To suffer.

== Another Play ==

BOB.
""" + "".join(f"Speech {index}.\n\nBOB.\n" for index in range(24))


def text_of(tokens: np.ndarray) -> str:
    return "".join(shakespeare.CHARACTERS[t - 1] for t in tokens if 0 < t <= len(shakespeare.CHARACTERS))


class TestShakespeare:
    def load(self, tmp_path: Path, source: Path):
        return data.load("shakespeare", data_dir=str(tmp_path / "tfds"), source=str(source))

    def test_vocabulary(self):
        assert len(set(shakespeare.CHARACTERS)) == 86
        assert shakespeare.NUM_TOKENS == 90
        assert shakespeare.encode("\u00e9") == [shakespeare.OTHER]

    def test_speeches(self):
        assert shakespeare.speeches(PLAYS)["A Play/ANNE"] == ["To be, or not to be.", "To suffer."]
        assert shakespeare.speeches(PLAYS)["A Play/BOB"] == ["Whether 'tis nobler\nin the mind."]

    def test_speeches_without_blank_lines(self):
        text = "== A ==\nANNE.\nTo be.\nI.\nBOB SMITH.\nNo.\nANNE.\nYes."
        assert shakespeare.speeches(text) == {"A/ANNE": ["To be.\nI.", "Yes."], "A/BOB SMITH": ["No."]}

    def test_plays(self, tmp_path):
        """The last tenth of each role's speeches is for testing; a role with one speech is left out."""
        source = tmp_path / "plays.txt.gz"
        source.write_bytes(gzip.compress(PLAYS.encode()))
        dataset = self.load(tmp_path, source)
        assert np.bincount(dataset.client_ids).tolist() == [1, 22]
        assert [text_of(x) for x in dataset.train.inputs[:2]] == ["To be, or not to be.", "Speech 0."]
        assert [text_of(x) for x in dataset.test.inputs] == ["To suffer.", "Speech 22.", "Speech 23."]
        row, after = dataset.train.inputs[0], dataset.train.labels[0]
        assert row[0] == shakespeare.BEGIN
        assert after[20] == shakespeare.END
        assert not after[21:].any()
        np.testing.assert_array_equal(row[1:], after[:-1])
        assert (dataset.padding_label, dataset.num_classes, dataset.input_shape) == (0, 90, (80,))

    def test_long_texts_are_cut_into_pieces(self):
        inputs, labels = shakespeare.pieces(["x" * 200, "y" * 79, "z" * 80])
        assert inputs.shape == labels.shape == (5, 80)  # 202 tokens, 81, and 82 of which the last predicts nothing
        assert labels.astype(bool).sum() == 202 - 3 + 80 + 80

    def test_leaf_windows(self, tmp_path):
        windows = {"JULIET": {"x": ["a" * 80, "b" * 80], "y": ["c", "d"]}}
        write_json(tmp_path / "leaf" / "train" / "all.json", windows)
        write_json(tmp_path / "leaf" / "test" / "all.json", {"JULIET": {"x": ["e" * 80], "y": ["f"]}})
        dataset = self.load(tmp_path, tmp_path / "leaf")
        assert text_of(dataset.train.labels[1]) == "b" * 79 + "d"
        write_json(tmp_path / "leaf" / "train" / "all.json", {"JULIET": {"x": ["a" * 79], "y": ["c"]}})
        with pytest.raises(InputError, match=r"all.json: client 'JULIET': x must be strings of 80 characters"):
            self.load(tmp_path, tmp_path / "leaf")

    def test_marks_of_editors_are_no_text(self, tmp_path):
        spaced = PLAYS.replace("To be,", "To\u2003\u034fbe\ufe0f,").replace("A Play", "A\u3000Play\x7f")
        assert shakespeare.speeches(shakespeare.visible(spaced)) == shakespeare.speeches(PLAYS)
        marked = "\ufeff" + PLAYS.replace("To be,", "To\u200b\u00a0be,").replace("BOB.", "BOB.\u00a0") + "\x1a"
        (tmp_path / "marked.txt").write_text(marked.replace("\n", "\r\n"), newline="")
        (tmp_path / "plain.txt").write_text(PLAYS.replace("To be,", "To be,"))
        marked_set, plain_set = (self.load(tmp_path / name, tmp_path / f"{name}.txt") for name in ("marked", "plain"))
        for marked_part, plain_part in zip(marked_set.train, plain_set.train, strict=True):
            np.testing.assert_array_equal(marked_part, plain_part)

    def test_hdf5(self, tmp_path):
        for part, text in (("train", "Good night"), ("test", "Farewell")):
            with h5py.File(tmp_path / f"shakespeare_{part}.h5", "w") as file:
                file["examples/ROMEO/snippets"] = np.array([text.encode(), b"Ay"], dtype=h5py.string_dtype())
        dataset = self.load(tmp_path, tmp_path)
        assert [text_of(x) for x in dataset.train.inputs] == ["Good night", "Ay"]
        assert text_of(dataset.test.inputs[0]) == "Farewell"
        (tmp_path / "shakespeare_test.h5").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"shakespeare_test.h5: is not TensorFlow Federated's"):
            self.load(tmp_path, tmp_path)

    def test_without_h5py_the_extra_is_named(self, tmp_path, monkeypatch):
        (tmp_path / "shakespeare_train.h5").touch()
        monkeypatch.setitem(__import__("sys").modules, "h5py", None)
        with pytest.raises(InputError, match=r'pip install -e ".\[hdf5\]"'):
            self.load(tmp_path, tmp_path)

    def test_texts_that_are_no_plays(self, tmp_path):
        (tmp_path / "novel.txt").write_text("It was a dark and stormy night.")
        with pytest.raises(InputError, match="no role with two speeches"):
            self.load(tmp_path, tmp_path / "novel.txt")
        (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(PLAYS.encode())[:-10])
        with pytest.raises(InputError, match="is not a whole text"):
            self.load(tmp_path, tmp_path / "cut.txt.gz")
