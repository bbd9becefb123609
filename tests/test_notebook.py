"""The page and the notebook, also in a real browser, which can reach nothing outside this machine."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
from conftest import ROOT, run_script
from readings import DATA, POEM, RUN, make_project
from saved_notebook import NOTEBOOK, code_cells, digest, execute, without_interactive_views

from songci import attention
from songci.attention.page import EXPLAINED

pytestmark = pytest.mark.slow  # a kernel, a server, a browser
LOCAL = re.compile(r"(data|blob|about|file):|(http|ws)s?://(localhost|127\.0\.0\.1)[:/]")
COMMITTED = nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project folder with the runs of the experiment."""
    folder = make_project(tmp_path_factory.mktemp("attnvis"), "no_pos", "no_res")
    shutil.copytree(ROOT / "data/attnvis", folder / "data/attnvis")
    return folder


@pytest.fixture(scope="module")
def reading(folder):
    return attention.load(folder / DATA, folder / RUN, POEM)


@pytest.fixture(scope="module")
def written_page(folder):
    """workdirs/quansongci/attention.html, by the command of the README."""
    text, out = "data/attnvis/rumengling.txt", f"{RUN}/attention.html"
    done = run_script("songci.attention", "--text", text, "--out", out, "--num_windows", 2, cwd=folder)
    assert done.returncode == 0 and out in done.stdout and "attention.png" in done.stdout, done.stderr
    return folder / out


