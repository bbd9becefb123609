"""What export.py writes, as transformers reads it, without a network and without code of ours."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers comes in

import contextlib
import dataclasses
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, prepared, train_tiny
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from test_model import NO_POS, NO_RES, SIZES, make, token_ids
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from songci import export
from songci.corpus.vocabulary import Vocabulary, load_vocabulary
from songci.runs import BEST, as_gpt, load_trained, save_trained
from songci.training.checkpoint import trained_of
from songci.writing.generation import Controls
from songci.writing.samples import Request, samples

ODD = Vocabulary(
    "".join(sorted("\n\r\t\0 +\u00a0\u3000\ufeff\u200d\u0301éeA、。一\U00020000\U0001f600\u2028[]<|>#'.,?!PDUNK"))
)
SPECIAL = ["[PAD]", "[UNK]"]
GREEDY = Controls(temperature=0)


def read(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def han(config):
    """A vocabulary of the model's size."""
    return Vocabulary("".join(map(chr, range(0x4E00, 0x4E00 + config.vocab_size))))


def exported_to(folder, ckpt_path):
    export.export(ckpt_path, folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def exported(ckpt_path, tmp_path_factory):
    return exported_to(tmp_path_factory.mktemp("export"), ckpt_path)


@pytest.fixture(scope="module")
def odd_tokenizer(tmp_path_factory):
    folder, config = tmp_path_factory.mktemp("odd"), dataclasses.replace(SIZES[0], vocab_size=len(ODD))
    save_trained(folder / BEST, trained_of(make(config), ODD, tuple(ODD.encode("\n+++").tolist()), ""))
    return AutoTokenizer.from_pretrained(exported_to(folder, folder))


@pytest.mark.parametrize("config", [SIZES[1], NO_POS])
def test_transformers_gives_the_same_logits(tmp_path, config):
    model, U = make(config), token_ids(config)
    save_trained(tmp_path / BEST, trained_of(model, han(config), (), ""))
    theirs, _ = read(exported_to(tmp_path, tmp_path))
    expected, _ = model(U)
    assert expected.std() > 0.1
    logits, V = theirs(U).logits, config.vocab_size
    torch.testing.assert_close(logits[..., :V], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs(U[:, :5]).logits[..., :V], expected[:, :5], atol=1e-4, rtol=0)
    # Two tokens more, each as likely as the characters are in the geometric mean, which is at most 1/V
    torch.testing.assert_close(logits[..., V:], expected.mean(-1, keepdim=True).expand(-1, -1, 2), atol=1e-4, rtol=0)
    more = logits.logsumexp(-1) - logits[..., :V].logsumexp(-1)
    assert (more >= 0).all() and (more <= math.log(1 + 2 / V) + 1e-5).all()
    assert theirs.lm_head.weight.data_ptr() == theirs.transformer.wte.weight.data_ptr()
    assert (theirs.transformer.wpe.weight == 0).all() == config.no_pos
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:  # as other programs read it
        assert file.metadata() == {"format": "pt"} and "lm_head.weight" not in file.keys()  # noqa: SIM118
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118


def test_the_tokenizer_gives_the_same_ids_over_the_corpus_and_the_corpus_back(exported, data_root):
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(exported), load_vocabulary(data_root)
    text = (data_root / "input.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text)
    assert ids == vocabulary.encode(text).tolist() and tokenizer.decode(ids) == text
    assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))) == [*vocabulary.chars, *SPECIAL]
    assert set(tokenizer.all_special_tokens) == {"+", *SPECIAL} and tokenizer.padding_side == "left"
    assert Tokenizer.from_file(str(exported / "tokenizer.json")).encode("+\n").tokens == ["+", "\n"]
    # GPT-2 would add the embedding of a token type, which transformers before 5 gives unless it is told
    names = json.loads((exported / "tokenizer_config.json").read_text())["model_input_names"]
    assert set(tokenizer(text)) == set(names) == {"input_ids", "attention_mask"}


@given(text=st.text(ODD.chars))
@example("")
@example(" ")
@example("\n")
@example("  + \n\n +++A . e\u0301é[UNK][PAD]")  # what tokenizers like to change
def test_the_tokenizer_gives_any_text_back_and_shows_an_unknown_character(odd_tokenizer, text):
    ids = odd_tokenizer.encode(text)
    assert ids == ODD.encode(text).tolist() and odd_tokenizer.decode(ids) == text
    assert odd_tokenizer.decode(ids, skip_special_tokens=True) == text.replace("+", "")
    ids.insert(1, odd_tokenizer.unk_token_id)  # a is not in the vocabulary, though A is
    assert odd_tokenizer.encode(text[:1] + "a" + text[1:]) == (ids if text else ids[:1])


@pytest.fixture(scope="module", params=[(), ("-no_pos",)])
def poet(request, tuned_root, tmp_path_factory):
    """A model that ends its poems in its window, as exported, and the same without transformers."""
    flags = ["--iters", "300", "--max_seq_len", "48", "--batchsize", "16", "--eval_interval", "300", "--n_embd", "32"]
    folder = tmp_path_factory.mktemp("poet")
    ckpt_path = train_tiny(tuned_root, folder / "run", *flags, "--dtype", "float32", *request.param)
    return exported_to(folder, ckpt_path), load_trained(ckpt_path)


