"""The characters of a corpus and their token ids, and the folder that prepare.py has made of a text."""

import difflib
import io
import pickle
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from songci.cli import UserError
from songci.corpus.pickles import check_pickle

DEFAULT_DATA_ROOT = "data/quansongci"


@dataclass(frozen=True)
class Vocabulary:
    """The characters of a corpus; a character's token id is its place in `chars`.

    aliases: other names of tunes → the canonical name that the corpus uses.
    Raises ValueError if these are not what they should be, as in a damaged file.
    """

    chars: str
    aliases: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if type(self.chars) is not str or len(set(self.chars)) < len(self.chars):
            raise ValueError("chars are not distinct characters")
        self.chars.encode()  # raises for surrogates, which are no characters and cannot be written
        if type(self.aliases) is not dict or not all(
            type(name) is str for pair in self.aliases.items() for name in pair
        ):
            raise ValueError("aliases are not names")

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
        return "".join(self.chars[i] for i in ids)

    def save(self, path: Path) -> None:
        """Writes meta.pkl, with the keys that other character-level projects read too."""
        meta = {
            "vocab_size": len(self),
            "stoi": {char: i for i, char in enumerate(self.chars)},
            "itos": dict(enumerate(self.chars)),
            "aliases": self.aliases,
        }
        path.write_bytes(pickle.dumps(meta, protocol=4))

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Reads meta.pkl. Runs no code that a hostile file may hold; raises UserError if it is broken."""
        try:
            content = path.read_bytes()
            check_pickle(content)
            meta = _PlainUnpickler(io.BytesIO(content)).load()
            itos = meta["itos"]
            chars = [itos[i] for i in range(len(itos))]
            if not all(type(char) is str and len(char) == 1 for char in chars):
                raise ValueError("itos has something that is not a character")
            vocabulary = cls("".join(chars), meta.get("aliases", {}))
            stoi = {char: i for i, char in enumerate(vocabulary.chars)}
            if not (len(vocabulary) == len(itos) == meta["vocab_size"] and len(itos) > 0 and stoi == meta["stoi"]):
                raise ValueError("vocab_size, stoi and itos disagree")
            return vocabulary
        except OSError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise UserError(f"{path} is damaged ({type(error).__name__}): run prepare.py again") from None


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers; a pickle that names any class or function is refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed here")


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def load_dataset(data_root: str | Path) -> tuple[Vocabulary, np.ndarray, np.ndarray]:
    """What prepare.py wrote: the vocabulary, and the token ids of both splits, memory-mapped.

    Raises UserError if the folder was not prepared, or its files do not belong together.
    """
    vocabulary = load_vocabulary(data_root)
    splits = []
    for name in ("train.bin", "val.bin"):
        path = Path(data_root) / name
        size = path.stat().st_size if path.is_file() else 0
        if size < 2 * vocabulary.dtype.itemsize or size % vocabulary.dtype.itemsize:
            raise UserError(f"{path} is missing or truncated: run prepare.py --data_root {data_root}")
        ids = np.memmap(path, dtype=vocabulary.dtype, mode="r")
        if ids.max() >= len(vocabulary):
            raise UserError(
                f"{path} has the id {ids.max()}, outside the vocabulary of {len(vocabulary)} characters in meta.pkl: "
                f"run prepare.py --data_root {data_root}"
            )
        splits.append(ids)
    return vocabulary, *splits


def load_vocabulary(data_root: str | Path) -> Vocabulary:
    """The vocabulary of a prepared folder. Raises UserError if there is none."""
    folder = existing_folder(data_root)
    finish_replacing(folder)
    if not (folder / "meta.pkl").is_file():
        raise UserError(f"no meta.pkl in {folder}: run prepare.py --data_root {data_root} first")
    return Vocabulary.load(folder / "meta.pkl")


def check_same_vocabulary(trained: Vocabulary, ckpt_path, prepared: Vocabulary, data_root) -> None:
    """Raises UserError if a model was trained on other characters than those of the data set."""
    if trained.chars != prepared.chars:
        raise UserError(f"{ckpt_path} was trained on another vocabulary than that of {data_root}: give its --data_root")


def existing_folder(data_root: str | Path) -> Path:
    """`data_root` as a path. Raises UserError if it is no folder, with the name that was probably meant."""
    folder = Path(data_root)
    if folder.is_dir():
        return folder
    siblings = [str(path) for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    close = difflib.get_close_matches(str(folder), {*siblings, str(Path(DEFAULT_DATA_ROOT))}, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UserError(f"no data folder {data_root}{hint}")


def finish_replacing(folder: Path) -> None:
    """Moves the files of folder/.ready, a complete data set, to their places in `folder`."""
    ready = folder / ".ready"
    if ready.is_dir():
        for path in sorted(ready.iterdir()):
            path.replace(folder / path.name)
        ready.rmdir()
