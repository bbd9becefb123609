"""What a ci is: reading, learning, checking, and holding sampling to the forms."""

import random
import re
from collections import Counter

import pytest
from conftest import RHYMES, prepared, tuned_text
from hostile import ANY_TEXT, NEAR_TEXT, POEMS, bounded, case, fuzz
from hypothesis import example, given, settings
from hypothesis import strategies as st

from songci.cli import UserError, read_text
from songci.corpus.vocabulary import Vocabulary
from songci.forms import __main__ as forms_command
from songci.forms.check import agreement, check
from songci.forms.learn import learn, refrains, rhyme_classes, rhyme_scheme
from songci.forms.poems import canonical_title, read_clauses, read_poems, tune_of
from songci.forms.templates import Forms, Template
from songci.forms.writer import FormRules, FormWriter


def form(clauses: str, scheme: str, support: int = 2, **more) -> Template:
    """form("2，3。", "a") has two clauses."""
    return Template(tuple((int(n), mark) for n, mark in re.findall("(.)(.)", clauses)), support, scheme, **more)


SHORT = form("3。2，3。", "aa", 5)
LONG = form("3。2，4。1。", "aa-", 3, pauses=frozenset({(2, 1)}), breaks=frozenset({0}))
COUPLET = form("2。2。", "aa")
FORMS = Forms({"小令": [SHORT, LONG]}, {"东": 0, "红": 0, "风": 0, "月": 1, "雪": 1})


def poems_of(text: str) -> list[tuple[str, str]]:
    return list(read_poems(text.splitlines(keepends=True)))


@pytest.fixture
def root(tmp_path):
    """A data folder with FORMS."""
    FORMS.save(tmp_path / "forms.json")
    return tmp_path


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


@pytest.mark.parametrize("marks", ["。，。", "！；？", ".,!", ["。”\n", "，「", "。」\n\n"]])
def test_marks_of_one_kind_and_lines_are_taken_for_one_another(marks):
    text = "“一二、东{}三四{}五六风{}".format(*marks)
    clauses = read_clauses(text)
    assert [(clause.text, clause.mark) for clause in clauses] == [("一二东", "。"), ("三四", "，"), ("五六风", "。")]
    assert clauses[0].pauses == [2] and clauses[0].line_break == ("\n" in text)


@pytest.mark.parametrize(("last", "fits"), [("风", True), ("月", False), ("六", False)])
def test_a_poem_in_form_is_in_rhyme_if_its_rhymes_are_of_one_class(last, fits):
    result = check("小令", f"一二东。三四，五六{last}。", FORMS)
    assert result.template is SHORT and result.form and result.rhyme == fits
    assert result.rhymes == {"a": [(0, "东", True), (2, last, fits)]}


def test_the_first_departure_from_the_nearest_template_is_told():
    result = check("小令", "一二东。三四，五六七，风。", FORMS)
    assert not result.form and result.template is SHORT and result.departure == (2, "3，", "3。")
    assert check("小令", "一二东。三四，五六七风。", FORMS).departure == (3, "the end", "1。")
    assert check("小令", "一二东。三四，五六风。七。", FORMS).departure == (3, "1。", "the end")
    assert check("小令", "一二东。三四，五六风", FORMS).departure == (2, "3", "3。")
    unknown = check("无名", "一二东。", FORMS)
    assert unknown.template is None and not unknown.form


def test_the_whole_form_goes_before_the_beginning_of_a_commoner_one():
    assert check("小令", "一二月。\n三四，五、六七雪。八。", FORMS).template is LONG
    longer = form("3。2，3。2。", "aa-", 9)
    assert check("小令", "一二东。三四，五六风。", Forms({"小令": [longer, SHORT]}, FORMS.classes)).template is SHORT


TUNE = '{"tunes": {"小令": [{"form": "3。", %s}]}, "rhyme_classes": []}'
BAD_SCHEME = TUNE % '"support": 2, "scheme": "ab", "pauses": [], "breaks": [], "repeats": []'


@pytest.mark.parametrize("content", ["", "[]", '{"tunes": 1}', "\ud800", TUNE % '"scheme": "a"', BAD_SCHEME])
def test_a_damaged_file_is_said(assert_user_error, file, content):
    root = file("forms.json", content).parent
    assert_user_error(forms_command, "--data_root", root, "--show", "小令", words=["damaged", "prepare.py"])


def test_what_a_user_can_get_wrong(assert_user_error, root, file):
    for args, words in (
        (["--show", "小今"], ["小今", "near names: 小令"]),
        (["--show", ""], ["no form is known of the tune ''"]),
        (["--check", root / "none.txt"], ["none.txt"]),
        (["--check", file("plain.txt", "一二东。")], ["+++清平乐"]),
        ([], ["required"]),
        (["--data_root", root / "none", "--show", "小令"], ["no forms.json", "prepare.py"]),
    ):
        assert_user_error(forms_command, "--data_root", root, *args, words=words)


