"""Shakespeare: next-character prediction, a client a role of a play (McMahan et al., 2017; Caldas et al., "LEAF", 2018).

An example is 80 tokens and, at each position, the token that follows. A source is one of

* a plain text of plays: `== title ==` before a play, `SPEAKER.` on a line and the speech below it, up to a blank line or
  the next speaker. Of every role's speeches the last tenth, and at least one, is for testing; roles with one speech are
  left out.
* LEAF's JSON: strings of 80 characters with the one that follows.
* TensorFlow Federated's HDF5: `shakespeare_train.h5` and `shakespeare_test.h5` with `examples/ROLE/snippets`.

Speeches and snippets become tokens as in TensorFlow Federated: beginning, characters, end, padded to whole pieces of 81.
"""

import gzip
import re
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lasa_jax.data import by_client, leaf
from lasa_jax.data.by_client import ClientExamples
from lasa_jax.data.dataset import Dataset, Examples
from lasa_jax.errors import InputError

LENGTH = 80
# The 86 characters of TensorFlow Federated's Shakespeare; with padding, beginning, end and "another one" 90 tokens.
CHARACTERS = "\n\r !\"#$%&'()*,-./0123456789:;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"
PADDING, BEGIN, END, OTHER = 0, 87, 88, 89
NUM_TOKENS = 90
_TOKENS = {character: index + 1 for index, character in enumerate(CHARACTERS)}
_TITLE = re.compile(r"==\s*(\S.*?)\s*==\s*")
_SPEAKER = re.compile(r"([A-Z][^a-z]*)\.\s*")
_SPEAKER_INSIDE = re.compile(
    r"([A-Z]{2}[A-Z ,'-]*)\.\s*"
)  # without a blank line before it: more than the "I." of a verse


def encode(text: str) -> list[int]:
    """Tokens of the characters of a text."""
    return [_TOKENS.get(character, OTHER) for character in text]


def pieces(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Examples of one client: every text begun, ended and cut into pieces of 81, inputs and labels uint8 `(count, 80)`."""
    rows = []
    for text in texts:
        tokens = [BEGIN, *encode(text), END]
        tokens += [PADDING] * (-len(tokens) % (LENGTH + 1))
        rows.append(np.array(tokens, np.uint8).reshape(-1, LENGTH + 1))
    whole = np.concatenate(rows) if rows else np.zeros((0, LENGTH + 1), np.uint8)
    whole = whole[whole[:, 1] != PADDING]  # a lone token at the end predicts nothing
    return whole[:, :-1], whole[:, 1:]


def _convert(x: list[Any], y: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """A LEAF user's windows and the characters that follow them."""
    if not all(isinstance(text, str) and len(text) == LENGTH for text in x):
        raise ValueError(f"x must be strings of {LENGTH} characters")
    if not all(isinstance(text, str) and len(text) == 1 for text in y):
        raise ValueError("y must be single characters")
    whole = np.array([encode(text + after) for text, after in zip(x, y, strict=True)], np.uint8)
    return whole[:, :-1], whole[:, 1:]


def visible(text: str) -> str:
    """A text without what editors leave in it unseen.

    Marks without a width (byte order, joiners, soft hyphens, directions, selectors of a glyph) and control characters that
    are no white space go; spaces of any width become spaces.
    """
    return "".join(
        " " if unicodedata.category(character) == "Zs" else character
        for character in text
        if character.isspace() or not _is_unseen(character)
    )


def _is_unseen(character: str) -> bool:
    selects_a_glyph = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return unicodedata.category(character) in ("Cf", "Cc") or selects_a_glyph or character == "\u034f"


def speeches(text: str) -> dict[str, list[str]]:
    """The speeches of every role of every play, in order: `{"TITLE/ROLE": [speech, ...]}`."""
    roles: dict[str, list[str]] = {}
    title, speech = "", None
    for line in text.splitlines():
        if heading := _TITLE.fullmatch(line):
            title, speech = heading[1], None
        elif not line.strip():
            speech = None
        elif speaker := (_SPEAKER if speech is None else _SPEAKER_INSIDE).fullmatch(line):
            speech = roles.setdefault(f"{title}/{speaker[1]}", [])
            speech.append("")
        elif speech is not None:  # else stage directions, tables of contents
            speech[-1] += line if not speech[-1] else "\n" + line
    return roles


def _read_plays(source: Path) -> dict[str, list[ClientExamples]]:
    try:
        with gzip.open(source, "rb") if source.suffix == ".gz" else source.open("rb") as stream:
            text = visible(stream.read().decode())
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"config.source = '{source}': is not a whole text ({type(error).__name__})") from None
    parts: dict[str, list[ClientExamples]] = {"train": [], "test": []}
    for role, spoken in sorted(speeches(text).items()):
        spoken = [speech for speech in spoken if speech]
        if len(spoken) < 2:
            continue
        cut = len(spoken) - max(1, len(spoken) // 10)
        parts["train"].append(ClientExamples(role, *pieces(spoken[:cut])))
        parts["test"].append(ClientExamples(role, *pieces(spoken[cut:])))
    if not parts["train"]:
        raise InputError(
            f"config.source = '{source}': no role with two speeches; must have `SPEAKER.` on a line and the speech below it"
        )
    return parts


def _read_hdf5(folder: Path) -> dict[str, list[ClientExamples]]:
    try:
        import h5py
    except ImportError:
        raise InputError('config.source: reading HDF5 needs h5py: pip install -e ".[hdf5]"') from None
    parts = {}
    for part in ("train", "test"):
        file = folder / f"shakespeare_{part}.h5"
        clients = []
        try:
            with h5py.File(file, "r") as content:
                for role in sorted(content["examples"]):
                    snippets = [snippet.decode() for snippet in content["examples"][role]["snippets"][()]]
                    if not snippets:
                        raise InputError(f"{file}: client {role!r} must have at least one snippet")
                    clients.append(ClientExamples(role, *pieces(snippets)))
        except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())[:100]
            raise InputError(
                f"{file}: is not TensorFlow Federated's Shakespeare ({type(error).__name__}: {reason})"
            ) from None
        parts[part] = clients
    return parts


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if leaf.is_leaf(source):
        return leaf.files(source)
    if (source / "shakespeare_train.h5").is_file():
        both = (source / f"shakespeare_{part}.h5" for part in ("test", "train"))
        return [file for file in both if file.is_file()]
    raise InputError(
        f"config.source = '{source}': must be a text of plays, a folder with train/*.json and test/*.json (LEAF), or one "
        f"with shakespeare_train.h5 and shakespeare_test.h5 (TensorFlow Federated)"
    )


def _read(source: Path) -> dict[str, list[ClientExamples]]:
    if source.is_file():
        return _read_plays(source)
    return leaf.read(source, _convert) if leaf.is_leaf(source) else _read_hdf5(source)


SET = by_client.FederatedSet("shakespeare", "1.0.0", (LENGTH,), (LENGTH,), _files, _read)


def load(data_dir: str | None = None, source: str | None = None) -> Dataset:
    """The set by role; see `by_client.load`."""
    return of_arrays(by_client.load(SET, data_dir, source))


def of_arrays(arrays: by_client.Arrays) -> Dataset:
    """The set from its arrays: pieces as `pieces` makes them."""
    return Dataset(
        name="shakespeare",
        num_classes=NUM_TOKENS,
        train=Examples(arrays.train_inputs, arrays.train_labels),
        test=Examples(arrays.test_inputs, arrays.test_labels),
        mean=(),
        std=(),
        client_ids=arrays.train_clients,
        source_id=arrays.source_id,
        padding_label=PADDING,
    )
