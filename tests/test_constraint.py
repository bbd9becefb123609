import random
import re

import pytest
import torch
from conftest import RHYMES, tuned_text
from hypothesis import given, settings
from hypothesis import strategies as st

from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.learn import learn
from songci.forms.poems import read_poems
from songci.forms.templates import Forms, Template, check
from songci.forms.writer import FormRules, FormWriter
from songci.generation import DEFAULT, Text, generate
from songci.training.checkpoint import load_model

CHARS = "一二三四五六七八"
CLASSES = {char: i for i, group in enumerate(RHYMES) for char in group}
VOCABULARY = Vocabulary("".join(sorted({*"+\n。，、清平乐如梦令浣溪沙小大", *CHARS, *CLASSES})))


@st.composite
def templates(draw) -> Template:
    """Any template: a prefix of another, clauses of one character, singly rhyming and unrhymed clauses."""
    clauses = draw(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("。，")), min_size=1, max_size=6))
    clauses[-1] = (clauses[-1][0], "。")
    scheme = "".join(draw(st.sampled_from("aab-")) for _, mark in clauses if mark == "。")
    pauses = draw(st.frozensets(st.tuples(st.integers(0, 5), st.integers(1, 2)), max_size=3))
    places = st.frozensets(st.integers(0, len(clauses) - 2), max_size=2) if len(clauses) > 1 else st.just(frozenset())
    return Template(tuple(clauses), 2, scheme, pauses, draw(places), draw(places))


def forms_of(drawn: list[Template]) -> Forms:
    by_clauses = {template.clauses: template for template in drawn}  # learning gives one for each pattern
    return Forms({"小令": list(by_clauses.values())}, CLASSES)


def write(rules: FormRules, start: str, choose) -> tuple[str, FormWriter]:
    """Goes on from start with the tokens that choose() picks among the allowed ids, until the poem is complete."""
    writer, text = FormWriter(rules, start), start
    for _ in range(500):
        if writer.done:
            return text, writer
        ids = writer.allowed().nonzero().flatten().tolist()
        assert ids, f"dead end after {text!r}"
        token = choose(ids)
        writer.append(token)
        text += VOCABULARY.chars[token]
    raise AssertionError(f"no end: {text!r}")


def checked(text: str, forms: Forms):
    [(tune, body)] = read_poems(text.splitlines(keepends=True))
    return check(tune, body, forms)


