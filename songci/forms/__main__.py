"""What a tune (词牌) demands, as the corpus has it, and whether poems keep it.

  python -m songci.forms --show 清平乐             the tune's templates, as text
  python -m songci.forms --check poems.txt         where the poems of a file depart from their tunes
  python -m songci.forms --rhymes                  the rhyme classes, and how well they hold on held-out poems

prepare.py learns the forms from the training split and writes them into DATA_ROOT/forms.json. A poem is a title line
`+++tune`, perhaps with a （subtitle）, and what follows; half- or full-width marks, with stanza lines or without.
"""

from collections import Counter, defaultdict
from pathlib import Path

from songci.cli import ArgumentParser, UserError, read_text, run
from songci.corpus.vocabulary import DEFAULT_DATA_ROOT, load_vocabulary
from songci.forms.check import agreement, check
from songci.forms.poems import read_clauses, read_poems, tune_of
from songci.forms.templates import Forms, Template


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
    parser.add_argument("--data_root", default=DEFAULT_DATA_ROOT, help="the folder that prepare.py has filled")
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
        load_vocabulary(args.data_root)  # says if the text is another one now
        print(rhymes_report(forms, read_text(Path(args.data_root) / "input.txt")))
    else:
        poems = list(read_poems(read_text(Path(args.check)).splitlines(keepends=True)))
        if not poems:
            raise UserError(f"no poem in {args.check}: a poem begins with a title line such as +++清平乐")
        print("\n".join(marked(tune, body, forms) for tune, body in poems), end="")


if __name__ == "__main__":
    run(main)
