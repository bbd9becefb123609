import json
from fractions import Fraction as F
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hmm_problems import GOOD, HML, enumerate_paths, small_problems
from hypothesis import given, settings

import hmm
from hmm import HMM, PHONE_STORE, ModelError, load_model
from songci.hmm.markov import all_paths, by_definition, read_sequences


def test_exercise_has_its_exact_values():
    v = by_definition(*PHONE_STORE.exact, [0, 1, 2])
    assert v.likelihood == F(3541, 100000)
    assert v.alpha == [[F(1, 5), F(1, 10)], [F(17, 250), F(39, 1000)], [F(603, 50000), F(467, 20000)]]
    assert v.beta == [[F(297, 2500), F(233, 2000)], [F(8, 25), F(7, 20)], [1, 1]]
    assert v.gamma == [[F(x, 3541) for x in row] for row in ([2376, 1165], [2176, 1365], [1206, 2335])]
    assert v.xi[0] == [[F(1536, 3541), F(840, 3541)], [F(640, 3541), F(525, 3541)]]
    assert v.xi[1] == [[F(816, 3541), F(1360, 3541)], [F(390, 3541), F(975, 3541)]]
    assert v.delta == [[F(1, 5), F(1, 10)], [F(6, 125), F(3, 125)], [F(18, 3125), F(6, 625)]]
    assert v.psi == [[0, 0], [0, 0], [0, 0]] and v.path == [0, 0, 1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(small_problems())
def test_definitions_agree_with_enumeration_exactly(problem):
    pi, _, b, obs = problem
    paths, states, v = enumerate_paths(*problem), range(len(pi)), by_definition(*problem)
    assert dict(all_paths(*problem)) == paths
    total = sum(paths.values())
    assert v.likelihood == total == sum(pi[i] * b[i][obs[0]] * v.beta[0][i] for i in states)
    assert max(v.delta[-1]) == max(paths.values())
    for t in range(len(obs)):
        assert sum(v.alpha[t][i] * v.beta[t][i] for i in states) == total
        if total:
            assert v.gamma[t] == [sum(p for q, p in paths.items() if q[t] == i) / total for i in states]
        if total and t:
            pairs = [[sum(p for q, p in paths.items() if q[t - 1 : t + 1] == (i, j)) for j in states] for i in states]
            assert v.xi[t - 1] == [[p / total for p in row] for row in pairs]
    if total:
        best = max(paths.values())
        assert tuple(v.path) == min((q for q, p in paths.items() if p == best), key=lambda q: q[::-1])
    else:
        assert v.gamma is None and v.xi is None


def test_exact_takes_a_float_for_the_simplest_fraction():
    model = HMM([0.1, 0.9], [[1 / 3, 2 / 3], [0.333333, 0.666667]], [[1e-300, 1.0], [1, 0]])
    pi, a, b = model.exact
    assert pi == [F(1, 10), F(9, 10)] and b == [[F(1, 10**300), 1], [1, 0]]
    assert a == [[F(1, 3), F(2, 3)], [F(333333, 10**6), F(666667, 10**6)]]


def test_fractions_stay_exact():
    third = F(10**20 + 1, 3 * 10**20 + 7)
    assert HMM([third, 1 - third], np.eye(2), np.eye(2)).exact[0] == [third, 1 - third]


# Bad models.


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


def test_rows_may_differ_from_one_by_rounding():
    HMM(**{**GOOD, "startprob": [0.5, 0.5000009]})


def test_model_cannot_be_changed_afterwards():
    mine = np.array([0.5, 0.5])
    model = HMM(**{**GOOD, "startprob": mine})
    mine[0] = 7
    assert model.startprob.tolist() == [0.5, 0.5]
    with pytest.raises(ValueError):
        model.transmat[0, 0] = 7


def test_exercise_in_data_is_the_exercise():
    model = load_model(ROOT / "data/hmm/phone_store.json")
    for field in "startprob", "transmat", "emissionprob", "states", "symbols":
        assert np.array_equal(getattr(model, field), getattr(PHONE_STORE, field))


def test_encode_gives_indices_of_symbols():
    assert PHONE_STORE.encode("HML").tolist() == HML


# Files.


@pytest.fixture
def write(tmp_path):
    def write(content, name="model.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


def test_model_is_what_the_file_says(write):
    names = {"states": ["a", " b "], "symbols": ["x", "y"], "note": "for the reader"}
    model = load_model(write({**GOOD, **names, "startprob": ["1/3", "2/3"]}))
    assert model.states == ("a", "b") and model.symbols == ("x", "y") and model.exact[0] == [F(1, 3), F(2, 3)]
    assert model.transmat.tolist() == GOOD["transmat"] and model.emissionprob.tolist() == GOOD["emissionprob"]
    assert load_model(write(GOOD)).symbols == ("v1", "v2")


def test_saved_model_reads_the_same(write):
    rng = np.random.default_rng(0)
    model = HMM(
        [0.5, 0.5], rng.dirichlet([1, 1], 2), rng.dirichlet([1] * 3, 2), ['"a"', "b\\"], ["甲", "[0", "\U0001f600"]
    )
    again = load_model(write(model.to_json()))
    for field in "startprob", "transmat", "emissionprob", "states", "symbols":
        assert np.array_equal(getattr(model, field), getattr(again, field))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({**GOOD, "startprob": [0.5, 0.6]}, ["startprob sums to 1.1"]),
        ({**GOOD, "transmat": [[0.6, 0.4], [0.5, 0.500002]]}, ["transmat row 2 sums to 1.000002"]),
        ({**GOOD, "emissionprob": [[0.4, 0.6], [1.2, -0.2]]}, ["emissionprob row 2, entry 2 is -0.2", "row sum 1"]),
        ({**GOOD, "transmat": [[float("nan"), 0.4], [0.5, 0.5]]}, ["transmat row 1, entry 1 is nan"]),
        ({**GOOD, "transmat": [[float("inf"), 0.4], [0.5, 0.5]]}, ["transmat row 1 sums to inf"]),
        ({**GOOD, "transmat": [[10**400, 0.4], [0.5, 0.5]]}, ["transmat row 1 sums to inf"]),
        ({**GOOD, "transmat": [[1], [0.5, 0.5]]}, ["transmat is not a table of numbers"]),
        ({**GOOD, "transmat": [[0.2, 0.3, 0.5]] * 2}, ["transmat has shape (2, 3), not (2, 2)"]),
        ({**GOOD, "emissionprob": [[1.0]] * 3}, ["emissionprob has shape (3, 1), not (2, 1)"]),
        ({**GOOD, "emissionprob": []}, ["emissionprob has shape"]),
        ({**GOOD, "startprob": [None, 1]}, ["startprob is not a table of numbers", "null"]),
        ({**GOOD, "startprob": [True, 0.0]}, ["startprob is not a table of numbers", "true"]),
        ({**GOOD, "startprob": ["1/0", 1]}, ["startprob is not a table of numbers", "1/0"]),
        ({**GOOD, "startprob": ["1e9", 1]}, ["startprob is not a table of numbers", "1e9"]),
        ({**GOOD, "startprob": {"a": 1}}, ["startprob is not a table of numbers"]),
        ({**GOOD, "states": ["a", "a"]}, ["states must be 2 different names"]),
        ({**GOOD, "symbols": ["a", "b", "c"]}, ["symbols must be 2 different names"]),
        ({**GOOD, "symbols": ["a", ""]}, ["symbols must be a list of names"]),
        ({**GOOD, "symbols": ["a", "b,c"]}, ["symbols must be a list of names", "without commas"]),
        ({**GOOD, "states": ["a", "b\n"]}, ["states must be a list of names"]),
        ({**GOOD, "states": "ab"}, ["states must be a list of names"]),
        ({"startprob": [1]}, ["must be a JSON object with startprob, transmat, emissionprob"]),
        ([1, 2], ["must be a JSON object"]),
        ("{", ["is not a JSON file"]),
        ("[" * 100_000, ["is not a JSON file"]),
    ],
)
def test_bad_file_gets_one_line_that_names_it(assert_user_error, write, content, words):
    path = write(content)
    assert_user_error(hmm, "--model", path, "--obs", "v1", words=[path, *words])


