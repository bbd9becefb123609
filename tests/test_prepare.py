import multiprocessing
import os
import pickle
import signal
import time

import numpy as np
import pytest
from conftest import song_text
from hypothesis import given, settings
from hypothesis import strategies as st

import prepare
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary, finish_replacing, load_dataset, load_vocabulary
from songci.forms.templates import Forms


def handout(data: str):
    """The handout's own lines."""
    chars = sorted(list(set(data)))  # noqa: C414
    stoi = {ch: i for i, ch in enumerate(chars)}
    itos = {i: ch for i, ch in enumerate(chars)}  # noqa: C416
    n = len(data)
    return stoi, itos, [stoi[c] for c in data[: int(n * 0.9)]], [stoi[c] for c in data[int(n * 0.9) :]]


def write(folder, data: bytes):
    folder.mkdir(exist_ok=True)
    (folder / "input.txt").write_bytes(data)
    return folder


def assert_as_in_the_handout(folder, text):
    stoi, itos, train, val = handout(text)
    with (folder / "meta.pkl").open("rb") as file:
        meta = pickle.load(file)
    assert meta["vocab_size"] == len(stoi) and meta["stoi"] == stoi and meta["itos"] == itos
    dtype = "<u2" if len(stoi) <= 65_535 else "<u4"
    assert np.fromfile(folder / "train.bin", dtype).tolist() == train
    assert np.fromfile(folder / "val.bin", dtype).tolist() == val


@pytest.mark.parametrize("block_bytes", [2, 7, 1 << 20])  # few: characters are cut by the ends of blocks
def test_the_data_set_is_the_handouts(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(prepare, "BLOCK_BYTES", block_bytes)
    text = song_text(30) + "𠺕 half-width, and emoji 🌸\t"
    prepare.prepare(write(tmp_path, text.encode()))
    assert_as_in_the_handout(tmp_path, text)


def test_byte_order_mark_and_windows_line_ends_are_no_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "BLOCK_BYTES", 5)
    text = song_text(5)
    prepare.prepare(write(tmp_path, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()))
    assert_as_in_the_handout(tmp_path, text)


def test_more_than_65535_characters_take_uint32(tmp_path):
    text = "".join(map(chr, [*range(0x20, 0xD800), *range(0x10000, 0x13000)])) + "end" * 9
    prepare.prepare(write(tmp_path, text.encode()))
    assert_as_in_the_handout(tmp_path, text)
    assert len(load_dataset(tmp_path)[1]) == int(len(text) * 0.9)


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


def test_vocabulary_survives_saving(tmp_path):
    vocabulary = Vocabulary("\n+。清𠺕", {"酹江月": "念奴娇"})
    vocabulary.save(tmp_path / "meta.pkl")
    assert Vocabulary.load(tmp_path / "meta.pkl") == vocabulary


