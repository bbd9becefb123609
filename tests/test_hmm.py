import itertools
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given, settings
from hypothesis import strategies as st

from hmm import (
    HMM,
    PHONE_STORE,
    ImpossibleSequenceError,
    ModelError,
    backward,
    forward,
    pair_posterior,
    posterior,
    viterbi,
)

ROOT = Path(__file__).parent.parent
HML = [0, 1, 2]
F = Fraction


def close(actual, expected, rtol=1e-12):
    np.testing.assert_allclose(actual, np.array(expected, dtype=float), rtol=rtol, atol=1e-300)


def likelihood(model, obs):
    return math.exp(forward(model, obs).log_norm[-1])


# The exercise, with the exact values.


def test_exercise_forward_variables_and_likelihood():
    close(
        forward(PHONE_STORE, HML).plain,
        [[F(1, 5), F(1, 10)], [F(17, 250), F(39, 1000)], [F(603, 50000), F(467, 20000)]],
    )
    close(likelihood(PHONE_STORE, HML), F(3541, 100000))


def test_exercise_backward_variables():
    close(backward(PHONE_STORE, HML).plain, [[F(297, 2500), F(233, 2000)], [F(8, 25), F(7, 20)], [1, 1]])


def test_exercise_posteriors():
    close(posterior(PHONE_STORE, HML) * 3541, [[2376, 1165], [2176, 1365], [1206, 2335]])
    close(pair_posterior(PHONE_STORE, HML) * 3541, [[[1536, 840], [640, 525]], [[816, 1360], [390, 975]]])


def test_exercise_viterbi():
    best = viterbi(PHONE_STORE, HML)
    close(best.delta.plain, [[0.2, 0.1], [0.048, 0.024], [0.00576, 0.0096]])
    assert best.psi.tolist() == [[0, 0], [0, 0], [0, 0]]  # ψ_1 by convention, ψ_2 = ψ_3 = (S1, S1)
    assert best.path.tolist() == [0, 0, 1]
    close(math.exp(best.log_probability), 0.0096)
    assert [PHONE_STORE.states[i] for i in best.path] == ["畅销", "畅销", "滞销"]


def test_encode_gives_indices_of_symbols():
    assert PHONE_STORE.encode("HML").tolist() == HML


# Models that are solved elsewhere.

UMBRELLA = HMM([0.5, 0.5], [[0.7, 0.3], [0.3, 0.7]], [[0.9, 0.1], [0.2, 0.8]])
FEVER = HMM([0.6, 0.4], [[0.7, 0.3], [0.4, 0.6]], [[0.5, 0.4, 0.1], [0.1, 0.3, 0.6]])
BOXES = HMM([0.2, 0.4, 0.4], [[0.5, 0.2, 0.3], [0.3, 0.5, 0.2], [0.2, 0.3, 0.5]], [[0.5, 0.5], [0.4, 0.6], [0.7, 0.3]])


def test_umbrella_world():
    obs = [0, 0, 1, 0, 0]
    assert forward(UMBRELLA, obs).log_norm[-1] == pytest.approx(-3.3725, abs=5e-5)
    assert viterbi(UMBRELLA, obs).path.tolist() == obs


@pytest.mark.parametrize(
    ("model", "obs", "probability", "path", "path_probability"),
    [(FEVER, [0, 1, 2], 0.03628, [0, 0, 1], 0.01512), (BOXES, [0, 1, 0], 0.130218, [2, 2, 2], 0.0147)],
    ids=["healthy-fever", "box-and-ball"],
)
def test_models_with_published_answers(model, obs, probability, path, path_probability):
    best = viterbi(model, obs)
    close(likelihood(model, obs), probability)
    assert best.path.tolist() == path
    close(math.exp(best.log_probability), path_probability)


# Any small model, against the enumeration of all N^T state sequences in exact arithmetic.


@st.composite
def small_problems(draw):
    """(π, A, B, O) in fractions of small whole numbers: zeros, ties, N = 1 and T = 1 are frequent."""
    n, m, length = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def row(size):
        weights = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any))
        return [Fraction(w, sum(weights)) for w in weights]

    obs = draw(st.lists(st.integers(0, m - 1), min_size=length, max_size=length))
    return row(n), [row(n) for _ in range(n)], [row(m) for _ in range(n)], obs


