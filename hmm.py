"""Hidden Markov models (隐含马尔可夫模型) with discrete observations: the phone-store exercise, or a model of your own.

Without flags it works through the handout's exercise as one would on paper. The states are S1 畅销 (selling well) and
S2 滞销 (selling badly); the observations are the grades of phone bought month by month: H high, M middle, L low.

  python hmm.py --lang en --plot trellis.png          in English, and the trellis as a picture
  python hmm.py --model model.json --obs a,b,b        any other model; some are in data/hmm, the exercise too
  python hmm.py --model model.json --obs FILE --fit   learn from sequences, one per line (Baum–Welch)
  python hmm.py --sample 1000 --seed 1                draw a sequence from the model, in a form that --obs reads

A model is a JSON object with startprob (N numbers), transmat (N rows of N), emissionprob (N rows of M), and optional
names in states (N) and symbols (M). Numbers may be fractions in quotes, "1/3"; rows whose sums differ from 1 by at most
0.00001 are divided by these. If several paths are best, the one whose last state has the lowest number is chosen; among
these, the one with the lowest state before the last, and so on. So it is in small problems, solved in fractions; in
large ones the rounding of floats may decide.

JSON output is an object and a line per sequence, with times, states and symbols counted from 0. A probability below the
range of floats (about 1e-308) is null, and so is ln 0; log_alpha, log_beta and log_delta hold logarithms. If P(O) = 0,
gamma, xi, delta, psi and the path are null, and "note" says why. Small problems have fractions too, in "exact". With
--sample the object has states and observations; with --fit the log_likelihood of each step, converged, and model, and
with --n_init the seed of these, and starts, what came of each seed.

The code: λ and each variable in the handout's order and notation, with the equation numbers of L. R. Rabiner, Proc.
IEEE 77(2), 1989. All around it is in songci/hmm.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from songci.cli import ArgumentParser, UserError, check_writable, number, run


class ModelError(UserError, ValueError):
    """A model that is not valid, or observations that do not fit it."""


class ImpossibleSequenceError(UserError, ValueError):
    """P(O|λ) = 0: no state sequence emits O, so there are no posteriors and no best path."""


# α, β, γ, ξ, δ, ψ of T observations obs (T,) under N states: π_i is pi[i], a_ij is a[i, j], b_i(k) is b[i, k]. They are
# arrays of numpy, of fractions as well as of floats. A table has a row per time. In code all count from 0.


def forward(pi, a, b, obs, scale=False):
    """α_t(i) = P(o_1 … o_t, q_t = S_i | λ) as (T, N), and the sums of its rows (T,), the last of which is P(O|λ).

    `scale` keeps floats from underflow: each row is divided by its sum c_t before the next is computed, and P(O|λ) is
    the product of all c_t (section V.A).
    """
    states = range(len(pi))
    alpha, c = np.zeros((len(obs), len(pi)), pi.dtype), np.zeros(len(obs), pi.dtype)
    for t in range(len(obs)):
        total = 0
        for i in states:
            if t == 0:
                alpha[0, i] = pi[i] * b[i, obs[0]]  # α_1(i) = π_i b_i(o_1), eq. 19
            else:
                into_i = 0
                for j in states:
                    into_i += alpha[t - 1, j] * a[j, i]
                alpha[t, i] = into_i * b[i, obs[t]]  # α_{t+1}(i) = [Σ_j α_t(j) a_ji] b_i(o_{t+1}), eq. 20
            total += alpha[t, i]
        c[t] = total  # P(O|λ) = Σ_i α_T(i), eq. 21
        if scale and total > 0:
            for i in states:
                alpha[t, i] /= total
    return alpha, c


def backward(pi, a, b, obs, scale=False):
    """β_t(i) = P(o_{t+1} … o_T | q_t = S_i, λ) as (T, N), and the sums of its rows (T,), by which `scale` divides.

    The last row is 1, and never divided.
    """
    states = range(len(a))
    beta, c = np.ones((len(obs), len(a)), a.dtype), np.ones(len(obs), a.dtype)  # β_T(i) = 1, eq. 24
    for t in range(len(obs) - 2, -1, -1):
        total = 0
        for i in states:
            out_of_i = 0
            for j in states:
                out_of_i += a[i, j] * b[j, obs[t + 1]] * beta[t + 1, j]
            beta[t, i] = out_of_i  # β_t(i) = Σ_j a_ij b_j(o_{t+1}) β_{t+1}(j), eq. 25
            total += out_of_i
        c[t] = total
        if scale and total > 0:
            for i in states:
                beta[t, i] /= total
    return beta, c


def posterior(alpha, beta):
    """γ_t(i) = P(q_t = S_i | O, λ) as (T, N). Rows of α and β may be scaled: what they are divided by cancels out."""
    gamma = alpha * beta
    gamma /= np.einsum("tj,tj->t", alpha, beta)[:, None]  # γ_t(i) = α_t(i) β_t(i) / Σ_j α_t(j) β_t(j), eq. 27
    return gamma


def pair_posterior(pi, a, b, obs, alpha, beta):
    """ξ_t(i, j) = P(q_t = S_i, q_{t+1} = S_j | O, λ) as (T-1, N, N). Rows of α and β may be scaled."""
    b_next = b[:, obs[1:]].T  # (T-1, N)
    xi = alpha[:-1, :, None] * a * (b_next * beta[1:])[:, None, :]  # α_t(i) a_ij b_j(o_{t+1}) β_{t+1}(j)
    xi /= xi.sum(axis=(1, 2), keepdims=True)  # divided by P(O|λ), eq. 37
    return xi


def viterbi(pi, a, b, obs, logs=False):
    """The best path q* (T,), δ_t(i) = max P(q_1 … q_{t-1}, q_t = S_i, o_1 … o_t | λ) as (T, N), and ψ_t(i) as (T, N).

    ψ_t(i), the handout's φ, is the best state before S_i; its first row is 0 by convention. Ties go to the lower index,
    in ψ and in q*_T. `logs` keeps floats from underflow: the numbers are logarithms, whose products are sums.
    """
    states, last = range(len(pi)), len(obs) - 1
    delta, psi = np.zeros((len(obs), len(pi)), pi.dtype), np.zeros((len(obs), len(pi)), np.int32)
    for t in range(len(obs)):
        for i in states:
            best, before = pi[i], 0
            if t > 0:
                best = -np.inf
                for j in states:
                    into_i = delta[t - 1, j] + a[j, i] if logs else delta[t - 1, j] * a[j, i]
                    if into_i > best:
                        best, before = into_i, j
            psi[t, i] = before  # ψ_t(i) = argmax_j δ_{t-1}(j) a_ji, eq. 33
            # δ_1(i) = π_i b_i(o_1), eq. 32; δ_t(i) = max_j[δ_{t-1}(j) a_ji] b_i(o_t), eq. 33
            delta[t, i] = best + b[i, obs[t]] if logs else best * b[i, obs[t]]
    path = np.zeros(len(obs), np.int64)
    for i in states:
        if delta[last, i] > delta[last, path[last]]:
            path[last] = i  # q*_T = argmax_i δ_T(i), eq. 34
    for t in range(last - 1, -1, -1):
        path[t] = psi[t + 1, path[t + 1]]  # q*_t = ψ_{t+1}(q*_{t+1}), eq. 35
    return path, delta, psi


# λ = (π, A, B).

MATRICES = {"startprob": "N", "transmat": "NN", "emissionprob": "NM"}  # and their shapes
TOLERANCE = 1e-5  # of a row's sum, as people round: 0.333333 three times
EXACT_UP_TO = 400  # T·N² of small problems, which take no time in fractions


class HMM:
    """λ = (π, A, B), with the names of its N states and M symbols (by default S1 … SN and v1 … vM).

    π (N,), A (N, N) and B (N, M) are floats or fractions, copied and made read-only. The methods take observations as
    symbols' indices (T,), of any length. A bad matrix raises ModelError, which names the row and its sum, and so do bad
    observations. If P(O|λ) = 0, methods that find posteriors or the best path raise ImpossibleSequenceError.
    """

    def __init__(self, startprob, transmat, emissionprob, states: Sequence[str] = (), symbols: Sequence[str] = ()):
        given, sizes = (startprob, transmat, emissionprob), {}
        self.matrices = [_distributions(name, x, sizes) for name, x in zip(MATRICES, given, strict=True)]
        self.startprob, self.transmat, self.emissionprob = self.matrices
        self._given = [np.array(x, dtype=object) for x in given]
        for field, names, count, letter in ("states", states, sizes["N"], "S"), ("symbols", symbols, sizes["M"], "v"):
            names = tuple(names) or tuple(f"{letter}{i + 1}" for i in range(count))
            if len(names) != count or len(set(names)) != count:
                raise ModelError(f"{field} must be {count} different names, not {', '.join(map(str, names))}")
            setattr(self, field, names)

    @functools.cached_property
    def exact(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """π, A, B in fractions. A float becomes the simplest that rounds to it, or else the decimal as printed."""

        def fraction(x):
            simple = Fraction(float(x)).limit_denominator(10**6)
            return x if isinstance(x, Fraction) else simple if float(simple) == x else Fraction(repr(float(x)))

        tables = (np.vectorize(fraction, otypes=[object])(values) for values in self._given)
        return tuple(map(_normalised, tables))

    def encode(self, symbols: Iterable[str]) -> np.ndarray:
        """Names of symbols → their indices (T,). Raises ModelError if one is unknown, or if there are none."""
        index = {name: k for k, name in enumerate(self.symbols)}
        try:
            return self.check([index[symbol] for symbol in symbols])
        except KeyError as error:
            raise ModelError(f"unknown symbol {error}, the model has {', '.join(self.symbols)}") from None

    def check(self, obs: Sequence[int]) -> np.ndarray:
        """`obs` as an array (T,) of symbols' indices. Raises ModelError if it is not one, or empty."""
        obs, m = np.asarray(obs), len(self.symbols)
        if obs.size == 0:
            raise ModelError("the observation sequence is empty")
        if obs.ndim != 1 or obs.dtype.kind not in "iu":
            raise ModelError(f"observations must be T whole numbers, not {obs.dtype} of shape {obs.shape}")
        bad = np.flatnonzero((obs < 0) | (obs >= m))
        if bad.size:
            raise ModelError(f"observation {bad[0] + 1} is {obs[bad[0]]}, but the symbols' indices are 0 to {m - 1}")
        return obs.astype(np.int64, copy=False)

    def is_small(self, obs: Sequence[int]) -> bool:
        """Whether the best path of `obs` is found in fractions, so that ties are exact."""
        return len(obs) * self.transmat.size <= EXACT_UP_TO

    def score(self, obs: Sequence[int]) -> float:
        """The log-likelihood ln P(O|λ), eq. 103; -inf if P(O|λ) = 0."""
        return float(self._solve(obs, lambda *problem: ln(scaled(forward, *problem)[1]).sum()))

    def forward(self, obs: Sequence[int]) -> np.ndarray:
        """ln α (T, N)."""
        alpha, c = self._solve(obs, lambda *problem: map(ln, scaled(forward, *problem)))
        return alpha + np.cumsum(c)[:, None]

    def backward(self, obs: Sequence[int]) -> np.ndarray:
        """ln β (T, N), computed without α."""
        beta, c = self._solve(obs, lambda *problem: map(ln, scaled(backward, *problem)))
        return beta + np.cumsum(c[::-1])[::-1, None]

    def posterior(self, obs: Sequence[int]) -> np.ndarray:
        """γ (T, N); each row sums to 1."""
        return self._solve(obs, lambda *problem: posterior(*both(*problem)[:2])).astype(float, copy=False)

    def pair_posterior(self, obs: Sequence[int]) -> np.ndarray:
        """ξ (T-1, N, N); each matrix sums to 1."""
        xi = self._solve(obs, lambda *problem: pair_posterior(*problem, *both(*problem)[:2]))
        return xi.astype(float, copy=False)

    def expectations(self, obs: Sequence[int]) -> tuple[float, np.ndarray, np.ndarray]:
        """ln P(O|λ), γ (T, N), and Σ_t ξ_t (N, N) without all ξ at a time."""

        def solve(pi, a, b, obs):
            alpha, beta, c = both(pi, a, b, obs)
            out = b[:, obs[1:]].T * beta[1:]  # b_j(o_{t+1}) β_{t+1}(j), (T-1, N)
            into = alpha[:-1] / ((alpha[:-1] @ a) * out).sum(axis=1)[:, None]
            return ln(c).sum(), posterior(alpha, beta).astype(float, copy=False), (a * (into.T @ out)).astype(float)

        return self._solve(obs, solve)

    def viterbi(self, obs: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best path (T,), ln δ (T, N), the largest of whose last row is ln P*, and ψ (T, N)."""
        problem = *(np.asfortranarray(ln(matrix)) for matrix in self.matrices), self.check(obs)
        path, log_delta, psi = calculate(viterbi, *problem, True)
        require_possible(log_delta.max(axis=1) > -np.inf)
        if self.is_small(obs):
            path, _, psi = viterbi(*self.exact, problem[-1])
        return path, log_delta, psi

    def exactly(self, obs: Sequence[int]) -> SimpleNamespace:
        """All variables in fractions; γ and ξ are None if P(O|λ) = 0. For short sequences: each step adds digits."""
        problem = *self.exact, self.check(obs)
        (alpha, c), (beta, _), (path, delta, psi) = forward(*problem), backward(*problem), viterbi(*problem)
        gamma, xi = (posterior(alpha, beta), pair_posterior(*problem, alpha, beta)) if c[-1] else (None, None)
        tables = {"alpha": alpha, "beta": beta, "gamma": gamma, "xi": xi, "delta": delta, "psi": psi}
        return SimpleNamespace(likelihood=c[-1], path=path, **tables)

    def _solve(self, obs: Sequence[int], solve: Callable):
        """solve(π, A, B, obs) in floats, or in decimals if floats would lose something."""
        obs = self.check(obs)
        try:
            return solve(*self.matrices, obs)
        except FloatingPointError:  # from `scaled`
            with localcontext(Context(prec=28, Emin=MIN_EMIN, Emax=MAX_EMAX)):  # down to 10^(-10^18)
                return solve(*(np.vectorize(Decimal, otypes=[object])(matrix) for matrix in self.matrices), obs)


def _normalised(matrix: np.ndarray) -> np.ndarray:
    """Rows that somebody has rounded are divided by their sums; the last bits of others stay as they are."""
    total = matrix.sum(axis=-1, keepdims=True)
    return np.where(abs(total - 1) > 1e-9, matrix / total, matrix)


def _distributions(name: str, values, sizes: dict[str, int]) -> np.ndarray:
    """A read-only array of floats whose rows are distributions, as large as `sizes`, or else ModelError."""
    try:
        matrix = np.array(values, dtype=float)
    except (TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{name} is not a table of numbers: {error}") from None
    lengths = zip(MATRICES[name], (*matrix.shape, 0, 0), strict=False)
    shape = tuple(sizes.setdefault(letter, length or letter) for letter, length in lengths)
    if matrix.shape != shape:
        raise ModelError(f"{name} has shape {matrix.shape}, not {shape}: N is the number of states, M that of symbols")
    for i, row in enumerate(np.atleast_2d(matrix), start=1):
        where, total = name if matrix.ndim == 1 else f"{name} row {i}", row.sum()
        if not (row >= 0).all():  # NaN fails every comparison
            k = (row >= 0).argmin()
            raise ModelError(f"{where}, entry {k + 1} is {row[k]:g}, not a probability (row sum {total:g})")
        if abs(total - 1) > TOLERANCE:
            raise ModelError(f'{where} sums to {total:.9g}, not to 1 (thirds can be written as "1/3")')
    matrix = _normalised(matrix)
    matrix.setflags(write=False)
    return matrix


# The recursions over long sequences: in machine code, and so that a state is not lost that is 10^(-400) times as likely
# as another, because it may be the one that survives.

COMPILED_FROM = 10**6  # steps over t, i, j, of all calls together: numba takes half a second to load
FLOOR = 1e-75  # of the floats in λ and in scaled rows: a product of four of them, as in ξ, does not underflow


@functools.cache
def compiled(recursion: Callable) -> Callable | None:
    """The recursion in machine code; None without numba."""
    try:
        from numba import njit
    except ImportError:
        return None
    njit = functools.partial(njit, error_model="numpy", fastmath={"reassoc", "contract"})
    try:
        return njit(recursion, cache=True)  # in __pycache__, for the next time
    except RuntimeError:  # no folder to write to
        return njit(recursion)


def calculate(recursion: Callable, pi, a, b, obs, flag: bool) -> tuple:
    """recursion(…), in machine code once that pays, or in Python's floats, faster one by one than those of numpy."""
    if pi.dtype == object:
        return recursion(pi, a, b, obs, flag)
    calculate.steps += len(obs) * a.size
    if calculate.steps >= COMPILED_FROM and compiled(recursion):
        return compiled(recursion)(pi, a, b, obs, flag)
    result = recursion(*(x.astype(object) for x in (pi, a, b, obs)), flag)
    return tuple(x.astype(float) if x.dtype == object else x for x in result)


calculate.steps = 0


def scaled(recursion: Callable, pi, a, b, obs) -> tuple[np.ndarray, np.ndarray]:
    """`forward` or `backward`, scaled. Raises FloatingPointError if floats would lose something."""
    a = np.asfortranarray(a) if recursion is forward else a  # the inner loop runs down a column of A, or along a row
    values, c = calculate(recursion, pi, a, b, obs, True)
    if values.dtype != object and any((x[x < FLOOR] > 0).any() for x in (pi, a, b, values)):
        raise FloatingPointError(f"a positive number lies below {FLOOR}")
    return values, c


def both(*problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """α and β, scaled, and the scales of α. Raises ImpossibleSequenceError if P(O|λ) = 0."""
    alpha, c = scaled(forward, *problem)
    require_possible(c > 0)
    return alpha, scaled(backward, *problem)[0], c


def require_possible(emitted: np.ndarray) -> None:
    """Raises ImpossibleSequenceError if a time is not among those up to which O is `emitted` (T,) by some path."""
    if not emitted.all():
        t = emitted.argmin() + 1
        raise ImpossibleSequenceError(f"P(O) = 0: no state sequence emits the first {t} observation(s)")


def ln(x: np.ndarray) -> np.ndarray:
    """Natural logarithms of floats, or of decimals; -inf for zeros."""
    if x.dtype == object:
        parts = np.array([f"{number:.16e}".split("e") for number in x.flat], dtype=float).reshape(*x.shape, 2)
        return ln(parts[..., 0]) + parts[..., 1] * math.log(10)
    with np.errstate(divide="ignore"):
        return np.log(x)


PHONE_STORE = HMM(
    startprob=[0.5, 0.5],
    transmat=[[0.6, 0.4], [0.5, 0.5]],
    emissionprob=[[0.4, 0.4, 0.2], [0.2, 0.3, 0.5]],
    states=["畅销", "滞销"],
    symbols=["H", "M", "L"],
)


# The command line.


def parse_args():
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, help="a model as a JSON file (default: the exercise)")
    add("--obs", help="observations separated by commas, or a file with a sequence per line (default: H,M,L)")
    add("--format", choices=["text", "json"], default="text", help="how to print")
    add("--lang", choices=["zh", "en"], default="zh", help="language of the explanation")
    add("--plot", type=Path, metavar="FILE", help="draw the trellis (.png, .pdf, .svg) of one sequence")
    add("--plot_nodes", choices=["delta", "alpha", "beta", "gamma"], default="delta", help="what its nodes show")
    add("--brief", action="store_true", help="JSON without alpha, beta, gamma, xi, delta, psi")
    add("--kbest", type=number(int, 1), metavar="K", help="also the K most probable paths")
    add("--fit", action="store_true", help="learn from the sequences by Baum–Welch, print the model")
    add("--iters", type=number(int, 0), default=100, help="for --fit: the largest number of steps")
    add("--tolerance", type=number(float, 0), default=1e-6, help="for --fit: stop when ln P gains less in a step")
    n_init = "for --fit: begin at random N times, with seeds from --seed on, and keep the best"
    add("--n_init", type=number(int, 1), metavar="N", help=n_init)
    add("--out", type=Path, metavar="FILE", help="for --fit: save the model")
    add("--sample", type=number(int, 1, 10**8), metavar="N", help="draw a sequence of N symbols from the model")
    add("--seed", type=number(int, 0), help="for --sample (default: 0); for --fit: begin at random")
    args = parser.parse_args()
    task = "--fit" if args.fit else "--sample" if args.sample else ""
    others = {"--fit": ["sample", "plot", "kbest"], "--sample": ["obs", "plot", "kbest", "out", "n_init"]}
    others[""] = ["out", "seed", "n_init"]
    for flag in others[task]:
        if getattr(args, flag) is not None:
            apart = f"{task} and --{flag} are two things: run one after the other"
            parser.error(apart if task else f"--{flag} belongs to {'--sample, or to ' * (flag == 'seed')}--fit")
    if args.model and args.obs is None and not args.sample:
        parser.error("--model needs observations: --obs a,b,b or --obs FILE")
    return args


def main():
    from songci.hmm import baumwelch, files, trellis, walkthrough

    args = parse_args()
    for flag, path in ("--plot", args.plot), ("--out", args.out):
        if path:
            check_writable(flag, path)
    model, as_json = files.load_model(HMM, args.model) if args.model else PHONE_STORE, args.format == "json"
    if args.sample:
        return baumwelch.print_sample(model, args.sample, args.seed or 0, as_json)
    sequences = files.read_sequences(model, "H,M,L" if args.obs is None else args.obs)
    if args.fit:
        return baumwelch.fit(model, sequences, args, as_json)
    if args.plot:
        if len(sequences) > 1:
            raise UserError(f"--plot draws one sequence, and --obs has {len(sequences)}")
        trellis.plot(model, sequences[0], args.plot, args.plot_nodes)
    k = args.kbest or 0
    for obs in sequences if as_json else ():
        print(files.result_to_json(model, obs, args.brief, k))
    if not as_json:
        print(walkthrough.explain(model, sequences, args.lang, k))


if __name__ == "__main__":
    run(main)
