import json
import math
import random
import re
import shutil

import hypothesis.strategies as st
import matplotlib.image
import numpy as np
import pytest
from conftest import prepared, run_script, train_tiny
from hostile import JSON, case, fuzz
from hypothesis import example, given

from songci import evaluate
from songci.corpus.vocabulary import load_vocabulary, read_splits
from songci.curves import plot_curves
from songci.forms.poems import read_poems
from songci.forms.rules import FormRules
from songci.forms.scores import diversity, form_scores, han, novelty
from songci.forms.templates import Forms, Template
from songci.machine import seed_of
from songci.runs import load_trained
from songci.training.runlog import LOG_FIELDS
from songci.writing.decoder import Decoder
from songci.writing.generation import FORM_CONTROLS, Text, generate, log_softmax


def test_runs_are_compared_in_a_table_a_picture_and_a_poem_each(call, ckpt_path, tuned_ckpt, tmp_path):
    arguments = ["--ckpt_path", ckpt_path, tuned_ckpt, "--out", tmp_path / "curves.png", "--start", "+++清平乐\n"]
    status, text, _ = call(evaluate, *arguments, "--max_new_tokens", 20, "--samples", 0)
    for folder in (ckpt_path, tuned_ckpt):
        result = json.loads((folder / "result.json").read_text())
        [line] = [line for line in text.splitlines() if line.startswith(f"| {folder.name} |")]
        assert f" {result['best_val_loss']:.3f} " in line and f" {result['final_perplexity']:.1f} " in line
        assert f"`{folder.name}`:\n\n```\n+++清平乐" in text
    assert status == 0 and matplotlib.image.imread(tmp_path / "curves.png").std() > 0.1
    same = shutil.copytree(ckpt_path, tmp_path / ckpt_path.name)  # of one name: told apart by their paths
    _, text, _ = call(evaluate, "--ckpt_path", ckpt_path, same, "--max_new_tokens", 3, "--samples", 0)
    assert f"| {ckpt_path} |" in text and f"| {same} |" in text


def test_a_run_that_is_not_finished_or_damaged_is_said(assert_user_error, file, tmp_path):
    arguments = ["--ckpt_path", tmp_path, "--samples", 0]
    assert_user_error(evaluate, *arguments, words=["no finished run", "run train.py"])
    file("log.csv", "iter,train_loss\n1,1\n")
    for result in ("[1]", "{}"):
        file("result.json", result)
        assert_user_error(evaluate, *arguments, words=["damaged"])


def test_what_cannot_be_written_or_does_not_belong_together_is_said(
    assert_user_error, data_root, ckpt_path, tuned_root, tmp_path
):
    without = shutil.copytree(data_root, tmp_path / "without")
    (without / "forms.json").unlink()
    for flags, words in (
        (["--out", tmp_path / "p.xyz"], "must end in .json, .png"),
        (["--out", tmp_path / "none" / "r.json"], "no folder"),
        (["--out", tmp_path / "r.json", "--samples", 0], "no scores with --samples 0"),
        (["--start", ""], "--start is empty"),
        (["--data_root", tmp_path / "none"], "no data folder"),
        (["--data_root", tuned_root], "was trained on another vocabulary"),
        (["--data_root", without], "no forms.json"),
    ):
        assert_user_error(evaluate, "--ckpt_path", ckpt_path, *flags, words=[words])
    assert [path.name for path in tmp_path.iterdir()] == ["without"]


