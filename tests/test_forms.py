"""What a ci is: reading, learning, checking, and holding sampling to the forms."""

import json
import random
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import RHYMES, prepared, tuned_text
from hostile import ANY_TEXT, NEAR_TEXT, POEMS, bounded, case, fuzz
from hypothesis import example, given, settings
from hypothesis import strategies as st

from songci.cli import UserError
from songci.corpus.spelling import learn_spelling
from songci.corpus.vocabulary import Vocabulary
from songci.forms import __main__ as forms_command
from songci.forms import stanzas
from songci.forms.check import agreement, check, rhyme_pairs
from songci.forms.groups import bound
from songci.forms.learn import Poem, by_rhyme, learn, refrains, rhyme_scheme, rhyme_tones
from songci.forms.names import misprints
from songci.forms.poems import pattern, read_clauses, read_poems, split_title, tune_of
from songci.forms.prompt import as_in_corpus
from songci.forms.refrains import Refrain, learn_refrains
from songci.forms.rhymes import attach, class_tones, communities
from songci.forms.rules import FormRules
from songci.forms.scores import form_scores
from songci.forms.templates import Forms, Template
from songci.forms.tones import by_form, estimate, fixed, kept, learn_tones, tone_of
from songci.forms.writer import FormWriter
from songci.text import read_text


def form(clauses: str, scheme: str, support: int = 2, **more) -> Template:
    """form("2，3。", "a") has two clauses; the scheme is of those with 。, or of all."""
    pairs, letters = tuple((int(n), mark) for n, mark in re.findall("(.)(.)", clauses)), iter(scheme)
    if len(scheme) < len(pairs):
        scheme = "".join(next(letters) if mark == "。" else "-" for _, mark in pairs)
    return Template(pairs, support, scheme, **more)


SHORT = form("3。2，3。", "aa", 5)
LONG = form("3。2，4。1。", "aa-", 3, pauses=frozenset({(2, 1)}), breaks=frozenset({0}))
COUPLET = form("2。2。", "aa")
OF_CLASS = {**dict.fromkeys("东红风", (0,)), **dict.fromkeys("月雪", (1,)), "重": (0, 1)}
FORMS = Forms({"小令": [SHORT, LONG]}, OF_CLASS, {"东": 0.9, "月": 0.1})
OF_KNOWN = "".join(sorted({*"+\n。，、·小令酹江月念奴娇清平乐春东红风雪一二三四五六七八"}))
KNOWN = Vocabulary(OF_KNOWN, {"酹江月": "念奴娇", "重": "轻"}, learn_spelling(OF_KNOWN))


def poems_of(text: str) -> list[tuple[str, str]]:
    return list(read_poems(text))


@pytest.fixture
def root(tmp_path):
    """A data folder with FORMS."""
    FORMS.save(prepared(tmp_path / "data", KNOWN.chars * 3) / "forms.json")
    return tmp_path / "data"


def test_poems_are_read_by_their_title_lines():
    text = "preface\n+++小令（春）\n一东。二三，\n四五风。\n\n+++长调(1)\n六\n+++空\n"
    assert poems_of(text) == [("小令", "一东。二三，\n四五风。\n\n"), ("长调", "六\n"), ("空", "")]
    assert tune_of("+++ 小令（春）") == tune_of("小令") == "小令"


@pytest.mark.parametrize("subject", [f"{mark}赤壁怀古" for mark in ["·", "•", "・", "/", "|", " ", "\u3000", " · "]])
def test_a_title_is_a_tune_and_its_subject_however_they_are_set_apart(subject):
    for mark in ("", "+++", "＋＋＋", "+++ "):
        for end in ("", "\n"):
            assert split_title(f"{mark}念奴娇{subject}{end}") == ("念奴娇", "赤壁怀古")
    body = "\n一二东。三四红。\n\n"
    titled, plain = (learn(poems_of(f"+++念奴娇{body}+++念奴娇{title}{body}")) for title in (subject, ""))
    assert titled == plain and titled.tunes["念奴娇"][0].support == 2


@pytest.mark.parametrize(
    "title", ["念奴娇（赤壁怀古）", "念奴娇(赤壁怀古)", "念奴娇【赤壁怀古】", "念奴娇·（赤壁怀古）"]
)
def test_a_subject_may_stand_in_brackets(title):
    assert split_title(f"+++{title}\n") == ("念奴娇", "赤壁怀古")


@pytest.mark.parametrize(
    ("given", "read", "told"),
    [
        ("+++酹江月\n春", "+++念奴娇\n春", "酹江月 is another name of 念奴娇"),
        ("\n+++酹江月（春）", "\n+++念奴娇", "subject '春'"),
        ("＋＋＋ 清平樂", "+++清平乐", "樂 → 乐"),
        ("+++清平乐·赤壁", "+++清平乐", "subject '赤壁'"),
        ("+++清平乐 其二\n東？風；春.", "+++清平乐\n东。风，春。", "？ → 。"),
        ("+++酹江月·春", "+++念奴娇·春", "酹江月 is another name of 念奴娇"),
        ("酹江月", "酹江月", ""),
        ("+++念奴娇\n春，東西", "+++念奴娇\n春，东西", "東 → 东"),
        ("+++念奴娇\n萅風", "+++念奴娇\n春风", "萅 → 春, 風 → 风"),
        ("+++酹江月亮", "+++酹江月亮", ""),
        ("+++清", "+++清", ""),
        ("\n", "\n", ""),
    ],
)
def test_what_a_user_writes_is_put_into_the_corpus_own_names_characters_and_marks(capsys, given, read, told):
    assert as_in_corpus(given, KNOWN) == read
    err = capsys.readouterr().err
    assert told in err and bool(err) == bool(told)


def test_a_name_that_differs_by_a_character_from_a_common_tunes_and_has_its_forms_is_a_misprint():
    moon, other = "一二东。三四，五六红。", "一二三四。五六，七八，一二三四。"
    poems = [("人月圆", moon)] * 12 + [("清平乐", other)] * 12
    rare = [
        ("人月园", moon),
        ("人月方", other),
        ("升平乐", moon),
        ("月圆", moon),
        ("人圆", moon),
        *[("人花圆", moon)] * 5,
    ]
    assert misprints(poems + rare) == {"人月园": "人月圆"}


# Clauses by length, a blank ends a sentence; | the stanza, as word-spectra (词谱) of the Qing have it
KNOWN_STANZAS = """7 7 7|77 7 · 4 5 7 6|6 6 66 · 7 7 5 5|5 5 5 5 · 7 7 77|33 7 77 · 454 76 445 46|645 76 445 46 ·
55 65 665 55|333 65 665 55 · 47 74 77 83|33 33 54 77 83 · 47 4 5|45 3 4 5 · 5 74 76 7 78 33|7 74 76 7 78 33 ·
444 5444 447 354|6 8 5444 447 354 · 67 444 444 546|6 7 444 444 544 · 7 5 66|444 66 · 4 44 444|6 7 444 ·
7 5 65|33 3 444 · 7 7 7 2 7|7 2 7 7 2 7 · 76 446 4 54 47|654 446 4 54 45 · 35 5 77 333|8 8 33 77 333 ·
6 6 56 2 2 6 · 33 7 77 · 1 7 3 5"""


@pytest.mark.parametrize("tune", re.split(r"\s*·\s*", KNOWN_STANZAS))
def test_stanzas_of_well_known_tunes_are_found(tune):
    first, *second = tune.split("|")
    sentences = (first + " " + " ".join(second)).split()
    marked = [zip(sentence, "，，，，，，。"[-len(sentence) :], strict=True) for sentence in sentences]
    clauses = tuple((int(n), mark) for sentence in marked for n, mark in sentence)
    assert stanzas.breaks(Counter({clauses: 5})) == {clauses: len(first.replace(" ", "")) if second else None}


