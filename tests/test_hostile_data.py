"""Every file that prepare.py and train.py write, damaged: whatever is in it ends in a result or in one line."""

import io
import math
import pickle
import random
import sys
import zipfile

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import QUICK, TINY, tuned_text
from hostile import (
    ANY_TEXT,
    CASES,
    HOSTILE,
    POEMS,
    case,
    damaged,
    fuzz,
    hostile_values,
    leaves,
    parts_of,
    put_together,
    replaced,
)
from hypothesis import example, given
from songci.training.resume import resume

import prepare
import train
from songci.cli import UserError, read_text
from songci.corpus import pickles, windows
from songci.corpus.vocabulary import Vocabulary, load_dataset
from songci.forms import __main__ as forms
from songci.forms.poems import canonical_title
from songci.forms.templates import Forms
from songci.generation import Text, generate
from songci.training.checkpoint import Trained, load_checkpoint

pytestmark = pytest.mark.usefixtures("no_fsync")


# --- the corpus and what prepare.py makes of it -----------------------------------------------------------------------


def use_data(folder) -> None:
    """What training and forms.py do with a data set."""
    vocabulary, *splits = load_dataset(folder)
    title = windows.title_ids(vocabulary)
    for tokens in splits:
        poems = windows.ScoredWindows.of_poems(tokens, title, 8)
        inputs, _ = windows.Windows(tokens, 8, 1, poems if len(poems) else None).batch(3, 4)
        assert inputs.min() >= 0 and inputs.max() < len(vocabulary)
    found = Forms.load(folder)
    forms.rhymes_report(found, read_text(folder / "input.txt"))


def make_and_use(folder) -> None:
    prepare.prepare(folder)
    use_data(folder)


@fuzz(400)
@given(st.one_of(st.binary(max_size=60), POEMS.map(str.encode), ANY_TEXT.map(lambda t: t.encode("utf-16"))))
def test_any_input_text(file, content):
    case("input.txt", make_and_use, file("input.txt", content).parent)


def test_damaged_input_text(file):
    rng, good = random.Random(1), tuned_text(40).encode()
    for _ in range(200):
        case("input.txt", make_and_use, file("input.txt", damaged(good, rng)).parent)


PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), ANY_TEXT, st.binary(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(ANY_TEXT, inner)),
    max_leaves=10,
)
META = st.fixed_dictionaries(
    {"vocab_size": st.one_of(st.integers(0, 3), PLAIN)},
    optional={
        "itos": st.one_of(st.dictionaries(st.integers(0, 2), st.one_of(st.characters(), PLAIN)), PLAIN),
        "stoi": st.one_of(st.dictionaries(st.characters(), st.integers(0, 2)), PLAIN),
        "aliases": st.one_of(st.dictionaries(ANY_TEXT, ANY_TEXT), PLAIN),
    },
)


def use_vocabulary(path) -> None:
    vocabulary = Vocabulary.load(path)
    assert vocabulary.decode(vocabulary.encode(vocabulary.chars)) == vocabulary.chars
    vocabulary.chars.encode()
    canonical_title("+++清平乐\n", vocabulary.aliases)


@fuzz(500)
@given(st.one_of(st.binary(max_size=60), st.builds(pickle.dumps, st.one_of(META, PLAIN), st.integers(0, 5))))
@example(pickle.dumps({"vocab_size": 2, "itos": {0: "a", 1: "a"}, "stoi": {"a": 1}}))
@example(pickle.dumps({"vocab_size": 1, "itos": {0: "\ud800"}, "stoi": {"\ud800": 0}}))
def test_any_meta(file, content):
    case("meta.pkl", use_vocabulary, file("meta.pkl", content))


def test_damaged_meta(file, data_root):
    rng, good = random.Random(2), (data_root / "meta.pkl").read_bytes()
    for protocol in range(6):
        content = pickle.dumps(pickle.loads(good), protocol)
        for _ in range(120):
            case("meta.pkl", use_vocabulary, file("meta.pkl", damaged(content, rng)))


@pytest.fixture
def own_data(tuned_root, file):
    """A copy of a good data set, to be damaged."""
    for path in tuned_root.iterdir():
        copy = file(path.name, path.read_bytes())
    return copy.parent


@fuzz(200)
@given(st.sampled_from(["train.bin", "val.bin"]), st.one_of(st.binary(), st.lists(st.integers(0, 90))))
def test_any_tokens(own_data, file, name, content):
    good = (own_data / name).read_bytes()
    file(name, content if isinstance(content, bytes) else np.array(content, dtype="<u2").tobytes())
    case("bin", use_data, own_data)
    file(name, good)


def test_damaged_tokens(own_data, file):
    rng, good = random.Random(3), (own_data / "train.bin").read_bytes()
    for _ in range(200):
        file("train.bin", damaged(good, rng))
        case("bin", use_data, own_data)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def use_checkpoint(path) -> None:
    """What every reader of a model does, in short."""
    model, vocabulary, _ = load_checkpoint(path)
    vocabulary.chars.encode()
    for _ in generate(model, [Text(Trained(model, vocabulary), vocabulary.decode([0, 1]), 1, max_new_tokens=2)]):
        pass


