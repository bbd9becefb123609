"""Turns a text into what train.py reads: its vocabulary of characters, and its training and validation tokens.

Reads DATA_ROOT/input.txt, any UTF-8 text, and writes beside it

  meta.pkl             the vocabulary: vocab_size, stoi, itos (and aliases, other names of tunes)
  forms.json           what each tune demands, learned from the training split; see forms.py
  train.bin, val.bin   the first 90 % and the last 10 % of the text as token ids (little-endian uint16,
                       or uint32 for more than 65,535 different characters)

The default corpus, data/quansongci, is made first if it is not there: 全宋词, the Complete Song Ci, is fetched with npm
or from GitHub and cleaned.
"""

import codecs
import contextlib
import difflib
import io
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from songci.cli import ArgumentParser, UserError, run
from songci.corpus import quansongci
from songci.corpus.pickles import check_pickle
from songci.forms.learn import learn
from songci.forms.poems import read_poems

DEFAULT_DATA_ROOT = "data/quansongci"
BLOCK_BYTES = 1 << 20
MAX_FORM_CHARACTERS = 4 * 10**6  # at the start of the training split, to learn forms from: twice 全宋词, two seconds


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
        table[_code_points(self.chars)] = np.arange(len(self))
        return table

    def encode(self, text: str) -> np.ndarray:
        """Text of n characters → (n,) token ids. Raises UserError naming the characters that are not in the corpus."""
        ids = self._ids.take(_code_points(text))
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


def _code_points(text: str) -> np.ndarray:
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


def prepare(data_root: str | Path, source_url: str = quansongci.GITHUB_URL) -> tuple[Vocabulary, int, int]:
    """Makes the data set in `data_root`; returns the vocabulary and the number of tokens in train.bin and val.bin.

    All files are written aside and then take their places together: whenever this is interrupted, the folder holds
    either the old data set or the new one. Raises UserError for a text that cannot be used.
    """
    folder = Path(data_root)
    if folder.name == Path(DEFAULT_DATA_ROOT).name:
        folder.mkdir(parents=True, exist_ok=True)
    folder = existing_folder(folder)
    finish_replacing(folder)
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        source, aliases = folder / "input.txt", {}
        if not source.exists():
            if folder.name != Path(DEFAULT_DATA_ROOT).name:
                raise UserError(f"no input.txt in {folder}: put the text to learn there, in UTF-8")
            poems, aliases, dropped = quansongci.clean(quansongci.obtain(folder, source_url))
            report_cleaning(len(poems), dropped)
            source = new / "input.txt"
            source.write_bytes(quansongci.as_text(poems).encode())
        elif (folder / "meta.pkl").is_file():
            with contextlib.suppress(UserError):  # a damaged one is about to be replaced
                aliases = Vocabulary.load(folder / "meta.pkl").aliases  # input.txt does not hold them
        vocabulary, length = scan(source, aliases)
        vocabulary.save(new / "meta.pkl")
        cut = int(length * 0.9)
        if min(cut, length - cut) < 2:
            raise UserError(f"{source} has {length} characters, too few to split into training and validation")
        write_splits(source, vocabulary, cut, new)
        learn(complete_poems(read_blocks(source), min(cut, MAX_FORM_CHARACTERS))).save(new / "forms.json")
        replace_together(new, folder)
        return vocabulary, cut, length - cut
    finally:
        shutil.rmtree(new, ignore_errors=True)


def report_cleaning(kept: int, dropped: dict[str, int]) -> None:
    print(f"全宋词: {kept + sum(dropped.values()):,} poems, {kept:,} kept; dropped:")
    for reason, count in sorted(dropped.items(), key=lambda pair: -pair[1]):
        print(f"  {count:6,}  {reason}")


def read_blocks(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file in blocks: no byte-order mark, line ends as \\n. Raises UserError for other bytes."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK_BYTES)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = file.tell() - len(error.object) + error.start
                raise UserError(f"{path} is not UTF-8: byte {at} is {error.object[error.start]:#04x}") from None
            if text:
                yield text
            if not block:
                return


def scan(path: Path, aliases: dict[str, str]) -> tuple[Vocabulary, int]:
    """The first pass over the text: `sorted(set(data))` and `len(data)` of the handout, in bounded memory."""
    seen, length = np.zeros(0x110000, dtype=bool), 0
    for text in read_blocks(path):
        seen[_code_points(text)] = True
        length += len(text)
    return Vocabulary("".join(map(chr, np.flatnonzero(seen))), aliases), length


def write_splits(path: Path, vocabulary: Vocabulary, cut: int, folder: Path) -> None:
    """The second pass: the ids of the first `cut` characters to train.bin, the rest to val.bin."""
    with (folder / "train.bin").open("wb") as train, (folder / "val.bin").open("wb") as val:
        for text in read_blocks(path):
            ids = vocabulary.encode(text)
            train.write(ids[:cut])
            val.write(ids[cut:])
            cut = max(0, cut - len(ids))


def complete_poems(blocks: Iterator[str], cut: int) -> Iterator[tuple[str, str]]:
    """(tune, text) of the poems in the first `cut` characters, except the last, which the cut may go through."""
    poem = None
    for following in read_poems(lines(blocks, cut)):
        if poem:
            yield poem
        poem = following


def lines(blocks: Iterator[str], cut: int) -> Iterator[str]:
    """The lines in the first `cut` characters of a text. A line longer than a block comes in parts."""
    rest = ""
    for block in blocks:
        if cut <= 0:
            break
        *whole, rest = (rest + block[:cut]).splitlines(keepends=True)
        cut -= len(block)
        yield from whole
        if len(rest) > BLOCK_BYTES:
            yield rest
            rest = ""
    yield rest


def replace_together(new: Path, folder: Path) -> None:
    """Puts all the files in folder/.new in their places in `folder`, as one step.

    The rename to .ready is that step: before it the old files count, after it the new ones, for whoever finds a folder
    .ready (this function or, after a kill, the next reader) moves what is left in it.
    """
    for path in new.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    new.rename(folder / ".ready")
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Moves the files of folder/.ready, a complete data set, to their places in `folder`."""
    ready = folder / ".ready"
    if ready.is_dir():
        for path in sorted(ready.iterdir()):
            path.replace(folder / path.name)
        ready.rmdir()


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder with input.txt, and for the results")
    parser.add_argument(
        "--source_url",
        default=quansongci.GITHUB_URL,
        help="where 全宋词 is fetched from if npm cannot: a folder of the raw ci.song.*.json files",
    )
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    vocabulary, train_tokens, val_tokens = prepare(args.data_root, args.source_url)
    print(f"{args.data_root}: {train_tokens + val_tokens:,} characters, {len(vocabulary):,} of them different")
    print(f"  train.bin  {train_tokens:10,} tokens\n  val.bin    {val_tokens:10,} tokens")


if __name__ == "__main__":
    run(main)
