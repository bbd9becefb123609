import random
from collections import Counter

import pytest
from conftest import RHYMES, tuned_text

import prepare
from songci.forms.learn import learn, refrains, rhyme_classes, rhyme_scheme
from songci.forms.poems import read_poems
from songci.forms.templates import Forms


def poems_of(text: str) -> list[tuple[str, str]]:
    return list(read_poems(text.splitlines(keepends=True)))


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
    for end in range(cut - 30, cut):
        assert list(prepare.complete_poems(iter([text]), end)) == poems_of(text[:end])[:-1]


def test_lines_come_whole_from_blocks():
    text = "一\n二三\n\n四" * 5
    for size in (1, 2, 3, 7, 100):
        for cut in (0, 1, 4, len(text)):
            blocks = iter([text[i : i + size] for i in range(0, len(text), size)])
            assert [line for line in prepare.lines(blocks, cut) if line] == text[:cut].splitlines(keepends=True)
