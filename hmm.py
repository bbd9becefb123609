"""Hidden Markov models (隐含马尔可夫模型) with discrete observations, and the handout's phone-store exercise solved.

`python hmm.py` prints the model λ = (π, A, B), the forward and backward variables α and β, the posteriors γ and ξ,
P(O), and Viterbi's δ, ψ and best path. States are S1 畅销 (selling well) and S2 滞销 (selling badly); the
observations are the grade of phone bought in each month: H high, M middle, L low.

The functions work for any discrete model and length. In code, times, states and symbols count from 0; in print and in
messages from 1, as in the handout. Source: L. R. Rabiner, "A tutorial on hidden Markov models and selected applications
in speech recognition", Proc. IEEE 77(2), 1989; its equation numbers stand in the docstrings.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from cli import ArgumentParser, UserError, run

ROW_SUM_TOLERANCE = 1e-6
TIE = 1e-12  # log-probabilities that differ by less are a tie: 0.1·0.6 and 0.2·0.3 differ in their last bit
_log_sum, _maximum = np.logaddexp.reduce, np.maximum.reduce


class ModelError(ValueError):
    """A model that is none, or observations that it does not know."""


class ImpossibleSequenceError(ValueError):
    """P(O|λ) = 0: nothing can be said given O, for no state sequence emits it."""


@dataclass(frozen=True, eq=False)
class HMM:
    """λ = (π, A, B), with the names of its N states and M symbols (by default S1 … SN and v1 … vM).

    `startprob` (N,) holds π_i, `transmat` (N, N) a_ij from row i to column j, `emissionprob` (N, M) b_i(k). They are
    copied and made read-only. Raises ModelError, which names the matrix, the row and its sum.
    """

    startprob: np.ndarray
    transmat: np.ndarray
    emissionprob: np.ndarray
    states: Sequence[str] = ()
    symbols: Sequence[str] = ()

    def __post_init__(self):
        for name, dimensions in ("startprob", 1), ("transmat", 2), ("emissionprob", 2):
            object.__setattr__(self, name, _probabilities(name, getattr(self, name), dimensions))
        n, m = len(self.startprob), self.emissionprob.shape[1]
        for name, shape in ("transmat", (n, n)), ("emissionprob", (n, m)):
            if getattr(self, name).shape != shape:
                raise ModelError(f"{name} has shape {getattr(self, name).shape}, not {shape}: startprob has {n} states")
        for field, count, letter in ("states", n, "S"), ("symbols", m, "v"):
            names = tuple(getattr(self, field)) or tuple(f"{letter}{i + 1}" for i in range(count))
            if len(names) != count or len(set(names)) != count:
                raise ModelError(f"{field} must be {count} different names, not {', '.join(map(str, names))}")
            object.__setattr__(self, field, names)

    def encode(self, symbols: Iterable[str]) -> np.ndarray:
        """Symbols by name → their indices (T,). Raises ModelError on an unknown one, and if there is none."""
        index = {name: k for k, name in enumerate(self.symbols)}
        try:
            return _observations(self, [index[symbol] for symbol in symbols])
        except KeyError as error:
            raise ModelError(f"unknown symbol {error}, the model has {', '.join(self.symbols)}") from None


def _probabilities(name: str, values, dimensions: int) -> np.ndarray:
    try:
        matrix = np.array(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} is not a table of numbers: {error}") from None
    if matrix.ndim != dimensions or matrix.size == 0:
        raise ModelError(f"{name} has shape {matrix.shape}: it needs {dimensions} dimension(s), none of them empty")
    for number, row in enumerate(np.atleast_2d(matrix), start=1):
        where, total = name if dimensions == 1 else f"{name} row {number}", row.sum()
        for column in np.flatnonzero(~(row >= 0))[:1]:  # NaN fails every comparison
            raise ModelError(f"{where}, entry {column + 1} is {row[column]:g}, not a probability (row sum {total:g})")
        if abs(total - 1) > ROW_SUM_TOLERANCE:
            raise ModelError(f"{where} sums to {total:.9g}, not to 1")
    matrix.setflags(write=False)
    return matrix


def _observations(model: HMM, obs: Sequence[int]) -> np.ndarray:
    obs, m = np.asarray(obs), model.emissionprob.shape[1]
    if obs.size == 0:
        raise ModelError("the observation sequence is empty")
    if obs.ndim != 1 or obs.dtype.kind not in "iu":
        raise ModelError(f"observations must be T whole numbers, not {obs.dtype} of shape {obs.shape}")
    for t in np.flatnonzero((obs < 0) | (obs >= m))[:1]:
        raise ModelError(f"observation {t + 1} is {obs[t]}, but the symbols' indices are 0 to {m - 1}")
    return obs


PHONE_STORE = HMM(
    startprob=[0.5, 0.5],
    transmat=[[0.6, 0.4], [0.5, 0.5]],
    emissionprob=[[0.4, 0.4, 0.2], [0.2, 0.3, 0.5]],
    states=("畅销", "滞销"),
    symbols=("H", "M", "L"),
)


class Scaled(NamedTuple):
    """T rows of N numbers that would underflow: row t is exp(log_values[t] + log_norm[t]). Zero is ln 0 = -inf.

    Like Rabiner's α̂ and β̂ (section V.A), but each variable has norms of its own, and all are logarithms: a state that
    is 10⁻⁴⁰⁰ times as likely as another is not lost, for it may be the one that survives.
    """

    log_values: np.ndarray  # (T, N), a row's sum is 1 in α and β, its maximum is 1 in δ
    log_norm: np.ndarray  # (T,), the row's sum or maximum before; -inf for a row of zeros

    @property
    def log(self) -> np.ndarray:  # (T, N), never NaN
        return self.log_values + self.log_norm[:, None]

    @property
    def plain(self) -> np.ndarray:  # (T, N) of plain probabilities, 0 where a float underflows
        return np.exp(self.log)


@np.errstate(divide="ignore")
def _logs(model: HMM, obs: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # ln π_i (N,), ln a_ij (N, N), ln b_i(o_t) (T, N)
    return np.log(model.startprob), np.log(model.transmat), np.log(model.emissionprob.T[_observations(model, obs)])


def _scaled(row: np.ndarray, step: Callable, log_b: np.ndarray, size: Callable) -> Scaled:
    # The recursion of all three variables: row ← step(row, ln b(o)), scaled so that size(row) is ln 1
    values, norm = np.empty((len(log_b) + 1, len(row))), np.empty(len(log_b) + 1)
    for t in range(len(values)):
        row = step(row, log_b[t - 1]) if t else row
        norm[t] = size(row)
        values[t] = row = row if norm[t] == -np.inf else row - norm[t]
    return Scaled(values, np.cumsum(norm))


def forward(model: HMM, obs: Sequence[int]) -> Scaled:
    """α_t(i) = P(o_1 … o_t, q_t = S_i | λ) for `obs` (T,) as (T, N); eqs. 19, 20.

    `log_norm[t]` is ln P(o_1 … o_t | λ), so `log_norm[-1]` is the log-likelihood (eqs. 21, 103). From the first
    impossible observation on, rows are zero and `log_norm` is -inf. Raises ModelError.
    """
    log_pi, log_a, log_b = _logs(model, obs)
    return _scaled(log_pi + log_b[0], lambda row, b: _log_sum(row[:, None] + log_a, axis=0) + b, log_b[1:], _log_sum)


def backward(model: HMM, obs: Sequence[int]) -> Scaled:
    """β_t(i) = P(o_{t+1} … o_T | q_t = S_i, λ) for `obs` (T,) as (T, N), β_T(i) = 1; eqs. 24, 25.

    It needs no α: Σ_i π_i b_i(o_1) β_1(i) gives P(O|λ) a second time. Raises ModelError.
    """
    log_pi, log_a, log_b = _logs(model, obs)
    beta = _scaled(np.zeros_like(log_pi), lambda row, b: _log_sum(log_a + b + row, axis=1), log_b[:0:-1], _log_sum)
    return Scaled(beta.log_values[::-1], beta.log_norm[::-1])


def posterior(model: HMM, obs: Sequence[int]) -> np.ndarray:
    """γ_t(i) = P(q_t = S_i | O, λ) = α_t(i) β_t(i) / Σ_j α_t(j) β_t(j) as (T, N), rows of sum 1; eq. 27.

    Raises ModelError, and ImpossibleSequenceError if P(O|λ) = 0.
    """
    log_gamma = _possible(forward(model, obs)).log_values + backward(model, obs).log_values
    return np.exp(log_gamma - _log_sum(log_gamma, axis=1, keepdims=True))


def pair_posterior(model: HMM, obs: Sequence[int]) -> np.ndarray:
    """ξ_t(i, j) = P(q_t = S_i, q_{t+1} = S_j | O, λ) = α_t(i) a_ij b_j(o_{t+1}) β_{t+1}(j) / P(O|λ); eq. 37.

    Shape (T-1, N, N), each matrix of sum 1. Raises ModelError, and ImpossibleSequenceError if P(O|λ) = 0.
    """
    _, log_a, log_b = _logs(model, obs)
    alpha, beta = _possible(forward(model, obs)).log_values, backward(model, obs).log_values
    log_xi = alpha[:-1, :, None] + log_a + (log_b + beta)[1:, None, :]
    return np.exp(log_xi - _log_sum(log_xi, axis=(1, 2), keepdims=True))


def _possible(variables: Scaled) -> Scaled:
    for t in np.flatnonzero(np.isneginf(variables.log_norm))[:1]:
        raise ImpossibleSequenceError(f"P(O) = 0: no state sequence emits the first {t + 1} observation(s)")
    return variables


class Viterbi(NamedTuple):
    path: np.ndarray  # (T,) the states q*_t, from 0
    log_probability: float  # ln P* = ln max P(q_1 … q_T, O | λ)
    delta: Scaled  # (T, N) δ_t(i) = max P(q_1 … q_{t-1}, q_t = S_i, o_1 … o_t | λ)
    psi: np.ndarray  # (T, N) state i's best predecessor ψ_t(i), from 0; the first row is 0 by convention


def viterbi(model: HMM, obs: Sequence[int]) -> Viterbi:
    """The most probable state sequence of `obs` (T,), with its tables; eqs. 32 to 35.

    Ties (within TIE) go to the lower index, in ψ and at the end: of several best paths it is the one with the lowest
    last state, of these the one with the lowest last but one, and so on. Raises as `posterior` does.
    """
    log_pi, log_a, log_b = _logs(model, obs)
    delta = _scaled(log_pi + log_b[0], lambda row, b: _maximum(row[:, None] + log_a, axis=0) + b, log_b[1:], _maximum)
    scores = _possible(delta).log_values[:-1, :, None] + log_a  # (T-1, N, N): from row j to column i
    path, psi = np.empty(len(log_b), dtype=int), np.zeros(log_b.shape, dtype=int)
    psi[1:] = np.argmax(scores >= scores.max(axis=1, keepdims=True) - TIE, axis=1)
    path[-1] = np.argmax(delta.log_values[-1] >= -TIE)  # δ is scaled: the best is ln 1
    for t in reversed(range(1, len(psi))):
        path[t - 1] = psi[t, path[t]]
    return Viterbi(path, float(delta.log_norm[-1]), delta, psi)


@np.errstate(divide="ignore")
def report(model: HMM, obs: Sequence[int]) -> str:
    """All variables of `obs` as aligned tables, and the answer, in the handout's notation (its φ is Rabiner's ψ)."""
    best, xi = viterbi(model, obs), pair_posterior(model, obs)
    alpha, beta, gamma = forward(model, obs), backward(model, obs), posterior(model, obs)
    short = [f"S{i + 1}" for i in range(len(model.states))]
    states = [f"{i} {name}" for i, name in zip(short, model.states, strict=True)]
    times = [f"{t + 1}  {model.symbols[o]}" for t, o in enumerate(obs)]
    pairs = [f"{i} → {j}" for i in short for j in short]
    psi = [["0"] * len(short), *([short[j] for j in row] for row in best.psi[1:])]
    parts = [
        "λ = (π, A, B)",
        _table("π_i = P(q_1 = S_i)", states, ["π_i"], np.log(model.startprob[:, None])),
        _table("A: a_ij = P(q_{t+1} = S_j | q_t = S_i)", states, states, np.log(model.transmat)),
        _table("B: b_i(k) = P(o_t = k | q_t = S_i)", states, model.symbols, np.log(model.emissionprob)),
        f"O = {', '.join(model.symbols[o] for o in obs)}",
        _table("α_t(i) = P(o_1 … o_t, q_t = S_i | λ)", times, states, alpha.log),
        _table("β_t(i) = P(o_{t+1} … o_T | q_t = S_i, λ)", times, states, beta.log),
        f"P(O|λ) = Σ_i α_T(i) = {_number(alpha.log_norm[-1])}",
        _table("γ_t(i) = P(q_t = S_i | O, λ)", times, states, np.log(gamma)),
        _table("ξ_t(i,j) = P(q_t = S_i, q_{t+1} = S_j | O, λ)", times[:-1], pairs, np.log(xi).reshape(-1, len(pairs))),
        _table("δ_t(i) = max P(q_1 … q_{t-1}, q_t = S_i, o_1 … o_t | λ)", times, states, best.delta.log),
        _table("ψ_t(i) = argmax_j δ_{t-1}(j) a_ji", times, states, psi),
        f"P* = max_i δ_T(i) = {_number(best.log_probability)}\n"
        f"q* = {', '.join(short[i] for i in best.path)} = {', '.join(model.states[i] for i in best.path)}",
    ]
    return "\n\n".join(parts)


def _table(title: str, rows: Sequence[str], columns: Sequence[str], cells) -> str:
    def width(text: str) -> int:  # on a terminal, where a Chinese character takes two columns
        return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)

    if isinstance(cells, np.ndarray):  # logarithms of probabilities
        form = ".6f" if np.all(np.isneginf(cells) | (cells > math.log(1e-3))) else ".5e"
        cells = [[_number(x, form) for x in row] for row in cells]
    lines = [["", *columns], *([name, *row] for name, row in zip(rows, cells, strict=True))]
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    padded = [[" " * (w - width(cell)) + cell for w, cell in zip(widths, line, strict=True)] for line in lines]
    return "\n".join([title, *("  " + "   ".join(line) for line in padded)])


def _number(log_p: float, form: str = ".6g") -> str:
    return format(math.exp(log_p) if log_p > -700 else Decimal(float(log_p)).exp(), form)  # a float ends at e^-745


def parse_args():
    parser = ArgumentParser(__doc__)
    parser.add_argument("--obs", default="H,M,L", help="the observations, one a month, with commas between them")
    return parser.parse_args()


def main():
    args = parse_args()
    names = [name.strip() for name in args.obs.replace("，", ",").split(",")]
    try:
        obs = PHONE_STORE.encode(names if any(names) else [])
    except ModelError as error:
        raise UserError(f"--obs {args.obs!r}: {error}; give something like --obs H,M,L") from None
    print(report(PHONE_STORE, obs))


if __name__ == "__main__":
    run(main)
