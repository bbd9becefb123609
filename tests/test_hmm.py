"""Hidden Markov models: the exercise, published answers, enumeration, hmmlearn, long sequences; the command line."""

import itertools
import json
import math
import os
import random
import re
from fractions import Fraction as F

import numpy as np
import pytest
from conftest import ROOT, run_script
from hmmlearn.hmm import CategoricalHMM
from hostile import HOSTILE, LOST, damaged, leaves, replaced
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

import hmm
from hmm import HMM, PHONE_STORE, ImpossibleSequenceError, ModelError, forward
from songci.cli import UserError
from songci.hmm import files, trellis, walkthrough
from songci.hmm.baumwelch import baum_welch, sample
from songci.hmm.files import load_model, model_to_json, read_sequences
from songci.hmm.kbest import kbest

HML = [0, 1, 2]  # the exercise's observations H, M, L
GOOD = {"startprob": [0.5, 0.5], "transmat": [[0.6, 0.4], [0.5, 0.5]], "emissionprob": [[0.4, 0.6], [0.2, 0.8]]}
MATRICES = "startprob", "transmat", "emissionprob"
ONE_WAY = {  # from a to b and never back; only a emits x, and only b emits y
    "states": ["a", "b"],
    "symbols": ["x", "y"],
    "startprob": [1, 0],
    "transmat": [["1/3", "2/3"], [0, 1]],
    "emissionprob": [[1, 0], [0, 1]],
}


def close(actual, expected, rtol=1e-12):
    """Asserts that two arrays, or a number and a fraction, agree."""
    np.testing.assert_allclose(actual, np.array(expected, dtype=float), rtol=rtol, atol=1e-300)


def enumerate_paths(pi, a, b, obs):
    """{q: P(q, O | λ)} of all N^T state sequences."""
    paths = {}
    for q in itertools.product(range(len(pi)), repeat=len(obs)):
        steps = (a[q[t - 1]][q[t]] * b[q[t]][obs[t]] for t in range(1, len(obs)))
        paths[q] = math.prod(steps, start=pi[q[0]] * b[q[0]][obs[0]])
    return paths


def log_joint(model, path, obs):
    """ln P(q, O | λ), by definition."""
    steps = np.log(model.transmat[path[:-1], path[1:]]).sum() + np.log(model.emissionprob[path, obs]).sum()
    return np.log(model.startprob[path[0]]) + steps


def random_hmm(rng, n, m):
    return HMM(rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n), size=n), rng.dirichlet(np.ones(m), size=n))


def with_hmmlearn(model):
    theirs = CategoricalHMM(len(model.states), n_features=len(model.symbols), n_iter=1, init_params="")
    theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = model.startprob, model.transmat, model.emissionprob
    return theirs


@st.composite
def small_problems(draw):
    """(π, A, B, O) in fractions of small whole numbers: zeros, ties, N = 1 and T = 1 are frequent."""
    n, m, length = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))

    def row(size):
        weights = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any))
        return [F(w, sum(weights)) for w in weights]

    obs = draw(st.lists(st.integers(0, m - 1), min_size=length, max_size=length))
    return row(n), [row(n) for _ in range(n)], [row(m) for _ in range(n)], obs


@pytest.fixture(params=["plain", "numba"])
def path(request, monkeypatch):
    """The loops as plain Python, and compiled whatever the length."""
    monkeypatch.setattr(hmm, "COMPILED_FROM", {"plain": math.inf, "numba": 0}[request.param])


# The exercise, and models with published answers.


def test_exercise_has_its_exact_values():
    v = PHONE_STORE.exactly(HML)
    assert v.likelihood == F(3541, 100000)
    assert v.alpha.tolist() == [[F(1, 5), F(1, 10)], [F(17, 250), F(39, 1000)], [F(603, 50000), F(467, 20000)]]
    assert v.beta.tolist() == [[F(297, 2500), F(233, 2000)], [F(8, 25), F(7, 20)], [1, 1]]
    assert (v.gamma * 3541).tolist() == [[2376, 1165], [2176, 1365], [1206, 2335]]
    assert (v.xi * 3541).tolist() == [[[1536, 840], [640, 525]], [[816, 1360], [390, 975]]]
    assert v.delta.tolist() == [[F(1, 5), F(1, 10)], [F(6, 125), F(3, 125)], [F(18, 3125), F(6, 625)]]
    assert v.psi.tolist() == [[0, 0], [0, 0], [0, 0]] and v.path.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "obs", "log_likelihood", "path", "path_probability"),
    [
        ("phone_store", "H,M,L", math.log(0.03541), "畅销 畅销 滞销", 0.0096),
        ("fever", "normal,cold,dizzy", math.log(0.03628), "Healthy Healthy Fever", 0.01512),
        ("boxes", "红,白,红", math.log(0.130218), "盒子3 盒子3 盒子3", 0.0147),
        ("umbrella", "umbrella,umbrella,none,umbrella,umbrella", -3.3725, "rain rain dry rain rain", None),
    ],
)
def test_models_in_data_have_their_published_answers(call, name, obs, log_likelihood, path, path_probability):
    (result,) = json_of(call, "--model", ROOT / f"data/hmm/{name}.json", "--obs", obs)
    assert result["viterbi"]["states"] == path.split()
    assert result["log_likelihood"] == pytest.approx(log_likelihood, abs=1e-12 if path_probability else 5e-5)
    assert path_probability in (None, result["viterbi"]["probability"])


