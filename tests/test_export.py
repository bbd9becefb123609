"""What export.py writes, as transformers reads it, without a network and without code of ours."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers comes in

import contextlib
import dataclasses
import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, train_tiny
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import safe_open
from test_model import NO_POS, NO_RES, SIZES, make, token_ids
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from songci import export
from songci.corpus.vocabulary import Vocabulary, load_vocabulary
from songci.generation import Controls
from songci.samples import samples
from songci.training.checkpoint import Trained, load_model, save_checkpoint

ODD = Vocabulary(
    "".join(sorted("\n\r\t\0 +\u00a0\u3000\ufeff\u200d\u0301éeA、。一\U00020000\U0001f600\u2028[]<|>#'.,?!"))
)


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
    save_checkpoint(folder / "best.pt", make(config), ODD)
    return AutoTokenizer.from_pretrained(exported_to(folder, folder))


@pytest.mark.parametrize("config", [SIZES[1], NO_POS])
def test_transformers_gives_the_same_logits(tmp_path, config):
    model, U = make(config), token_ids(config)
    save_checkpoint(tmp_path / "best.pt", model, han(config))
    theirs, _ = read(exported_to(tmp_path, tmp_path))
    expected, _ = model(U)
    assert expected.std() > 0.1
    torch.testing.assert_close(theirs(U).logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs(U[:, :5]).logits, expected[:, :5], atol=1e-4, rtol=0)
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
    assert len(tokenizer) == len(vocabulary) and tokenizer.all_special_tokens == []
    assert tokenizer.convert_ids_to_tokens(list(range(len(vocabulary)))) == list(vocabulary.chars)
    assert Tokenizer.from_file(str(exported / "tokenizer.json")).encode("+\n").tokens == ["+", "\n"]
    # GPT-2 would add the embedding of a token type, which transformers before 5 gives unless it is told
    names = json.loads((exported / "tokenizer_config.json").read_text())["model_input_names"]
    assert set(tokenizer(text)) == set(names) == {"input_ids", "attention_mask"}


@given(text=st.text(ODD.chars))
@example("")
@example(" ")
@example("\n")
@example("  + \n\n +++A . e\u0301é")  # what tokenizers like to change
def test_the_tokenizer_gives_any_text_back_and_refuses_an_unknown_character(odd_tokenizer, text):
    ids = odd_tokenizer.encode(text)
    assert ids == ODD.encode(text).tolist()
    assert odd_tokenizer.decode(ids) == odd_tokenizer.decode(ids, skip_special_tokens=True) == text
    with pytest.raises(Exception, match="UNK"):
        odd_tokenizer.encode(text + "a")  # not in the vocabulary, though A is


@pytest.mark.parametrize("flags", [(), ("-no_pos",)])
def test_greedy_generate_writes_the_text_of_sample_py(data_root, tmp_path, flags):
    """Within the window, and to the next title, where sample.py begins a new window."""
    ckpt_path = train_tiny(data_root, tmp_path / "run", *flags, "--iters", "60", "--max_seq_len", "48")
    (theirs, tokenizer), trained = read(exported_to(tmp_path, ckpt_path)), load_model(ckpt_path)
    for start in ("+++清平乐", "+++如梦令\n", "+++浣溪沙\n" + trained.vocabulary.chars[20:25]):
        [expected] = samples(trained, start, 1, 48 - len(start), controls=Controls(temperature=0))
        text = tokenizer.decode(theirs.generate(**tokenizer(start, return_tensors="pt"), do_sample=False)[0])
        assert len(text) == 48
        upto = expected.text.find("\n+++", 1) + 1 or 48
        assert text[:upto] == expected.text[:upto] and upto > len(start) + 5


def test_generate_samples_by_default_as_sample_py_does(exported):
    model, _ = read(exported)
    config = model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.max_length) == (True, 0.8, 200, 16)
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert ids == {name: getattr(config, name) for name in ids} == dict.fromkeys(ids)  # GPT-2's are outside of ours


def test_the_model_cards_code_runs_and_its_figures_are_the_runs(exported, ckpt_path):
    card = (exported / "README.md").read_text(encoding="utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    text = subprocess.check_output([sys.executable, "-c", code], cwd=exported.parent, encoding="utf-8", timeout=120)
    assert text.startswith("+++清平乐\n") and len(text) == 16 + 1
    result = json.loads((ckpt_path / "result.json").read_text())
    for measure in ("poem", "stream"):
        assert f"| {result[f'{measure}_val_loss']:.4f} | {result[f'{measure}_perplexity']:.2f} |" in card
    assert "`--iters 12`" in card and "license:" not in card and "chinese-poetry" not in card


def test_the_card_of_the_default_corpus_tells_its_licence_and_a_bare_checkpoint_has_a_card(tmp_path):
    trained = Trained(make(SIZES[0]), han(SIZES[0]))
    (tmp_path / "config.json").write_text('{"data_root": "data/quansongci"}')
    card = export.model_card(trained, tmp_path, "out")
    assert "license: mit" in card and "chinese-poetry (MIT licence)" in card and "| loss" not in card
    (tmp_path / "config.json").write_text("{")
    assert "chinese-poetry" not in export.model_card(trained, tmp_path, "out")


def test_without_a_run_or_residual_connections_there_is_no_export(assert_user_error, tmp_path):
    out = tmp_path / "out"
    assert_user_error(export, "--ckpt_path", tmp_path / "none", "--out", out, words=["train.py"])
    save_checkpoint(tmp_path / "best.pt", make(NO_RES), han(NO_RES))
    assert_user_error(export, "--ckpt_path", tmp_path, "--out", out, words=["--no_res", "no equivalent"])
    assert os.listdir(tmp_path) == ["best.pt"]


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
