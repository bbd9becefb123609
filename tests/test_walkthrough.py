import re

import numpy as np
import pytest
from hmm_problems import HML
from matplotlib.mathtext import MathTextParser

import hmm
from hmm import HMM, PHONE_STORE, kbest
from songci.hmm.render import Formulas, Heading, Table, Text, name, plain, render
from songci.hmm.walkthrough import kbest_section, walkthrough
from songci.hmm.words import WORDS

AWKWARD = HMM([0.5, 0.5], [[0.6, 0.4], [0.5, 0.5]], [[0.4, 0.6], [1, 0]], ["50% & $_{x}", "a|b\\^~#"], ["*h*", "<b>"])


def titles(document):
    return [block.text for block in document if isinstance(block, Heading)]


def test_both_languages_say_the_same_in_the_same_order():
    chinese, english = walkthrough(PHONE_STORE, HML, "zh"), walkthrough(PHONE_STORE, HML, "en")
    assert [type(block) for block in chinese] == [type(block) for block in english]
    for ours, theirs in zip(chinese, english, strict=True):
        if isinstance(ours, Formulas):
            assert ours == theirs
    assert not any(re.search("[一-龥]", title) for title in titles(english))
    assert all(re.findall(r"{\w+", zh) == re.findall(r"{\w+", en) for zh, en in WORDS.values())


def test_all_eight_paths_sum_to_the_likelihood():
    (table,) = (
        block for block in walkthrough(PHONE_STORE, HML, "en") if isinstance(block, Table) and "share" in str(block)
    )
    assert len(table.rows) == 9 and plain(table.rows[-1][1]) == "P(O) = 0.03541 = 3541/100000"
    assert [plain(row[0]) for row in table.rows if "*" in row[0]] == ["q* = (畅销, 畅销, 滞销)"]


def test_many_paths_are_not_listed_and_long_sequences_are_shown_as_tables():
    assert "All 64 paths" in titles(walkthrough(PHONE_STORE, HML * 2, "en"))
    assert not [title for title in titles(walkthrough(PHONE_STORE, HML * 3, "en")) if "paths" in title]
    long = render(walkthrough(PHONE_STORE, HML * 1000, "en"), "text")
    assert long.count("3000 rows") == 5 and long.count("2999 rows") == 1 and len(long.splitlines()) < 300
    assert "αₜ₊₁(i)" not in long and "nan" not in long


@pytest.mark.parametrize("n", [5, 20])
def test_tables_too_wide_are_left_out(n):
    model = HMM(np.full(n, 1 / n), np.full((n, n), 1 / n), np.full((n, 2), 0.5))
    text = render(walkthrough(model, [0, 1] * 20, "en"), "text")
    assert f"({n * n} columns, not shown here" in text
    assert (f"({n} columns, not shown here" in text) == (n == 20)
    assert "The answer" in text


def test_formula_of_a_matrix_too_wide_is_a_formula_in_every_format():
    model = HMM(np.full(20, 1 / 20), np.full((20, 20), 1 / 20), np.full((20, 2), 0.5))
    document = walkthrough(model, [0, 1], "en")
    assert r"- $A: a_{ij} = P(q_{t+1} = S_j \mid q_t = S_i)$" in render(document, "markdown").splitlines()
    assert r"A: a_{ij} &= P(q_{t+1} = S_j \mid q_t = S_i)" in render(document, "latex").splitlines()
    assert "  A: aᵢⱼ = P(qₜ₊₁ = Sⱼ | qₜ = Sᵢ)" in render(document, "text").splitlines()


def test_tables_of_a_large_problem_have_the_numbers_of_a_small_one(monkeypatch):
    def numbers(document):
        rows = [row for block in document if isinstance(block, Table) for row in block.rows]
        return [[plain(cell) for cell in row] for row in rows]

    monkeypatch.setattr("songci.hmm.walkthrough.FORMULAS_UP_TO", 0)
    tables = numbers(walkthrough(PHONE_STORE, HML, "en"))
    assert ["2", "M", "0.068", "0.039"] in tables and ["1", "H", "0.1188", "0.1165"] in tables
    assert ["3", "L", "0.340582", "0.659418"] in tables and ["3", "L", "0.00576", "0.0096"] in tables
    assert ["2", "M", "0.230443", "0.384072", "0.110138", "0.275346"] in tables
    assert ["1", "H", "–", "–"] in tables and ["2", "M", "S₁", "S₁"] in tables
    assert "0.03541" in render(walkthrough(PHONE_STORE, HML, "en"), "text").splitlines()[-1]


