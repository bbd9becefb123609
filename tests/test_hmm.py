"""Hidden Markov models: the exercise, published answers, enumeration, hmmlearn, long sequences; the command line."""

import itertools
import json
import math
import os
import random
import re
import sys
from fractions import Fraction as F

import numpy as np
import pytest
from conftest import ROOT
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
ONE_WAY = {  # from a to b and never back; only a emits x, and only b emits y
    **{"states": ["a", "b"], "symbols": ["x", "y"]},
    **{"startprob": [1, 0], "transmat": [["1/3", "2/3"], [0, 1]], "emissionprob": [[1, 0], [0, 1]]},
}
hypotheses = settings(max_examples=120, deadline=None, derandomize=True)


def close(actual, expected, rtol=1e-12, atol=1e-300):
    """Asserts that two arrays, or a number and a fraction, agree."""
    np.testing.assert_allclose(actual, np.array(expected, dtype=float), rtol=rtol, atol=atol)


def enumerate_paths(pi, a, b, obs):
    """{q: P(q, O | λ)} of all N^T state sequences."""
    paths = {}
    for q in itertools.product(range(len(pi)), repeat=len(obs)):
        steps = (a[q[t - 1]][q[t]] * b[q[t]][obs[t]] for t in range(1, len(obs)))
        paths[q] = math.prod(steps, start=pi[q[0]] * b[q[0]][obs[0]])
    return paths


def log_joint(model, path, obs):
    """ln P(q, O | λ), by definition."""
    with np.errstate(divide="ignore"):
        steps = np.log(model.transmat[path[:-1], path[1:]]).sum() + np.log(model.emissionprob[path, obs]).sum()
        return np.log(model.startprob[path[0]]) + steps


def random_hmm(rng, n, m):
    return HMM(rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n), size=n), rng.dirichlet(np.ones(m), size=n))


def uniform_hmm(n, m):
    return HMM(np.full(n, 1 / n), np.full((n, n), 1 / n), np.full((n, m), 1 / m))


def with_hmmlearn(model):
    hmmlearn = pytest.importorskip("hmmlearn.hmm", reason="hmmlearn is not installed: it has no wheel for Python 3.14")
    theirs = hmmlearn.CategoricalHMM(len(model.states), n_features=len(model.symbols), n_iter=1, init_params="")
    theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = model.matrices
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
def loops(request, monkeypatch):
    """The loops as plain Python, and compiled whatever the length."""
    monkeypatch.setattr(hmm, "COMPILED_FROM", {"plain": math.inf, "numba": 0}[request.param])


@pytest.fixture
def write(file):
    """Writes a model, a text or bytes into a file of this name: write(content, name) → its path."""
    return lambda content, name="model.json": file(name, json.dumps(content) if isinstance(content, dict) else content)


def json_of(call, *args):
    """The objects that `hmm.py --format json` prints, one per line; NaN and Infinity are not JSON."""
    status, out, err = call(hmm, "--format", "json", *args)
    assert status == 0 and err == ""
    return [json.loads(line, parse_constant=pytest.fail) for line in out.splitlines()]


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


# The exercise, and models with published answers.


def test_exercise_has_its_exact_values_in_code_and_in_json(call):
    v, (result,) = PHONE_STORE.exactly(HML), json_of(call)
    expected = {
        "likelihood": F(3541, 100000),
        "alpha": [[F(1, 5), F(1, 10)], [F(17, 250), F(39, 1000)], [F(603, 50000), F(467, 20000)]],
        "beta": [[F(297, 2500), F(233, 2000)], [F(8, 25), F(7, 20)], [F(1), F(1)]],
        "gamma": np.array([[2376, 1165], [2176, 1365], [1206, 2335]]) * F(1, 3541),
        "xi": np.array([[[1536, 840], [640, 525]], [[816, 1360], [390, 975]]]) * F(1, 3541),
        "delta": [[F(1, 5), F(1, 10)], [F(6, 125), F(3, 125)], [F(18, 3125), F(6, 625)]],
    }
    for name, x in expected.items():
        x = np.array(x, dtype=object)
        assert (getattr(v, name) == x).all() and result[name] == x.astype(float).tolist()
        assert result["exact"][name] == x.astype(str).tolist()
    assert v.psi.tolist() == result["psi"] == [[0, 0]] * 3 and v.path.tolist() == [0, 0, 1]
    logs = result["log_likelihood"], result["viterbi"].pop("log_probability")
    assert logs == pytest.approx((math.log(0.03541), math.log(0.0096)), rel=1e-14)
    assert result["viterbi"] == {"path": [0, 0, 1], "states": ["畅销", "畅销", "滞销"], "probability": 0.0096}
    assert result["exact"]["path_probability"] == "6/625"


