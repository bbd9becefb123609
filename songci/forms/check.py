"""Whether a poem keeps its tune: the first clause that departs from its best template, its rhymes and its tones."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from songci.forms.groups import apart
from songci.forms.poems import Clause, cuts, pattern, read_clauses, recut
from songci.forms.refrains import Refrain, always
from songci.forms.rhymes import common_class
from songci.forms.templates import Forms, Template
from songci.forms.tones import EITHER, contrary, nearness, tone_of

MIN_PART = 0.03  # of the poems that a poem's characters fit, for a form to go by its marks alone before a commoner one
MIN_TURNED, TURNED = 3, 0.75  # rhymes of the other tone that tell a variant, and their share of those of one tone


@dataclass(frozen=True)
class Check:
    """How a poem keeps its tune.

    clauses: the poem's; of one that is cut otherwise, as the template has them.
    template: the best one, None if none is known of the tune; number: its number in the tune, from 1.
    departure: (place of the first clause that departs from it, what stands there, what should), None if the poem is in
    form; punctuated: whether it is in form but for 。 where the template has ，, or the other way round.
    cut: whether it is in form, for its characters fill the template's sentences, but with other marks within them.
    rhymes: {letter: [(place of the clause, its last character, whether it is in the group's class)]}; the group's class
    is the commonest in it. doubtful: the places of those that are not, but that too few poems show to be a fault; they
    count as if they were. unheard: the clauses among these whose last character the corpus never rhymes: they count as
    not fitting, but prove no fault. turned: the tone of the poem's rhymes, if those of the template have the other one.
    classes: that of each group, -1 if none of its characters has any. apart: (letter, letter) of groups whose classes
    do not go together; none of a poem with `turned` rhymes. refrains: of a poem in form, those that belong to its
    template, and whether they are kept.
    tones: of a poem in form, (place of the clause, place in it, the tone due, whether it is kept) for each fixed place
    with a character of one tone; of one with `turned` rhymes, none, for its tones are others throughout.
    """

    tune: str
    clauses: list[Clause] = field(default_factory=list)
    template: Template | None = None
    number: int | None = None
    departure: tuple[int, str, str] | None = None
    punctuated: bool = False
    cut: bool = False
    doubtful: frozenset[int] = frozenset()
    turned: str = ""
    rhymes: dict[str, list[tuple[int, str, bool]]] = field(default_factory=dict)
    tones: list[tuple[int, int, str, bool]] = field(default_factory=list)
    unheard: frozenset[int] = frozenset()
    classes: dict[str, int] = field(default_factory=dict)
    apart: tuple[tuple[str, str], ...] = ()
    refrains: tuple[tuple[Refrain, bool], ...] = ()

    @property
    def form(self) -> bool:
        """In form: all clauses have the lengths of a template's, or all sentences, if they are cut otherwise."""
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
    """Compares a poem with the template of its tune that is nearest to it."""
    clauses = read_clauses(body)
    if tune not in forms.tunes or not forms.tunes[tune]:
        return Check(tune, clauses)
    best, kind = nearest_template(clauses, forms.tunes[tune], forms.level)
    number, found = forms.tunes[tune].index(best) + 1, pattern(clauses)
    departure, tones, turned = None, [], ""
    if kind == CUT:
        clauses = recut(clauses, best.clauses)
    if kind:
        turned = _turned(clauses, best, forms.level)
        tones = [] if turned else _tones(clauses, best, forms.level)
    else:
        place = shared(clauses, best)
        have, want = ("{}{}".format(*form[place]) if place < len(form) else "the end" for form in (found, best.clauses))
        departure = (place, have, want)
    rhymes, classes = _rhymes(clauses, best, forms)
    unproved = forms.doubtful(tune, best)
    doubtful = frozenset(
        place
        for group in rhymes.values()
        for place, char, fits in group
        if not fits and (best.ends[place] in unproved or contrary(tone_of(char, forms.level), turned))
    )
    rhymes = {letter: [(i, c, fits or i in doubtful) for i, c, fits in group] for letter, group in rhymes.items()}
    never = {i for group in rhymes.values() for i, char, _ in group if char not in forms.classes}
    marks = kind == SAME and best.clauses != found
    unheard = frozenset(never - doubtful)
    in_order = [classes.get(letter, -1) for letter in best.letters]
    pairs = [] if turned else apart(in_order, best.joint, best.bound)
    badly = tuple((best.letters[i], best.letters[j]) for i, j in pairs)
    fit = clauses, best, number, departure, marks, kind == CUT
    texts = [clause.text for clause in clauses]
    refrains = [] if kind == OTHER else always(best.refrains, best.support)
    kept = tuple((refrain, refrain.kept(texts)) for refrain in refrains)
    return Check(tune, *fit, doubtful, turned, rhymes, tones, unheard, classes, badly, kept)


OTHER, CUT, SAME = range(3)  # a poem's clauses beside a template's: others, the same sentences, the same


def nearest_template(clauses: list[Clause], templates: list[Template], level: dict[str, float]) -> tuple[Template, int]:
    """The template that is nearest to a poem, and how near it is: SAME, CUT or OTHER.

    Editions punctuate differently. So of templates whose clauses or sentences the poem fills, those of few poems beside
    the others', which may be a scribe's or an editor's, are left; of the rest one with the least difference of marks
    is taken, then the one whose tones the poem keeps best, then the best supported. Where the poem fills none, the one
    that shares the most leading clauses with it.
    """
    text = "".join(clause.text for clause in clauses)
    marks = cuts(clauses)
    lengths = tuple(len(clause.text) if clause.mark else None for clause in clauses)  # without a mark: not at its end
    kinds = [
        SAME if template.lengths == lengths else CUT if fills(marks, text, template) else OTHER
        for template in templates
    ]
    kind = max(kinds)
    filled = [template for template, own in zip(templates, kinds, strict=True) if own == kind]
    if kind == OTHER:
        return max(filled, key=lambda template: (shared(clauses, template), template.support)), kind
    poems = Counter()
    for template in filled:
        poems[template.clauses] += template.support

    def rank(template: Template) -> tuple:
        own = dict(zip(template.ends, (mark for _, mark in template.clauses), strict=True))
        differ = sum(marks.get(end) != own.get(end) for end in {*own, *marks} if end in own or marks[end] != "、")
        common = poems[template.clauses] >= MIN_PART * poems.total()
        return common, -differ, nearness(text, template.tones, level), template.support

    return max(filled, key=rank), kind


def fills(marks: dict[int, str], text: str, template: Template) -> bool:
    """Whether a poem has the template's characters, and some mark wherever a sentence of that or a rhyme ends."""
    return len(text) == template.ends[-1] and template.firm <= marks.keys()


def shared(clauses: list[Clause], template: Template) -> int:
    """The number of leading clauses of a poem that are as long as the template's."""
    lengths = [len(clause.text) if clause.mark else None for clause in clauses]
    pairs = zip(lengths, template.lengths, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(lengths), len(template.lengths)))


def _turned(clauses: list[Clause], template: Template, level: dict[str, float]) -> str:
    """Check.turned of a poem that has the template's clauses: by the longest group of rhymes."""
    letter = template.longest_group
    ends = (clause.text[-1] for clause, own in zip(clauses, template.rhyme_of, strict=True) if own == letter)
    tones = [tone for tone in (tone_of(char, level) for char in ends) if tone != EITHER]
    turned = [tone for tone in tones if contrary(tone, template.rhyme_tone(letter))] if letter else []
    return turned[0] if len(turned) >= max(MIN_TURNED, TURNED * len(tones)) else ""


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
