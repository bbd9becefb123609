"""The page to compose on: the poem by itself, and the page in a browser that reaches nothing but it."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import RHYMES, ROOT, TUNES, run_script, wait_until
from PIL import Image

from songci.forms.templates import Forms
from songci.page import poem
from songci.runs import BEST

POEM = "+++清平乐·春\n一一、一一。一一一一东。一一一，一一一风。\n"


def test_a_poem_is_shown_character_by_character_with_its_rhymes_and_faults(tuned_root):
    forms = Forms.load(tuned_root)
    shown = poem.as_html(POEM, forms, at=POEM.index("东"))
    places = [int(i) for i in re.findall('data-i="([0-9]+)"', shown)]
    assert [POEM[i] for i in places] == list("一一一一一一一一东一一一一一一风") and "<h3>清平乐·春</h3>" in shown
    assert re.findall('class="([^"]*rhyme[^"]*)">(.)', shown)[-1][1] == "风"
    assert re.search('class="[^"]*chosen[^"]*">东', shown)
    assert "fault" not in shown.split("东")[1] and "fault" in poem.as_html(POEM.replace("风", "月"), forms)
    cut = poem.as_html("+++清平乐\n一，一一一。一一一一东。一一一一、一一月。", forms)  # as another edition has it
    assert re.findall('class="[^"]*rhyme[^"]*">(.)', cut) == ["一", "东", "月"]
    assert re.findall('class="[^"]*fault[^"]*">(.)', cut)[-1] == "月"
    for text in (POEM, POEM.replace("一", "<"), "+++无名\n一", "+++清平乐\n", "+++清平乐\n□□□□。□"):
        assert "<<" not in poem.as_html(text, forms)
        assert json.loads(poem.as_json(text, forms, "run"))["text"] == text


def test_clauses_are_found_and_blanked_with_their_marks_kept():
    for at, blanked in ((POEM.index("、"), "□□、□□。一一一一东。"), (POEM.index("东"), "一一、一一。□□□□□。")):
        assert blanked in poem.with_chars(POEM, poem.clause_around(POEM, at))
    assert poem.with_chars("一。二", [0, 1], "三") == "三。二"


def test_a_pattern_is_a_draft_of_the_form(tuned_root):
    for tune, templates in Forms.load(tuned_root).tunes.items():
        clauses = re.findall("([0-9])(.)", TUNES[tune][0])
        assert poem.pattern(templates[0]) == "".join("□" * int(length) + mark for length, mark in clauses)


def test_the_picture_has_the_poem_from_right_to_left():
    dark = np.array(Image.open(io.BytesIO(poem.as_png(POEM))).convert("L")) < 128
    ink = [dark[:, x : x + 63].sum() for x in range(31, dark.shape[1] - 62, 63)]
    assert len(ink) == 3 and all(ink) and not dark[:, :31].any()  # the title on the right, two columns of the poem
    assert dark[:60, -95:-31].any() and not dark[-300:, -95:-31].any()  # the title is the shorter


# In a browser


@contextmanager
def serving(data_root, workdirs):
    """The address of the page, in a process of its own, behind a proxy that nobody has; what it says is checked."""
    pytest.importorskip("gradio", reason="gradio is not installed: requirements-page.txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "songci.page", "--no_browser", "--port", str(port)]
    command += ["--data_root", str(data_root), "--workdirs", str(workdirs)]
    env = os.environ | {"http_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    log, ready = workdirs / "page.log", f"http://127.0.0.1:{port}/: only this machine can open it; Ctrl-C ends it\n"
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: ready in log.read_text(encoding="utf-8") or process.poll() is not None)
        assert process.poll() is None, log.read_text(encoding="utf-8")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
    assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tuned_root, tuned_ckpt):
    with serving(tuned_root, tuned_ckpt.parent) as address:
        yield address


@pytest.mark.slow
def test_without_a_run_the_page_says_which_command_makes_one(tuned_root, tmp_path):
    with serving(tuned_root, tmp_path) as address:
        page = urllib.request.urlopen(address).read().decode()
    assert "`make demo` makes one" in page and "里还没有训练好的模型" in page


@pytest.mark.slow
def test_an_address_that_is_taken_or_not_ours_is_one_line(tuned_root, tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: requirements-page.txt")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for flags in (["--port", taken.getsockname()[1]], ["--host", "203.0.113.1"]):
            done = run_script("songci.page", "--no_browser", "--workdirs", tmp_path, *flags)
            assert done.returncode == 2 and done.stderr.count("error: cannot listen on") == 1, done.stderr
            assert "Traceback" not in done.stderr


def test_a_run_that_is_being_trained_is_opened_anew(tuned_root, tuned_ckpt, tmp_path):
    desk = pytest.importorskip("songci.page.desk", reason="gradio is not installed: requirements-page.txt")
    run = shutil.copytree(tuned_ckpt, tmp_path / "run")
    page = desk.Page(str(tuned_root), [str(run)])
    first = page.opened(str(run))
    assert page.opened(str(run)) is first
    os.utime(run / BEST, (1, 1))
    assert page.opened(str(run)) is not first


@pytest.fixture
def visit(browser, server):
    """visit(locale, **options) → the page in a fresh browser, in which nothing else is asked for."""
    contexts, outside = [], []

    def opened(locale="en-US", **options):
        context = browser.new_context(locale=locale, **options)
        context.route(
            lambda url: not re.match(f"{server}|data:|blob:", url),
            lambda route: (outside.append(route.request.url), route.abort()),
        )
        contexts.append(context)
        page = context.new_page()
        page.goto(server)
        page.locator("#write").wait_for()
        page.locator(".pattern").wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert outside == []


def text_of(page) -> str:
    return "".join(page.locator("#poem [data-i]").all_text_contents())


def with_poem(page):
    """The page after a poem was written and a candidate taken."""
    page.locator("#write").click()
    page.locator("#candidates .poem").nth(2).click(position={"x": 5, "y": 5})
    page.locator("#poem .poem").wait_for()
    return page


@pytest.mark.slow
def test_a_poem_is_written_changed_and_kept(visit):
    page = with_poem(visit())
    whole = text_of(page)
    last = len(whole) - 1  # a rhyme: what could stand there rhymes with the others
    page.locator("#poem [data-i]").nth(last).click()
    page.locator("#others label").first.wait_for()
    rhymes = {choice.split()[0] for choice in page.locator("#others label").all_inner_texts()}
    assert {whole[last]} < rhymes and any(rhymes <= set(group) for group in RHYMES)
    assert "□" not in whole and page.locator("#told").inner_text() == "In form, in rhyme, in tone."

    page.locator("#poem [data-i]").nth(1).click()  # what could stand there, and where it looks
    page.wait_for_function("c => document.querySelector('#look').innerText.startsWith(c)", arg=whole[1])
    choices = page.locator("#others label").all_inner_texts()
    shares = {choice.split()[0]: float(choice.split()[1].rstrip("%")) for choice in choices}
    assert whole[1] in shares and len(shares) in (10, 11) and 0 < sum(shares.values()) < 101
    other = next(char for char in shares if char != whole[1])
    page.locator("#others label", has_text=other).click()
    page.wait_for_function("c => document.querySelectorAll('#poem [data-i]')[1].textContent == c", arg=other)
    assert text_of(page) == whole[0] + other + whole[2:]  # the rest is kept

    page.locator("#undo button, button#undo").first.click()
    page.wait_for_function("c => document.querySelectorAll('#poem [data-i]')[1].textContent == c", arg=whole[1])
    page.locator("#poem [data-i]").nth(1).click()
    page.locator("#look img").wait_for()
    page.locator("#blank").click()
    page.wait_for_function("() => document.querySelector('#poem').textContent.includes('□')")
    assert page.locator("#told").inner_text() == "Blanks are to be filled."
    blanks = [i for i, char in enumerate(text_of(page)) if char == "□"]
    page.locator("#fill").click()
    page.wait_for_function("() => !document.querySelector('#poem').textContent.includes('□')")
    filled = text_of(page)
    assert 1 in blanks and all(a == b for i, (a, b) in enumerate(zip(filled, whole, strict=True)) if i not in blanks)

    page.locator("#poem [data-i]").nth(3).click()
    page.locator("#look img").wait_for()
    page.locator("#anew").click()
    page.wait_for_function(
        "t => [...document.querySelectorAll('#poem [data-i]')].map(e => e.textContent).join('') != t", arg=filled
    )
    anew = text_of(page)
    assert anew[:4] == filled[:4] and len(anew) == len(filled)

    kept = {}
    for name in ("text", "json", "picture"):
        with page.expect_download() as download:
            page.locator(f"#{name}").click()
        kept[name] = download.value.path().read_bytes()
    assert "".join(re.findall(r"\w", kept["text"].decode().split("\n", 1)[1])) == anew
    assert json.loads(kept["json"])["form"] is True
    Image.open(io.BytesIO(kept["picture"])).verify()
    page.locator("#upright input").check()
    page.wait_for_function("() => getComputedStyle(document.querySelector('#poem .poem')).writingMode == 'vertical-rl'")


@pytest.mark.slow
def test_it_speaks_chinese_and_keeps_a_draft_and_says_what_is_wrong_in_a_sentence(visit):
    page = visit("zh-CN")
    assert page.locator("#write").inner_text() == "写" and "平" in page.locator("body").inner_text()
    tune = page.locator("#tune input")
    tune.fill("如梦令")
    tune.press("Enter")
    draft = page.locator("#draft textarea")
    draft.fill("□一□。")
    page.locator("#write").click()
    for i in range(3):
        card = page.locator("#candidates .poem").nth(i)
        card.wait_for()
        assert "".join(card.locator("[data-i]").all_text_contents())[1] == "一"
    draft.fill("+++清平乐\n□□□东。")  # with its own title
    page.wait_for_timeout(1000)  # a click counts when the one before is done
    page.locator("#write").click()
    page.locator("#candidates h3", has_text="清平乐").nth(2).wait_for()
    for wrong, told in (("□x。", "not in the vocabulary: 'x'"), ("□□□□□□□。", "fits no template of 如梦令")):
        draft.fill(wrong)
        page.wait_for_timeout(1000)
        page.locator("#write").click()
        page.get_by_text(told).first.wait_for()
        assert "Traceback" not in page.content()
        page.reload()
        page.locator(".pattern").wait_for()
        tune.fill("如梦令")
        tune.press("Enter")


@pytest.mark.slow
def test_two_readers_do_not_disturb_each_other(visit):
    one, other = with_poem(visit()), visit("zh-CN", viewport={"width": 400, "height": 800})
    mine = text_of(one)
    with_poem(other)
    other.locator("#poem [data-i]").nth(0).click()
    other.locator("#look img").wait_for()
    other.locator("#blank").click()
    other.get_by_text("尚有空字待补。").wait_for()
    one.locator("#poem [data-i]").nth(1).click()
    one.locator("#look img").wait_for()
    assert text_of(one) == mine != text_of(other)
