"""What --start stands for, and what a text can begin with if nothing is given."""

from pathlib import Path

from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.poems import TITLE
from songci.text import read_text


def read_start(start: str) -> str:
    """The text that --start stands for: FILE:path is read, \\n typed in a shell is a line end.

    Raises UserError if it is empty or the file cannot be read.
    """
    if start.startswith("FILE:"):
        start = read_text(Path(start.removeprefix("FILE:")))
        last = start[:-1].rpartition("\n")[2]
        if start.endswith("\n") and last and not TITLE.match(last):  # the editor's: the model is to go on with the line
            start = start[:-1]
    else:
        start = start.replace("\\n", "\n")
    if not start:
        raise UserError('--start is empty: give at least one character, such as "\\n" or +++清平乐')
    return start


def first_encodable(vocabulary: Vocabulary, *wished: str) -> str:
    """The first of these texts, or else of a few marks, that a corpus has the characters for; else one of these."""
    known = set(vocabulary.chars)
    possible = (text for text in (*wished, "\n", "。", " ") if set(text) <= known)
    return next(possible, vocabulary.chars[len(vocabulary) // 2])
