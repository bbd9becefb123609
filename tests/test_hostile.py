"""Every file that the programs read, and every prompt: whatever is in them ends in a result or in one line."""

import functools
import json
import math
import os
import pickle
import random
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import QUICK, TINY, tuned_text
from hostile import CASES, LOST, bounded, case, damaged, fuzz, leaves, parts_of, put_together, replaced
from hypothesis import example, given

import attnstats
import attnvis
import evaluate
import forms
import prepare
import quansongci
import runlog
import sample
import train
import windows
from cli import UserError
from constraint import FormRules, FormWriter
from forms import Forms
from generation import Text, generate
from model import load_checkpoint, load_model
from prepare import Vocabulary
from resume import resume

ANY_TEXT = st.text(st.characters(), max_size=40)  # surrogates too
NEAR_TEXT = st.text(st.sampled_from("+\n\r\t \0。，、！.（）()清平乐如梦令东红一丁七□é😀\u2028"), max_size=200)
POEMS = st.lists(st.one_of(NEAR_TEXT, st.sampled_from(tuned_text(20).split("\n\n")))).map("\n\n".join)
HOSTILE = [None, True, -1, 0, 1, 2**31, 2**70, 10**400, 0.5, -1.0, 1e308, float("nan"), float("inf"), "", "x", "\ud800"]
HOSTILE += [[], [[]], {}, {"x": 1}, LOST, "9" * 50, ["a"], "＋１"]
KINDS = "input.txt meta.pkl bin best.pt last.pt result.json log.csv forms.json prompt start text check ci.song out"


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Whether a file outlives a power failure is another question, and is asked elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def file(tmp_path):
    """Writes content into a file, by its name."""

    def write(name, content):
        content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def hostile_values(value, seed: int, count: int):
    """`count` copies of a nested value, each with a hostile value at a random place, or at two."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = value
        for _ in range(rng.choice([1, 1, 2])):
            changed = replaced(changed, rng.choice(leaves(changed)), rng.choice(HOSTILE))
            if not isinstance(changed, (dict, list)):
                break
        yield None if changed is LOST else changed


# --- the corpus and what prepare.py makes of it -----------------------------------------------------------------------


def use_data(folder) -> None:
    """What training and forms.py do with a data set."""
    vocabulary, *splits = prepare.load_dataset(folder)
    title = windows.title_ids(vocabulary)
    for tokens in splits:
        poems = windows.PoemWindows.of(tokens, title, 8)
        inputs, _ = windows.Windows(tokens, 8, 1, poems if len(poems) else None).batch(3, 4)
        assert inputs.min() >= 0 and inputs.max() < len(vocabulary)
    found = Forms.load(folder)
    forms.rhymes_report(found, forms.read_text(folder / "input.txt"))


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
    sample.canonical_title("+++清平乐\n", vocabulary.aliases)


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
    for _ in generate(model.eval(), [Text(model.config, [0, 1], 1)], 2):
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


def test_checkpoints_with_hostile_values(tmp_path, tuned_ckpt):
    good = torch.load(tuned_ckpt / "best.pt")
    good = {**good, "config": {**good["config"], "title": list(good["config"]["title"])}, "model": dict(good["model"])}
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


# --- the files of a run -----------------------------------------------------------------------------------------------


@pytest.fixture
def own_run(tuned_ckpt, file):
    """result.json and log.csv of a good run, to be damaged."""
    for name in ("result.json", "log.csv"):
        copy = file(name, (tuned_ckpt / name).read_bytes())
    return copy.parent


def use_run(folder, data_root, picture=None) -> None:
    result, rows = evaluate.read_run(folder)
    evaluate.markdown_table({"run": result})
    evaluate.model_scores(folder, data_root)
    if picture:
        runlog.plot_curves({"run": rows}, picture)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=10,
).map(json.dumps)


@fuzz(100)
@given(st.one_of(st.binary(), JSON))
@example("[" * 200_000)
@example('{"a":' * 200_000)
@example('{"best_val_loss": ' + "9" * 400 + "}")
def test_any_result(own_run, file, tuned_root, content):
    file("result.json", content)
    case("result.json", use_run, own_run, tuned_root)


def test_damaged_results(own_run, file, tuned_root):
    rng, good = random.Random(7), (own_run / "result.json").read_bytes()
    for _ in range(100):
        file("result.json", damaged(good, rng))
        case("result.json", use_run, own_run, tuned_root)
    for changed in hostile_values(json.loads(good), seed=8, count=150):
        file("result.json", json.dumps(changed))
        case("result.json", use_run, own_run, tuned_root)


CSV = st.text(st.sampled_from('iter,lr,train_loss\n\r"0123456789.e-+nainf\0é'), max_size=200)


@fuzz(150)
@given(st.one_of(st.binary(), CSV, CSV.map(lambda rows: ",".join(runlog.LOG_FIELDS) + "\n" + rows)))
def test_any_log(own_run, file, tuned_root, content):
    file("log.csv", content)
    case("log.csv", use_run, own_run, tuned_root)


def test_damaged_logs(own_run, file, tuned_root, tmp_path):
    """A log that can be read can be drawn; that takes long, so some are."""
    rng, good = random.Random(9), (own_run / "log.csv").read_text()
    header, *rows = good.splitlines()
    for i in range(250):
        file("log.csv", damaged(good.encode(), rng))
        case("log.csv", use_run, own_run, tuned_root, tmp_path / "curves.png" if i % 20 == 0 else None)
    for number in ("nan", "inf", "-inf", "1e308", "-1e308", "-1", "0", "1e-320", "9" * 400, "1_0", "１"):
        cells = rows[0].split(",")
        cells = [number if rng.random() < 0.7 else cell for cell in cells]
        file("log.csv", "\n".join([header, ",".join(cells), *rows]))
        case("log.csv", use_run, own_run, tuned_root, tmp_path / "curves.png")


@fuzz(100)
@given(st.one_of(st.binary(), st.text(st.sampled_from("<!-- ablation -->/\n\r"), max_size=80)))
@example("<!-- ablation -->" * 50_000)
def test_any_report_to_write_into(file, content):
    case("out", evaluate.write_section, file("results.md", content), "ablation", "the table")


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
    case("forms.json", use_forms, own_data, prepare.load_vocabulary(own_data), random.Random(0))


def test_damaged_forms(own_data, file):
    rng, good = random.Random(10), (own_data / "forms.json").read_bytes()
    vocabulary, hostile = prepare.load_vocabulary(own_data), [json.loads(good)]
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


# --- what a user writes -----------------------------------------------------------------------------------------------


@pytest.fixture
def write_poems(tuned_root, tuned_ckpt, monkeypatch):
    """sample.py's main(), with a model that is loaded once."""
    model, vocabulary = load_model(tuned_ckpt)
    monkeypatch.setattr(sample, "load_model", lambda *args: (model, vocabulary))
    data_vocabulary, found = prepare.load_vocabulary(tuned_root), Forms.load(tuned_root)
    monkeypatch.setattr(sample, "load_vocabulary", lambda folder: data_vocabulary)
    monkeypatch.setattr(sample.Forms, "load", lambda folder: found)

    def write(*flags):
        monkeypatch.setattr(sys, "argv", ["sample.py", "--data_root", str(tuned_root), *flags])
        try:
            sample.main()
        except SystemExit as stop:  # argparse, in one line
            assert stop.code == 2

    return lambda *flags: write("--num_samples", "1", "--max_new_tokens", "3", "--device", "cpu", *flags)


