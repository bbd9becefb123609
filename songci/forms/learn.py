"""Learns the forms of tunes from a corpus: the patterns of each tune, tones, rhyme classes, which clauses rhyme."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from songci.forms.groups import Joint
from songci.forms.poems import pattern, read_clauses
from songci.forms.refrains import learn_refrains
from songci.forms.rhymes import Classes, attach, class_tones, common_class, communities
from songci.forms.templates import Forms, Template
from songci.forms.tones import EITHER, MIN_POEMS, contrary, fixed, fixed_tone, learn_tones, nearest, tone_of

MIN_SUPPORT = 2  # poems that share a pattern before it counts as a form: a single one may be a scribe's error
MAX_ENDINGS = 1000  # poems of a template whose rhymes are looked at: plenty
REFRAIN = 0.2  # share of the poems that repeat a rhyme character from which on this counts as the tune's way
MIN_RHYMES = 3  # characters of one tone in a group of rhymes that tell the group's
AGREEMENT = 0.6  # share of the poems in which a clause must be in the class of a group to join it
COMMA_AGREEMENT = 0.75  # the same for a clause that ends with ，, where a rhyme is rarer
MUST_RHYME = 0.8  # share of the rhymes among the characters of their tone at the end of a clause that need not rhyme

Clauses = tuple[tuple[int, str], ...]  # (number of characters, mark) of each


class Poem(NamedTuple):
    """text: its characters, without marks; ends: the last of each clause; pauses, breaks: as in a Template."""

    text: str
    ends: str
    pauses: frozenset[tuple[int, int]]
    breaks: frozenset[int]


def learn(poems: Iterable[tuple[str, str]]) -> Forms:
    """The forms of a corpus, from its (tune, text) pairs; no forms if it has none."""
    seen: dict[tuple[str, Clauses], list[Poem]] = defaultdict(list)
    neighbours: Counter = Counter()
    plain = []
    for tune, body in poems:
        clauses = read_clauses(body)
        if not clauses or not clauses[-1].mark:
            continue
        text, ends = "".join(clause.text for clause in clauses), "".join(clause.text[-1] for clause in clauses)
        pauses = frozenset(
            (i, n) for i, clause in enumerate(clauses) for n in clause.pauses if 0 < n < len(clause.text)
        )
        breaks = frozenset(i for i, clause in enumerate(clauses[:-1]) if clause.line_break)
        seen[tune, pattern(clauses)].append(Poem(text, ends, pauses, breaks))
        neighbours.update(pairwise(clause.text[-1] for clause in clauses if clause.mark == "。"))
        plain.append((tune, text))
    level, tones = learn_tones(plain)
    first = communities(neighbours, level)
    classes = attach(first, list(rhyme_groups(seen, first)), level)
    shared = {tune for (tune, _), own in seen.items() if len(own) >= MIN_SUPPORT}
    tunes = defaultdict(list)
    for (tune, clauses), own in seen.items():
        if len(own) >= MIN_SUPPORT or tune not in shared:  # of a tune without a shared form, all that there is
            variants = tones.get((tune, len(own[0].text)), [""])
            tunes[tune] += _templates(clauses, own, variants, classes, level)
    for templates in tunes.values():
        templates.sort(key=lambda template: -template.support)
    return Forms(dict(sorted(tunes.items(), key=lambda item: -item[1][0].support)), classes, level)


def _templates(
    clauses: Clauses, poems: list[Poem], variants: list[str], classes: Classes, level: dict[str, float]
) -> Iterator[Template]:
    """A template for the poems of one pattern in each of the variants of tones, and of rhymes."""
    first, class_tone = {char: own[0] for char, own in classes.items()}, class_tones(classes, level)
    by_tones = defaultdict(list)
    for poem in poems:
        by_tones[nearest(poem.text, variants, level)].append(poem)
    for tones, alike in by_tones.items():
        parts = by_rhyme(clauses, alike, first, level)
        if len(parts) > 1:
            of_parts = fixed({("", 0): [[poem.text for poem in part] for part in parts]}, level)["", 0]
        else:
            of_parts = [tones]
        for part, of_part in zip(parts, of_parts, strict=True):
            breaks = Counter(i for poem in part for i in poem.breaks)
            breaks = frozenset(i for i, count in breaks.items() if count > len(part) / 2)
            endings = [poem.ends for poem in part[:MAX_ENDINGS]]
            scheme, repeats = rhyme_scheme(clauses, endings, first), refrains(clauses, endings)
            pauses = frozenset().union(*(poem.pauses for poem in part))
            known = of_part or rhyme_tones(clauses, scheme, endings, level)
            bounds = list(pairwise(accumulate((length for length, _ in clauses), initial=0)))
            again = learn_refrains([[poem.text[start:end] for start, end in bounds] for poem in part])
            template = Template(clauses, len(part), scheme, pauses, breaks, repeats, known, refrains=again)
            yield replace(template, joint=joint_counts(template, endings, classes, class_tone))


def by_rhyme(clauses: Clauses, poems: list[Poem], classes: dict[str, int], level: dict[str, float]) -> list[list[Poem]]:
    """The poems of a template, those apart whose ， clause rhymes where that of others does not (首句入韵).

    It is no chance if those rhyme whose last character has the tone of the rhymes.
    """
    if len(poems) < 2 * MIN_POEMS:
        return [poems]
    scheme = rhyme_scheme(clauses, [poem.ends for poem in poems[:MAX_ENDINGS]], classes)
    for i, (_, mark) in enumerate(clauses):
        end = next(j for j in range(i, len(clauses)) if clauses[j][1] == "。")  # of its sentence
        if mark == "。" or scheme[end] == "-":
            continue
        group = [j for j, letter in enumerate(scheme) if letter == scheme[end] and j != i]
        rhymes = [classes.get(poem.ends[i]) in {classes.get(poem.ends[j], -1) for j in group} for poem in poems]
        tones = [(tone_of(poem.ends[i], level), tone_of(poem.ends[end], level)) for poem in poems]
        in_tone = [fits for fits, (own, due) in zip(rhymes, tones, strict=True) if own == due != EITHER]
        # Those out of class but in tone are meant to rhyme: poets were free to take a neighbouring class there
        sides = [fits or own == due != EITHER for fits, (own, due) in zip(rhymes, tones, strict=True)]
        if min(sum(in_tone), sides.count(False)) >= MIN_POEMS and sum(in_tone) > MUST_RHYME * len(in_tone):
            return [[poem for poem, own in zip(poems, sides, strict=True) if own == which] for which in (True, False)]
    return [poems]


def rhyme_tones(clauses: Clauses, scheme: str, endings: list[str], level: dict[str, float]) -> str:
    """The tones of a template of too few poems for places of their own: of its rhymes, by the characters of a group.

    "" if nothing is known of tones.
    """
    if not level:
        return ""
    tone = {}
    for letter in set(scheme) - {"-"}:
        chars = [ending[i] for ending in endings for i, other in enumerate(scheme) if other == letter]
        tone[letter] = fixed_tone((tone_of(char, level) for char in chars), MIN_RHYMES)
    return "".join(
        EITHER * (length - 1) + tone.get(letter, EITHER) for (length, _), letter in zip(clauses, scheme, strict=True)
    )


def joint_counts(template: Template, endings: list[str], classes: Classes, class_tone: list[str]) -> Joint:
    """Template.joint: the class of a group is that of most of its rhymes. Commonest first."""
    of_letter = []
    for letter in template.letters:
        tone = template.rhyme_tone(letter)
        in_tone = [k for k, of_class in enumerate(class_tone) if not contrary(tone, of_class)]
        places = [i for i, other in enumerate(template.scheme) if other == letter]
        found = [common_class([ending[i] for i in places], classes, in_tone) for ending in endings]
        of_letter.append([-1 if number is None else number for number in found])
    return dict(Counter(zip(*of_letter, strict=True)).most_common())


def refrains(clauses: Clauses, endings: list[str]) -> frozenset[int]:
    """The clauses with 。 whose last character repeats that of an earlier one in at least REFRAIN of the poems."""
    places = [i for i, (_, mark) in enumerate(clauses) if mark == "。"]
    return frozenset(
        place
        for n, place in enumerate(places)
        if sum(any(e[place] == e[i] for i in places[:n]) for e in endings) >= REFRAIN * len(endings)
    )


def rhyme_groups(seen: dict[tuple[str, Clauses], list[Poem]], first: dict[str, int]) -> Iterator[str]:
    """The characters of each group of rhymes in the poems of the forms that several have."""
    for (_, clauses), poems in seen.items():
        if len(poems) < MIN_SUPPORT:
            continue
        scheme = rhyme_scheme(clauses, [poem.ends for poem in poems[:MAX_ENDINGS]], first)
        for letter in sorted(set(scheme) - {"-"}):
            places = [i for i, other in enumerate(scheme) if other == letter]
            yield from ("".join(poem.ends[i] for i in places) for poem in poems)


def rhyme_scheme(clauses: Clauses, endings: list[str], classes: dict[str, int]) -> str:
    """Which clauses rhyme in the poems of a template, such as "-a-a" or "aa-a".

    endings: of each poem, the last character of each clause; classes: the first one of each character.
    A clause joins the group with which it agrees best, if it does so clearly more often than not; those with ， come
    last, for they begin no group.
    """
    found = np.array([[classes.get(char, -1) for char in ending] for ending in endings])  # (poems, clauses)
    one, other = found[:, :, None], found[:, None, :]
    known = (one >= 0) & (other >= 0)
    # (clauses, clauses) by Laplace's rule: few poems prove little
    agreement = ((known & (one == other)).sum(0) + 1) / (known.sum(0) + 2)
    groups: list[list[int]] = []
    for i in sorted(range(len(clauses)), key=lambda i: clauses[i][1] != "。"):
        shares = [agreement[i, group].mean() for group in groups]
        if shares and max(shares) > (AGREEMENT if clauses[i][1] == "。" else COMMA_AGREEMENT):
            groups[shares.index(max(shares))].append(i)
        elif clauses[i][1] == "。":
            groups.append([i])
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    scheme = ["-"] * len(clauses)
    for group in groups:
        letter = next(letters, "-") if len(group) > 1 else "-"
        for i in group:
            scheme[i] = letter
    return "".join(scheme)
