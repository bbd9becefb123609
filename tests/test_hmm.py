import itertools
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from conftest import ROOT, run_script
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm
from hmm import (
    HMM,
    PHONE_STORE,
    ImpossibleSequenceError,
    ModelError,
    backward,
    baum_welch,
    forward,
    kbest,
    load_model,
    pair_posterior,
    posterior,
    score,
    viterbi,
)

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


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_exercise_is_worked_through_on_the_command_line(call):
    status, out, err = call(hmm)
    assert status == 0 and err == ""
    shown = lines(out)
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
        "观测到 H, M, L 的概率是 0.03541。最可能的状态序列是 畅销，畅销，滞销，概率 0.0096，占 P(O) 的 27.1%。",
    ]:
        assert line in shown, line


def test_command_speaks_english(call):
    _, out, _ = call(hmm, "--lang", "en")
    assert out.endswith(
        "The probability of H, M, L is 0.03541. The most probable state sequence is 畅销, 畅销, 滞销, "
        "of probability 0.0096, which is 27.1% of P(O).\n"
    )


def test_command_as_a_user_runs_it():
    done = run_script("hmm.py", "--obs", "L", "--lang", "en", PYTHONIOENCODING="utf-8")
    assert done.returncode == 0 and done.stderr == ""
    assert "is 滞销, of probability 0.25" in done.stdout


def test_command_takes_fullwidth_commas_and_blanks(call):
    assert call(hmm, "--obs", "H，M, L") == call(hmm) == call(hmm, "--obs", " H M  L")


def test_command_shows_probabilities_below_the_range_of_floats(call):
    _, out, _ = call(hmm, "--obs", ",".join("HML" * 500))
    assert "P(O | λ) = Σᵢ α_T(i) = 3.60706·10⁻⁷²¹" in out and "nan" not in out and "inf" not in out
    assert "（共 1500 行，只显示开头和末尾；--format json 给出全部）" in out


def json_of(call, *args):
    status, out, err = call(hmm, "--format", "json", *args)
    assert status == 0 and err == ""

    def refuse(token):
        raise AssertionError(token)  # NaN, Infinity

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
    assert result["log_likelihood"] == pytest.approx(score(PHONE_STORE, HML * 500))
    assert result["log_alpha"][-1][0] == pytest.approx(forward(PHONE_STORE, HML * 500).log[-1, 0])
    assert result["viterbi"]["probability"] is None and result["viterbi"]["log_probability"] < -1600


@pytest.fixture
def one_way(tmp_path):
    """A model that goes from a to b and never back; b is quiet about x."""
    path = tmp_path / "one_way.json"
    path.write_text(
        """{"states": ["a", "b"], "symbols": ["x", "y"], "startprob": [1, 0],
            "transmat": [["1/3", "2/3"], [0, 1]], "emissionprob": [[1, 0], [0, 1]]}"""
    )
    return path


@pytest.mark.parametrize("length", [1, 300])  # with fractions, and without
def test_json_of_an_impossible_sequence(call, one_way, length):
    (result,) = json_of(call, "--model", one_way, "--obs", "x," * length + "y,x", "--kbest", 2)
    assert result["likelihood"] == 0 and result["log_likelihood"] is None
    assert result["gamma"] is result["xi"] is result["delta"] is result["psi"] is None
    assert result["viterbi"] == {"path": None, "states": None, "probability": 0, "log_probability": None}
    assert result["alpha"][-1] == [0, 0] and result["log_alpha"][-1] == [None, None] and result["kbest"] == []
    assert result["note"] == f"P(O) = 0: no state sequence emits the first {length + 2} observation(s)"


@pytest.mark.parametrize("length", [1, 300])
def test_impossible_sequence_is_said_as_such(call, one_way, length):
    status, out, err = call(hmm, "--model", one_way, "--obs", "x," * length + "y,x", "--lang", "en")
    assert status == 0 and err == "" and "nan" not in out
    assert f"P(O) = 0: no state sequence emits the first {length + 2} observation(s)" in out


