import json
import pickle
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, run_script, song_text, train_tiny

import prepare
import sample
from songci import generation


def flags(data_root, ckpt_path, *more):
    return ["--data_root", data_root, "--ckpt_path", ckpt_path, "--device", "cpu", *more]


def test_the_handouts_flags_and_defaults():
    args = sample.parse_args([])
    assert (args.data_root, args.ckpt_path) == ("data/quansongci", "workdirs/quansongci")
    assert sample.read_start(args.start) == "\n"
    assert (args.num_samples, args.max_new_tokens, args.temperature, args.top_k) == (10, 500, 0.8, 200)


def test_stdout_has_the_samples_and_lines_of_dashes_and_nothing_else(call, data_root, ckpt_path):
    arguments = flags(data_root, ckpt_path, "--start", "+++清平乐", "--num_samples", 3, "--max_new_tokens", 40)
    status, out, err = call(sample, *arguments)
    texts = out.removesuffix("\n").split("\n---------------\n")
    assert status == 0 and len(texts) == 3 and len(set(texts)) == 3
    for text in texts:  # 40 is more than max_seq_len, 16
        assert text.startswith("+++清平乐") and len(text) == len("+++清平乐") + 40
    assert "parameters on cpu" in err


def test_the_same_seed_gives_the_same_samples(call, data_root, ckpt_path):
    arguments = flags(data_root, ckpt_path, "--max_new_tokens", 30, "--num_samples", 2, "--seed")
    outputs = [call(sample, *arguments, seed)[1] for seed in (1, 1, 2)]
    assert outputs[0] == outputs[1] != outputs[2]


def test_temperature_0_is_greedy(call, data_root, ckpt_path):
    arguments = flags(data_root, ckpt_path, "--max_new_tokens", 30, "--num_samples", 2, "--temperature", 0)
    first, second = call(sample, *arguments)[1].removesuffix("\n").split("\n---------------\n")
    assert first == second


def test_the_batch_changes_nothing(call, data_root, ckpt_path):
    arguments = flags(data_root, ckpt_path, "--max_new_tokens", 30, "--num_samples", 7, "--batch")
    outputs = {call(sample, *arguments, batch)[1] for batch in (1, 3, 100)}
    assert len(outputs) == 1


def test_streaming_prints_the_same_samples(call, data_root, ckpt_path):
    for more in ([], ["--stop_at_poem_end"]):
        arguments = flags(data_root, ckpt_path, "--max_new_tokens", 60, "--num_samples", 5, *more)
        whole, streamed = (call(sample, *arguments, *way)[1] for way in ([], ["--stream"]))
        assert [text.strip() for text in streamed.split("-" * 15)] == [text.strip() for text in whole.split("-" * 15)]


def test_jsonl_has_a_line_for_each_sample(call, data_root, ckpt_path):
    arguments = flags(data_root, ckpt_path, "--max_new_tokens", 30, "--num_samples", 3, "--start", "+++清平乐\\n")
    lines = [json.loads(line) for line in call(sample, *arguments, "--format", "jsonl")[1].splitlines()]
    texts = call(sample, *arguments)[1].removesuffix("\n").split("\n---------------\n")
    assert [line["text"] for line in lines] == texts
    for i, line in enumerate(lines):
        assert (line["prompt"], line["seed"], line["sample"], line["tokens"]) == ("+++清平乐\n", 1, i, 30)
        assert -20 < line["mean_log_likelihood"] < 0
    none = call(sample, *arguments, "--format", "jsonl", "--max_new_tokens", 0)[1]
    assert json.loads(none.splitlines()[0])["mean_log_likelihood"] is None