def test_forms_are_saved_loaded_and_drawn_with_rhymes_pauses_and_stanzas(call, root):
    assert Forms.load(root) == FORMS
    assert forms_command.drawn(LONG) == "□□□。 a\n\n□□，□（、）□□□。 a\n□。\n"
    status, out, _ = call(forms_command, "--data_root", root, "--show", "+++小令（春）")
    drawn = [forms_command.drawn(template) for template in (SHORT, LONG)]
    assert status == 0 and all(part in out for part in ("2 templates in 8 poems", *drawn))


def test_departures_are_marked_in_the_text(call, root, file):
    poems = "+++小令\n一二东。三四，五六月。\n\n+++小令\n一二东。三四五，六。\n\n+++小令\n一二东。\n\n+++谁\n一。\n"
    status, out, _ = call(forms_command, "--data_root", root, "--check", file("poems.txt", poems))
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
    found = {
        tune: [("".join(f"{n}{m}" for n, m in t.clauses), t.scheme, t.repeats, t.pauses) for t in templates]
        for tune, templates in forms.tunes.items()
    }
    assert found == {
        "清平乐": [("4。5。3，4。", "aaa", set(), {(1, 2)})],
        "如梦令": [("3。2。2。3。", "aaaa", {2}, set())],
        "浣溪沙": [("4，3。3。5。4。", "aabb", set(), set())],
    }
    classes = {frozenset(c for c in forms.classes if forms.classes[c] == k) for k in forms.classes.values()}
    assert classes == {frozenset(group) for group in RHYMES}


def test_a_pattern_of_a_single_poem_is_no_form():
    once = "+++孤\n一二东。\n\n"
    assert learn(poems_of(once)).tunes == {}
    assert [t.support for t in learn(poems_of(once * 2)).tunes["孤"]] == [2]


@pytest.mark.parametrize(
    "text", ["", "no titles at all.\n" * 50, "+++\n" * 9, "+++令\n" * 5, "+++令\n一东。三四\n" * 2]
)
def test_a_text_without_poems_or_without_marks_at_their_ends_has_no_forms(text):
    assert learn(poems_of(text)) == Forms()


def test_stanza_lines_that_most_poems_have_are_learned_and_marks_of_any_width():
    with_lines, without = "+++令\n一二东.\n三四,五红.\n\n", "+++令\n一二东。三四，五红。\n\n"
    for text, breaks in ((with_lines * 3, {0}), (with_lines + without * 2, set())):
        [template] = learn(poems_of(text)).tunes["令"]
        assert template.clauses == ((3, "。"), (2, "，"), (2, "。")) and template.breaks == breaks


def test_a_refrain_is_what_a_good_part_of_the_poems_repeat():
    assert refrains(SHORT.clauses, ["东东", *["东红"] * 4]) == {2}
    assert refrains(SHORT.clauses, ["东东", *["东红"] * 5]) == frozenset()


def test_few_poems_prove_little_for_a_scheme():
    classes = {"东": 0, "红": 0, "月": 1, "雪": 1, "花": 2}
    assert rhyme_scheme(["东红月雪"] * 2, classes) == "aabb"
    assert rhyme_scheme(["东红"], classes) == "aa"
    assert rhyme_scheme(["东红", "东月"], classes) == "--"
    assert rhyme_scheme(["东红", "东红", "东月"], classes) == "--"
    assert rhyme_scheme(["东月红雪", "月东雪红"] * 3, classes) == "abab"
    assert rhyme_scheme(["东月花", "月花东", "花东月"], classes) == "---"


def test_the_classes_repeat_and_do_not_depend_on_the_order():
    rng = random.Random(0)
    pairs = [(a, b) for group in RHYMES for a in group for b in group if a != b and rng.random() < 0.5]
    first = rhyme_classes(Counter(pairs))
    assert rhyme_classes(Counter(pairs[::-1])) == first == rhyme_classes(Counter(b + a for a, b in pairs))
    assert rhyme_classes(Counter({("东", "东"): 5})) == {}  # a character that follows itself is no rhyme


def test_prepare_learns_from_the_training_split_alone(tmp_path):
    """The poem that the cut goes through is left out too."""
    text = tuned_text(40) + "+++别\n一二东。三红。\n\n" * 12
    forms = Forms.load(prepared(tmp_path / "own", text))
    assert forms == learn(poems_of(text[: int(len(text) * 0.9)])[:-1])
    assert 2 <= forms.tunes["别"][0].support < 12


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