def test_a_rarer_form_is_divided_as_its_tune():
    body, variant, double = (
        "一二三四五六七。" * 6,
        "一二三四五六七。" * 3 + "一二三四五六七，一二三四五六七。三四五六七。",
        "一二三四五六七。" * 12,
    )
    poems = stanzas.in_stanzas([("令", body)] * 3 + [("令", variant), ("令", double), ("短", "一二三。")])
    assert [text.index("\n") for _, text in poems[:5]] == [24, 24, 24, 24, 48] and poems[5] == ("短", "一二三。")
    assert all(text.replace("\n", "") in (body, variant, double, "一二三。") for _, text in poems)
    even, less = "一二三四五六" * 3 + "。", "一二三四五六" * 2 + "一二三四五。"
    poems = stanzas.in_stanzas([("令", even * 2)] * 2 + [("令", less + even)])  # which alone would be too short
    assert [text.index("\n") for _, text in poems] == [19, 19, 18]


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


@pytest.mark.parametrize(
    ("rhymes", "fits"), [("东重红", "yyy"), ("雪重月", "yyy"), ("月雪东", "yyn"), ("重红月", "yyn")]
)
def test_a_character_of_two_classes_rhymes_with_both(rhymes, fits):
    three = Forms({"小令": [form("2。" * 3, "aaa", 9)]}, OF_CLASS)
    result = check("小令", "".join(f"一{char}。" for char in rhymes), three)
    assert ["ny"[fit] for _, _, fit in result.rhymes["a"]] == [*fits]
    assert rhyme_pairs(result, three) == [fits[i : i + 2] == "yy" for i in (0, 1)]


def test_the_first_departure_from_the_nearest_template_is_told():
    result = check("小令", "一二东。三四，五六七，风。", FORMS)
    assert not result.form and result.template is SHORT and result.departure == (3, "1。", "the end")
    assert check("小令", "一二东。三四，五六七风。", FORMS).departure == (3, "the end", "1。")
    assert check("小令", "一二东。三四，五六风。七。", FORMS).departure == (3, "1。", "the end")
    assert check("小令", "一二东。三四，五六风", FORMS).departure == (2, "3", "3。")
    unknown = check("无名", "一二东。", FORMS)
    assert unknown.template is None and not unknown.form


def test_of_templates_with_the_same_clauses_the_one_whose_tones_a_poem_keeps_best_is_taken():
    """In a statistic of forms they are one."""
    level = {**dict.fromkeys("一三", 0.99), **dict.fromkeys("二四", 0.01), "五": 0.5}
    couplets = [form("2，2。", "-", 9, tones="平平仄仄"), form("2，2。", "-", 6, tones="仄仄平平"), form("4。", "-", 5)]
    forms = Forms({"小令": couplets}, {}, level)
    for body, number, wrong in (
        ("一三，二四。", 1, 0),
        ("二四，一三。", 2, 0),
        ("二四，一四。", 2, 1),
        ("五五，五五。", 1, 0),
    ):
        result = check("小令", body, forms)
        assert (result.number, len(result.wrong)) == (number, wrong)
    scores = form_scores(
        [("小令", body) for body in ("二四，一三。", "二四，一三。", "二四，一三。", "一二三四。")], forms
    )
    assert scores["in the tune's commonest form"] == scores["in form"] * 3 / 4
    assert scores["distance of the forms from the training poems'"] == 0


def test_marks_of_few_poems_beside_hundreds_and_rhymes_that_two_or_three_show_prove_nothing():
    """As of 。 for ， in the second stanza of 卜算子, where a few poems rhyme."""
    usual, classes = form("2，2。2，2。", "-a-a", 184), {"东": (0,), "红": (0,), "月": (1,)}
    for support, number in ((3, 1), (9, 2)):
        rare = form("2，2。2。2。", "-aaa", support)
        result = check("小令", "一二，三东。四五。六红。", Forms({"小令": [usual, rare]}, classes))
        assert (result.number, result.punctuated, result.rhyme) == (number, number == 1, number == 1)
    for supports, convicted in (([3], False), ([4], True), ([2, 2], True)):
        known = [
            form(clauses, "-a-a", n) for clauses, n in zip(("2，2。2，2。", "1，3。2，2。"), supports, strict=False)
        ]
        result = check("小令", "一二，三东。四五，六月。", Forms({"小令": known}, classes))
        assert result.rhyme == (not convicted) and result.doubtful == (set() if convicted else {3})
        [_, (_, _, last)] = forms_command.rhymes(result)
        assert last == (not convicted)
        assert ("too few poems rhyme to tell" in forms_command.verdict(result)) == (not convicted)


def test_a_poem_with_level_rhymes_for_oblique_ones_is_a_variant_and_that_is_said_in_one_line():
    """As the 满江红 of 姜夔."""
    level = {**dict.fromkeys("一东红风", 0.99), **dict.fromkeys("二月雪歇", 0.01)}
    known = form("2。2。2。", "aaa", 9, tones="平仄平仄平仄")
    forms = Forms({"小令": [known]}, {**dict.fromkeys("东红风", (0,)), **dict.fromkeys("月雪歇", (1,))}, level)
    variant, mixed = check("小令", "二东。二红。一风。", forms), check("小令", "二东。二雪。一歇。", forms)
    assert (variant.turned, variant.tones, variant.rhyme) == ("平", [], True)
    assert "level rhymes for oblique ones" in forms_command.verdict(variant)
    assert (mixed.turned, len(mixed.wrong), mixed.rhyme) == ("", 3, False)
    unrhymed = replace(known, clauses=form("2。2。2。2。", "----").clauses, scheme="aaaa", tones=known.tones + "平仄")
    result = check(
        "小令", "二东。二月。二红。一风。", replace(forms, tunes={"小令": [unrhymed]})
    )  # where the form may rhyme
    assert (result.turned, result.doubtful, result.rhyme) == ("平", {1}, True)


# Poems of the Song as modern editions print them, the clauses of their tunes as the corpus does, and their rhymes
XIN_QIJI = (
    "甚矣吾衰矣。怅平生，交游零落，只今余几。白发空垂三千丈，一笑人间万事。问何物、能令公喜。"
    "我见青山多妩媚，料青山，见我应如是。情与貌，略相似。一尊搔首东窗里。想渊明，停云诗就，此时风味。"
    "江左沉酣求名者，岂识浊醪妙理。回首叫、云飞风起。不恨古人吾不见，恨古人，不见吾狂耳。知我者，二三子。"
)
YUE_FEI = (
    "怒发冲冠，凭栏处，潇潇雨歇，抬望眼，仰天长啸，壮怀激烈，三十功名尘与土，八千里路云和月，"
    "莫等闲，白了少年头，空悲切，靖康耻，犹未雪，臣子恨，何时灭，驾长车，踏破贺兰山缺，"
    "壮志饥餐胡虏肉，笑谈渴饮匈奴血，待从头，收拾旧山河，朝天阙，"
)
LU_YOU = (
    "红酥手，黄縢酒，满城春色宫墙柳。东风恶，欢情薄。一怀愁绪，几年离索。错！错！错！"
    "春如旧，人空瘦，泪痕红浥鲛绡透。桃花落，闲池阁。山盟虽在，锦书难托。莫、莫、莫！"
)
JIANG_KUI = (
    "淮左名都，竹西佳处，解鞍少驻初程。过春风十里，尽荠麦青青。自胡马窥江去后，废池乔木，犹厌言兵。"
    "渐黄昏，清角吹寒，都在空城。杜郎俊赏，算而今，重到须惊。纵豆蔻词工，青楼梦好，难赋深情。"
    "二十四桥仍在，波心荡、冷月无声。念桥边红药，年年知为谁生。"
)
EDITIONS = {
    "贺新郎": ("5。7，4。7，6。7。7，8。3，3。7。7，4。7，6。7。7，8。3，3。", "a" * 12, XIN_QIJI),
    "满江红": ("4，7。7，4。7，7。8，3。3，3。3，3。5，4。7，7。8，3。", "a" * 9, YUE_FEI),
    "钗头凤": ("3。3。7。3。3。4，4。3。3。3。7。3。3。4，4。3。", "aaabbbbaaabbbb", LU_YOU),
    "扬州慢": ("4，4，6。5，5。7，4，4。7，4。4，7。5，4，4。6，7。5，6。", "a" * 8, JIANG_KUI),
}