@pytest.fixture(scope="module")
def executed(folder, han_font):
    """The notebook after one run from top to bottom, by a kernel that was started elsewhere and has a Chinese font."""
    path = shutil.copy(NOTEBOOK, folder / "workdirs" / "executed.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(han_font.parent.parent))  # matplotlib looks into its folder fonts
        execute(path, folder)
    return path


def test_a_kernel_far_from_the_project_is_told_where_to_start(monkeypatch):
    monkeypatch.setattr(Path, "cwd", lambda: Path("/far/away"))
    with pytest.raises(FileNotFoundError, match=r"not near .*: start Jupyter in its folder"):
        exec(code_cells(COMMITTED)[0].source, {})


def test_the_page_holds_every_section_and_the_picture_lies_beside_it(written_page):
    page = written_page.read_text(encoding="utf-8")
    for title, lines in EXPLAINED.items():
        assert page.count(f"<h2>{title}</h2>") == 1 and len(lines) == 2
    assert page.count("<iframe") == 2 and page.count("data:image/png;base64,") == 3 + 5  # a heatmap a layer
    assert written_page.with_name("attention.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in written_page.parent.glob(".*")} == {".lock"}


def kinds(notebook) -> list:
    """The kinds of output of each code cell."""
    return [
        [sorted(o.data) if "data" in o else [o.output_type, o.name] for o in cell.outputs]
        for cell in code_cells(notebook)
    ]


def test_the_saved_outputs_are_of_these_cells_and_of_what_the_module_shows(executed):
    assert COMMITTED.metadata.sources == digest(COMMITTED), "run PYTHONPATH=. python tests/saved_notebook.py"
    notebook = nbformat.read(executed, as_version=4)
    assert kinds(COMMITTED) == kinds(without_interactive_views(notebook))
    assert [cell.execution_count for cell in code_cells(COMMITTED)] == list(range(1, 1 + len(code_cells(COMMITTED))))
    meta = os.path.join("data", "quansongci", "meta.pkl")
    assert (
        code_cells(notebook)[1].outputs[0].text.startswith(f"Loading meta from {meta}...\nInput texts: {POEM}".strip())
    )


def test_the_saved_outputs_are_still_and_small_and_say_nothing_of_a_machine():
    saved = NOTEBOOK.read_text(encoding="utf-8")
    assert len(saved) < 1_200_000 and kinds(COMMITTED).count([["image/png", "text/plain"]]) >= 10
    for output in (output for cell in code_cells(COMMITTED) for output in cell.outputs):
        assert output.output_type in ("execute_result", "stream")
        assert set(output.get("data", {})) <= {"image/png", "text/plain"} and output.get("name") != "stderr"
    private = r"/(home|root|tmp|work|usr|Users)/|https?://(?!github\.com/jessevig/bertviz)|<script|jQuery"
    assert not re.search(private, re.sub(r'"image/png": "[^"]*"', "", saved))


def test_the_notebook_has_its_paths_in_one_cell_and_explains_each_view_and_picture_as_the_page_does():
    told = [cell.source for cell in COMMITTED.cells if cell.cell_type == "markdown"]
    for title, lines in EXPLAINED.items():
        assert f"### {title}\n\n" + "\n".join(f"- {line}" for line in lines) in told
    paths, *cells = (cell.source for cell in code_cells(COMMITTED))
    assert all(name in paths for name in (DATA, RUN, "rumengling.txt"))
    shown = "\n".join(cells)
    for name in ("heatmaps", "predictions", "losses", "statistics", "ablation", "lens"):
        assert f"attention.{name}(shown" in shown and (name == "predictions" or f"attention.{name}(*runs" in shown)


# In a browser


@pytest.fixture
def visit(browser):
    """A page in a fresh browser context, from which nothing leaves this machine, and what it asks and complains of."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000}, service_workers="block")
    context.route(lambda url: not LOCAL.match(url), lambda route: route.abort())
    page = context.new_page()
    page.asked, page.errors = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("websocket", lambda socket: page.asked.append(socket.url))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on(
        "console", lambda said: page.errors.extend([f"{said.text} {said.location['url']}"] * (said.type == "error"))
    )
    yield page
    context.close()


def assert_it_lives(page, reading) -> None:
    """The head view draws what the model computed, and follows the layer and the mouse; the model view is there."""
    layers, heads, length = len(reading.weights), reading.num_heads, len(reading.tokens)
    frame = page.frame_locator('iframe[title^="head view"]')
    lines = frame.locator("#attention line")
    lines.first.wait_for(state="attached")
    for layer in (0, layers - 1, 0):
        frame.locator("#layer").select_option(str(layer))
        drawn = lines.evaluate_all("lines => lines.map(line => +line.getAttribute('stroke-opacity'))")
        assert len(drawn) == heads * length**2
        drawn = heads * np.array(drawn).reshape(heads, length, length)  # bertviz divides by the number of heads
        assert np.allclose(drawn, reading.weights[layer][0], atol=1e-4)
        assert not np.allclose(drawn, reading.weights[layers - 1 - layer][0], atol=1e-4), "the layers should differ"
    for place in (7, 30):
        frame.locator("#left text").nth(place).hover()
        visible = lines.evaluate_all(
            "lines => lines.filter(line => getComputedStyle(line).visibility == 'visible')"
            ".map(line => +line.getAttribute('left-token-index'))"
        )
        assert visible == [place] * heads * length
    assert frame.locator("#left text").all_text_contents() == reading.tokens
    thumbnails = page.frame_locator('iframe[title^="model view"]').locator("line")
    assert thumbnails.count() == layers * heads * length**2


def assert_it_lives_by_itself(page, path, reading, but: str = "(?!)") -> None:
    """A file that asks for nothing else, and complains of nothing, but what the pattern `but` finds."""
    page.goto(path.as_uri())
    assert_it_lives(page, reading)
    asked = {url for url in page.asked if not url.startswith("data:")} - {path.as_uri()}
    assert not [line for line in (*asked, *page.errors) if not re.search(but, line)]


def test_the_page_by_itself(visit, written_page, reading):
    assert_it_lives_by_itself(visit, written_page, reading)


OFFLINE = ["--HTMLExporter.require_js_url=data:,", "--HTMLExporter.mathjax_url=data:,"]


@pytest.mark.parametrize(
    ("flags", "links"), [(OFFLINE, "(?!)"), ([], r"require\.js/|mathjax/")], ids=["offline", "plain"]
)
def test_nbconverts_html(visit, executed, reading, flags, links):
    """Plain `nbconvert --to html` links to two libraries for itself, require.js and MathJax; the views need neither."""
    command = [sys.executable, "-m", "nbconvert", "--to", "html", *flags, "--output", "page.html", str(executed)]
    subprocess.run(command, check=True, capture_output=True)
    assert_it_lives_by_itself(visit, executed.with_name("page.html"), reading, links)


def test_a_character_that_the_browsers_fonts_lack_is_shown_by_its_code(visit, reading, tmp_path):
    """𱍊 is in Unicode 13; if a font has it, the noncharacters are still in none."""
    odd = ["\U0003134a", "\U0001fffe", "\ufdd0", "U+200B", "◌\u0301"]
    view = attention.head_view(replace(reading, tokens=[*odd, *reading.tokens[5:]]))
    (tmp_path / "view.html").write_text(view.frame(), encoding="utf-8")
    visit.goto((tmp_path / "view.html").as_uri())
    frame = visit.frame_locator("iframe")
    frame.locator("#attention line").first.wait_for(state="attached")
    for side in ("left", "right"):
        first, *others = frame.locator(f"#{side} text").all_text_contents()
        assert first in ("U+3134A", "\U0003134a")
        assert others == ["U+1FFFE", "U+FDD0", "U+200B", "◌\u0301", *reading.tokens[5:]]


@pytest.fixture(scope="module")
def jupyterlab(folder):
    """JupyterLab in the project folder, with the notebook without outputs: its address, and the query for a path."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, query = f"http://127.0.0.1:{port}", f"?token={secrets.token_hex(16)}"
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "attnvis.ipynb")
    own = {f"JUPYTER_{name}_DIR": str(folder / ".jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    settings = folder / ".jupyter/CONFIG/labconfig/page_config.json"
    settings.parent.mkdir(parents=True)
    # Without this, the server would fetch the project's news
    settings.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.{query[1:]}"]
    env = {**os.environ, **own, "PYTHONPATH": str(ROOT)}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            with suppress(OSError), urllib.request.urlopen(f"{address}/api{query}", timeout=5):
                break
            time.sleep(0.1)
        yield address, query
    finally:
        server.terminate()
        server.wait(30)


def test_jupyterlab_shows_it_at_the_first_run(visit, jupyterlab, reading):
    address, query = jupyterlab
    visit.goto(f"{address}/lab/tree/attnvis.ipynb{query}&reset")
    visit.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=150_000)
    visit.get_by_text(re.compile(r"^Python 3.*\| Idle$")).wait_for(timeout=150_000)
    visit.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    visit.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    visit.locator(".jp-CodeCell").last.locator(".jp-OutputArea-output img").wait_for(timeout=150_000, state="attached")
    assert visit.locator(".jp-OutputArea-output", has_text="Traceback").count() == 0
    assert_it_lives(visit, reading)
    assert all(map(LOCAL.match, visit.asked)) and visit.errors == []
