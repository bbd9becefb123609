"""A sequence under a hidden Markov model, worked through as on paper: every number with its formula filled in.

The text is in the notation of the handout (and of Rabiner's tutorial; the handout's φ is his ψ), in Chinese or English.
Small problems are computed in fractions and shown with all formulas; larger ones are computed in floats and shown as
tables, without their middle when they are long.
"""

import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from songci.hmm.kbest import kbest

FORMULAS_UP_TO = 128  # T·N²: formulas with fractions up to here, tables of floats beyond
PATHS_UP_TO = 64  # N^T: all paths are listed up to here
PATH_UP_TO = 200  # T: paths of --kbest are shown in full up to here, because they may differ anywhere
ROWS, COLUMNS = 24, 16  # of a table that is shown in full
FRACTION_LENGTH = 16  # longer fractions, in characters, are not shown

WORDS = {
    "model": ("模型 λ = (π, A, B)", "The model λ = (π, A, B)"),
    "observed": ("观测序列", "Observations"),
    "forward": ("前向算法：前向变量 α", "The forward algorithm: α"),
    "backward": ("后向算法：后向变量 β", "The backward algorithm: β"),
    "likelihood": ("评估问题：P(O|λ) 的三种求法", "The evaluation problem: P(O|λ) three ways"),
    "gamma": ("后验概率 γ：给定 O 时各时刻处于各状态的概率", "The posterior γ: the probability of each state, given O"),
    "xi": (
        "后验概率 ξ：给定 O 时相邻两个时刻状态的联合概率",
        "The posterior ξ: the probability of each transition, given O",
    ),
    "paths": ("枚举全部 {n} 条路径", "All {n} paths"),
    "path": ("路径", "path"),
    "share": ("占 P(O)", "share of P(O)"),
    "sum": ("合计", "sum"),
    "viterbi": ("解码问题：维特比（Viterbi）算法", "The decoding problem: the Viterbi algorithm"),
    "trace": ("从最后一个时刻回溯：", "Traced back from the last time step:"),
    "ties": ("概率相等时，取序号较小的状态。", "Ties go to the state with the lower number."),
    "answer": ("答案", "The answer"),
    "kbest": ("概率最大的 {n} 条路径", "The {n} most probable paths"),
    "fewer": ("概率不为 0 的路径只有这些。", "No other path is possible."),
    "sequence": ("第 {i} 个序列，共 {n} 个", "Sequence {i} of {n}"),
    "left out": (
        "（共 {n} 行，此处只显示开头和末尾；完整结果见 --format json）",
        "({n} rows, of which only the first and last are shown; --format json prints them all)",
    ),
    "wide matrix": ("（共 {n} 列，此处不显示）", "({n} columns, not shown here)"),
    "wide": (
        "（共 {n} 列，此处不显示；完整结果见 --format json）",
        "({n} columns, not shown here; --format json prints them)",
    ),
    "sentence": (
        "观测序列 {obs} 的概率为 {p}。最可能的状态序列是 {path}，其概率为 {best}{share}。",
        "The probability of {obs} is {p}. The most probable state sequence is {path}, with probability {best}{share}.",
    ),
    "its share": ("，占 P(O) 的 {share:.1%}", ", which is {share:.1%} of P(O)"),
    "impossible": (
        "P(O) = 0：没有任何状态序列能产生前 {t} 个观测，因此没有后验概率，也没有最优路径。",
        "P(O) = 0: no state sequence emits the first {t} observation(s), so there are no posteriors and no best path.",
    ),
    "comma": ("、", ", "),
}


def explain(model, sequences: list, lang: str, k: int = 0) -> str:
    """The text about each sequence, with the `k` best paths; `lang` is zh or en. Raises UserError."""

    def say(key: str, **values) -> str:
        return WORDS[key][("zh", "en").index(lang)].format(**values)

    document = []
    for i, obs in enumerate(sequences, start=1):
        document += [heading(say("sequence", i=i, n=len(sequences)))] if len(sequences) > 1 else []
        work = Worked if len(obs) * len(model.states) ** 2 <= FORMULAS_UP_TO else Tabulated
        document += [*_model(model, obs, say), *work(model, obs, say).document()]
        paths = kbest(model, obs, k) if k else []
        if paths:
            rows = [
                [str(rank), _names(model, path, ", ", whole=PATH_UP_TO), log_number(log_p)]
                for rank, (path, log_p) in enumerate(paths, start=1)
            ]
            document += [heading(say("kbest", n=len(paths))), table("", ["", say("path"), "P(q, O | λ)"], rows)]
            document += [say("fewer")] if len(paths) < k else []
    return "\n\n".join(document)