@pytest.mark.parametrize(
    ("name", "obs", "log_likelihood", "path", "path_probability"),
    [
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


def test_equal_paths_go_to_the_lower_state_in_all_outputs_of_a_small_problem():
    # To state 1 from state 1 with 0.3 · 0.6, from state 2 with 0.2 · 0.9: equal, but 0.18000000000000002 > 0.18
    model, obs = HMM([0.3, 0.2, 0.5], [[0.6, 0.4, 0], [0.9, 0.1, 0], [0, 0, 1]], [[1, 0], [1, 0], [0, 1]]), [0, 0]
    assert model.viterbi(obs)[0].tolist() == model.exactly(obs).path.tolist() == kbest(model, obs, 1)[0][0].tolist()
    assert model.viterbi(obs)[0].tolist() == [0, 0] and model.viterbi(obs)[2][1, 0] == 0
    assert json.loads(files.result_to_json(model, np.array(obs)))["viterbi"]["path"] == [0, 0]
    assert ("δ = 0.18\nψ = S1", True) in drawn(model=model, obs=obs)[0]
    for length, said in (2, True), (20, False):  # where floats may decide, nothing is said
        assert ("Ties go to" in walkthrough.explain(model, [np.zeros(length, int)], "en")) == said


# Any small model, against the enumeration of all N^T state sequences in exact arithmetic.


@hypotheses
@given(small_problems(), st.integers(1, 40))
def test_variables_kbest_paths_and_samples_agree_with_enumeration(problem, k):
    pi, a, b, obs = problem
    states, times, model, paths = range(len(pi)), range(len(obs)), HMM(pi, a, b), enumerate_paths(*problem)
    total, v = sum(paths.values()), model.exactly(obs)
    for t, i in itertools.product(times, states):
        into = [p for q, p in enumerate_paths(pi, a, b, obs[: t + 1]).items() if q[-1] == i]
        rest = enumerate_paths(a[i], a, b, obs[t + 1 :]).values() if t < times[-1] else [1]
        assert (v.alpha[t, i], v.delta[t, i], v.beta[t, i]) == (sum(into), max(into), sum(rest))
    assert v.likelihood == total
    for log, x in (model.forward(obs), v.alpha), (model.backward(obs), v.beta), (model.score(obs), total):
        close(np.exp(log), x)
    # Ties go to the lower index, from the last state backwards.
    best_first = sorted((q for q, p in paths.items() if p), key=lambda q: (-paths[q], q[::-1]))
    found = kbest(model, obs, k)
    assert [tuple(path) for path, _ in found] == best_first[:k]
    close([math.exp(log_p) for _, log_p in found], [paths[tuple(path)] for path, _ in found])
    sampled = sample(model, k, seed=k)
    assert len(sampled[0]) == len(sampled[1]) == k and log_joint(model, *sampled) > -np.inf
    if total == 0:
        assert v.gamma is None and v.xi is None
        for method in model.posterior, model.pair_posterior, model.viterbi:
            with pytest.raises(ImpossibleSequenceError, match=r"P\(O\) = 0"):
                method(obs)
        return
    for t, *at in [*itertools.product(times, states), *itertools.product(times[:-1], states, states)]:
        share = sum(p for q, p in paths.items() if q[t : t + len(at)] == (*at,)) / total
        assert share == (v.gamma if len(at) == 1 else v.xi)[(t, *at)]
    close(model.posterior(obs), v.gamma)
    close(model.pair_posterior(obs), v.xi)
    path, log_delta, _ = model.viterbi(obs)
    assert tuple(v.path) == best_first[0] and paths[tuple(path)] == paths[best_first[0]]
    close(math.exp(log_delta[-1].max()), paths[best_first[0]])


def test_first_of_the_kbest_is_the_viterbi_path_of_a_long_sequence_too():
    rng = np.random.default_rng(3)
    model, obs = random_hmm(rng, 4, 3), rng.integers(0, 3, 2000)
    found, (path, log_delta, _) = kbest(model, obs, 20), model.viterbi(obs)
    logs = [log_p for _, log_p in found]
    assert found[0][0].tolist() == path.tolist() and logs[0] == pytest.approx(log_delta[-1].max(), rel=1e-13)
    assert sorted(logs, reverse=True) == pytest.approx(logs, rel=1e-14) and len({tuple(q) for q, _ in found}) == 20
    close(logs, [log_joint(model, q, obs) for q, _ in found], rtol=1e-10)


def test_without_numba_the_loops_run_in_python(monkeypatch):
    monkeypatch.setattr(hmm, "COMPILED_FROM", 0)
    monkeypatch.setattr(hmm, "compiled", hmm.compiled.__wrapped__)  # which remembers nothing
    monkeypatch.setitem(sys.modules, "numba", None)  # import numba fails
    assert PHONE_STORE.score(HML) == pytest.approx(math.log(0.03541)) and hmm.compiled(forward) is None


# Long sequences, and small probabilities.

TWO_WAYS = [[0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.1, 0.2]]
LEFT_RIGHT = np.diag([0.75, 0.75, 0.75, 1]) + np.eye(4, k=1) * 0.25
MODELS = {
    **{f"{n} states": random_hmm(np.random.default_rng(n), n, 4) for n in (2, 3, 9)},
    "one state": HMM([1], [[1]], [[0.25, 0.25, 0.5, 0]]),
    "never forgets": HMM([0.25, 0.75], np.eye(2), TWO_WAYS),
    "left to right": HMM(np.eye(4)[0], LEFT_RIGHT, np.random.default_rng(4).dirichlet(np.ones(4), size=4)),
    "alternates": HMM([0.5, 0.5], [[0, 1], [1, 0]], TWO_WAYS),
    "near zeros": HMM(
        [1 - 1e-200, 1e-200], [[1 - 1e-90, 1e-90], [1e-120, 1]], [[0.5, 0.5, 1e-99, 0], [0.1, 0.2, 0.3, 0.4]]
    ),
}


@pytest.mark.parametrize("length", [1, 2, 97, 2000])
@pytest.mark.parametrize("name", MODELS)
def test_sequences_agree_with_logarithms_step_by_step(loops, name, length):
    model, obs = MODELS[name], np.random.default_rng(length).integers(0, 3, length)
    with np.errstate(divide="ignore"):
        pi, a, b = np.log(model.startprob), np.log(model.transmat), np.log(model.emissionprob.T[obs])
    alpha, beta = [pi + b[0]], [np.zeros(len(pi))]
    for t in range(1, length):
        alpha.append(np.logaddexp.reduce(alpha[-1][:, None] + a, axis=0) + b[t])
        beta.insert(0, np.logaddexp.reduce(a + b[length - t] + beta[0], axis=1))
    total = np.logaddexp.reduce(alpha[-1])
    gamma = np.exp(np.array(alpha) + beta - total)
    close(model.score(obs), total, rtol=1e-11, atol=1e-11)
    close(model.forward(obs), alpha, rtol=1e-11, atol=1e-9)
    close(model.backward(obs), beta, rtol=1e-11, atol=1e-9)
    close(model.posterior(obs), gamma, rtol=1e-7, atol=1e-11)
    xi = model.pair_posterior(obs)
    close(xi.sum(axis=2), gamma[:-1], rtol=1e-7, atol=1e-11)
    log_p, our_gamma, transitions = model.expectations(obs)
    close(log_p, model.score(obs), rtol=1e-12)
    close(our_gamma, model.posterior(obs), rtol=1e-12)
    close(transitions, xi.sum(axis=0), rtol=1e-9)  # found without all xi


@pytest.mark.parametrize("length", [1, 2, 97, 2000])
@pytest.mark.parametrize("name", MODELS)
def test_sequences_agree_with_hmmlearn(loops, name, length):
    model, obs = MODELS[name], np.random.default_rng(length).integers(0, 3, length)
    theirs, column = with_hmmlearn(model), obs[:, None]
    close(model.score(obs), theirs.score(column), rtol=1e-10, atol=1e-10)
    close(model.posterior(obs), theirs.predict_proba(column), rtol=1e-7, atol=1e-10)
    (path, log_delta, _), (_, their_path) = model.viterbi(obs), theirs.decode(column, algorithm="viterbi")
    for best in path, their_path:  # which may differ in ties
        close(log_delta[-1].max(), log_joint(model, best, obs), rtol=1e-11)


def test_ties_fall_otherwise_than_in_hmmlearn(loops):
    """As theory.md says: there to the first of the last states, and to the last of those before."""
    model, obs = HMM([0.5] * 2, [[0.5] * 2] * 2, [[0.5] * 2] * 2), np.zeros((4, 1), int)
    assert with_hmmlearn(model).decode(obs)[1].tolist() == [1, 1, 1, 0]
    assert model.viterbi(obs[:, 0])[0].tolist() == [0, 0, 0, 0]


def test_state_far_below_the_others_survives(loops):
    # 10^4 symbols make state 1 9^10000 times as likely, beyond the range of a float; then it is found impossible.
    model = HMM([0.5, 0.5], np.eye(2), [[0.9, 0.0, 0.1], [0.1, 0.9, 0.0]])
    obs = [0] * 10_000 + [1] + [0] * 5000
    path, log_delta, _ = model.viterbi(obs)
    expected = math.log(0.5) + 15_000 * math.log(0.1) + math.log(0.9)
    assert path.all() and (model.score(obs), log_delta[-1].max()) == pytest.approx((expected, expected))
    assert (model.posterior(obs) == [0, 1]).all()
    assert model.pair_posterior(obs)[:, 1, 1] == pytest.approx(1)


@pytest.mark.parametrize("at", [0, 1, 299])
def test_impossible_observation_is_said_where_it_stands(loops, at):
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
def test_a_million_steps_stay_finite(loops, n):
    model = random_hmm(np.random.default_rng(n), n, 4)
    states, obs = sample(model, 10**6, seed=n)
    log_likelihood, gamma, (path, log_delta, _) = model.score(obs), model.posterior(obs), model.viterbi(obs)
    assert np.isfinite(gamma).all() and np.abs(gamma.sum(axis=1) - 1).max() < 1e-12
    assert log_joint(model, states, obs) <= log_delta[-1].max() < log_likelihood and -2e6 < log_likelihood < -1e5
    assert log_delta[-1].max() == pytest.approx(log_joint(model, path, obs), rel=1e-10)
    # The posterior's favourite is right more often than the best path, and both more often than the commonest state.
    right = [np.mean(guess == states) for guess in (gamma.argmax(axis=1), path)]
    assert right[0] >= right[1] > np.bincount(states).max() / len(states) - 0.01


# Models and observations, good and bad.


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
    assert model.startprob.tolist() == pytest.approx([0.5 / 1.0000009, 0.5000009 / 1.0000009], abs=1e-15)
    with pytest.raises(ValueError):
        model.transmat[0, 0] = 7


BAD = {  # what is said of values; the first word is the field that has them
    "startprob sums to 1.1": [[0.5, 0.6]],
    "startprob has shape (1, 2)": [[[0.5, 0.5]]],
    "startprob has shape ()": [1.0],
    "startprob has shape": [[]],
    "startprob is not a table of numbers: null": [[None, 1]],
    "startprob is not a table of numbers: true": [[True, 0.0]],
    'startprob is not a table of numbers: "1/0"': [["1/0", 1]],
    "startprob is not a table of numbers": [["1e9", 1], {"a": 1}],
    'transmat row 2 sums to 1.00002, not to 1 (thirds can be written as "1/3")': [[[0.6, 0.4], [0.5, 0.50002]]],
    "transmat row 1, entry 1 is nan": [[[math.nan, 0.4], [0.5, 0.5]]],
    "transmat row 1 sums to inf": [[[math.inf, 0.4], [0.5, 0.5]], [[10**400, 0.4], [0.5, 0.5]]],
    "transmat is not a table of numbers": [[[1.0], [0.5, 0.5]]],
    "transmat has shape (2, 3), not (2, 2)": [[[0.2, 0.3, 0.5]] * 2],
    "emissionprob row 2, entry 2 is -0.2, not a probability (row sum 1)": [[[0.4, 0.6], [1.2, -0.2]]],
    "emissionprob has shape (3, 1), not (2, 1)": [[[1.0]] * 3],
    "emissionprob has shape": [[[], []]],
    "states must be 2 different names": [["a", "a"]],
    "symbols must be 2 different names": [["a", "b", "c"]],
    "symbols must be a list of names: printable text, not empty, without commas": [["a", "b,c"], ["a", ""]],
    "states must be a list of names": [["a", "b\n"], "ab"],
}
BAD_FILES = {
    "must be a JSON object with startprob, transmat, emissionprob": ['{"startprob": [1]}', "[1, 2]"],
    "is not a JSON file": ["{", "[" * 100_000],
    "is not UTF-16": [b"\xff\xfe\x00"],
    "is not UTF-8 but probably GB18030": [json.dumps({"states": ["畅销"]}, ensure_ascii=False).encode("gb18030")],
}


@pytest.mark.parametrize("message", [*BAD, *BAD_FILES])
def test_bad_file_of_a_model_gets_one_line_that_names_it(assert_user_error, write, message):
    for bad in BAD_FILES.get(message) or ({**GOOD, message.split()[0]: values} for values in BAD[message]):
        path = write(bad)
        assert_user_error(hmm, "--model", path, "--obs", "v1", words=[path, message])


def test_model_is_what_the_file_says_and_reads_the_same_when_saved(write):
    names = {"states": ["a", " b "], "symbols": ["x", "y"], "note": "for the reader"}
    model = load_model(HMM, write({**GOOD, **names, "startprob": ["1/3", "2/3"]}))
    assert model.states == ("a", "b") and model.symbols == ("x", "y")
    assert model.exact[0].tolist() == [F(1, 3), F(2, 3)] and model.transmat.tolist() == GOOD["transmat"]
    assert load_model(HMM, write(GOOD)).symbols == ("v1", "v2")
    rng = np.random.default_rng(0)
    rows = [0.5, 0.5], rng.dirichlet([1, 1], 2), rng.dirichlet([1] * 3, 2)
    mine = HMM(*rows, ['"a"', "b\\"], ["甲", "[0", "\U0001f600"])
    saved, exercise = load_model(HMM, write(model_to_json(mine))), load_model(HMM, ROOT / "data/hmm/phone_store.json")
    for one, same in (mine, saved), (PHONE_STORE, exercise):
        assert all(map(np.array_equal, one.matrices, same.matrices))
        assert (one.states, one.symbols) == (same.states, same.symbols)


def test_what_people_write_by_hand_is_taken_for_what_they_mean(write):
    thirds = write(
        '{"startprob": [0.333333, 0.333333, 0.333333,], "transmat": [["1/3", "0.25", "5/12"],'
        '[0.2, 0.3, 0.5], [1, 0, 0]], "emissionprob": [[1, 0], [0, 1], [0.5, 0.5]], "symbols": [0, 1]}'
    )
    model = load_model(HMM, thirds)
    assert load_model(HMM, write({**GOOD, "symbols": [1234567, 0.25]})).symbols == ("1234567", "0.25")
    assert model.symbols == ("0", "1") and model.startprob.tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)
    assert model.exact[0].tolist() == [F(1, 3)] * 3 and model.exact[1][0].tolist() == [F(1, 3), F(1, 4), F(5, 12)]
    [obs] = read_sequences(model, "0,1,0,")
    assert math.exp(model.score(obs)) == pytest.approx(float(model.exactly(obs).likelihood), rel=1e-14)


def test_fitting_proposes_another_beginning_where_it_cannot_learn(call, assert_user_error, write):
    apart = write({**GOOD, "emissionprob": [[1.0, 0.0], [1.0, 0.0]]})
    assert_user_error(hmm, "--model", apart, "--obs", "v1,v2", "--fit", words=["P(O) = 0", "at random with --seed 1"])
    same = [[0.5, 0.5], [0.5, 0.5]]
    alike = write({**GOOD, "transmat": same, "emissionprob": same, "states": ["a", "b"]})
    fitting = ["--model", alike, "--obs", "v1,v2,v2,v1", "--fit", "--iters", 5]
    for model, seed, said in ((alike, [], True), (alike, ["--seed", 1], False), (write(GOOD, "good.json"), [], False)):
        status, _, err = call(hmm, "--model", model, *fitting[2:], *seed)
        assert status == 0 and ("a and b emit alike" in err) == said


def test_sequences_are_read_from_a_file_or_from_the_text(write):
    def read(given):
        return [obs.tolist() for obs in read_sequences(PHONE_STORE, str(given))]

    assert read(write("# H first\nH,M,L,\n\n L   H\r\nM\n\n", "obs.txt")) == [[0, 1, 2], [2, 0], [1]]
    assert read(write("H,L\n".encode("utf-16"), "obs.txt")) == [[0, 2]]  # as Windows PowerShell's > writes
    assert read("H，M, L") == read(" H M  L") == [[0, 1, 2]]
    with pytest.raises(UserError, match=r"unknown symbol 'H', .* something like --obs v1,v2"):
        read_sequences(HMM(**GOOD), "H,M")
    with pytest.raises(UserError, match="unknown symbol"):
        read("X" * 5000)


def test_bad_file_of_sequences_is_named_with_its_line(assert_user_error, write):
    none, empty = ["has no sequence"], ["line 1", "the observation sequence is empty"]
    bad = {"H,M\n\nH,m\n": ["line 3", "unknown symbol 'm'", "H, M, L"], ",\n": empty, "H,,M": ["unknown symbol ''"]}
    for content, words in {**bad, "": none, "# nothing\n\n": none, b"\xff\xfe\x00": ["is not UTF-16"]}.items():
        path = write(content, "obs.txt")
        assert_user_error(hmm, "--obs", path, words=[path, *words])


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_damaged_models_are_read_or_refused(write, count):
    """Flipped bits, cut ends, and values replaced by what no model has."""
    rng, good = random.Random(0), [path.read_bytes() for path in sorted((ROOT / "data" / "hmm").glob("*.json"))]
    refused, values = 0, [value for value in HOSTILE if value is not LOST]
    for i in range(count):
        content = rng.choice(good)
        model = json.loads(content)
        changed = json.dumps(replaced(model, rng.choice(leaves(model)), rng.choice(values)))
        try:
            model = load_model(HMM, write(damaged(content, rng) if i % 2 else changed))
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
    (first, _), (ours, log_likelihood) = itertools.islice(baum_welch(model, sequences), 2)
    assert first is model and log_likelihood == pytest.approx(sum(map(ours.score, sequences)), rel=1e-12)
    for name in hmm.MATRICES:
        close(getattr(ours, name), getattr(theirs, name + "_"), rtol=1e-9)


@settings(hypotheses, max_examples=25)
@given(st.integers(1, 4), st.integers(2, 4), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 999))
def test_likelihood_never_falls_while_learning(n, m, lengths, seed):
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, m, length) for length in lengths]
    steps = list(itertools.islice(baum_welch(random_hmm(rng, n, m), sequences), 20))
    reported = [log_likelihood for _, log_likelihood in steps]
    close([sum(map(model.score, sequences)) for model, _ in steps], reported, rtol=1e-7, atol=1e-9)
    assert len(steps) > 1 and all(after > before for before, after in itertools.pairwise(reported))


