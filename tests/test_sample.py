import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import venv

import pytest
from conftest import ROOT, prepared, train_tiny
from hostile import ANY_TEXT, NEAR_TEXT, POEMS, case, fuzz
from hypothesis import example, given
from hypothesis import strategies as st

import sample
from songci.corpus.vocabulary import load_vocabulary
from songci.forms.templates import Forms
from songci.runs import load_trained
from songci.writing.decoder import Decoder
from songci.writing.prompt import read_start

DASHES = "-" * 15


def flags(data_root, ckpt_path, *more):
    return ["--data_root", data_root, "--ckpt_path", ckpt_path, "--device", "cpu", *more]


@pytest.fixture
def sampled(call, tuned_root, tuned_ckpt):
    """What sample.py prints with these flags."""

    def run(*more, root=tuned_root):
        status, out, _ = call(sample, *flags(root, tuned_ckpt, "--num_samples", 4, *more))
        assert status == 0
        return out

    return run


@pytest.fixture
def poems(sampled):
    """Its lines of JSON."""
    return lambda *more, **root: list(map(json.loads, sampled("--format", "jsonl", *more, **root).splitlines()))


def stripped(output: str) -> list[str]:
    return [text.strip() for text in output.split(DASHES)]


def test_the_handouts_flags_and_defaults():
    args = sample.parse_args([])
    assert (args.data_root, args.ckpt_path) == ("data/quansongci", "workdirs/quansongci")
    assert read_start(args.start) == "\n"
    assert (args.num_samples, args.max_new_tokens, args.temperature, args.top_k) == (10, 500, 0.8, 200)


def test_stdout_has_the_samples_and_lines_of_dashes_and_nothing_else(call, tuned_root, tuned_ckpt):
    more = ["--start", "+++清平乐", "--num_samples", 3, "--max_new_tokens", 40]
    status, out, err = call(sample, *flags(tuned_root, tuned_ckpt, *more))
    texts = out.removesuffix("\n").split(f"\n{DASHES}\n")
    assert status == 0 and len(texts) == 3 and len(set(texts)) == 3 and "parameters on cpu" in err
    for text in texts:  # 40 is more than max_seq_len, 16
        assert text.startswith("+++清平乐") and len(text) == len("+++清平乐") + 40


@pytest.mark.parametrize(  # the rhyme given, for it is drawn by the seed
    "more", [["--max_new_tokens", 30], ["--start", "+++清平乐", "--rhyme", "东", "--particles", 2]], ids=str
)
def test_the_same_seed_gives_the_same_samples_whatever_the_batch(sampled, more):
    whole, *batches, other = (sampled(*more, *way) for way in ([], ["--batch", 1], ["--batch", 3], ["--seed", 2]))
    assert batches == [whole, whole] and other != whole
    assert len(set(stripped(whole))) == 4 and len(set(stripped(sampled(*more, "--temperature", 0)))) == 1  # greedy


@pytest.mark.parametrize("more", [[], ["--stop_at_poem_end"], ["--form", "--start", "+++如梦令"]], ids=str)
def test_streaming_prints_the_same_samples(sampled, more):
    more = [*more, "--max_new_tokens", 60]
    assert stripped(sampled(*more, "--stream")) == stripped(sampled(*more, *["--particles", 1] * ("--form" in more)))


def test_jsonl_has_a_line_for_each_sample(sampled, poems):
    more = ["--start", "+++清平乐\\n", "--max_new_tokens"]
    lines = poems(*more, 30)
    assert [line["text"] for line in lines] == sampled(*more, 30).removesuffix("\n").split(f"\n{DASHES}\n")
    for i, line in enumerate(lines):
        assert (line["prompt"], line["seed"], line["sample"], line["tokens"]) == ("+++清平乐\n", 1, i, 30)
        assert -20 < line["mean_log_likelihood"] < 0
    assert poems(*more, 0)[0]["mean_log_likelihood"] is None


