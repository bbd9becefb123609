"""Inference in a hidden Markov model: the likelihood of a sequence, α, β, γ, ξ, and the best paths, at any length.

T = 10⁶ takes a fraction of a second with few states, and nothing underflows (see `scans.py`). The equation numbers are
those of L. R. Rabiner, Proc. IEEE 77(2), 1989; `markov.by_definition` has the plain recursions.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from songci.hmm.markov import HMM, ImpossibleSequenceError, ModelError
from songci.hmm.scans import Blocks, Sweep, follow
from songci.hmm.semirings import DEAD, LARGEST, FixedPoint, Linear, Logarithmic, Underflow

KBEST_LIMIT = 10**8  # back-pointers of kbest(), T·N·K of them, four bytes each


class Scaled(NamedTuple):
    """T rows of N numbers that would underflow: row t is exp(log_values[t] + log_norm[t]). Zero is ln 0 = -inf.

    Like Rabiner's α̂ and β̂ (section V.A), but each variable has its own norms, and all are logarithms: a state that is
    10⁻⁴⁰⁰ times as likely as another is not lost, because it may be the one that survives.
    """

    log_values: np.ndarray  # (T, N); the sum of a row is 1 in α and β, its maximum is 1 in δ
    log_norm: np.ndarray  # (T,), what the rows were divided by; -inf for a row of zeros

    @property
    def log(self) -> np.ndarray:
        """(T, N) logarithms, never NaN."""
        return self.log_values + self.log_norm[:, None]

    @property
    def plain(self) -> np.ndarray:
        """(T, N) probabilities, 0 where a float underflows."""
        return np.exp(self.log)


class _Table(NamedTuple):
    """What a sweep leaves: α, β or δ in the order of the blocks."""

    algebra: object
    blocks: Blocks
    first: np.ndarray  # (N, 1), the row of t = 0
    first_norm: float
    rest: np.ndarray  # (L, N, K), the rows of t = 1 + kL + l
    norms: np.ndarray  # (L, K), the logarithms of what they were divided by

    @property
    def last(self) -> np.ndarray:
        """(N,), the row of t = T - 1: the last block stands still after it."""
        return self.rest[-1, :, -1] if len(self.rest) else self.first[:, 0]

    def values(self) -> np.ndarray:
        """(T, N), in the order of time."""
        return self.blocks.in_time(self.rest, self.first[:, 0])

    def scaled(self, size: np.ufunc) -> Scaled:
        """`size` says what a row is divided by: logaddexp, its sum; maximum, its maximum."""
        logs = self.algebra.log(self.values())
        norm = self.blocks.in_time(self.norms[:, None], self.first_norm)[:, 0]
        total = size.reduce(logs, axis=1)
        return Scaled(logs - np.where(np.isneginf(total), 0, total)[:, None], total + norm)


def _sweep(algebra, model: HMM, obs: np.ndarray) -> Sweep:
    return Sweep(algebra(model.startprob, model.transmat, model.emissionprob), Blocks(obs, len(model.startprob)))


def _in_floats(solve: Callable, model: HMM, obs: Sequence[int]):
    """solve(sweep) in scaled floats, or in logarithms if floats would lose something."""
    obs = model.check(obs)
    try:
        return solve(_sweep(Linear, model, obs))
    except Underflow:
        return solve(_sweep(Logarithmic, model, obs))


def _first(sweep: Sweep) -> np.ndarray:
    """π_i b_i(o_1), (N, 1)."""
    return sweep.algebra.emit(sweep.algebra.pi[:, None], sweep.blocks.obs[:1])


def _score(sweep: Sweep) -> float:
    ends, norms, before = sweep.run(_first(sweep))
    return float(before[-1] + norms[-1] + sweep.algebra.log_total(ends[:, -1]))


def _empty_tables(sweep: Sweep, dtype=float) -> tuple[np.ndarray, np.ndarray]:
    """(L, N, K) for the values after each step, and (L, K) for their norms."""
    shape = sweep.blocks.length, len(sweep.algebra.pi), sweep.blocks.count
    return np.empty(shape, dtype), np.empty((shape[0], shape[2]))


def _forward(sweep: Sweep) -> _Table:
    table, norms = _empty_tables(sweep)
    first, norm = sweep.algebra.scale(_first(sweep))
    before = sweep.run(first, table=table, norms=norms)[2]
    norms += before + norm
    return _Table(sweep.algebra, sweep.blocks, first, norm, table, norms)


def _backward(sweep: Sweep) -> _Table:
    table, norms = _empty_tables(sweep)
    last = np.full((len(sweep.algebra.pi), 1), sweep.algebra.one)
    ends, totals, before = sweep.run(last, backward=True, table=table, norms=norms)
    norms += before
    return _Table(sweep.algebra, sweep.blocks, ends[:, :1], before[0] + totals[0], table, norms)


def _require_possible(alpha: Scaled) -> None:
    """Raises ImpossibleSequenceError if P(O|λ) = 0, with the time from which on α is zero."""
    if np.isneginf(alpha.log_norm[-1]):
        t = np.flatnonzero(np.isneginf(alpha.log_norm))[0]
        raise ImpossibleSequenceError(f"P(O) = 0: no state sequence emits the first {t + 1} observation(s)")


def score(model: HMM, obs: Sequence[int]) -> float:
    """The log-likelihood ln P(O|λ) of `obs` (T,), eqs. 21 and 103; -inf if P(O|λ) = 0. Raises ModelError."""
    return _in_floats(_score, model, obs)


def forward(model: HMM, obs: Sequence[int]) -> Scaled:
    """α_t(i) = P(o_1 … o_t, q_t = S_i | λ) for `obs` (T,) as (T, N); eqs. 19, 20.

    `log_norm[t]` is ln P(o_1 … o_t | λ), so `log_norm[-1]` is the log-likelihood (eqs. 21, 103). From the first
    impossible observation on, rows are zero and `log_norm` is -inf. Raises ModelError.
    """
    return _in_floats(lambda sweep: _forward(sweep).scaled(np.logaddexp), model, obs)


def backward(model: HMM, obs: Sequence[int]) -> Scaled:
    """β_t(i) = P(o_{t+1} … o_T | q_t = S_i, λ) for `obs` (T,) as (T, N), β_T(i) = 1; eqs. 24, 25.

    Independent of α: Σ_i π_i b_i(o_1) β_1(i) gives P(O|λ) a second time. Raises ModelError.
    """
    return _in_floats(lambda sweep: _backward(sweep).scaled(np.logaddexp), model, obs)


def posterior(model: HMM, obs: Sequence[int]) -> np.ndarray:
    """γ_t(i) = P(q_t = S_i | O, λ) = α_t(i) β_t(i) / Σ_j α_t(j) β_t(j) as (T, N), where each row sums to 1; eq. 27.

    Raises ModelError, and ImpossibleSequenceError if P(O|λ) = 0.
    """

    def solve(sweep: Sweep) -> np.ndarray:
        alpha, beta = _forward(sweep), _backward(sweep)
        if np.isneginf(sweep.algebra.log_total(alpha.last)):
            _require_possible(alpha.scaled(np.logaddexp))
        first = sweep.algebra.normalised(alpha.first, beta.first, axis=0)
        return sweep.blocks.in_time(sweep.algebra.normalised(alpha.rest, beta.rest, axis=1), first[:, 0])

    return _in_floats(solve, model, obs)


def pair_posterior(model: HMM, obs: Sequence[int]) -> np.ndarray:
    """ξ_t(i, j) = P(q_t = S_i, q_{t+1} = S_j | O, λ) = α_t(i) a_ij b_j(o_{t+1}) β_{t+1}(j) / P(O|λ); eq. 37.

    Shape (T-1, N, N), where each matrix sums to 1. Raises ModelError, and ImpossibleSequenceError if P(O|λ) = 0.
    """
    obs = model.check(obs)
    alpha, beta = forward(model, obs), backward(model, obs)
    _require_possible(alpha)
    return np.exp(_log_xi(model, obs, alpha.log_values, beta.log_values))


def _log_xi(model: HMM, obs: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """ln ξ (T-1, N, N) from ln α and ln β (T, N), each row of which may be off by a constant."""
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(model.transmat), np.log(model.emissionprob.T[obs[1:]])
    log_xi = alpha[:-1, :, None] + log_a + (log_b + beta[1:])[:, None, :]
    return log_xi - np.logaddexp.reduce(log_xi, axis=(1, 2), keepdims=True)


class Counts(NamedTuple):
    """What Baum–Welch counts, as expectations given O; section III.C."""

    log_likelihood: float
    start: np.ndarray  # (N,) γ_1
    transitions: np.ndarray  # (N, N) Σ_t ξ_t
    emissions: np.ndarray  # (N, M) Σ_t γ_t over the times of each symbol


def expected_counts(model: HMM, obs: Sequence[int]) -> Counts:
    """How often each state is expected to start, to follow another, and to emit each symbol, given `obs` (T,).

    Raises ModelError, and ImpossibleSequenceError if P(O|λ) = 0.
    """
    obs = model.check(obs)
    alpha, beta, gamma = forward(model, obs), backward(model, obs), posterior(model, obs)
    transitions = np.zeros_like(model.transmat)
    rows = max(1, 2**22 // transitions.size)  # at a time, to save memory
    for t in range(0, len(obs) - 1, rows):
        part = slice(t, t + rows + 1)
        transitions += np.exp(_log_xi(model, obs[part], alpha.log_values[part], beta.log_values[part])).sum(axis=0)
    m = model.emissionprob.shape[1]
    emissions = np.array([np.bincount(obs, weights=column, minlength=m) for column in gamma.T])
    return Counts(float(alpha.log_norm[-1]), gamma[0], transitions, emissions)


# The best path, and the K best.


class Viterbi(NamedTuple):
    path: np.ndarray  # (T,) the states q*_t, from 0
    log_probability: float  # ln P* = ln max P(q_1 … q_T, O | λ)
    delta: Scaled  # (T, N) δ_t(i) = max P(q_1 … q_{t-1}, q_t = S_i, o_1 … o_t | λ)
    psi: np.ndarray  # (T, N) ψ_t(i), the best state before S_i, from 0; the first row is 0 by convention


def best_path(model: HMM, obs: Sequence[int]) -> tuple[np.ndarray, float]:
    """The most probable state sequence q* (T,) of `obs` (T,), from 0, and ln P*: the Viterbi algorithm without tables.

    Ties go to the lower index, in ψ and in the last state: of several best paths it is the one with the lowest last
    state, of these the one with the lowest state before the last, and so on; `FixedPoint` in semirings.py says what a
    tie is. Raises ModelError, and ImpossibleSequenceError if P(O|λ) = 0.
    """
    sweep, psi = _fixed_point(model, model.check(obs))
    ends, _, _ = sweep.run(_first(sweep), psi=psi)
    path = _trace(model, sweep, psi, ends)
    return path, path_log_probability(model, path, sweep.blocks.obs)


def viterbi(model: HMM, obs: Sequence[int]) -> Viterbi:
    """`best_path` with all of δ and ψ; eqs. 32 to 35. Ties and errors as there."""
    sweep, psi = _fixed_point(model, model.check(obs))
    blocks, (rest, norms) = sweep.blocks, _empty_tables(sweep, np.int64)
    first, norm = sweep.algebra.scale(_first(sweep))
    ends, _, before = sweep.run(first, psi=psi, table=rest, norms=norms)
    path = _trace(model, sweep, psi, ends)
    delta = _Table(sweep.algebra, blocks, first, norm, rest, norms + before + norm).scaled(np.maximum)
    psi = blocks.in_time(psi, 0).astype(np.intp)
    return Viterbi(path, path_log_probability(model, path, blocks.obs), delta, psi)


def path_log_probability(model: HMM, path: np.ndarray, obs: np.ndarray) -> float:
    """ln P(q, O|λ) of the state sequence q (T,) with `obs` (T,)."""
    n, m = model.emissionprob.shape
    pairs = np.bincount(path[:-1] * n + path[1:], minlength=n * n)  # how often each transition is taken
    emitted = np.bincount(path * m + obs, minlength=n * m)
    log_p = np.log(model.startprob[path[0]])
    for counts, matrix in (pairs, model.transmat), (emitted, model.emissionprob):
        log_p += counts[counts > 0] @ np.log(matrix.ravel()[counts > 0])
    return float(log_p)


def _fixed_point(model: HMM, obs: np.ndarray) -> tuple[Sweep, np.ndarray]:
    """The sweep of the Viterbi algorithm, and ψ (L, N, K) for it to fill."""
    blocks, n = Blocks(obs, len(model.startprob)), len(model.startprob)
    psi = np.zeros((blocks.length, n, blocks.count), dtype=np.min_scalar_type(n))
    return Sweep(FixedPoint(*model.exact, blocks.length, len(obs)), blocks), psi


def _trace(model: HMM, sweep: Sweep, psi: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """The path (T,) back along ψ from the best of the last states."""
    if ends[:, -1].max() <= -LARGEST:
        _require_possible(forward(model, sweep.blocks.obs))
    path, steps = np.empty(len(sweep.blocks.obs), dtype=np.intp), len(sweep.blocks.obs) - 1
    path[-1] = ends[:, -1].argmax()
    states = follow(psi, int(path[-1]), backward=True)  # (L, K), the state before step l of block k
    path[:-1] = states.T.reshape(-1)[:steps]
    return path


class Path(NamedTuple):
    states: np.ndarray  # (T,) from 0
    log_probability: float  # ln P(q, O|λ)


def kbest(model: HMM, obs: Sequence[int], k: int) -> list[Path]:
    """The `k` most probable state sequences, best first; fewer if fewer are possible.

    List Viterbi: every state keeps its k best paths instead of one (N. Seshadri and C.-E. W. Sundberg, "List Viterbi
    decoding algorithms with applications", IEEE Trans. Communications 42, 1994). Ties are ordered as in `best_path`:
    by the last state, then by the one before, and so on. Takes one step of Python per symbol. Raises ModelError, also
    if the T·N·k back-pointers would need too much memory, and ImpossibleSequenceError if P(O|λ) = 0.
    """
    obs, n = model.check(obs), len(model.startprob)
    if _width(n, k, len(obs)) * len(obs) * n > KBEST_LIMIT:
        raise ModelError(f"the {k} best paths of {len(obs)} observations need too much memory: ask for fewer")
    units = FixedPoint(*model.exact, len(obs), len(obs))
    value, width, backs = units.emit(units.pi[:, None], obs[:1]), 1, []  # (N, width), each row from the best down
    for o in obs[1:]:
        before = np.maximum(units.at[:, :, None] + value, DEAD).reshape(n, n * width)  # (to i, from j and its rank)
        width = min(k, n * width)
        back = np.argsort(-before, axis=1, kind="stable")[:, :width]
        backs.append(back.astype(np.int32))
        value = np.maximum(np.take_along_axis(before, back, axis=1) + units.b[:, o, None], DEAD)
    order = np.argsort(-value.ravel(), kind="stable")[:k]
    order = order[value.ravel()[order] > -LARGEST]  # state·width + rank
    if not len(order):
        _require_possible(forward(model, obs))
    paths = np.empty((len(order), len(obs)), dtype=np.intp)
    for t in range(len(obs) - 1, -1, -1):
        paths[:, t] = order // width
        if t:
            order = backs[t - 1][paths[:, t], order % width]
            width = _width(n, k, t - 1)
    return [Path(path, path_log_probability(model, path, obs)) for path in paths]


def _width(n: int, k: int, t: int) -> int:
    """How many of its best paths a state has at time t, from 0."""
    return min(k, n ** min(t, 64))  # a larger power than any k
