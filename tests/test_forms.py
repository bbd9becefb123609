"""What a ci is: reading, learning, checking, and holding sampling to the forms."""

import random
import re
from collections import Counter

import pytest
from conftest import RHYMES, tuned_text
from hostile import ANY_TEXT, NEAR_TEXT, POEMS, bounded, case, fuzz
from hypothesis import example, given, settings
from hypothesis import strategies as st

import prepare
from songci.cli import UserError, read_text
from songci.corpus.vocabulary import Vocabulary
from songci.forms import __main__ as forms_command
from songci.forms.check import agreement, check
from songci.forms.learn import learn, refrains, rhyme_classes, rhyme_scheme
from songci.forms.poems import canonical_title, read_clauses, read_poems, tune_of
from songci.forms.templates import Forms, Template
from songci.forms.writer import FormRules, FormWriter

SHORT = Template(((3, "。"), (2, "，"), (3, "。")), 5, "aa")
LONG = Template(((3, "。"), (2, "，"), (4, "。"), (1, "。")), 3, "aa-", frozenset({(2, 1)}), frozenset({0}))
FORMS = Forms({"小令": [SHORT, LONG]}, {"东": 0, "红": 0, "风": 0, "月": 1, "雪": 1})


def poems_of(text: str) -> list[tuple[str, str]]:
    return list(read_poems(text.splitlines(keepends=True)))


def test_poems_are_read_by_their_title_lines():
    text = "preface\n+++小令（春）\n一东。二三，\n四五风。\n\n+++长调(1)\n六\n+++空\n"
    assert poems_of(text) == [("小令", "一东。二三，\n四五风。\n\n"), ("长调", "六\n"), ("空", "")]
    assert tune_of("+++ 小令（春）") == tune_of("小令") == "小令"


def test_an_alias_of_a_tune_becomes_its_canonical_name_and_is_said(capsys):
    aliases = {"酹江月": "念奴娇", "重": "轻"}
    assert canonical_title("+++酹江月", aliases) == "+++念奴娇"
    assert "酹江月 is another name of 念奴娇" in capsys.readouterr().err
    assert canonical_title("+++酹江月（中秋）\n春", aliases) == "+++念奴娇（中秋）\n春"
    for other in ("酹江月", "+++念奴娇", "+++酹江月亮", "春\n+++酹江月", "\n"):
        assert canonical_title(other, aliases) == other


@pytest.mark.parametrize(
    "text",
    [
        "一二、东。三四，五六风。",
        "一二、东！三四；五六风？",
        "一二、东.三四,五六风!",
        "“一二、东。”\n三四，「五六风。」\n\n",
    ],
)
def test_marks_of_one_kind_and_lines_are_taken_for_one_another(text):
    clauses = read_clauses(text)
    assert [(clause.text, clause.mark) for clause in clauses] == [("一二东", "。"), ("三四", "，"), ("五六风", "。")]
    assert clauses[0].pauses == [2] and clauses[0].line_break == ("\n" in text)


def test_a_poem_in_form_and_rhyme_passes():
    result = check("小令", "一二东。三四，五六风。", FORMS)
    assert result.template is SHORT and result.form and result.rhyme
    assert result.rhymes == {"a": [(0, "东", True), (2, "风", True)]}
    assert check("小令", "一二月。\n三四，五、六七雪。八。", FORMS).template is LONG


def test_the_first_departure_from_the_nearest_template_is_told():
    result = check("小令", "一二东。三四，五六七，风。", FORMS)
    assert not result.form and result.template is SHORT and result.departure == (2, "3，", "3。")
    assert check("小令", "一二东。三四，五六七风。", FORMS).departure == (3, "the end", "1。")
    assert check("小令", "一二东。三四，五六风。七。", FORMS).departure == (3, "1。", "the end")
    assert check("小令", "一二东。三四，五六风", FORMS).departure == (2, "3", "3。")
    unknown = check("无名", "一二东。", FORMS)
    assert unknown.template is None and not unknown.form


def test_the_whole_form_goes_before_the_beginning_of_a_commoner_one():
    longer = Template((*SHORT.clauses, (2, "。")), 9, "aa-")
    assert check("小令", "一二东。三四，五六风。", Forms({"小令": [longer, SHORT]}, FORMS.classes)).template is SHORT


@pytest.mark.parametrize(("last", "fits"), [("风", True), ("月", False), ("六", False)])
def test_a_character_of_another_class_or_none_is_out_of_rhyme(last, fits):
    result = check("小令", f"一二东。三四，五六{last}。", FORMS)
    assert result.form and result.rhyme == fits
    if not fits:
        assert not all(ok for _, _, ok in result.rhymes["a"])


