"""A poem in one template as far as it stands: what is written of it, and what is given of the rest."""

import copy
from collections.abc import Iterable

from songci.forms.poems import BLANK, MARKS, is_character
from songci.forms.refrains import Refrain
from songci.forms.rhymes import Classes
from songci.forms.templates import Template


class Draft:
    """The beginning of a poem in one template, by the rhyme classes of characters.

    at: the number of slots filled; groups: the classes that all rhymes of a letter so far have; rhymed: the rhymes;
    same_marks: whether all its marks are those of the template, not 。 for ， or the other way round.
    given: {slot: what has to stand there}; pauses: the slots before which 、 has to; laid: the number of slots of a
    text with blanks that is given, in which there is no other 、.
    written: {slot: its character}; echoes: {slot: the one before whose character it repeats, if it can}.
    """

    def __init__(self, template: Template, classes: Classes):
        self.template, self.classes = template, classes
        self.at, self.rhymed = 0, ""
        self.groups: dict[str, frozenset[int]] = {}
        self.paused = False
        self.same_marks = True
        self.given: dict[int, str] = {}
        self.pauses, self.laid = set(), 0
        self.written: dict[int, str] = {}
        self.echoes: dict[int, int] = {}

    def copy(self) -> "Draft":
        other = copy.copy(self)
        other.groups, other.written = {**self.groups}, {**self.written}
        return other  # what is given stays as it is

    def begins(self) -> list[int]:
        """The slots to come that begin sentences and are not given."""
        return [i for i, slot in enumerate(self.template.slots) if slot.begins and i >= self.at and i not in self.given]

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
        if mark == "、" or (mark is None and not is_character(char)):
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
            if not self.join(due.rhyme, self.classes.get(char, ())):
                return False
            self.rhymed += char
        if mark is None and char != BLANK:
            self.written[self.at] = char
        self.at, self.paused = self.at + 1, False
        return True