def test_equal_paths_go_to_the_lower_state_in_all_outputs_of_a_small_problem(call):
    # To state 1 from state 1 with 0.3 · 0.6, from state 2 with 0.2 · 0.9: equal, but 0.18000000000000002 > 0.18
    model, obs = HMM([0.3, 0.2, 0.5], [[0.6, 0.4, 0], [0.9, 0.1, 0], [0, 0, 1]], [[1, 0], [1, 0], [0, 1]]), [0, 0]
    assert model.viterbi(obs)[0].tolist() == model.exactly(obs).path.tolist() == kbest(model, obs, 1)[0][0].tolist()
    assert model.viterbi(obs)[0].tolist() == [0, 0] and model.viterbi(obs)[2][1, 0] == 0
    assert json.loads(files.result_to_json(model, np.array(obs)))["viterbi"]["path"] == [0, 0]
    assert ("δ = 0.18\nψ = S1", True) in drawn(model=model, obs=obs)[0]
    for length, said in (2, True), (20, False):  # where floats may decide, nothing is said
        assert ("Ties go to" in walkthrough.explain(model, [np.zeros(length, int)], "en")) == said


# Any small model, against the enumeration of all N^T state sequences in exact arithmetic.


@settings(max_examples=120, deadline=None, derandomize=True)
@given(small_problems())
def test_all_variables_agree_with_enumeration(problem):
    pi, a, b, obs = problem
    n, length, model, paths = len(pi), len(obs), HMM(*problem[:3]), enumerate_paths(*problem)
    total, v = sum(paths.values()), model.exactly(obs)
    for t in range(length):
        prefix = enumerate_paths(pi, a, b, obs[: t + 1])
        for i in range(n):
            rest = enumerate_paths(a[i], a, b, obs[t + 1 :]) if t + 1 < length else {(): F(1)}
            assert v.alpha[t, i] == sum(p for q, p in prefix.items() if q[-1] == i)
            assert v.beta[t, i] == sum(rest.values())
            assert v.delta[t, i] == max(p for q, p in prefix.items() if q[-1] == i)
    assert v.likelihood == total
    close(np.exp(model.forward(obs)), v.alpha)
    close(np.exp(model.backward(obs)), v.beta)
    close(math.exp(model.score(obs)), total)
    if total == 0:
        assert v.gamma is None and v.xi is None
        for method in model.posterior, model.pair_posterior, model.viterbi:
            with pytest.raises(ImpossibleSequenceError, match=r"P\(O\) = 0"):
                method(obs)
        return
    for t in range(length):
        assert v.gamma[t].tolist() == [sum(p for q, p in paths.items() if q[t] == i) / total for i in range(n)]
    for t, i, j in itertools.product(range(length - 1), range(n), range(n)):
        assert v.xi[t, i, j] == sum(p for q, p in paths.items() if q[t : t + 2] == (i, j)) / total
    close(model.posterior(obs), v.gamma)
    close(model.pair_posterior(obs), v.xi)
    # Ties go to the lower index, from the last state backwards.
    best = max(paths.values())
    assert tuple(v.path) == min((q for q, p in paths.items() if p == best), key=lambda q: q[::-1])
    path, log_delta, _ = model.viterbi(obs)
    close(math.exp(log_delta[-1].max()), best)
    close(float(paths[tuple(path)]), best)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(small_problems(), st.integers(1, 40))
def test_kbest_agrees_with_enumeration(problem, k):
    paths = {q: p for q, p in enumerate_paths(*problem).items() if p}
    found = kbest(HMM(*problem[:3]), problem[3], k)
    assert [tuple(path) for path, _ in found] == sorted(paths, key=lambda q: (-paths[q], q[::-1]))[:k]
    close([math.exp(log_p) for _, log_p in found], [paths[tuple(path)] for path, _ in found])


def test_first_of_the_kbest_is_the_viterbi_path_of_a_long_sequence_too():
    rng = np.random.default_rng(3)
    model, obs = random_hmm(rng, 4, 3), rng.integers(0, 3, 2000)
    found, (path, log_delta, _) = kbest(model, obs, 20), model.viterbi(obs)
    logs = [log_p for _, log_p in found]
    assert found[0][0].tolist() == path.tolist() and logs[0] == pytest.approx(log_delta[-1].max(), rel=1e-13)
    assert sorted(logs, reverse=True) == pytest.approx(logs, rel=1e-14) and len({tuple(q) for q, _ in found}) == 20
    close(logs, [log_joint(model, q, obs) for q, _ in found], rtol=1e-10)


# hmmlearn on random models, with and without numba.


@pytest.mark.parametrize(("n", "m", "length"), [(1, 3, 20), (2, 2, 1), (2, 3, 300), (4, 6, 300), (9, 5, 300)])
def test_agrees_with_hmmlearn(path, n, m, length):
    rng = np.random.default_rng(n * 1000 + m)
    for _ in range(3):
        model, obs = random_hmm(rng, n, m), rng.integers(0, m, length)
        theirs = with_hmmlearn(model)
        close(model.score(obs), theirs.score(obs[:, None]), rtol=1e-10)
        np.testing.assert_allclose(model.posterior(obs), theirs.predict_proba(obs[:, None]), atol=1e-10)
        path, log_delta, _ = model.viterbi(obs)
        log_p, their_path = theirs.decode(obs[:, None], algorithm="viterbi")
        close(log_delta[-1].max(), log_p, rtol=1e-10)
        for q in path, their_path:  # which may differ in ties
            close(log_joint(model, q, obs), log_p, rtol=1e-10)


def test_without_numba_the_loops_run_in_python(monkeypatch):
    monkeypatch.setattr(hmm, "COMPILED_FROM", 0)
    monkeypatch.setitem(__import__("sys").modules, "numba", None)  # import numba fails
    hmm.compiled.cache_clear()
    try:
        assert PHONE_STORE.score(HML) == pytest.approx(math.log(0.03541)) and hmm.compiled(forward) is None
    finally:
        hmm.compiled.cache_clear()


# Long sequences, and small probabilities.


def left_right(n, m):
    a = np.eye(n) * 0.75 + np.eye(n, k=1) * 0.25
    a[-1, -1] = 1
    return HMM(np.eye(n)[0], a, np.random.default_rng(n).dirichlet(np.ones(m), size=n))