def test_learning_keeps_the_row_of_a_state_that_is_never_visited():
    model = HMM([1, 0], [[1, 0], [0.25, 0.75]], [[0.5, 0.5], [0.1, 0.9]])
    _, (learned, _) = itertools.islice(baum_welch(model, [np.array([0, 0, 1])]), 2)
    assert learned.transmat[1].tolist() == [0.25, 0.75] and learned.emissionprob[1].tolist() == [0.1, 0.9]
    close(learned.emissionprob[0], [2 / 3, 1 / 3])


def test_fit_prints_every_step_and_saves_the_model(call, write, tmp_path):
    obs, out = write("H,M,L,L,H\nM,M,L\n", "obs.txt"), tmp_path / "fitted.json"
    args = "--obs", obs, "--fit", "--seed", 4, "--iters", 9
    status, text, err = call(hmm, *args, "--out", out)
    saved = out.read_text(encoding="utf-8")
    assert status == 0 and text.endswith(saved)
    assert re.fullmatch(r"not converged in --iters 9 steps; the last one gained 0\.\d+: give more\n", err)
    likelihoods = [float(line.split("= ")[1]) for line in text.splitlines() if line.startswith("step ")]
    assert len(likelihoods) == 10 and likelihoods == sorted(likelihoods) and likelihoods[0] < likelihoods[-1]
    fitted = load_model(HMM, out)
    total = sum(map(fitted.score, read_sequences(fitted, str(obs))))
    assert total == pytest.approx(likelihoods[-1], rel=1e-8) and fitted.states == PHONE_STORE.states
    (again,) = json_of(call, *args)
    expected = {"log_likelihood": pytest.approx(likelihoods, rel=1e-8), "converged": False, "model": json.loads(saved)}
    assert again == expected


