"""What a tune (词牌) demands: clause lengths, marks and rhyme, learned from a corpus; and whether a poem keeps them.

  python -m songci.forms --show 清平乐             the tune's templates, as text
  python -m songci.forms --check poems.txt         where the poems of a file depart from their tunes
  python -m songci.forms --rhymes                  the rhyme classes, and how well they hold on held-out poems

prepare.py learns the forms from the training split (see learnforms.py) and writes them into DATA_ROOT/forms.json. A
poem is a title line `+++tune`, perhaps with a （subtitle）, and what follows; half- or full-width marks, with stanza
lines or without.
"""

import difflib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from songci.cli import ArgumentParser, UserError, atomic_write, read_text
from songci.forms.poems import Clause, is_character, pattern, read_clauses, read_poems, tune_of


@dataclass(frozen=True)
class Template:
    """A form of a tune.

    clauses: (number of characters, "。" or "，") of each; support: poems that have it.
    scheme: a letter for each clause that ends with 。, the same for those that rhyme, "-" for one without a rhyme.
    pauses: (clause, characters before it) where some poem has 、; breaks: clauses after which most begin a new line.
    repeats: clauses with 。 whose last character is an earlier one's in a good part of the poems, as in a refrain.
    """

    clauses: tuple[tuple[int, str], ...]
    support: int
    scheme: str
    pauses: frozenset[tuple[int, int]] = frozenset()
    breaks: frozenset[int] = frozenset()
    repeats: frozenset[int] = frozenset()

    @cached_property
    def rhyme_of(self) -> list[str]:
        """The letter of each clause; "" for one that ends with ，."""
        letters = iter(self.scheme)
        return [next(letters) if mark == "。" else "" for _, mark in self.clauses]