def test_a_sample_ends_with_its_poem(call, tmp_path):
    """A model that has learned little else than a poem's frame."""
    data_root = prepared(tmp_path / "data", "+++春\n春春。\n\n" * 200)
    quick = ["--iters", 200, "--eval_interval", 100, "--warmup_iters", 5, "--max_seq_len", 8]
    run = train_tiny(data_root, tmp_path / "run", *quick)
    arguments = flags(data_root, run, "--stop_at_poem_end", "--num_samples", 2, "--temperature", 0)
    assert call(sample, *arguments, "--start", "+++春")[1] == f"+++春\n春春。\n\n{DASHES}\n+++春\n春春。\n\n"
    assert stripped(call(sample, *arguments, "--start", "\\n", "--stream")[1]) == ["+++春\n春春。"] * 2
    assert call(sample, *arguments, "--max_new_tokens", 3)[1].startswith("\n+++\n-----")


def test_a_checkpoint_of_another_corpus_or_windows_is_found_out(assert_user_error, data_root, tuned_ckpt, tmp_path):
    assert_user_error(sample, *flags(data_root, tuned_ckpt), words=["another vocabulary"])
    stream = train_tiny(data_root, tmp_path / "run", "--windows", "stream")
    assert_user_error(sample, *flags(data_root, stream, "--stop_at_poem_end"), words=["windows of poems"])


def test_a_copied_run_writes_poems_in_form_without_its_data(
    sampled, call, tuned_ckpt, data_root, tmp_path, monkeypatch
):
    """Where there is no data folder; one that is there and of another corpus is not passed over in silence."""
    usual = sampled("--form", "--start", "+++清平乐")
    run = shutil.copytree(tuned_ckpt, tmp_path / "elsewhere" / "run")
    monkeypatch.chdir(tmp_path)
    more = ["--ckpt_path", run, "--form", "--start", "+++清平乐", "--num_samples", 4]
    assert call(sample, *more)[:2] == (0, usual)
    assert "no data folder" in call(sample, *more, "--data_root", "data/quansongci")[2]
    shutil.copytree(data_root, tmp_path / "data" / "quansongci")
    status, _, err = call(sample, *more)
    assert status == 2 and "another vocabulary" in err
    shutil.rmtree(tmp_path / "data")
    (run / "forms.json").unlink()
    status, _, err = call(sample, *more)
    assert status == 2 and "no forms.json in" in err and "Traceback" not in err
    assert call(sample, *more[:2], "--num_samples", 1, "--max_new_tokens", 5)[0] == 0


@pytest.mark.parametrize(
    "more", [["--max_new_tokens", 60], ["--form", "--rhyme", "东"], ["--start", "+++清平乐\\n□一□□。□"]], ids=str
)
def test_model_py_writes_the_same_poems_as_the_numpy_decoder(call, tuned_root, tuned_ckpt, monkeypatch, more):
    """The likeliest characters, in a window that moves on; --device cpu is model.py, auto without a GPU numpy."""
    found, models = [], []
    original = sample.load
    monkeypatch.setattr(sample, "load", lambda args: models.append((loaded := original(args))[1]) or loaded)
    monkeypatch.setattr(sample, "may_have_gpu", lambda: False)
    for device in ("cpu", "auto"):
        run = ["--data_root", tuned_root, "--ckpt_path", tuned_ckpt, "--device", device, "--temperature", 0]
        _, out, _ = call(sample, *run, *more, "--num_samples", 3, "--format", "jsonl")
        found.append([json.loads(line) for line in out.splitlines()])
    assert [type(model) for model in models] == [sample.PlainModel, Decoder] and len(found[0]) == 3
    for one, other in zip(*found, strict=True):
        assert one.pop("mean_log_likelihood") == pytest.approx(other.pop("mean_log_likelihood"), abs=1e-4)
        assert one == other


@pytest.mark.parametrize("particles", [1, 4])
def test_model_py_writes_poems_in_form_and_looks_ahead(call, tuned_root, tuned_ckpt, particles):
    more = ["--form", "--particles", particles, "--format", "jsonl", "--alternatives", 2, "--num_samples", 3]
    status, out, _ = call(sample, *flags(tuned_root, tuned_ckpt, *more))
    assert status == 0 and all(json.loads(line)["form"] for line in out.splitlines())


HEAVY = ["torch", "matplotlib", "transformers", "bertviz", "pandas"]
NO_HEAVY = """
import runpy, sys
sys.modules.update(dict.fromkeys(sys.argv[1].split(",")))  # an import of these would raise ImportError
sys.argv[:] = sys.argv[2:]
as_script = sys.argv[0].endswith(".py")
(runpy.run_path if as_script else runpy.run_module)(sys.argv[0], run_name="__main__")
"""