def greedy(trained, start, length=48):
    """What `sample.py --temperature 0` writes, up to a new + and to `length` characters; and its poem at its end."""
    [text], [poem] = (
        [sample.text for sample in samples(trained, Request(start, 1, length + 3 - len(start), end, controls=GREEDY))]
        for end in (False, True)
    )
    end = text.find("+", len(start)) + 1 or length
    return text[: min(end, length)], poem


def prompts(vocabulary):
    """20 of different lengths."""
    tunes = ["+++清平乐\n", "+++如梦令\n", "+++浣溪沙\n", "+++"]
    return [tunes[i % 4] + vocabulary.chars[20 : 20 + i // 4 * (i % 4 < 3)] for i in range(20)]


def test_greedy_generate_writes_the_text_of_sample_py_and_ends_with_its_poem(poet):
    (theirs, tokenizer), (_, trained) = read(poet[0]), poet
    ends = 0
    for start in prompts(trained.vocabulary):
        text, poem = greedy(trained, start)
        assert tokenizer.decode(theirs.generate(**tokenizer(start, return_tensors="pt"), do_sample=False)[0]) == text
        if text.endswith("\n\n+"):
            ends += text.removesuffix("\n+") == poem
    assert ends >= 10


def test_texts_of_a_batch_go_on_as_alone(poet):
    """To the end of the window of the longest one. Also in a pipeline, in which pairs differ in length."""
    (theirs, tokenizer), (_, trained) = read(poet[0]), poet
    starts = prompts(trained.vocabulary)
    inputs = tokenizer(starts, padding=True, return_tensors="pt")
    ids, longest = theirs.generate(**inputs, do_sample=False), inputs.input_ids.size(1)
    expected = [greedy(trained, start, 48 - longest + len(start))[0] for start in starts]
    assert [tokenizer.decode(row).replace("[PAD]", "") for row in ids] == expected
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == [text.replace("+", "") for text in expected]
    written = pipeline("text-generation", str(poet[0]))(starts, batch_size=2, do_sample=False)
    for i, (start, [text]) in enumerate(zip(starts, written, strict=True)):
        longest = max(len(starts[i]), len(starts[i ^ 1]))
        new = greedy(trained, start, 48 - longest + len(start))[0][len(start) :]
        assert text["generated_text"] == start + new.removesuffix("+")


def test_generate_samples_by_default_as_sample_py_does_and_never_writes_what_is_no_character(exported, data_root):
    model, tokenizer = read(exported)
    config, V = model.generation_config, len(load_vocabulary(data_root))
    assert (config.do_sample, config.temperature, config.top_k, config.max_length) == (True, 0.8, 200, 16)
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert ids == {name: getattr(config, name) for name in ids}  # if there were none, GPT-2's, outside of ours
    assert ids == {"bos_token_id": None, "eos_token_id": tokenizer.encode("+")[0], "pad_token_id": V}
    assert tokenizer.unk_token_id == V + 1 and config.suppress_tokens == [V, V + 1]
    torch.nn.init.zeros_(model.transformer.wte.weight)  # all are equally likely
    hot = model.generate(torch.zeros(64, 1, dtype=torch.long), top_k=0, eos_token_id=None)
    assert hot.shape == (64, 16) and hot.max() < V


def run_card(folder, monkeypatch, capsys):
    """The names that the card's code leaves, and what it prints. It is run as it stands, beside the folder."""
    card, names = (folder / "README.md").read_text(encoding="utf-8"), {}
    blocks = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(folder.parent)
    capsys.readouterr()
    exec("".join(blocks), names)
    return names, capsys.readouterr().out


def test_the_model_cards_code_gives_what_it_says(poet, monkeypatch, capsys):
    names, out = run_card(poet[0], monkeypatch, capsys)
    assert out.startswith("清平乐\n") and "unknown:\n" in out
    vocabulary, model = poet[1].vocabulary, as_gpt(poet[1])
    losses, lengths, means = names["losses"], [len(text) for text in names["prompts"]], []
    assert names["prompts"] == ["+++", "+++清平乐\n"] and losses.shape == (2, 6)
    for row, text in zip(losses, names["prompts"], strict=True):
        ids = torch.from_numpy(vocabulary.encode(text).astype("int64"))
        own = torch.nn.functional.cross_entropy(model(ids[None, :-1])[0][0], ids[1:], reduction="none")
        torch.testing.assert_close(row[-len(own) :], own, atol=1e-4, rtol=0)
        assert (row[: -len(own)] == 0).all()
        means.append(own.mean().item())
    assert json.loads(re.search(r"nats a character: (.*)", out)[1]) == pytest.approx(means, abs=1e-4)
    assert lengths == [3, 7] and [tuple(w.shape) for w in names["weights"]] == [(1, 2, 7, 7)] * 2
    for ours, theirs in zip(model(ids[None], need_weights=True)[1], names["weights"], strict=True):
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", ["+++清平乐\n春花，秋月。\n\n" * 30, "春花秋月何时了\n" * 60, "1+1=2\t" * 60])
def test_any_corpus_has_a_card_whose_code_runs(tmp_path, monkeypatch, capsys, text):
    """A stream, even one with titles, has no end: as sample.py says of --stop_at_poem_end."""
    ckpt_path = train_tiny(prepared(tmp_path / "data", text), tmp_path / "run", "--windows", "stream")
    names, out = run_card(exported_to(tmp_path, ckpt_path), monkeypatch, capsys)
    assert names["model"].generation_config.eos_token_id is names["tokenizer"].eos_token is None
    assert "`+++`" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8") and "layers of" in out
    [written] = names["model"].generate(names["inputs"].input_ids[:1, -1:])
    assert len(written) == 16 and written.max() < len(load_vocabulary(tmp_path / "data"))


def test_the_model_cards_figures_are_the_runs(exported, ckpt_path):
    card = (exported / "README.md").read_text(encoding="utf-8")
    result = json.loads((ckpt_path / "result.json").read_text())
    for measure in ("poem", "stream"):
        assert f"| {result[f'{measure}_val_loss']:.4f} | {result[f'{measure}_perplexity']:.2f} |" in card
    assert "`--iters 12`" in card and "license:" not in card and "chinese-poetry" not in card


def test_the_card_of_the_default_corpus_tells_its_licence_and_a_bare_checkpoint_has_a_card(tmp_path):
    trained = trained_of(make(SIZES[0]), han(SIZES[0]), (), "")
    (tmp_path / "config.json").write_text('{"data_root": "data/quansongci"}')
    card = export.model_card(trained, tmp_path, "out")
    assert "license: mit" in card and "chinese-poetry (MIT licence)" in card and "| loss" not in card
    (tmp_path / "config.json").write_text("{")
    assert "chinese-poetry" not in export.model_card(trained, tmp_path, "out")


def test_without_a_run_or_residual_connections_there_is_no_export(assert_user_error, tmp_path):
    out = tmp_path / "out"
    assert_user_error(export, "--ckpt_path", tmp_path / "none", "--out", out, words=["train.py"])
    save_trained(tmp_path / BEST, trained_of(make(NO_RES), han(NO_RES), (), ""))
    assert_user_error(export, "--ckpt_path", tmp_path, "--out", out, words=["--no_res", "no equivalent"])
    assert os.listdir(tmp_path) == [BEST]


def test_an_export_is_replaced_and_other_folders_are_not(call, assert_user_error, exported, ckpt_path, tmp_path):
    out, config = tmp_path / "deep" / "out", (exported / "config.json").read_bytes()
    flags = ["--ckpt_path", ckpt_path, "--out", out]
    for _ in range(2):
        status, text, _ = call(export, *flags)
        assert status == 0 and "model.safetensors" in text and os.listdir(out.parent) == ["out"]
        assert sorted(os.listdir(out)) == sorted(export.FILES) and (out / "config.json").read_bytes() == config
        (out / "config.json").write_text("{}")
    (out / "mine.txt").write_text("mine")
    assert_user_error(export, *flags, words=["--overwrite"])
    assert (out / "config.json").read_text() == "{}"
    assert call(export, *flags, "--overwrite")[0] == 0 and os.listdir(out.parent) == ["out"]
    assert (out / "config.json").read_bytes() == config and (out / "mine.txt").read_text() == "mine"
    assert_user_error(export, *flags[:-1], out / "mine.txt", words=["is a file"])
    assert_user_error(export, *flags[:-1], ckpt_path, words=["--overwrite"])
    (tmp_path / "empty").mkdir()  # no loss
    assert call(export, *flags[:-1], tmp_path / "empty")[0] == 0


@pytest.mark.parametrize("name", export.FILES)
def test_an_export_that_fails_leaves_what_was_there(ckpt_path, tmp_path, monkeypatch, name):
    @contextlib.contextmanager
    def full(path):
        with write(path) as file:
            if path.name == name:
                raise OSError(28, "No space left on device")
            yield file

    write = export.atomic_write
    monkeypatch.setattr(export, "atomic_write", full)
    for before in ({}, dict.fromkeys(export.FILES, "old")):
        for file, content in before.items():
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / file).write_text(content)
        with pytest.raises(OSError, match="space"):
            export.export(ckpt_path, tmp_path / "out")
        assert {file.name: file.read_text() for file in tmp_path.glob("out/*")} == before
        assert os.listdir(tmp_path) == ["out"] * bool(before)


@pytest.mark.parametrize("package", ["safetensors", "tokenizers"])
def test_a_missing_package_is_named(assert_user_error, ckpt_path, tmp_path, monkeypatch, package):
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    line = assert_user_error(export, "--ckpt_path", ckpt_path, "--out", tmp_path / "out")
    assert package in line and "pip install safetensors tokenizers" in line
    assert not (tmp_path / "out").exists()


def test_nothing_of_the_libraries_is_imported_before_it_is_needed():
    code = "import sys, songci.export; assert not {'safetensors', 'tokenizers', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