# Blocks of text.

LOW, HIGH = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"), str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def low(number: int | str) -> str:
    """A number as an index: ₁₂."""
    return str(number).translate(LOW)


def width(text: str) -> int:
    """Columns that a text takes on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def heading(text: str) -> str:
    return f"{text}\n{'-' * width(text)}"


def formulas(*lines: str) -> str:
    return "\n".join(f"  {line}" for line in lines)


def table(title: str, header: list[str], rows: list[list[str]]) -> str:
    rows = [header, *rows]
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    padded = ["   ".join(" " * (w - width(cell)) + cell for w, cell in zip(widths, row, strict=True)) for row in rows]
    return (f"{title}\n" if title else "") + formulas(*padded)


# Numbers.


def decimal(x: Fraction) -> tuple[str, bool]:
    """`x` with at most 10 digits and whether that is exact; with 6 digits if it is not."""
    text = format(Decimal(x.numerator) / Decimal(x.denominator), ".10g") if x else "0"
    if Fraction(text) == x:
        return _power(text), True
    return _power(format(Decimal(x.numerator) / Decimal(x.denominator), ".6g")), False


def _power(text: str) -> str:
    digits, _, exponent = text.partition("e")
    return f"{digits}·10{str(int(exponent)).translate(HIGH)}" if exponent else digits


def equals(x: Fraction) -> str:
    """= decimal = fraction, or = fraction ≈ decimal if the decimal is not exact."""
    (digits, whole), fraction = decimal(x), str(x) if len(str(x)) <= FRACTION_LENGTH else ""
    if x.denominator == 1:
        return f"= {x}"
    if whole:
        return f"= {digits}" + (f" = {fraction}" if fraction else "")
    return (f"= {fraction} " if fraction else "") + f"≈ {digits}"


def operand(x: Fraction) -> str:
    """A number in a formula: a decimal if that is exact, else a fraction if that is short, else a rounded decimal."""
    digits, whole = decimal(x)
    return digits if whole or len(str(x)) > FRACTION_LENGTH else str(x)


def times(*factors: Fraction) -> str:
    return "·".join(map(operand, factors))


def log_number(log_p: float) -> str:
    """A probability from its logarithm, with 6 digits; it may be below the range of floats."""
    if log_p == -math.inf:
        return "0"
    return _power(format(math.exp(log_p) if log_p > -700 else Decimal(float(log_p)).exp(), ".6g"))


# The parts of a document.


def _short(items: list[str], whole: int = ROWS) -> list[str]:
    return items if len(items) <= whole else [*items[: ROWS // 2], "…", *items[-ROWS // 2 :]]


def _names(model, path: Iterable[int], comma: str, whole: int = ROWS) -> str:
    return comma.join(_short([model.states[i] for i in path], whole))


def _model(model, obs: np.ndarray, say: Callable) -> list[str]:
    pi, a, b = model.exact
    states = [f"S{low(i)} {state}" for i, state in enumerate(model.states, start=1)]

    def matrix(title: str, columns: Sequence[str], cells) -> list[str]:
        if len(columns) > COLUMNS:
            return [formulas(title), say("wide matrix", n=len(columns))]  # it stands in the model's file
        return [table(title, ["", *columns], [[s, *map(operand, row)] for s, row in zip(states, cells, strict=True)])]

    return [
        heading(say("model")),
        *matrix("πᵢ = P(q₁ = Sᵢ)", ["πᵢ"], pi[:, None]),
        *matrix("A: aᵢⱼ = P(qₜ₊₁ = Sⱼ | qₜ = Sᵢ)", states, a),
        *matrix("B: bᵢ(k) = P(oₜ = k | qₜ = Sᵢ)", model.symbols, b),
        heading(say("observed")),
        "O = " + ", ".join(_short([model.symbols[o] for o in obs])),
    ]


def _answer(model, obs, say: Callable, likelihood: str, best: str, log_share: float, path) -> list[str]:
    share = math.exp(min(log_share, 0))
    words = {"p": likelihood, "best": best, "path": _names(model, path, say("comma"))}
    words["obs"] = ", ".join(_short([model.symbols[o] for o in obs]))
    words["share"] = say("its share", share=share) if share > 5e-4 else ""
    return [heading(say("answer")), say("sentence", **words)]


class Tabulated:
    """A large problem: tables of floats."""

    def __init__(self, model, obs: np.ndarray, say: Callable):
        self.model, self.obs, self.say = model, obs, say

    def document(self) -> list[str]:
        model, obs, say = self.model, self.obs, self.say
        alpha, beta, log_p = model.forward(obs), model.backward(obs), model.score(obs)
        with np.errstate(divide="ignore"):
            first = np.log(model.startprob) + np.log(model.emissionprob[:, obs[0]])
        ways = {
            "Σᵢ α_T(i)": alpha[-1],
            "Σᵢ πᵢ bᵢ(o₁) β₁(i)": first + beta[0],
            "Σᵢ α₁(i) β₁(i)": alpha[0] + beta[0],
            "Σᵢ α_T(i) β_T(i)": alpha[-1] + beta[-1],
        }
        lines = [f"P(O | λ) = {way} = {log_number(np.logaddexp.reduce(logs))}" for way, logs in ways.items()]
        lines += [f"ln P(O | λ) = {log_p:.10g}"] if log_p > -math.inf else []
        document = [heading(say("forward")), *self.table("αₜ(i)", alpha)]
        document += [heading(say("backward")), *self.table("βₜ(i)", beta)]
        document += [heading(say("likelihood")), formulas(*lines)]
        if log_p == -math.inf:
            t = int(np.isneginf(alpha).all(axis=1).argmax()) + 1
            return [*document, heading(say("answer")), say("impossible", t=t)]
        path, log_delta, psi = model.viterbi(obs)
        best = log_delta[-1].max()
        with np.errstate(divide="ignore"):
            document += [heading(say("gamma")), *self.table("γₜ(i) = P(qₜ = Sᵢ | O, λ)", np.log(model.posterior(obs)))]
            document += [heading(say("xi")), *self.pairs()]
        document += [heading(say("viterbi")), *self.table("δₜ(i)", log_delta)]
        psi = np.vstack([np.full(psi.shape[1], -1), psi[1:]])
        document += [*self.table("ψₜ(i)", psi, cell=_state), say("ties")]
        return [*document, *_answer(model, obs, say, log_number(log_p), log_number(best), best - log_p, path)]

    def pairs(self) -> list[str]:
        title, states = "ξₜ(i,j) = P(qₜ = Sᵢ, qₜ₊₁ = Sⱼ | O, λ)", range(len(self.model.states))
        columns = [f"{_state(i)} → {_state(j)}" for i in states for j in states]
        if len(columns) > COLUMNS:  # before all the T·N² numbers are computed
            return [formulas(title), self.say("wide", n=len(columns))]
        return self.table(title, np.log(self.model.pair_posterior(self.obs)).reshape(-1, len(columns)), columns)

    def table(self, title: str, rows: np.ndarray, columns: Sequence[str] = (), cell: Callable = log_number) -> list:
        """A row for each time, with its symbol; cell(x) prints an entry. The middle of many rows is left out."""
        columns, n = columns or [_state(i) for i in range(rows.shape[1])], len(rows)
        if len(columns) > COLUMNS:
            return [formulas(title), self.say("wide", n=len(columns))]
        shown = range(n) if n <= ROWS else [*range(ROWS // 2), *range(n - ROWS // 2, n)]
        lines = [[str(t + 1), self.model.symbols[self.obs[t]], *map(cell, rows[t])] for t in shown]
        if n > ROWS:
            lines.insert(ROWS // 2, ["…"] * len(lines[0]))
        note = [self.say("left out", n=n)] if n > ROWS else []
        return [table(title, ["t", "oₜ", *columns], lines), *note]


def _state(i: int) -> str:
    return f"S{low(i + 1)}" if i >= 0 else "–"


class Worked:
    """A small problem: every number with its formula, in fractions."""

    def __init__(self, model, obs: np.ndarray, say: Callable):
        self.model, self.obs, self.say = model, obs, say
        (self.pi, self.a, self.b), self.v = model.exact, model.exactly(obs)
        self.states, self.times = range(len(self.pi)), range(len(obs))
        self.possible, self.later = self.v.likelihood > 0, self.times[1:]

    def document(self) -> list[str]:
        document = [*self.forward(), *self.backward(), *self.likelihood()]
        if self.possible:
            return [*document, *self.posteriors(), *self.paths(), *self.viterbi(), *self.answer()]
        t = next(t for t, row in enumerate(self.v.alpha, start=1) if not any(row))
        return [*document, heading(self.say("answer")), self.say("impossible", t=t)]

    def name_of_b(self, i: int, t: int) -> str:
        return f"b{low(i + 1)}({self.model.symbols[self.obs[t]]})"

    def value_of_b(self, i: int, t: int) -> Fraction:
        return self.b[i, self.obs[t]]

    def first(self, letter: str, values: Sequence) -> list[str]:
        """The lines of α₁ or δ₁, which are the same."""
        return [
            f"{at(letter, 0, i)} = π{low(i + 1)}·{self.name_of_b(i, 0)} "
            f"= {times(self.pi[i], self.value_of_b(i, 0))} {equals(values[i])}"
            for i in self.states
        ]

    def into(self, letter: str, values: Sequence, t: int, i: int, comma: str) -> tuple[str, str]:
        """The products of αₜ₋₁(j) or δₜ₋₁(j) with aⱼᵢ for all j: with letters, and with `values` filled in."""
        letters = comma.join(f"{at(letter, t - 1, j)}·a{low(j + 1)}{low(i + 1)}" for j in self.states)
        return letters, comma.join(times(values[j], self.a[j, i]) for j in self.states)

    def forward(self) -> list[str]:
        alpha = self.v.alpha
        lines = self.first("α", alpha[0])
        for t, i in itertools.product(self.later, self.states):
            letters, filled = self.into("α", alpha[t - 1], t, i, " + ")
            lines.append(
                f"{at('α', t, i)} = [{letters}]·{self.name_of_b(i, t)} "
                f"= [{filled}]·{operand(self.value_of_b(i, t))} {equals(alpha[t, i])}"
            )
        rule = "αₜ₊₁(i) = [Σⱼ αₜ(j) aⱼᵢ] bᵢ(oₜ₊₁) = P(o₁ … oₜ₊₁, qₜ₊₁ = Sᵢ | λ)"
        return [heading(self.say("forward")), formulas(rule), formulas(*lines)]

    def backward(self) -> list[str]:
        beta, lines = self.v.beta, [f"{at('β', self.times[-1], i)} = 1" for i in self.states]
        for t, i in itertools.product(reversed(self.times[:-1]), self.states):
            letters = " + ".join(
                f"a{low(i + 1)}{low(j + 1)}·{self.name_of_b(j, t + 1)}·{at('β', t + 1, j)}" for j in self.states
            )
            filled = " + ".join(times(self.a[i, j], self.value_of_b(j, t + 1), beta[t + 1, j]) for j in self.states)
            lines.append(f"{at('β', t, i)} = {letters} = {filled} {equals(beta[t, i])}")
        rule = "βₜ(i) = Σⱼ aᵢⱼ bⱼ(oₜ₊₁) βₜ₊₁(j) = P(oₜ₊₁ … o_T | qₜ = Sᵢ, λ)"
        return [heading(self.say("backward")), formulas(rule), formulas(*lines)]

    def likelihood(self) -> list[str]:
        alpha, beta, total = self.v.alpha, self.v.beta, equals(self.v.likelihood)
        forwards = " + ".join(map(operand, alpha[-1]))
        backwards = " + ".join(times(self.pi[i], self.value_of_b(i, 0), beta[0, i]) for i in self.states)
        lines = [
            f"P(O | λ) = Σᵢ α{low(len(alpha))}(i) = {forwards} {total}",
            f"P(O | λ) = Σᵢ πᵢ bᵢ(o₁) β₁(i) = {backwards} {total}",
        ]
        for t in self.times:
            both = " + ".join(map(times, alpha[t], beta[t]))
            lines.append(f"P(O | λ) = Σᵢ α{low(t + 1)}(i) β{low(t + 1)}(i) = {both} {equals(sum(alpha[t] * beta[t]))}")
        return [heading(self.say("likelihood")), formulas(*lines)]

    def posteriors(self) -> list[str]:
        alpha, beta, p = self.v.alpha, self.v.beta, operand(self.v.likelihood)
        lines = [
            f"{at('γ', t, i)} = {times(alpha[t, i], beta[t, i])} / {p} {equals(self.v.gamma[t, i])}"
            for t, i in itertools.product(self.times, self.states)
        ]
        rule = "γₜ(i) = αₜ(i) βₜ(i) / P(O | λ) = P(qₜ = Sᵢ | O, λ)"
        blocks = [heading(self.say("gamma")), formulas(rule), formulas(*lines)]
        lines = []
        for t, i, j in itertools.product(self.times[:-1], self.states, self.states):
            product = times(alpha[t, i], self.a[i, j], self.value_of_b(j, t + 1), beta[t + 1, j])
            lines.append(f"ξ{low(t + 1)}({i + 1},{j + 1}) = {product} / {p} {equals(self.v.xi[t, i, j])}")
        rule = "ξₜ(i,j) = αₜ(i) aᵢⱼ bⱼ(oₜ₊₁) βₜ₊₁(j) / P(O | λ) = P(qₜ = Sᵢ, qₜ₊₁ = Sⱼ | O, λ)"
        return [*blocks, heading(self.say("xi")), formulas(rule), formulas(*lines)] if lines else blocks

    def paths(self) -> list[str]:
        """All paths with their probabilities, if there are not too many."""
        number, total = len(self.states) ** len(self.times), self.v.likelihood
        if number > PATHS_UP_TO:
            return []
        rows = []
        for q in itertools.product(self.states, repeat=len(self.times)):
            factors = [self.pi[q[0]], self.value_of_b(q[0], 0)]
            for t in self.later:
                factors += [self.a[q[t - 1], q[t]], self.value_of_b(q[t], t)]
            p, mark = math.prod(factors), "*" if list(q) == self.v.path.tolist() else ""
            share = decimal(Fraction(round(1000 * p / total), 10))[0]
            names = ", ".join(self.model.states[i] for i in q)
            rows.append([f"q{mark} = ({names})", f"{times(*factors)} {equals(p)}", f"{share}%"])
        rows.append([self.say("sum"), f"P(O) {equals(total)}", "100%"])
        shown = table("", [self.say("path"), "P(q, O | λ)", self.say("share")], rows)
        best = formulas(f"max_q P(q, O | λ) {equals(max(self.v.delta[-1]))}")
        return [heading(self.say("paths", n=number)), shown, best]

    def viterbi(self) -> list[str]:
        delta, psi, path = self.v.delta, self.v.psi, self.v.path
        lines = self.first("δ", delta[0])
        for t, i in itertools.product(self.later, self.states):
            letters, filled = self.into("δ", delta[t - 1], t, i, ", ")
            products, b = ", ".join(map(operand, delta[t - 1] * self.a[:, i])), operand(self.value_of_b(i, t))
            lines.append(
                f"{at('δ', t, i)} = max[{letters}]·{self.name_of_b(i, t)} = max[{filled}]·{b} "
                f"= max[{products}]·{b} {equals(delta[t, i])}, {at('ψ', t, i)} = {psi[t, i] + 1}"
            )
        rows = []
        for t, o in enumerate(self.obs):
            deltas = [operand(x) + ("*" if i == path[t] else "") for i, x in enumerate(delta[t])]
            backs = [_state(j if t else -1) for j in psi[t]]
            rows.append([str(t + 1), self.model.symbols[o], *deltas, *backs, _state(path[t])])
        columns = [f"{letter}ₜ({i + 1})" for letter in "δψ" for i in self.states]
        rule = "δₜ₊₁(i) = maxⱼ[δₜ(j) aⱼᵢ] bᵢ(oₜ₊₁), ψₜ₊₁(i) = argmaxⱼ δₜ(j) aⱼᵢ"
        trellis = table("", ["t", "oₜ", *columns, "q*ₜ"], rows)
        trace = [
            f"P* = maxᵢ δ{low(len(path))}(i) = max[{', '.join(map(operand, delta[-1]))}] {equals(max(delta[-1]))}",
            f"q*{low(len(path))} = {path[-1] + 1}",
        ]
        for t in reversed(self.times[:-1]):
            trace.append(f"q*{low(t + 1)} = {at('ψ', t + 1, path[t + 1])} = {path[t] + 1}")
        blocks = [heading(self.say("viterbi")), formulas(rule), formulas(*lines), trellis]
        return [*blocks, self.say("trace"), formulas(*trace), self.say("ties")]

    def answer(self) -> list[str]:
        p, best = self.v.likelihood, max(self.v.delta[-1])
        share = math.log(best / p) if best / p > 0 else -math.inf
        return _answer(self.model, self.obs, self.say, operand(p), operand(best), share, self.v.path)


def at(letter: str, t: int, i: int) -> str:
    """α₂(1), or another variable."""
    return f"{letter}{low(t + 1)}({i + 1})"
