"""A sequence under a hidden Markov model, worked through as on paper: every number with its formula filled in.

The text is in the notation of the handout (and of Rabiner's tutorial; the handout's φ is his ψ), in Chinese or English.
Small problems are computed in fractions and shown with all formulas; larger ones are computed in floats and shown as
tables, without their middle when they are long.
"""

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

import numpy as np

from songci.hmm.kbest import kbest, path_probability

FORMULAS_UP_TO = 128  # T·N²: formulas with fractions up to here, tables of floats beyond
PATHS_UP_TO = 64  # N^T: all paths are listed up to here
PATH_UP_TO = 200  # T: paths of --kbest are shown in full up to here, because they may differ anywhere
ROWS, COLUMNS = 24, 16  # of a table that is shown in full
FRACTION_LENGTH = 16  # longer fractions, in characters, are not shown

TITLES = {
    "forward": ("前向算法：前向变量 α", "The forward algorithm: α"),
    "backward": ("后向算法：后向变量 β", "The backward algorithm: β"),
    "likelihood": ("评估问题：P(O|λ) 的三种求法", "The evaluation problem: P(O|λ) three ways"),
    "gamma": ("后验概率 γ：给定 O 时各时刻处于各状态的概率", "The posterior γ: the probability of each state, given O"),
    "xi": (
        "后验概率 ξ：给定 O 时相邻两个时刻状态的联合概率",
        "The posterior ξ: the probability of each transition, given O",
    ),
    "paths": ("枚举全部 {n} 条路径", "All {n} paths"),
    "viterbi": ("解码问题：维特比（Viterbi）算法", "The decoding problem: the Viterbi algorithm"),
}
RULES = {
    "forward": "αₜ₊₁(i) = [Σⱼ αₜ(j) aⱼᵢ] bᵢ(oₜ₊₁) = P(o₁ … oₜ₊₁, qₜ₊₁ = Sᵢ | λ)",
    "backward": "βₜ(i) = Σⱼ aᵢⱼ bⱼ(oₜ₊₁) βₜ₊₁(j) = P(oₜ₊₁ … o_T | qₜ = Sᵢ, λ)",
    "gamma": "γₜ(i) = αₜ(i) βₜ(i) / P(O | λ) = P(qₜ = Sᵢ | O, λ)",
    "xi": "ξₜ(i,j) = αₜ(i) aᵢⱼ bⱼ(oₜ₊₁) βₜ₊₁(j) / P(O | λ) = P(qₜ = Sᵢ, qₜ₊₁ = Sⱼ | O, λ)",
    "viterbi": "δₜ₊₁(i) = maxⱼ[δₜ(j) aⱼᵢ] bᵢ(oₜ₊₁), ψₜ₊₁(i) = argmaxⱼ δₜ(j) aⱼᵢ",
}


def explain(model, sequences: list, lang: str, k: int = 0) -> str:
    """The text about each sequence, with the `k` best paths; `lang` is zh or en. Raises UserError."""

    def say(chinese: str, english: str) -> str:
        return chinese if lang == "zh" else english

    document, n = [], len(sequences)
    for i, obs in enumerate(sequences, start=1):
        document += [heading(say(f"第 {i} 个序列，共 {n} 个", f"Sequence {i} of {n}"))] if n > 1 else []
        document += [*given(model, obs, say), *solution(model, obs, say), *best_paths(model, obs, say, k)]
    return "\n\n".join(document)


def given(model, obs: np.ndarray, say: Callable) -> Iterator[str]:
    """The model and the observations."""
    (pi, a, b), states = model.exact, [f"{state(i)} {name}" for i, name in enumerate(model.states)]
    yield heading(say("模型 λ = (π, A, B)", "The model λ = (π, A, B)"))
    for title, columns, matrix in (
        ("πᵢ = P(q₁ = Sᵢ)", ["πᵢ"], pi[:, None]),
        ("A: aᵢⱼ = P(qₜ₊₁ = Sⱼ | qₜ = Sᵢ)", states, a),
        ("B: bᵢ(k) = P(oₜ = k | qₜ = Sᵢ)", model.symbols, b),
    ):
        rows, n = [[name, *map(operand, row)] for name, row in zip(states, matrix, strict=True)], len(columns)
        too_wide = say(f"（共 {n} 列，此处不显示）", f"({n} columns, not shown here)")  # it stands in the model's file
        yield f"  {title}\n\n{too_wide}" if n > COLUMNS else f"{title}\n{table(['', *columns], rows)}"
    yield from (heading(say("观测序列", "Observations")), "O = " + ", ".join(short([model.symbols[o] for o in obs])))