def test_poems_by_people_and_by_the_model_are_scored_side_by_side(call, tuned_root, tuned_ckpt, tmp_path):
    out = [tmp_path / "scores.json", tmp_path / "curves.svg"]
    arguments = ["--ckpt_path", tuned_ckpt, "--data_root", tuned_root, "--samples", 30, "--out", *out]
    status, printed, _ = call(evaluate, *arguments)
    scores = json.loads(out[0].read_text(encoding="utf-8"))
    assert status == 0 and list(scores) == ["human", "tuned, free", "tuned, form"] and out[1].is_file()
    assert scores["human"]["in form and rhyme"] == scores["tuned, form"]["in form and rhyme"] == 1
    assert (
        all(scores["human"][key] == 1 for key in ("format F1", "rhyming pairs"))
        and scores["tuned, free"]["in form"] < 1
    )
    price = scores["tuned, form"]["price of the form, nats a token"]
    kept = scores["tuned, form"]["probability that the form kept"]
    assert 0 < price < math.log(len(load_vocabulary(tuned_root))) and math.exp(-price) / 2 < kept < 1
    result = json.loads((tuned_ckpt / "result.json").read_text(encoding="utf-8"))
    assert scores["tuned, free"]["perplexity by poem, a token"] == result["best_perplexity"]
    # By hand: all the loss of the poems but their first character, shared out among their Han characters
    poems = re.findall(r"\+\+\+[^+]*", read_splits(tuned_root)[1])
    predicted = "".join(poem[1:] for poem in poems)
    loss = result["poem_val_loss"] * len(predicted) / len(re.findall("[一-鿿]", predicted))
    assert scores["tuned, free"]["perplexity by poem, a Han character"] == pytest.approx(math.exp(loss), rel=1e-6)
    assert "| in form | 100.0% |" in printed


def test_the_price_of_a_form_is_the_probability_of_all_that_it_allows(tuned_root, tuned_ckpt):
    """Of the steps of the same poem, the logits and masks of which test_writing.py holds to be exact."""
    trained = load_trained(tuned_ckpt)
    rules = FormRules(Forms.load(tuned_root), trained.vocabulary)
    [_, body], [_, kept] = evaluate.write_poems(trained, ["如梦令", "清平乐"], 1, rules)
    text = Text(trained, "+++清平乐\n", seed_of(1, 1, 0), rules=rules)
    steps = list(generate(Decoder(trained.config, trained.weights), [text], FORM_CONTROLS))
    assert str(text) == text.start + body
    assert kept == pytest.approx(
        [np.log(np.exp(log_softmax(step.logits)[step.allowed]).sum()) for step in steps], abs=1e-4
    )


def test_a_run_is_not_scored_on_a_text_that_it_was_not_trained_on(tuned_root, tuned_ckpt, tmp_path, assert_user_error):
    """The same characters in another order: sample.py may use both together, but the losses are of the other text."""
    poems = (tuned_root / "input.txt").read_text(encoding="utf-8").split("\n\n")
    other = prepared(tmp_path / "other", "\n\n".join(reversed(poems)))
    words = [f"{tuned_ckpt} was trained on another text than {other} holds now"]
    assert_user_error(evaluate, "--data_root", other, "--ckpt_path", tuned_ckpt, words=words)


@pytest.mark.parametrize(
    "text",
    [
        "天地玄黄" * 200,
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("春夏秋冬，东南西北。" * 100, "abcdefg hijk\n" * 50)),
    ],
    ids=["no marks", "no lines", "no Chinese"],
)
def test_every_command_works_on_any_text_with_its_defaults(tmp_path, text):
    """Without titles, without line ends, without any mark."""
    data, folder = prepared(tmp_path / "data", text), tmp_path / "run"
    train_tiny(data, folder)
    run = ["--ckpt_path", folder, "--data_root", data]
    for name, *args in (
        ("sample.py", *run, "--num_samples", 2, "--max_new_tokens", 5),
        ("songci.evaluate", *run),
        ("songci.export", *run[:2], "--out", tmp_path / "export"),
        ("songci.attention", *run, "--num_windows", 2),
    ):
        done = run_script(name, *args)
        assert done.returncode == 0, done.stderr