def test_tables_are_aligned_on_a_terminal_where_chinese_characters_are_wide():
    checked = 0
    for block in walkthrough(PHONE_STORE, HML, "zh"):
        if isinstance(block, Table):
            table = [line for line in render([block], "text").splitlines() if line.startswith("  ")]
            assert len({sum(2 if "一" <= char <= "龥" else 1 for char in line) for line in table}) == 1, table
            checked += 1
    assert checked == 5


@pytest.mark.parametrize("model", [PHONE_STORE, AWKWARD])
def test_every_formula_is_latex_that_parses(model):
    parse, count = MathTextParser("path").parse, 0
    for line in render(walkthrough(model, [0, 1, 1], "en"), "latex").splitlines():
        line = line.removesuffix(r" \\")
        if "&=" in line:
            formulas = [line.replace("&=", "=")]
        else:
            formulas = re.findall(r"(?<!\\)\$(.*?)(?<!\\)\$", line)
        for formula in formulas:
            # matplotlib has no text commands inside \text{}
            parse("$" + re.sub(r"\\text\{(\\\w+\{\}|\\.|[^{}])*\}", "x", formula) + "$")
            count += 1
    assert count > 60


def test_latex_document_is_closed_and_escaped():
    latex = render(walkthrough(AWKWARD, [0, 1], "zh"), "latex")
    assert latex.startswith(r"\documentclass{ctexart}") and latex.endswith(r"\end{document}")
    for environment in "document", "align*", "tabular":
        assert latex.count(rf"\begin{{{environment}}}") == latex.count(rf"\end{{{environment}}}") > 0
    assert r"\text{50\% \& \$\_\{x\}}" in latex and r"a|b\textbackslash{}\textasciicircum{}\textasciitilde{}\#" in latex
    assert re.sub(r"\\[{}]", "", latex).count("{") == re.sub(r"\\[{}]", "", latex).count("}")


def test_markdown_tables_have_equal_columns_also_with_awkward_names():
    markdown = render(walkthrough(AWKWARD, [0, 1], "en"), "markdown")
    for block in re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert r"O = \*h\*, \<b\>" in markdown and "## The answer" in markdown


@pytest.mark.parametrize("style", ["markdown", "latex"])
@pytest.mark.parametrize("lang", ["zh", "en"])
def test_markdown_and_latex_on_the_command_line_have_latex_formulas(call, style, lang):
    status, out, err = call(hmm, "--format", style, "--lang", lang, "--kbest", 2)
    assert status == 0 and err == ""
    assert r"\alpha_{2}(1)" in out and r"= 0.068 = \frac{17}{250}" in out and "\ue000" not in out


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r"\alpha_{2}(1) = 0.2 \cdot 0.6 = \frac{3}{25}", "α₂(1) = 0.2·0.6 = 3/25"),
        (r"P(q_1 = S_i \mid \lambda)", "P(q₁ = Sᵢ | λ)"),
        (r"o_T, \max_q, q^*_{12}, 10^{-5}", "o_T, max_q, q*₁₂, 10⁻⁵"),
        (r"\operatorname{argmax}_j x", "argmaxⱼ x"),
        (name(r"\alpha_1"), r"\alpha_1"),  # a user's name is no formula
    ],
)
def test_formula_is_shown_as_plain_text(formula, text):
    assert plain(formula) == text


def test_kbest_section_says_when_there_are_fewer():
    paths = kbest(PHONE_STORE, HML, 10)
    heading, table, note = kbest_section(PHONE_STORE, paths, 10, "zh")
    assert heading.text == "概率最大的 8 条路径" and len(table.rows) == 8 and isinstance(note, Text)
    assert len(kbest_section(PHONE_STORE, paths[:3], 3, "zh")) == 2
