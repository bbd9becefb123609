"""What a user writes, in the way of the corpus: its characters, its marks, its names of tunes."""

import re
import sys

from songci.corpus.vocabulary import Vocabulary
from songci.forms.poems import MARKS, TITLE, split_title


def as_in_corpus(text: str, vocabulary: Vocabulary) -> str:
    """The text with what the corpus lacks put into what it has, as far as that can be; said on stderr.

    A character becomes the one that the corpus has for it, a mark the corpus's mark of that kind, another name of a
    tune the corpus's; a subject that cannot be written is left out of its title. What is unknown then is left as it is.
    """
    known = set(vocabulary.chars)
    text = re.sub(r"^＋＋＋", "+++", text, flags=re.MULTILINE) if "＋" not in known else text
    unknown = dict.fromkeys(char for char in text if char not in known)
    own_marks = {kind: char for char, kind in reversed(MARKS.items()) if char in known}
    marks = {char: own_marks[MARKS[char]] for char in unknown if MARKS.get(char) in own_marks}
    spelled = {char: own for char in unknown if (own := vocabulary.spelling.get(char)) in known}
    for kind, changes in (("marks", marks), ("spellings", spelled)):
        if changes:
            told = ", ".join(f"{old} → {new}" for old, new in list(changes.items())[:10])
            print(f"{kind} that the corpus lacks: {told}", file=sys.stderr)
    text = text.translate(str.maketrans(marks | spelled))
    titles = re.compile(f"^{TITLE.pattern}", re.MULTILINE)
    return titles.sub(lambda line: _title(line[0], known, vocabulary.aliases), text)


def _title(line: str, known: set[str], aliases: dict[str, str]) -> str:
    """A title line as the corpus has it."""
    tune, subject = split_title(line)
    rest = line[line.index(tune) + len(tune) :] if tune else ""
    if tune in aliases:
        print(f"{tune} is another name of {aliases[tune]}, which the corpus uses", file=sys.stderr)
        tune = aliases[tune]
    if not set(rest) <= known:
        if subject:
            print(f"the subject {subject!r} has characters that the corpus lacks, and is left out", file=sys.stderr)
        rest = ""
    return f"+++{tune}{rest}"
