"""Baum–Welch, which learns a hidden Markov model from sequences; and sampling, which draws a sequence from a model.

The equation numbers are those of L. R. Rabiner, Proc. IEEE 77(2), 1989.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from songci.hmm.inference import Counts, expected_counts
from songci.hmm.markov import HMM, ImpossibleSequenceError
from songci.hmm.scans import Blocks, follow


def baum_welch(model: HMM, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[HMM, float]]:
    """Expectation maximisation: yields (model, ln P(all sequences | model)), first `model` itself, then better ones.

    A step cannot make the sequences less likely (Rabiner, section III.C; eqs. 40a to 40c, summed over the sequences as
    in 109 and 110). It ends when a step gains nothing more, or loses by rounding. A state that is never visited keeps
    its rows. Raises ModelError, and ImpossibleSequenceError if P(O|λ) = 0 for one of the sequences.
    """
    counts = _total_counts(model, sequences)
    yield model, counts.log_likelihood
    while True:
        better = _reestimated(model, counts)
        new_counts = _total_counts(better, sequences)
        if new_counts.log_likelihood <= counts.log_likelihood:
            return
        model, counts = better, new_counts
        yield model, counts.log_likelihood


def _total_counts(model: HMM, sequences: Sequence[Sequence[int]]) -> Counts:
    counts = []
    for number, obs in enumerate(sequences, start=1):
        try:
            counts.append(expected_counts(model, obs))
        except ImpossibleSequenceError as error:
            raise ImpossibleSequenceError(f"sequence {number}: {error}") from None
    return Counts(*map(sum, zip(*counts, strict=True)))


def _reestimated(model: HMM, counts: Counts) -> HMM:
    startprob = _normalised_rows(counts.start[None], model.startprob[None])[0]
    transmat = _normalised_rows(counts.transitions, model.transmat)
    emissionprob = _normalised_rows(counts.emissions, model.emissionprob)
    return HMM(startprob, transmat, emissionprob, model.states, model.symbols)


def _normalised_rows(counts: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Rows divided by their sums; for a row of zeros, that of `otherwise`."""
    total = counts.sum(axis=1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1), otherwise)


def random_model(model: HMM, seed: int) -> HMM:
    """A model with the same states and symbols; each row is drawn uniformly from all distributions."""
    rng, (n, m) = np.random.default_rng(seed), model.emissionprob.shape
    draw = (rng.dirichlet(np.ones(size), rows) for size, rows in ((n, None), (n, n), (m, n)))
    return HMM(*draw, model.states, model.symbols)


def sample(model: HMM, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A sequence of `length` symbols drawn from the model: states (T,) and observations (T,), counted from 0."""
    uniform = np.random.default_rng(seed).random((2, length))
    n, blocks = len(model.startprob), Blocks(np.zeros(length, dtype=int), len(model.startprob))
    first = _draw(model.startprob, uniform[0, :1])[0]
    maps = np.tile(np.arange(n)[:, None], blocks.count * blocks.length)  # maps[i, t]: what follows state i of time t
    for i in range(n):
        maps[i, : length - 1] = _draw(model.transmat[i], uniform[0, 1:])
    maps = maps.reshape(n, blocks.count, blocks.length).transpose(2, 0, 1)
    states = np.append(first, follow(maps, first).T.reshape(-1)[: length - 1])
    obs = np.empty(length, dtype=int)
    for i in range(n):
        obs[states == i] = _draw(model.emissionprob[i], uniform[1, states == i])
    return states, obs


def _draw(probabilities: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """For each uniform number of [0, 1) an index, by the inverse of the cumulative distribution."""
    total = np.cumsum(probabilities)
    return np.searchsorted(total / total[-1], uniform, side="right")
