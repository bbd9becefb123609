"""Sums and products that the recursions of an HMM are made of: (+, ×), the same in logarithms, and (max, +).

Each class holds π, A and B in its own numbers (`pi`, `a`, its transpose `at`, `b`) and has methods for C vectors side
by side, the columns of an array (N, C):

  times(matrix, v, psi)    the product of an N × N matrix with v; (max, +) also fills psi (N, C) with its argmax
  emit(v, symbols)         v times b(o), with a symbol for each column
  scale(v)                 each column divided by its maximum, and the logarithms of the maxima (C,); -inf for zeros
  same(v, w)               whether v and w agree
  log(v)                   the natural logarithms of v
  log_total(v)             the logarithms of the sums of the columns (C,); not of (max, +), nor is the next:
  normalised(α, β, axis)   α·β divided by its sum over the axis

`one` and `zero` are the neutral elements. A sweep (see `scans.py`) scales every `stride` steps.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

GUESS_TOLERANCE = 1e-12  # relative; the errors of K blocks can add up to K times this
DEAD = -(2**61)  # ln 0 in units, far below all others; three of them can be added in 64 bits
LARGEST = 2**60  # bound on the other sums
SMALL_PRIMES = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97]


class Underflow(ArithmeticError):
    """A probability has fallen so far below the others of its time that floats may lose it."""


class Linear:
    """(+, ×) in floats, scaled every few steps so that none is lost; raises Underflow if one might be."""

    one, zero = 1.0, 0.0
    FLOOR = 1e-100  # after scaling to a maximum of 1; products of two numbers above FLOOR^1.5 do not underflow

    def __init__(self, pi: np.ndarray, a: np.ndarray, b: np.ndarray):
        self.pi, self.a, self.at, self.b = pi, a, np.ascontiguousarray(a.T), b.copy()
        step = math.log(a[a > 0].min()) + math.log(b[b > 0].min())  # no step shrinks a number by more
        floor = math.log(self.FLOOR)
        self.stride = min(int(floor / 2 / step), 64) if step < 0 else 64
        if self.stride == 0 or math.log(pi[pi > 0].min()) + step < floor:
            raise Underflow

    def times(self, matrix, v, psi=None):
        return matrix @ v

    def emit(self, v, symbols):
        return v * self.b.take(symbols, axis=1)

    def scale(self, v):
        size = v.max(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            v = np.where(size > 0, v / size, 0.0)
            if v.size and v.min(where=v > 0, initial=1.0) < self.FLOOR:
                raise Underflow
            return v, np.log(size)

    def log_total(self, v):
        with np.errstate(divide="ignore"):
            return np.log(v.sum(axis=0))

    def normalised(self, alpha, beta, axis):
        """α·β divided by its sum over the axis, written over α; thanks to FLOOR no product underflows."""
        alpha *= beta
        alpha /= alpha.sum(axis=axis, keepdims=True)
        return alpha

    def same(self, v, w):
        return np.allclose(v, w, rtol=GUESS_TOLERANCE, atol=0)

    @np.errstate(divide="ignore")
    def log(self, v):
        return np.log(v)


class Logarithmic:
    """(+, ×) in logarithms, which lose nothing but are slower: for where `Linear` raises Underflow."""

    one, zero, stride = 0.0, -np.inf, 64
    add = staticmethod(np.logaddexp)

    def __init__(self, pi: np.ndarray, a: np.ndarray, b: np.ndarray):
        with np.errstate(divide="ignore"):
            self.pi, self.a, self.b = np.log(pi), np.log(a), np.log(b)
        self.at = np.ascontiguousarray(self.a.T)

    def times(self, matrix, v, psi=None):
        total = matrix[:, 0, None] + v[0]
        for j in range(1, len(v)):
            total = self.add(total, matrix[:, j, None] + v[j])
        return total

    def emit(self, v, symbols):
        return v + self.b.take(symbols, axis=1)

    def scale(self, v):
        size = v.max(axis=0)
        return v - np.where(np.isneginf(size), 0.0, size), size

    def log_total(self, v):
        return self.add.reduce(v, axis=0)

    def normalised(self, alpha, beta, axis):
        alpha += beta
        alpha -= self.add.reduce(alpha, axis=axis, keepdims=True)
        return np.exp(alpha, out=alpha)

    def same(self, v, w):  # NaN, from two infinities, counts as agreement; one infinity does not
        with np.errstate(invalid="ignore"):
            return not np.any(np.abs(v - w) > GUESS_TOLERANCE)

    def log(self, v):
        return v


class FixedPoint:
    """(max, +) in logarithms that are whole numbers of 2^-bits, from fractions `pi` (N,), `a` (N, N), `b` (N, M).

    Whole numbers add exactly in any order, so paths that pass the same edges in different orders tie. To make all ties
    of short decimals and fractions exact, such as 0.1·0.6 = 0.2·0.3, a logarithm is the sum of the logarithms of the
    prime factors up to 97 and of what remains. Two paths whose true probabilities differ by less than the rounding of
    their factors, 2^-bits for each factor and step, may be taken for equal, or for each other. `bits` is at most 55;
    about 46 for a million steps in blocks; and about 35 if the model has zeros, because then differences can last for
    the whole sequence. (A float holds ln P* = -10⁶ to no more than 2^-33.)
    """

    one, zero, stride = 0, DEAD, 1 << 62

    def __init__(self, pi: Sequence[Fraction], a: Sequence[Sequence], b: Sequence[Sequence], block: int, length: int):
        """For sequences of `length` symbols, in blocks of `block` steps."""
        positive = [p for row in (pi, *a, *b) for p in row if p]
        worst = 2 * max(abs(_log(p)) for p in positive) + 1  # what one step can add
        self.mixing = all(p for row in (*a, *b) for p in row)  # then states differ by no more than two steps can add
        steps = (block if self.mixing else length) + 4
        self.bits = min(55, int(math.log2(LARGEST / worst / steps)))
        primes = [(prime, self._round(math.log(prime))) for prime in SMALL_PRIMES]
        tables = ([[self._units(p, primes) for p in row] for row in rows] for rows in ([pi], a, b))
        self.pi, self.a, self.b = map(np.array, tables)
        self.pi, self.at = self.pi[0], np.ascontiguousarray(self.a.T)

    def _units(self, p: Fraction, primes: list[tuple[int, int]]) -> int:
        """ln p in units."""
        if not p:
            return DEAD
        total = 0
        for number, sign in (p.numerator, 1), (p.denominator, -1):
            for prime, log in primes:
                while number % prime == 0:
                    number, total = number // prime, total + sign * log
            total += sign * self._round(math.log(number))
        return total

    def _round(self, log: float) -> int:
        return round(math.ldexp(log, self.bits))

    def times(self, matrix, v, psi=None):
        """max_j (matrix[i, j] + v[j]); the first such j goes into `psi` (N, C)."""
        best = matrix[:, 0, None] + v[0]
        if psi is not None and len(v) == 1:
            psi[...] = 0
        for j in range(1, len(v)):
            other = matrix[:, j, None] + v[j]
            if psi is not None and j == 1:
                psi[...] = other > best
            elif psi is not None:
                np.copyto(psi, j, where=other > best)
            np.maximum(best, other, out=best)
        if psi is not None and not self.mixing:
            psi[best <= -LARGEST] = 0  # the first of several zeros
        return best

    def emit(self, v, symbols):
        v = v + self.b.take(symbols, axis=1)
        return v if self.mixing else np.maximum(v, DEAD, out=v)

    def scale(self, v):
        size = v.max(axis=0)
        alive = size > -LARGEST
        v = np.where((v > -LARGEST) & alive, v - size, DEAD)
        return v, np.where(alive, np.ldexp(size.astype(float), -self.bits), -np.inf)

    def same(self, v, w):
        return np.array_equal(v, w)

    def log(self, v):  # units → logarithms
        return np.where(v > -LARGEST, np.ldexp(v.astype(float), -self.bits), -np.inf)


def _log(p: Fraction) -> float:
    return math.log(p.numerator) - math.log(p.denominator)  # p may be smaller than any float