def test_fit_stops_at_the_tolerance(call):
    steps = {tolerance: json_of(call, "--fit", "--tolerance", tolerance)[0]["log_likelihood"] for tolerance in (0, 0.1)}
    gains = np.diff(steps[0.1])
    assert (gains[:-1] >= 0.1).all() and gains[-1] < 0.1
    assert steps[0.1] == steps[0][: len(steps[0.1])] and len(steps[0]) > len(steps[0.1])


def test_fit_says_whether_it_has_converged(call):
    """By a step that gains less than the tolerance, even the last of --iters, or one that gains nothing at all."""
    for *flags, converged in (
        ("--tolerance", 0.1, True),
        ("--tolerance", 0, "--iters", 10**4, True),
        ("--iters", 2, False),
    ):
        (result,) = json_of(call, "--obs", "H,M,L,L,H", "--fit", *flags)
        assert result["converged"] == converged and ("not converged" in call(hmm, "--fit", *flags)[2]) != converged
    steps = len(json_of(call, "--fit", "--tolerance", 0.1)[0]["log_likelihood"]) - 1
    for iters, converged in ((steps, True), (steps - 1, False), (0, False)):
        assert json_of(call, "--fit", "--tolerance", 0.1, "--iters", iters)[0]["converged"] == converged


def test_the_best_of_several_random_beginnings_is_kept(call, tmp_path):
    out, fit = tmp_path / "best.json", ("--obs", "H,M,L,L,H,L", "--fit", "--iters", 40)
    alone = [json_of(call, *fit, "--seed", seed)[0] for seed in range(2, 6)]
    likelihoods = [result["log_likelihood"][-1] for result in alone]
    assert likelihoods.index(max(likelihoods)) == 1 and len({*likelihoods}) == 4  # neither the first nor the last
    (best,) = json_of(call, *fit, "--seed", 2, "--n_init", 4, "--out", out)
    assert best["seed"] == 3 and {**alone[1], "seed": 3, "starts": best["starts"]} == best
    starts = zip(range(2, 6), likelihoods, [result["converged"] for result in alone], strict=True)
    assert [tuple(start.values()) for start in best["starts"]] == [*starts]
    assert json.loads(out.read_text(encoding="utf-8")) == best["model"]
    lines = call(hmm, *fit, "--n_init", 6)[1].splitlines()[:6]  # from seed 0 on
    assert [float(line.split()[5]) for line in lines[2:]] == pytest.approx(likelihoods, rel=1e-9)
    assert [line.endswith(", not converged") for line in lines[2:]] == [not result["converged"] for result in alone]