PROMPT = st.one_of(ANY_TEXT, NEAR_TEXT, POEMS)


@fuzz(350)
@given(PROMPT, st.sampled_from([[], ["--form"], ["--stop_at_poem_end", "--format", "jsonl"]]))
@example("FILE:\0", [])
@example("FILE:\ud800", [])
@example("FILE:/", [])
@example("+++清平乐" + "（" * 100_000, ["--form"])
def test_any_start(write_poems, start, flags):
    case("start", write_poems, f"--start={start}", *flags)


@fuzz(200)
@given(
    st.sampled_from(["--acrostic", "--rhyme"]),
    st.one_of(ANY_TEXT, st.text(st.sampled_from("东红丁一\0。□"), max_size=5)),
)
def test_any_acrostic_and_rhyme(write_poems, flag, value):
    case("start", write_poems, f"{flag}={value}", "--start=+++清平乐")


@fuzz(150)
@given(st.one_of(st.binary(), PROMPT), st.booleans())
@example("+++清平乐" + "（" * 100_000 + "）", True)
@example("+++清平乐\n" + "一" * 300_000, True)
def test_any_prompt_file(write_poems, file, content, form):
    case("prompt", write_poems, "--start", f"FILE:{file('prompt.txt', content)}", *["--form"] * form)


@fuzz(150)
@given(st.one_of(st.binary(), PROMPT))
def test_any_text_to_look_at(tuned_ckpt, file, content):
    model, vocabulary = loaded(tuned_ckpt)
    path = file("text.txt", content)
    reading = case("text", lambda: attnstats.read(model, vocabulary, attnvis.read_text(path)))
    if reading:
        case("text", lambda: attnstats.head_statistics(reading.weights, reading.text))


loaded = functools.cache(load_model)


def check_file(path, found) -> None:
    for tune, body in forms.read_poems(forms.read_text(path).splitlines(keepends=True)):
        forms.marked(tune, body, found)


@fuzz(250)
@given(st.one_of(st.binary(), PROMPT))
@example("+++清平乐\n" + "春" * 1_000_000)
@example("+++清平乐\n" + "春。" * 300_000)
@example("+++" + "清平" * 100_000)
def test_any_poems_to_check(tuned_root, file, content):
    case("check", check_file, file("poems.txt", content), Forms.load(tuned_root))


@fuzz(50)
@given(ANY_TEXT)
@example("\0")
def test_any_name_of_a_file(write_poems, name):
    for read in (forms.read_text, attnvis.read_text):
        case("check", read, prepare.Path(name))


@fuzz(60)
@given(st.one_of(st.binary(), JSON), st.integers(0, 21))
def test_any_files_of_quansongci(file, content, number):
    """As laid there by hand. Those that are not the known ones are not even parsed."""
    for i, name in enumerate(quansongci.FILES):
        path = file(name, content if i == number else b"[]")
    assert case("ci.song", quansongci.obtain, path.parent, "file:///nowhere") is None


# --- all --------------------------------------------------------------------------------------------------------------


def test_these_are_5000_cases():
    if set(CASES) != set(KINDS.split()):
        pytest.skip("not all tests of this file were run")
    assert CASES.total() >= 5000, CASES
