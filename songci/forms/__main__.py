"""What a tune (词牌) demands, as the corpus has it, and whether poems keep it.

  python -m songci.forms --show 清平乐             the tune's templates (词谱), each with a poem
  python -m songci.forms --check poems.txt         where the poems of a file depart from their tunes
  python -m songci.forms --rhymes                  the rhyme classes, and how well they hold on held-out poems

prepare.py learns the forms from the training split and writes them into DATA_ROOT/forms.json. A poem is a title line
`+++tune`, perhaps with a subject, and what follows; half- or full-width marks, with stanza lines or without, and with
the clauses of any edition, as long as they fill the template's sentences.
"""

from collections import Counter
from pathlib import Path

from songci.cli import ArgumentParser, UserError, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, Vocabulary, load_vocabulary, read_splits
from songci.forms.check import Check, agreement, check, nearest_template
from songci.forms.poems import pattern, read_clauses, read_poems, tune_of
from songci.forms.prompt import as_in_corpus
from songci.forms.render import LEGEND, as_json, drawn, outline
from songci.forms.templates import Forms, Template
from songci.forms.tones import NAMES
from songci.text import read_text

DRAWN = 3  # templates that are shown as a whole, with others of the commonest clauses


def show(tune: str, forms: Forms, poems: list[tuple[str, str]]) -> str:
    """The templates of a tune, the commonest drawn, each with the first of the poems that has it.

    Raises UserError if none is known.
    """
    templates = forms.templates(tune)
    total = sum(template.support for template in templates)
    parts = [f"{tune}: {len(templates)} templates in {total} poems of the training split\n{LEGEND}"]
    whole = {
        i: template
        for i, template in enumerate(templates, start=1)
        if i <= DRAWN or (template.clauses == templates[0].clauses and not forms.is_variant(tune, template))
    }
    examples = {}
    for name, body in poems:
        if name == tune and not whole.keys() <= examples.keys():
            clauses = read_clauses(body)
            alike = [template for template in whole.values() if template.clauses == pattern(clauses)]
            if alike:
                example, _ = nearest_template(clauses, alike, forms.level)
                examples.setdefault(templates.index(example) + 1, clauses)
    for i, template in whole.items():
        parts.append(f"{described(i, tune, template, forms)}:\n{drawn(template, examples.get(i, []))}")
    rarer = [(i, template) for i, template in enumerate(templates, start=1) if i not in whole]
    lines = [f"{described(i, tune, template, forms)}: {outline(template)}\n" for i, template in rarer]
    return "\n".join([*parts, *(["".join(lines)] if lines else [])])


def described(number: int, tune: str, template: Template, forms: Forms) -> str:
    """template 1, 307 poems, 46 characters."""
    poems = "a single poem" if template.support == 1 else f"{template.support} poems"
    variant = " (a variant: known, not written)" if forms.is_variant(tune, template) else ""
    return f"template {number}, {poems}, {sum(template.lengths)} characters{variant}"


def marked(tune: str, body: str, forms: Forms, vocabulary: Vocabulary) -> str:
    """A poem, a sentence a line with its rhyme; where it departs from its tune, 〔the clause〕 and what was due."""
    result = check(tune, body, forms)
    if result.template is None:
        why = ": the training split has no poem of it" if tune in forms.unseen else ""
        return f"+++{tune}\n  no form is known of this tune{why}\n"
    fits = {place: (letter, ok) for letter, place, ok in rhymes(result)}
    lines, line, letters, faults = [], "", "", []
    clauses = result.clauses
    for place, clause in enumerate(clauses):
        departs = result.departure is not None and result.departure[0] == place
        line += f"〔{clause.shown}〕" if departs else clause.shown
        if departs:
            faults.append(f"{result.departure[1]} where the form has {result.departure[2]}")
        for _, n, due in (fault for fault in result.wrong if fault[0] == place):
            faults.append(f"{clause.text[n]} where {due} is due")
        for refrain in (refrain for refrain, kept in result.refrains if not kept and refrain.clause == place):
            due = refrain.part(clauses[refrain.of].text)
            faults.append(f"{refrain.part(clause.text)} where {due} is repeated")
        letter, ok = fits.get(place, ("-", True))
        letters += letter
        if not ok:
            char = clause.text[-1]
            known = "does not rhyme" if place not in result.unheard else "never rhymes in the corpus"
            faults.append(f"{char} {known if char in vocabulary.chars else 'is not in the corpus'}")
        if clause.mark != "，" or place == len(clauses) - 1:
            lines.append(f"  {line}  {letters.strip('-')}".rstrip() + (f"  <- {'; '.join(faults)}" if faults else ""))
            line, letters, faults = "", "", []
        if result.form and place in result.template.breaks:
            lines.append("")
    if result.departure and result.departure[0] == len(clauses):
        lines.append(f"  〔〕  <- the end where the form has {result.departure[2]}")
    return "\n".join([f"+++{tune}  {verdict(result)}", *lines, ""])


