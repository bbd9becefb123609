"""songci.perplexity: loss and perplexity of a user's own poems."""

import itertools
import json
import math

import pytest
import torch
from conftest import contents

from songci import perplexity
from songci.corpus.vocabulary import read_splits
from songci.runs import as_gpt, load_trained


def lines(call, *args) -> list[dict]:
    status, out, err = call(perplexity, *args, "--format", "jsonl")
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def run(tuned_root, tuned_ckpt):
    return ["--data_root", tuned_root, "--ckpt_path", tuned_ckpt]


def test_the_loss_of_a_poem_is_that_of_its_characters_in_the_windows_of_sampling(call, file, run, tuned_ckpt):
    """By model.py alone: a window of 16 characters; when it is full, its later half moves to the front."""
    poem = "+++清平乐\n一丁七万。一丁七万丄。一丁七，一丁丄东。\n"
    trained = load_trained(tuned_ckpt)
    model, vocabulary = as_gpt(trained), trained.vocabulary
    poem = "".join(char if char in vocabulary.chars else vocabulary.chars[20] for char in poem)
    ids, window, losses = vocabulary.encode(poem + "\n").tolist(), [], []
    for token, following in itertools.pairwise(ids):
        window = [*window, token] if len(window) < 16 else [*window[8:], token]
        log_probs = model(torch.tensor([window]))[0][0, -1].log_softmax(-1)
        losses.append(-log_probs[following].item())
    [found] = lines(call, "--text", file("poem.txt", poem), *run)
    assert found["characters"] == len(losses) and found["poem"] == 1 and found["name"] == "+++清平乐"
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_the_poems_of_the_validation_split_have_the_loss_that_training_reports(call, file, run, tuned_root, tuned_ckpt):
    text = read_splits(tuned_root)[1]
    found = lines(call, "--text", file("val.txt", text[text.index("\n+++") + 1 :]), *run)
    result = json.loads((tuned_ckpt / "result.json").read_text(encoding="utf-8"))
    loss = sum(one["loss"] * one["characters"] for one in found) / sum(one["characters"] for one in found)
    assert len(found) > 20 and loss == pytest.approx(result["poem_val_loss"], abs=2e-3)  # the last poem may be cut


def test_poems_are_told_apart_by_titles_or_by_empty_lines():
    assert perplexity.poems_in("前言\n\n+++清平乐\n甲。\n\n\n乙。\n+++如梦令\n丙。") == [
        "前言\n\n",
        "+++清平乐\n甲。\n\n\n乙。\n\n",
        "+++如梦令\n丙。\n\n",
    ]
    assert perplexity.poems_in("甲。\n乙。\n \n\n丙。\n") == ["甲。\n乙。", "丙。"]
    assert perplexity.poems_in(" \n\n") == []


def test_a_poem_with_unknown_characters_is_named_and_the_others_are_measured(call, file, run, tuned_ckpt):
    text = file("poems.txt", "+++清平乐\n一万与。\n\n+++如梦令\n一龘。\n\n+++清平乐\n一万。\n")
    before = contents(tuned_ckpt)
    status, out, err = call(perplexity, "--text", text, *run)
    rows = out.splitlines()
    assert status == 0 and len(rows) == 5 and rows[2].split()[:2] == ["–", "–"] and "all 2 of them" in rows[4]
    assert err == "poem 2, +++如梦令: not in the vocabulary: '龘' (U+9F98)\n"
    assert [one["unknown"] for one in lines(call, "--text", text, *run)] == ["", "龘", ""]
    assert contents(tuned_ckpt) == before


def test_what_cannot_be_measured_is_one_line(assert_user_error, file, run, tmp_path):
    assert_user_error(perplexity, "--text", tmp_path / "none.txt", *run, words=["cannot read", "none.txt"])
    assert_user_error(perplexity, "--text", file("empty.txt", " \n"), *run, words=["empty.txt: there is no poem in it"])
    assert_user_error(perplexity, *run, words=["--text"])