@dataclass(frozen=True)
class Forms:
    """The templates of each tune, commonest first, and the rhyme class of each character that was seen to rhyme."""

    tunes: dict[str, list[Template]] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)

    def templates(self, tune: str) -> list[Template]:
        """Raises UserError if no form of the tune is known, with the names that were perhaps meant."""
        if tune not in self.tunes:
            close = difflib.get_close_matches(tune, self.tunes, n=3, cutoff=0.5)
            hint = f"; near names: {', '.join(close)}" if close else ""
            raise UserError(f"no form is known of the tune {tune!r}{hint}")
        return self.tunes[tune]

    def save(self, path: Path) -> None:
        """Writes forms.json."""
        by_class = defaultdict(list)
        for char, number in self.classes.items():
            by_class[number].append(char)
        content = {
            "tunes": {tune: [_to_json(t) for t in templates] for tune, templates in self.tunes.items()},
            "rhyme_classes": ["".join(by_class[number]) for number in sorted(by_class)],
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
            tunes = {tune: [_from_json(t) for t in templates] for tune, templates in content["tunes"].items()}
            classes = {char: i for i, chars in enumerate(content["rhyme_classes"]) for char in chars}
            if not all(tune and "\n" not in tune and templates for tune, templates in tunes.items()):
                raise ValueError("not tunes")
            if not all(type(char) is str and len(char) == 1 and is_character(char) for char in classes):
                raise ValueError("not rhyme classes")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            message = f"{path} is damaged ({type(error).__name__}): run prepare.py --data_root {data_root}"
            raise UserError(message) from None
        return cls(tunes, classes)


def _to_json(template: Template) -> dict:
    """form: the clauses as "4。5，"."""
    return {
        "form": "".join(f"{length}{mark}" for length, mark in template.clauses),
        "support": template.support,
        "scheme": template.scheme,
        "pauses": sorted(template.pauses),
        "breaks": sorted(template.breaks),
        "repeats": sorted(template.repeats),
    }


def _from_json(content: dict) -> Template:
    """The inverse of _to_json(). Raises ValueError, LookupError, TypeError or OverflowError for anything else."""
    form, support, scheme = content["form"], content["support"], content["scheme"]
    if not re.fullmatch(r"([1-9]\d?[。，]){1,200}", form) or type(support) is not int or len(form) > 600:
        raise ValueError("not a form")
    clauses = tuple((int(length), mark) for length, mark in re.findall(r"(\d+)([。，])", form))
    if not re.fullmatch(r"[a-z-]*", scheme) or len(scheme) != form.count("。"):
        raise ValueError("not a scheme")
    pauses = frozenset((int(clause), int(place)) for clause, place in content["pauses"])
    breaks, repeats = (frozenset(map(int, content[name])) for name in ("breaks", "repeats"))
    return Template(clauses, support, scheme, pauses, breaks, repeats)


# --- checking ---------------------------------------------------------------------------------------------------------


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


# --- the command line -------------------------------------------------------------------------------------------------


def drawn(template: Template) -> str:
    """The template as text, a sentence a line: □□□□。 with its rhyme letter, （、） where some poem pauses."""
    text = ""
    for i, ((length, mark), letter) in enumerate(zip(template.clauses, template.rhyme_of, strict=True)):
        text += "".join("□" + "（、）" * ((i, n) in template.pauses) for n in range(1, length + 1)) + mark
        text += f" {letter}".rstrip(" -") + "\n" * (1 + (i in template.breaks)) if mark == "。" else ""
    return text.rstrip("\n") + "\n"


def show(tune: str, forms: Forms) -> str:
    """The three commonest templates of a tune, drawn. Raises UserError if none is known."""
    templates = forms.templates(tune)
    total = sum(template.support for template in templates)
    parts = [f"{tune}: {len(templates)} templates in {total} poems of the training split\n"]
    for i, template in enumerate(templates[:3], start=1):
        length = sum(length for length, _ in template.clauses)
        parts.append(f"template {i}, {template.support} poems, {length} characters:\n{drawn(template)}")
    if len(templates) > 3:
        parts.append(f"and {len(templates) - 3} rarer ones\n")
    return "\n".join(parts)


def marked(tune: str, body: str, forms: Forms) -> str:
    """A poem, a sentence a line with its rhyme; where it departs from its tune, 〔the clause〕 and what was due."""
    result = check(tune, body, forms)
    if result.template is None:
        return f"+++{tune}\n  no form is known of this tune\n"
    fits = {place: (letter, ok) for letter, group in result.rhymes.items() for place, _, ok in group}
    lines, line, wrong = [], "", sum(not ok for _, ok in fits.values())
    clauses = read_clauses(body)
    for place, clause in enumerate(clauses):
        departs = result.departure is not None and result.departure[0] == place
        line += f"〔{clause.text}{clause.mark}〕" if departs else clause.text + clause.mark
        if departs:
            line += f"  <- {result.departure[1]} where the form has {result.departure[2]}  "
        if clause.mark != "，" or place == len(clauses) - 1:
            letter, ok = fits.get(place, ("", True))
            lines.append(f"  {line}  {letter}" + ("" if ok else f"  <- {clause.text[-1]} does not rhyme"))
            line = ""
    if result.departure and result.departure[0] == len(clauses):
        lines.append(f"  〔〕  <- the end where the form has {result.departure[2]}")
    verdict = "in form" if result.form else "out of form"
    rhymes = f"{wrong} character{'s' * (wrong > 1)} out of rhyme" if wrong else "every rhyme in its class"
    head = f"+++{tune}  {verdict}, {rhymes}; template of {result.template.support} poems, {result.template.scheme}"
    return "\n".join([head, *lines, ""])


def rhymes_report(forms: Forms, text: str) -> str:
    """A table of the agreement on held-out poems, by tune, and the commonest rhyming characters of each class.

    text: the whole corpus, the last tenth of which was held out.
    """
    cut = int(len(text) * 0.9)
    poems = list(read_poems(text[cut:].splitlines(keepends=True)))
    counts = agreement(poems, forms)
    lines = ["| tune | pairs in one class | pairs | share |", "|---|---|---|---|"]
    agree, pairs = (sum(count[i] for count in counts.values()) for i in (0, 1))
    commonest = sorted(counts.items(), key=lambda item: -item[1][1])[:20]
    for name, (good, total) in [*commonest, (f"all {len(counts)} tunes", (agree, pairs))]:
        lines.append(f"| {name} | {good} | {total} | {good / max(1, total):.1%} |")
    endings = Counter(clause.text[-1] for _, body in poems for clause in read_clauses(body) if clause.mark == "。")
    by_class = Counter()
    for char, times in endings.items():
        by_class[forms.classes.get(char, char)] += times  # an unknown character is a class by itself
    chance = sum(times**2 for times in by_class.values()) / max(1, endings.total()) ** 2
    lines.append(f"\nTwo of these endings at random are in one class with probability {chance:.1%}.\n")
    classes = defaultdict(list)
    for char, number in forms.classes.items():
        classes[number].append(char)
    lines += [f"{number + 1:3}  {len(chars):4} characters  {''.join(chars[:30])}" for number, chars in classes.items()]
    return "\n".join(lines)


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default="data/quansongci", help="the folder that prepare.py has filled")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--show", metavar="TUNE", help="draw the templates of a tune")
    group.add_argument("--check", metavar="FILE", help="show where the poems of a file depart from their tunes")
    group.add_argument(
        "--rhymes", action="store_true", help="show how well rhymes agree on held-out poems, and the classes"
    )
    return parser.parse_args(args)


def main() -> None:
    args = parse_args()
    forms = Forms.load(args.data_root)
    if args.show is not None:
        print(show(tune_of(args.show), forms), end="")
    elif args.rhymes:
        print(rhymes_report(forms, read_text(Path(args.data_root) / "input.txt")))
    else:
        poems = list(read_poems(read_text(Path(args.check)).splitlines(keepends=True)))
        if not poems:
            raise UserError(f"no poem in {args.check}: a poem begins with a title line such as +++清平乐")
        print("\n".join(marked(tune, body, forms) for tune, body in poems), end="")