@fuzz(100)
@given(st.binary(max_size=80))
def test_any_checkpoint(file, content):
    case("best.pt", use_checkpoint, file("best.pt", content))
    case("best.pt", use_checkpoint, file("best.pt", b"PK\3\4" + content))


def test_damaged_checkpoints(file, tuned_ckpt):
    """The file as a whole; its pickle, in a file that is otherwise whole; and its weights."""
    rng, good = random.Random(4), (tuned_ckpt / "best.pt").read_bytes()
    parts, path = parts_of(tuned_ckpt / "best.pt"), file("best.pt", good)
    for _ in range(250):
        case("best.pt", use_checkpoint, file("best.pt", damaged(good, rng)))
    for _ in range(700):
        put_together(path, parts | {"data.pkl": damaged(parts["data.pkl"], rng)})
        case("best.pt", use_checkpoint, path)
    for _ in range(100):
        name = rng.choice([name for name in parts if name.startswith("data/")])
        put_together(path, parts | {name: damaged(parts[name], rng)})
        case("best.pt", use_checkpoint, path)


def test_a_flipped_bit_of_a_weight_is_found(file, tuned_ckpt):
    """One that leaves a number like any other."""
    content, weight = bytearray((tuned_ckpt / "best.pt").read_bytes()), parts_of(tuned_ckpt / "best.pt")["data/0"]
    content[content.index(weight)] ^= 1
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(file("best.pt", content))


@pytest.mark.parametrize("version", [0, 1, 3, 4, 5])
def test_a_checkpoint_of_another_version_of_pickle_is_refused(tmp_path, tuned_ckpt, version):
    """torch would read it, and warn."""
    parts = parts_of(tuned_ckpt / "best.pt")
    assert parts["data.pkl"][:2] == b"\x80\2"
    put_together(tmp_path / "best.pt", parts | {"data.pkl": bytes([0x80, version]) + parts["data.pkl"][2:]})
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path / "best.pt")


@pytest.mark.parametrize("place", [0, 48, 56, 64, 76, 92])
def test_all_readers_find_the_same_directory_of_a_checkpoint(tuned_ckpt, place):
    """The marks of the three records at its end, and the three places that they tell."""
    content = bytearray((tuned_ckpt / "best.pt").read_bytes())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        pickles._check_end(archive.fp, len(content), archive.start_dir)
    content[len(content) - 98 + place] ^= 1
    with pytest.raises(ValueError, match=r"not the end|two directories"):
        pickles._check_end(io.BytesIO(content), len(content), archive.start_dir)


def test_checkpoints_with_hostile_values(tmp_path, tuned_ckpt):
    good = torch.load(tuned_ckpt / "best.pt")
    good = {**good, "model": dict(good["model"])}
    for part, count in (("config", 200), ("vocabulary", 50), ("model", 100)):
        for changed in hostile_values(good[part], seed=5, count=count):
            torch.save(good | {part: changed}, tmp_path / "best.pt")
            case("best.pt", use_checkpoint, tmp_path / "best.pt")


@pytest.fixture
def go_on(tuned_root, monkeypatch, tmp_path):
    """Goes on from last.pt in tmp_path, a finished run, for an iteration, and measures."""
    flags = [*TINY, *QUICK, "--dtype", "float32", "--ema", "0.9", "--eval_interval", "13"]
    flags += ["--data_root", str(tuned_root), "--ckpt_path", str(tmp_path)]
    monkeypatch.setattr(train, "plot_curves", lambda runs, path: None)  # most of the time would go here

    def use():
        trainer = train.Trainer(train.parse_args([*flags, "--iters", "13"]))
        resume(trainer)
        _, norm = trainer.step()
        trainer.evaluate(norm)
        return trainer

    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    train.main()
    return use


def test_damaged_states_to_resume_from(go_on, tmp_path):
    path, rng = tmp_path / "last.pt", random.Random(6)
    good, parts = torch.load(path), parts_of(path)
    hostile = [torch.zeros(2), torch.tensor(math.nan), torch.zeros(1).expand(16, 16), torch.zeros(3, dtype=torch.long)]
    hostile += [*HOSTILE, {0: {}}, torch.full((16,), math.inf), [{"iter": 1}]]
    assert case("last.pt", go_on).iteration == 13
    places = {key: [(key, *place) for place in leaves(good[key])] for key in good.keys() - {"model", "vocabulary"}}
    for _ in range(300):
        changed = replaced(good, rng.choice(places[rng.choice(sorted(places))]), rng.choice(hostile))
        torch.save(changed, path)
        case("last.pt", go_on)
    for _ in range(100):
        put_together(path, parts | {"data.pkl": damaged(parts["data.pkl"], rng)})
        case("last.pt", go_on)


# --- all --------------------------------------------------------------------------------------------------------------


def test_these_are_many_cases():
    counts = {kind: CASES[kind] for kind in ["input.txt", "meta.pkl", "bin", "best.pt", "last.pt"]}
    if not all(counts.values()):
        pytest.skip("not all tests of this file were run")
    assert sum(counts.values()) >= 3900, counts