def forms_of(*templates: Template) -> Forms:
    return Forms({"小令": list({template.clauses: template for template in templates}.values())}, CLASSES)


MANY = st.lists(templates(), min_size=1, max_size=4).map(lambda drawn: forms_of(*drawn))
RANDOM = st.randoms(use_true_random=False)


def begun(rules: FormRules, body: str = "") -> FormWriter:
    return FormWriter(rules, f"+++小令\n{body}")


def allowed_chars(writer: FormWriter) -> set[str]:
    return {writer.rules.vocabulary.chars[i] for i in writer.allowed().nonzero().flatten()}


def written(rules: FormRules, rng: random.Random, start: str = "+++小令\n") -> str:
    """Goes on from start with any of the characters that are allowed, until the poem is complete."""
    writer, chars = FormWriter(rules, start), rules.vocabulary.chars
    for _ in range(500):
        if writer.done:
            return start
        allowed = sorted(allowed_chars(writer))
        assert allowed, f"dead end after {start!r}"
        start += rng.choice(allowed)
        writer.append(chars.index(start[-1]))
    raise AssertionError(f"no end: {start!r}")


def checked(text: str, forms: Forms):
    [(tune, body)] = read_poems(text.splitlines(keepends=True))
    return check(tune, body, forms)


@settings(deadline=None, max_examples=300)
@given(MANY, RANDOM)
def test_whatever_is_chosen_the_poem_ends_in_form_and_in_rhyme(forms, rng):
    text = written(FormRules(forms, VOCABULARY), rng, "\n")
    assert checked(text, forms).rhyme, text


@settings(deadline=None, max_examples=200)
@given(MANY, st.data())
def test_every_beginning_of_a_good_poem_can_be_gone_on_from(forms, data):
    """So the masks forbid no more than they must: the next character of a good poem is always allowed."""
    template = data.draw(st.sampled_from(forms.tunes["小令"]))
    groups = {letter: data.draw(st.sampled_from(RHYMES)) for letter in "ab"}
    used, body = set(), ""
    for (length, mark), letter in zip(template.clauses, template.rhyme_of, strict=True):
        clause = data.draw(st.lists(st.sampled_from(CHARS), min_size=length, max_size=length))
        if letter in groups:
            clause[-1] = next((char for char in groups[letter] if char not in used), groups[letter][0])
            used.add(clause[-1])
        body += "".join(clause) + mark
    assert check("小令", body, forms).rhyme
    rules, breaks = FormRules(forms, VOCABULARY), any(t.breaks for t in forms.tunes["小令"])
    for place, char in enumerate(body + "\n"):
        allowed = allowed_chars(begun(rules, body[:place]))
        assert breaks or char in allowed, body[:place]  # before a line break, only that is allowed


def test_all_templates_and_only_they_are_reached():
    forms = forms_of(form("1。2。", "aa"), form("1。2。1，1。", "aa-"), form("1，2。", "-"))
    rules, rng = FormRules(forms, VOCABULARY), random.Random(0)
    seen = {checked(written(rules, rng), forms).template.clauses for _ in range(300)}
    assert seen == {template.clauses for template in forms.tunes["小令"]}


def test_a_rhyme_is_not_repeated_but_in_a_refrain():
    forms = forms_of(form("2。" * 6, "aaaaaa", repeats=frozenset({5})))
    rules, rng, refrains = FormRules(forms, VOCABULARY), random.Random(1), 0
    for _ in range(60):
        rhymes = re.findall(r"(.)。", written(rules, rng))
        assert len(set(rhymes[:5])) == 5
        refrains += rhymes[5] in rhymes[:5]
    assert refrains > 30  # of a class of six
    longer = forms_of(form("1。" * 9, "a" * 9))  # more than the class has
    assert checked(written(FormRules(longer, VOCABULARY), rng), longer).rhyme


@settings(deadline=None, max_examples=200)
@given(MANY, st.text(st.sampled_from(CHARS + RHYMES[0][:2]), max_size=3), st.sampled_from(["", "东", "月"]), RANDOM)
def test_acrostic_and_rhyme_are_kept_or_it_is_said_that_they_cannot(forms, acrostic, rhyme, rng):
    rules = FormRules(forms, VOCABULARY, acrostic, rhyme)
    try:
        text = written(rules, rng)
    except UserError:
        for template in forms.tunes["小令"]:
            assert len(template.scheme) < len(acrostic) or rhyme or any(n == 1 for n, _ in template.clauses)
        return
    result = checked(text, forms)
    body = text.removeprefix("+++小令\n").replace("\n", "").replace("、", "")
    starts = [sentence[0] for sentence in re.findall(r"[^。]+。", body)]
    assert result.rhyme and starts[: len(acrostic)] == list(acrostic)
    if rhyme:
        ends = zip(re.findall(r"(.)。", body), result.template.scheme, strict=True)
        assert any(letter != "-" and CLASSES[char] == CLASSES[rhyme] for char, letter in ends)