def test_file_that_is_not_text_gets_one_line(assert_user_error, tmp_path):
    path = tmp_path / "model.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert_user_error(hmm, "--model", path, "--obs", "v1", words=["is not a JSON file"])
    assert_user_error(hmm, "--obs", path, words=["cannot read"])
    assert_user_error(hmm, "--model", tmp_path, "--obs", "v1", words=["cannot read"])


# Observations.


def test_sequences_are_read_from_a_file(write):
    path = write("# H first\nH,M,L\n L   H\nM\n\n", "obs.txt")
    assert [obs.tolist() for obs in read_sequences(PHONE_STORE, str(path))] == [[0, 1, 2], [2, 0], [1]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["line 1", "the observation sequence is empty"]),
        ("H\n\nM\n", ["line 2", "the observation sequence is empty"]),
        ("H,M\nH,m\n", ["line 2", "unknown symbol 'm'", "H, M, L"]),
        ("# nothing\n", ["has no sequence"]),
    ],
)
def test_bad_file_of_sequences_is_named_with_its_line(assert_user_error, write, content, words):
    path = write(content, "obs.txt")
    assert_user_error(hmm, "--obs", path, words=[path, *words])


def test_unreadable_file_of_sequences_is_named_once(assert_user_error, write, monkeypatch):
    path = write("H,M", "obs.txt")

    def refuse(self, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    assert assert_user_error(hmm, "--obs", path) == f"hmm.py: error: cannot read {path}: Permission denied\n"


def test_text_is_taken_for_symbols_if_there_is_no_such_file():
    assert [obs.tolist() for obs in read_sequences(PHONE_STORE, "H, M")] == [[0, 1]]
    with pytest.raises(ModelError, match="no file of that name"):
        read_sequences(PHONE_STORE, "obs.txt")
    with pytest.raises(ModelError, match=r"unknown symbol 'H', .* something like --obs v1,v2"):
        read_sequences(HMM(**GOOD), "H,M")
    with pytest.raises(ModelError, match="unknown symbol"):
        read_sequences(PHONE_STORE, "X" * 5000)