def edition(tune: str) -> tuple[Forms, str]:
    """The forms of a tune of EDITIONS, its poem's rhymes in the classes that its scheme asks for; and the poem."""
    outline, scheme, poem = EDITIONS[tune]
    template = form(outline, scheme, 9)
    chars = re.sub("[，。、！]", "", poem)
    rhyming = [(chars[end - 1], letter) for end, letter in zip(template.ends, template.scheme, strict=True)]
    return Forms({tune: [template]}, {char: ("ab".index(letter),) for char, letter in rhyming if letter != "-"}), poem


@pytest.mark.parametrize("tune", EDITIONS)
def test_a_poem_that_fills_the_sentences_is_in_form_cut_otherwise_and_its_rhymes_and_tones_are_checked(tune):
    forms, poem = edition(tune)
    [template] = forms.tunes[tune]
    result = check(tune, poem, forms)
    assert result.form and result.cut and result.rhyme and "in form, cut otherwise" in forms_command.verdict(result)
    assert [len(clause.text) for clause in result.clauses] == list(template.lengths)
    assert form_scores([(tune, poem)], forms)["in form, but cut otherwise"] == 1
    *_, end = [match.start() for match in re.finditer("[^，。、！]", poem)]
    unrhymed = check(tune, f"{poem[:end]}甲{poem[end + 1 :]}", forms)
    assert [i for group in unrhymed.rhymes.values() for i, _, fits in group if not fits] == [len(template.lengths) - 1]
    size = template.ends[-1]
    toned = Forms({tune: [replace(template, tones="中" * (size - 2) + "平中")]}, forms.classes, {poem[end - 1]: 0.01})
    *_, before = [match.start() for match in re.finditer("[^，。、！]", poem[:end])]
    toned.level[poem[before]] = 0.01
    assert check(tune, poem, toned).wrong == [(len(template.lengths) - 1, template.lengths[-1] - 2, "平")]


def test_clauses_of_as_many_characters_that_run_over_the_end_of_a_sentence_are_out_of_form():
    forms = Forms({"小令": [form("2，3。4。", "aa", 9)]}, {"东": (0,), "红": (0,)})
    for body, fits in {
        "一，二三四东。五六七红。": True,
        "一二三四东，五六，七红。": True,
        "一二三四，东五六七红。": False,
        "一二，三四东。五六七八红。": False,
        "一二，三四东，五六七红": False,  # no mark at its end
    }.items():
        assert check("小令", body, forms).form == fits, body


@pytest.mark.parametrize("tune", EDITIONS)
def test_what_is_given_may_be_cut_otherwise_and_stays_so(tune):
    forms, poem = edition(tune)
    poem = poem.replace("！", "。")
    rules = FormRules(forms, Vocabulary("".join(sorted({*"+\n。，、", *tune, *poem}))))
    assert writer_of(rules, f"+++{tune}\n{poem}").done
    for place in (match.start() for match in re.finditer("[^，。、]", poem)):
        text = written(rules, random.Random(1), f"+++{tune}\n{poem[:place]}□{poem[place + 1 :]}")
        *_, body = text.split("\n")
        assert (body[:place], body[place + 1 :]) == (poem[:place], poem[place + 1 :])
    for end in (match.end() for match in re.finditer("[，。]", poem)):
        if len(re.sub("[，。、]", "", poem[:end])) in forms.tunes[tune][0].firm:
            *_, body = written(rules, random.Random(1), f"+++{tune}\n{poem[:end]}").split("\n")
            assert body.startswith(poem[:end]) and check(tune, body, forms).rhyme


def test_a_sentence_that_is_begun_is_cut_otherwise_at_a_pause_alone():
    """So a clause that is too short is no beginning of another one."""
    known = form("4，4。7，5。", "aa", 9, pauses=frozenset({(2, 3)}))
    rules = FormRules(Forms({"小令": [known]}, CLASSES), VOCABULARY)
    a = RHYMES[0][0]
    text = written(rules, random.Random(0), f"+++小令\n一二，三四五六七{a}。一二三，四")
    assert re.fullmatch(rf"\+\+\+小令\n一二，三四五六七{a}。一二三，四...，.....", text[:-1]) and text[-1] == "。"
    for body in (f"一二，三四五六七{a}。一二，三", "一二，三", f"一二三四五六七{a}"):
        with pytest.raises(UserError, match="fits no template of 小令: clause"):
            begun(rules, body)


def test_the_whole_form_goes_before_the_beginning_of_a_commoner_one():
    assert check("小令", "一二月。\n三四，五、六七雪。八。", FORMS).template is LONG
    longer = form("3。2，3。2。", "aa-", 9)
    assert check("小令", "一二东。三四，五六风。", Forms({"小令": [longer, SHORT]}, FORMS.classes)).template is SHORT


TUNE = '{"tunes": {"小令": [{"form": "3。", %s}]}, "rhyme_classes": []}'
BAD_SCHEME = TUNE % '"support": 2, "scheme": "ab", "tones": "", "pauses": [], "breaks": [], "repeats": []'
EARLIER = TUNE % '"support": 2, "scheme": "a", "pauses": [], "breaks": [], "repeats": []'
ONE_CLASS_EACH = '{"tunes": {}, "rhyme_classes": ["东"], "level": {}}'


@pytest.mark.parametrize(
    "content", ["", "[]", '{"tunes": 1}', "\ud800", TUNE % '"scheme": "a"', BAD_SCHEME, EARLIER, ONE_CLASS_EACH]
)
def test_a_damaged_file_or_one_of_an_earlier_version_is_said(assert_user_error, file, content):
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


def test_forms_are_saved_and_loaded(root):
    assert Forms.load(root) == FORMS
    more = replace(SHORT, joint={(0,): 4, (-1,): 1}, refrains=(Refrain(2, 0, 3, True, 5),))
    more_forms = Forms({"小令": [more]}, OF_CLASS | {"节": (1, 0)}, FORMS.level)
    more_forms.save(root / "forms.json")
    assert Forms.load(root) == more_forms and Forms.load(root).tunes["小令"][0].rhymes == {"a": {0: 4}}


def test_a_tune_is_shown_as_a_template_with_a_poem_under_it(call, tmp_path):
    poems = "+++小令（春）\n一二东。\n三四，五、六红。\n\n" * 9 + "+++小令\n一二东，三红。\n\n" * 2
    root = prepared(tmp_path / "data", poems + "+++大令\n一东。\n\n" * 9 + poems)
    forms = Forms.load(root)
    [template, other] = forms.tunes["小令"]
    template = replace(template, tones="平仄中平仄中平平", scheme="a-a")
    Forms({"小令": [template, other], "大令": forms.tunes["大令"]}, forms.classes).save(root / "forms.json")
    status, out, _ = call(forms_command, "--data_root", root, "--show", "+++小令（春）")
    first, second = out.split("template 2, ")
    assert status == 0 and first.startswith("小令: 2 templates in ") and "8 characters:" in first
    assert first.endswith("○ ● ◎ 。 a\n一二东。\n\n○ ● ，◎ 、○ ○ 。 a\n三四，五、六红。\n\n")
    assert "□ □ □ ，□ □ 。\n一二东，三红。\n" in second
    status, out, _ = call(forms_command, "--data_root", root, "--show", "小令", "--format", "json")
    [one, _] = json.loads(out)
    assert one.pop("support") == template.support
    assert one.pop("clauses") == [[3, "。"], [2, "，"], [3, "。"]] and one.pop("stanzas") == [1, 2]
    assert one == {"tones": "平仄中平仄中平平", "rhyme": "a-a"}


