import json

import pytest

from songci.forms import templates as forms
from songci.forms.poems import read_clauses, read_poems, tune_of
from songci.forms.templates import Forms, Template, check, drawn

SHORT = Template(((3, "。"), (2, "，"), (3, "。")), 5, "aa")
LONG = Template(((3, "。"), (2, "，"), (4, "。"), (1, "。")), 3, "aa-", frozenset({(2, 1)}), frozenset({0}))
FORMS = Forms({"小令": [SHORT, LONG]}, {"东": 0, "红": 0, "风": 0, "月": 1, "雪": 1})


def read(text: str) -> list[tuple[str, str]]:
    return list(read_poems(text.splitlines(keepends=True)))


def test_poems_are_read_by_their_title_lines():
    text = "preface\n+++小令（春）\n一东。二三，\n四五风。\n\n+++长调(1)\n六\n+++空\n"
    assert read(text) == [("小令", "一东。二三，\n四五风。\n\n"), ("长调", "六\n"), ("空", "")]
    assert tune_of("+++ 小令（春）") == tune_of("小令") == "小令"


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


DAMAGED = [
    "",
    "[]",
    '{"tunes": 1}',
    "\ud800",
    "[" * 100_000,
    json.dumps({"tunes": {"a": [{"form": "3x", "support": 1, "scheme": ""}]}, "rhyme_classes": []}),
    json.dumps({"tunes": {"a": [{"form": "3。", "support": 1, "scheme": "ab"}]}, "rhyme_classes": []}),
    json.dumps({"tunes": {"a": [{"form": "3。", "support": "1", "scheme": "a"}]}, "rhyme_classes": []}),
    json.dumps({"tunes": {}, "rhyme_classes": 3}),
    json.dumps({"tunes": {"a": "b"}, "rhyme_classes": []}),
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_said(assert_user_error, tmp_path, content):
    (tmp_path / "forms.json").write_text(content, encoding="utf-8", errors="surrogatepass")
    assert_user_error(forms, "--data_root", tmp_path, "--show", "小令", words=["damaged", "prepare.py"])


def test_what_a_user_can_get_wrong(assert_user_error, tmp_path):
    assert_user_error(forms, "--data_root", tmp_path, "--show", "小令", words=["no forms.json", "prepare.py"])
    FORMS.save(tmp_path / "forms.json")
    root = ["--data_root", tmp_path]
    assert_user_error(forms, *root, "--show", "小今", words=["小今", "near names: 小令"])
    assert_user_error(forms, *root, "--show", "", words=["no form is known of the tune ''"])
    assert_user_error(forms, *root, "--check", tmp_path / "none.txt", words=["none.txt"])
    (tmp_path / "plain.txt").write_text("一二东。", encoding="utf-8")
    assert_user_error(forms, *root, "--check", tmp_path / "plain.txt", words=["+++清平乐"])
    assert_user_error(forms, *root, words=["required"])


def test_a_template_is_drawn_with_its_rhymes_pauses_and_stanzas(call, tmp_path):
    assert drawn(LONG) == "□□□。 a\n\n□□，□（、）□□□。 a\n□。\n"
    FORMS.save(tmp_path / "forms.json")
    status, out, _ = call(forms, "--data_root", tmp_path, "--show", "+++小令（春）")
    assert status == 0 and "2 templates in 8 poems" in out and drawn(SHORT) in out and drawn(LONG) in out


def test_departures_are_marked_in_the_text(call, tmp_path):
    FORMS.save(tmp_path / "forms.json")
    (tmp_path / "poems.txt").write_text(
        "+++小令\n一二东。三四，五六月。\n\n+++小令\n一二东。三四五，六。\n\n+++小令\n一二东。\n\n+++谁\n一。\n",
        encoding="utf-8",
    )
    status, out, _ = call(forms, "--data_root", tmp_path, "--check", tmp_path / "poems.txt")
    first, second, third, fourth = out.split("\n\n")
    assert status == 0 and "in form, 1 character out of rhyme" in first and "三四，五六月。  a  <- 月 does not" in first
    assert "out of form" in second and "〔三四五，〕  <- 3， where the form has 2，" in second
    assert "〔〕  <- the end where the form has 2，" in third
    assert "no form is known" in fourth


def test_agreement_counts_neighbouring_rhymes_of_poems_in_form():
    poems = [("小令", f"一二{a}。三四，五六{b}。") for a, b in ("东红", "东月", "东东", "东六")]
    poems += [("小令", "一东。三四，五六风。"), ("谁", "一。")]
    assert forms.agreement(poems, FORMS) == {"小令": (1, 3)}  # the same character twice is no pair
    report = forms.rhymes_report(FORMS, "x\n" * 300 + "+++小令\n一二东。三四，五六红。\n")
    assert "| 小令 | 1 | 1 | 100.0% |" in report and "东红风" in report