def rhymes(result: Check) -> list[tuple[str, int, bool]]:
    """(letter, place of the clause, whether it rhymes) as far as the poem is in form: after that they mean nothing."""
    end = len(result.template.clauses) if result.form else result.departure[0]
    return [(letter, i, ok) for letter, group in result.rhymes.items() for i, _, ok in group if i < end]


def verdict(result: Check) -> str:
    """What is found of a poem, in a line."""

    def faults(number: int, of: str) -> str:
        return f"{number} character{'s' * (number > 1)} out of {of}"

    found = ["in form" if result.form else "out of form"]
    found += ["punctuated otherwise"] * result.punctuated + ["cut otherwise"] * result.cut
    bad = [place for _, place, ok in rhymes(result) if not ok]
    wrong = len(set(bad) - result.unheard)
    doubtful = len(result.doubtful & {place for _, place, _ in rhymes(result)})
    if wrong:
        found.append(faults(wrong, "rhyme"))
    elif not doubtful:
        found.append("every rhyme in its class" + (f" but for {len(bad)} that the corpus never rhymes" if bad else ""))
    if doubtful:
        found.append(f"{faults(doubtful, 'rhyme')} where too few poems rhyme to tell")
    found += [f"rhymes {one} and {other} do not go together" for one, other in result.apart if result.form]
    if result.turned:
        own, due = (NAMES[tone] for tone in (result.turned, "平仄".replace(result.turned, "")))
        found.append(f"a variant with {own} rhymes for {due} ones, whose tones are not known")
    elif result.tones:
        found.append(faults(len(result.wrong), "tone") if result.wrong else "every tone kept")
    missing = sum(not kept for _, kept in result.refrains)
    found += [f"{missing} refrain{'s' * (missing > 1)} missing"] * (missing > 0)
    template = result.template
    return f"{', '.join(found)}; template {result.number} of {template.support} poems, {template.scheme}"


def rhymes_report(forms: Forms, val_text: str) -> str:
    """A table of the agreement on held-out poems, by tune, and the commonest rhyming characters of each class."""
    poems = list(read_poems(val_text))
    counts = agreement(poems, forms)
    lines = ["| tune | pairs in one class | pairs | share |", "|---|---|---|---|"]
    agree, pairs = (sum(count[i] for count in counts.values()) for i in (0, 1))
    commonest = sorted(counts.items(), key=lambda item: -item[1][1])[:20]
    for name, (good, total) in [*commonest, (f"all {len(counts)} tunes", (agree, pairs))]:
        lines.append(f"| {name} | {good} | {total} | {good / max(1, total):.1%} |")
    endings = Counter(clause.text[-1] for _, body in poems for clause in read_clauses(body) if clause.mark == "。")
    by_class = Counter()
    for char, times in endings.items():
        by_class[forms.classes.get(char, (char,))[0]] += times  # an unknown character is a class by itself
    chance = sum(times**2 for times in by_class.values()) / max(1, endings.total()) ** 2
    lines.append(f"\nTwo of these endings at random are in one class with probability {chance:.1%}.\n")
    for number, tone in enumerate(forms.class_tones):
        first, second = (
            [char for char, own in forms.classes.items() if number in own and (number == own[0]) == is_first]
            for is_first in (True, False)
        )
        also = f"  also {''.join(second[:10])}" if second else ""
        lines.append(f"{number + 1:3} {tone} {len(first):4} characters  {''.join(first[:30])}{also}")
    return "\n".join(lines)


def parse_args(args=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--show", metavar="TUNE", help="draw the templates of a tune")
    group.add_argument("--check", metavar="FILE", help="show where the poems of a file depart from their tunes")
    group.add_argument(
        "--rhymes", action="store_true", help="show how well rhymes agree on held-out poems, and the classes"
    )
    parser.add_argument("--format", default="text", choices=["text", "json"], help="json: of --show, for programs")
    args = parser.parse_args(args)
    if args.format == "json" and args.show is None:
        parser.error("--format json is of --show alone")
    return args


def main() -> None:
    args = parse_args()
    forms = Forms.load(args.data_root)
    vocabulary = load_vocabulary(args.data_root)  # says if the text is another one now
    if args.show is not None:
        tune = tune_of(as_in_corpus(f"+++{tune_of(args.show)}", vocabulary))
        if args.format == "json":
            print(as_json(forms.templates(tune)), end="")
            return
        training, _ = read_splits(args.data_root)
        print(show(tune, forms, list(read_poems(training))), end="")
    elif args.rhymes:
        print(rhymes_report(forms, read_splits(args.data_root)[1]))
    else:
        content = as_in_corpus(read_text(Path(args.check)), vocabulary)
        poems = list(read_poems(content))
        if not poems:
            raise UserError(f"no poem in {args.check}: a poem begins with a title line such as +++清平乐")
        print("\n".join(marked(tune, body, forms, vocabulary) for tune, body in poems), end="")


if __name__ == "__main__":
    run(main)