def test_several_sequences_one_object_a_line(call, tmp_path):
    obs = tmp_path / "obs.txt"
    obs.write_text("# a remark\nH,M,L\nL H\n", encoding="utf-8")
    first, second = json_of(call, "--obs", obs)
    assert first == json_of(call)[0] and second["observations"] == ["L", "H"]
    brief, _ = json_of(call, "--obs", obs, "--brief")
    assert set(brief) == {"observations", "likelihood", "log_likelihood", "viterbi"}
    assert "Sequence 2 of 2" in call(hmm, "--obs", obs, "--lang", "en")[1]


# Models from files.


@pytest.mark.parametrize(
    ("name", "obs", "probability", "path", "path_probability"),
    [
        ("phone_store", "H,M,L", 0.03541, ["畅销", "畅销", "滞销"], 0.0096),
        ("fever", "normal,cold,dizzy", 0.03628, ["Healthy", "Healthy", "Fever"], 0.01512),
        ("boxes", "红,白,红", 0.130218, ["盒子3"] * 3, 0.0147),
        ("umbrella", "umbrella,umbrella,none,umbrella,umbrella", None, ["rain", "rain", "dry", "rain", "rain"], None),
    ],
)
def test_models_in_data(call, name, obs, probability, path, path_probability):
    (result,) = json_of(call, "--model", ROOT / f"data/hmm/{name}.json", "--obs", obs)
    assert result["viterbi"]["states"] == path
    if probability is None:
        assert result["log_likelihood"] == pytest.approx(-3.3725, abs=5e-5)
    else:
        assert result["likelihood"] == probability and result["viterbi"]["probability"] == path_probability


def test_exercise_in_data_is_the_exercise():
    model = load_model(ROOT / "data/hmm/phone_store.json")
    for field in "startprob", "transmat", "emissionprob", "states", "symbols":
        assert np.array_equal(getattr(model, field), getattr(PHONE_STORE, field))


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


def test_first_of_the_kbest_is_viterbis_also_when_long():
    rng = np.random.default_rng(3)
    model, obs = random_model(rng, 4, 3), rng.integers(0, 3, 2000)
    found, best = kbest(model, obs, 20), viterbi(model, obs)
    assert found[0].states.tolist() == best.path.tolist()
    logs = [path.log_probability for path in found]
    assert (
        sorted(logs, reverse=True) == pytest.approx(logs, rel=1e-14)
        and len({*map(bytes, (p.states for p in found))}) == 20
    )
    close(logs, [log_joint(model, path.states, obs) for path in found], rtol=1e-10)


def test_kbest_on_the_command_line(call, assert_user_error):
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
    assert_user_error(hmm, "--kbest", 0, words=["--kbest", "at least 1"])


# Learning.


def test_a_step_of_baum_welch_is_hmmlearns():
    rng = np.random.default_rng(8)
    model, sequences = random_model(rng, 3, 4), [rng.integers(0, 4, length) for length in (1, 2, 50, 300)]
    theirs = CategoricalHMM(n_components=3, n_features=4, n_iter=1, init_params="")
    theirs.startprob_, theirs.transmat_, theirs.emissionprob_ = model.startprob, model.transmat, model.emissionprob
    theirs.fit(np.concatenate(sequences)[:, None], [len(obs) for obs in sequences])
    steps = baum_welch(model, sequences)
    assert next(steps)[0] is model
    ours, log_likelihood = next(steps)
    for name in "startprob", "transmat", "emissionprob":
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name + "_"), rtol=1e-9)
    assert log_likelihood == pytest.approx(sum(score(ours, obs) for obs in sequences), rel=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(2, 4), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 999))
def test_likelihood_never_falls(n, m, lengths, seed):
    rng = np.random.default_rng(seed)
    sequences = [rng.integers(0, m, length) for length in lengths]
    steps = list(itertools.islice(baum_welch(random_model(rng, n, m), sequences), 30))
    # Computed anew for each model, not as the function reports it.
    likelihoods = [sum(score(model, obs) for obs in sequences) for model, _ in steps]
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(likelihoods))
    np.testing.assert_allclose(likelihoods, [log_likelihood for _, log_likelihood in steps], atol=1e-9)
    reported = [log_likelihood for _, log_likelihood in steps]
    assert len(steps) > 1 and all(after > before for before, after in itertools.pairwise(reported))