def solution(model, obs: np.ndarray, say: Callable) -> Iterator[str]:
    """The three problems solved, and the answer in a sentence."""
    log_p = model.score(obs)
    v = model.exactly(obs) if is_worked(model, obs) else None
    for part, *blocks in Worked(model, obs, v, say).parts() if v else tables(model, obs, say):
        yield heading(say(*TITLES[part]).format(n=len(model.states) ** len(obs) if part == "paths" else 0))
        yield from ([formulas(RULES[part])] if part in RULES else [])
        yield from blocks
        if part == "likelihood" and log_p == -math.inf:
            break
    yield heading(say("答案", "The answer"))
    if log_p == -math.inf:
        t = np.isneginf(model.forward(obs)).all(axis=1).argmax() + 1
        yield say(
            f"P(O) = 0：没有任何状态序列能产生前 {t} 个观测，因此没有后验概率，也没有最优路径。",
            f"P(O) = 0: no state sequence emits the first {t} observation(s), "
            "so there are no posteriors and no best path.",
        )
        return
    path, log_delta, _ = model.viterbi(obs)
    best, share = log_delta[-1].max(), math.exp(min(log_delta[-1].max() - log_p, 0))
    p, best = (operand(v.likelihood), operand(max(v.delta[-1]))) if v else (log_number(log_p), log_number(best))
    observed = ", ".join(short([model.symbols[o] for o in obs]))
    states = say("、", ", ").join(short([model.states[i] for i in path]))
    best += say(f"，占 P(O) 的 {share:.1%}", f", which is {share:.1%} of P(O)") if share > 5e-4 else ""
    yield say(
        f"观测序列 {observed} 的概率为 {p}。最可能的状态序列是 {states}，其概率为 {best}。",
        f"The probability of {observed} is {p}. The most probable state sequence is {states}, with probability {best}.",
    )


def is_worked(model, obs: np.ndarray) -> bool:
    """Whether the problem is small enough for formulas, with all numbers from fractions."""
    return len(obs) * len(model.states) ** 2 <= FORMULAS_UP_TO


def best_paths(model, obs: np.ndarray, say: Callable, k: int) -> Iterator[str]:
    """The `k` best paths, if there are any."""
    paths = kbest(model, obs, k) if k else []
    if paths:
        names = [", ".join(short([model.states[i] for i in path], PATH_UP_TO)) for path, _ in paths]
        if is_worked(model, obs):
            p = [operand(path_probability(model, obs, path)) for path, _ in paths]
        else:
            p = [log_number(log_p) for _, log_p in paths]
        rows = [[str(i + 1), *row] for i, row in enumerate(zip(names, p, strict=True))]
        yield heading(say(f"概率最大的 {len(paths)} 条路径", f"The {len(paths)} most probable paths"))
        yield table(["", say("路径", "path"), "P(q, O | λ)"], rows)
        if len(paths) < k:
            yield say("概率不为 0 的路径只有这些。", "No other path is possible.")


