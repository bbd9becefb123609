"""The characters of a corpus and their token ids, and the folder that prepare.py has made of a text."""

import difflib
import hashlib
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from songci.cli import UserError
from songci.text import decode

DEFAULT_DATA_ROOT = "data/quansongci"
FETCHED = {  # folders that a fresh clone lacks, and what makes them
    DEFAULT_DATA_ROOT: "python prepare.py (or make demo)",
    "data/shi": f"python prepare.py --data_root data/shi --vocabulary {DEFAULT_DATA_ROOT}",
}


@dataclass(frozen=True)
class Vocabulary:
    """The characters of a corpus; a character's token id is its place in `chars`.

    aliases: other names of tunes → the name that the corpus uses. spelling: characters that others write → those that
    the corpus has for them; see songci/corpus/spelling.py.
    """

    chars: str
    aliases: dict[str, str] = field(default_factory=dict)
    spelling: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.chars)

    @property
    def dtype(self) -> np.dtype:
        """The type of the ids in train.bin and val.bin."""
        return np.dtype("<u2" if len(self) <= 65_535 else "<u4")

    @cached_property
    def _ids(self) -> np.ndarray:
        """(0x110000,) the id of each code point of Unicode; len(self) where the vocabulary lacks it."""
        table = np.full(0x110000, len(self), dtype=self.dtype)  # which has room for one more id than there are
        table[code_points(self.chars)] = np.arange(len(self))
        return table

    def encode(self, text: str) -> np.ndarray:
        """Text of n characters → (n,) token ids. Raises UserError naming the characters that are not in the corpus."""
        ids = self._ids.take(code_points(text))
        if len(ids) and ids.max() == len(self):
            unknown = dict.fromkeys(char for char, i in zip(text, ids, strict=True) if i == len(self))
            names = ", ".join(f"{char!r} (U+{ord(char):04X})" for char in list(unknown)[:10])
            raise UserError(f"not in the vocabulary: {names}; use characters that the corpus has")
        return ids

    def decode(self, ids) -> str:
        """Token ids → text, the inverse of encode()."""
        return "".join(map(self.chars.__getitem__, ids))


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers; a pickle that names any class or function is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def read_meta(path: Path) -> tuple[Vocabulary, list[int] | None, str | None]:
    """What is in meta.pkl: the vocabulary, the lengths of train.bin and val.bin, and the SHA-256 of input.txt.

    The last two are None if another program has written it. Runs no code that a hostile file may hold; raises
    UserError if the file is damaged.
    """
    try:
        meta = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        chars = "".join(meta["stoi"])
        ids = range(len(chars))
        whole = meta["vocab_size"] == len(chars) > 0 and meta["stoi"] == dict(zip(chars, ids, strict=True))
        aliases, spelling = meta.get("aliases", {}), meta.get("spelling", {})
        if not (whole and meta["itos"] == dict(zip(ids, chars, strict=True))):
            raise ValueError("vocab_size, stoi and itos disagree")
        names = [*aliases, *aliases.values(), *spelling, *spelling.values()]
        "".join([chars, *names]).encode()  # raises for surrogates and for what is no text
        return Vocabulary(chars, dict(aliases), dict(spelling)), meta.get("lengths"), meta.get("sha256")
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is damaged ({type(error).__name__}): run prepare.py again") from None


BLOCK = 1 << 16  # characters: what is made of them stays in the processor's cache


