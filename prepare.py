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
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from songci.cli import ArgumentParser, UserError, run
from songci.corpus import quansongci
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, Vocabulary, code_points, existing_folder, finish_replacing
from songci.forms.learn import learn
from songci.forms.poems import read_poems

BLOCK_BYTES = 1 << 20
MAX_FORM_CHARACTERS = 4 * 10**6  # at the start of the training split, to learn forms from: twice 全宋词, two seconds


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
        seen[code_points(text)] = True
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