def test_the_poems_by_people_are_drawn_by_the_seed(tuned_root):
    forms, (_, text) = Forms.load(tuned_root), read_splits(tuned_root)
    drawn = [evaluate.draw_poems(text, forms, 5, seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    many = evaluate.draw_poems(text, forms, 1000, 1)
    assert many[:5] == drawn[0] and 20 < len(many) < 1000  # all that there are, and none of them twice
    assert sorted(many) == sorted(poem for poem in read_poems(text) if poem[0] in forms.tunes)


def test_never_more_poems_are_written_than_people_have_and_that_is_said(call, tuned_root, tuned_ckpt):
    """Poems that come again would make people look less diverse than the model."""
    _, out, _ = call(evaluate, "--ckpt_path", tuned_ckpt, "--data_root", tuned_root, "--samples", 1000)
    count = int(re.search(r"^(\d+) poems of each kind, as many as the validation split has", out, re.MULTILINE)[1])
    assert count == len(evaluate.draw_poems(read_splits(tuned_root)[1], Forms.load(tuned_root), 1000, 1)) < 50


def test_runs_on_poems_and_on_the_stream_are_compared_by_one_measure(call, tuned_root, tuned_ckpt, tmp_path):
    stream = train_tiny(tuned_root, tmp_path / "stream", "--windows", "stream")
    flags = ["--data_root", tuned_root, "--samples", 5, "--out", tmp_path / "scores.json"]
    assert call(evaluate, "--ckpt_path", tuned_ckpt, stream, *flags)[0] == 0
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    for folder in (tuned_ckpt, stream):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        found = scores[f"{folder.name}, free"]["perplexity by poem, a token"]
        assert found == pytest.approx(math.exp(result["poem_val_loss"]))


# --- scores -----------------------------------------------------------------------------------------------------------

FORMS = Forms({"小令": [Template(((2, "。"), (1, "，"), (2, "。")), 9, "a-a")]}, {"东": (0,), "红": (0,), "月": (1,)})


@pytest.mark.parametrize(
    ("body", "form", "precision", "recall", "f1"),
    [
        ("一东。二，三红。", 1, 1, 1, 1),
        ("一东。", 0, 1, 1 / 3, 1 / 2),  # ends early
        ("一东。二，三红。四。", 0, 3 / 4, 1, 6 / 7),
        ("", 0, 0, 0, 0),
    ],
)
def test_form_scores_are_by_their_definition(body, form, precision, recall, f1):
    scores = form_scores([("小令", body)], FORMS)
    names = ["in form", "format precision", "format recall", "format F1"]
    assert [scores[name] for name in names] == pytest.approx([form, precision, recall, f1])


def test_scores_of_templates_stanzas_and_tones_are_by_their_definition():
    common = Template(((2, "。"), (2, "。")), 3, "aa", breaks=frozenset({0}), tones="平中中仄")
    rare = Template(((4, "。"),), 1, "-")
    forms = Forms({"小令": [common, rare]}, {}, {"东": 0.99, "月": 0.01})
    poems = ["东一。\n二月。", "东一。二东。", "月一。\n二东。", "一二三四。", "一。"]
    scores = form_scores([("小令", body) for body in poems], forms)
    assert scores["in form"] == 4 / 5 and scores["in the tune's commonest form"] == 3 / 5
    assert scores["distance of the forms from the training poems'"] == 0  # three of four, one of four
    assert scores["as many stanzas as the form"] == 3 / 4
    assert scores["fixed tones kept"] == 3 / 6
    assert (scores["no tone wrong"], scores["at most one tone wrong"]) == (1 / 3, 2 / 3)
    alone = form_scores([("小令", poems[0])] * 3, forms)
    assert alone["distance of the forms from the training poems'"] == 1 / 4


def test_rhyme_scores_are_by_their_definition():
    scores = form_scores([("小令", f"一东。二，三{end}。") for end in "红月东"], FORMS)
    assert (scores["in form"], scores["rhyming pairs"], scores["in form and rhyme"]) == (1, 1 / 2, 2 / 3)


def test_distinct_counts_different_ngrams_of_han_characters():
    assert diversity([("", "春春，春夏。"), ("", "春夏。秋")]) == {
        "distinct-1 per poem": pytest.approx((2 / 4 + 1) / 2),
        "distinct-1 pooled": pytest.approx(3 / 7),
        "distinct-2 per poem": pytest.approx((2 / 3 + 1) / 2),
        "distinct-2 pooled": pytest.approx(3 / 5),
    }
    assert han("a春，𠀀。1□") == "春𠀀"


def grams(texts: list[str], n: int) -> list[str]:
    return [text[i : i + n] for text in texts for i in range(len(text) - n + 1)]


def test_novelty_is_that_of_sets_of_strings():
    rng = random.Random(0)
    training, poems = (
        ["".join(rng.choices("春夏秋冬梅兰", k=rng.randint(*size))) for _ in range(60)] for size in ((5, 50), (40, 40))
    )
    poems[3] = training[0][:5] + "竹" + training[1]  # copied whole
    poems[4] = "菊" * 10  # nothing copied
    sets = {"a": poems[:10], "b": poems[10:20], "none": ["菊" * 8]}
    source = {n: set(grams(training, n)) for n in range(1, 60)}
    found = novelty(
        {name: [("", poem) for poem in part] for name, part in sets.items()},
        [("", "，".join([text[:3], text[3:]])) for text in training],
    )
    for name, part in sets.items():
        runs = [max((n for n in source if source[n] & {*grams([poem], n)}), default=0) for poem in part]
        expected = {"longest run copied, median": np.median(runs), "longest run copied, maximum": max(runs)}
        for n in range(3, 8):
            expected[f"new {n}-grams"] = np.mean([gram not in source[n] for gram in grams(part, n)])
        assert {key: found[name][key] for key in expected} == pytest.approx(expected), name


def test_a_copied_clause_is_a_whole_one_of_seven_or_more():
    training = [("", "春夏秋冬春夏秋，春夏秋冬春夏。")]
    poems = ["一，春夏秋冬春夏秋。", "春夏秋冬春夏。", "一春夏秋冬春夏秋。", "春夏秋、冬春夏秋。", "春夏秋冬□春夏秋。"]
    shares = [novelty({"x": [("", p)]}, training)["x"]["with a copied clause of 7 or more"] for p in poems]
    assert shares == [1, 0, 0, 1, 1]


# --- any files of a run -----------------------------------------------------------------------------------------------


CSV = st.text(st.sampled_from('iter,lr,train_loss\n\r"0123456789.e-+nainf\0é'), max_size=200)
LOG = st.one_of(st.binary(), CSV, CSV.map(lambda rows: ",".join(LOG_FIELDS) + "\n" + rows))


@pytest.mark.slow
@fuzz(150)
@given(st.one_of(st.binary(), JSON), LOG)
@example('{"best_val_loss": ' + "9" * 400 + "}", "")
def test_any_result_and_any_log_are_read_or_said(tuned_ckpt, file, result, log):
    good = (tuned_ckpt / "result.json").read_bytes(), (tuned_ckpt / "log.csv").read_bytes()
    for contents in ((result, good[1]), (good[0], log)):
        for name, content in zip(("result.json", "log.csv"), contents, strict=True):
            path = file(name, content)
        found = case("run", evaluate.read_run, path.parent)
        if found:
            evaluate.runs_table({"run": found})


@pytest.mark.filterwarnings("ignore:overflow")  # in matplotlib, of 1e308
def test_a_log_that_can_be_read_can_be_drawn(tuned_ckpt, file, tmp_path):
    file("result.json", (tuned_ckpt / "result.json").read_bytes())
    header, *rows = (tuned_ckpt / "log.csv").read_text().splitlines()
    for number in ("nan", "inf", "-inf", "1e308", "-1", "0", "1e-320", "9" * 400):
        file("log.csv", "\n".join([header, ",".join([number] * len(header.split(","))), *rows]))
        found = case("run", evaluate.read_run, tmp_path)
        if found:
            case("run", plot_curves, {"run": found.log}, tmp_path / "curves.png")
