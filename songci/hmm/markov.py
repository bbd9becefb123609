"""The hidden Markov model λ = (π, A, B) and its variables by definition, as `hmm.py` explains them.

`by_definition()` is the part to read: α, β, γ, ξ, δ, ψ and the best path as plain loops, in the order and notation of
L. R. Rabiner, "A tutorial on hidden Markov models and selected applications in speech recognition", Proc. IEEE 77(2),
1989; its equation numbers stand beside them. It computes with whatever numbers it is given: with fractions, exactly.
Long sequences need `inference.py`. Times, states and symbols count from 0 in code, from 1 in print and in messages.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from songci.cli import UserError

ROW_SUM_TOLERANCE = 1e-6
MATRICES = {"startprob": 1, "transmat": 2, "emissionprob": 2}  # and how many dimensions each has
Numbers = Sequence[Fraction]


class ModelError(UserError, ValueError):
    """A model that is not valid, or observations that do not fit it."""


class ImpossibleSequenceError(UserError, ValueError):
    """P(O|λ) = 0: no state sequence emits O, so there are no posteriors and no best path."""


# α, β, γ, ξ, δ, ψ.


class Variables(NamedTuple):
    """All variables of a sequence of T symbols under N states, as nested lists."""

    alpha: list[list]  # (T, N)  α_t(i) = P(o_1 … o_t, q_t = S_i | λ)
    beta: list[list]  # (T, N)  β_t(i) = P(o_{t+1} … o_T | q_t = S_i, λ)
    likelihood: Fraction  # P(O|λ)
    gamma: list[list] | None  # (T, N)  γ_t(i) = P(q_t = S_i | O, λ); None if P(O|λ) = 0
    xi: list[list[list]] | None  # (T-1, N, N)  ξ_t(i, j) = P(q_t = S_i, q_{t+1} = S_j | O, λ); None if P(O|λ) = 0
    delta: list[list]  # (T, N)  δ_t(i) = max P(q_1 … q_{t-1}, q_t = S_i, o_1 … o_t | λ)
    psi: list[list[int]]  # (T, N)  ψ_t(i), the best state before S_i; the first row is 0 by convention
    path: list[int]  # (T,)  the best path q*


def by_definition(pi: Numbers, a: Sequence[Numbers], b: Sequence[Numbers], obs: Sequence[int]) -> Variables:
    """Every variable of `obs` by Rabiner's recursions; pi (N,), a (N, N), b (N, M), obs (T,) with T at least 1.

    Takes about 4·T·N² steps of Python. Ties go to the lower index, in ψ and in the last state. If P(O|λ) = 0 the path
    has no meaning.
    """
    states, end = range(len(pi)), len(obs) - 1

    alpha = [[pi[i] * b[i][obs[0]] for i in states]]  # eq. 19
    for o in obs[1:]:
        alpha.append([sum(alpha[-1][j] * a[j][i] for j in states) * b[i][o] for i in states])  # eq. 20
    likelihood = sum(alpha[end])  # eq. 21

    beta = [[Fraction(1) for _ in states]]  # eq. 24
    for o in reversed(obs[1:]):
        beta.insert(0, [sum(a[i][j] * b[j][o] * beta[0][j] for j in states) for i in states])  # eq. 25

    gamma = xi = None
    if likelihood:
        gamma = [[alpha[t][i] * beta[t][i] / likelihood for i in states] for t in range(end + 1)]  # eq. 27
        xi = [  # eq. 37
            [[alpha[t][i] * a[i][j] * b[j][obs[t + 1]] * beta[t + 1][j] / likelihood for j in states] for i in states]
            for t in range(end)
        ]

    delta, psi = [alpha[0]], [[0 for _ in states]]  # eq. 32
    for o in obs[1:]:
        before = delta[-1]
        psi.append([max(states, key=lambda j: before[j] * a[j][i]) for i in states])  # eq. 33; max takes the first
        delta.append([before[j] * a[j][i] * b[i][o] for i, j in enumerate(psi[-1])])
    path = [max(states, key=lambda i: delta[end][i])]  # eq. 34
    for back in reversed(psi[1:]):
        path.insert(0, back[path[0]])  # eq. 35
    return Variables(alpha, beta, likelihood, gamma, xi, delta, psi, path)


def all_paths(pi: Numbers, a: Sequence[Numbers], b: Sequence[Numbers], obs: Sequence[int]) -> Iterator[tuple]:
    """(q, P(q, O|λ)) for each of the N^T state sequences q, in lexicographic order; arguments as in `by_definition`."""
    for q in itertools.product(range(len(pi)), repeat=len(obs)):
        steps = (a[q[t - 1]][q[t]] * b[q[t]][obs[t]] for t in range(1, len(obs)))
        yield q, pi[q[0]] * b[q[0]][obs[0]] * prod(steps)


# λ = (π, A, B).


@dataclass(frozen=True, eq=False)
class HMM:
    """λ = (π, A, B), with the names of its N states and M symbols (by default S1 … SN and v1 … vM).

    `startprob` (N,) holds π_i, `transmat` (N, N) a_ij from row i to column j, `emissionprob` (N, M) b_i(k), as floats
    or fractions. They are copied and made read-only. A bad matrix raises ModelError, which names the row and its sum.
    """

    startprob: np.ndarray
    transmat: np.ndarray
    emissionprob: np.ndarray
    states: Sequence[str] = ()
    symbols: Sequence[str] = ()

    def __post_init__(self):
        given = {name: getattr(self, name) for name in MATRICES}
        for name, dimensions in MATRICES.items():
            object.__setattr__(self, name, _probabilities(name, given[name], dimensions))
        exact = {name: np.array(values, dtype=object) for name, values in given.items()}  # copies; fractions stay exact
        object.__setattr__(self, "_given", exact)
        n, m = len(self.startprob), self.emissionprob.shape[1]
        for name, shape in ("transmat", (n, n)), ("emissionprob", (n, m)):
            if getattr(self, name).shape != shape:
                raise ModelError(f"{name} has shape {getattr(self, name).shape}, not {shape}: startprob has {n} states")
        for field, count, letter in ("states", n, "S"), ("symbols", m, "v"):
            names = tuple(getattr(self, field)) or tuple(f"{letter}{i + 1}" for i in range(count))
            if len(names) != count or len(set(names)) != count:
                raise ModelError(f"{field} must be {count} different names, not {', '.join(map(str, names))}")
            object.__setattr__(self, field, names)

    @cached_property
    def exact(self) -> tuple[list, list, list]:
        """π, A, B as nested lists of fractions; a float becomes the simplest fraction that rounds to it.

        0.1 is 1/10, and 0.3333333333333333 is 1/3; where that takes a denominator above 10⁶, the decimal as printed.
        """
        return tuple(np.vectorize(_fraction, otypes=[object])(self._given[name]).tolist() for name in MATRICES)

    def encode(self, symbols: Iterable[str]) -> np.ndarray:
        """Names of symbols → their indices (T,). Raises ModelError if one is unknown, or if there are none."""
        index = {name: k for k, name in enumerate(self.symbols)}
        try:
            return self.check([index[symbol] for symbol in symbols])
        except KeyError as error:
            raise ModelError(f"unknown symbol {error}, the model has {', '.join(self.symbols)}") from None

    def check(self, obs: Sequence[int]) -> np.ndarray:
        """`obs` as an array (T,) of symbols' indices. Raises ModelError if it is not one, or empty."""
        obs, m = np.asarray(obs), self.emissionprob.shape[1]
        if obs.size == 0:
            raise ModelError("the observation sequence is empty")
        if obs.ndim != 1 or obs.dtype.kind not in "iu":
            raise ModelError(f"observations must be T whole numbers, not {obs.dtype} of shape {obs.shape}")
        if obs.min() < 0 or obs.max() >= m:
            t = np.flatnonzero((obs < 0) | (obs >= m))[0]
            raise ModelError(f"observation {t + 1} is {obs[t]}, but the symbols' indices are 0 to {m - 1}")
        return obs

    def to_json(self) -> str:
        """The content of a file that `load_model` reads."""
        content = {"states": list(self.states), "symbols": list(self.symbols)}
        content |= {name: getattr(self, name).tolist() for name in MATRICES}
        lines = []
        for key, value in content.items():
            rows = value if isinstance(value[0], list) else [value]
            text = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
            lines.append(f' "{key}": ' + (f"[\n  {text}\n ]" if rows is value else text))
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _probabilities(name: str, values, dimensions: int) -> np.ndarray:
    """A read-only matrix of floats, if its rows are probability distributions; or ModelError."""
    try:
        matrix = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{name} is not a table of numbers: {error}") from None
    if matrix.ndim != dimensions or matrix.size == 0:
        raise ModelError(f"{name} has shape {matrix.shape}: it needs {dimensions} dimension(s), none of them empty")
    for number, row in enumerate(np.atleast_2d(matrix), start=1):
        where, total = name if dimensions == 1 else f"{name} row {number}", row.sum()
        if not (row >= 0).all():  # NaN fails every comparison
            column = np.flatnonzero(~(row >= 0))[0]
            raise ModelError(f"{where}, entry {column + 1} is {row[column]:g}, not a probability (row sum {total:g})")
        if abs(total - 1) > ROW_SUM_TOLERANCE:
            raise ModelError(f"{where} sums to {total:.9g}, not to 1")
    matrix.setflags(write=False)
    return matrix