def enumerate_paths(pi, a, b, obs):
    paths = {}
    for path in itertools.product(range(len(pi)), repeat=len(obs)):
        p = pi[path[0]] * b[path[0]][obs[0]]
        for t in range(1, len(obs)):
            p *= a[path[t - 1]][path[t]] * b[path[t]][obs[t]]
        paths[path] = p
    return paths


@settings(max_examples=250, deadline=None, derandomize=True)
@given(small_problems())
def test_everything_agrees_with_enumeration(problem):
    pi, a, b, obs = problem
    n, length = len(pi), len(obs)
    model, paths = HMM(*(np.array(x, dtype=float) for x in (pi, a, b))), enumerate_paths(*problem)
    total = sum(paths.values())
    for t in range(length):
        prefix = enumerate_paths(pi, a, b, obs[: t + 1])
        for i in range(n):
            ends_here = [p for path, p in prefix.items() if path[-1] == i]
            rest = enumerate_paths(a[i], a, b, obs[t + 1 :]) if t + 1 < length else {(): Fraction(1)}
            close(forward(model, obs).plain[t, i], sum(ends_here))
            close(backward(model, obs).plain[t, i], sum(rest.values()))
    if total == 0:
        assert forward(model, obs).log_norm[-1] == -np.inf
        for function in posterior, pair_posterior, viterbi:
            with pytest.raises(ImpossibleSequenceError, match=r"P\(O\) = 0"):
                function(model, obs)
        return
    gamma = [[sum(p for q, p in paths.items() if q[t] == i) / total for i in range(n)] for t in range(length)]
    xi = [
        [[sum(p for q, p in paths.items() if q[t : t + 2] == (i, j)) / total for j in range(n)] for i in range(n)]
        for t in range(length - 1)
    ]
    close(posterior(model, obs), gamma)
    close(pair_posterior(model, obs), np.array(xi, dtype=float).reshape(length - 1, n, n))
    best, maximum = viterbi(model, obs), max(paths.values())
    close(math.exp(best.log_probability), maximum)
    # Ties go to the lower index, from the last state backwards.
    assert tuple(best.path) == min((q for q, p in paths.items() if p == maximum), key=lambda q: q[::-1])


@pytest.mark.parametrize(("p", "x", "y"), [(0.4, 0.3, 0.2), (0.6, 0.6, 0.9)])
def test_tie_that_rounding_hides_goes_to_the_lower_index(p, x, y):
    # p·x = (1 - p)·y, but their logarithms differ in the last bit, in favour of the second.
    rows = [[x, 1 - x], [y, 1 - y]]
    assert viterbi(HMM([p, 1 - p], rows, [[1.0], [1.0]]), [0, 0]).psi[1, 0] == 0
    assert viterbi(HMM([p, 1 - p], np.eye(2), rows), [0]).path.tolist() == [0]


# hmmlearn on random models.


def log_joint(model, path, obs):
    steps = np.log(model.transmat[path[:-1], path[1:]]).sum() + np.log(model.emissionprob[path, obs]).sum()
    return np.log(model.startprob[path[0]]) + steps


def random_model(rng, n, m):
    return HMM(rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n), size=n), rng.dirichlet(np.ones(m), size=n))


@pytest.mark.parametrize(("n", "m", "length"), [(1, 3, 20), (2, 2, 1), (2, 3, 300), (4, 6, 300), (9, 5, 300)])
def test_agrees_with_hmmlearn(n, m, length):
    rng = np.random.default_rng(n * 1000 + m)
    for _ in range(5):
        model, obs = random_model(rng, n, m), rng.integers(0, m, length)
        theirs = CategoricalHMM(n_components=n, n_features=m)
        theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = model.startprob, model.transmat, model.emissionprob
        close(forward(model, obs).log_norm[-1], theirs.score(obs[:, None]), rtol=1e-10)
        np.testing.assert_allclose(posterior(model, obs), theirs.predict_proba(obs[:, None]), atol=1e-10)
        # Two paths that pass the same edges in another order tie, and hmmlearn leaves the choice to rounding:
        # what must agree is the probability.
        best, (log_probability, path) = viterbi(model, obs), theirs.decode(obs[:, None], algorithm="viterbi")
        close(best.log_probability, log_probability, rtol=1e-10)
        close(log_joint(model, best.path, obs), log_joint(model, path, obs), rtol=1e-10)


# Long sequences, and small probabilities.