def tables(model, obs: np.ndarray, say: Callable) -> Iterator[list[str]]:
    """A large problem: tables of floats, without their middle if they are long."""

    def rows(values: np.ndarray, cell: Callable, columns: Sequence[str]) -> list[str]:
        n, m = len(values), len(columns)
        if m > COLUMNS:
            wide = f"（共 {m} 列，此处不显示；完整结果见 --format json）"
            return [say(wide, f"({m} columns, not shown here, but by --format json)")]
        lines = [[str(t + 1), model.symbols[obs[t]], *map(cell, values[t])] for t in short(range(n), gap=[])]
        if n <= ROWS:
            return [table(["t", "oₜ", *columns], lines)]
        lines.insert(ROWS // 2, ["…"] * len(lines[0]))
        long = f"（共 {n} 行，此处只显示开头和末尾；完整结果见 --format json）"
        in_english = f"({n} rows, of which only the first and last are shown; --format json prints them all)"
        return [table(["t", "oₜ", *columns], lines), say(long, in_english)]

    states = [state(i) for i in range(len(model.states))]
    alpha, beta, log_p = model.forward(obs), model.backward(obs), model.score(obs)
    yield ["forward", *rows(alpha, log_number, states)]
    yield ["backward", *rows(beta, log_number, states)]
    ways = {"α_T(i)": alpha[-1], "πᵢ bᵢ(o₁) β₁(i)": alpha[0] + beta[0], "α_T(i) β_T(i)": alpha[-1] + beta[-1]}
    sums = [f"P(O | λ) = Σᵢ {way} = {log_number(np.logaddexp.reduce(logs))}" for way, logs in ways.items()]
    yield ["likelihood", formulas(*sums, *([f"ln P(O | λ) = {log_p:.10g}"] if log_p > -math.inf else []))]
    yield ["gamma", *rows(model.posterior(obs), rounded, states)]
    pairs = [f"{i} → {j}" for i in states for j in states]
    xi = model.pair_posterior(obs).reshape(-1, len(pairs)) if len(pairs) <= COLUMNS else alpha[:-1]
    yield ["xi", *rows(xi, rounded, pairs)]
    _, log_delta, psi = model.viterbi(obs)
    psi[0] = -1
    yield ["viterbi", "δₜ(i)", *rows(log_delta, log_number, states), "ψₜ(i)", *rows(psi, state, states)]


class Worked:
    """A small problem: every number with its formula, written with letters and then with numbers filled in.

    Here times and states count from 1, as in the formulas.
    """

    def __init__(self, model, obs: np.ndarray, v, say: Callable):
        self.model, self.v, self.say = model, v, say
        self.states, self.times = range(1, len(model.states) + 1), range(1, len(obs) + 1)
        self.symbols, (pi, a, b) = [model.symbols[o] for o in obs], model.exact
        self.value = {f"π{low(i + 1)}": x for i, x in enumerate(pi)}
        self.value |= {f"a{low(i + 1)}{low(j + 1)}": x for (i, j), x in np.ndenumerate(a)}
        self.value |= {f"b{low(i + 1)}({model.symbols[o]})": x for (i, o), x in np.ndenumerate(b)}
        for letter, values in ("α", v.alpha), ("β", v.beta), ("γ", v.gamma), ("δ", v.delta), ("ξ", v.xi):
            for (t, *at), x in np.ndenumerate(values) if values is not None else ():
                self.value[f"{letter}{low(t + 1)}({','.join(str(i + 1) for i in at)})"] = x
        self.name = re.compile("|".join(map(re.escape, sorted(self.value, key=len, reverse=True))))

    def b(self, i: int, t: int) -> str:
        return f"b{low(i)}({self.symbols[t - 1]})"

    def filled(self, formula: str) -> str:
        """The formula with numbers for the letters."""
        return self.name.sub(lambda name: operand(self.value[name[0]]), formula)

    def line(self, name: str, formula: str, *forms: str) -> str:
        """name = formula = formula with numbers = forms = value."""
        return line(name, formula, self.filled(formula), *forms, self.value[name])

    def parts(self) -> Iterator[list[str]]:
        states, times, p = self.states, self.times, operand(self.v.likelihood)
        yield ["forward", formulas(*self.ahead("α", " + ", "[{}]·{}"))]
        yield ["backward", formulas(*self.back())]
        yield ["likelihood", formulas(*self.likelihood())]
        gamma = {f"γ{low(t)}({i})": f"α{low(t)}({i})·β{low(t)}({i})" for t in times for i in states}
        yield ["gamma", formulas(*(line(x, f"{self.filled(y)} / {p}", self.value[x]) for x, y in gamma.items()))]
        xi = {
            f"ξ{low(t)}({i},{j})": f"α{low(t)}({i})·a{low(i)}{low(j)}·{self.b(j, t + 1)}·β{low(t + 1)}({j})"
            for t, i, j in itertools.product(times[:-1], states, states)
        }
        if xi:
            yield ["xi", formulas(*(line(x, f"{self.filled(y)} / {p}", self.value[x]) for x, y in xi.items()))]
        if len(states) ** len(times) <= PATHS_UP_TO:
            yield ["paths", self.paths(), formulas(line("max_q P(q, O | λ)", max(self.v.delta[-1])))]
        lines, trace = formulas(*self.ahead("δ", ", ", "max[{}]·{}")), formulas(*self.trace())
        back = self.say("从最后一个时刻回溯：", "Traced back from the last time step:")
        ties = self.say("概率相等时，取序号较小的状态。", "Ties go to the state with the lower number.")
        yield ["viterbi", lines, self.trellis(), back, trace, ties]

    def ahead(self, letter: str, sign: str, form: str) -> Iterator[str]:
        """The lines of α or δ."""
        for i in self.states:
            yield self.line(f"{letter}₁({i})", f"π{low(i)}·{self.b(i, 1)}")
        for t, i in itertools.product(self.times[1:], self.states):
            name, b = f"{letter}{low(t)}({i})", self.b(i, t)
            formula = form.format(sign.join(f"{letter}{low(t - 1)}({j})·a{low(j)}{low(i)}" for j in self.states), b)
            if letter == "α":
                yield self.line(name, formula)
            else:
                products = map(operand, self.v.delta[t - 2] * self.model.exact[1][:, i - 1])
                text = self.line(name, formula, form.format(sign.join(products), self.filled(b)))
                yield f"{text}, ψ{low(t)}({i}) = {self.v.psi[t - 1, i - 1] + 1}"

    def back(self) -> Iterator[str]:
        """The lines of β."""
        yield from (f"β{low(self.times[-1])}({i}) = 1" for i in self.states)
        for t, i in itertools.product(reversed(self.times[:-1]), self.states):
            terms = (f"a{low(i)}{low(j)}·{self.b(j, t + 1)}·β{low(t + 1)}({j})" for j in self.states)
            yield self.line(f"β{low(t)}({i})", " + ".join(terms))

    def likelihood(self) -> Iterator[str]:
        ways = [f"α{low(self.times[-1])}(i)", "πᵢ bᵢ(o₁) β₁(i)", *(f"α{t}(i) β{t}(i)" for t in map(low, self.times))]
        for way in ways:
            terms = (way.replace(" ", "·").replace("(i)", f"({i})").replace("ᵢ", low(i)) for i in self.states)
            formula = " + ".join(terms).replace("(o₁)", f"({self.symbols[0]})")
            yield line(f"P(O | λ) = Σᵢ {way}", self.filled(formula), self.v.likelihood)

    def paths(self) -> str:
        """All paths with their probabilities."""
        total, rows = self.v.likelihood, []
        for q in itertools.product(self.states, repeat=len(self.times)):
            factors = [f"π{low(q[0])}", self.b(q[0], 1)]
            for t, (i, j) in enumerate(itertools.pairwise(q), start=2):
                factors += [f"a{low(i)}{low(j)}", self.b(j, t)]
            p, mark = math.prod(map(self.value.get, factors)), "*" if [*q] == [*self.v.path + 1] else ""
            names, share = ", ".join(self.model.states[i - 1] for i in q), Fraction(round(1000 * p / total), 10)
            rows.append([f"q{mark} = ({names})", line(self.filled("·".join(factors)), p), f"{operand(share)}%"])
        rows.append([self.say("合计", "sum"), line("P(O)", total), "100%"])
        return table([self.say("路径", "path"), "P(q, O | λ)", self.say("占 P(O)", "share of P(O)")], rows)

    def trellis(self) -> str:
        """δ and ψ with the best path."""
        rows = []
        for t, best in enumerate(self.v.path):
            deltas = [operand(x) + ("*" if i == best else "") for i, x in enumerate(self.v.delta[t])]
            backs = [state(j if t else -1) for j in self.v.psi[t]]
            rows.append([str(t + 1), self.symbols[t], *deltas, *backs, state(best)])
        return table(["t", "oₜ", *(f"{letter}ₜ({i})" for letter in "δψ" for i in self.states), "q*ₜ"], rows)

    def trace(self) -> Iterator[str]:
        ends, last = self.v.delta[-1], low(self.times[-1])
        yield line(f"P* = maxᵢ δ{last}(i)", f"max[{', '.join(map(operand, ends))}]", max(ends))
        yield f"q*{last} = {self.v.path[-1] + 1}"
        steps = zip(map(low, self.times), self.v.path + 1, strict=True)
        for (after, j), (t, i) in itertools.pairwise([*steps][::-1]):
            yield f"q*{t} = ψ{after}({j}) = {i}"


# Text.

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


def table(header: Sequence[str], rows: list[list[str]]) -> str:
    rows = [header, *rows]
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    padded = ["   ".join(" " * (w - width(cell)) + cell for w, cell in zip(widths, row, strict=True)) for row in rows]
    return formulas(*padded)


def short(items: Sequence, whole: int = ROWS, gap: Sequence = ("…",)) -> list:
    """The items, or only the first and last."""
    return [*items] if len(items) <= whole else [*items[: ROWS // 2], *gap, *items[-ROWS // 2 :]]


def rounded(x: float | Decimal, digits: int = 6) -> str:
    text, _, exponent = format(x, f".{digits}g").partition("e")
    return f"{text}·10{str(int(exponent)).translate(HIGH)}" if exponent else text


def equals(x: Fraction) -> str:
    """= decimal = fraction, or = fraction ≈ decimal if the decimal, of 10 digits, is not exact."""
    quotient, fraction = (
        Decimal(x.numerator) / Decimal(x.denominator),
        f"= {x}" if len(str(x)) <= FRACTION_LENGTH else "",
    )
    if Fraction(format(quotient, ".10g")) != x:
        return f"{fraction} ≈ {rounded(quotient)}".lstrip()
    return f"= {rounded(quotient, 10)} {fraction if x.denominator > 1 else ''}".rstrip()


def operand(x: Fraction) -> str:
    """A number in a formula: the first form that it `equals`."""
    return equals(x).split()[1]


def line(*forms) -> str:
    """forms = … = value."""
    return f"{' = '.join(forms[:-1])} {equals(forms[-1])}"


def log_number(log_p: float) -> str:
    """A probability from its logarithm, with 6 digits; it may be below the range of floats."""
    return rounded(math.exp(log_p) if log_p > -700 or log_p == -math.inf else Decimal(float(log_p)).exp())


def state(i: int) -> str:
    return f"S{low(i + 1)}" if i >= 0 else "–"
