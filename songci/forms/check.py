"""Whether a poem keeps its tune: the first clause that departs from its best template, and which rhymes fit."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from songci.forms.poems import Clause, pattern, read_clauses
from songci.forms.templates import Forms, Template


@dataclass(frozen=True)
class Check:
    """How a poem keeps its tune.

    template: the best one, None if none is known of the tune; departure: (place of the first clause that departs from
    it, what stands there, what should), None if the poem is in form; rhymes: {letter: [(place of the clause, its last
    character, whether it is in the group's class)]}; the group's class is the commonest in it.
    """

    tune: str
    template: Template | None
    departure: tuple[int, str, str] | None
    rhymes: dict[str, list[tuple[int, str, bool]]]

    @property
    def form(self) -> bool:
        """In form: in all clauses that of a template."""
        return self.template is not None and self.departure is None

    @property
    def rhyme(self) -> bool:
        """In form, and every group in one class."""
        return self.form and all(fits for group in self.rhymes.values() for _, _, fits in group)


def check(tune: str, body: str, forms: Forms) -> Check:
    """Compares a poem with the templates of its tune, of which the best shares the most leading clauses with it."""
    clauses = read_clauses(body)
    found = pattern(clauses)
    templates = forms.tunes.get(tune, [])
    if not templates:
        return Check(tune, None, None, {})

    def shared(template: Template) -> int:
        pairs = zip(found, template.clauses, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(template.clauses)))

    def rank(template: Template) -> tuple:
        return template.clauses == found, shared(template), template.support

    best = max(templates, key=rank)
    departure = None
    if best.clauses != found:
        place = shared(best)
        have, want = (
            f"{form[place][0]}{form[place][1]}" if place < len(form) else "the end" for form in (found, best.clauses)
        )
        departure = (place, have, want)
    return Check(tune, best, departure, _rhymes(clauses, best, forms.classes))


def _rhymes(clauses: list[Clause], template: Template, classes: dict[str, int]) -> dict[str, list]:
    """The groups of a poem's rhymes, as in Check.rhymes, as far as the poem has the template's clauses."""
    groups = defaultdict(list)
    for place, (clause, letter) in enumerate(zip(clauses, template.rhyme_of, strict=False)):
        if letter not in ("", "-"):
            groups[letter].append((place, clause.text[-1]))
    rhymes = {}
    for letter, members in groups.items():
        known = Counter(classes[char] for _, char in members if char in classes)
        of_group = known.most_common(1)[0][0] if known else None
        # A character that the corpus never rhymes proves neither a fault nor a rhyme: it counts as not fitting
        fits = [char in classes and classes[char] == of_group for _, char in members]
        rhymes[letter] = [(place, char, fit) for (place, char), fit in zip(members, fits, strict=True)]
    return rhymes


def rhyme_pairs(result: Check, forms: Forms) -> list[bool]:
    """For any two neighbouring rhymes of a group that are different characters: whether they are in one class.

    A character without a class is never in the other's.
    """
    pairs = [pair for group in result.rhymes.values() for pair in pairwise(char for _, char, _ in group)]
    return [a in forms.classes and forms.classes[a] == forms.classes.get(b) for a, b in pairs if a != b]


def agreement(poems: Iterable[tuple[str, str]], forms: Forms) -> dict[str, tuple[int, int]]:
    """{tune: (pairs in one class, pairs)} of neighbouring rhymes, in the poems that are in form."""
    counts = defaultdict(lambda: (0, 0))
    for tune, body in poems:
        result = check(tune, body, forms)
        if result.form:
            pairs = rhyme_pairs(result, forms)
            counts[tune] = (counts[tune][0] + sum(pairs), counts[tune][1] + len(pairs))
    return dict(counts)