MODELS = {
    "random": random_hmm(np.random.default_rng(1), 3, 4),
    "one state": HMM([1], [[1]], [[0.25, 0.25, 0.5, 0]]),
    "never forgets": HMM([0.25, 0.75], np.eye(2), [[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.1, 0.2]]),
    "left to right": left_right(4, 4),
    "alternates": HMM([0.5, 0.5], [[0, 1], [1, 0]], [[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.1, 0.2]]),
    "near zeros": HMM(
        [1 - 1e-200, 1e-200], [[1 - 1e-90, 1e-90], [1e-120, 1]], [[0.5, 0.5, 1e-99, 0], [0.1, 0.2, 0.3, 0.4]]
    ),
}


@pytest.mark.parametrize("length", [1, 2, 97, 2000])
@pytest.mark.parametrize("name", MODELS)
def test_long_sequences_agree_with_logarithms_step_by_step(path, name, length):
    model, obs = MODELS[name], np.random.default_rng(length).integers(0, 3, length)
    with np.errstate(divide="ignore"):
        pi, a, b = np.log(model.startprob), np.log(model.transmat), np.log(model.emissionprob.T[obs])
    alpha, beta = [pi + b[0]], [np.zeros(len(pi))]
    for t in range(1, length):
        alpha.append(np.logaddexp.reduce(alpha[-1][:, None] + a, axis=0) + b[t])
        beta.insert(0, np.logaddexp.reduce(a + b[length - t] + beta[0], axis=1))
    total = np.logaddexp.reduce(alpha[-1])
    assert model.score(obs) == pytest.approx(total, rel=1e-11, abs=1e-11)
    np.testing.assert_allclose(model.forward(obs), alpha, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(model.backward(obs), beta, rtol=1e-11, atol=1e-9)
    gamma = np.exp(np.array(alpha) + beta - total)
    np.testing.assert_allclose(model.posterior(obs), gamma, rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(model.pair_posterior(obs).sum(axis=2), gamma[:-1], rtol=1e-7, atol=1e-11)
    log_delta, path = model.viterbi(obs)[1], model.viterbi(obs)[0]
    with np.errstate(divide="ignore"):
        assert log_delta[-1].max() == pytest.approx(log_joint(model, path, obs), rel=1e-11)


def test_state_far_below_the_others_survives(path):
    # 10^4 symbols make state 1 9^10000 times as likely, beyond the range of a float; then it is found impossible.
    model = HMM([0.5, 0.5], np.eye(2), [[0.9, 0.0, 0.1], [0.1, 0.9, 0.0]])
    obs = [0] * 10_000 + [1] + [0] * 5000
    expected = math.log(0.5) + 15_000 * math.log(0.1) + math.log(0.9)
    assert model.score(obs) == pytest.approx(expected)
    path, log_delta, _ = model.viterbi(obs)
    assert path.all() and log_delta[-1].max() == pytest.approx(expected)
    assert (model.posterior(obs) == [0, 1]).all()
    assert model.pair_posterior(obs)[:, 1, 1] == pytest.approx(1)


@pytest.mark.parametrize("at", [0, 1, 299])
def test_impossible_observation_is_said_where_it_stands(path, at):
    model, obs = HMM([0.5, 0.5], [[0.5, 0.5]] * 2, [[0.5, 0.5, 0], [0.2, 0.8, 0]]), np.zeros(300, dtype=int)
    obs[at] = 2
    assert model.score(obs) == -np.inf
    assert np.isneginf(model.forward(obs)).all(axis=1).argmax() == at
    assert not np.isnan(model.forward(obs)).any() and not np.isnan(model.backward(obs)).any()
    for method in model.posterior, model.pair_posterior, model.viterbi, model.expectations:
        with pytest.raises(ImpossibleSequenceError, match=rf"P\(O\) = 0: .* the first {at + 1} observation"):
            method(obs)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 5])
def test_a_million_steps_stay_finite(path, n):
    model = random_hmm(np.random.default_rng(n), n, 4)
    states, obs = sample(model, 10**6, seed=n)
    log_likelihood = model.score(obs)
    assert -2e6 < log_likelihood < -1e5
    gamma = model.posterior(obs)
    assert np.isfinite(gamma).all() and np.abs(gamma.sum(axis=1) - 1).max() < 1e-12
    path, log_delta, _ = model.viterbi(obs)
    assert log_joint(model, states, obs) <= log_delta[-1].max() < log_likelihood
    assert log_delta[-1].max() == pytest.approx(log_joint(model, path, obs), rel=1e-10)
    # The posterior's favourite is right more often than the best path, and both more often than the commonest state.
    right = [np.mean(guess == states) for guess in (gamma.argmax(axis=1), path)]
    assert right[0] >= right[1] > np.bincount(states).max() / len(states) - 0.01


# Bad models and observations.


def test_bad_observations_are_named():
    bad = [([], "empty"), ([0, 2], "observation 2 is 2, .* 0 to 1"), ([-1, 0], "observation 1 is -1")]
    for obs, message in [*bad, ([0.0, 1.0], "whole numbers"), ([[0], [1]], "shape")]:
        for name in "score", "forward", "backward", "posterior", "pair_posterior", "expectations", "viterbi", "exactly":
            with pytest.raises(ModelError, match=message):
                getattr(HMM(**GOOD), name)(obs)


def test_exact_takes_a_float_for_the_simplest_fraction_and_keeps_fractions():
    model = HMM([0.1, 0.9], [[1 / 3, 2 / 3], [0.333333, 0.666667]], [[1e-300, 1.0], [1, 0]])
    pi, a, b = (matrix.tolist() for matrix in model.exact)
    assert pi == [F(1, 10), F(9, 10)] and b == [[F(1, 10**300), 1], [1, 0]]
    assert a == [[F(1, 3), F(2, 3)], [F(333333, 10**6), F(666667, 10**6)]]
    third = F(10**20 + 1, 3 * 10**20 + 7)
    assert HMM([third, 1 - third], np.eye(2), np.eye(2)).exact[0].tolist() == [third, 1 - third]