def test_a_sample_ends_with_its_poem(call, data_root, tmp_path):
    """A model that has learned little else than a poem's frame."""
    (tmp_path / "input.txt").write_text("+++春\n春春。\n\n" * 200, encoding="utf-8")
    prepare.prepare(tmp_path)
    quick = ["--iters", 200, "--eval_interval", 100, "--warmup_iters", 5, "--max_seq_len", 8]
    train_tiny(tmp_path, tmp_path / "run", *quick)
    arguments = flags(tmp_path, tmp_path / "run", "--stop_at_poem_end", "--num_samples", 2, "--temperature", 0)
    assert call(sample, *arguments, "--start", "+++春")[1] == "+++春\n春春。\n\n---------------\n+++春\n春春。\n\n"
    streamed = call(sample, *arguments, "--start", "\\n", "--stream")[1]
    assert [text.strip() for text in streamed.split("-" * 15)] == ["+++春\n春春。"] * 2
    assert call(sample, *arguments, "--max_new_tokens", 3)[1].startswith("\n+++\n-----")


def test_poems_need_a_model_that_knows_where_they_begin(assert_user_error, data_root, tmp_path):
    train_tiny(data_root, tmp_path / "run", "--windows", "stream")
    assert_user_error(sample, *flags(data_root, tmp_path / "run", "--stop_at_poem_end"), words=["windows of poems"])


def test_nothing_heavy_is_imported(data_root, ckpt_path):
    """torch._dynamo, PyTorch's compiler, takes as long to import as torch itself."""
    heavy = {"matplotlib", "transformers", "bertviz", "pandas", "torch._dynamo"}
    arguments = [*map(str, flags(data_root, ckpt_path, "--num_samples", 1, "--max_new_tokens", 20))]
    code = f"import sys; sys.argv[1:] = {arguments}; import sample; sample.main(); print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n")


def test_ctrl_c_keeps_what_was_printed_and_ends_with_130(data_root, ckpt_path):
    arguments = flags(data_root, ckpt_path, "--num_samples", 10**6, "--batch", 2, "--max_new_tokens", 20)
    command = [sys.executable, str(ROOT / "sample.py"), *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As from a terminal: what is started in the background inherits that Ctrl-C is ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        first = [process.stdout.readline() for _ in range(5)]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err and "".join(first) + out


@pytest.mark.parametrize("typed", ["+++清平乐\\n", "+++清平乐\n", "FILE"])
def test_a_start_may_have_line_ends_or_come_from_a_file(call, data_root, ckpt_path, tmp_path, typed):
    if typed == "FILE":
        (tmp_path / "prompt.txt").write_text("\ufeff+++清平乐\n", encoding="utf-8")
        typed = f"FILE:{tmp_path / 'prompt.txt'}"
    arguments = flags(data_root, ckpt_path, "--start", typed, "--num_samples", 1, "--max_new_tokens", 0)
    assert call(sample, *arguments)[1] == "+++清平乐\n\n"


def test_an_alias_of_a_tune_becomes_its_canonical_name_and_is_said(capsys):
    aliases = {"酹江月": "念奴娇", "重": "轻"}
    assert sample.canonical_title("+++酹江月", aliases) == "+++念奴娇"
    assert "酹江月 is another name of 念奴娇" in capsys.readouterr().err
    assert sample.canonical_title("+++酹江月（中秋）\n春", aliases) == "+++念奴娇（中秋）\n春"
    for other in ("酹江月", "+++念奴娇", "+++酹江月亮", "春\n+++酹江月", "\n"):
        assert sample.canonical_title(other, aliases) == other


def test_an_alias_works_on_the_command_line(call, data_root, ckpt_path, tmp_path):
    data = shutil.copytree(data_root, tmp_path / "data")
    meta = pickle.loads((data / "meta.pkl").read_bytes())
    (data / "meta.pkl").write_bytes(pickle.dumps({**meta, "aliases": {"别名": "清平乐"}}))
    arguments = flags(data, ckpt_path, "--start", "+++别名", "--num_samples", 1, "--max_new_tokens", 0)
    status, out, err = call(sample, *arguments)
    assert (status, out) == (0, "+++清平乐\n") and "别名 is another name of 清平乐" in err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--start", ""], "--start is empty"),
        (["--start", "Xx"], "not in the vocabulary: 'X' (U+0058), 'x' (U+0078)"),
        (["--start", "\udc80"], "not in the vocabulary"),
        (["--start", "FILE:no/such"], "cannot read"),
        (["--temperature", "-1"], "--temperature"),
        (["--top_k", "0"], "--top_k"),
        (["--top_p", "1.5"], "--top_p"),
        (["--repetition_penalty", "0.5"], "--repetition_penalty"),
        (["--batch", "0"], "--batch"),
        (["--stream", "--format", "jsonl"], "exclude each other"),
        (["--keep", "1"], "--keep"),
        (["--num_samples", "0"], "--num_samples"),
        (["--max_new_tokens", "-1"], "--max_new_tokens"),
        (["--workdirs/quansongci"], "probably --ckpt_path workdirs/quansongci was meant"),
        (["--ckpt_path", "workdirs/none"], "run train.py"),
        (["--data_root", "data/quansonci"], "did you mean data/quansongci?"),
    ],
)
def test_bad_input_gets_one_line(assert_user_error, data_root, ckpt_path, more, words):
    assert_user_error(sample, *flags(data_root, ckpt_path, *more), words=[words])


