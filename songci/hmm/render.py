r"""Documents of headings, text, formulas and tables, printed as text for a terminal, as Markdown, or as LaTeX.

Formulas are written once, in a small subset of LaTeX: `\alpha_{2}(1) = 0.2 \cdot 0.6 = \frac{3}{25}`. Names that a user
has given, of states for example, stand in them as `name("…")`, because each format has other special characters.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

FRACTION_LENGTH = 16  # longer fractions, in characters, are not shown


class Heading(NamedTuple):
    text: str


class Text(NamedTuple):
    text: str  # may hold names, and nothing else of LaTeX


class Formulas(NamedTuple):
    lines: list[str]


class Table(NamedTuple):
    title: str  # a formula, or ""
    header: list[str]  # formulas
    rows: list[list[str]]  # formulas


def name(text: str) -> str:
    """A name that a user has given, marked as such for a formula or a text."""
    return f"\ue000{text}\ue001"


def render(document: list, style: str) -> str:
    """The blocks of `document` in one of the FORMATS."""
    text = "\n\n".join(FORMATS[style][type(block)](block) for block in document)
    return f"{PREAMBLE}{text}\n\n\\end{{document}}" if style == "latex" else text


# Numbers, as formulas.


def decimal(x: Fraction) -> tuple[str, bool]:
    """`x` with at most 10 digits and whether that is exact; with 6 digits if it is not."""
    text = format(Decimal(x.numerator) / Decimal(x.denominator), ".10g") if x else "0"
    if Fraction(text) == x:
        return _power(text), True
    return _power(format(Decimal(x.numerator) / Decimal(x.denominator), ".6g")), False


def _power(text: str) -> str:
    digits, _, exponent = text.partition("e")
    return rf"{digits} \cdot 10^{{{int(exponent)}}}" if exponent else digits


def _fraction(x: Fraction) -> str:
    return rf"\frac{{{x.numerator}}}{{{x.denominator}}}" if len(str(x)) <= FRACTION_LENGTH else ""


def equals(x: Fraction) -> str:
    """= decimal = fraction, or = fraction ≈ decimal if the decimal is not exact."""
    (digits, whole), fraction = decimal(x), _fraction(x)
    if x.denominator == 1:
        return f"= {x}"
    if whole:
        return f"= {digits}" + (f" = {fraction}" if fraction else "")
    return (f"= {fraction} " if fraction else "") + rf"\approx {digits}"


def operand(x: Fraction) -> str:
    """A number in a formula: a decimal if that is exact, else a fraction if that is short, else a rounded decimal."""
    digits, whole = decimal(x)
    return digits if whole or not _fraction(x) else _fraction(x)


def times(*factors: Fraction) -> str:
    """The product, as a formula."""
    return r" \cdot ".join(map(operand, factors))


def log_number(log_p: float) -> str:
    """A probability from its logarithm, with 6 digits; it may be below the range of floats."""
    if log_p == -math.inf:
        return "0"
    return _power(format(math.exp(log_p) if log_p > -700 else Decimal(float(log_p)).exp(), ".6g"))


# Text for a terminal, with the characters that Unicode has for formulas.

SIGNS = {"cdot": "·", "mid": "|", "approx": "≈", "sum": "Σ", "max": "max", "lambda": "λ", "pi": "π"}
SIGNS |= {"alpha": "α", "beta": "β", "gamma": "γ", "xi": "ξ", "delta": "δ", "psi": "ψ", "to": "→", "ldots": "…"}
LOW = dict(zip("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
HIGH = dict(zip("0123456789+-*", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻*", strict=True))


def _apart(text: str, formula: Callable[[str], str], a_name: Callable[[str], str]) -> str:
    """The text with `formula` applied to its formulas and `a_name` to its names."""
    parts = re.split("\ue000(.*?)\ue001", text)  # every second part is a name
    return "".join(a_name(part) if i % 2 else formula(part) for i, part in enumerate(parts))


def plain(formula: str) -> str:
    """A formula as plain text: \\alpha_{2}(1) is α₂(1)."""
    return _apart(formula, _plain, str)


def _plain(formula: str) -> str:
    formula = re.sub(r"\\operatorname\{(\w+)\}", r"\1", formula)
    formula = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\1/\2", formula)
    formula = re.sub(r" ?\\cdot ?", "·", formula)
    formula = re.sub(r"\\([a-z]+)", lambda sign: SIGNS[sign[1]], formula).replace(r"\%", "%")
    formula = re.sub(r"\^(\{[^{}]*\}|\S)", lambda power: _shift(power[1], HIGH, "^"), formula)
    return re.sub(r"_(\{[^{}]*\}|\w)", lambda index: _shift(index[1], LOW, "_"), formula)


def _shift(text: str, characters: dict, otherwise: str) -> str:
    text = text.strip("{}")
    if all(char in characters for char in text):
        return "".join(characters[char] for char in text)
    return otherwise + (text if len(text) == 1 else f"{{{text}}}")


def width(text: str) -> int:
    """Columns that a text takes on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _text_heading(block: Heading) -> str:
    return f"{plain(block.text)}\n{'-' * width(plain(block.text))}"


