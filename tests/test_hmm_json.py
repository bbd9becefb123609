"""hmm.py --format json."""

import math

import numpy as np
import pytest
from conftest import ROOT
from hmm_problems import HML, close, json_of, one_way

import hmm
from hmm import PHONE_STORE, forward, score


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


@pytest.mark.parametrize("length", [1, 300])  # with fractions, and without
def test_json_of_an_impossible_sequence(call, tmp_path, length):
    (result,) = json_of(call, "--model", one_way(tmp_path), "--obs", "x," * length + "y,x", "--kbest", 2)
    assert result["likelihood"] == 0 and result["log_likelihood"] is None
    assert result["gamma"] is result["xi"] is result["delta"] is result["psi"] is None
    assert result["viterbi"] == {"path": None, "states": None, "probability": 0, "log_probability": None}
    assert result["alpha"][-1] == [0, 0] and result["log_alpha"][-1] == [None, None] and result["kbest"] == []
    assert result["note"] == f"P(O) = 0: no state sequence emits the first {length + 2} observation(s)"


def test_several_sequences_give_one_object_per_line(call, tmp_path):
    obs = tmp_path / "obs.txt"
    obs.write_text("# a comment\nH,M,L\nL H\n", encoding="utf-8")
    first, second = json_of(call, "--obs", obs)
    assert first == json_of(call)[0] and second["observations"] == ["L", "H"]
    brief, _ = json_of(call, "--obs", obs, "--brief")
    assert set(brief) == {"observations", "likelihood", "log_likelihood", "viterbi"}
    assert "Sequence 2 of 2" in call(hmm, "--obs", obs, "--lang", "en")[1]


@pytest.mark.parametrize(
    ("name", "obs", "probability", "path", "path_probability"),
    [
        ("phone_store", "H,M,L", 0.03541, ["畅销", "畅销", "滞销"], 0.0096),
        ("fever", "normal,cold,dizzy", 0.03628, ["Healthy", "Healthy", "Fever"], 0.01512),
        ("boxes", "红,白,红", 0.130218, ["盒子3"] * 3, 0.0147),
        ("umbrella", "umbrella,umbrella,none,umbrella,umbrella", None, ["rain", "rain", "dry", "rain", "rain"], None),
    ],
)
def test_models_in_data_have_their_published_answers(call, name, obs, probability, path, path_probability):
    (result,) = json_of(call, "--model", ROOT / f"data/hmm/{name}.json", "--obs", obs)
    assert result["viterbi"]["states"] == path
    if probability is None:
        assert result["log_likelihood"] == pytest.approx(-3.3725, abs=5e-5)
    else:
        assert result["likelihood"] == probability and result["viterbi"]["probability"] == path_probability