def test_a_checkpoint_of_another_vocabulary_is_found_out(assert_user_error, ckpt_path, tmp_path):
    (tmp_path / "input.txt").write_text(song_text(30) + "另", encoding="utf-8")
    prepare.prepare(tmp_path)
    assert_user_error(sample, *flags(tmp_path, ckpt_path), words=["another vocabulary"])


def test_a_truncated_checkpoint_is_found_out(assert_user_error, data_root, ckpt_path, tmp_path):
    (tmp_path / "best.pt").write_bytes((ckpt_path / "best.pt").read_bytes()[:1000])
    assert_user_error(sample, *flags(data_root, tmp_path), words=["damaged"])


def test_the_script_runs_as_a_program(data_root, ckpt_path):
    arguments = flags(data_root, ckpt_path, "--start", "+++清平乐", "--num_samples", 1, "--max_new_tokens", 5)
    done = run_script("sample.py", *arguments)
    assert done.returncode == 0 and done.stdout.startswith("+++清平乐") and "Traceback" not in done.stderr


def poems_of(output: str) -> list[str]:
    return [json.loads(line) for line in output.splitlines()]


def test_with_form_each_sample_is_a_whole_poem_in_form_and_rhyme(call, tuned_root, tuned_ckpt):
    arguments = flags(tuned_root, tuned_ckpt, "--form", "--format", "jsonl", "--num_samples", 12)
    outputs = [call(sample, *arguments, "--batch", batch)[1] for batch in (1, 5, 100)]
    poems, *others = map(poems_of, outputs)
    for other in others:
        assert [poem["text"] for poem in other] == [poem["text"] for poem in poems]
    assert all(poem["form"] and poem["rhyme"] and poem["text"].endswith("。\n") for poem in poems)
    assert {poem["tune"] for poem in poems} == {"清平乐", "如梦令", "浣溪沙"}
    _, out, _ = call(sample, *arguments, "--start", "+++如梦令", "--max_new_tokens", 3)  # whole all the same
    assert all(poem["tune"] == "如梦令" and poem["form"] for poem in poems_of(out))


def test_held_to_a_form_repetition_is_penalised_unless_it_is_said(call, tuned_root, tuned_ckpt):
    arguments = flags(tuned_root, tuned_ckpt, "--form", "--num_samples", 5)
    usual, same, none = (
        call(sample, *arguments, *more)[1] for more in ([], ["--repetition_penalty", 1.2], ["--repetition_penalty", 1])
    )
    assert usual == same != none


