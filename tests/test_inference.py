"""What inference.py says of a sequence: the exercise, published answers, enumeration, hmmlearn, long sequences."""

import math
from fractions import Fraction as F

import numpy as np
import pytest
from conftest import ROOT
from hmm_problems import GOOD, HML, close, enumerate_paths, log_joint, random_model, small_problems
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given, settings
from hypothesis import strategies as st

from hmm import (
    HMM,
    PHONE_STORE,
    ImpossibleSequenceError,
    ModelError,
    backward,
    best_path,
    expected_counts,
    forward,
    kbest,
    load_model,
    pair_posterior,
    posterior,
    score,
    viterbi,
)


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


# Models with published answers.


def test_umbrella_world_has_its_published_answers():
    model, obs = load_model(ROOT / "data/hmm/umbrella.json"), [0, 0, 1, 0, 0]
    assert forward(model, obs).log_norm[-1] == pytest.approx(-3.3725, abs=5e-5)
    assert viterbi(model, obs).path.tolist() == obs


@pytest.mark.parametrize(
    ("name", "obs", "probability", "path", "path_probability"),
    [("fever", [0, 1, 2], 0.03628, [0, 0, 1], 0.01512), ("boxes", [0, 1, 0], 0.130218, [2, 2, 2], 0.0147)],
)
def test_models_have_their_published_answers(name, obs, probability, path, path_probability):
    model = load_model(ROOT / f"data/hmm/{name}.json")
    best = viterbi(model, obs)
    close(likelihood(model, obs), probability)
    assert best.path.tolist() == path
    close(math.exp(best.log_probability), path_probability)


# Any small model, against the enumeration of all N^T state sequences in exact arithmetic.


@settings(max_examples=250, deadline=None, derandomize=True)
@given(small_problems())
def test_all_variables_agree_with_enumeration(problem):
    pi, a, b, obs = problem
    n, length = len(pi), len(obs)
    model, paths = HMM(*(np.array(x, dtype=float) for x in (pi, a, b))), enumerate_paths(*problem)
    total = sum(paths.values())
    for t in range(length):
        prefix = enumerate_paths(pi, a, b, obs[: t + 1])
        for i in range(n):
            ends_here = [p for path, p in prefix.items() if path[-1] == i]
            rest = enumerate_paths(a[i], a, b, obs[t + 1 :]) if t + 1 < length else {(): F(1)}
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


def test_expected_counts_are_sums_of_the_posteriors():
    rng = np.random.default_rng(4)
    model, obs = random_model(rng, 32, 3), rng.integers(0, 3, 6000)  # T·N² is more than is summed at a time
    counts, gamma = expected_counts(model, obs), posterior(model, obs)
    np.testing.assert_allclose(counts.start, gamma[0], rtol=1e-9)
    np.testing.assert_allclose(counts.transitions, pair_posterior(model, obs).sum(axis=0), rtol=1e-9)
    np.testing.assert_allclose(counts.emissions.T, [gamma[obs == k].sum(axis=0) for k in range(3)], rtol=1e-9)
    assert counts.log_likelihood == pytest.approx(score(model, obs), rel=1e-12)


# Bad observations.


@pytest.mark.parametrize("function", [score, forward, backward, posterior, pair_posterior, viterbi, best_path])
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


# The K best paths.


@settings(max_examples=150, deadline=None, derandomize=True)
@given(small_problems(), st.integers(1, 40))
def test_kbest_agrees_with_enumeration(problem, k):
    paths = {q: p for q, p in enumerate_paths(*problem).items() if p}
    model, obs = HMM(*problem[:3]), problem[3]
    if not paths:
        with pytest.raises(ImpossibleSequenceError, match=r"P\(O\) = 0"):
            kbest(model, obs, k)
        return
    expected = sorted(paths, key=lambda q: (-paths[q], q[::-1]))[:k]  # ties as in viterbi()
    found = kbest(model, obs, k)
    assert [tuple(path.states) for path in found] == expected
    close([math.exp(path.log_probability) for path in found], [paths[q] for q in expected])


def test_first_of_the_kbest_is_the_viterbi_path_of_a_long_sequence_too():
    rng = np.random.default_rng(3)
    model, obs = random_model(rng, 4, 3), rng.integers(0, 3, 2000)
    found, best = kbest(model, obs, 20), viterbi(model, obs)
    assert found[0].states.tolist() == best.path.tolist()
    logs = [path.log_probability for path in found]
    assert sorted(logs, reverse=True) == pytest.approx(logs, rel=1e-14)
    assert len({tuple(path.states) for path in found}) == 20
    close(logs, [log_joint(model, path.states, obs) for path in found], rtol=1e-10)