def test_departures_are_marked_in_the_text(call, root, file):
    tonal = Forms(
        {"小令": [replace(SHORT, tones="中中中仄平中中中"), LONG]}, FORMS.classes, {"三": 0.99, "四": 0.01, "东": 0.99}
    )
    tonal.save(root / "forms.json")
    bodies = [
        "一二东。三四，五六月。",
        "一二东，三八，五六風？",
        "一二东。三四五，六。",
        "一二东。",
        "一二东。四三，五六龘。",
        "一二东。四三，五六一。",
    ]
    text = "".join(f"+++小令\n{body}\n\n" for body in bodies) + "+++谁\n一。\n"
    status, out, err = call(forms_command, "--data_root", root, "--check", file("poems.txt", text))
    first, second, third, fourth, fifth, sixth, last = out.split("\n\n")
    assert status == 0 and "風 → 风" in err
    assert "in form, 1 character out of rhyme, 2 characters out of tone; template 1 of 5 poems" in first
    assert "三四，五六月。  a  <- 三 where 仄 is due; 四 where 平 is due; 月 does not rhyme" in first
    assert "in form, punctuated otherwise, every rhyme in its class, 1 character out of tone" in second
    assert "out of form" in third and "〔三四五，〕六。  <- 3， where the form has 2，" in third
    assert "〔〕  <- the end where the form has 2，" in fourth
    assert "every tone kept" in fifth and "龘 is not in the corpus" in fifth
    assert "every rhyme in its class but for 1 that the corpus never rhymes" in sixth
    assert "<- 一 never rhymes in the corpus" in sixth
    assert "no form is known" in last


def test_agreement_counts_neighbouring_rhymes_of_poems_in_form():
    poems = [("小令", f"一二{a}。三四，五六{b}。") for a, b in ("东红", "东月", "东东", "东六")]
    poems += [("小令", "一东。三四，五六风。"), ("谁", "一。")]
    assert agreement(poems, FORMS) == {"小令": (1, 3)}  # the same character twice is no pair
    report = forms_command.rhymes_report(FORMS, "+++小令\n一二东。三四，五六红。\n")
    assert "| 小令 | 1 | 1 | 100.0% |" in report and "东红风" in report


def mark_poems(path, forms) -> None:
    for tune, body in poems_of(read_text(path)):
        forms_command.marked(tune, body, forms, KNOWN)


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
    for template in forms.tunes["浣溪沙"]:
        assert sum(template.joint.values()) == template.support and all(-1 not in own for own in template.joint)
        assert all(sum(own.values()) == template.support for own in template.rhymes.values())
    assert found == {
        "清平乐": [("4。5。3，4。", "aa-a", set(), {(1, 2)})],
        "如梦令": [("3。2。2。3。", "aaaa", {2}, set())],
        "浣溪沙": [("4，3。3。5。4。", "-aabb", set(), set())],
    }
    classes = {frozenset(c for c in forms.classes if forms.classes[c] == k) for k in forms.classes.values()}
    assert classes == {frozenset(group) for group in RHYMES}


def test_a_pattern_of_a_single_poem_is_no_form_unless_the_tune_has_no_other():
    once, twice = "+++孤\n一二东。\n\n", "+++双\n一二，三东。\n\n" * 2 + "+++双\n一二东。\n\n"
    assert {tune: [t.support for t in known] for tune, known in learn(poems_of(once + twice)).tunes.items()} == {
        "孤": [1],
        "双": [2],
    }


@pytest.mark.parametrize(
    "text", ["", "no titles at all.\n" * 50, "+++\n" * 9, "+++令\n" * 5, "+++令\n一东。三四\n" * 2]
)
def test_a_text_without_poems_or_without_marks_at_their_ends_has_no_forms(text):
    assert learn(poems_of(text)) == Forms()


def test_the_rhymes_of_few_poems_tell_their_tone():
    level, clauses = {"东": 0.99, "红": 0.99, "月": 0.01}, SHORT.clauses
    assert rhyme_tones(clauses, "a-a", ["东二红", "红二东"], level) == "中中平中中中中平"
    for endings in (["东二红"], ["东二月", "红二月"]):
        assert rhyme_tones(clauses, "a-a", endings, level) == "中" * 8
    assert rhyme_tones(clauses, "a--", ["东二红", "红二东", "东二月"], level) == "中中平中中中中中"
    assert rhyme_tones(clauses, "aa-", ["东红二", "红东二"], level) == "中中平中平中中中"
    assert rhyme_tones(clauses, "a-a", ["东二红", "红二东"], {}) == ""


def test_stanza_lines_that_most_poems_have_are_learned_and_marks_of_any_width():
    with_lines, without = "+++令\n一二东.\n三四,五红.\n\n", "+++令\n一二东。三四，五红。\n\n"
    for text, breaks in ((with_lines * 3, {0}), (with_lines + without * 2, set())):
        [template] = learn(poems_of(text)).tunes["令"]
        assert template.clauses == ((3, "。"), (2, "，"), (2, "。")) and template.breaks == breaks


def test_a_refrain_is_what_a_good_part_of_the_poems_repeat():
    assert refrains(SHORT.clauses, ["东红东", *["东二红"] * 4]) == {2}
    assert refrains(SHORT.clauses, ["东红东", *["东二红"] * 5]) == frozenset()
    assert refrains(SHORT.clauses, ["东红红"]) == frozenset()  # it is the clauses with 。 that count


@pytest.mark.parametrize(
    ("poems", "found"),
    [
        ([["一二三", "二三", "四五"]] * 3, [(1, 0, 2, True, 3)]),  # the end, as 忆秦娥's 秦楼月
        ([["一二三", "一二", "四五"]] * 3, [(1, 0, 2, False, 3)]),
        ([["一二", "三四", "一二"], ["五六", "七八", "五六"], ["三四", "一二", "三四"]], [(2, 0, 2, True, 3)]),
        ([["一", "一", "一"], ["二", "二", "二"], ["三", "三", "三"]], [(1, 0, 1, True, 3), (2, 1, 1, True, 3)]),
        ([["一二", "三四", "五六"]] * 17 + [["一二", "一二", "五六"]] * 3, [(1, 0, 2, True, 3)]),
        ([["一二", "三四", "五六"]] * 60 + [["一二", "一二", "五六"]] * 3, []),  # chance
        ([["一二", "一二", "五六"]] * 2, []),
        ([["一二", "三二", "五六"]] * 9, []),  # a rhyme that is the same
    ],
)
def test_refrains_are_clauses_that_repeat_another_one_or_its_end_or_beginning(poems, found):
    assert [tuple(refrain) for refrain in learn_refrains(poems)] == found


def test_few_poems_prove_little_for_a_scheme():
    classes = {"东": 0, "红": 0, "月": 1, "雪": 1, "花": 2}

    def scheme(marks, endings):
        return rhyme_scheme(tuple((2, mark) for mark in marks), endings, classes)

    assert scheme("。。。。", ["东红月雪"] * 2) == "aabb"
    assert scheme("。。", ["东红"]) == "aa"
    assert scheme("。。", ["东红", "东月"]) == scheme("。。", ["东红", "东红", "东月"]) == "--"
    assert scheme("。。。。", ["东月红雪", "月东雪红"] * 3) == "abab"
    assert scheme("。。。", ["东月花", "月花东", "花东月"]) == "---"
    assert scheme("，。，。", ["东红月红"] * 9) == "aa-a"
    assert scheme("，。，。", ["东红月红"] * 2) == "-a-a"  # a clause with ， has to show it more often