def test_forms_are_saved_and_loaded(tmp_path):
    FORMS.save(tmp_path / "forms.json")
    assert Forms.load(tmp_path) == FORMS


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"tunes": 1}',
        "\ud800",
        '{"tunes": {"小令": [{"form": "3。", "scheme": "a"}]}, "rhyme_classes": []}',
        '{"tunes": {"小令": [{"form": "3。", "support": 2, "scheme": "ab", "pauses": [], "breaks": [], '
        '"repeats": []}]}, "rhyme_classes": []}',
    ],
)
def test_a_damaged_file_is_said(assert_user_error, tmp_path, content):
    (tmp_path / "forms.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    assert_user_error(forms_command, "--data_root", tmp_path, "--show", "小令", words=["damaged", "prepare.py"])


def test_what_a_user_can_get_wrong(assert_user_error, tmp_path):
    assert_user_error(forms_command, "--data_root", tmp_path, "--show", "小令", words=["no forms.json", "prepare.py"])
    FORMS.save(tmp_path / "forms.json")
    root = ["--data_root", tmp_path]
    assert_user_error(forms_command, *root, "--show", "小今", words=["小今", "near names: 小令"])
    assert_user_error(forms_command, *root, "--show", "", words=["no form is known of the tune ''"])
    assert_user_error(forms_command, *root, "--check", tmp_path / "none.txt", words=["none.txt"])
    (tmp_path / "plain.txt").write_text("一二东。", encoding="utf-8")
    assert_user_error(forms_command, *root, "--check", tmp_path / "plain.txt", words=["+++清平乐"])
    assert_user_error(forms_command, *root, words=["required"])


def test_a_template_is_drawn_with_its_rhymes_pauses_and_stanzas(call, tmp_path):
    assert forms_command.drawn(LONG) == "□□□。 a\n\n□□，□（、）□□□。 a\n□。\n"
    FORMS.save(tmp_path / "forms.json")
    status, out, _ = call(forms_command, "--data_root", tmp_path, "--show", "+++小令（春）")
    assert (
        status == 0
        and "2 templates in 8 poems" in out
        and forms_command.drawn(SHORT) in out
        and forms_command.drawn(LONG) in out
    )


def test_departures_are_marked_in_the_text(call, tmp_path):
    FORMS.save(tmp_path / "forms.json")
    (tmp_path / "poems.txt").write_text(
        "+++小令\n一二东。三四，五六月。\n\n+++小令\n一二东。三四五，六。\n\n+++小令\n一二东。\n\n+++谁\n一。\n",
        encoding="utf-8",
    )
    status, out, _ = call(forms_command, "--data_root", tmp_path, "--check", tmp_path / "poems.txt")
    first, second, third, fourth = out.split("\n\n")
    assert status == 0 and "in form, 1 character out of rhyme" in first and "三四，五六月。  a  <- 月 does not" in first
    assert "out of form" in second and "〔三四五，〕  <- 3， where the form has 2，" in second
    assert "〔〕  <- the end where the form has 2，" in third
    assert "no form is known" in fourth


def test_agreement_counts_neighbouring_rhymes_of_poems_in_form():
    poems = [("小令", f"一二{a}。三四，五六{b}。") for a, b in ("东红", "东月", "东东", "东六")]
    poems += [("小令", "一东。三四，五六风。"), ("谁", "一。")]
    assert agreement(poems, FORMS) == {"小令": (1, 3)}  # the same character twice is no pair
    report = forms_command.rhymes_report(FORMS, "x\n" * 300 + "+++小令\n一二东。三四，五六红。\n")
    assert "| 小令 | 1 | 1 | 100.0% |" in report and "东红风" in report


def mark_poems(path, forms) -> None:
    for tune, body in poems_of(read_text(path)):
        forms_command.marked(tune, body, forms)


@pytest.mark.slow
@fuzz(250)
@given(st.one_of(st.binary(), ANY_TEXT, NEAR_TEXT, POEMS))
@example("+++清平乐\n" + "春" * 1_000_000)
@example("+++清平乐\n" + "春。" * 300_000)
@example("+++" + "清平" * 100_000)
def test_any_file_of_poems_is_checked_or_refused_in_one_line(tuned_root, file, content):
    case("check", mark_poems, file("poems.txt", content), Forms.load(tuned_root))


# --- learning ---------------------------------------------------------------------------------------------------------


def test_forms_schemes_refrains_pauses_and_classes_come_out():
    forms = learn(poems_of(tuned_text(300)))
    assert {tune: ["".join(f"{n}{m}" for n, m in t.clauses) for t in ts] for tune, ts in forms.tunes.items()} == {
        "清平乐": ["4。5。3，4。"],
        "如梦令": ["3。2。2。3。"],
        "浣溪沙": ["4，3。3。5。4。"],
    }
    assert {tune: [t.scheme for t in ts] for tune, ts in forms.tunes.items()} == {
        "清平乐": ["aaa"],
        "如梦令": ["aaaa"],
        "浣溪沙": ["aabb"],
    }
    assert forms.tunes["如梦令"][0].repeats == {2} and not forms.tunes["清平乐"][0].repeats
    assert forms.tunes["清平乐"][0].pauses == {(1, 2)} and not forms.tunes["浣溪沙"][0].pauses
    found = {frozenset(c for c in forms.classes if forms.classes[c] == k) for k in forms.classes.values()}
    assert found == {frozenset(group) for group in RHYMES}


def test_a_pattern_of_a_single_poem_is_no_form():
    once = "+++孤\n一二东。\n\n"
    assert learn(poems_of(once)).tunes == {}
    assert [t.support for t in learn(poems_of(once * 2)).tunes["孤"]] == [2]
    assert learn(poems_of("+++孤\n一二东。三四\n\n" * 2)).tunes == {}  # without a mark at its end


def test_stanza_lines_are_learned_and_marks_of_any_width():
    forms = learn(poems_of("+++令\n一二东.\n三四,五红.\n\n" * 3))
    [template] = forms.tunes["令"]
    assert template.clauses == ((3, "。"), (2, "，"), (2, "。")) and template.breaks == {0}
    [template] = learn(poems_of("+++令\n一二东。\n三四。\n\n" + "+++令\n一二东。三四。\n\n" * 2)).tunes["令"]
    assert not template.breaks  # most have none


def test_a_refrain_is_what_a_good_part_of_the_poems_repeat():
    clauses = ((3, "。"), (2, "，"), (3, "。"))
    assert refrains(clauses, ["东东", *["东红"] * 4]) == {2}
    assert refrains(clauses, ["东东", *["东红"] * 5]) == frozenset()


@pytest.mark.parametrize("text", ["", "no titles at all.\n" * 50, "+++\n" * 9, "+++令\n" * 5])
def test_a_text_without_poems_has_no_forms(text):
    assert learn(poems_of(text)) == Forms()


def test_few_poems_prove_little_for_a_scheme():
    classes = {"东": 0, "红": 0, "月": 1, "雪": 1, "花": 2}
    assert rhyme_scheme(["东红月雪"] * 2, classes) == "aabb"
    assert rhyme_scheme(["东红"], classes) == "aa"
    assert rhyme_scheme(["东红", "东月"], classes) == "--"
    assert rhyme_scheme(["东红", "东红", "东月"], classes) == "--"
    assert rhyme_scheme(["东月红雪", "月东雪红"] * 3, classes) == "abab"
    assert rhyme_scheme(["东月花", "月花东", "花东月"], classes) == "---"


def test_a_character_that_follows_itself_is_no_rhyme():
    assert rhyme_classes(Counter({("东", "东"): 5})) == {}


def test_the_classes_repeat_and_do_not_depend_on_the_order():
    rng = random.Random(0)
    pairs = [(a, b) for group in RHYMES for a in group for b in group if a != b and rng.random() < 0.5]
    first = rhyme_classes(Counter(pairs))
    assert rhyme_classes(Counter(pairs[::-1])) == first == rhyme_classes(Counter(b + a for a, b in pairs))


def test_prepare_learns_from_the_training_split_alone(tmp_path):
    """The poem that the cut goes through is left out too."""
    folder = tmp_path / "own"
    folder.mkdir()
    text = tuned_text(40) + "+++别\n一二东。三红。\n\n" * 12
    (folder / "input.txt").write_text(text, encoding="utf-8")
    prepare.prepare(folder)
    cut = int(len(text) * 0.9)
    assert Forms.load(folder) == learn(poems_of(text[:cut])[:-1])
    assert 2 <= Forms.load(folder).tunes["别"][0].support < 12


# --- writing ----------------------------------------------------------------------------------------------------------

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


def test_a_tunes_name_may_have_any_characters():
    """Marks in it are characters like others: a mark of the same kind would spell another name."""
    forms = Forms({name: [Template(((2, "。"),), 2, "-")] for name in ("小.", "小!", "大，！", "（")}, CLASSES)
    vocabulary, rng = Vocabulary("\n+。，.!！（小大一二"), random.Random(0)
    written = set()
    for _ in range(60):
        writer = FormWriter(FormRules(Forms(forms.tunes, {}), vocabulary), "\n")
        while not writer.done:
            writer.append(rng.choice(writer.allowed().nonzero().flatten().tolist()))
        written.add(writer.tune)
    assert written == set(forms.tunes)


def test_a_subtitle_of_brackets_is_read_in_time():
    rules = FormRules(Forms({"清": [Template(((2, "。"),), 2, "-")]}, {}), Vocabulary("\n+。（）清"))
    with bounded():
        assert FormWriter(rules, "+++清" + "（" * 100_000 + "）").prefix
    with pytest.raises(UserError, match="not closed"):
        FormWriter(rules, "+++清" + "（" * 5)
