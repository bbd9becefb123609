"""The command line of hmm.py, as text; JSON, learning and sampling have files of their own."""

import pytest
from conftest import run_script
from hmm_problems import json_of, one_way

import hmm


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_exercise_is_worked_through_in_chinese(call):
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
        "观测序列 H, M, L 的概率为 0.03541。最可能的状态序列是 畅销、畅销、滞销，其概率为 0.0096，占 P(O) 的 27.1%。",
    ]:
        assert line in shown, line


def test_answer_is_given_in_english(call):
    _, out, _ = call(hmm, "--lang", "en")
    assert out.endswith(
        "The probability of H, M, L is 0.03541. The most probable state sequence is 畅销, 畅销, 滞销, "
        "with probability 0.0096, which is 27.1% of P(O).\n"
    )


def test_command_runs_in_a_process_of_its_own():
    done = run_script("hmm.py", "--obs", "L", "--lang", "en", PYTHONIOENCODING="utf-8")
    assert done.returncode == 0 and done.stderr == ""
    assert "is 滞销, with probability 0.25" in done.stdout


def test_command_takes_fullwidth_commas_and_blanks(call):
    assert call(hmm, "--obs", "H，M, L") == call(hmm) == call(hmm, "--obs", " H M  L")


def test_command_shows_probabilities_below_the_range_of_floats(call):
    _, out, _ = call(hmm, "--obs", ",".join("HML" * 500))
    assert "P(O | λ) = Σᵢ α_T(i) = 3.60706·10⁻⁷²¹" in out and "nan" not in out and "inf" not in out
    assert "（共 1500 行，此处只显示开头和末尾；完整结果见 --format json）" in out


@pytest.mark.parametrize("length", [1, 300])
def test_impossible_sequence_is_said_as_such(call, tmp_path, length):
    args = ["--model", one_way(tmp_path), "--obs", "x," * length + "y,x", "--lang", "en"]
    status, out, err = call(hmm, *args)
    assert status == 0 and err == "" and "nan" not in out
    assert call(hmm, *args, "--kbest", 2) == (status, out, err)
    assert f"P(O) = 0: no state sequence emits the first {length + 2} observation(s)" in out


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
    assert_user_error(hmm, "--kbest", 0, words=["--kbest", "at least 1"])


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
        (["--fit", "--plot", "x.png"], "--fit and --plot"),
        (["--fit", "--kbest", "2"], "--fit and --kbest"),
        (["--sample", "3", "--plot", "x.png"], "--sample and --plot"),
        (["--sample", "3", "--kbest", "2"], "--sample and --kbest"),
        (["--sample", "3", "--obs", "H"], "--sample and --obs"),
        (["--sample", "0"], "at least 1"),
        (["--plot", "x.bmp"], "must end in .png, .pdf or .svg"),
        (["--plot", "x.png", "--obs", "H," * 99 + "H"], "up to 24 observations"),
    ],
)
def test_mistake_on_the_command_line_gets_one_line(assert_user_error, args, message):
    assert_user_error(hmm, *args, words=[message])