def test_model_cannot_be_changed_afterwards_and_its_rows_may_be_off_by_rounding():
    mine = np.array([0.5, 0.5000009])
    model = HMM(**{**GOOD, "startprob": mine})
    mine[0] = 7
    assert model.startprob.tolist() == [0.5, 0.5000009]
    with pytest.raises(ValueError):
        model.transmat[0, 0] = 7


@pytest.fixture
def write(file):
    """Writes a model or a text into a file: write(content, name) → its path."""
    return lambda content, name="model.json": file(name, content if isinstance(content, str) else json.dumps(content))


BAD = [  # (what is changed in a good model, or a whole file; what is said of it)
    ({"startprob": [0.5, 0.6]}, "startprob sums to 1.1"),
    ({"startprob": [[0.5, 0.5]]}, "startprob has shape (1, 2)"),
    ({"startprob": []}, "startprob has shape"),
    ({"startprob": 1.0}, "startprob has shape ()"),
    ({"transmat": [[0.6, 0.4], [0.5, 0.500002]]}, "transmat row 2 sums to 1.000002"),
    ({"transmat": [[float("nan"), 0.4], [0.5, 0.5]]}, "transmat row 1, entry 1 is nan"),
    ({"transmat": [[float("inf"), 0.4], [0.5, 0.5]]}, "transmat row 1 sums to inf"),
    ({"transmat": [[10**400, 0.4], [0.5, 0.5]]}, "transmat row 1 sums to inf"),
    ({"transmat": [[1.0], [0.5, 0.5]]}, "transmat is not a table of numbers"),
    ({"transmat": [[0.2, 0.3, 0.5]] * 2}, "transmat has shape (2, 3), not (2, 2)"),
    ({"emissionprob": [[0.4, 0.6], [1.2, -0.2]]}, "emissionprob row 2, entry 2 is -0.2, not a probability (row sum 1)"),
    ({"emissionprob": [[1.0]] * 3}, "emissionprob has shape (3, 1), not (2, 1)"),
    ({"emissionprob": [[], []]}, "emissionprob has shape"),
    ({"states": ["a", "a"]}, "states must be 2 different names"),
    ({"symbols": ["a", "b", "c"]}, "symbols must be 2 different names"),
    ({"startprob": [None, 1]}, "startprob is not a table of numbers: null"),
    ({"startprob": [True, 0.0]}, "startprob is not a table of numbers: true"),
    ({"startprob": ["1/0", 1]}, 'startprob is not a table of numbers: "1/0"'),
    ({"startprob": ["1e9", 1]}, "startprob is not a table of numbers"),
    ({"startprob": {"a": 1}}, "startprob is not a table of numbers"),
    ({"symbols": ["a", ""]}, "symbols must be a list of names"),
    ({"symbols": ["a", "b,c"]}, "symbols must be a list of names: printable text, not empty, without commas"),
    ({"states": ["a", "b\n"]}, "states must be a list of names"),
    ({"states": "ab"}, "states must be a list of names"),
    ('{"startprob": [1]}', "must be a JSON object with startprob, transmat, emissionprob"),
    ("[1, 2]", "must be a JSON object"),
    ("{", "is not a JSON file"),
    ("[" * 100_000, "is not a JSON file"),
    (b"\xff\xfe\x00", "is not a JSON file"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_bad_file_of_a_model_gets_one_line_that_names_it(assert_user_error, file, content, message):
    path = file("model.json", json.dumps({**GOOD, **content}) if isinstance(content, dict) else content)
    assert_user_error(hmm, "--model", path, "--obs", "v1", words=[path, message])


def test_model_is_what_the_file_says_and_reads_the_same_when_saved(write):
    names = {"states": ["a", " b "], "symbols": ["x", "y"], "note": "for the reader"}
    model = load_model(HMM, write({**GOOD, **names, "startprob": ["1/3", "2/3"]}))
    assert model.states == ("a", "b") and model.symbols == ("x", "y")
    assert model.exact[0].tolist() == [F(1, 3), F(2, 3)] and model.transmat.tolist() == GOOD["transmat"]
    assert load_model(HMM, write(GOOD)).symbols == ("v1", "v2")
    rng = np.random.default_rng(0)
    names = ['"a"', "b\\"], ["甲", "[0", "\U0001f600"]
    mine = HMM([0.5, 0.5], rng.dirichlet([1, 1], 2), rng.dirichlet([1] * 3, 2), *names)
    saved, exercise = load_model(HMM, write(model_to_json(mine))), load_model(HMM, ROOT / "data/hmm/phone_store.json")
    for one, same in (mine, saved), (PHONE_STORE, exercise):
        assert all(
            np.array_equal(getattr(one, field), getattr(same, field)) for field in (*MATRICES, "states", "symbols")
        )


def test_sequences_are_read_from_a_file_or_from_the_text(write):
    def read(given):
        return [obs.tolist() for obs in read_sequences(PHONE_STORE, str(given))]

    assert read(write("# H first\nH,M,L\n L   H\nM\n\n", "obs.txt")) == [[0, 1, 2], [2, 0], [1]]
    assert read("H，M, L") == read(" H M  L") == [[0, 1, 2]]
    with pytest.raises(UserError, match=r"unknown symbol 'H', .* something like --obs v1,v2"):
        read_sequences(HMM(**GOOD), "H,M")
    with pytest.raises(UserError, match="unknown symbol"):
        read("X" * 5000)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["line 1", "the observation sequence is empty"]),
        ("H\n\nM\n", ["line 2", "the observation sequence is empty"]),
        ("H,M\nH,m\n", ["line 2", "unknown symbol 'm'", "H, M, L"]),
        ("# nothing\n", ["has no sequence"]),
        (b"\xff\xfe\x00", ["cannot read"]),
    ],
)
def test_bad_file_of_sequences_is_named_with_its_line(assert_user_error, file, content, words):
    path = file("obs.txt", content)
    assert_user_error(hmm, "--obs", path, words=[path, *words])


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_damaged_models_are_read_or_refused(file, count):
    """Flipped bits, cut ends, and values replaced by what no model has."""
    rng, good = random.Random(0), [path.read_bytes() for path in sorted((ROOT / "data" / "hmm").glob("*.json"))]
    refused, values = 0, [value for value in HOSTILE if value is not LOST]
    for i in range(count):
        content = rng.choice(good)
        model = json.loads(content)
        changed = json.dumps(replaced(model, rng.choice(leaves(model)), rng.choice(values)))
        content = damaged(content, rng) if i % 2 else changed.encode("utf-8", "replace")
        try:
            model = load_model(HMM, file("model.json", content))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            files.result_to_json(model, np.array([0, 0, len(model.symbols) - 1]))  # what passes can be worked with
    assert count / 3 < refused < count