class Hostile:
    def __reduce__(self):
        return os.system, ("touch planted",)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        pickle.dumps({"vocab_size": 2}),
        pickle.dumps([1]),
        pickle.dumps({"vocab_size": 2, "stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "a"}}),
        pickle.dumps({"vocab_size": 2, "stoi": {"a": 1, "b": 0}, "itos": {0: "a", 1: "b"}}),
        pickle.dumps({"vocab_size": 1, "stoi": {"ab": 0}, "itos": {0: "ab"}}),
        pickle.dumps({"vocab_size": 0, "stoi": {}, "itos": {}}),
        pickle.dumps({"vocab_size": 1, "stoi": {"a": 0}, "itos": {0: "a"}, "aliases": 3}),
        pickle.dumps({"vocab_size": 1, "stoi": {"a": 0}, "itos": {0: "a"}, "aliases": {"酹江月": 3}}),
        pickle.dumps({"vocab_size": 1, "stoi": {"a": 0}, "itos": {0: "a"}, "x": Hostile()}),
    ],
)
def test_a_broken_or_hostile_meta_is_refused(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        Vocabulary.load(tmp_path / "meta.pkl")
    assert os.listdir(tmp_path) == ["meta.pkl"]


def test_a_truncated_meta_is_refused_at_any_length(tmp_path):
    Vocabulary("abc").save(tmp_path / "meta.pkl")
    content = (tmp_path / "meta.pkl").read_bytes()
    for length in range(len(content)):
        (tmp_path / "meta.pkl").write_bytes(content[:length])
        with pytest.raises(UserError):
            Vocabulary.load(tmp_path / "meta.pkl")


def test_aliases_stay_when_the_data_set_is_made_again(tmp_path):
    write(tmp_path, song_text(5).encode())
    prepare.prepare(tmp_path)
    vocabulary = load_vocabulary(tmp_path)
    Vocabulary(vocabulary.chars, {"酹江月": "念奴娇"}).save(tmp_path / "meta.pkl")
    prepare.prepare(tmp_path)
    assert load_vocabulary(tmp_path).aliases == {"酹江月": "念奴娇"}


def test_a_damaged_meta_is_made_anew(tmp_path):
    prepare.prepare(write(tmp_path, song_text(5).encode()))
    (tmp_path / "meta.pkl").write_bytes(b"damaged")
    prepare.prepare(tmp_path)
    assert_as_in_the_handout(tmp_path, song_text(5))


@pytest.mark.parametrize("use", [load_dataset, prepare.prepare])
def test_a_data_set_that_a_kill_left_in_ready_takes_its_place_first(tmp_path, use):
    prepare.prepare(write(tmp_path / "data", song_text(5).encode()))
    (tmp_path / "data").rename(tmp_path / ".ready")
    (tmp_path / "data").mkdir()
    (tmp_path / ".ready").rename(tmp_path / "data" / ".ready")
    use(tmp_path / "data")
    assert_as_in_the_handout(tmp_path / "data", song_text(5))
    assert not (tmp_path / "data" / ".ready").exists()


def test_half_a_data_set_that_a_kill_left_in_new_is_thrown_away(tmp_path):
    write(write(tmp_path, song_text(5).encode()) / ".new", b"half")
    prepare.prepare(tmp_path)
    assert_as_in_the_handout(tmp_path, song_text(5))
    assert sorted(os.listdir(tmp_path)) == ["forms.json", "input.txt", "meta.pkl", "train.bin", "val.bin"]


def test_forms_are_learned_from_the_beginning_of_the_training_split(tmp_path, monkeypatch):
    poems = [f"+++{tune}\n春夏秋冬。\n\n" for tune in "甲" * 60 + "乙" * 30 + "丙" * 10]
    write(tmp_path, "".join(poems).encode())
    prepare.prepare(tmp_path)
    assert set(Forms.load(tmp_path).tunes) == {"甲", "乙"}
    monkeypatch.setattr(prepare, "MAX_FORM_CHARACTERS", 50 * len(poems[0]))
    prepare.prepare(tmp_path)
    assert set(Forms.load(tmp_path).tunes) == {"甲"}


@pytest.mark.parametrize("size", [3, 1000])
def test_a_poem_that_the_cut_goes_through_teaches_nothing(size):
    poems = [(f"+++{tune}\n", "春夏。\n\n") for tune in ("清平乐", "如梦令", "浣溪沙")]
    text = "".join(title + body for title, body in poems)
    for cut, whole in ((20, 1), (24, 1), (30, 2)):
        blocks = (text[i : i + size] for i in range(0, len(text), size))
        found = [tune for tune, _ in prepare.complete_poems(blocks, cut)]
        assert found == ["清平乐", "如梦令"][:whole], cut


def test_an_endless_line_is_given_in_parts(monkeypatch):
    monkeypatch.setattr(prepare, "BLOCK_BYTES", 7)
    parts = list(prepare.lines(iter(["春夏秋冬"] * 100), 350))
    assert "".join(parts) == ("春夏秋冬" * 100)[:350] and max(map(len, parts)) < 12


def data_set(folder) -> dict[str, bytes]:
    finish_replacing(folder)  # what every reader does first
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("step", ["fsync", "rename", "replace 0", "replace 1", "replace 2", "write_splits"])
def test_a_failure_at_any_step_leaves_the_old_or_the_new_data_set(tmp_path, monkeypatch, step):
    prepare.prepare(write(tmp_path, song_text(20).encode()))
    old = data_set(tmp_path)
    write(tmp_path, song_text(20, seed=1).encode())
    name, _, nth = step.partition(" ")
    owner = {"fsync": prepare.os, "write_splits": prepare}.get(name, prepare.Path)
    original, calls = getattr(owner, name), []

    def fail(*args):
        calls.append(args)
        if len(calls) > int(nth or 0):
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, fail)
        prepare.prepare(tmp_path)
    after = data_set(tmp_path)
    prepare.prepare(tmp_path)
    new = data_set(tmp_path)
    del old["input.txt"], after["input.txt"], new["input.txt"]
    assert old != new and after == (new if name == "replace" else old)