@pytest.mark.parametrize(
    ("others", "parts"),
    [
        ("月" * 12, {20: "aa-a", 12: "-a-a"}),
        ("月" * 12 + "花花", {22: "aa-a", 12: "-a-a"}),
        ("花" * 12 + "月" * 12, {44: "-a-a"}),
    ],
)
def test_poems_are_divided_by_whether_a_first_clause_rhymes_if_it_does_where_its_tone_allows(others, parts):
    """花 is in tone, but of no class that rhymes: a few are bad rhymes; many, and that others rhyme is chance."""
    classes, level = {"东": 0, "红": 0, "风": 0, "月": 1, "花": 2}, {**dict.fromkeys("东红风花", 0.99), "月": 0.01}
    ends = [f"{first}红月风" for first in "东" * 20 + others]
    clauses = tuple((1, mark) for mark in "，。，。")
    found = by_rhyme(clauses, [Poem(end, end, frozenset(), frozenset()) for end in ends], classes, level)
    assert {len(part): rhyme_scheme(clauses, [poem.ends for poem in part], classes) for part in found} == parts


def test_the_classes_repeat_and_do_not_depend_on_the_order():
    rng = random.Random(0)
    pairs = [(a, b) for group in RHYMES for a in group for b in group if a != b and rng.random() < 0.5]
    first = communities(Counter(pairs), {})
    assert communities(Counter(pairs[::-1]), {}) == first == communities(Counter(b + a for a, b in pairs), {})
    assert communities(Counter({("东", "东"): 5}), {}) == {}  # a character that follows itself is no rhyme


def test_characters_of_different_tones_are_in_no_class_together():
    pairs = Counter({("东", "风"): 1, ("东", "月"): 5, ("月", "雪"): 1, ("东", "看"): 9, ("看", "月"): 9})
    level = {"东": 0.99, "风": 0.99, "月": 0.01, "雪": 0.01, "看": 0.5}
    first = communities(pairs, level)  # without tones, 看 would tie 东 and 月 together
    assert first["东"] == first["风"] != first["月"] == first["雪"] and "看" not in first


def test_a_character_is_of_every_class_with_which_it_rhymes_often():
    """Of both its tones, and of two of one tone, but not of one that its class rhymes with as often."""
    level = {**dict.fromkeys("东风中天年酒", 0.99), **dict.fromkeys("月雪", 0.01), "看": 0.5, "红": 0.98}
    first = {"东": 0, "风": 0, "中": 0, "红": 0, "天": 1, "年": 1, "月": 2, "雪": 2}
    groups = ["东风中红", "天年", "月雪"] * 30 + ["看天年", "看月雪", "看月雪", "东风酒", "天年酒", "天年酒"] * 5
    groups += [
        "东风中天年天",
        "东中红天年",
        "红月雪",
        "东月雪",
    ]  # poets cross classes; 红 has no second reading, 东 neither
    classes = attach(first, groups, level)
    assert classes["看"] == (2, 1) and classes["酒"] == (1, 0)  # the commonest first
    assert all(classes[char] == (0,) for char in "东中红") and classes["天"] == (1,)
    assert class_tones(classes, level) == ["平", "平", "仄"]


TONAL = {"平": [chr(0x4E00 + i) for i in range(0, 300, 2)], "仄": [chr(0x4E00 + i) for i in range(1, 300, 2)]}


