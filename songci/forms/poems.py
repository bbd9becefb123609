"""Reads poems: title lines, and the clauses of a text with the marks that end them."""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate

MARKS = {**dict.fromkeys("。！？!?.", "。"), **dict.fromkeys("，；：,;:", "，"), **dict.fromkeys("、", "、")}


def is_character(char: str) -> bool:
    """Whether it counts as a character of a clause; □ stands for a lost one."""
    return char.isalnum() or char == "□"


@dataclass
class Clause:
    """A clause of a poem: its characters without 、, its mark ("" if the poem ends without), and where 、 stood."""

    text: str
    mark: str = ""
    pauses: list[int] = field(default_factory=list)
    line_break: bool = False


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
            clauses.append(Clause(text, mark, pauses))
    return clauses


def pattern(clauses: list[Clause]) -> tuple[tuple[int, str], ...]:
    """(number of characters, mark) of each clause."""
    return tuple((len(clause.text), clause.mark) for clause in clauses)


def tune_of(title: str) -> str:
    """The tune in a title line, with or without +++: "+++清平乐（春）" → "清平乐"."""
    return re.split(r"[（(]", title.strip().removeprefix("+++"), maxsplit=1)[0].strip()


def canonical_title(start: str, aliases: dict[str, str]) -> str:
    """Replaces another name of a tune in a title line by the one that the corpus uses, and says so on stderr.

    aliases: {other name: the corpus's}.
    """
    match = re.match(r"\+\+\+([^\n（(]+)", start)
    if match is None or match[1] not in aliases:
        return start
    print(f"{match[1]} is another name of {aliases[match[1]]}, which the corpus uses", file=sys.stderr)
    return f"+++{aliases[match[1]]}{start[match.end() :]}"


def read_poems(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(tune, text) of each poem in the lines of a corpus; what stands before the first title is left out."""
    tune, body = None, []
    for line in lines:
        if line.startswith("+++"):
            if tune:
                yield tune, "".join(body)
            tune, body = tune_of(line), []
        elif tune:
            body.append(line)
    if tune:
        yield tune, "".join(body)
