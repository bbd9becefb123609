"""Reads poems: title lines, and the clauses of a text with the marks that end them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from itertools import accumulate
from unicodedata import category

MARKS = {**dict.fromkeys("。！？!?.．｡", "。"), **dict.fromkeys("，；：,;:", "，"), **dict.fromkeys("、､", "、")}
TITLE = re.compile(r"[+＋]{3}(.*)")
SUBJECT = re.compile(r"[·・•/|\s（(\[［【〔〖{｛<《〈「『]")  # what ends a tune's name and begins a poem's subject
BRACKETS = "".join(SUBJECT.pattern[1:-1].split(r"\s")) + ")）]］】〕〗}｝>》〉」』 \t\u3000"

BLANK = "□"  # in a text that is given: a character to be written; in a corpus: one that is lost


def is_character(char: str) -> bool:
    """Whether it counts as a character of a clause; □ stands for a lost one, rare ones can be of private use."""
    return char.isalnum() or char == BLANK or category(char) == "Co"


@dataclass
class Clause:
    """A clause of a poem: its characters without 、, its mark ("" if the poem ends without), and where 、 stood.

    shown: its characters with all their marks.
    """

    text: str
    mark: str = ""
    pauses: list[int] = field(default_factory=list)
    line_break: bool = False
    shown: str = ""


class _Normal(dict):
    """For str.translate(): marks of one kind become one; what is neither mark, character nor line end is dropped."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        self[code] = MARKS.get(char) or (char if char == "\n" or is_character(char) else None)
        return self[code]


_NORMAL = _Normal()


def read_clauses(body: str) -> list[Clause]:
    """The clauses of a poem's text; marks of one kind count as the same, quotation marks are left out."""
    clauses: list[Clause] = []
    for raw, mark in re.findall("([^。，]*)([。，]?)", body.translate(_NORMAL)):
        if raw.startswith("\n") and clauses:
            clauses[-1].line_break = True
        parts = raw.replace("\n", "").split("、")
        text = "".join(parts)
        if text:
            pauses = list(accumulate(map(len, parts[:-1])))
            clauses.append(Clause(text, mark, pauses, shown=raw.replace("\n", "") + mark))
    return clauses


def recut(clauses: list[Clause], form: tuple[tuple[int, str], ...]) -> list[Clause]:
    """A poem in the clauses of a form that has as many characters; what is shown of them keeps the poem's own marks."""
    pieces = re.findall("[^。，、][。，、]*", "".join(clause.shown for clause in clauses))  # a character and its marks
    cut, start = [], 0
    for length, mark in form:
        own = pieces[start : start + length]
        pauses = [n for n, piece in enumerate(own[:-1], start=1) if len(piece) > 1]
        cut.append(Clause("".join(piece[0] for piece in own), mark, pauses, shown="".join(own)))
        start += length
    return cut


def cuts(clauses: list[Clause]) -> dict[int, str]:
    """{number of characters before it: mark} of all marks of a poem, 、 among them."""
    found, before = {}, 0
    for clause in clauses:
        found |= dict.fromkeys((before + n for n in clause.pauses if 0 < n < len(clause.text)), "、")
        before += len(clause.text)
        if clause.mark:
            found[before] = clause.mark
    return found


def pattern(clauses: list[Clause]) -> tuple[tuple[int, str], ...]:
    """(number of characters, mark) of each clause."""
    return tuple((len(clause.text), clause.mark) for clause in clauses)


def split_title(line: str) -> tuple[str, str]:
    """The tune and the subject of a title line, with or without +++: "+++念奴娇·赤壁怀古" → ("念奴娇", "赤壁怀古")."""
    match = TITLE.match(line.strip())
    title = (match[1] if match else line).strip()
    tune = SUBJECT.split(title, maxsplit=1)[0]
    return tune, title[len(tune) :].strip(BRACKETS)


def tune_of(title: str) -> str:
    """The tune in a title line: "+++清平乐（春）" → "清平乐"."""
    return split_title(title)[0]


def read_poems(text: str) -> Iterator[tuple[str, str]]:
    """(tune, text) of each poem of a corpus; what stands before the first title is left out."""
    tune, body = None, []
    for line in StringIO(text):  # ended by \n alone, as for the model; str.splitlines() has ten other line ends
        if TITLE.match(line):
            if tune:
                yield tune, "".join(body)
            tune, body = tune_of(line), []
        elif tune:
            body.append(line)
    if tune:
        yield tune, "".join(body)