def test_learning_keeps_the_row_of_a_state_that_is_never_visited():
    model = HMM([1, 0], [[1, 0], [0.25, 0.75]], [[0.5, 0.5], [0.1, 0.9]])
    learned, _ = list(itertools.islice(baum_welch(model, [[0, 0, 1]]), 2))[-1]
    assert learned.transmat[1].tolist() == [0.25, 0.75] and learned.emissionprob[1].tolist() == [0.1, 0.9]
    close(learned.emissionprob[0], [2 / 3, 1 / 3])


def test_fit_on_the_command_line(call, tmp_path):
    obs, out = tmp_path / "obs.txt", tmp_path / "fitted.json"
    obs.write_text("H,M,L,L,H\nM,M,L\n", encoding="utf-8")
    status, text, err = call(hmm, "--obs", obs, "--fit", "--seed", 4, "--iters", 9, "--out", out)
    assert status == 0 and err == ""
    likelihoods = [float(line.split("= ")[1]) for line in text.splitlines() if line.startswith("step ")]
    assert len(likelihoods) == 10 and likelihoods == sorted(likelihoods) and likelihoods[0] < likelihoods[-1]
    fitted = load_model(out)
    assert fitted.states == PHONE_STORE.states
    total = sum(score(fitted, fitted.encode(line.split(","))) for line in obs.read_text().splitlines())
    assert total == pytest.approx(likelihoods[-1], rel=1e-8)
    assert text.endswith(out.read_text(encoding="utf-8"))
    again = json_of(call, "--obs", obs, "--fit", "--seed", 4, "--iters", 9)[0]
    assert again["log_likelihood"] == pytest.approx(likelihoods, rel=1e-8) and again["model"] == json.loads(
        out.read_text()
    )
    other = json_of(call, "--obs", obs, "--fit", "--seed", 5, "--iters", 0)[0]
    assert other["log_likelihood"][0] != again["log_likelihood"][0]


def test_fit_says_which_sequence_is_impossible(assert_user_error, one_way, tmp_path):
    obs = tmp_path / "obs.txt"
    obs.write_text("x,y\nx,y,x\n")
    assert_user_error(hmm, "--model", one_way, "--obs", obs, "--fit", words=["sequence 2", "P(O) = 0", "first 3"])


# Samples.


def test_sample_has_the_models_frequencies():
    states, obs = hmm.sample(PHONE_STORE, 200_000, seed=0)
    stationary = np.array([5, 4]) / 9
    np.testing.assert_allclose(np.bincount(states) / len(states), stationary, atol=0.005)
    for i in 0, 1:
        followers = states[1:][states[:-1] == i]
        np.testing.assert_allclose(np.bincount(followers) / len(followers), PHONE_STORE.transmat[i], atol=0.005)
        emitted = obs[states == i]
        np.testing.assert_allclose(np.bincount(emitted) / len(emitted), PHONE_STORE.emissionprob[i], atol=0.005)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(small_problems(), st.integers(1, 40))
def test_sample_is_possible(problem, length):
    model = HMM(*problem[:3])
    states, obs = hmm.sample(model, length, seed=length)
    assert len(states) == len(obs) == length
    with np.errstate(divide="ignore"):
        assert log_joint(model, states, obs) > -np.inf


def test_sample_can_be_read_again(call, tmp_path):
    _, text, _ = call(hmm, "--sample", 30, "--seed", 7)
    file = tmp_path / "sample.txt"
    file.write_text(text, encoding="utf-8")
    (result,) = json_of(call, "--obs", file, "--brief")
    assert json_of(call, "--sample", 30, "--seed", 7)[0]["observations"] == result["observations"]
    assert len(result["observations"]) == 30
    assert call(hmm, "--sample", 30, "--seed", 8)[1] != text


# Mistakes.


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
        (["--model", "nowhere.json"], "--model needs observations"),
        (["--seed", "1"], "--seed belongs to --sample, or to --fit"),
        (["--out", "x.json"], "--out belongs to --fit"),
        (["--fit", "--sample", "3"], "--fit and --sample"),
        (["--sample", "0"], "at least 1"),
        (["--plot", "x.bmp"], "must end in .png, .pdf or .svg"),
        (["--plot", "x.png", "--obs", "H," * 99 + "H"], "up to 24 observations"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(assert_user_error, args, message):
    assert_user_error(hmm, *args, words=[message])
