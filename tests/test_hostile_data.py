"""Checkpoints and forms, damaged: whatever is in them ends in a result or in one line."""

import json
import math
import os
import pickle
import random
import sys

import hypothesis.strategies as st
import pytest
import torch
from conftest import QUICK, TINY
from hostile import (
    HOSTILE,
    JSON,
    bounded,
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

import train
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary, load_vocabulary
from songci.forms import templates as forms
from songci.forms.templates import Forms
from songci.forms.writer import FormRules, FormWriter
from songci.generation import Text, generate
from songci.training.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_fsync")]


@pytest.fixture
def own_data(tuned_root, file):
    """A copy of a good data set, to be damaged."""
    for path in tuned_root.iterdir():
        copy = file(path.name, path.read_bytes())
    return copy.parent


# --- checkpoints ------------------------------------------------------------------------------------------------------


def use_checkpoint(path) -> None:
    """What every reader of a model does, in short."""
    model, vocabulary, _ = load_checkpoint(path)
    vocabulary.chars.encode()
    for _ in generate(model.eval(), [Text(model.config.max_seq_len, (), [0, 1], 1)], 2):
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


class Planted:
    """As a pickle: a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_code_is_run_from_a_checkpoint(tmp_path, tuned_ckpt):
    """In the zip file of today, and in the plain pickles of earlier versions of torch."""
    parts, path, marker = parts_of(tuned_ckpt / "best.pt"), tmp_path / "best.pt", tmp_path / "marker"
    code = f"open({str(marker)!r}, 'w').close()"
    for call in (Planted(os.system, f"touch {marker}"), Planted(exec, code), Planted(eval, code)):
        for version in range(6):
            content = pickle.dumps({"config": call}, version)
            pickle.loads(content)
            marker.unlink()  # it would run if it were let
            old = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + content
            for whole in (content, old, put_together(path, parts | {"data.pkl": content}).read_bytes()):
                path.write_bytes(whole)
                with pytest.raises(UserError, match="damaged"):
                    load_checkpoint(path)
                assert not marker.exists()


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


# --- forms ------------------------------------------------------------------------------------------------------------


def use_forms(folder, vocabulary, rng) -> None:
    """Shows and checks with the forms, and writes a poem of random characters as the rules allow them."""
    found = Forms.load(folder)
    for tune in list(found.tunes)[:3]:
        forms.show(tune, found)
        forms.marked(tune, "东红一丁七。一丁，一丁七。", found)
    rules = FormRules(found, vocabulary, rng.choice(["", "", "一丁"]), rng.choice(["", "", "东"]))
    writer = FormWriter(rules, rng.choice(["", "+++", "+++清平乐\n", "+++如"]))
    for _ in range(25_000):  # more than the longest form has
        if writer.done:
            return
        writer.append(rng.choice(writer.allowed().nonzero().flatten().tolist()))
    raise AssertionError("the poem has no end")


@fuzz(100)
@given(st.one_of(st.binary(), JSON))
@example("[" * 200_000)
@example(json.dumps({"tunes": {"清平乐": []}, "rhyme_classes": []}))
def test_any_forms(own_data, file, content):
    file("forms.json", content)
    case("forms.json", use_forms, own_data, load_vocabulary(own_data), random.Random(0))


def test_damaged_forms(own_data, file):
    rng, good = random.Random(10), (own_data / "forms.json").read_bytes()
    vocabulary, hostile = load_vocabulary(own_data), [json.loads(good)]
    for _ in range(250):
        file("forms.json", damaged(good, rng))
        case("forms.json", use_forms, own_data, vocabulary, rng)
    for changed in hostile_values(*hostile, seed=11, count=250):
        file("forms.json", json.dumps(changed))
        case("forms.json", use_forms, own_data, vocabulary, rng)


NAMES = st.text(st.sampled_from("a\0。.!！（清"), min_size=1, max_size=4).filter(
    lambda name: name == forms.tune_of(name)
)


@fuzz(60)
@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.integers(0, 2**20))
def test_forms_with_tunes_of_any_name(own_data, file, names, seed):
    """Marks in a tune's name are characters like others: a mark of the same kind would spell another name."""
    template = {"form": "2。2。", "support": 2, "scheme": "aa", "pauses": [], "breaks": [], "repeats": []}
    file("forms.json", json.dumps({"tunes": {name: [template] for name in names}, "rhyme_classes": ["东红"]}))
    vocabulary, rng = Vocabulary("\n+。，.!！（\0a清东红"), random.Random(seed)

    def write():
        writer = FormWriter(FormRules(Forms.load(own_data), vocabulary), "\n")
        for _ in range(100):
            if not writer.done:
                writer.append(rng.choice(writer.allowed().nonzero().flatten().tolist()))
        assert writer.done and writer.tune in names

    case("forms.json", write)


def test_a_subtitle_of_brackets_is_read_in_time():
    template = forms.Template(((2, "。"),), 2, "-")
    rules = FormRules(Forms({"清": [template]}, {}), Vocabulary("\n+。（）清"))
    with bounded():
        assert FormWriter(rules, "+++清" + "（" * 100_000 + "）").prefix
    with pytest.raises(UserError, match="not closed"):
        FormWriter(rules, "+++清" + "（" * 5)