def test_any_text_is_read_as_observations_or_refused():
    rng, read = random.Random(1), 0
    for _ in range(500):
        text = "".join(rng.choices(["H", "M", "L", *", \n\t\0\ud800的", "\U0001f600"], k=rng.randint(0, 30)))
        try:
            assert read_sequences(PHONE_STORE, text)
            read += 1
        except UserError as error:
            assert "\n" not in str(error)
    assert read


# Learning and sampling.


def test_a_step_of_baum_welch_agrees_with_hmmlearn():
    rng = np.random.default_rng(8)
    model, sequences = random_hmm(rng, 3, 4), [rng.integers(0, 4, length) for length in (1, 2, 50, 300)]
    theirs = with_hmmlearn(model)
    theirs.fit(np.concatenate(sequences)[:, None], [len(obs) for obs in sequences])
    steps = baum_welch(model, sequences)
    assert next(steps)[0] is model
    ours, log_likelihood = next(steps)
    for name in MATRICES:
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name + "_"), rtol=1e-9)
    assert log_likelihood == pytest.approx(sum(ours.score(obs) for obs in sequences), rel=1e-12)


def test_sum_of_xi_is_found_without_all_xi(path):
    rng = np.random.default_rng(4)
    for model in random_hmm(rng, 5, 4), MODELS["near zeros"], MODELS["left to right"]:
        obs = rng.integers(0, 3, 300)
        log_p, gamma, transitions = model.expectations(obs)
        assert log_p == pytest.approx(model.score(obs), rel=1e-12)
        np.testing.assert_allclose(gamma, model.posterior(obs), rtol=1e-12)
        np.testing.assert_allclose(transitions, model.pair_posterior(obs).sum(axis=0), rtol=1e-9)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(2, 4), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 999))
def test_likelihood_never_falls_while_learning(n, m, lengths, seed):
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, m, length) for length in lengths]
    steps = list(itertools.islice(baum_welch(random_hmm(rng, n, m), sequences), 20))
    reported = [log_likelihood for _, log_likelihood in steps]
    np.testing.assert_allclose([sum(map(model.score, sequences)) for model, _ in steps], reported, atol=1e-9)
    assert len(steps) > 1 and all(after > before for before, after in itertools.pairwise(reported))


def test_learning_keeps_the_row_of_a_state_that_is_never_visited():
    model = HMM([1, 0], [[1, 0], [0.25, 0.75]], [[0.5, 0.5], [0.1, 0.9]])
    learned, _ = list(itertools.islice(baum_welch(model, [np.array([0, 0, 1])]), 2))[-1]
    assert learned.transmat[1].tolist() == [0.25, 0.75] and learned.emissionprob[1].tolist() == [0.1, 0.9]
    close(learned.emissionprob[0], [2 / 3, 1 / 3])


def test_fit_prints_every_step_and_saves_the_model(call, tmp_path):
    obs, out = tmp_path / "obs.txt", tmp_path / "fitted.json"
    obs.write_text("H,M,L,L,H\nM,M,L\n", encoding="utf-8")
    status, text, err = call(hmm, "--obs", obs, "--fit", "--seed", 4, "--iters", 9, "--out", out)
    assert status == 0 and err == ""
    likelihoods = [float(line.split("= ")[1]) for line in text.splitlines() if line.startswith("step ")]
    assert len(likelihoods) == 10 and likelihoods == sorted(likelihoods) and likelihoods[0] < likelihoods[-1]
    fitted = load_model(HMM, out)
    total = sum(fitted.score(fitted.encode(line.split(","))) for line in obs.read_text().splitlines())
    assert total == pytest.approx(likelihoods[-1], rel=1e-8) and fitted.states == PHONE_STORE.states
    assert text.endswith(out.read_text(encoding="utf-8"))
    (again,) = json_of(call, "--obs", obs, "--fit", "--seed", 4, "--iters", 9)
    assert again["log_likelihood"] == pytest.approx(likelihoods, rel=1e-8)
    assert again["model"] == json.loads(out.read_text(encoding="utf-8"))


def test_fit_stops_at_the_tolerance(call):
    steps = {tolerance: json_of(call, "--fit", "--tolerance", tolerance)[0]["log_likelihood"] for tolerance in (0, 0.1)}
    gains = np.diff(steps[0.1])
    assert (gains[:-1] >= 0.1).all() and gains[-1] < 0.1
    assert steps[0.1] == steps[0][: len(steps[0.1])] and len(steps[0]) > len(steps[0.1])


def test_fit_says_which_sequence_is_impossible(assert_user_error, write):
    args = "--model", write(ONE_WAY), "--obs", write("x,y\nx,y,x\n", "obs.txt"), "--fit"
    assert_user_error(hmm, *args, words=["sequence 2: P(O) = 0: no state", "the first 3"])


