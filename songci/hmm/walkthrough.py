"""A sequence under a hidden Markov model, worked through as on paper: every number with its formula filled in.

`walkthrough()` makes a document in the notation of the handout (and of Rabiner's tutorial; the handout's φ is his ψ),
in Chinese or English (`words.py`). Small problems are computed in fractions and shown with all formulas; larger ones
are computed by `inference.py` and shown as tables, without their middle when they are long. `render.py` prints it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import numpy as np

from songci.hmm.inference import Path, backward, forward, pair_posterior, posterior, viterbi
from songci.hmm.markov import HMM, all_paths, by_definition
from songci.hmm.render import Formulas, Heading, Table, Text, decimal, equals, log_number, name, operand, times
from songci.hmm.words import Words

FORMULAS_UP_TO = 128  # T·N²: formulas with fractions up to here, tables of floats beyond
PATHS_UP_TO = 64  # N^T: all paths are listed up to here
PATH_UP_TO = 200  # T: paths of --kbest are shown in full up to here, because they may differ anywhere
ROWS, COLUMNS = 24, 16  # of a table that is shown in full


def walkthrough(model: HMM, obs: Sequence[int], lang: str) -> list:
    """The document, a list of blocks for `render`, about `obs` (T,); `lang` is zh or en. Raises ModelError."""
    obs, say = model.check(obs).tolist(), Words(lang)
    work = Worked if len(obs) * len(model.states) ** 2 <= FORMULAS_UP_TO else Tabulated
    shown = work(model, obs, say)
    document = [*_model(model, obs, say), *shown.forward(), *shown.backward(), *shown.likelihood()]
    if not shown.possible:
        return [*document, Heading(say("answer")), Text(say("impossible", t=shown.impossible_at()))]
    return [*document, *shown.posteriors(), *shown.viterbi(), *shown.answer()]


def kbest_section(model: HMM, paths: list[Path], k: int, lang: str) -> list:
    """The blocks about `paths`: the `k` best of a sequence, or all of them if fewer are possible."""
    say = Words(lang)
    rows = [
        [str(rank), _names(model, path.states, ", ", whole=PATH_UP_TO), log_number(path.log_probability)]
        for rank, path in enumerate(paths, start=1)
    ]
    table = Table("", ["", name(say("path")), r"P(q, O \mid \lambda)"], rows)
    return [Heading(say("kbest", n=len(paths))), table, *([Text(say("fewer"))] if len(paths) < k else [])]


def _short(items: list[str], whole: int = ROWS) -> list[str]:
    return items if len(items) <= whole else [*items[: ROWS // 2], "…", *items[-ROWS // 2 :]]


def _names(model: HMM, path: Iterable[int], comma: str, whole: int = ROWS) -> str:
    return comma.join(_short([name(model.states[i]) for i in path], whole))


# The parts of a document.


def _model(model: HMM, obs: list[int], say: Words) -> list:
    pi, a, b = model.exact
    states = [rf"S_{{{i}}} {name(state)}" for i, state in enumerate(model.states, start=1)]
    tables = [
        Table(r"\pi_i = P(q_1 = S_i)", ["", r"\pi_i"], [[s, operand(p)] for s, p in zip(states, pi, strict=True)]),
        *_matrix(say, r"A: a_{ij} = P(q_{t+1} = S_j \mid q_t = S_i)", states, states, a),
        *_matrix(say, r"B: b_i(k) = P(o_t = k \mid q_t = S_i)", states, [name(symbol) for symbol in model.symbols], b),
    ]
    shown = _short([name(model.symbols[o]) for o in obs])
    return [Heading(say("model")), *tables, Heading(say("observed")), Text("O = " + ", ".join(shown))]


def _matrix(say: Words, title: str, rows: list[str], columns: list[str], cells: list[list]) -> list:
    if len(columns) > COLUMNS:
        return [Formulas([title]), Text(say("wide matrix", n=len(columns)))]  # it stands in the model's file
    return [Table(title, ["", *columns], [[r, *map(operand, row)] for r, row in zip(rows, cells, strict=True)])]


def _elided(rows: Sequence, say: Words, make: Callable) -> tuple[list, list]:
    """make(t, row) for each row, and no note; or without the middle if there are many rows, and a note that says so."""
    if len(rows) <= ROWS:
        return [make(t, rows[t]) for t in range(len(rows))], []
    ends = [*range(ROWS // 2), *range(len(rows) - ROWS // 2, len(rows))]
    made = [make(t, rows[t]) for t in ends]
    made.insert(ROWS // 2, ["…"] * len(made[0]))
    return made, [Text(say("left out", n=len(rows)))]


class Tabulated:
    """A large problem: tables of what `inference.py` computes."""

    def __init__(self, model: HMM, obs: list[int], say: Words):
        self.model, self.obs, self.say = model, np.array(obs), say
        self.alpha = forward(model, obs)
        self.possible = self.alpha.log_norm[-1] > -math.inf

    def impossible_at(self) -> int:
        """The number of observations, from the first on, that no state sequence emits."""
        return int(np.flatnonzero(np.isneginf(self.alpha.log_norm))[0]) + 1

    def table(
        self, title: str, logs: np.ndarray, columns: list[str] | None = None, cell: Callable = log_number
    ) -> list:
        """The rows of `logs` (T, columns), each with its time and symbol; cell(x) prints an entry."""
        columns = columns or [f"S_{{{i + 1}}}" for i in range(logs.shape[1])]
        if len(columns) > COLUMNS:
            return [Formulas([title]), Text(self.say("wide", n=len(columns)))]
        rows, note = _elided(
            logs, self.say, lambda t, row: [str(t + 1), name(self.model.symbols[self.obs[t]]), *map(cell, row)]
        )
        return [Table(title, ["t", "o_t", *columns], rows), *note]

    def forward(self) -> list:
        return [Heading(self.say("forward")), *self.table(r"\alpha_t(i)", self.alpha.log)]

    def backward(self) -> list:
        self.beta = backward(self.model, self.obs)
        return [Heading(self.say("backward")), *self.table(r"\beta_t(i)", self.beta.log)]

    def likelihood(self) -> list:
        with np.errstate(divide="ignore"):
            first = np.log(self.model.startprob) + np.log(self.model.emissionprob[:, self.obs[0]])
        both = np.logaddexp.reduce(self.alpha.log + self.beta.log, axis=1)
        ways = [
            (r"P(O \mid \lambda) = \sum_i \alpha_T(i)", self.alpha.log_norm[-1]),
            (r"P(O \mid \lambda) = \sum_i \pi_i b_i(o_1) \beta_1(i)", np.logaddexp.reduce(first + self.beta.log[0])),
            (r"P(O \mid \lambda) = \sum_i \alpha_1(i) \beta_1(i)", both[0]),
            (r"P(O \mid \lambda) = \sum_i \alpha_T(i) \beta_T(i)", both[-1]),
        ]
        lines = [f"{way} = {log_number(log_p)}" for way, log_p in ways]
        if self.possible:
            lines.append(rf"\operatorname{{ln}} P(O \mid \lambda) = {self.alpha.log_norm[-1]:.10g}")
        return [Heading(self.say("likelihood")), Formulas(lines)]

    def posteriors(self) -> list:
        with np.errstate(divide="ignore"):
            gamma = np.log(posterior(self.model, self.obs))
            blocks = [Heading(self.say("gamma")), *self.table(r"\gamma_t(i) = P(q_t = S_i \mid O, \lambda)", gamma)]
            title, n = r"\xi_t(i,j) = P(q_t = S_i, q_{t+1} = S_j \mid O, \lambda)", len(self.model.states)
            pairs = [rf"S_{{{i}}} \to S_{{{j}}}" for i in range(1, n + 1) for j in range(1, n + 1)]
            blocks.append(Heading(self.say("xi")))
            if len(pairs) > COLUMNS:  # before all the T·N² numbers are computed
                return [*blocks, Formulas([title]), Text(self.say("wide", n=len(pairs)))]
            xi = np.log(pair_posterior(self.model, self.obs)).reshape(len(self.obs) - 1, n * n)
        return [*blocks, *self.table(title, xi, pairs)]

    def viterbi(self) -> list:
        self.best = best = viterbi(self.model, self.obs)
        delta = self.table(r"\delta_t(i)", best.delta.log)
        psi = self.table(r"\psi_t(i)", np.vstack([np.full(best.psi.shape[1], -1), best.psi[1:]]), cell=_state)
        return [Heading(self.say("viterbi")), *delta, *psi, Text(self.say("ties"))]

    def answer(self) -> list:
        log_p, best = self.alpha.log_norm[-1], self.best.log_probability
        return _answer(
            self.model, self.obs, self.say, log_number(log_p), log_number(best), best - log_p, self.best.path
        )


def _state(i: int) -> str:
    """S_i as a formula, or – for -1."""
    return f"S_{{{i + 1}}}" if i >= 0 else name("–")


def _answer(model, obs, say, likelihood: str, best: str, log_share: float, path) -> list:
    comma, share = say("comma"), math.exp(min(log_share, 0))
    words = {"p": likelihood, "best": best, "path": _names(model, path, comma)}
    words["obs"] = ", ".join(_short([name(model.symbols[o]) for o in obs]))
    words["share"] = say("its share", share=share) if share > 5e-4 else ""
    return [Heading(say("answer")), Text(say("sentence", **words))]


class Worked:
    """A small problem: every number with its formula, in fractions."""

    def __init__(self, model: HMM, obs: list[int], say: Words):
        self.model, self.obs, self.say = model, obs, say
        self.pi, self.a, self.b = model.exact
        self.v = by_definition(*model.exact, obs)
        self.possible = self.v.likelihood > 0
        self.states, self.end = range(len(self.pi)), len(obs) - 1

    def impossible_at(self) -> int:
        """The number of observations, from the first on, that no state sequence emits."""
        return next(t for t, row in enumerate(self.v.alpha, start=1) if not any(row))

    def b_of(self, i: int, t: int) -> str:
        """b_i(o_t), as a formula."""
        return rf"b_{{{i + 1}}}({name(self.model.symbols[self.obs[t]])})"

    def at(self, variable: str, t: int, i: int) -> str:
        """α_t(i), or another variable, as a formula."""
        return rf"\{variable}_{{{t + 1}}}({i + 1})"

    def first(self, variable: str, values: list) -> list[str]:
        """The lines of α_1 or δ_1, which are the same."""
        return [
            rf"{self.at(variable, 0, i)} = \pi_{{{i + 1}}} \cdot {self.b_of(i, 0)} "
            rf"= {times(self.pi[i], self.b[i][self.obs[0]])} {equals(values[i])}"
            for i in self.states
        ]

    def into(self, variable: str, values: list, t: int, i: int, comma: str) -> tuple[str, str]:
        """The products of α_{t-1}(j) or δ_{t-1}(j) with a_ji for all j: with letters, and with `values` filled in."""
        letters = comma.join(rf"{self.at(variable, t - 1, j)} \cdot a_{{{j + 1}{i + 1}}}" for j in self.states)
        return letters, comma.join(times(values[j], self.a[j][i]) for j in self.states)

    def forward(self) -> list:
        alpha = self.v.alpha
        lines = self.first("alpha", alpha[0])
        for t in range(1, self.end + 1):
            for i in self.states:
                letters, filled = self.into("alpha", alpha[t - 1], t, i, " + ")
                lines.append(
                    rf"{self.at('alpha', t, i)} = [{letters}] \cdot {self.b_of(i, t)} "
                    rf"= [{filled}] \cdot {operand(self.b[i][self.obs[t]])} {equals(alpha[t][i])}"
                )
        rule = r"\alpha_{t+1}(i) = [\sum_j \alpha_t(j) a_{ji}] b_i(o_{t+1})"
        rule += r" = P(o_1 \ldots o_{t+1}, q_{t+1} = S_i \mid \lambda)"
        return [Heading(self.say("forward")), Formulas([rule]), Formulas(lines)]

    def backward(self) -> list:
        beta, lines = self.v.beta, [rf"{self.at('beta', self.end, i)} = 1" for i in self.states]
        for t in reversed(range(self.end)):
            for i in self.states:
                symbols = " + ".join(
                    rf"a_{{{i + 1}{j + 1}}} \cdot {self.b_of(j, t + 1)} \cdot {self.at('beta', t + 1, j)}"
                    for j in self.states
                )
                filled = " + ".join(
                    times(self.a[i][j], self.b[j][self.obs[t + 1]], beta[t + 1][j]) for j in self.states
                )
                lines.append(rf"{self.at('beta', t, i)} = {symbols} = {filled} {equals(beta[t][i])}")
        rule = r"\beta_t(i) = \sum_j a_{ij} b_j(o_{t+1}) \beta_{t+1}(j) = P(o_{t+1} \ldots o_T \mid q_t = S_i, \lambda)"
        return [Heading(self.say("backward")), Formulas([rule]), Formulas(lines)]

    def likelihood(self) -> list:
        alpha, beta, p = self.v.alpha, self.v.beta, equals(self.v.likelihood)
        forwards = " + ".join(operand(x) for x in alpha[self.end])
        backwards = " + ".join(times(self.pi[i], self.b[i][self.obs[0]], beta[0][i]) for i in self.states)
        lines = [
            rf"P(O \mid \lambda) = \sum_i \alpha_{{{self.end + 1}}}(i) = {forwards} {p}",
            rf"P(O \mid \lambda) = \sum_i \pi_i b_i(o_1) \beta_1(i) = {backwards} {p}",
        ]
        for t in range(self.end + 1):
            both = " + ".join(times(alpha[t][i], beta[t][i]) for i in self.states)
            total = sum(alpha[t][i] * beta[t][i] for i in self.states)
            lines.append(
                rf"P(O \mid \lambda) = \sum_i \alpha_{{{t + 1}}}(i) \beta_{{{t + 1}}}(i) = {both} {equals(total)}"
            )
        return [Heading(self.say("likelihood")), Formulas(lines)]

    def posteriors(self) -> list:
        alpha, beta, gamma, xi, p = self.v.alpha, self.v.beta, self.v.gamma, self.v.xi, operand(self.v.likelihood)
        states = [
            rf"{self.at('gamma', t, i)} = {times(alpha[t][i], beta[t][i])} / {p} {equals(gamma[t][i])}"
            for t in range(self.end + 1)
            for i in self.states
        ]
        pairs = []
        for t in range(self.end):
            for i in self.states:
                for j in self.states:
                    product = times(alpha[t][i], self.a[i][j], self.b[j][self.obs[t + 1]], beta[t + 1][j])
                    pairs.append(rf"\xi_{{{t + 1}}}({i + 1},{j + 1}) = {product} / {p} {equals(xi[t][i][j])}")
        rule = r"\gamma_t(i) = \alpha_t(i) \beta_t(i) / P(O \mid \lambda) = P(q_t = S_i \mid O, \lambda)"
        blocks = [Heading(self.say("gamma")), Formulas([rule]), Formulas(states)]
        if pairs:
            rule = r"\xi_t(i,j) = \alpha_t(i) a_{ij} b_j(o_{t+1}) \beta_{t+1}(j) / P(O \mid \lambda)"
            rule += r" = P(q_t = S_i, q_{t+1} = S_j \mid O, \lambda)"
            blocks += [Heading(self.say("xi")), Formulas([rule]), Formulas(pairs)]
        return blocks

    def paths(self) -> list:
        """All paths with their probabilities, if there are not too many."""
        number = len(self.pi) ** len(self.obs)
        if number > PATHS_UP_TO:
            return []
        rows, total, best = [], self.v.likelihood, max(self.v.delta[self.end])
        for q, p in all_paths(self.pi, self.a, self.b, self.obs):
            factors = [self.pi[q[0]], self.b[q[0]][self.obs[0]]]
            for t in range(1, len(q)):
                factors += [self.a[q[t - 1]][q[t]], self.b[q[t]][self.obs[t]]]
            mark = "^*" if list(q) == self.v.path else ""
            names = ", ".join(name(self.model.states[i]) for i in q)
            share = decimal(Fraction(round(1000 * p / total), 10))[0]
            rows.append([f"q{mark} = ({names})", f"{times(*factors)} {equals(p)}", rf"{share}\%"])
        rows.append([name(self.say("sum")), f"P(O) {equals(total)}", r"100\%"])
        table = Table("", [name(self.say("path")), r"P(q, O \mid \lambda)", name(self.say("share"))], rows)
        check = rf"\max_q P(q, O \mid \lambda) {equals(best)}"
        return [Heading(self.say("paths", n=number)), table, Formulas([check])]

    def viterbi(self) -> list:
        delta = self.v.delta
        lines = self.first("delta", delta[0])
        for t in range(1, self.end + 1):
            for i in self.states:
                letters, filled = self.into("delta", delta[t - 1], t, i, ", ")
                products = ", ".join(operand(delta[t - 1][j] * self.a[j][i]) for j in self.states)
                b = operand(self.b[i][self.obs[t]])
                lines.append(
                    rf"{self.at('delta', t, i)} = \max[{letters}] \cdot {self.b_of(i, t)} "
                    rf"= \max[{filled}] \cdot {b} = \max[{products}] \cdot {b} {equals(delta[t][i])}, "
                    rf"\psi_{{{t + 1}}}({i + 1}) = {self.v.psi[t][i] + 1}"
                )
        rule = r"\delta_{t+1}(i) = \max_j[\delta_t(j) a_{ji}] b_i(o_{t+1})"
        rule += r", \psi_{t+1}(i) = \operatorname{argmax}_j \delta_t(j) a_{ji}"
        blocks = [Heading(self.say("viterbi")), Formulas([rule]), Formulas(lines), self.trellis()]
        return [*self.paths(), *blocks, Text(self.say("trace")), Formulas(self.trace()), Text(self.say("ties"))]

    def trellis(self) -> Table:
        """δ, ψ and the best path as a table with one row per time."""
        columns = [rf"\{variable}_t({i + 1})" for variable in ("delta", "psi") for i in self.states]
        rows = []
        for t, (o, best) in enumerate(zip(self.obs, self.v.path, strict=True)):
            deltas = [operand(x) + ("^*" if i == best else "") for i, x in enumerate(self.v.delta[t])]
            backs = [_state(j if t else -1) for j in self.v.psi[t]]
            rows.append([str(t + 1), name(self.model.symbols[o]), *deltas, *backs, _state(best)])
        return Table("", ["t", "o_t", *columns, "q^*_t"], rows)

    def trace(self) -> list[str]:
        """The lines that go from P* back along ψ."""
        path, last = self.v.path, self.v.delta[self.end]
        filled = ", ".join(operand(x) for x in last)
        lines = [
            rf"P^* = \max_i \delta_{{{self.end + 1}}}(i) = \max[{filled}] {equals(max(last))}",
            rf"q^*_{{{self.end + 1}}} = {path[self.end] + 1}",
        ]
        for t in reversed(range(self.end)):
            lines.append(rf"q^*_{{{t + 1}}} = \psi_{{{t + 2}}}({path[t + 1] + 1}) = {path[t] + 1}")
        return lines

    def answer(self) -> list:
        p, best = self.v.likelihood, max(self.v.delta[self.end])
        share = math.log(best / p) if best / p > 0 else -math.inf
        return _answer(self.model, self.obs, self.say, operand(p), operand(best), share, self.v.path)
