"""Every text that a user gives, and the small files of a run: whatever is in it ends in a result or in one line."""

import functools
import json
import random
import sys

import hypothesis.strategies as st
import pytest
from hostile import ANY_TEXT, CASES, JSON, NEAR_TEXT, POEMS, case, damaged, fuzz, hostile_values
from hypothesis import example, given

import sample
from songci import evaluate
from songci.attention import stats as attnstats
from songci.cli import read_text
from songci.corpus import quansongci
from songci.corpus.vocabulary import load_vocabulary
from songci.forms import templates as forms
from songci.forms.templates import Forms
from songci.training import runlog
from songci.training.checkpoint import load_model

pytestmark = pytest.mark.usefixtures("no_fsync")


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


@pytest.mark.filterwarnings("ignore:overflow")  # in matplotlib, of 1e308
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


# --- what a user writes -----------------------------------------------------------------------------------------------


@pytest.fixture
def write_poems(tuned_root, tuned_ckpt, monkeypatch):
    """sample.py's main(), with a model that is loaded once."""
    trained = load_model(tuned_ckpt)
    monkeypatch.setattr(sample, "load_model", lambda *args: trained)
    data_vocabulary, found = load_vocabulary(tuned_root), Forms.load(tuned_root)
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
    model, vocabulary, _ = loaded(tuned_ckpt)
    path = file("text.txt", content)
    reading = case("text", lambda: attnstats.read(model, vocabulary, read_text(path)))
    if reading:
        case("text", lambda: attnstats.head_statistics(reading.weights, reading.text))


loaded = functools.cache(load_model)


def check_file(path, found) -> None:
    for tune, body in forms.read_poems(read_text(path).splitlines(keepends=True)):
        forms.marked(tune, body, found)


@fuzz(250)
@given(st.one_of(st.binary(), PROMPT))
@example("+++清平乐\n" + "春" * 1_000_000)
@example("+++清平乐\n" + "春。" * 300_000)
@example("+++" + "清平" * 100_000)
def test_any_poems_to_check(tuned_root, file, content):
    case("check", check_file, file("poems.txt", content), Forms.load(tuned_root))


@fuzz(100)
@given(ANY_TEXT)
@example("\0")
def test_any_name_of_a_file(name):
    case("check", read_text, name)


@fuzz(60)
@given(st.one_of(st.binary(), JSON), st.integers(0, 21))
def test_any_files_of_quansongci(file, content, number):
    """As laid there by hand. Those that are not the known ones are not even parsed."""
    for i, name in enumerate(quansongci.FILES):
        path = file(name, content if i == number else b"[]")
    assert case("ci.song", quansongci.obtain, path.parent, "file:///nowhere") is None


# --- all --------------------------------------------------------------------------------------------------------------


def test_these_are_many_cases():
    kinds = "result.json log.csv out prompt start text check ci.song"
    counts = {kind: CASES[kind] for kind in kinds.split()}
    if not all(counts.values()):
        pytest.skip("not all tests of this file were run")
    assert sum(counts.values()) >= 2000, counts