def blocks(text: str) -> Iterator[str]:
    """A text in parts, so that what is made of a gigabyte needs no gigabytes."""
    return (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def distinct(text: str) -> set[str]:
    """set(text), ten times as fast for a long one."""
    seen = np.zeros(0x110000, dtype=bool)
    for block in blocks(text):
        seen[code_points(block)] = True
    return set(map(chr, np.flatnonzero(seen)))


def read_corpus(path: Path) -> tuple[str, str]:
    """The text of a file, as decode() gives it, and the file's SHA-256."""
    content = path.read_bytes()
    return decode(content, path), hashlib.sha256(content).hexdigest()


def load_dataset(data_root: str | Path) -> tuple[Vocabulary, np.ndarray, np.ndarray]:
    """What prepare.py wrote: the vocabulary, and the token ids of both splits, memory-mapped.

    Raises UserError if the folder was not prepared, or its files do not belong together.
    """
    vocabulary = load_vocabulary(data_root)
    splits = []
    for path in (Path(data_root) / "train.bin", Path(data_root) / "val.bin"):
        size = path.stat().st_size if path.is_file() else 0
        if size < 2 * vocabulary.dtype.itemsize or size % vocabulary.dtype.itemsize:
            raise UserError(f"{path} is missing or truncated: run prepare.py --data_root {data_root} again")
        splits.append(np.memmap(path, dtype=vocabulary.dtype, mode="r"))
        if (largest := splits[-1].max()) >= len(vocabulary):
            message = f"{path} has the id {largest}, outside the vocabulary of {len(vocabulary)} characters in meta.pkl"
            raise UserError(f"{message}: run prepare.py --data_root {data_root} again")
    return vocabulary, *splits


def read_splits(data_root: str | Path) -> tuple[str, str]:
    """The training and the validation text of a prepared folder. Raises UserError as load_dataset()."""
    vocabulary, *splits = load_dataset(data_root)
    train_text, val_text = (vocabulary.decode(split.tolist()) for split in splits)
    return train_text, val_text


def load_vocabulary(data_root: str | Path) -> Vocabulary:
    """The vocabulary of a prepared folder. Raises UserError if there is none.

    Whatever else is there must belong to it: train.bin and val.bin of the lengths, and input.txt with the SHA-256,
    that prepare.py wrote down.
    """
    folder = existing_folder(data_root)
    if not (folder / "meta.pkl").is_file():
        raise UserError(f"no meta.pkl in {folder}: run prepare.py --data_root {data_root} first")
    vocabulary, lengths, sha256 = read_meta(folder / "meta.pkl")
    for name, length in zip(("train.bin", "val.bin"), lengths or (), strict=False):
        path = folder / name
        if path.is_file() and path.stat().st_size != length * vocabulary.dtype.itemsize:
            raise UserError(f"{path} is truncated or of another text: run prepare.py --data_root {data_root} again")
    text = folder / "input.txt"
    if sha256 and text.is_file() and read_sha256(text) != sha256:
        raise UserError(f"{text} has changed since it was prepared: run prepare.py --data_root {data_root} again")
    return vocabulary


def fingerprint(*splits: np.ndarray) -> str:
    """The SHA-256 of a data set's token ids: a run and a data set that do not belong together are found out by it."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split)
    return digest.hexdigest()


def read_sha256(path: Path) -> str:
    """The SHA-256 of a file: a hundredth of a second for 全宋词. (hashlib.file_digest is newer than Python 3.10.)"""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_same_vocabulary(trained: Vocabulary, ckpt_path, prepared: Vocabulary, data_root) -> None:
    """Raises UserError if a model was trained on other characters than those of the data set."""
    if trained.chars != prepared.chars:
        raise UserError(f"{ckpt_path} was trained on another vocabulary than that of {data_root}: give its --data_root")


def existing_folder(data_root: str | Path) -> Path:
    """`data_root` as a path. Raises UserError if it is no folder, with the command or the name that is missing."""
    folder = Path(data_root)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise UserError(f"{data_root} is a file: give its folder, {folder.parent}")
    if command := FETCHED.get(folder.as_posix()):
        raise UserError(f"no data folder {data_root} yet: run {command} first")
    siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    close = difflib.get_close_matches(str(folder), {*siblings, str(Path(DEFAULT_DATA_ROOT))}, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"no data folder {data_root}{hint}")
