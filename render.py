r"""Documents of headings, text, formulas and tables, printed as text for a terminal, as Markdown, or as LaTeX.

Formulas are written once, in a small part of LaTeX: `\alpha_{2}(1) = 0.2 \cdot 0.6 = \frac{3}{25}`. Names that a user
gave, of states for instance, stand in them as `name("…")`, for each format has other characters to be careful with.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

FRACTION_LENGTH = 16  # characters of a fraction that is shown


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
    """A name that may stand in a formula or a text."""
    return f"\ue000{text}\ue001"


def render(document: list, style: str) -> str:
    """The blocks of `document` in one of the FORMATS."""
    return FORMATS[style](document)


# Numbers, as formulas.


def decimal(x: Fraction) -> tuple[str, bool]:
    """`x` with 10 digits at most, and whether that is all of it."""
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
    """= decimal = fraction, or = fraction ≈ decimal where the decimal goes on."""
    (digits, whole), fraction = decimal(x), _fraction(x)
    if x.denominator == 1:
        return f"= {x}"
    if whole:
        return f"= {digits}" + (f" = {fraction}" if fraction else "")
    return (f"= {fraction} " if fraction else "") + rf"\approx {digits}"


def operand(x: Fraction) -> str:
    """A number in a formula: a decimal if that is all of it, else a fraction if that is short."""
    digits, whole = decimal(x)
    return digits if whole or not _fraction(x) else _fraction(x)


def times(*factors: Fraction) -> str:
    return r" \cdot ".join(map(operand, factors))


def log_number(log_p: float) -> str:
    """A probability by its logarithm, with 6 digits; it may lie below the range of floats."""
    if log_p == -math.inf:
        return "0"
    return _power(format(math.exp(log_p) if log_p > -700 else Decimal(float(log_p)).exp(), ".6g"))


# Text. A formula is written with the characters that Unicode has for it.

SIGNS = {"cdot": "·", "mid": "|", "approx": "≈", "sum": "Σ", "max": "max", "lambda": "λ", "pi": "π"}
SIGNS |= {"alpha": "α", "beta": "β", "gamma": "γ", "xi": "ξ", "delta": "δ", "psi": "ψ", "to": "→", "ldots": "…"}
LOW = dict(zip("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
HIGH = dict(zip("0123456789+-*", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻*", strict=True))


def _apart(text: str, formula: Callable[[str], str], a_name: Callable[[str], str]) -> str:
    # Every second part is a name
    parts = re.split("\ue000(.*?)\ue001", text)
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


def width(text: str) -> int:  # on a terminal, where a Chinese character takes two columns
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def _text(document: list) -> str:
    parts = []
    for block in document:
        if isinstance(block, Heading):
            parts.append(f"{plain(block.text)}\n{'-' * width(plain(block.text))}")
        elif isinstance(block, Text):
            parts.append(plain(block.text))
        elif isinstance(block, Formulas):
            parts.append("\n".join("  " + plain(line) for line in block.lines))
        else:
            lines = [[plain(cell) for cell in line] for line in (block.header, *block.rows)]
            widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
            padded = [
                [" " * (size - width(cell)) + cell for size, cell in zip(widths, line, strict=True)] for line in lines
            ]
            parts.append("\n".join([*filter(None, [plain(block.title)]), *("  " + "   ".join(row) for row in padded)]))
    return "\n\n".join(parts)


# Markdown, with formulas between dollars as GitHub and Jupyter show them.


def _math(formula: str) -> str:
    """A formula or a name for Markdown and LaTeX: $…$ around what needs it."""
    if not formula or re.fullmatch("\ue000[^\ue000]*\ue001", formula):
        return _apart(formula, str, _escaped)
    return f"${_latex(formula)}$"


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


def _markdown(document: list) -> str:
    parts = []
    for block in document:
        if isinstance(block, Heading):
            parts.append("## " + _apart(block.text, str, _markdown_name))
        elif isinstance(block, Text):
            parts.append(_apart(block.text, str, _markdown_name))
        elif isinstance(block, Formulas):
            parts.append("\n".join(f"- ${_latex(line)}$" for line in block.lines))
        else:
            header, *rows = ([_markdown_cell(cell) for cell in line] for line in (block.header, *block.rows))
            lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
            if block.title:
                parts.append(f"${_latex(block.title)}$")
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join(parts)


# LaTeX: a whole document, for XeLaTeX, since ctexart has the fonts for Chinese.

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


def _latex_document(document: list) -> str:
    parts = []
    for block in document:
        if isinstance(block, Heading):
            parts.append(rf"\section*{{{_latex_text(block.text)}}}")
        elif isinstance(block, Text):
            parts.append(_latex_text(block.text))
        elif isinstance(block, Formulas):
            lines = [_latex(line).replace("=", "&=", 1) for line in block.lines]
            parts.append("\\begin{align*}\n" + " \\\\\n".join(lines) + "\n\\end{align*}")
        else:
            rows = [" & ".join(map(_math, line)) + r" \\" for line in (block.header, *block.rows)]
            rows.insert(1, r"\hline")
            columns = "l" + "r" * (len(block.header) - 1)
            table = [rf"\begin{{tabular}}{{{columns}}}", *rows, r"\end{tabular}"]
            title = [f"${_latex(block.title)}$", ""] if block.title else []
            parts.append("\n".join([r"\par\medskip\noindent", *title, *table]))
    return PREAMBLE + "\n\n".join(parts) + "\n\n\\end{document}"


FORMATS = {"text": _text, "markdown": _markdown, "latex": _latex_document}
