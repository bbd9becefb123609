"""Turns a text into what train.py reads: its vocabulary of characters, and its training and validation tokens.

Reads DATA_ROOT/input.txt, any UTF-8 text, and writes beside it

  train.bin, val.bin   the first 90 % and the last 10 % of the text as token ids (little-endian uint16,
                       or uint32 for more than 65,535 different characters)
  forms.json           what each tune demands, learned from the training split; see songci/forms
  meta.pkl             the vocabulary: vocab_size, stoi, itos (and aliases, other names of tunes); and what belongs to
                       it: lengths, the number of tokens in train.bin and val.bin, and sha256, that of input.txt

The default corpus, data/quansongci, is made first if it is not there: 全宋词, the Complete Song Ci, is fetched with npm
or from GitHub and cleaned; its stanzas, which the source does not tell, are inferred.
"""

import contextlib
import hashlib
import pickle
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from songci.cli import ArgumentParser, UserError, atomic_write, run
from songci.corpus import quansongci
from songci.corpus.vocabulary import (
    DEFAULT_DATA_ROOT,
    Vocabulary,
    blocks,
    distinct,
    existing_folder,
    read_corpus,
    read_meta,
)
from songci.forms.learn import learn
from songci.forms.names import misprints
from songci.forms.poems import read_poems
from songci.forms.stanzas import in_stanzas
from songci.forms.templates import Forms

NO_FORMS = "no forms: no poems under +++ titles"
NO_TONES = "; no tones: the poems are too few, or too irregular, to tell them"
FILES = ("meta.pkl", "train.bin", "val.bin")
MAX_FORM_CHARACTERS = 4 * 10**6  # at the start of the training split, to learn forms from: twice 全宋词, six seconds


def prepare(data_root: str | Path, source_url: str = quansongci.GITHUB_URL) -> tuple[Vocabulary, int, int]:
    """Makes the data set in `data_root`; returns the vocabulary and the number of tokens in train.bin and val.bin.

    Raises UserError for a text that cannot be used.
    """
    data, sha256, aliases, folder = find_text(Path(data_root), source_url)

    # get all the unique characters that occur in this text
    chars = sorted(distinct(data))  # sorted(set(data)), which takes 12 s for a gigabyte, in 1 s
    vocab_size = len(chars)

    # create a mapping from characters to integers
    stoi = {ch: i for i, ch in enumerate(chars)}
    itos = {i: ch for i, ch in enumerate(chars)}  # noqa: C416

    # create the train and test splits
    n = len(data)
    train_data = data[: int(n * 0.9)]
    val_data = data[int(n * 0.9) :]

    if min(len(train_data), len(val_data)) < 2:
        raise UserError(f"{folder / 'input.txt'} has {n} characters, too few to split into training and validation")
    lengths = [len(train_data), len(val_data)]
    meta = {"vocab_size": vocab_size, "stoi": stoi, "itos": itos}
    meta |= {"aliases": aliases, "lengths": lengths, "sha256": sha256}
    vocabulary = Vocabulary("".join(chars), aliases)
    # What was learned from a poem that the cut goes through would be wrong: the last one is left out.
    forms = learn(list(read_poems(train_data[:MAX_FORM_CHARACTERS].splitlines(keepends=True)))[:-1])

    for name in ("input.txt", *FILES, "forms.json"):
        for left in folder.glob(f".{name}.*"):  # by atomic_write() in a run that was killed
            left.unlink(missing_ok=True)
    with contextlib.ExitStack() as files:
        # They take their names when all are written, in reverse order: meta.pkl after all that it tells of. Only a
        # text that was fetched comes later, for its aliases are in meta.pkl alone.
        if not (folder / "input.txt").exists():
            files.enter_context(atomic_write(folder / "input.txt")).write(data.encode())
        meta_file, train_file, val_file = (files.enter_context(atomic_write(folder / name)) for name in FILES)
        meta_file.write(pickle.dumps(meta, protocol=4))
        meta_file.flush()  # a full disk is found before any file has its name
        write_tokens(train_file, train_data, vocabulary)
        write_tokens(val_file, val_data, vocabulary)
        forms.save(folder / "forms.json")
    return vocabulary, *lengths


def find_text(folder: Path, source_url: str) -> tuple[str, str, dict[str, str], Path]:
    """The text to learn, its file's SHA-256, other names of its tunes, and the folder: made, if it is 全宋词's."""
    default = folder.name == Path(DEFAULT_DATA_ROOT).name
    if default:
        folder.mkdir(parents=True, exist_ok=True)
    folder = existing_folder(folder)
    if (folder / "input.txt").exists():
        aliases = {}
        with contextlib.suppress(UserError, FileNotFoundError):  # a damaged one is about to be replaced
            aliases = read_meta(folder / "meta.pkl")[0].aliases  # input.txt does not hold them
        return *read_corpus(folder / "input.txt"), aliases, folder
    if not default:
        raise UserError(f"no input.txt in {folder}: put the text to learn there, in UTF-8")
    poems, aliases, dropped = quansongci.clean(quansongci.obtain(folder, source_url))
    print(f"全宋词: {len(poems) + dropped.total():,} poems, {len(poems):,} kept; dropped:")
    print("\n".join(f"  {count:6,}  {reason}" for reason, count in dropped.most_common()))
    wrong = misprints(poems)
    counts = Counter(tune for tune, _ in poems if tune in wrong)
    print(f"  {counts.total():,} poems under misprinted names of tunes: ", end="")
    print(", ".join(f"{name} → {tune} ({counts[name]})" for name, tune in wrong.items()))
    poems = [(wrong.get(tune, tune), text) for tune, text in poems]
    aliases = {name: wrong.get(tune, tune) for name, tune in aliases.items()}
    data = quansongci.as_text(in_stanzas(poems))
    return data, hashlib.sha256(data.encode()).hexdigest(), aliases, folder


def write_tokens(file: BinaryIO, text: str, vocabulary: Vocabulary) -> None:
    """[stoi[ch] for ch in text], block by block."""
    for block in blocks(text):
        file.write(vocabulary.encode(block))
    file.flush()


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
    forms = Forms.load(args.data_root)
    known = f"{len(forms.tunes):,} tunes, {len(forms.class_tones)} classes of rhymes" if forms.tunes else NO_FORMS
    print(f"  forms.json {known}{'' if forms.level or not forms.tunes else NO_TONES}")


if __name__ == "__main__":
    run(main)
