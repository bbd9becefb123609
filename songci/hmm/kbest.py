"""The K best paths of a hidden Markov model."""

import math
import operator
import sys
from fractions import Fraction

import numpy as np

from songci.cli import UserError

LIMIT = 10**8  # back-pointers, T·N·K of them, four bytes each


def kbest(model, obs: np.ndarray, k: int) -> list[tuple[np.ndarray, float]]:
    """The `k` most probable state sequences (T,), best first, and ln P(q, O|λ); fewer if fewer are possible.

    List Viterbi: every state keeps its k best paths instead of one (N. Seshadri and C.-E. W. Sundberg, "List Viterbi
    decoding algorithms with applications", IEEE Trans. Communications 42, 1994). Ties are ordered as in `viterbi`:
    by the last state, then by the one before, and so on. Raises UserError, also if it would take too much memory.
    """
    obs, n = model.check(obs), len(model.states)
    if _width(n, k, len(obs)) * len(obs) * n > LIMIT:
        raise UserError(f"the {k} best paths of {len(obs)} observations need too much memory: ask for fewer")
    with np.errstate(divide="ignore"):
        logs = [np.log(matrix) for matrix in model.matrices]
    exact = model.is_small(obs)
    pi, a, b = model.exact if exact else logs
    times, zero = (operator.mul, 0) if exact else (operator.add, -np.inf)
    value, backs = times(pi, b[:, obs[0]])[:, None], []  # (N, width), each row from the best down
    for t in range(1, len(obs)):
        before = times(a.T[:, :, None], value).reshape(n, -1)  # (to i, from j and its rank)
        back = np.argsort(-before, axis=1, kind="stable")[:, : _width(n, k, t)]
        backs.append(back.astype(np.int32))
        value = times(np.take_along_axis(before, back, axis=1), b[:, obs[t], None])
    order = np.argsort(-value.ravel(), kind="stable")[:k]
    order = order[value.ravel()[order] > zero]  # state·width + rank
    log_p = map(ln, value.ravel()[order]) if exact else value.ravel()[order].tolist()  # summed as δ is, so equal to it
    paths = np.empty((len(order), len(obs)), dtype=np.intp)
    for t in range(len(obs) - 1, -1, -1):
        paths[:, t], rank = np.divmod(order, _width(n, k, t))
        if t:
            order = backs[t - 1][paths[:, t], rank]
    return [*zip(paths, log_p, strict=True)]


def path_probability(model, obs: np.ndarray, path: np.ndarray) -> Fraction:
    """P(q, O|λ) of a state sequence (T,), in fractions."""
    pi, a, b = model.exact
    return math.prod([pi[path[0]], *a[path[:-1], path[1:]], *b[path, obs]])


def ln(x: Fraction) -> float:
    """The natural logarithm, -inf for 0, of a fraction that may be below the range of floats."""
    if float(x) >= sys.float_info.min:
        return math.log(x)
    return math.log(x.numerator) - math.log(x.denominator) if x else -math.inf


def _width(n: int, k: int, t: int) -> int:
    """How many of its best paths a state has at time t, from 0."""
    return min(k, n ** min(t, 64))  # a larger power than any k
