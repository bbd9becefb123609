"""A poem in one template as far as it stands: what is written of it, and what is given of the rest."""

import copy
from collections.abc import Iterable
from dataclasses import replace

from songci.forms.poems import BLANK, MARKS, Clause, cuts, is_character
from songci.forms.refrains import Refrain
from songci.forms.rhymes import Classes
from songci.forms.templates import Template


class Draft:
    """The beginning of a poem in one template, by the rhyme classes of characters.

    at: the number of slots filled; groups: the classes that all rhymes of a letter so far have; rhymed: the rhymes;
    same_marks: whether all its marks are those of the template, not 。 or 、 for ， or the other way round.
    doubtful: the clauses whose rhyme may be none, so that what is given there need not rhyme.
    given: {slot: what has to stand there}; pauses: the slots before which 、 has to; laid: the number of slots of a
    text with blanks that is given, in which there is no other 、.
    written: {slot: its character}; echoes: {slot: the one before whose character it repeats, if it can}.
    """

    def __init__(self, template: Template, classes: Classes, doubtful: frozenset[int] = frozenset()):
        self.template, self.classes = template, classes
        self.at, self.rhymed = 0, ""
        self.groups: dict[str, frozenset[int]] = {}
        self.paused = False
        self.same_marks, self.doubtful = True, doubtful
        self.given: dict[int, str] = {}
        self.pauses, self.laid = set(), 0
        self.written: dict[int, str] = {}
        self.echoes: dict[int, int] = {}

    def copy(self) -> "Draft":
        other = copy.copy(self)
        other.groups, other.written = {**self.groups}, {**self.written}
        return other  # what is given stays as it is

    def begins(self, clauses: bool = False) -> list[int]:
        """The slots to come that begin sentences, or all those that begin clauses, and are not given."""
        slots = self.template.slots
        first = [i for i, slot in enumerate(slots) if slot.begins or (clauses and not slot.mark and slots[i - 1].mark)]
        return [i for i in first if i >= self.at and i not in self.given]

    @property
    def done(self) -> bool:
        return self.at == len(self.template.slots)

    def lay(self, text: str) -> bool:
        """Takes a text that is given, up to its first blank, and notes what follows; returns whether all of it fits."""
        blank = None  # the first: its slot, and whether 、 stands before it
        for char in text:
            before, paused = self.at, self.paused
            if not self.take(char):
                return False
            if char == BLANK:
                blank = blank or (self.at - 1, paused)
            elif blank and self.at > before:
                self.given[self.at - 1] = char
            elif blank and MARKS.get(char) == "、":
                self.pauses.add(self.at)
        if blank:
            self.laid, (self.at, self.paused) = self.at, blank
        return True

    def repeat(self, refrain: Refrain) -> None:
        """Keeps a refrain in what is to be written, unless what is given has it otherwise."""
        slot_of, lengths = self.template.slot_of, self.template.lengths
        pairs = [(slot_of[first], slot_of[again]) for first, again in refrain.places(lengths)]
        known = self.written | self.given
        given: dict[int, str] = {}
        for first, again in pairs:
            chars = {known[slot] for slot in (first, again) if slot in known}
            letters = {self.template.slots[slot].rhyme for slot in (first, again)} - {""}
            if len(chars) > 1 or any(
                self.groups.get(letter, frozenset()).isdisjoint(self.classes.get(char, ()))
                for char in chars
                for letter in letters
            ):
                return
            given |= {slot: char for char in chars for slot in (first, again) if slot not in known}
        self.given |= given
        self.echoes |= {again: first for first, again in pairs if again not in known | given}

    def join(self, letter: str, own: Iterable[int]) -> bool:
        """Leaves a group of rhymes the classes that are among its own and these; returns whether there are any."""
        left = self.groups.get(letter, frozenset(own)).intersection(own)
        if left:
            self.groups[letter] = left
        return bool(left)

    def take(self, char: str) -> bool:
        """Goes on with a character, if it fits; returns whether it does."""
        slots, mark = self.template.slots, MARKS.get(char)
        due = slots[self.at] if not self.done else None
        if char == "\n":  # a text that is given may have its lines otherwise
            self.at += due is not None and due.mark == "\n"
            return due is None or due.mark == "\n" or self.at == 0 or slots[self.at - 1].mark != ""
        if (mark == "、" and (due is None or due.mark in ("", "\n"))) or (mark is None and not is_character(char)):
            self.paused = mark == "、"
            return True
        if due is not None and due.mark == "\n":
            self.at += 1
            due = slots[self.at]
        if due is None or (mark is None) != (due.mark == ""):
            return False
        if mark is not None:
            self.same_marks &= mark == due.mark
        elif due.rhyme and char != BLANK:
            if self.join(due.rhyme, self.classes.get(char, ())):
                self.rhymed += char
            elif due.clause not in self.doubtful:
                return False
        if mark is None and char != BLANK:
            self.written[self.at] = char
        self.at, self.paused = self.at + 1, False
        return True


def recut(template: Template, clauses: list[Clause]) -> Template | None:
    """The template with its clauses cut as those of a text that is given, the beginning of a poem or all of it.

    None if that does not fill the template's sentences with as many characters as they have, or has no mark where one
    rhymes. A sentence that it only begins may differ by ， for 、 alone: what else follows is to be written as usual.
    """
    marks, size = cuts(clauses), sum(len(clause.text) for clause in clauses)
    known = dict(zip(template.ends, template.clauses, strict=True))
    sentences = [end for end in template.ends if known[end][1] == "。" and end in marks]
    whole = max(sentences, default=0)  # the characters of the sentences that are complete
    if any(end not in marks for end in template.firm if end < size) or size > template.ends[-1]:
        return None
    starts = [0, *template.ends]
    pauses = {starts[i] + n for i, n in template.pauses}
    own = {end for end, mark in marks.items() if mark != "、"}
    if any(end > whole and end not in known and end not in pauses for end in own):
        return None
    ends = sorted(own | {end for end in known if end > whole or end in marks})
    return _with_ends(template, ends, {end: known[end][1] if end in known else marks[end] for end in ends}, pauses)


def _with_ends(template: Template, ends: list[int], marks: dict[int, str], pauses: set[int]) -> Template:
    """The template with other ends of clauses, by the number of characters before them, and their marks."""
    old = {end: i for i, end in enumerate(template.ends)}
    new = {old[end]: i for i, end in enumerate(ends) if end in old}
    starts = [0, *ends[:-1]]
    pauses = (pauses | old.keys()) - set(ends)  # a clause that is cut otherwise may pause where it was cut
    before = dict(zip(template.ends, [0, *template.ends], strict=False))  # where the clause with this end began
    same = {old[end]: i for i, end in enumerate(ends) if before.get(end) == starts[i]}
    refrains = [refrain for refrain in template.refrains if {refrain.clause, refrain.of} <= same.keys()]
    return replace(
        template,
        clauses=tuple((end - start, marks[end]) for start, end in zip(starts, ends, strict=True)),
        scheme="".join(template.scheme[old[end]] if end in old else "-" for end in ends),
        pauses=frozenset((i, n - starts[i]) for n in pauses for i in [sum(end < n for end in ends)]),
        breaks=frozenset(new[i] for i in template.breaks if i in new),
        repeats=frozenset(new[i] for i in template.repeats if i in new),
        refrains=tuple(one._replace(clause=same[one.clause], of=same[one.of]) for one in refrains),
    )
