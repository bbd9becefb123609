"""What the tunes (词牌) demand: their templates, rhyme classes and tones, and the file forms.json that keeps them."""

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

from songci.cli import UserError, atomic_write
from songci.forms.groups import Joint, bound, kin
from songci.forms.poems import read_clauses
from songci.forms.refrains import Refrain
from songci.forms.rhymes import Classes, class_tones
from songci.forms.tones import EITHER

MIN_SHARE = 0.005  # of a tune's poems must stand in a template for it to be written; see docs/results.md
PROOF = 4  # poems that must show a rhyme before one that lacks it is at fault


class Slot(NamedTuple):
    """A place of a template: for a character (mark "") or for the mark or line end that comes there."""

    clause: int
    mark: str
    tone: str = EITHER  # 平, 仄, or 中 for either
    rhyme: str = ""  # the letter of its group of rhymes
    begins: bool = False  # a sentence
    pause: bool = False  # 、 may come before it


@dataclass(frozen=True)
class Template:
    """A form of a tune.

    clauses: (number of characters, "。" or "，") of each; support: poems that have it.
    scheme: a letter for each clause, the same for those that rhyme, "-" for one without a rhyme.
    pauses: (clause, characters before it) where some poem has 、; breaks: clauses after which a stanza ends.
    repeats: clauses with 。 whose last character is an earlier one's in a good part of the poems, as in a refrain.
    tones: 平, 仄 or 中 for each character; "" if they are not known.
    joint: {(class of each letter's rhymes, in order): number of poems}, -1 for a class that is not known.
    refrains: the clauses that repeat another one, and in how many poems.
    """

    clauses: tuple[tuple[int, str], ...]
    support: int
    scheme: str
    pauses: frozenset[tuple[int, int]] = frozenset()
    breaks: frozenset[int] = frozenset()
    repeats: frozenset[int] = frozenset()
    tones: str = ""
    joint: Joint = field(default_factory=dict, hash=False)
    refrains: tuple[Refrain, ...] = ()

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The number of characters of each clause."""
        return tuple(length for length, _ in self.clauses)

    @cached_property
    def ends(self) -> list[int]:
        """The number of characters before the end of each clause."""
        return list(accumulate(self.lengths))

    @cached_property
    def firm(self) -> frozenset[int]:
        """Those of them at which every edition has a mark: a sentence ends there, or a rhyme stands."""
        ends = zip(self.ends, self.clauses, self.scheme, strict=True)
        return frozenset(end for end, (_, mark), letter in ends if mark == "。" or letter != "-")

    @cached_property
    def fixed(self) -> int:
        """The number of places that ask for a tone."""
        return len(self.tones) - self.tones.count(EITHER)

    @cached_property
    def rhyme_of(self) -> list[str]:
        """The letter of each clause; "" for one without a rhyme."""
        return [letter.strip("-") for letter in self.scheme]

    @cached_property
    def slots(self) -> list[Slot]:
        """All its places, in order."""
        slots, tones = [], iter(self.tones or EITHER * sum(self.lengths))
        begins = True
        for i, (length, mark) in enumerate(self.clauses):
            for n in range(length):
                rhyme = self.rhyme_of[i] if n == length - 1 else ""
                slots.append(Slot(i, "", next(tones), rhyme, begins and n == 0, (i, n) in self.pauses))
            slots += [Slot(i, mark)] + [Slot(i, "\n")] * (i in self.breaks)
            begins = mark == "。"
        return slots

    @cached_property
    def slot_of(self) -> dict[tuple[int, int], int]:
        """{(clause, place in it): the slot} of each character."""
        found, n = {}, 0
        for i, slot in enumerate(self.slots):
            n = n + 1 if slot.mark == "" else 0
            if slot.mark == "":
                found[slot.clause, n - 1] = i
        return found

    @cached_property
    def letters(self) -> list[str]:
        """The groups of rhymes."""
        return sorted(set(self.scheme) - {"-"})

    @cached_property
    def rhymes(self) -> dict[str, Counter]:
        """For each letter, {class: number of poems that rhyme on it}."""
        counts = {letter: Counter() for letter in self.letters}
        for classes, number in self.joint.items():
            for letter, of_letter in zip(self.letters, classes, strict=True):
                counts[letter] += {of_letter: number} if of_letter >= 0 else {}
        return counts

    @cached_property
    def bound(self) -> list[tuple[int, int]]:
        """The groups of which one tells the class of another, by their numbers among the letters."""
        return bound(self.joint)

    def rhyme_tone(self, letter: str) -> str:
        """The tone in which a group of rhymes stands; 中 if that is not known."""
        tones = Counter(slot.tone for slot in self.slots if slot.rhyme == letter)
        del tones[EITHER]
        return tones.most_common(1)[0][0] if tones else EITHER

    @property
    def longest_group(self) -> str:
        """The letter of the longest group of rhymes, the first of equals; "" if nothing rhymes."""
        return next((letter for letter, _ in Counter(self.scheme.replace("-", "")).most_common(1)), "")


@dataclass(frozen=True)
class Forms:
    """What is known of a corpus's tunes.

    tunes: the templates of each, commonest first; classes: those of each character that was seen to rhyme, the one in
    which it rhymes most first; level: P(level tone) of each character, empty if the corpus is too small to tell;
    unseen: tunes of which the corpus has poems in its validation split alone.
    """

    tunes: dict[str, list[Template]] = field(default_factory=dict)
    classes: Classes = field(default_factory=dict)
    level: dict[str, float] = field(default_factory=dict)
    unseen: frozenset[str] = frozenset()

    def templates(self, tune: str) -> list[Template]:
        """Raises UserError if no form of the tune is known, with the names that were perhaps meant."""
        if tune in self.unseen:
            raise UserError(f"no form is known of the tune {tune!r}: the training split has no poem of it")
        if tune not in self.tunes:
            close = difflib.get_close_matches(tune, self.tunes, n=3, cutoff=0.5)
            hint = f"; near names: {', '.join(close)}" if close else ""
            raise UserError(f"no form is known of the tune {tune!r}{hint}")
        return self.tunes[tune]

    def is_variant(self, tune: str, template: Template) -> bool:
        """Whether it is known, but not written.

        So few poems have it that it may be a misprint; or it keeps hardly any of the tones that twice as many poems of
        the same clauses keep, as an old-style poem in the shape of a regulated one.
        """
        others, alike, regular = 0, 0, 0
        for other in self.tunes[tune]:
            others += other.support
            alike += other.support * (other.clauses == template.clauses)
            regular += other.support * (other.clauses == template.clauses and other.fixed > 3 * template.fixed)
        return template.support < MIN_SHARE * others or regular > 2 * (alike - regular)

    def doubtful(self, tune: str, template: Template) -> set[int]:
        """The ends of a template's clauses with a rhyme that so few poems show that it may be none.

        The poems of all the tune's templates of as many characters are counted.
        """
        seen = Counter()
        for other in self.tunes[tune]:
            if other.ends[-1] == template.ends[-1]:
                seen.update({end: other.support for end, c in zip(other.ends, other.scheme, strict=True) if c != "-"})
        return {end for end in template.ends if 0 < seen[end] < PROOF}

    @cached_property
    def class_tones(self) -> list[str]:
        """The tone of each rhyme class."""
        return class_tones(self.classes, self.level)

    @cached_property
    def kin(self) -> set[tuple[int, int]]:
        """The classes that go together where a form binds its groups: level and oblique of one 部, in both orders."""
        return set().union(*(kin(template.joint, template.bound) for template in chain(*self.tunes.values())))

    def save(self, path: Path) -> None:
        """Writes forms.json."""
        by_class = [["", ""] for _ in self.class_tones]  # the characters of which it is the first, and the others
        for char, own in self.classes.items():
            for number in own:
                by_class[number][number != own[0]] += char
        content = {
            "tunes": {tune: [_to_json(t) for t in templates] for tune, templates in self.tunes.items()},
            "rhyme_classes": [first for first, _ in by_class],
            "second_classes": [second for _, second in by_class],
            "level": {char: round(p, 4) for char, p in self.level.items()},
            "unseen": sorted(self.unseen),
        }
        with atomic_write(path, "w") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)

    @classmethod
    def load(cls, data_root: str | Path) -> "Forms":
        """Reads DATA_ROOT/forms.json. Raises UserError if it is missing or damaged."""
        path = Path(data_root) / "forms.json"
        if not path.is_file():
            raise UserError(f"no forms.json in {data_root}: run prepare.py --data_root {data_root}")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            tunes = {tune: [_from_json(**fields) for fields in found] for tune, found in content["tunes"].items()}
            classes = {char: (i,) for i, chars in enumerate(content["rhyme_classes"]) for char in chars}
            for i, chars in enumerate(content["second_classes"]):
                classes |= {char: (*classes[char], i) for char in chars}
            level = {char: float(p) for char, p in content["level"].items()}
            unseen = frozenset(content.get("unseen", []))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            problem = f"{path} is damaged or of an earlier version ({type(error).__name__})"
            raise UserError(f"{problem}: run prepare.py --data_root {data_root}") from None
        return cls(tunes, classes, level, unseen)


def own_form(body: str) -> Template:
    """The clauses of a text as a template, without rhymes and tones."""
    clauses = read_clauses(body)
    found = tuple((len(clause.text), clause.mark or "。") for clause in clauses)
    pauses = frozenset((i, n) for i, clause in enumerate(clauses) for n in clause.pauses if 0 < n < len(clause.text))
    breaks = frozenset(i for i, clause in enumerate(clauses[:-1]) if clause.line_break)
    return Template(found, 1, "-" * len(found), pauses, breaks)


def _to_json(template: Template) -> dict:
    """form: the clauses as "4。5，"."""
    return {
        "form": "".join(f"{length}{mark}" for length, mark in template.clauses),
        "support": template.support,
        "scheme": template.scheme,
        "tones": template.tones,
        "pauses": sorted(template.pauses),
        "breaks": sorted(template.breaks),
        "repeats": sorted(template.repeats),
        "refrains": template.refrains,
        "joint": " ".join(f"{','.join(map(str, classes))}:{n}" for classes, n in template.joint.items()),
    }


def _from_json(form, support, scheme, tones, pauses, breaks, repeats, refrains, joint) -> Template:
    """The inverse of _to_json(). Raises ValueError or TypeError for what that never writes."""
    clauses = tuple((int(length), mark) for length, mark in re.findall(r"(\d+)([。，])", form))
    if not clauses or len(scheme) != len(clauses) or len(tones) not in (0, sum(n for n, _ in clauses)):
        raise ValueError("not a template")
    places = frozenset(map(tuple, pauses)), frozenset(breaks), frozenset(repeats)
    counts = {tuple(map(int, classes.split(","))): int(n) for classes, n in (of.split(":") for of in joint.split())}
    again = tuple(Refrain(*map(int, refrain)) for refrain in refrains)
    template = Template(clauses, support, scheme, *places, tones, counts, again)
    lengths = dict(enumerate(template.lengths))
    short = any(r.length > min(lengths.get(r.of, 0), lengths.get(r.clause, 0)) for r in again)
    if short or any(len(classes) != len(template.letters) for classes in counts):
        raise ValueError("not its rhymes or refrains")
    return template
