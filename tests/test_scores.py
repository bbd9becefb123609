import random

import numpy as np
import pytest
from conftest import tuned_text

from songci.forms.learn import learn
from songci.forms.poems import read_poems
from songci.forms.scores import diversity, form_scores, han, novelty
from songci.forms.templates import Forms, Template

FORMS = Forms({"小令": [Template(((2, "。"), (1, "，"), (2, "。")), 2, "aa")]}, {"东": 0, "红": 0, "月": 1})


def scores_of(*bodies: str) -> dict[str, float]:
    return form_scores([("小令", body) for body in bodies], FORMS)


def test_human_poems_of_the_corpus_itself_score_full_marks():
    poems = list(read_poems(tuned_text(100).splitlines(keepends=True)))
    assert set(form_scores(poems, learn(poems)).values()) == {1.0}


def test_each_score_is_by_its_definition():
    assert scores_of("一东。二，三红。")["format F1"] == 1
    short = scores_of("一东。")  # ends early
    assert (short["in form"], short["format precision"], short["format recall"]) == (0, 1, pytest.approx(1 / 3))
    assert short["format F1"] == pytest.approx(0.5)
    long = scores_of("一东。二，三红。四。")
    assert (long["in form"], long["format precision"], long["format recall"]) == (0, pytest.approx(3 / 4), 1)
    assert scores_of("")["format F1"] == 0 == scores_of("")["in form"]
    mixed = scores_of("一东。二，三红。", "一东。二，三月。", "一东。二，三东。")
    assert (
        mixed["in form"] == 1 and mixed["rhyming pairs"] == 1 / 2 and mixed["in form and rhyme"] == pytest.approx(2 / 3)
    )


def test_distinct_counts_different_ngrams_of_han_characters():
    poems = [("", "春春，春夏。"), ("", "春夏。秋")]
    scores = diversity(poems)
    assert scores["distinct-1 per poem"] == pytest.approx((2 / 4 + 1) / 2)
    assert scores["distinct-1 pooled"] == pytest.approx(3 / 7)
    assert scores["distinct-2 per poem"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["distinct-2 pooled"] == pytest.approx(3 / 5)
    assert han("a春，𠀀。1□") == "春𠀀"


def naive(poems: list[str], training: list[str]) -> dict[str, float]:
    """The same by sets of strings."""
    source = {n: {t[i : i + n] for t in training for i in range(len(t) - n + 1)} for n in range(1, 60)}
    runs = [
        max((n for n in source if any(p[i : i + n] in source[n] for i in range(len(p) - n + 1))), default=0)
        for p in poems
    ]
    result = {"longest run copied, median": np.median(runs), "longest run copied, maximum": max(runs)}
    for n in range(3, 8):
        grams = [p[i : i + n] for p in poems for i in range(len(p) - n + 1)]
        result[f"new {n}-grams"] = sum(gram not in source[n] for gram in grams) / len(grams)
    return result


def test_novelty_is_that_of_sets_of_strings():
    rng = random.Random(0)
    han_chars = "春夏秋冬梅兰"
    training = ["".join(rng.choices(han_chars, k=rng.randint(5, 50))) for _ in range(60)]
    poems = ["".join(rng.choices(han_chars, k=40)) for _ in range(20)]
    poems[3] = training[0][:5] + "竹" + training[1]  # copied whole
    poems[4] = "菊" * 10  # nothing copied
    sets = {"a": [("", p) for p in poems[:10]], "b": [("", p) for p in poems[10:]], "none": [("", "菊" * 8)]}
    found = novelty(sets, [("", "，".join([t[:3], t[3:]])) for t in training])
    for name, part in (("a", poems[:10]), ("b", poems[10:])):
        for key, value in naive(part, training).items():
            assert found[name][key] == pytest.approx(value), (name, key)
    assert found["none"]["longest run copied, maximum"] == 0 and found["none"]["new 3-grams"] == 1


def test_a_copied_clause_is_a_whole_one_of_seven_or_more():
    training = [("", "春夏秋冬春夏秋，春夏秋冬春夏。")]
    poems = ["一，春夏秋冬春夏秋。", "春夏秋冬春夏。", "一春夏秋冬春夏秋。", "春夏秋、冬春夏秋。", "春夏秋冬□春夏秋。"]
    shares = [novelty({"x": [("", p)]}, training)["x"]["with a copied clause of 7 or more"] for p in poems]
    assert shares == [1, 0, 0, 1, 1]