def tonal_poems(count: int, tunes: int = 8, seed: int = 0) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Poems of characters with tones, and the tones of the places of each tune; one in fifty is wrong."""
    rng = random.Random(seed)
    places = {f"令{i}": "".join(rng.choices("平仄中", k=20 + i)) for i in range(tunes)}
    poems = []
    for _ in range(count):
        tune = rng.choice(sorted(places))
        right = [rng.choice("平仄") if due == "中" else due for due in places[tune]]
        tones = [rng.choice("平仄") if rng.random() < 0.02 else tone for tone in right]
        poems.append((tune, "".join(rng.choice(TONAL[tone]) for tone in tones)))
    return poems, places


def test_two_classes_of_characters_and_the_tones_of_places_come_out_of_where_they_stand():
    poems, places = tonal_poems(1500)
    level, tones = learn_tones(poems)
    same = [(tone_of(char, level) == "平") == (char in TONAL["平"]) for char in level]
    assert sum(same) / len(same) in (0, 1)  # which class is called level is told by ten characters, none of them here
    if not same[0]:
        tones = {form: [of_form.translate(str.maketrans("平仄", "仄平"))] for form, [of_form] in tones.items()}
    agree = [
        due == found for tune, due in places.items() for found, due in zip(*tones[tune, len(due)], due, strict=True)
    ]
    assert sum(agree) > 0.95 * len(agree)


def test_the_poems_of_a_form_are_divided_into_variants_by_their_tones():
    """As regulated verse, which may begin either way: but for three places, the one is the other turned round."""
    rng = random.Random(1)
    turned, turn = str.maketrans("平仄", "仄平"), {}
    poems, places = [], {f"令{i}": "".join(rng.choices("平仄", k=20 + i)) for i in range(4)}
    for tune, due in places.items():
        turn[tune] = {due, due[:3] + due[3:].translate(turned)}
        for _ in range(200):
            tones = [rng.choice("平仄") if rng.random() < 0.02 else tone for tone in rng.choice(sorted(turn[tune]))]
            poems.append((tune, "".join(rng.choice(TONAL[tone]) for tone in tones)))
    rng.shuffle(poems)
    level, tones = learn_tones(poems)
    if tone_of(TONAL["仄"][0], level) == "平":
        tones = {form: [variant.translate(turned) for variant in variants] for form, variants in tones.items()}
    assert {tune: set(variants) for (tune, _), variants in tones.items()} == turn


def test_the_class_of_the_flowers_is_called_level():
    poems, _ = tonal_poems(1500)
    for of_flowers in "平仄":
        named = str.maketrans(dict(zip(TONAL[of_flowers], "人风花天春山云年时香", strict=False)))
        level = estimate(by_form((tune, text.translate(named)) for tune, text in poems).values())
        assert tone_of("花", level) == "平" and tone_of(TONAL[of_flowers][20], level) == "平"


@pytest.mark.parametrize("count", [0, 1, 60, 1500])
def test_no_tones_are_told_of_few_poems_or_of_characters_that_stand_anywhere(count):
    rng = random.Random(1)
    poems = [(tune, "".join(rng.sample(text, len(text)))) for tune, text in tonal_poems(count)[0]]
    assert learn_tones(poems) == ({}, {})


def test_classes_that_any_order_of_the_characters_keeps_are_no_tones():
    """Such as those of two subjects, each with tunes of its own."""
    rng = random.Random(1)
    poems = [(tune, "".join(rng.choices(TONAL[tune], k=20))) for tune in "平仄" * 200]
    assert learn_tones(poems) == ({}, {})


def test_a_place_is_fixed_where_nearly_all_clear_characters_agree():
    level = {"天": 0.99, "看": 0.5, "月": 0.01}
    texts = ["天天看"] * 9 + ["天月看"] * 1 + ["天月月"] * 7
    assert fixed({("令", 3): [texts]}, level) == {("令", 3): ["平中中"]}  # seven clear characters prove nothing
    assert fixed({("令", 3): [texts[:9]]}, level) == {}
    assert kept("天天月看", "平仄仄仄", level) == [True, False, True]


def test_prepare_learns_from_the_training_split_alone(tmp_path):
    """The poem that the cut goes through is left out too."""
    text = tuned_text(40) + "+++别\n一二东。三红。\n\n" * 12
    forms = Forms.load(prepared(tmp_path / "own", text))
    assert forms == learn(poems_of(text[: int(len(text) * 0.9)])[:-1])
    assert 2 <= forms.tunes["别"][0].support < 12


# --- writing ----------------------------------------------------------------------------------------------------------

CHARS = "一二三四五六七八"
CLASSES = {char: (i,) for i, group in enumerate(RHYMES) for char in group}
VOCABULARY = Vocabulary("".join(sorted({*"+\n。，、清平乐如梦令浣溪沙小大", *CHARS, *CLASSES})))
LEVELS = {**dict.fromkeys("一三五七", 0.99), **dict.fromkeys("二四六", 0.01), "八": 0.5}
LEVELS |= {char: 0.99 if i % 2 else 0.01 for i, group in enumerate(RHYMES) for char in group}


@st.composite
def templates(draw) -> Template:
    """Any template: a prefix of another, clauses of one character, singly rhyming and unrhymed clauses."""
    clauses = draw(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("。，")), min_size=1, max_size=6))
    clauses[-1] = (clauses[-1][0], "。")
    scheme = "".join(draw(st.sampled_from("aab-" if mark == "。" else "a--")) for _, mark in clauses)
    pauses = draw(st.frozensets(st.tuples(st.integers(0, 5), st.integers(1, 2)), max_size=3))
    pauses = frozenset((i, n) for i, n in pauses if i < len(clauses) and n < clauses[i][0])
    places = st.frozensets(st.integers(0, len(clauses) - 2), max_size=2) if len(clauses) > 1 else st.just(frozenset())
    size = sum(length for length, _ in clauses)
    tones = draw(st.one_of(st.just(""), st.text("平仄中", min_size=size, max_size=size)))
    return Template(tuple(clauses), 2, scheme, pauses, draw(places), draw(places), tones)


def forms_of(*templates: Template) -> Forms:
    return Forms({"小令": list({template.clauses: template for template in templates}.values())}, CLASSES, LEVELS)


MANY = st.lists(templates(), min_size=1, max_size=4).map(lambda drawn: forms_of(*drawn))
RANDOM = st.randoms(use_true_random=False)


def begun(rules: FormRules, body: str = "") -> FormWriter:
    return writer_of(rules, f"+++小令\n{body}")


def writer_of(rules: FormRules, start: str, rng: random.Random | None = None) -> FormWriter:
    return FormWriter(rules, start, (rng or random.Random(0)).random)


def allowed_chars(writer: FormWriter) -> set[str]:
    return {writer.rules.vocabulary.chars[i] for i in np.flatnonzero(writer.allowed())}


def written(rules: FormRules, rng: random.Random, start: str = "+++小令\n") -> str:
    """Goes on from start with any of the characters that are allowed, until the poem is complete."""
    writer, chars = writer_of(rules, start, rng), rules.vocabulary.chars
    start = start.partition("□")[0]
    for _ in range(500):
        if writer.done:
            return start
        allowed = sorted(allowed_chars(writer))
        assert allowed, f"dead end after {start!r}"
        start += rng.choice(allowed)
        writer.append(chars.index(start[-1]))
    raise AssertionError(f"no end: {start!r}")


def test_all_marks_and_private_characters_count_and_only_a_line_end_ends_a_line():
    """Half-width marks of Japanese and Chinese typing; characters that a font maker has put in; ends of other lines."""
    assert pattern(read_clauses("甲乙､丙．丁\ue000｡戊\u2028己\x0c，")) == ((3, "。"), (2, "。"), (2, "，"))
    assert poems_of("+++甲\n乙。\u2028+++丙\x0c丁。\x85\n+++戊\n己。\n") == [
        ("甲", "乙。\u2028+++丙\x0c丁。\x85\n"),
        ("戊", "己。\n"),
    ]


def checked(text: str, forms: Forms):
    [(tune, body)] = read_poems(text)
    return check(tune, body, forms)


@settings(deadline=None, max_examples=300)
@given(MANY, RANDOM)
def test_whatever_is_chosen_the_poem_ends_in_form_and_in_rhyme(forms, rng):
    text = written(FormRules(forms, VOCABULARY), rng, "\n")
    result = checked(text, forms)
    assert result.rhyme and not result.punctuated, text
    assert len(text.strip().split("\n")) == 2 + len(result.template.breaks)
    # Out of tone are only rhymes: of a class of the other tone, where the group's places are of both
    assert all(n == result.template.lengths[i] - 1 and result.template.rhyme_of[i] for i, n, _ in result.wrong), text


@settings(deadline=None, max_examples=200)
@given(templates().map(forms_of), RANDOM)
def test_a_poem_may_be_cut_anywhere_within_its_sentences_but_at_a_rhyme(forms, rng):
    rules = FormRules(forms, VOCABULARY)
    _, poem, *more = written(rules, rng, "\n").strip().split("\n")
    poem = poem + "".join(more)
    template, text, count = checked(f"+++小令\n{poem}", forms).template, "", 0
    for char in poem.replace("、", ""):
        count += char not in "。，"
        if char == "，" and count not in template.firm:
            char = rng.choice(["", "、", "，"])
        elif char not in "。，" and count not in template.ends:
            char += rng.choice(["", "、", "，"])
        elif char == "。" and count < template.ends[-1]:
            char = rng.choice("。，")
        text += char
    assert check("小令", text, forms).rhyme and begun(rules, text).done, (poem, text)


@settings(deadline=None, max_examples=200)
@given(templates(), st.data())
def test_every_beginning_of_a_good_poem_can_be_gone_on_from(template, data):
    """So the masks forbid no more than they must: the next character of a good poem is always allowed."""
    groups = {letter: data.draw(st.sampled_from(RHYMES)) for letter in "ab"}
    body, plain = "", replace(template, tones="")
    used = set()
    for i, ((length, mark), letter) in enumerate(zip(template.clauses, template.rhyme_of, strict=True)):
        clause = data.draw(st.lists(st.sampled_from(CHARS), min_size=length, max_size=length))
        if letter:
            clause[-1] = next((char for char in groups[letter] if char not in used), groups[letter][0])
            used.add(clause[-1])
        body += "".join(clause) + mark + "\n" * (i in template.breaks)
    forms = forms_of(plain)
    assert check("小令", body, forms).rhyme
    rules = FormRules(forms, VOCABULARY)
    for place, char in enumerate(body):
        assert char in allowed_chars(begun(rules, body[:place])), body[:place]
    assert begun(rules, body).done


def test_each_poem_has_one_template_drawn_as_poets_chose_it():
    common, rare, misprint = form("2，2。", "-", 300), form("2。2。", "aa", 100), form("1。3。", "aa", 1)
    rules, rng = FormRules(forms_of(common, rare, misprint), VOCABULARY), random.Random(0)
    drawn = Counter(writer_of(rules, "+++小令\n", rng).draft.template.support for _ in range(2000))
    assert set(drawn) == {300, 100} and abs(drawn[300] / 2000 - 0.75) < 0.03
    for body, support in {"一东。": 100, "一二，": 300, "东。": 1, "一二，三四": 300}.items():
        assert {draft.template.support for draft in rules.drafts("小令", body)} == {support}
    assert begun(rules, "东，二").draft.template is misprint  # punctuated otherwise
    for number, support in enumerate((300, 100, 1), start=1):
        chosen = FormRules(rules.forms, VOCABULARY, template=number)
        assert writer_of(chosen, "+++小令\n").draft.template.support == support


def test_characters_have_the_tone_of_their_place_unless_they_are_given_or_none_is_left():
    tonal = form("3，2。2。", "aa", tones="平仄中" + "平仄" + "仄平")
    rules = FormRules(forms_of(tonal), VOCABULARY, acrostic="二")
    assert allowed_chars(begun(rules)) == {"二"}
    rules = FormRules(forms_of(tonal), VOCABULARY)
    assert {*"一三五七八"} < allowed_chars(begun(rules)) and not {*"二四六"} & allowed_chars(begun(rules))
    assert not {*"一三"} & allowed_chars(begun(rules, "一"))  # 仄
    assert {*"一二"} < allowed_chars(begun(rules, "一二"))
    assert begun(rules, "二一一，二")  # what is given
    oblique = {char for char in CLASSES if LEVELS[char] < 0.5}
    assert allowed_chars(begun(rules, "一二一，一")) == oblique
    first = next(group for group in RHYMES if LEVELS[group[0]] < 0.5)
    # The group's second place asks for a level rhyme, which its class has not
    assert allowed_chars(begun(rules, f"一二一，一{first[0]}。二")) == set(first[1:])


def test_a_given_beginning_is_gone_on_from_in_the_tones_that_it_keeps_and_tones_that_most_keep_are_written():
    tones = [("平平仄仄", 9), ("仄仄平平", 6), ("中中中中", 3)]
    forms = Forms({"小令": [form("2，2。", "-", n, tones=own) for own, n in tones]}, CLASSES, LEVELS)
    rules = FormRules(forms, VOCABULARY)
    for body, supports in (("", {9, 6}), ("一三", {9}), ("二四，", {6}), ("八八", {9, 6})):
        assert {draft.template.support for draft in rules.drafts("小令", body)} == supports
    assert begun(FormRules(forms, VOCABULARY, template=3)).draft.template.support == 3


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
            sentences = sum(mark == "。" for _, mark in template.clauses)
            assert sentences < len(acrostic) or rhyme or any(n == 1 for n, _ in template.clauses)
        return
    result = checked(text, forms)
    body = text.removeprefix("+++小令\n").replace("\n", "").replace("、", "")
    sentences, clauses = ([part[0] for part in re.split(f"[{marks}]", body)[:-1]] for marks in ("。", "。，"))
    starts = sentences if len(sentences) >= len(acrostic) else clauses
    assert result.rhyme and starts[: len(acrostic)] == list(acrostic)
    assert len(acrostic) <= len(sentences) or len(acrostic) == len(clauses)
    if rhyme:
        ends = zip(re.findall(r"(.)[。，]", body), result.template.scheme, strict=True)
        assert any(letter != "-" and CLASSES[char] == CLASSES[rhyme] for char, letter in ends)


def test_an_acrostic_of_as_many_characters_as_clauses_begins_each_of_them():
    quatrain = form("2，2。2，2。", "-a-a")
    rules = FormRules(forms_of(quatrain), VOCABULARY, "一二三四")
    assert re.fullmatch(r"\+\+\+小令\n一.，二.。三.，四.。", written(rules, random.Random(0)))
    rules = FormRules(forms_of(quatrain), VOCABULARY, "一二")
    assert re.fullmatch(r"\+\+\+小令\n一.，..。二.，..。", written(rules, random.Random(0)))
    for acrostic in ("一二三", "一二三四五"):
        words = f"--acrostic has {len(acrostic)} characters; 小令 has 2 sentences to write, and 4 clauses: .* 一□，…"
        with pytest.raises(UserError, match=words):
            begun(FormRules(forms_of(quatrain), VOCABULARY, acrostic))


WHOLE, END = Refrain(1, 0, 2, True, 10), Refrain(3, 2, 2, True, 10)
REFRAINS = form("2。2。3。2。", "aaaa", 10, refrains=(WHOLE, END))


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("tones", ["", "平仄平仄中平仄平仄", "中仄中仄中中中中平"])
@pytest.mark.parametrize("given", ["", "一", "□□。三□。□□□。□红。", "□□。□□。七□□。", "一□。三□。", "一东。一东。"])
def test_what_nearly_all_poems_repeat_is_written_unless_what_is_given_has_it_otherwise(given, tones, particles):
    rules, rng = FormRules(forms_of(replace(REFRAINS, tones=tones)), VOCABULARY), random.Random(1)
    for _ in range(20):
        text, chars = f"+++小令\n{given.partition('□')[0]}", rules.vocabulary.chars
        writer = writer_of(rules, f"+++小令\n{given}", rng)
        while not writer.done:
            writer = rng.choice([writer.copy(rng.random) for _ in range(particles)])
            char = rng.choice(sorted(allowed_chars(writer)))
            writer.append(chars.index(char))
            text += char
        result = check("小令", text.partition("\n")[2], rules.forms)
        kept = [kept for _, kept in result.refrains]
        assert result.rhyme and kept == [not given.startswith("一□。三"), True]


def test_a_refrain_that_some_poems_have_is_drawn_and_one_that_lacks_is_said(root, file, call):
    some = replace(REFRAINS, refrains=(WHOLE._replace(poems=4), END._replace(poems=2)))
    rules, rng = FormRules(forms_of(some), VOCABULARY), random.Random(1)
    poems = [read_clauses(written(rules, rng).partition("\n")[2]) for _ in range(300)]
    shares = [sum(of.kept([clause.text for clause in poem]) for poem in poems) / 300 for of in (WHOLE, END)]
    assert shares == [pytest.approx(0.4, abs=0.07), pytest.approx(0.2, abs=0.07)]
    Forms({"小令": [REFRAINS]}, FORMS.classes).save(root / "forms.json")
    poem = file("poems.txt", "+++小令\n一东。一东。二三红。四风。\n")
    out = call(forms_command, "--data_root", root, "--check", poem)[1]
    assert "every rhyme in its class, 1 refrain missing; template" in out
    assert "四风。  a  <- 四风 where 三红 is repeated" in out


def test_an_acrostic_goes_before_a_refrain():
    rules, rng = FormRules(forms_of(REFRAINS), VOCABULARY, "一二三"), random.Random(1)
    body = written(rules, rng).partition("\n")[2]
    assert [sentence[0] for sentence in body.split("。")[:3]] == ["一", "二", "三"] and body[-3:-1] == body[-6:-4]


def test_the_acrostic_begins_with_the_first_sentence_to_be_written():
    """So a sentence that the start has begun is none of it."""
    rules = FormRules(forms_of(form("2。2。2。", "---")), VOCABULARY, "五六")
    assert allowed_chars(begun(rules)) == allowed_chars(begun(rules, "一二。")) == {"五"}
    assert re.fullmatch(r"\+\+\+小令\n一.。五.。六.。", written(rules, random.Random(0), "+++小令\n一"))
    with pytest.raises(UserError, match="2 characters"):
        begun(rules, "一二。三")


def test_pauses_and_stanza_breaks_come_where_a_template_has_them_and_once():
    two = form("2。2。", "--", pauses=frozenset({(0, 1)}), breaks=frozenset({0}))
    rules = FormRules(forms_of(two), VOCABULARY)
    for body, pause in {"": False, "一": True, "一、": False, "一二。三": False}.items():
        assert ("、" in allowed_chars(begun(rules, body))) == pause
    assert allowed_chars(begun(rules, "一二。")) == {"\n"}
    assert "\n" not in allowed_chars(begun(rules, "一二。\n"))


def test_what_is_given_need_not_rhyme_where_two_or_three_poems_do():
    (a, *_), (b, *_) = RHYMES[:2]
    for support in (3, 4):
        rules = FormRules(forms_of(form("2，2。2。2。", "-aaa", support)), VOCABULARY)
        if support == 3:
            assert begun(rules, f"一二，三{a}。四{b}。六{a}。").done
            assert allowed_chars(begun(rules, f"一二，三{a}。四{b}。六")) == set(RHYMES[0]) - {a}
        else:
            with pytest.raises(UserError, match=f"{b} does not rhyme there"):
                begun(rules, f"一二，三{a}。四{b}。")


def test_the_tune_is_chosen_among_those_with_a_form():
    forms = Forms({"小令": [form("2。", "-")], "小大": [COUPLET]}, CLASSES)
    rules = FormRules(forms, VOCABULARY)
    for start in ("", "\n", "\n\n", "+"):
        assert allowed_chars(writer_of(rules, start)) == {"+"}
    for start, allowed in {"+++": "小", "一\n+++小": "令大", "+++小令": "\n"}.items():
        assert allowed_chars(writer_of(rules, start)) == set(allowed)
    for wishes in (["一二"], ["", "东"]):  # two sentences, a rhyme
        assert allowed_chars(writer_of(FormRules(forms, VOCABULARY, *wishes), "+++小")) == {"大"}
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
        ("+++小令\n", ["一二三"], "--acrostic has 3 characters; 小令 has 2 sentences"),
        ("+++小令\n一东。", ["", "月"], "no template of 小令 has --rhyme 月 with the text that is given"),
        ("+++小令\n", ["", "", 2], "--template 2: 小令 has 1; see"),
        ("\n", ["一二三"], "no tune has a form for --acrostic 一二三"),
    ],
)
def test_a_start_an_acrostic_or_a_rhyme_that_no_form_can_keep_is_said(start, wishes, words):
    known = [replace(COUPLET, support=4)]
    with pytest.raises(UserError, match=re.escape(words)):
        writer_of(FormRules(forms_of(*known), VOCABULARY, *wishes), start)


UNSEEN = replace(forms_of(COUPLET), unseen=frozenset({"落梅"}))


def test_of_a_tune_of_the_validation_split_alone_it_is_said_that_the_training_split_has_no_poem(tmp_path, call):
    words = "no form is known of the tune '落梅': the training split has no poem of it"
    with pytest.raises(UserError, match=f"{words}$"):
        writer_of(FormRules(UNSEEN, VOCABULARY), "+++落梅\n")
    root = prepared(tmp_path / "data", tuned_text(60) + "+++落梅\n春东。\n\n" * 4)
    assert Forms.load(root).unseen == {"落梅"}
    (tmp_path / "poem.txt").write_text("+++落梅\n春东。\n+++某\n春。\n", encoding="utf-8")
    _, out, _ = call(forms_command, "--data_root", root, "--check", tmp_path / "poem.txt")
    assert out.count("no form is known of this tune") == 2 and out.count("the training split has no poem of it") == 1


def test_of_such_a_tune_a_text_that_is_given_stands_as_far_as_it_goes(capsys):
    """Its blanks are written, its marks and lines kept, and there the poem ends; without blanks nothing is written."""
    a, b, c, d, *_ = CLASSES
    rules = FormRules(UNSEEN, VOCABULARY)
    for body, rest in ((f"{a}□、{b}，□□。\n{c}□{d}。", f".、{b}，..。\n{c}.{d}。"), (f"{a}{b}。{c}", "。")):
        for seed in range(4):
            poem = written(rules, random.Random(seed), start := f"+++落梅\n{body}")
            assert re.fullmatch(rest, poem.removeprefix(start.partition("□")[0])), poem
    told = "the training split has no poem of 落梅: it has the form of the text that is given\n"
    assert capsys.readouterr().err == 2 * told
    with pytest.raises(UserError, match=f"no template of 落梅 has --rhyme {a} with the text that is given"):
        writer_of(FormRules(UNSEEN, VOCABULARY, "", a), f"+++落梅\n{b}□。")


def test_of_a_class_of_both_tones_only_the_characters_of_the_places_tone_rhyme_there():
    a, b, c, *_ = CLASSES
    mixed = dict.fromkeys((a, b, c), (0,))
    forms = Forms({"小令": [form("1。1。", "aa", tones="平平")]}, mixed, {a: 0.99, b: 0.99, c: 0.01})
    rules = FormRules(forms, VOCABULARY)
    assert allowed_chars(begun(rules)) == {a, b} and allowed_chars(begun(rules, f"{c}。")) == {a, b}


def test_a_character_of_two_classes_is_written_and_taken_in_both():
    """As the tone of the place has it; a rhyme that is given leaves those of its classes that the others have, too."""
    classes = {**dict.fromkeys("东红", (0,)), **dict.fromkeys("月雪", (1,)), "节": (0, 1), "天": (2, 1)}
    level = {**dict.fromkeys("东红天", 0.99), **dict.fromkeys("月雪", 0.01), "节": 0.5}
    joint = {(0,): 1, (1,): 1, (2,): 1}
    forms = {tone: form("1。1。", "aa", 9, tones=tone * 2, joint=joint) for tone in "平仄中"}
    rules = {tone: FormRules(Forms({"小令": [own]}, classes, level), VOCABULARY) for tone, own in forms.items()}
    assert allowed_chars(begun(rules["平"], "节。")) == {"东", "红"}
    assert allowed_chars(begun(rules["仄"], "节。")) == {"月", "雪"}
    assert allowed_chars(begun(rules["中"], "□。节。")) in ({"东", "红"}, {"月", "雪", "天"}, {"月", "雪"})
    for body, fits in (("东。节。", True), ("雪。节。", True), ("天。节。", True), ("天。东。", False)):
        assert bool(rules["中"].drafts("小令", body)) == fits
    for tone in "平仄":
        own = FormRules(rules[tone].forms, VOCABULARY, "", "节")
        assert allowed_chars(begun(own)) == set("东红节" if tone == "平" else "月雪节")


FREE = {(a, b): 5 for a in (0, 2) for b in (1, 3)}


@pytest.mark.parametrize(
    ("joint", "tied"),
    [
        ({(0, 1): 20, (2, 3): 9, (2, 1): 1}, [(0, 1)]),
        (FREE, []),
        ({(0, 1): 3, (2, 3): 3}, []),
        ({(-1, 1): 20}, []),
        ({(0, 1): 20}, []),
        ({}, []),
    ],
)
def test_groups_are_bound_where_one_tells_the_class_of_the_other_in_poems_enough(joint, tied):
    assert bound(joint) == tied


@pytest.mark.parametrize("rhyme", ["", "东", "天"])
def test_groups_that_poets_bind_are_written_together_and_said_to_be_apart(rhyme):
    """As level and oblique of one 部 in 西江月; other groups are drawn as the poems have them, a class twice, too."""
    classes = {char: (i,) for i, chars in enumerate(["东红", "月雪", "天年", "节别"]) for char in chars}
    level = {**dict.fromkeys("东红天年", 0.99), **dict.fromkeys("月雪节别", 0.01)}
    tied = form("1。" * 4, "aabb", tones="平平仄仄", joint={(0, 1): 20, (2, 3): 20, (2, 1): 1})
    free = form("1。" * 4, "aabb", tones="平" * 4, joint={(0, 0): 60})
    forms = Forms({"小令": [tied], "大令": [free]}, classes, level)
    rules, rng = FormRules(forms, VOCABULARY, "", rhyme), random.Random(1)
    for _ in range(40):
        result = check("小令", written(rules, rng).partition("\n")[2], forms)
        assert result.rhyme and tuple(result.classes.values()) in ((0, 1), (2, 3))
    result = check("小令", "东。红。节。别。", forms)
    assert result.apart == (("a", "b"),) and result.form and not result.rhyme
    assert "rhymes a and b do not go together" in forms_command.verdict(result)
    twice = [check("大令", written(rules, rng, "+++大令\n").partition("\n")[2], forms).classes for _ in range(40)]
    assert rhyme == "天" or twice.count({"a": 0, "b": 0}) > 36
    assert forms.kin == {(0, 1), (1, 0), (2, 3), (3, 2)}


def test_a_rhyme_of_the_wrong_tone_is_refused_with_the_tunes_own():
    tonal = replace(COUPLET, tones="中仄中仄")
    level = next(char for char in CLASSES if LEVELS[char] > 0.5)
    with pytest.raises(UserError, match=f"--rhyme {level}: it is level, and the rhymes of 小令 are oblique"):
        writer_of(FormRules(forms_of(tonal), VOCABULARY, "", level), "+++小令\n")


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
        assert writer_of(rules, "+++清" + "（" * 100_000 + "）").prefix
        with pytest.raises(UserError, match="not closed"):
            writer_of(rules, "+++清" + "（" * 100_000)