def test_free_samples_are_checked_too(call, tuned_root, tuned_ckpt, tmp_path):
    arguments = flags(tuned_root, tuned_ckpt, "--format", "jsonl", "--num_samples", 3, "--max_new_tokens", 9)
    _, out, _ = call(sample, *arguments, "--start", "+++如梦令\\n")
    assert [poem["tune"] for poem in poems_of(out)] == ["如梦令"] * 3
    assert not all(poem["form"] for poem in poems_of(out))
    _, out, _ = call(sample, *arguments, "--start", "，", "--max_new_tokens", 0)
    assert all(poem["tune"] is poem["form"] is poem["rhyme"] is None for poem in poems_of(out))
    shutil.copytree(tuned_root, tmp_path / "old")
    (tmp_path / "old" / "forms.json").unlink()  # a data set of an earlier version
    _, out, _ = call(sample, "--data_root", tmp_path / "old", *arguments[2:], "--start", "+++如梦令")
    assert all(poem["form"] is None for poem in poems_of(out))


def test_acrostic_rhyme_and_first_line_together(call, tuned_root, tuned_ckpt):
    text = (tuned_root / "input.txt").read_text(encoding="utf-8")
    first = text[text.index("+++清平乐\n") :].split("。")[0].removeprefix("+++清平乐\n")
    arguments = flags(tuned_root, tuned_ckpt, "--format", "jsonl", "--num_samples", 4, "--start")
    _, out, _ = call(sample, *arguments, f"+++清平乐\\n{first}。", "--acrostic", "东月")
    for poem in poems_of(out):
        sentences = poem["text"].removeprefix("+++清平乐\n").split("。")
        assert sentences[0] == first and sentences[1][0] + sentences[2][0] == "东月" and poem["rhyme"]
    _, out, _ = call(sample, *arguments, "+++清平乐\\n", "--acrostic", "东", "--rhyme", "天")
    assert all(poem["text"].removesuffix("。\n")[-1] in "天年烟边前船" and poem["rhyme"] for poem in poems_of(out))


def test_what_no_poem_can_keep_is_said(assert_user_error, tuned_root, tuned_ckpt):
    for arguments, words in (
        (["--acrostic", "东东东东东"], "no tune has"),
        (["--acrostic", "东东东东东", "--start", "+++清平乐"], "5 characters, the longest has 3"),
        (["--acrostic", "春"], "not in the vocabulary"),
        (["--rhyme", "。"], "--rhyme '。'"),
        (["--form", "--start", "+++清平乐\\n东。"], "fits no template of 清平乐"),
        (["--form", "--start", "+++念奴娇\\n"], "vocabulary"),
        (["--form", "--start", "+++清清\\n"], "no form is known of the tune '清清'"),
        (["--stream", "--best_of", 2], "--stream and --best_of"),
    ):
        assert_user_error(sample, *flags(tuned_root, tuned_ckpt), *arguments, words=[words])


def test_the_best_of_several_is_the_likeliest_of_what_was_free(call, tuned_root, tuned_ckpt, monkeypatch):
    made = []
    write = generation.generate

    def generate(model, texts, *rest, **options):
        yield from write(model, texts, *rest, **options)
        made.extend(texts)

    monkeypatch.setattr(generation, "generate", generate)
    arguments = flags(tuned_root, tuned_ckpt, "--form", "--format", "jsonl", "--num_samples", 3, "--best_of", 5)
    _, out, _ = call(sample, *arguments, "--batch", 4)
    _, alone, _ = call(sample, *arguments, "--batch", 100)
    assert [poem["text"] for poem in poems_of(out)] == [poem["text"] for poem in poems_of(alone)] and len(made) == 30
    for i, poem in enumerate(poems_of(out)):
        tries = made[5 * i : 5 * i + 5]
        assert len({tuple(text.new) for text in tries}) == 5
        best = max(tries, key=lambda text: text.free_log_likelihood / text.free)
        assert poem["tokens"] == len(best.new) and poem["mean_log_likelihood"] == best.log_likelihood / len(best.new)


def test_a_streamed_poem_keeps_its_form_and_its_end(call, tuned_root, tuned_ckpt):
    arguments = flags(tuned_root, tuned_ckpt, "--form", "--start", "+++如梦令", "--num_samples", 2)
    assert call(sample, *arguments, "--stream")[1].split() == call(sample, *arguments)[1].split()
