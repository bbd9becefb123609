"""Baum–Welch and sampling, from Python and from the command line."""

import itertools
import json
import os

import numpy as np
import pytest
from hmm_problems import close, json_of, log_joint, one_way, random_model, small_problems
from hmmlearn.hmm import CategoricalHMM
from hypothesis import given, settings
from hypothesis import strategies as st

import hmm
from hmm import HMM, PHONE_STORE, baum_welch, load_model, score

# Learning.


def test_a_step_of_baum_welch_agrees_with_hmmlearn():
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
def test_likelihood_never_falls_while_learning(n, m, lengths, seed):
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


def test_fit_prints_every_step_and_saves_the_model(call, tmp_path):
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
    assert again["log_likelihood"] == pytest.approx(likelihoods, rel=1e-8)
    assert again["model"] == json.loads(out.read_text(encoding="utf-8"))
    other = json_of(call, "--obs", obs, "--fit", "--seed", 5, "--iters", 0)[0]
    assert other["log_likelihood"][0] != again["log_likelihood"][0]


def test_fit_stops_at_the_tolerance(call):
    steps = {tolerance: json_of(call, "--fit", "--tolerance", tolerance)[0]["log_likelihood"] for tolerance in (0, 0.1)}
    gains = np.diff(steps[0.1])
    assert (gains[:-1] >= 0.1).all() and gains[-1] < 0.1
    assert steps[0.1] == steps[0][: len(steps[0.1])] and len(steps[0]) > len(steps[0.1])


def test_fit_says_which_sequence_is_impossible(assert_user_error, tmp_path):
    obs = tmp_path / "obs.txt"
    obs.write_text("x,y\nx,y,x\n")
    assert_user_error(
        hmm, "--model", one_way(tmp_path), "--obs", obs, "--fit", words=["sequence 2", "P(O) = 0", "first 3"]
    )


def test_model_that_cannot_be_saved_is_said_before_learning(call, tmp_path):
    for path, message in (tmp_path, "it is a folder"), (tmp_path / "no" / "x.json", "there is no folder"):
        status, out, err = call(hmm, "--fit", "--out", path)
        assert status == 2 and out == "" and err.count("\n") == 1 and f"--out {path}: {message}" in err


def test_folder_without_permission_is_said_before_learning(assert_user_error, monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: not (path == tmp_path and mode == os.W_OK))
    assert_user_error(hmm, "--fit", "--out", tmp_path / "x.json", words=["--out", "no permission to write", tmp_path])


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
def test_sample_is_never_impossible(problem, length):
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