def test_the_acrostic_begins_with_the_first_sentence_to_be_written():
    """So a sentence that the start has begun is none of it."""
    rules = FormRules(forms_of(form("2。2。2。", "---")), VOCABULARY, "五六")
    assert allowed_chars(begun(rules)) == allowed_chars(begun(rules, "一二。")) == {"五"}
    assert re.fullmatch(r"\+\+\+小令\n一.。五.。六.。", written(rules, random.Random(0), "+++小令\n一"))
    with pytest.raises(UserError, match="2 characters"):
        begun(rules, "一二。三")


def test_pauses_and_stanza_breaks_come_where_a_template_has_them_and_once():
    stanzas = form("2。2。", "--", pauses=frozenset({(0, 1)}), breaks=frozenset({0}))
    rules = FormRules(forms_of(stanzas), VOCABULARY)
    for body, pause in {"": False, "一": True, "一、": False, "一二。三": False}.items():
        assert ("、" in allowed_chars(begun(rules, body))) == pause
    assert allowed_chars(begun(rules, "一二。")) == {"\n"}
    assert "\n" not in allowed_chars(begun(rules, "一二。\n"))


def test_the_tune_is_chosen_among_those_with_a_form():
    forms = Forms({"小令": [form("2。", "-")], "小大": [COUPLET]}, CLASSES)
    rules = FormRules(forms, VOCABULARY)
    for start in ("", "\n", "\n\n", "+"):
        assert allowed_chars(FormWriter(rules, start)) == {"+"}
    for start, allowed in {"+++": "小", "一\n+++小": "令大", "+++小令": "\n"}.items():
        assert allowed_chars(FormWriter(rules, start)) == set(allowed)
    for wishes in (["一二"], ["", "东"]):  # two sentences, a rhyme
        assert allowed_chars(FormWriter(FormRules(forms, VOCABULARY, *wishes), "+++小")) == {"大"}
    assert begun(rules, "一二。").done and not begun(rules, "一二").done


@pytest.mark.parametrize(
    ("start", "wishes", "words"),
    [
        ("春", [], "no title line"),
        ("+++小小\n", [], "no form is known of the tune '小小'; near names: 小令"),
        ("+++小令\n一东三。", [], "'一东三' fits no template of 小令: clause 1 may be 2。"),
        ("+++小令\n一二东，", [], "fits no template"),
        ("+++小令\n一东。二月", [], "'一东。二月' fits no template of 小令: 月 does not rhyme there"),
        ("+++小令\n一二", [], "'一二' fits no template of 小令: 二 does not rhyme there"),
        ("+++小令\n一东。二红。三", [], "clause 3 may be the end"),
        ("+++小令（一", [], "not closed"),
        ("", ["一，"], "only characters"),
        ("", ["春"], "not in the vocabulary"),
        ("", ["", "东红"], "one character"),
        ("", ["", "一"], "rhyme with"),
        ("+++小令\n", ["一二三"], "3 characters, the longest has 2 sentences"),
        ("+++小令\n一东。", ["", "月"], "contradicts"),
        ("\n", ["一二三"], "no tune has"),
    ],
)
def test_a_start_an_acrostic_or_a_rhyme_that_no_form_can_keep_is_said(start, wishes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        FormWriter(FormRules(forms_of(COUPLET), VOCABULARY, *wishes), start)


@pytest.mark.parametrize("forms", [Forms(), Forms({"春": [COUPLET]}, {})])
def test_without_forms_that_the_vocabulary_can_spell_prepare_is_to_be_run(forms):
    with pytest.raises(UserError, match="run prepare"):
        FormRules(forms, VOCABULARY)


def test_a_tunes_name_may_have_any_characters():
    """Marks in it are characters like others: a mark of the same kind would spell another name."""
    forms = Forms({name: [form("2。", "-")] for name in ("小.", "小!", "大，！", "（")}, {})
    rules, rng = FormRules(forms, Vocabulary("\n+。，.!！（小大一二")), random.Random(0)
    titles = {written(rules, rng, "\n").split("\n")[1] for _ in range(60)}
    assert titles == {f"+++{name}" for name in forms.tunes}


def test_a_subtitle_of_brackets_is_read_in_time():
    rules = FormRules(Forms({"清": [form("2。", "-")]}, {}), Vocabulary("\n+。（）清"))
    with bounded():
        assert FormWriter(rules, "+++清" + "（" * 100_000 + "）").prefix
        with pytest.raises(UserError, match="not closed"):
            FormWriter(rules, "+++清" + "（" * 100_000)