def _text_formulas(block: Formulas) -> str:
    return "\n".join("  " + plain(line) for line in block.lines)


def _text_table(block: Table) -> str:
    rows = [[plain(cell) for cell in row] for row in (block.header, *block.rows)]
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    padded = [[" " * (size - width(cell)) + cell for size, cell in zip(widths, row, strict=True)] for row in rows]
    return "\n".join([*filter(None, [plain(block.title)]), *("  " + "   ".join(row) for row in padded)])


# Markdown, with formulas between dollar signs, as GitHub and Jupyter show them.


def _latex(formula: str) -> str:
    return _apart(formula, str, lambda text: rf"\text{{{_escaped(text)}}}")


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(char, "\\" + char if char in "#$%&_{}" else char) for char in text)


def _markdown_name(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|$~])", r"\\\1", text)


def _markdown_cell(formula: str) -> str:
    if not formula or not re.search(r"[\\_^=(]|\d", _apart(formula, str, lambda _: "")):
        return _apart(formula, str, _markdown_name)
    return f"${_latex(formula)}$".replace("|", r"\vert ")


def _markdown_text(text: str) -> str:
    return _apart(text, str, _markdown_name)


def _markdown_table(block: Table) -> str:
    header, *rows = ([_markdown_cell(cell) for cell in row] for row in (block.header, *block.rows))
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    title = [f"${_latex(block.title)}$\n"] if block.title else []
    return "\n".join([*title, *(f"| {' | '.join(line)} |" for line in lines)])


# LaTeX: a whole document for XeLaTeX; its class ctexart brings the Chinese fonts.

PREAMBLE = r"""\documentclass{ctexart}
\usepackage{amsmath}
\usepackage[margin=2cm]{geometry}
\allowdisplaybreaks
\begin{document}
"""


def _latex_text(text: str) -> str:
    return _apart(text, lambda part: re.sub("[Ͱ-Ͽ]", _greek, _escaped(part)), _escaped)


def _greek(letter: re.Match) -> str:
    return next((rf"$\{sign}$" for sign, char in SIGNS.items() if char == letter[0]), letter[0])


def _latex_math(formula: str) -> str:
    """A formula between dollar signs; a name alone needs none."""
    if not formula or re.fullmatch("\ue000[^\ue000]*\ue001", formula):
        return _apart(formula, str, _escaped)
    return f"${_latex(formula)}$"


def _latex_formulas(block: Formulas) -> str:
    lines = [_latex(line).replace("=", "&=", 1) for line in block.lines]
    return "\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}"


def _latex_table(block: Table) -> str:
    rows = [" & ".join(map(_latex_math, row)) + r" \\" for row in (block.header, *block.rows)]
    rows.insert(1, r"\hline")
    table = [rf"\begin{{tabular}}{{l{'r' * (len(block.header) - 1)}}}", *rows, r"\end{tabular}"]
    title = [f"${_latex(block.title)}$", ""] if block.title else []
    return "\n".join([r"\par\medskip\noindent", *title, *table])


FORMATS = {  # how each kind of block is printed
    "text": {
        Heading: _text_heading,
        Text: lambda block: plain(block.text),
        Formulas: _text_formulas,
        Table: _text_table,
    },
    "markdown": {
        Heading: lambda block: "## " + _markdown_text(block.text),
        Text: lambda block: _markdown_text(block.text),
        Formulas: lambda block: "\n".join(f"- ${_latex(line)}$" for line in block.lines),
        Table: _markdown_table,
    },
    "latex": {
        Heading: lambda block: rf"\section*{{{_latex_text(block.text)}}}",
        Text: lambda block: _latex_text(block.text),
        Formulas: _latex_formulas,
        Table: _latex_table,
    },
}