def test_long_sequence_does_not_underflow():
    rng = np.random.default_rng(0)
    model, obs = random_model(rng, 3, 4), rng.integers(0, 4, 20_000)
    alpha, beta, gamma = forward(model, obs), backward(model, obs), posterior(model, obs)
    log_p = alpha.log_norm[-1]
    assert -60_000 < log_p < -20_000 and alpha.plain[-1].max() == 0  # a plain float would have been lost
    # Σ_i α_t(i) β_t(i) = P(O) at every t, so the two recursions check each other.
    close(np.logaddexp.reduce(alpha.log + beta.log, axis=1), np.full(len(obs), log_p), rtol=1e-12)
    np.testing.assert_allclose(gamma.sum(axis=1), 1)
    np.testing.assert_allclose(pair_posterior(model, obs).sum(axis=2), gamma[:-1], rtol=1e-9)
    best = viterbi(model, obs)
    close(best.log_probability, log_joint(model, best.path, obs))


def test_state_that_seems_dead_may_survive():
    # 400 symbols make state 1 9^400 times as likely, beyond the range of a float, and then it is found impossible.
    model = HMM([0.5, 0.5], np.eye(2), [[0.9, 0.0, 0.1], [0.1, 0.9, 0.0]])
    obs = [0] * 400 + [1]
    expected = math.log(0.5) + 400 * math.log(0.1) + math.log(0.9)
    assert forward(model, obs).log_norm[-1] == pytest.approx(expected)
    assert viterbi(model, obs).log_probability == pytest.approx(expected)
    np.testing.assert_allclose(posterior(model, obs), [[0, 1]] * 401)


def test_impossible_sequence_is_said_where_it_ends():
    model = HMM([1, 0], np.eye(2), [[1, 0], [0, 1]])
    alpha = forward(model, [0, 0, 1, 0])
    assert alpha.log_norm.tolist() == [0, 0, -np.inf, -np.inf] and not np.isnan(alpha.log).any()
    assert not np.isnan(backward(model, [0, 0, 1, 0]).log).any()
    with pytest.raises(ImpossibleSequenceError, match="first 3 observation"):
        posterior(model, [0, 0, 1, 0])


# Bad models and observations.

GOOD = {"startprob": [0.5, 0.5], "transmat": [[0.6, 0.4], [0.5, 0.5]], "emissionprob": [[0.4, 0.6], [0.2, 0.8]]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"startprob": [0.5, 0.6]}, "startprob sums to 1.1"),
        ({"transmat": [[0.6, 0.4], [0.5, 0.500002]]}, "transmat row 2 sums to 1.000002"),
        ({"emissionprob": [[0.4, 0.6], [1.2, -0.2]]}, "emissionprob row 2, entry 2 is -0.2.*row sum 1"),
        ({"transmat": [[float("nan"), 0.4], [0.5, 0.5]]}, "transmat row 1, entry 1 is nan"),
        ({"transmat": [[float("inf"), 0.4], [0.5, 0.5]]}, "transmat row 1 sums to inf"),
        ({"transmat": [[0.2, 0.3, 0.5]] * 2}, r"transmat has shape \(2, 3\), not \(2, 2\)"),
        ({"emissionprob": [[0.4, 0.6]] * 3}, r"emissionprob has shape \(3, 2\), not \(2, 2\)"),
        ({"startprob": [[0.5, 0.5]]}, r"startprob has shape \(1, 2\)"),
        ({"startprob": []}, "startprob has shape"),
        ({"emissionprob": [[], []]}, "emissionprob has shape"),
        ({"transmat": [[1.0], [0.5, 0.5]]}, "transmat is not a table of numbers"),
        ({"transmat": [["a", "b"], [0.5, 0.5]]}, "transmat is not a table of numbers"),
        ({"states": ["a", "a"]}, "states must be 2 different names"),
        ({"symbols": ["H", "M", "L"]}, "symbols must be 2 different names"),
    ],
)
def test_bad_model_is_named(change, message):
    with pytest.raises(ModelError, match=message):
        HMM(**{**GOOD, **change})


def test_rows_may_miss_one_by_rounding():
    HMM(**{**GOOD, "startprob": [0.5, 0.5000009]})