def _fraction(value) -> Fraction:
    """The fraction that `HMM.exact` takes a number for."""
    if isinstance(value, Fraction):
        return value
    value = float(value)
    simple = Fraction(value).limit_denominator(10**6)
    return simple if float(simple) == value else Fraction(repr(value))


# Files.


def load_model(path: Path) -> HMM:
    """A model from a JSON file: `startprob`, `transmat`, `emissionprob`, and optional `states` and `symbols`.

    Entries are numbers, or fractions like "1/3". Other keys are left to the reader: a note, for example. Raises
    ModelError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_int=_to_float)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not a JSON file: {error}") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    if not isinstance(content, dict) or not content.keys() >= MATRICES.keys():
        raise ModelError(f"{path} must be a JSON object with {', '.join(MATRICES)}")
    names = {field: content.get(field) or [] for field in ("states", "symbols")}
    try:
        for field, given in names.items():
            if not isinstance(given, list) or not all(_is_name(name) for name in given):
                raise ModelError(f"{field} must be a list of names: printable text, not empty, without commas")
        matrices = {name: _read_entries(name, content[name]) for name in MATRICES}
        return HMM(**matrices, **{field: [name.strip() for name in given] for field, given in names.items()})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _is_name(name) -> bool:
    return isinstance(name, str) and bool(name.strip()) and name.isprintable() and not set(name) & set(",，")


def _to_float(digits: str) -> float:
    return float(digits[:400])  # 400 are infinite already, and Python refuses to convert more than 4300


def _read_entries(name: str, values):
    if isinstance(values, list):
        return [_read_entries(name, value) for value in values]
    if isinstance(values, str) and re.fullmatch(r"\d{1,300}/0*[1-9]\d{0,299}", values):
        return Fraction(values)
    if isinstance(values, float):
        return values
    raise ModelError(f"{name} is not a table of numbers: {json.dumps(values, ensure_ascii=False)[:40]}")


def read_sequences(model: HMM, given: str) -> list[np.ndarray]:
    """The sequences that `given` holds or names, as arrays of symbols' indices (T,).

    `given` is a sequence such as `H,M,L`, or a text file with one sequence per line. Symbols are separated by commas,
    or else by blanks. In a file, lines that begin with # are comments. Raises ModelError.
    """
    try:
        is_file = Path(given).exists() and not Path(given).is_dir()  # a pipe is a file too
    except (OSError, ValueError):  # too long for a file name, for example
        is_file = False
    if not is_file:
        try:
            return [model.encode(_split(given))]
        except ModelError as error:
            hint = "" if "," in given else ", and there is no file of that name"
            example = ",".join(model.symbols[:3])
            raise ModelError(f"--obs {given[:60]!r}: {error}{hint}; give something like --obs {example}") from None
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").rstrip().splitlines() or [""]
    except OSError as error:
        raise ModelError(f"cannot read {given}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"cannot read {given}, it is not UTF-8 text: {error}") from None
    sequences = []
    for number, line in enumerate(lines, start=1):
        try:
            if not line.startswith("#"):
                sequences.append(model.encode(_split(line)))
        except ModelError as error:
            raise ModelError(f"{given}, line {number}: {error}") from None
    if not sequences:
        raise ModelError(f"{given} has no sequence, only comments")
    return sequences


def _split(line: str) -> list[str]:
    line = line.replace("，", ",").strip()
    if not line.strip(", \t"):
        return []
    return [name.strip() for name in line.split(",")] if "," in line else line.split()
