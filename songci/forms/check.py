"""Whether a poem keeps its tune: the first clause that departs from its best template, its rhymes and its tones."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from songci.forms.groups import apart
from songci.forms.poems import Clause, pattern, read_clauses
from songci.forms.refrains import Refrain, always
from songci.forms.rhymes import common_class
from songci.forms.templates import Forms, Template
from songci.forms.tones import EITHER, contrary, nearness, tone_of


@dataclass(frozen=True)
class Check:
    """How a poem keeps its tune.

    template: the best one, None if none is known of the tune; number: its number in the tune, from 1.
    departure: (place of the first clause that departs from it, what stands there, what should), None if the poem is in
    form; punctuated: whether it is in form but for 。 where the template has ，, or the other way round.
    rhymes: {letter: [(place of the clause, its last character, whether it is in the group's class)]}; the group's class
    is the commonest in it. unheard: the clauses among these whose last character the corpus never rhymes: they count as
    not fitting, but prove no fault. classes: that of each group, -1 if none of its
    characters has any. apart: (letter, letter) of groups whose classes do not go together.
    refrains: of a poem in form, those that belong to its template, and whether they are kept.
    tones: of a poem in form, (place of the clause, place in it, the tone due, whether it is kept) for each fixed place
    with a character of one tone.
    """

    tune: str
    template: Template | None = None
    number: int | None = None
    departure: tuple[int, str, str] | None = None
    punctuated: bool = False
    rhymes: dict[str, list[tuple[int, str, bool]]] = field(default_factory=dict)
    tones: list[tuple[int, int, str, bool]] = field(default_factory=list)
    unheard: frozenset[int] = frozenset()
    classes: dict[str, int] = field(default_factory=dict)
    apart: tuple[tuple[str, str], ...] = ()
    refrains: tuple[tuple[Refrain, bool], ...] = ()

    @property
    def form(self) -> bool:
        """In form: all clauses have the lengths of a template's."""
        return self.template is not None and self.departure is None

    @property
    def rhyme(self) -> bool:
        """In form, and every group in one class, and in one that goes with those of the others."""
        return self.form and not self.apart and all(fits for group in self.rhymes.values() for _, _, fits in group)

    @property
    def wrong(self) -> list[tuple[int, int, str]]:
        """(place of the clause, place in it, the tone due) of the characters out of tone."""
        return [(i, n, due) for i, n, due, keeps in self.tones if not keeps]

    @property
    def tone(self) -> float | None:
        """The share of the fixed places that are kept; None if there are none."""
        return 1 - len(self.wrong) / len(self.tones) if self.tones else None


def check(tune: str, body: str, forms: Forms) -> Check:
    """Compares a poem with the templates of its tune, of which the best shares the most leading clauses with it.

    Editions punctuate differently: where the lengths are those of several templates, one with the poem's marks is taken
    if there is any; of those left, the one whose tones the poem keeps best, or else the best supported.
    """
    clauses = read_clauses(body)
    found = pattern(clauses)
    templates = forms.tunes.get(tune, [])
    if not templates:
        return Check(tune)
    text = "".join(clause.text for clause in clauses)
    lengths = tuple(length if mark else None for length, mark in found)  # a clause without a mark is not at its end

    def shared(template: Template) -> int:
        pairs = zip(lengths, template.lengths, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(lengths), len(template.lengths)))

    def rank(template: Template) -> tuple:
        same = template.lengths == lengths
        near = nearness(text, template.tones, forms.level) if same else 0
        return template.clauses == found, same, shared(template), near, template.support

    best = max(templates, key=rank)
    departure, in_form = None, best.lengths == lengths
    if not in_form:
        place = shared(best)
        have, want = ("{}{}".format(*form[place]) if place < len(form) else "the end" for form in (found, best.clauses))
        departure = (place, have, want)
    rhymes, classes = _rhymes(clauses, best, forms)
    in_order = [classes.get(letter, -1) for letter in best.letters]
    badly = tuple((best.letters[i], best.letters[j]) for i, j in apart(in_order, best.joint, best.bound))
    tones = _tones(clauses, best, forms.level) if in_form else []
    unheard = frozenset(i for group in rhymes.values() for i, char, _ in group if char not in forms.classes)
    texts = [clause.text for clause in clauses]
    refrains = tuple((refrain, refrain.kept(texts)) for refrain in always(best.refrains, best.support) if in_form)
    number = templates.index(best) + 1
    punctuated = in_form and best.clauses != found
    return Check(tune, best, number, departure, punctuated, rhymes, tones, unheard, classes, badly, refrains)


def _tones(clauses: list[Clause], template: Template, level: dict[str, float]) -> list[tuple[int, int, str, bool]]:
    """Check.tones of a poem that has the template's clauses."""
    places = [(i, n, tone_of(char, level)) for i, clause in enumerate(clauses) for n, char in enumerate(clause.text)]
    pairs = zip(places, template.tones, strict=False)  # "" if no tones are known
    return [(i, n, due, tone == due) for (i, n, tone), due in pairs if EITHER not in (tone, due)]


def _rhymes(clauses: list[Clause], template: Template, forms: Forms) -> tuple[dict[str, list], dict[str, int]]:
    """Check.rhymes and Check.classes, as far as the poem has the template's clauses."""
    groups = defaultdict(list)
    for place, (clause, letter) in enumerate(zip(clauses, template.rhyme_of, strict=False)):
        if letter:
            groups[letter].append((place, clause.text[-1]))
    rhymes, classes = {}, {}
    for letter, members in groups.items():
        tone = template.rhyme_tone(letter)
        in_tone = [number for number, own in enumerate(forms.class_tones) if not contrary(tone, own)]
        of_group = common_class([char for _, char in members], forms.classes, in_tone)
        fits = [of_group in forms.classes.get(char, ()) for _, char in members]
        rhymes[letter] = [(place, char, fit) for (place, char), fit in zip(members, fits, strict=True)]
        classes[letter] = -1 if of_group is None else of_group
    return rhymes, classes


def rhyme_pairs(result: Check, forms: Forms) -> list[bool]:
    """For any two neighbouring rhymes of a group that are different characters: whether some class has both.

    A character without a class is never in the other's.
    """
    pairs = [pair for group in result.rhymes.values() for pair in pairwise(char for _, char, _ in group)]
    own = forms.classes
    return [not set(own.get(a, ())).isdisjoint(own.get(b, ())) for a, b in pairs if a != b]


def agreement(poems: Iterable[tuple[str, str]], forms: Forms) -> dict[str, tuple[int, int]]:
    """{tune: (pairs in one class, pairs)} of neighbouring rhymes, in the poems that are in form."""
    counts = defaultdict(lambda: (0, 0))
    for tune, body in poems:
        result = check(tune, body, forms)
        if result.form:
            pairs = rhyme_pairs(result, forms)
            counts[tune] = (counts[tune][0] + sum(pairs), counts[tune][1] + len(pairs))
    return dict(counts)
