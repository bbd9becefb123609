"""The poem on the page: its text, in which □ is a character to be written, as HTML, as a picture, as JSON."""

import io
import json
from html import escape
from itertools import accumulate

from matplotlib.figure import Figure  # not pyplot, which would look for a display

from songci import fonts
from songci.forms.check import Check, check
from songci.forms.poems import BLANK, MARKS, is_character, split_title
from songci.forms.templates import Forms, Template
from songci.forms.tones import NAMES, tone_of

COLUMN = 14  # characters of a column in the picture


def parts(text: str) -> tuple[str, str]:
    """The title, without +++, and the body."""
    title, _, body = text.partition("\n")
    return title.removeprefix("+++"), body


def checked(text: str, forms: Forms) -> Check:
    title, body = parts(text)
    return check(split_title(title)[0], body, forms)


def clause_around(text: str, at: int) -> range:
    """The places of the clause that has the character at a place."""
    ends = [i for i, char in enumerate(text) if MARKS.get(char, "、") != "、" or char == "\n"]
    return range(max([i for i in ends if i < at], default=-1) + 1, min([i for i in ends if i > at], default=len(text)))


def with_chars(text: str, places, char: str = BLANK) -> str:
    """The text with a character put into each of the places that has one."""
    return "".join(char if i in places and is_character(old) else old for i, old in enumerate(text))


def pattern(template: Template) -> str:
    """A template as a draft that is all blanks, a line a stanza."""
    clauses = enumerate(template.clauses)
    return "".join(BLANK * length + mark + "\n" * (i in template.breaks) for i, (length, mark) in clauses)


def as_html(text: str, forms: Forms, at: int | None = None, name: str = "") -> str:
    """The poem, a paragraph a stanza, each character with its place and its tone, rhyme and faults; `at` is framed."""
    (title, body), result = parts(text), checked(text, forms)
    start = len(text) - len(body)
    places = [i for i in range(start, len(text)) if is_character(text[i])]
    ends = [0, *accumulate(len(clause.text) for clause in result.clauses)]
    classes = {i: {NAMES.get(tone_of(text[i], forms.level), "")} for i in places}
    for clause, n, _ in result.wrong:
        classes[places[ends[clause] + n]].add("fault")
    for group in result.rhymes.values():
        for clause, char, fits in group:
            classes[places[ends[clause + 1] - 1]] |= {"rhyme", "" if fits or char == BLANK else "fault"}
    if at in classes:
        classes[at].add("chosen")
    shown = ["<p><b>"]
    for i in range(start, len(text.rstrip("\n"))):
        marks = {"\n": "</b></p><p><b>", "。": "。</b><b>"}
        kinds = " ".join(sorted(classes.get(i, ())))
        char = marks.get(text[i], escape(text[i]))
        shown.append(f'<span data-i="{i}" class="{kinds}">{char}</span>' if i in classes else char)
    return f'<div class="poem" data-poem="{name}"><h3>{escape(title)}</h3>{"".join(shown)}</b></p></div>'


def as_json(text: str, forms: Forms, run: str) -> str:
    """A line of JSON: the poem, its tune, what is known of its form, and the run that wrote it."""
    result, (tune, subject) = checked(text, forms), split_title(parts(text)[0])
    found = {"tune": tune, "subject": subject or None, "text": text, "template": result.number, "form": result.form}
    return json.dumps(found | {"rhyme": result.rhyme, "tone": result.tone, "run": run}, ensure_ascii=False) + "\n"


def as_png(text: str) -> bytes:
    """The poem set vertically, from right to left, its title first, marks beside the characters that they follow."""
    found, columns = fonts.find(text), []
    for line in filter(None, "\n".join(parts(text)).split("\n")):
        cells: list[str] = []
        for char in line:
            if char in MARKS and cells:
                cells[-1] += char
            else:
                cells.append(char)
        columns += [cells[i : i + COLUMN] for i in range(0, len(cells), COLUMN)]
    width, height = len(columns) + 1, max(map(len, columns)) + 1
    figure = Figure(figsize=(0.42 * width, 0.42 * height), facecolor="#fbf8f0")
    for x, column in enumerate(columns, start=1):
        for y, (char, *mark) in enumerate(column, start=1):
            for part, right, down, size in ((char, 0, 0, 17), ("".join(mark), 0.42, 0.3, 11)):
                style = {"fontsize": size, "family": found.families, "ha": "center", "va": "center"}
                figure.text(1 - (x - right) / width, 1 - (y + down) / height, found.shown(part), **style)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
