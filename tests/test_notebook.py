"""The page and the notebook, also in a real browser, which can reach nothing outside this machine."""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import replace

import nbformat
import numpy as np
import pytest
from conftest import ROOT, run_script
from readings import DATA, POEM, RUN, make_project
from saved_notebook import NOTEBOOK, code_cells, digest, execute, without_interactive_views

from songci import attention
from songci.attention.page import EXPLAINED

pytestmark = pytest.mark.slow  # a kernel, a server, a browser
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project folder with the runs of the experiment."""
    folder = make_project(tmp_path_factory.mktemp("attnvis"), "no_pos", "no_res")
    shutil.copytree(ROOT / "data/attnvis", folder / "data/attnvis")
    return folder


@pytest.fixture(scope="module")
def reading(folder):
    return attention.load(folder / DATA, folder / RUN, POEM)


# The page


@pytest.fixture(scope="module")
def written_page(folder):
    """workdirs/quansongci/attention.html, by the command of the README."""
    text, out = "data/attnvis/rumengling.txt", f"{RUN}/attention.html"
    done = run_script("songci.attention", "--text", text, "--out", out, "--num_windows", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert out in done.stdout and "attention.png" in done.stdout
    return folder / out


def test_the_page_holds_every_section_and_the_picture_lies_beside_it(written_page):
    page = written_page.read_text(encoding="utf-8")
    for title, lines in EXPLAINED.items():
        assert page.count(f"<h2>{title}</h2>") == 1 and len(lines) == 2
    assert page.count("<iframe") == 2 and page.count("data:image/png;base64,") == 3 + 5  # a heatmap a layer
    assert written_page.with_name("attention.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in written_page.parent.glob(".*")) == []


# The notebook


def kinds(notebook) -> list:
    """The kinds of output of each code cell."""
    return [
        [sorted(o.data) if "data" in o else [o.output_type, o.name] for o in cell.outputs]
        for cell in code_cells(notebook)
    ]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed(folder):
    """The notebook after one run from top to bottom."""
    path = folder / "executed.ipynb"
    shutil.copy(NOTEBOOK, path)
    execute(path, folder)
    return path


def test_part_one_prints_what_it_loads_and_the_poem(executed):
    printed = code_cells(nbformat.read(executed, as_version=4))[1].outputs[0].text
    meta = os.path.join("data", "quansongci", "meta.pkl")
    assert printed.startswith(f"Loading meta from {meta}...\nInput texts: {POEM}".strip())


def test_the_saved_outputs_are_of_these_cells_and_of_what_the_module_shows(committed, executed):
    assert committed.metadata.sources == digest(committed), "run PYTHONPATH=. python tests/saved_notebook.py"
    assert kinds(committed) == kinds(without_interactive_views(nbformat.read(executed, as_version=4)))
    assert [cell.execution_count for cell in code_cells(committed)] == list(range(1, 1 + len(code_cells(committed))))


def test_the_saved_outputs_are_still_and_small_and_say_nothing_of_a_machine(committed):
    saved = NOTEBOOK.read_text(encoding="utf-8")
    assert len(saved) < 1_200_000 and kinds(committed).count([["image/png", "text/plain"]]) >= 10
    for cell in code_cells(committed):
        for output in cell.outputs:
            assert output.output_type in ("execute_result", "stream")
            assert set(output.get("data", {})) <= {"image/png", "text/plain"} and output.get("name") != "stderr"
    for pattern in (
        r"/(home|root|tmp|work|usr|Users)/",
        r"https?://(?!github\.com/jessevig/bertviz)",
        "<script",
        "jQuery",
    ):
        assert not re.search(pattern, re.sub(r'"image/png": "[^"]*"', "", saved)), pattern


def test_the_notebook_explains_each_view_and_picture_as_the_page_does(committed):
    told = [cell.source for cell in committed.cells if cell.cell_type == "markdown"]
    for title, lines in EXPLAINED.items():
        assert f"### {title}\n\n" + "\n".join(f"- {line}" for line in lines) in told
    shown = "\n".join(cell.source for cell in code_cells(committed))
    for name in ("heatmaps", "predictions", "losses", "statistics", "ablation", "lens"):
        assert f"attention.{name}(shown" in shown and (name == "predictions" or f"attention.{name}(*runs" in shown)


def test_the_notebook_has_its_paths_in_one_cell(committed):
    source = code_cells(committed)[0].source
    assert [name in source for name in (DATA, RUN, "rumengling.txt")] == [True] * 3


# In a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements-dev.txt")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


class Visit:
    """A page in a fresh browser context, which records what happens and aborts requests to other machines."""

    def __init__(self, browser):
        self.context = browser.new_context(viewport={"width": 1300, "height": 1000}, service_workers="block")
        self.left, self.requests, self.errors = [], [], []
        self.context.route("**/*", self._guard)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.left.extend([] if is_local(socket.url) else [socket.url]))
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def _guard(self, route):
        if is_local(route.request.url):
            return route.continue_()
        self.left.append(route.request.url)
        return route.abort()

    def _console(self, message):
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location['url']}")


def is_local(url: str) -> bool:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme in ("data", "blob", "about", "file") or parts.hostname in ("localhost", "127.0.0.1")


@pytest.fixture
def visit(browser):
    visit = Visit(browser)
    yield visit
    visit.context.close()


def assert_it_lives(visit: Visit, reading, picture) -> None:
    """The head view draws what the model computed, and follows the layer and the mouse; the model view is there."""
    layers, heads, length = len(reading.weights), reading.weights[0].size(1), len(reading.tokens)
    frame = visit.page.frame_locator('iframe[title^="head view"]')
    lines = frame.locator("#attention line")
    lines.first.wait_for(state="attached")
    for layer in (0, layers - 1, 0):
        frame.locator("#layer").select_option(str(layer))
        drawn = lines.evaluate_all("lines => lines.map(line => +line.getAttribute('stroke-opacity'))")
        assert len(drawn) == heads * length**2
        drawn = heads * np.array(drawn).reshape(heads, length, length)  # bertviz divides by the number of heads
        assert np.allclose(drawn, reading.weights[layer][0], atol=1e-4)
        other = reading.weights[layers - 1 - layer][0]
        assert not np.allclose(drawn, other, atol=1e-4), "the layers should differ"
    for place in (7, 30):
        frame.locator("#left text").nth(place).hover()
        visible = lines.evaluate_all(
            "lines => lines.filter(line => getComputedStyle(line).visibility == 'visible')"
            ".map(line => +line.getAttribute('left-token-index'))"
        )
        assert visible == [place] * heads * length
    assert frame.locator("#left text").all_text_contents() == reading.tokens
    visit.page.screenshot(path=picture)
    thumbnails = visit.page.frame_locator('iframe[title^="model view"]').locator("line")
    assert thumbnails.count() == layers * heads * length**2


def test_the_page_by_itself(visit, written_page, reading, tmp_path):
    visit.page.goto(written_page.as_uri())
    assert_it_lives(visit, reading, tmp_path / "page.png")
    assert visit.errors == [] and {url for url in visit.requests if not url.startswith("data:")} == {
        written_page.as_uri()
    }


def test_a_character_that_the_browsers_fonts_lack_is_shown_by_its_code(visit, reading, tmp_path):
    """𱍊 is in Unicode 13; if a font has it, the noncharacters are still in none."""
    odd = ["\U0003134a", "\U0001fffe", "\ufdd0", "U+200B", "◌\u0301"]
    view = attention.head_view(replace(reading, tokens=[*odd, *reading.tokens[5:]]))
    (tmp_path / "view.html").write_text(view.frame(), encoding="utf-8")
    visit.page.goto((tmp_path / "view.html").as_uri())
    frame = visit.page.frame_locator("iframe")
    frame.locator("#attention line").first.wait_for(state="attached")
    for side in ("left", "right"):
        first, *others = frame.locator(f"#{side} text").all_text_contents()
        assert first in ("U+3134A", "\U0003134a") and others[:4] == ["U+1FFFE", "U+FDD0", "U+200B", "◌\u0301"]
        assert others[4:] == reading.tokens[5:]


def convert_to_html(notebook, name: str, *flags):
    command = [sys.executable, "-m", "nbconvert", "--to", "html", *flags, "--output", name, str(notebook)]
    subprocess.run(command, check=True, capture_output=True)
    return notebook.with_name(name)


def test_nbconverts_html(visit, executed, reading, tmp_path):
    """Without its links to require.js and MathJax, which this notebook does not need, the page asks for nothing."""
    flags = ["--HTMLExporter.require_js_url=data:,", "--HTMLExporter.mathjax_url=data:,"]
    page = convert_to_html(executed, "offline.html", *flags)
    visit.page.goto(page.as_uri())
    assert_it_lives(visit, reading, tmp_path / "nbconvert.png")
    assert visit.errors == [] and {url for url in visit.requests if not url.startswith("data:")} == {page.as_uri()}


def test_nbconverts_html_with_its_own_links(visit, executed, reading, tmp_path):
    """Plain `nbconvert --to html` links to two libraries for itself; the views need neither."""
    visit.page.goto(convert_to_html(executed, "plain.html").as_uri())
    assert_it_lives(visit, reading, tmp_path / "nbconvert.png")
    for what in (visit.left, visit.errors):
        assert all(re.search(r"require\.js/|mathjax/", line) for line in what), what


@pytest.fixture(scope="module")
def jupyter(folder):
    """A Jupyter server in the project folder: its address and token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / "attnvis.ipynb")
    own = {f"JUPYTER_{name}_DIR": str(folder / ".jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    flags = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    (folder / ".jupyter/CONFIG/labconfig").mkdir(parents=True)
    # Without this, the server would fetch the project's news
    (folder / ".jupyter/CONFIG/labconfig/page_config.json").write_text(
        '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'
    )
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *flags, f"--IdentityProvider.token={token}"],
            cwd=folder,
            env={**os.environ, **own, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}", token
    finally:
        server.terminate()
        server.wait(30)


def test_jupyterlab_shows_it_at_the_first_run(visit, jupyter, reading, tmp_path):
    address, token = jupyter
    wait_for(f"{address}/api?token={token}")
    visit.page.goto(f"{address}/lab/tree/attnvis.ipynb?token={token}&reset")
    visit.page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=150_000)
    visit.page.get_by_text(re.compile(r"^Python 3.*\| Idle$")).wait_for(timeout=150_000)
    visit.page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
    visit.page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
    last = visit.page.locator(".jp-CodeCell").last
    last.locator(".jp-OutputArea-output img").wait_for(timeout=150_000, state="attached")
    assert visit.page.locator(".jp-OutputArea-output", has_text="Traceback").count() == 0
    assert_it_lives(visit, reading, tmp_path / "jupyterlab.png")
    assert visit.left == [] and visit.errors == []


def wait_for(url: str) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError(url)