def without(packages, name, *args, cwd=ROOT) -> str:
    """What a script or a module prints where these packages cannot be imported."""
    command = [sys.executable, "-c", NO_HEAVY, ",".join(packages), str(name), *map(str, args)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_poems_are_written_checked_and_shown_without_torch(tuned_root, tuned_ckpt, file):
    run = ["--data_root", tuned_root, "--ckpt_path", tuned_ckpt]
    poems = without(HEAVY, ROOT / "sample.py", *run, "--form", "--num_samples", 2)
    assert "。\n" in without(HEAVY, ROOT / "sample.py", *run, "--stream", "--num_samples", 1)
    more = ["--format", "jsonl", "--best_of", 2, "--alternatives", 1, "--num_samples", 1]
    assert json.loads(without(HEAVY, ROOT / "sample.py", *run, *more))["alternatives"]
    checked = without(HEAVY, "songci.forms", *run[:2], "--check", file("poems.txt", poems.split(DASHES)[0]))
    assert "in form" in checked and "○" in without(HEAVY, "songci.forms", *run[:2], "--show", "清平乐")
    scored = without(["torch"], "songci.evaluate", *run, "--samples", 3, "--max_new_tokens", 5)
    assert "3 poems of each kind" in scored


@pytest.mark.slow
def test_the_page_writes_without_torch(tuned_root, tuned_ckpt):
    pytest.importorskip("gradio", reason="gradio is not installed: requirements-page.txt")
    code = "import sys; from songci.page.desk import Page; page = Page(sys.argv[1], [sys.argv[2]]); "
    code += "written = page.written(sys.argv[2], '+++清平乐\\n', 1); page.others(sys.argv[2], written.text, 7); "
    code += "print('torch' in sys.modules, written.text)"
    command = [sys.executable, "-c", code, str(tuned_root), str(tuned_ckpt)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("False +++清平乐\n"), done.stderr


@pytest.mark.slow
def test_poems_are_written_where_only_requirements_write_is_installed(tuned_ckpt, tmp_path):
    """In a fresh environment, from a copied run, with traditional characters."""
    listed, all_listed = (
        re.findall(r"^[^#\s]\S*", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("requirements-write.txt", "requirements.txt")
    )
    assert {re.match(r"\w+", line)[0] for line in listed} == {"numpy", "safetensors"}
    assert set(listed) <= set(all_listed)  # the same versions
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", "requirements-write.txt"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(install, cwd=ROOT, env=env, check=True, timeout=500)
    run = shutil.copytree(tuned_ckpt, tmp_path / "run")
    flags = ["--ckpt_path", str(run), "--form", "--start", "+++清平樂", "--num_samples", "2"]
    done = subprocess.run(
        [python, str(ROOT / "sample.py"), *flags], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and done.stdout.count("+++清平乐\n") == 2, done.stderr


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_printed_and_ends_with_130(tuned_root, tuned_ckpt):
    arguments = flags(tuned_root, tuned_ckpt, "--num_samples", 10**6, "--batch", 2, "--max_new_tokens", 20)
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    # As from a terminal: what is started in the background inherits that Ctrl-C is ignored
    way = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "encoding": "utf-8"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **way)
    try:
        first = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err and "".join(first) + out


def test_a_start_may_have_line_ends_or_come_from_a_file(sampled, file):
    prompt = file("prompt.txt", "\ufeff+++清平乐\n")
    for start in ("+++清平乐\\n", "+++清平乐\n", f"FILE:{prompt}"):
        assert sampled("--start", start, "--num_samples", 1, "--max_new_tokens", 0) == "+++清平乐\n\n"


def test_an_alias_works_on_the_command_line(sampled, tuned_root, tmp_path):
    data = shutil.copytree(tuned_root, tmp_path / "data")
    meta = pickle.loads((data / "meta.pkl").read_bytes()) | {"aliases": {"别名": "清平乐"}}
    (data / "meta.pkl").write_bytes(pickle.dumps(meta))
    assert sampled("--start", "+++别名", "--num_samples", 1, "--max_new_tokens", 0, root=data) == "+++清平乐\n"


def test_other_spellings_work_on_the_command_line_and_are_in_the_run(sampled, tuned_root, tuned_ckpt):
    assert sampled("--start", "+++清平樂\\n東弌風", "--num_samples", 1, "--max_new_tokens", 0) == "+++清平乐\n东一风\n"
    in_run = load_trained(tuned_ckpt).vocabulary.spelling
    assert in_run == load_vocabulary(tuned_root).spelling and in_run["東"] == "东"


def test_of_a_tune_that_the_training_split_lacks_a_draft_is_filled(sampled, tuned_root, tmp_path):
    data = shutil.copytree(tuned_root, tmp_path / "data")
    forms = json.loads((data / "forms.json").read_text(encoding="utf-8")) | {"unseen": ["如乐"]}
    (data / "forms.json").write_text(json.dumps(forms), encoding="utf-8")
    draft = ["--start", "+++如乐\n东□，□红。□□、□。", "--form", "--num_samples", 3]
    assert all(re.fullmatch(r"\+\+\+如乐\n东.，.红。..、.。", text) for text in stripped(sampled(*draft, root=data)))
    lines = sampled(*draft, "--format", "jsonl", root=data).splitlines()
    assert len(lines) == 3 and all(json.loads(line)["text"].startswith("+++如乐\n东") for line in lines)


BOUNDS = (
    "temperature -1, top_k 0, top_p 1.5, repetition_penalty 0.5, batch 0, num_samples 0, max_new_tokens -1, best_of 0, "
    "particles 0, alternatives -1"
)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--start", ""], "--start is empty"),
        (["--start", "Xx"], "not in the vocabulary: 'X' (U+0058), 'x' (U+0078)"),
        (["--start", "\udc80"], "not in the vocabulary"),
        (["--start", "FILE:no/such"], "cannot read"),
        *((f"--{bound}".split(), f"--{bound.split()[0]}") for bound in BOUNDS.split(", ")),
        (["--stream", "--format", "jsonl"], "exclude each other"),
        (["--ckpt_path", "workdirs/none"], "run train.py"),
        (["--data_root", "data/quansonci"], "did you mean data/quansongci?"),
        (["--acrostic", "东东东东东东"], "no tune has"),
        (["--rhyme", "。"], "--rhyme '。'"),
        (["--form", "--start", "+++清平乐\\n东。"], "fits no template of 清平乐"),
        (["--stream", "--best_of", 2], "--stream and --best_of"),
        (["--stream", "--particles", 2], "--stream and --particles"),
        (["--alternatives", 2], "--format jsonl"),
        (["--start", "+++清平□\\n"], "has a blank"),
        (["--start", "+++清平乐\\n□□。"], "fits no template of 清平乐: clause 1 may be 4。"),
        (["--start", "+++清平乐\\n□□□□。□x"], "not in the vocabulary: 'x'"),
    ],
)
def test_what_cannot_be_done_is_one_line(assert_user_error, tuned_root, tuned_ckpt, more, words):
    assert_user_error(sample, *flags(tuned_root, tuned_ckpt, *more), words=[words])


def test_the_last_line_end_of_a_file_is_the_editors(sampled, file):
    """But not that of a title alone, which the model goes on after; nor an empty line, which ends a poem."""
    for content, start in {
        "+++如梦令\n一一一\n": "+++如梦令\n一一一",
        "+++如梦令\r\n": "+++如梦令\n",
        "一\n\n": "一\n\n",
    }.items():
        assert sampled("--start", f"FILE:{file('p.txt', content)}", "--num_samples", 1).startswith(start)
        assert read_start(f"FILE:{file('p.txt', content)}") == start


def test_with_form_each_sample_is_a_whole_poem_in_form_and_rhyme(poems):
    written = poems("--form", "--num_samples", 12)
    assert all(poem["form"] and poem["rhyme"] and poem["text"].endswith("。\n") for poem in written)
    assert {poem["tune"] for poem in written} == {"清平乐", "如梦令", "浣溪沙"}
    short = poems("--form", "--start", "+++如梦令", "--max_new_tokens", 3)  # whole all the same
    assert all(poem["tune"] == "如梦令" and poem["form"] for poem in short)


def test_a_draft_is_completed_and_its_line_tells_what_was_written_and_what_else_could_stand(poems):
    for poem in poems("--start", "+++清平乐\\n□一□□。□□□□□。□东", "--alternatives", 2):
        _, body = poem["text"].rstrip().split("\n")
        assert (body[1], body[12]) == ("一", "东") and poem["form"] and poem["rhyme"]
        assert poem["draft"].startswith("+++清平乐\n□一□□。□□□□□。□东")
        blanks = [i for i, char in enumerate(poem["draft"]) if char == "□"]
        assert [place["at"] for place in poem["alternatives"]] == blanks
        for place in poem["alternatives"]:
            assert place["char"] == poem["text"][place["at"]] and 0 < place["probability"] <= 1
            assert len(place["others"]) == 2 and place["char"] not in dict(place["others"])
    assert all(poem["draft"] is None for poem in poems("--start", "+++清平乐", "--max_new_tokens", 3))


def test_look_ahead_is_the_way_of_forms_unless_it_is_said(sampled):
    usual = sampled("--form")
    assert usual == sampled("--form", "--particles", 16) != sampled("--form", "--particles", 1)


def test_held_to_a_form_repetition_is_penalised_unless_it_is_said(sampled):
    form = ["--form", "--num_samples", 30]
    usual, same = sampled(*form), sampled(*form, "--repetition_penalty", 1.2)
    assert usual == same != sampled(*form, "--repetition_penalty", 1)


def test_free_samples_are_checked_too(poems, tuned_root, tmp_path):
    free = poems("--start", "+++如梦令\\n", "--max_new_tokens", 9)
    assert [poem["tune"] for poem in free] == ["如梦令"] * 4 and not all(poem["form"] for poem in free)
    for poem in poems("--start", "，", "--max_new_tokens", 0):
        assert poem["tune"] is poem["form"] is poem["rhyme"] is None
    old = shutil.copytree(tuned_root, tmp_path / "old")
    (old / "forms.json").unlink()  # a data set of an earlier version
    assert all(poem["form"] is None for poem in poems("--start", "+++如梦令", root=old))


def test_acrostic_rhyme_and_first_line_together(poems, tuned_root):
    text = (tuned_root / "input.txt").read_text(encoding="utf-8")
    first = text.partition("+++清平乐\n")[2].split("。")[0]
    for poem in poems("--start", f"+++清平乐\\n{first}。", "--acrostic", "东月"):
        sentences = poem["text"].removeprefix("+++清平乐\n").split("。")
        assert sentences[0] == first and sentences[1][0] + sentences[2][0] == "东月" and poem["rhyme"]
    for poem in poems("--start", "+++清平乐\\n", "--acrostic", "东", "--rhyme", "天"):
        assert poem["text"].removesuffix("。\n")[-1] in "天年烟边前船" and poem["rhyme"]


@pytest.fixture
def write_poems(tuned_root, tuned_ckpt, monkeypatch):
    """sample.py's main(), with a model that is loaded once."""
    trained, forms = load_trained(tuned_ckpt), Forms.load(tuned_root)
    monkeypatch.setattr(sample, "load", lambda args: (trained, Decoder(trained.config, trained.weights)))
    monkeypatch.setattr(sample.Forms, "load", lambda folder: forms)

    def write(*flags):
        small = ["--num_samples", "1", "--max_new_tokens", "3", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["sample.py", "--data_root", str(tuned_root), *small, *flags])
        try:
            sample.main()
        except SystemExit as stop:  # argparse, in one line
            assert stop.code == 2

    return write


PROMPT = st.one_of(ANY_TEXT, ANY_TEXT.map("FILE:{}".format), NEAR_TEXT, POEMS)


@pytest.mark.slow
@fuzz(500)
@given(
    st.one_of(PROMPT, st.binary()),
    st.sampled_from(["--start", "--start", "--form --start", "--stop_at_poem_end --start", "--acrostic", "--rhyme"]),
)
@example("FILE:\0", "--start")
@example("FILE:\ud800", "--start")
@example("FILE:/", "--start")
@example(("+++清平乐\n" + "一" * 300_000).encode(), "--form --start")
def test_any_text_ends_in_poems_or_in_one_line(write_poems, file, text, flags):
    """Typed, or bytes in a file."""
    *more, flag = flags.split()
    if isinstance(text, bytes):
        text = f"FILE:{file('prompt.txt', text)}"
    case("prompt", write_poems, f"{flag}={text}", *more)