def test_kill_9_at_random_moments_leaves_one_data_set(tmp_path):
    texts = [song_text(3000, seed).encode() for seed in (0, 1)]
    sets = []
    for text in texts:
        prepare.prepare(write(tmp_path, text))
        sets.append(data_set(tmp_path))
    context = multiprocessing.get_context("fork")
    began = time.perf_counter()
    prepare.prepare(tmp_path)
    seconds = time.perf_counter() - began
    for kill in range(20):
        (tmp_path / "input.txt").write_bytes(texts[kill % 2])
        process = context.Process(target=prepare.prepare, args=(tmp_path,))
        process.start()
        time.sleep(seconds * 1.2 * kill / 20)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = data_set(tmp_path)
        assert any(all(found[name] == whole[name] for name in found if name != "input.txt") for whole in sets)


def test_bad_corpora_get_one_line(tmp_path, assert_user_error, monkeypatch):
    monkeypatch.setattr(prepare, "BLOCK_BYTES", 2)  # the byte is told from the beginning of the file
    bad = {
        "no_text": (None, "no input.txt"),
        "latin": ("café crème".encode("latin-1"), "not UTF-8: byte 3 is 0xe9"),
        "cut": ("清平乐".encode()[:-1], "not UTF-8"),
        "empty": (b"", "too few to split"),
        "short": ("清平乐".encode(), "too few to split"),
    }
    for name, (content, words) in bad.items():
        folder = tmp_path / name
        folder.mkdir()
        if content is not None:
            (folder / "input.txt").write_bytes(content)
        assert_user_error(prepare, "--data_root", folder, words=[words])
        assert os.listdir(folder) == ([] if content is None else ["input.txt"])


def test_a_missing_folder_is_named_with_what_was_meant(assert_user_error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_user_error(prepare, "--data_root", "data/quansonci", words=["did you mean data/quansongci?"])
    assert os.listdir(tmp_path) == []


def test_a_reader_cannot_change_the_data_set(data_root):
    assert not any(split.flags.writeable for split in load_dataset(data_root)[1:])


def test_data_that_do_not_belong_together_are_found(data_root, tmp_path):
    def broken(name, content):
        for path in data_root.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / name).write_bytes(content)
        return load_dataset(tmp_path)

    with pytest.raises(UserError, match=r"train\.bin has the id 65535, outside the vocabulary"):
        broken("train.bin", b"\xff\xff" * 100)
    with pytest.raises(UserError, match=r"train\.bin has the id .*, outside the vocabulary"):
        size = len(load_vocabulary(data_root))  # the first id that there is not
        broken("train.bin", size.to_bytes(2, "little") * 100)
    with pytest.raises(UserError, match=r"train\.bin is missing or truncated"):
        broken("train.bin", b"\0" * 101)  # half a token
    with pytest.raises(UserError, match=r"val\.bin is missing or truncated"):
        broken("val.bin", b"\x01")
    with pytest.raises(UserError, match=r"val\.bin is missing or truncated"):
        broken("val.bin", b"\x01\x00")  # one token, and none to predict
    with pytest.raises(UserError, match=r"val\.bin is missing or truncated"):
        broken("val.bin", b"")


def test_the_commonest_reason_for_leaving_out_a_poem_comes_first(capsys):
    prepare.report_cleaning(1_000, {"fragment": 1, "stray symbols": 20, "characters lost": 3})
    assert capsys.readouterr().out.split("\n  ") == [
        "全宋词: 1,024 poems, 1,000 kept; dropped:",
        "    20  stray symbols",
        "     3  characters lost",
        "     1  fragment\n",
    ]


def test_the_command_prints_what_it_made(call, tmp_path):
    text = song_text(10)
    status, out, _ = call(prepare, "-data_root", write(tmp_path / "own", text.encode()))
    assert status == 0
    assert f"{len(text):,} characters, {len(set(text)):,} of them different" in out
    assert f"{int(len(text) * 0.9):,} tokens" in " ".join(out.split())