@pytest.mark.parametrize("function", [forward, backward, posterior, pair_posterior, viterbi])
@pytest.mark.parametrize(
    ("obs", "message"),
    [
        ([], "empty"),
        ([0, 2], "observation 2 is 2, .* 0 to 1"),
        ([-1, 0], "observation 1 is -1"),
        ([0.0, 1.0], "whole numbers"),
        ([[0], [1]], "shape"),
    ],
)
def test_bad_observations_are_named(function, obs, message):
    with pytest.raises(ModelError, match=message):
        function(HMM(**GOOD), obs)


def test_model_cannot_be_changed_afterwards():
    mine = np.array([0.5, 0.5])
    model = HMM(**{**GOOD, "startprob": mine})
    mine[0] = 7
    assert model.startprob.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError):
        model.transmat[0, 0] = 7


# The command.


def command(*args):
    return subprocess.run(
        [sys.executable, "hmm.py", *args],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


PRINTED = """
π_i = P(q_1 = S_i)
            π_i
S1 畅销  0.500000
S2 滞销  0.500000

A: a_ij = P(q_{t+1} = S_j | q_t = S_i)
         S1 畅销   S2 滞销
S1 畅销  0.600000  0.400000
S2 滞销  0.500000  0.500000

B: b_i(k) = P(o_t = k | q_t = S_i)
            H         M         L
S1 畅销  0.400000  0.400000  0.200000
S2 滞销  0.200000  0.300000  0.500000

O = H, M, L

α_t(i) = P(o_1 … o_t, q_t = S_i | λ)
      S1 畅销   S2 滞销
1  H  0.200000  0.100000
2  M  0.068000  0.039000
3  L  0.012060  0.023350

β_t(i) = P(o_{t+1} … o_T | q_t = S_i, λ)
      S1 畅销   S2 滞销
1  H  0.118800  0.116500
2  M  0.320000  0.350000
3  L  1.000000  1.000000

P(O|λ) = Σ_i α_T(i) = 0.03541

γ_t(i) = P(q_t = S_i | O, λ)
      S1 畅销   S2 滞销
1  H  0.670997  0.329003
2  M  0.614516  0.385484
3  L  0.340582  0.659418

ξ_t(i,j) = P(q_t = S_i, q_{t+1} = S_j | O, λ)
      S1 → S1   S1 → S2   S2 → S1   S2 → S2
1  H  0.433776  0.237221  0.180740  0.148263
2  M  0.230443  0.384072  0.110138  0.275346

δ_t(i) = max P(q_1 … q_{t-1}, q_t = S_i, o_1 … o_t | λ)
      S1 畅销   S2 滞销
1  H  0.200000  0.100000
2  M  0.048000  0.024000
3  L  0.005760  0.009600

ψ_t(i) = argmax_j δ_{t-1}(j) a_ji
      S1 畅销   S2 滞销
1  H        0         0
2  M       S1        S1
3  L       S1        S1

P* = max_i δ_T(i) = 0.0096
q* = S1, S1, S2 = 畅销, 畅销, 滞销
"""


def test_command_prints_every_variable_and_the_answer():
    result = command()
    assert result.returncode == 0 and result.stderr == ""

    def without_spacing(text):
        return [line.split() for line in text.splitlines()]

    assert without_spacing(result.stdout) == [["λ", "=", "(π,", "A,", "B)"], *without_spacing(PRINTED)]


def test_tables_are_aligned_on_a_terminal_where_chinese_characters_are_wide():
    for block in command().stdout.split("\n\n"):
        table = [line for line in block.splitlines()[1:] if line.startswith("  ")]
        assert len({len(line) + sum("一" <= char <= "龥" for char in line) for line in table}) <= 1, block


def test_command_takes_other_observations():
    assert command("--obs", "L").stdout.endswith("= 0.25\nq* = S2 = 滞销\n")
    assert command("--obs", "H，M, L").stdout == command().stdout


def test_command_shows_probabilities_below_the_range_of_floats():
    output = command("--obs", ",".join("HML" * 500)).stdout
    assert "e-722" in output and "0.00000e+00" not in output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--obs", "H,X,L"], "unknown symbol 'X', the model has H, M, L"),
        (["--obs", ""], "the observation sequence is empty"),
        (["--obs", " , "], "the observation sequence is empty"),
        (["--obs", "H,,L"], "unknown symbol ''"),
        (["--ops", "H"], "did you mean --obs?"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(args, message):
    result = command(*args)
    assert result.returncode == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1
