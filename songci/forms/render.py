"""A tune's template (词谱) as text for people, and as JSON for programs."""

from songci.forms.poems import Clause
from songci.forms.templates import Template
from songci.text import to_json

# On a terminal these signs are as wide as a letter, a Chinese character or mark as two: with a blank they are aligned
SIGNS = {"平": "○ ", "仄": "● ", "中": "◎ "}
LEGEND = "○ level, ● oblique, ◎ either or not known, □ no tones known; letters: rhymes; 、 where some poem pauses\n"


def drawn(template: Template, poem: list[Clause] = ()) -> str:
    """The template as text, a sentence a line with its rhyme letter, a stanza apart; under each line that of a poem."""
    signs = iter([SIGNS[tone] for tone in template.tones] or ["□ "] * sum(template.lengths))
    lines, above, below, letters = [], "", "", ""
    for i, (length, mark) in enumerate(template.clauses):
        for n in range(length):
            if n and (i, n) in template.pauses:
                above += "、"
                below += "、" if poem and n in poem[i].pauses else "　"
            above += next(signs)
            below += poem[i].text[n] if poem else ""
        above, below, letters = above + mark, below + mark, letters + template.scheme[i]
        if mark == "。":
            lines += [f"{above} {letters.strip('-')}".rstrip(), *([below] if poem else [])]
            lines += [""] * (i in template.breaks)
            above = below = letters = ""
    return "\n".join(lines) + "\n"


def outline(template: Template) -> str:
    """The lengths and marks of its clauses, with | between the stanzas: 4。5。7。6。|6。6。6，6。"""
    clauses = enumerate(template.clauses)
    return "".join(f"{length}{mark}" + "|" * (i in template.breaks) for i, (length, mark) in clauses)


def stanzas(template: Template) -> list[int]:
    """The number of clauses in each stanza."""
    ends = [*sorted(i + 1 for i in template.breaks), len(template.clauses)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def as_json(templates: list[Template]) -> str:
    """For programs: a list with the clauses, tones, rhymes and stanzas of each template, and its number of poems."""
    content = [
        {
            "clauses": template.clauses,
            "tones": template.tones,
            "rhyme": template.scheme,
            "stanzas": stanzas(template),
            "support": template.support,
        }
        for template in templates
    ]
    return to_json(content) + "\n"