def test_fit_says_where_no_file_can_be(assert_user_error, monkeypatch, tmp_path):
    assert_user_error(hmm, "--fit", "--out", tmp_path, words=["it is a folder"])
    assert_user_error(hmm, "--fit", "--out", tmp_path / "no" / "x.json", words=["there is no folder"])
    monkeypatch.setattr("os.access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    assert_user_error(hmm, "--fit", "--out", tmp_path / "x.json", words=["--out", "no permission to write", tmp_path])


def test_sample_has_the_models_frequencies():
    states, obs = sample(PHONE_STORE, 100_000, seed=0)
    np.testing.assert_allclose(np.bincount(states) / len(states), np.array([5, 4]) / 9, atol=0.005)
    for i in 0, 1:
        followers, emitted = states[1:][states[:-1] == i], obs[states == i]
        np.testing.assert_allclose(np.bincount(followers) / len(followers), PHONE_STORE.transmat[i], atol=0.007)
        np.testing.assert_allclose(np.bincount(emitted) / len(emitted), PHONE_STORE.emissionprob[i], atol=0.007)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(small_problems(), st.integers(1, 40))
def test_sample_is_never_impossible(problem, length):
    model = HMM(*problem[:3])
    states, obs = sample(model, length, seed=length)
    assert len(states) == len(obs) == length
    with np.errstate(divide="ignore"):
        assert log_joint(model, states, obs) > -np.inf


def test_sample_can_be_read_again(call, write):
    text = call(hmm, "--sample", 30, "--seed", 7)[1]
    (result,) = json_of(call, "--obs", write(text, "sample.txt"), "--brief")
    assert json_of(call, "--sample", 30, "--seed", 7)[0]["observations"] == result["observations"]
    assert len(result["observations"]) == 30 and call(hmm, "--sample", 30, "--seed", 8)[1] != text


# The command line: text.


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_exercise_is_worked_through_in_chinese(call):
    status, out, err = call(hmm)
    assert status == 0 and err == ""
    for line in [
        "α₂(1) = [α₁(1)·a₁₁ + α₁(2)·a₂₁]·b₁(M) = [0.2·0.6 + 0.1·0.5]·0.4 = 0.068 = 17/250",
        "β₁(2) = a₂₁·b₁(M)·β₂(1) + a₂₂·b₂(M)·β₂(2) = 0.5·0.4·0.32 + 0.5·0.3·0.35 = 0.1165 = 233/2000",
        "P(O | λ) = Σᵢ α₃(i) = 0.01206 + 0.02335 = 0.03541 = 3541/100000",
        "P(O | λ) = Σᵢ πᵢ bᵢ(o₁) β₁(i) = 0.5·0.4·0.1188 + 0.5·0.2·0.1165 = 0.03541 = 3541/100000",
        "P(O | λ) = Σᵢ α₂(i) β₂(i) = 0.068·0.32 + 0.039·0.35 = 0.03541 = 3541/100000",
        "γ₃(2) = 0.02335·1 / 0.03541 = 2335/3541 ≈ 0.659418",
        "ξ₁(1,2) = 0.2·0.4·0.3·0.35 / 0.03541 = 840/3541 ≈ 0.237221",
        "q* = (畅销, 畅销, 滞销) 0.5·0.4·0.6·0.4·0.4·0.5 = 0.0096 = 6/625 27.1%",
        "合计 P(O) = 0.03541 = 3541/100000 100%",
        "δ₃(2) = max[δ₂(1)·a₁₂, δ₂(2)·a₂₂]·b₂(L) = max[0.048·0.4, 0.024·0.5]·0.5 = max[0.0192, 0.012]·0.5 "
        "= 0.0096 = 6/625, ψ₃(2) = 1",
        "3 L 0.00576 0.0096* S₁ S₁ S₂",
        "q*₂ = ψ₃(2) = 1",
        "观测序列 H, M, L 的概率为 0.03541。最可能的状态序列是 畅销、畅销、滞销，其概率为 0.0096，占 P(O) 的 27.1%。",
    ]:
        assert line in lines(out), line


def test_both_languages_say_the_same_in_the_same_order(call):
    chinese, english = call(hmm)[1], call(hmm, "--lang", "en")[1]
    formulas = [[line for line in lines(text) if re.match("[αβγδξPq]", line)] for text in (chinese, english)]
    assert formulas[0] == formulas[1] and len(formulas[0]) > 40
    titles = [re.findall(r"(.*)\n-+\n", text) for text in (chinese, english)]
    assert len(titles[0]) == len(titles[1]) == 10 and not re.search("[一-龥]", "".join(titles[1]))
    words = walkthrough.WORDS.values()
    assert all(re.findall(r"{\w+", zh) == re.findall(r"{\w+", en) for zh, en in words)
    assert english.endswith(
        "The probability of H, M, L is 0.03541. The most probable state sequence is 畅销, 畅销, 滞销, "
        "with probability 0.0096, which is 27.1% of P(O).\n"
    )


def test_command_runs_in_a_process_of_its_own():
    done = run_script("hmm.py", "--obs", "L", "--lang", "en", PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, "") and "is 滞销, with probability 0.25" in done.stdout


def test_command_shows_probabilities_below_the_range_of_floats(call):
    _, out, _ = call(hmm, "--obs", ",".join("HML" * 500))
    assert "P(O | λ) = Σᵢ α_T(i) = 3.60706·10⁻⁷²¹" in out and "nan" not in out and "inf" not in out
    assert (
        out.count("（共 1500 行，此处只显示开头和末尾；完整结果见 --format json）") == 5 and len(out.splitlines()) < 300
    )


def test_many_paths_are_not_listed():
    assert "All 64 paths" in walkthrough.explain(PHONE_STORE, [np.array(HML * 2)], "en")
    assert "paths" not in walkthrough.explain(PHONE_STORE, [np.array(HML * 3)], "en")


@pytest.mark.parametrize("n", [5, 20])
def test_tables_too_wide_are_left_out(n):
    model = HMM(np.full(n, 1 / n), np.full((n, n), 1 / n), np.full((n, 2), 0.5))
    text = walkthrough.explain(model, [np.array([0, 1] * 20)], "en")
    assert f"({n * n} columns, not shown here" in text and "The answer" in text
    assert (f"({n} columns, not shown here" in text) == (n == 20)


def test_tables_of_a_large_problem_have_the_numbers_of_a_small_one(monkeypatch):
    monkeypatch.setattr(walkthrough, "FORMULAS_UP_TO", 0)
    text = walkthrough.explain(PHONE_STORE, [np.array(HML)], "en")
    for row in ["2 M 0.068 0.039", "1 H 0.1188 0.1165", "3 L 0.340582 0.659418", "3 L 0.00576 0.0096"]:
        assert row in lines(text)
    for row in ["2 M 0.230443 0.384072 0.110138 0.275346", "1 H – –", "2 M S₁ S₁"]:
        assert row in lines(text)
    assert "0.03541" in text.splitlines()[-1]


def test_tables_are_aligned_on_a_terminal_where_chinese_characters_are_wide(call):
    table = re.search(r" +路径 .*\n(?:.*\n){9}", call(hmm)[1])[0].splitlines()
    assert len({sum(2 if "一" <= char <= "龥" else 1 for char in line) for line in table}) == 1, table


@pytest.mark.parametrize("length", [1, 300])  # with fractions, and without
def test_impossible_sequence_is_said_as_such(call, write, length):
    args = ["--model", write(ONE_WAY), "--obs", "x," * length + "y,x"]
    status, out, err = call(hmm, *args, "--lang", "en")
    assert status == 0 and err == "" and "nan" not in out
    assert call(hmm, *args, "--lang", "en", "--kbest", 2) == (status, out, err)
    message = f"P(O) = 0: no state sequence emits the first {length + 2} observation(s)"
    assert message in out
    (result,) = json_of(call, *args, "--kbest", 2)
    assert result["likelihood"] == 0 and result["log_likelihood"] is None and result["note"] == message
    assert result["gamma"] is result["xi"] is result["delta"] is result["psi"] is None
    assert result["viterbi"] == {"path": None, "states": None, "probability": 0, "log_probability": None}
    assert result["alpha"][-1] == [0, 0] and result["log_alpha"][-1] == [None, None] and result["kbest"] == []


def test_kbest_paths_are_printed_best_first(call, assert_user_error):
    _, out, _ = call(hmm, "--kbest", 3, "--lang", "en")
    assert lines(out)[-4:] == [
        "path P(q, O | λ)",
        "1 畅销, 畅销, 滞销 0.0096",
        "2 畅销, 滞销, 滞销 0.006",
        "3 畅销, 畅销, 畅销 0.00576",
    ]
    (result,) = json_of(call, "--kbest", 99)
    assert len(result["kbest"]) == 8 and result["kbest"][1]["path"] == [0, 1, 1]
    assert "No other path is possible." in call(hmm, "--kbest", 99, "--lang", "en")[1]
    assert_user_error(hmm, "--kbest", 10**9, "--obs", "H," * 99 + "L", words=["too much memory", "ask for fewer"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--obs", "H,X,L"], "unknown symbol 'X', the model has H, M, L"),
        (["--obs", ""], "the observation sequence is empty"),
        (["--obs", " , "], "the observation sequence is empty"),
        (["--obs", "H,,L"], "unknown symbol ''"),
        (["--obs", "nowhere.txt"], "there is no file of that name"),
        (["--ops", "H"], "did you mean --obs?"),
        (["--model", "nowhere.json", "--obs", "H"], "cannot read nowhere.json"),
        (["--model", ROOT, "--obs", "H"], "cannot read"),
        (["--model", "nowhere.json"], "--model needs observations"),
        (["--seed", "1"], "--seed belongs to --sample, or to --fit"),
        (["--out", "x.json"], "--out belongs to --fit"),
        (["--fit", "--sample", "3"], "--fit and --sample"),
        (["--fit", "--plot", "x.png"], "--fit and --plot"),
        (["--fit", "--kbest", "2"], "--fit and --kbest"),
        (["--sample", "3", "--plot", "x.png"], "--sample and --plot"),
        (["--sample", "3", "--kbest", "2"], "--sample and --kbest"),
        (["--sample", "3", "--obs", "H"], "--sample and --obs"),
        (["--sample", "0"], "at least 1"),
        (["--kbest", "0"], "at least 1"),
        (["--plot", "x.bmp"], "must end in .png, .pdf or .svg"),
        (["--plot", "x.png", "--obs", "H," * 99 + "H"], "up to 24 observations"),
        (["--plot", "nowhere/x.png"], "there is no folder nowhere"),
    ],
)
def test_mistake_on_the_command_line_gets_one_line(assert_user_error, args, message):
    assert_user_error(hmm, *args, words=[message])


# The command line: JSON.


def json_of(call, *args):
    """The objects that `hmm.py --format json` prints, one per line; NaN and Infinity are not JSON."""
    status, out, err = call(hmm, "--format", "json", *args)
    assert status == 0 and err == ""

    def refuse(token):
        raise AssertionError(token)

    return [json.loads(line, parse_constant=refuse) for line in out.splitlines()]


def test_json_of_the_exercise(call):
    (result,) = json_of(call)
    assert result["likelihood"] == 0.03541 and result["log_likelihood"] == pytest.approx(math.log(0.03541), rel=1e-14)
    assert result["alpha"] == [[0.2, 0.1], [0.068, 0.039], [0.01206, 0.02335]]
    assert result["beta"] == [[0.1188, 0.1165], [0.32, 0.35], [1, 1]]
    assert result["gamma"] == [[x / 3541 for x in row] for row in ([2376, 1165], [2176, 1365], [1206, 2335])]
    close(np.array(result["xi"]) * 3541, [[[1536, 840], [640, 525]], [[816, 1360], [390, 975]]])
    assert result["delta"] == [[0.2, 0.1], [0.048, 0.024], [0.00576, 0.0096]] and result["psi"] == [[0, 0]] * 3
    viterbi = result["viterbi"]
    assert viterbi["path"] == [0, 0, 1] and viterbi["states"] == ["畅销", "畅销", "滞销"]
    assert viterbi["probability"] == 0.0096 and viterbi["log_probability"] == pytest.approx(math.log(0.0096))
    assert result["exact"]["likelihood"] == "3541/100000" and result["exact"]["path_probability"] == "6/625"
    assert result["exact"]["gamma"][0] == ["2376/3541", "1165/3541"]


def test_json_says_null_below_the_range_of_floats(call):
    (result,) = json_of(call, "--obs", ",".join("HML" * 500))
    assert result["likelihood"] is None and result["alpha"][-1] == [None, None] and result["beta"][-1] == [1, 1]
    assert result["log_likelihood"] == pytest.approx(PHONE_STORE.score(HML * 500))
    assert result["log_alpha"][-1][0] == pytest.approx(PHONE_STORE.forward(HML * 500)[-1, 0])
    assert result["viterbi"]["probability"] is None and result["viterbi"]["log_probability"] < -1600


def test_several_sequences_give_one_object_per_line(call, write):
    obs = write("# a comment\nH,M,L\nL H\n", "obs.txt")
    first, second = json_of(call, "--obs", obs)
    assert first == json_of(call)[0] and second["observations"] == ["L", "H"]
    brief, _ = json_of(call, "--obs", obs, "--brief")
    assert set(brief) == {"observations", "likelihood", "log_likelihood", "viterbi"}
    assert "Sequence 2 of 2" in call(hmm, "--obs", obs, "--lang", "en")[1]


# The trellis.


def drawn(show="delta", model=PHONE_STORE, obs=HML, missing=frozenset()):
    """The texts as (text, bold), and the lines as {(start, end): width}."""
    (axes,) = trellis.draw(model, np.array(obs), show, missing).axes
    texts = [(text.get_text(), text.get_weight() == "bold") for text in axes.texts]
    return texts, {tuple(map(tuple, line.get_xydata().tolist())): line.get_linewidth() for line in axes.lines}


def test_nodes_hold_delta_and_psi_and_the_best_path_is_bold():
    texts, edges = drawn()
    assert [(text, bold) for text, bold in texts if text.startswith("δ")] == [
        ("δ = 0.2", True),
        ("δ = 0.1", False),
        ("δ = 0.048\nψ = S1", True),
        ("δ = 0.024\nψ = S1", False),
        ("δ = 0.00576\nψ = S1", False),
        ("δ = 0.0096\nψ = S1", True),
    ]
    assert [text for text, bold in texts if bold and "·" in text] == ["0.5·0.4", "0.6·0.4", "0.4·0.5"]  # π·b, a·b
    assert ("0.5·0.2", False) in texts  # π_2 b_2(H)
    thick = {edge[1] for edge, wide in edges.items() if wide > 2}
    assert len(edges) == 10 and thick == {(0, 0), (1, 0), (2, 1)}


@pytest.mark.parametrize(("show", "node"), [("alpha", "α = 0.068"), ("beta", "β = 0.1188"), ("gamma", "γ = 0.671")])
def test_nodes_can_show_other_variables(show, node):
    assert node in dict(drawn(show)[0])


def test_edges_that_are_impossible_are_not_drawn():
    model = HMM([1, 0], [[0.5, 0.5], [0, 1]], [[0.5, 0.5], [0.5, 0.5]])
    assert len(drawn(model=model, obs=[0, 1, 0])[1]) == 1 + 3 + 3


def test_name_without_a_font_falls_back_to_its_number():
    texts = [text for text, _ in drawn(missing={"畅"})[0]]
    assert "S1" in texts and "S2" in texts and not any("畅" in text for text in texts) and "o₁ = H" in texts
    texts = [text for text, _ in drawn()[0]]
    assert "S1 畅销" in texts and "S2 滞销" in texts
    model = HMM([1], [[1]], [[0.5, 0.5]], symbols=["红", "$x$"])
    assert "o₂ = $x$" in dict(drawn(model=model, obs=[0, 1])[0])
    assert "o₂ = v2" in dict(drawn(model=model, obs=[0, 1], missing={"红"})[0])


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_command_draws_the_trellis(call, tmp_path, suffix, start):
    path = tmp_path / f"trellis.{suffix}"
    status, out, err = call(hmm, "--plot", path, "--plot_nodes", "gamma")
    assert status == 0 and re.fullmatch("(No .*font on this machine .*\n)?", err) and "0.03541" in out
    assert path.read_bytes().startswith(start) and [*tmp_path.iterdir()] == [path]


def test_large_and_awkward_models_are_drawn_without_a_warning(tmp_path, recwarn, caplog):
    rng, names = np.random.default_rng(0), ["$x_1$", "a\\b", "{", "%", "红"]
    model = HMM(
        rng.dirichlet(np.ones(10)), rng.dirichlet(np.ones(10), 10), rng.dirichlet(np.ones(5), 10), symbols=names
    )
    trellis.plot(model, rng.integers(0, 5, 6), tmp_path / "a.png")
    trellis.plot(model, [0], tmp_path / "b.png")
    assert imread(tmp_path / "a.png").shape[1] > 2 * imread(tmp_path / "b.png").shape[1]
    assert not [w for w in recwarn if "lyph" in str(w.message)] and "glyph" not in caplog.text


def test_what_cannot_be_drawn_leaves_no_file(assert_user_error, write, tmp_path):
    with pytest.raises(ImpossibleSequenceError, match=r"P\(O\) = 0"):
        trellis.plot(HMM([1, 0], np.eye(2), np.eye(2)), [0, 1], tmp_path / "a.png")
    for length, n in (25, 1), (1, 11):
        with pytest.raises(UserError, match="up to 24 observations and 10 states"):
            trellis.plot(HMM(np.full(n, 1 / n), np.full((n, n), 1 / n), np.ones((n, 1))), [0] * length, tmp_path / "a")
    obs = write("H\nM\n", "obs")
    assert_user_error(hmm, "--plot", tmp_path / "a.png", "--obs", obs, words=["draws one sequence", "2"])
    assert [path.name for path in tmp_path.iterdir()] == ["obs"]