def test_fit_says_what_is_impossible_and_where_no_file_can_be(assert_user_error, monkeypatch, write, tmp_path):
    args = "--model", write(ONE_WAY), "--obs", write("x,y\nx,y,x\n", "obs.txt"), "--fit"
    assert_user_error(hmm, *args, words=["sequence 2: P(O) = 0: no state", "the first 3"])
    assert_user_error(hmm, "--fit", "--out", tmp_path, words=["it is a folder"])
    assert_user_error(hmm, "--fit", "--out", tmp_path / "no" / "x.json", words=["there is no folder"])
    monkeypatch.setattr("os.access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    assert_user_error(hmm, "--fit", "--out", tmp_path / "x.json", words=["--out", "no permission to write", tmp_path])


def test_sample_has_the_models_frequencies():
    states, obs = sample(PHONE_STORE, 100_000, seed=0)
    close(np.bincount(states) / len(states), np.array([5, 4]) / 9, rtol=1e-7, atol=0.005)
    for i in 0, 1:
        for drawn, matrix in (states[1:][states[:-1] == i], "transmat"), (obs[states == i], "emissionprob"):
            close(np.bincount(drawn) / len(drawn), getattr(PHONE_STORE, matrix)[i], rtol=1e-7, atol=0.007)


def test_a_longer_sample_begins_with_a_shorter_one():
    for seed, model in enumerate(MODELS.values()):
        long, *shorter = (np.array(sample(model, length, seed)) for length in (97, 1, 5, 8, 96))
        assert all((long[:, : short.shape[1]] == short).all() for short in shorter)


def test_sample_can_be_read_again(call, write):
    text = call(hmm, "--sample", 30, "--seed", 7)[1]
    (result,) = json_of(call, "--obs", write(text, "sample.txt"), "--brief")
    assert json_of(call, "--sample", 30, "--seed", 7)[0]["observations"] == result["observations"]
    assert len(result["observations"]) == 30 and call(hmm, "--sample", 30, "--seed", 8)[1] != text


# The command line: text and JSON.


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
    table = re.search(r" +路径 .*\n(?:.*\n){9}", out)[0].splitlines()  # aligned, where a Chinese character is wide
    assert len({sum(2 if "一" <= char <= "龥" else 1 for char in line) for line in table}) == 1, table


def test_both_languages_say_the_same_in_the_same_order(call, write):
    obs, wide = write("H,M,L\nL H\n", "obs.txt"), write(model_to_json(uniform_hmm(20, 2)), "wide.json")
    impossible, long = ["--model", write(ONE_WAY), "--obs", "y"], ["--model", wide, "--obs", "v1," * 30 + "v1"]
    for args in ["--kbest", 2, "--obs", obs], impossible, long, []:
        chinese, english = (call(hmm, "--lang", lang, *args)[1] for lang in ("zh", "en"))
        numbers = [re.findall(r"\d+(?:\.\d+)?%?", text) for text in (chinese, english)]
        assert numbers[0] == numbers[1] and len(numbers[0]) > 10
    formulas = [[line for line in lines(text) if re.match("[αβγδξPq]", line)] for text in (chinese, english)]
    assert formulas[0] == formulas[1] and len(formulas[0]) > 40
    titles = [re.findall(r"(.*)\n-+\n", text) for text in (chinese, english)]
    assert len(titles[0]) == len(titles[1]) == 10 and not re.search("[一-龥]", "".join(titles[1]))
    assert english.endswith(
        "The probability of H, M, L is 0.03541. The most probable state sequence is 畅销, 畅销, 滞销, "
        "with probability 0.0096, which is 27.1% of P(O).\n"
    )


def test_probabilities_below_the_range_of_floats_are_shown_and_are_null_in_json(call):
    obs, more = ",".join("HML" * 500), "（共 1500 行，此处只显示开头和末尾；完整结果见 --format json）"
    _, out, _ = call(hmm, "--obs", obs)
    assert "P(O | λ) = Σᵢ α_T(i) = 3.60706·10⁻⁷²¹" in out and "nan" not in out and "inf" not in out
    assert out.count(more) == 5 and len(out.splitlines()) < 300
    assert len(re.findall(r"\n +12 .*\n +…( +…)+\n +14(?:89|88) ", out)) == 6  # ξ has 1499 rows
    (result,) = json_of(call, "--obs", obs)
    assert result["likelihood"] is None and result["alpha"][-1] == [None, None] and result["beta"][-1] == [1, 1]
    assert result["log_likelihood"] == pytest.approx(PHONE_STORE.score(HML * 500))
    assert result["log_alpha"][-1][0] == pytest.approx(PHONE_STORE.forward(HML * 500)[-1, 0])
    assert result["viterbi"]["probability"] is None and result["viterbi"]["log_probability"] < -1600


def test_fractions_of_thousands_of_digits_are_written_whole(call, file):
    model = json.dumps({"startprob": [0.5, 0.5], "transmat": [[0.5, 0.5]] * 2, "emissionprob": [[1e-250, 1]] * 2})
    (result,) = json_of(call, "--model", file("model.json", model), "--obs", file("obs.txt", ",".join(["v1"] * 100)))
    assert result["exact"]["likelihood"] == f"1/1{'0' * 25_000}"


def test_what_is_too_long_or_too_wide_is_left_out():
    assert "All 64 paths" in walkthrough.explain(PHONE_STORE, [np.array(HML * 2)], "en")
    assert "paths" not in walkthrough.explain(PHONE_STORE, [np.array(HML * 3)], "en")
    for n in 5, 20:
        text = walkthrough.explain(uniform_hmm(n, 2), [np.array([0, 1] * 20)], "en")
        assert f"({n * n} columns, not shown here" in text and "The answer" in text
        assert (f"({n} columns, not shown here" in text) == (n == 20)


def test_tables_of_a_large_problem_have_the_numbers_of_a_small_one(monkeypatch):
    monkeypatch.setattr(walkthrough, "FORMULAS_UP_TO", 0)
    text = walkthrough.explain(PHONE_STORE, [np.array(HML)], "en")
    rows = ["2 M 0.068 0.039", "1 H 0.1188 0.1165", "3 L 0.340582 0.659418", "3 L 0.00576 0.0096"]
    rows += ["2 M 0.230443 0.384072 0.110138 0.275346", "1 H – –", "2 M S₁ S₁"]
    assert set(rows) <= set(lines(text)) and "0.03541" in text.splitlines()[-1]


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
    three, all_there_are = (call(hmm, "--kbest", k, "--lang", "en")[1] for k in (3, 99))
    assert lines(three)[-4:] == [
        "path P(q, O | λ)",
        "1 畅销, 畅销, 滞销 0.0096",
        "2 畅销, 滞销, 滞销 0.006",
        "3 畅销, 畅销, 畅销 0.00576",
    ]
    assert "No other path is possible." in all_there_are
    (result,) = json_of(call, "--kbest", 99)
    assert len(result["kbest"]) == 8 and result["kbest"][1]["path"] == [0, 1, 1]
    assert_user_error(hmm, "--kbest", 10**9, "--obs", "H," * 99 + "L", words=["too much memory", "ask for fewer"])


@hypotheses
@given(small_problems())
def test_the_numbers_of_one_thing_are_equal_in_all_outputs(problem):
    """In a small problem each is the float that is nearest to its fraction; in a larger one they are one float."""
    pi, a, b, obs = problem
    model, paths = HMM(pi, a, b), enumerate_paths(*problem)
    full, brief = (json.loads(files.result_to_json(model, np.array(obs), brief, 9)) for brief in (False, True))
    assert {name: full[name] for name in brief} == brief and full["likelihood"] == float(sum(paths.values()))
    for path in full["kbest"]:
        assert path["probability"] == float(p := paths[tuple(path["path"])])
        assert path["log_probability"] == math.log(p)
    if full["kbest"]:
        assert full["viterbi"] == full["kbest"][0] and full["viterbi"]["probability"] == max(full["delta"][-1])
        assert full["viterbi"]["log_probability"] == max(value for value in full["log_delta"][-1] if value is not None)
        assert full["log_likelihood"] == math.log(sum(paths.values()))


@pytest.mark.parametrize("name", MODELS)
def test_the_best_path_of_a_long_sequence_has_one_probability(loops, name):
    model, obs = MODELS[name], np.random.default_rng(1).integers(0, 3, 300)
    full, brief = (json.loads(files.result_to_json(model, obs, brief, 1)) for brief in (False, True))
    assert full["viterbi"] == brief["viterbi"] == full["kbest"][0] == brief["kbest"][0]
    assert full["viterbi"]["log_probability"] == max(value for value in full["log_delta"][-1] if value is not None)


def test_a_worked_path_has_the_number_of_the_answer_in_every_table(call):
    model, obs = ROOT / "data/hmm/umbrella.json", ",".join(["umbrella"] * 4)
    text = call(hmm, "--kbest", 1, "--lang", "en", "--model", model, "--obs", obs)[1]
    assert "with probability 0.11252115," in text and lines(text)[-1] == "1 rain, rain, rain, rain 0.11252115"


def test_several_sequences_give_one_object_per_line(call, write):
    obs = write("# a comment\nH,M,L\nL H\n", "obs.txt")
    first, second = json_of(call, "--obs", obs)
    assert first == json_of(call)[0] and second["observations"] == ["L", "H"]
    brief, _ = json_of(call, "--obs", obs, "--brief")
    assert set(brief) == {"observations", "likelihood", "log_likelihood", "viterbi"}
    assert "Sequence 2 of 2" in call(hmm, "--obs", obs, "--lang", "en")[1]


MISTAKES = {
    "unknown symbol 'X', the model has H, M, L": ["--obs H,X,L"],
    "the observation sequence is empty": ["--obs ", "--obs ,"],
    "unknown symbol ''": ["--obs H,,L"],
    "there is no file of that name": ["--obs nowhere.txt"],
    "did you mean --obs?": ["--ops H"],
    "cannot read": [f"--model {ROOT} --obs H"],
    "cannot read nowhere.json": ["--model nowhere.json --obs H"],
    "--model needs observations": ["--model nowhere.json"],
    "--seed belongs to --sample, or to --fit": ["--seed 1"],
    "--out belongs to --fit": ["--out x.json"],
    "--n_init belongs to --fit": ["--n_init 2"],
    "at least 1": ["--sample 0", "--kbest 0"],
    "must end in .png, .pdf or .svg": ["--plot x.bmp"],
    "up to 24 observations": [f"--plot x.png --obs {'H,' * 99}H"],
    "there is no folder nowhere": ["--plot nowhere/x.png"],
    **{f"--fit and {flag.split()[0]}": [f"--fit {flag}"] for flag in ("--sample 3", "--plot x.png", "--kbest 2")},
    **{f"--sample and {flag.split()[0]}": [f"--sample 3 {flag}"] for flag in ("--plot x.png", "--kbest 2", "--obs H")},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistake_on_the_command_line_gets_one_line(assert_user_error, message):
    for args in MISTAKES[message]:
        assert_user_error(hmm, *args.split(" "), words=[message])


# The trellis.


def drawn(show="delta", model=PHONE_STORE, obs=HML, missing=frozenset()):
    """The texts as (text, bold), and the lines as {(start, end): width}."""
    (axes,) = trellis.draw(model, np.array(obs), show, missing).axes
    texts = [(text.get_text(), text.get_weight() == "bold") for text in axes.texts]
    return texts, {tuple(map(tuple, line.get_xydata().tolist())): line.get_linewidth() for line in axes.lines}


def test_nodes_hold_their_variables_edges_are_those_that_are_possible_and_the_best_path_is_bold():
    texts, edges = drawn()
    bold, plain = ([text for text, is_bold in texts if is_bold == which and "δ" in text] for which in (True, False))
    assert bold == ["δ = 0.2", "δ = 0.048\nψ = S1", "δ = 0.0096\nψ = S1"]
    assert plain == ["δ = 0.1", "δ = 0.024\nψ = S1", "δ = 0.00576\nψ = S1"]
    assert [text for text, bold in texts if bold and "·" in text] == ["0.5·0.4", "0.6·0.4", "0.4·0.5"]  # π·b, a·b
    assert ("0.5·0.2", False) in texts  # π_2 b_2(H)
    thick = {edge[1] for edge, wide in edges.items() if wide > 2}
    assert len(edges) == 10 and thick == {(0, 0), (1, 0), (2, 1)}
    for show, node in ("alpha", "α = 0.068"), ("beta", "β = 0.1188"), ("gamma", "γ = 0.671"):
        assert node in dict(drawn(show)[0])
    model = HMM([1, 0], [[0.5, 0.5], [0, 1]], [[0.5, 0.5], [0.5, 0.5]])
    assert len(drawn(model=model, obs=[0, 1, 0])[1]) == 1 + 3 + 3  # impossible edges are not drawn


def test_name_without_a_font_falls_back_to_its_number():
    texts = dict(drawn(missing={"畅"})[0])
    assert {"S1", "S2", "o₁ = H"} <= texts.keys() and "畅" not in "".join(texts)
    assert {"S1 畅销", "S2 滞销"} <= dict(drawn()[0]).keys()
    model = HMM([1], [[1]], [[0.5, 0.5]], symbols=["红", "$x$"])
    assert "o₂ = $x$" in dict(drawn(model=model, obs=[0, 1])[0])
    assert "o₂ = v2" in dict(drawn(model=model, obs=[0, 1], missing={"红"})[0])


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_command_draws_the_trellis(call, tmp_path, suffix, start):
    path = tmp_path / f"trellis.{suffix}"
    status, out, err = call(hmm, "--plot", path, "--plot_nodes", "gamma")
    assert (status, err) == (0, "") and "0.03541" in out
    assert path.read_bytes().startswith(start) and [*tmp_path.iterdir()] == [path]


def test_large_and_awkward_models_are_drawn_without_a_warning(tmp_path, recwarn, caplog):
    rng, names = np.random.default_rng(0), ["$x_1$", "a\\b", "{", "%", "红"]
    model = HMM(*random_hmm(rng, 10, 5).matrices, symbols=names)
    trellis.plot(model, rng.integers(0, 5, 6), tmp_path / "a.png")
    trellis.plot(model, [0], tmp_path / "b.png")
    assert imread(tmp_path / "a.png").shape[1] > 2 * imread(tmp_path / "b.png").shape[1]
    assert not [w for w in recwarn if "lyph" in str(w.message)] and caplog.text == ""
    texts = trellis.draw(model, np.array([0, 4])).axes[0].texts
    bold = {text.get_fontfamily()[0] for text in texts if text.get_weight() == "bold"}
    assert bold == {"DejaVu Sans"}, "of other fonts, matplotlib says that they have no bold"


def test_what_cannot_be_drawn_leaves_no_file(assert_user_error, write, tmp_path):
    with pytest.raises(ImpossibleSequenceError, match=r"P\(O\) = 0"):
        trellis.plot(HMM([1, 0], np.eye(2), np.eye(2)), [0, 1], tmp_path / "a.png")
    for length, n in (25, 1), (1, 11):
        with pytest.raises(UserError, match="up to 24 observations and 10 states"):
            trellis.plot(uniform_hmm(n, 1), [0] * length, tmp_path / "a")
    obs = write("H\nM\n", "obs")
    assert_user_error(hmm, "--plot", tmp_path / "a.png", "--obs", obs, words=["draws one sequence", "2"])
    assert [path.name for path in tmp_path.iterdir()] == ["obs"]