@settings(deadline=None, max_examples=300)
@given(st.lists(templates(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_whatever_is_chosen_the_poem_ends_in_form_and_in_rhyme(drawn, rng):
    forms = forms_of(drawn)
    text, _ = write(FormRules(forms, VOCABULARY), "\n", rng.choice)
    result = checked(text, forms)
    assert result.form and result.rhyme, text


@settings(deadline=None, max_examples=200)
@given(st.lists(templates(), min_size=1, max_size=4), st.data())
def test_every_beginning_of_a_good_poem_can_be_gone_on_from(drawn, data):
    """So the masks forbid no more than they must: the next character of a good poem is always allowed."""
    forms = forms_of(drawn)
    template = data.draw(st.sampled_from(forms.tunes["小令"]))
    groups = {letter: data.draw(st.sampled_from(RHYMES)) for letter in "ab"}
    used, body, last = set(), "", {}
    for (length, mark), letter in zip(template.clauses, template.rhyme_of, strict=True):
        clause = [data.draw(st.sampled_from(CHARS)) for _ in range(length)]
        if letter in groups:
            fresh = [char for char in groups[letter] if char not in used]
            clause[-1] = last[letter] = fresh[0] if fresh else groups[letter][0]
            used.add(clause[-1])
        body += "".join(clause) + mark
    assert check("小令", body, forms).rhyme
    rules = FormRules(forms, VOCABULARY)
    for cut in range(len(body) + 1):
        writer = FormWriter(rules, f"+++小令\n{body[:cut]}")
        if cut < len(body):
            allowed = writer.allowed()
            if not any(t.breaks for t in forms.tunes["小令"]):  # before a line break, only that is allowed
                assert allowed[VOCABULARY.chars.index(body[cut])], body[:cut]


def test_all_templates_and_only_they_are_reached():
    drawn = [
        Template(((1, "。"), (2, "。")), 2, "aa"),
        Template(((1, "。"), (2, "。"), (1, "，"), (1, "。")), 2, "aa-"),
        Template(((1, "，"), (2, "。")), 2, "-"),
    ]
    forms, seen = forms_of(drawn), set()
    rng = random.Random(0)
    for _ in range(300):
        text, _ = write(FormRules(forms, VOCABULARY), "+++小令\n", rng.choice)
        seen.add(checked(text, forms).template.clauses)
    assert seen == {template.clauses for template in forms.tunes["小令"]}


def test_a_rhyme_is_not_repeated_but_in_a_refrain():
    forms = Forms({"小令": [Template(((2, "。"),) * 6, 2, "aaaaaa", repeats=frozenset({5}))]}, CLASSES)
    rng, refrains = random.Random(1), 0
    for _ in range(60):
        text, _ = write(FormRules(forms, VOCABULARY), "+++小令\n", rng.choice)
        rhymes = re.findall(r"(.)。", text)
        assert len(set(rhymes[:5])) == 5
        refrains += rhymes[5] in rhymes[:5]
    assert refrains > 30  # of a class of six
    longer = Forms({"小令": [Template(((1, "。"),) * 9, 2, "a" * 9)]}, CLASSES)  # more than the class has
    assert checked(write(FormRules(longer, VOCABULARY), "+++小令\n", rng.choice)[0], longer).rhyme


@settings(deadline=None, max_examples=200)
@given(
    st.lists(templates(), min_size=1, max_size=4),
    st.text(st.sampled_from(CHARS + RHYMES[0][:2]), max_size=3),
    st.sampled_from(["", "东", "月"]),
    st.randoms(use_true_random=False),
)
def test_acrostic_and_rhyme_are_kept_or_it_is_said_that_they_cannot(drawn, acrostic, rhyme, rng):
    forms = forms_of(drawn)
    rules = FormRules(forms, VOCABULARY, acrostic, rhyme)
    try:
        text, _ = write(rules, "+++小令\n", rng.choice)
    except UserError:
        for template in forms.tunes["小令"]:
            assert len(template.scheme) < len(acrostic) or rhyme or any(n == 1 for n, _ in template.clauses)
        return
    result = checked(text, forms)
    body = text.removeprefix("+++小令\n").replace("\n", "").replace("、", "")
    starts = [sentence[0] for sentence in re.findall(r"[^。]+。", body)]
    assert result.form and result.rhyme and starts[: len(acrostic)] == list(acrostic)
    if rhyme:
        groups = [[c for _, c, _ in group] for group in result.rhymes.values()]
        singles = [
            c for c, letter in zip(re.findall(r"(.)。", body), result.template.scheme, strict=True) if letter != "-"
        ]
        assert groups and any(CLASSES[c] == CLASSES[rhyme] for c in singles)


def test_the_acrostic_goes_on_after_the_sentences_given():
    forms = learn([*read_poems(tuned_text(60).splitlines(keepends=True))])
    rules = FormRules(forms, VOCABULARY_OF_TUNED, "东红")
    writer = FormWriter(rules, "+++清平乐\n")
    assert allowed_chars(writer) == {"东"}
    body = next(body for tune, body in read_poems(tuned_text(60).splitlines(keepends=True)) if tune == "清平乐")
    first = body[: body.index("。") + 1]
    assert allowed_chars(FormWriter(rules, f"+++清平乐\n{first}")) == {"东"}
    assert len(allowed_chars(FormWriter(rules, f"+++清平乐\n{first[:2]}"))) > 1
    with pytest.raises(UserError, match="2 characters"):
        FormWriter(rules, f"+++清平乐\n{body[: body.index('，')]}")


def test_a_sentence_begun_in_the_start_is_none_of_the_acrostic():
    forms = Forms({"小令": [Template(((2, "。"),) * 3, 2, "---")]}, CLASSES)
    text, _ = write(FormRules(forms, VOCABULARY, "五六"), "+++小令\n一", random.Random(0).choice)
    assert re.fullmatch(r"\+\+\+小令\n一.。五.。六.。", text)


def test_pauses_and_stanza_breaks_come_where_a_template_has_them_and_once():
    template = Template(((2, "。"), (2, "。")), 2, "--", frozenset({(0, 1)}), frozenset({0}))
    rules = FormRules(Forms({"小令": [template]}, CLASSES), VOCABULARY)
    allowed = {body: allowed_chars(FormWriter(rules, f"+++小令\n{body}")) for body in ("", "一", "一、", "一二。三")}
    assert {body: "、" in chars for body, chars in allowed.items()} == {
        "": False,
        "一": True,
        "一、": False,
        "一二。三": False,
    }
    assert allowed_chars(FormWriter(rules, "+++小令\n一二。")) == {"\n"}
    assert "\n" not in allowed_chars(FormWriter(rules, "+++小令\n一二。\n"))


VOCABULARY_OF_TUNED = Vocabulary("".join(sorted(set(tuned_text(300)))))


def allowed_chars(writer: FormWriter) -> set[str]:
    return {writer.rules.vocabulary.chars[i] for i in writer.allowed().nonzero().flatten()}


def test_the_tune_is_chosen_among_those_with_a_form():
    forms = Forms({"小令": [Template(((2, "。"),), 2, "-")], "小大": [Template(((2, "。"),) * 2, 2, "aa")]}, CLASSES)
    rules = FormRules(forms, VOCABULARY)
    for start in ("", "\n", "\n\n", "+"):
        assert allowed_chars(FormWriter(rules, start)) == {"+"}
    assert allowed_chars(FormWriter(rules, "+++")) == {"小"}
    assert allowed_chars(FormWriter(rules, "一\n+++小")) == {"令", "大"}
    assert allowed_chars(FormWriter(rules, "+++小令")) == {"\n"}
    assert allowed_chars(FormWriter(FormRules(forms, VOCABULARY, "一二"), "+++小")) == {"大"}  # two sentences
    assert allowed_chars(FormWriter(FormRules(forms, VOCABULARY, "", "东"), "+++小")) == {"大"}  # a rhyme
    assert FormWriter(rules, "+++小令\n一二。").done
    assert not FormWriter(rules, "+++小令\n一二").done


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("春", "no title line"),
        ("+++小小\n", "no form is known of the tune '小小'; near names: 小令"),
        ("+++小令\n一东三。", "'一东三' fits no template of 小令: clause 1 may be 2。"),
        ("+++小令\n一二东，", "fits no template"),
        ("+++小令\n一东。二月", "'一东。二月' fits no template of 小令: 月 does not rhyme there"),
        ("+++小令\n一二", "'一二' fits no template of 小令: 二 does not rhyme there"),
        ("+++小令\n一东。二红。三", "clause 3 may be the end"),
        ("+++小令（一", "not closed"),
    ],
)
def test_a_start_that_fits_no_form_is_said(start, words):
    forms = Forms({"小令": [Template(((2, "。"),) * 2, 2, "aa")]}, CLASSES)
    with pytest.raises(UserError, match=re.escape(words)):
        FormWriter(FormRules(forms, VOCABULARY), start)


def test_what_cannot_be_asked_for_is_said():
    forms = Forms({"小令": [Template(((2, "。"),) * 2, 2, "aa")]}, CLASSES)
    for acrostic, rhyme, words in [
        ("一，", "", "only characters"),
        ("春", "", "not in the vocabulary"),
        ("", "东红", "one character"),
        ("", "一", "rhyme with"),
    ]:
        with pytest.raises(UserError, match=words):
            FormRules(forms, VOCABULARY, acrostic, rhyme)
    for other in (Forms(), Forms({"春": forms.tunes["小令"]}, {})):
        with pytest.raises(UserError, match="run prepare"):
            FormRules(other, VOCABULARY)
    with pytest.raises(UserError, match="3 characters, the longest has 2 sentences"):
        FormWriter(FormRules(forms, VOCABULARY, "一二三"), "+++小令\n")
    with pytest.raises(UserError, match="contradicts"):
        FormWriter(FormRules(forms, VOCABULARY, "", "月"), "+++小令\n一东。")
    with pytest.raises(UserError, match="no tune has"):
        FormWriter(FormRules(forms, VOCABULARY, "一二三"), "\n")


def test_a_models_poems_keep_their_forms_and_count_what_they_cost(tuned_root, tuned_ckpt):
    model, vocabulary, title = load_model(tuned_ckpt)
    forms = Forms.load(tuned_root)
    rules = FormRules(forms, vocabulary)
    texts = [
        Text(
            model.config.max_seq_len, title, vocabulary.encode("\n").tolist(), seed, constraint=FormWriter(rules, "\n")
        )
        for seed in range(20)
    ]
    for _ in generate(model, texts, 1000, DEFAULT):
        pass
    assert len({text.constraint.tune for text in texts}) == 3
    for text in texts:
        result = checked(vocabulary.decode(text.new), forms)
        assert result.form and result.rhyme
        assert 0 < text.free < len(text.new) and text.allowed_log_prob < 0
        assert text.log_likelihood < text.free_log_likelihood < 0


@torch.inference_mode()
def test_kept_probability_and_log_likelihood_are_exact(tuned_root, tuned_ckpt):
    """Against the model's own softmax over the whole vocabulary, recomputed for each step."""
    model, vocabulary, title = load_model(tuned_ckpt)
    rules = FormRules(Forms.load(tuned_root), vocabulary)
    start = "+++清平乐\n"
    text = Text(
        model.config.max_seq_len, title, vocabulary.encode(start).tolist(), 3, constraint=FormWriter(rules, start)
    )
    follow, kept, gains = FormWriter(rules, start), 0.0, 0.0
    for [token] in generate(model, [text], 8):  # within the window
        ids = torch.tensor([vocabulary.encode(start).tolist() + text.new[:-1]])
        log_probs = torch.log_softmax(model(ids)[0][0, -1], dim=-1)
        allowed = follow.allowed()
        assert allowed[token]
        kept += log_probs[allowed].logsumexp(-1).item()
        gains += log_probs[token].item()
        follow.append(token)
    assert text.allowed_log_prob == pytest.approx(kept, abs=1e-3)
    assert text.log_likelihood == pytest.approx(gains, abs=1e-3)
