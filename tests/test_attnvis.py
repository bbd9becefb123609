"""What attnvis.py loads, bertviz' views of it, and the command line."""

import html.parser
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from readings import DATA, POEM, RUN, make_project

from songci.attention import page as attnvis
from songci.attention import plots as attnplots
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("attnvis"), "no_pos")


@pytest.fixture(scope="module")
def reading(folder):
    return attnvis.load(folder / DATA, folder / RUN, POEM)


def parameters(view: attnvis.View) -> dict:
    """The data in a view's script."""
    _, data = view.document.split("const params = readable(")
    return json.JSONDecoder().raw_decode(data)[0]


# Loading


def test_the_weights_are_those_of_the_explicit_path_and_that_path_is_the_fast_one(reading):
    with torch.inference_mode():
        logits, weights = reading.model(reading.ids, need_weights=True)
        fast, none = reading.model(reading.ids)
    assert none == [] and torch.allclose(logits, fast, atol=1e-5)
    assert torch.allclose(reading.logits, fast[0], atol=1e-5)
    assert [tuple(layer.shape) for layer in reading.weights] == [(1, 2, 48, 48)] * 3
    for ours, theirs in zip(reading.weights, weights, strict=True):
        assert torch.equal(ours, theirs)
        assert torch.allclose(ours.sum(-1), torch.ones(1, 2, 48)) and not ours.triu(1).any()


def test_the_weights_are_softmax_of_the_scores(reading):
    """The first layer's, computed anew from its inputs and its matrices, with numpy."""
    model, layer = reading.model, reading.model.layers[0]
    with torch.inference_mode():
        x = model.token_embedding(reading.ids[0]) + model.position_embedding.weight[:48]
        q, k, _ = layer.attention.qkv(layer.attention_norm(x)).numpy().reshape(48, 3, 2, 8).transpose(1, 2, 0, 3)
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(8)) * np.tri(48)
    assert np.allclose(reading.weights[0][0], scores / scores.sum(-1, keepdims=True), atol=1e-5)


def test_line_breaks_spaces_and_invisible_characters_can_be_seen(reading):
    assert reading.tokens == list(POEM.replace("\n", "↵"))
    vocabulary = Vocabulary("".join(sorted({*reading.vocabulary.chars[:-3], *" \u3000\u200b"})))
    shown = attnvis.attnstats.read(reading.model, vocabulary, " \u3000\u200b\n")
    assert shown.tokens == ["␣", "␣", "U+200B", "↵"]


def test_of_a_long_text_the_first_window_is_shown_with_a_note(folder, reading):
    long = attnvis.load(folder / DATA, folder / RUN, POEM * 2)
    assert long.text == (POEM * 2)[:64] and len(long.tokens) == 64 == long.weights[0].size(-1)
    assert "96 characters" in long.note and "64" in long.note
    for view in (attnvis.head_view(long), attnvis.model_view(long)):
        assert long.note in view.frame()
    assert reading.note == "" and "<p>" not in attnvis.head_view(reading).frame()


def test_runs_that_do_not_exist_are_named_with_the_command_that_makes_them(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    [run] = attnvis.load_existing(DATA, [f"{RUN}_no_pos", "workdirs/other_no_res"], POEM)
    assert run.name == "quansongci_no_pos" and run.model.config.no_pos
    said = "no run workdirs/other_no_res: python train.py --ckpt_path workdirs/other_no_res --no_res makes it\n"
    assert capsys.readouterr().out == said


# bertviz' views


@pytest.mark.parametrize("draw", [attnvis.head_view, attnvis.model_view])
def test_a_view_holds_the_models_weights_once_and_rounded(reading, draw):
    view = draw(reading)
    [data] = parameters(view)["attention"]
    assert data["left_text"] == data["right_text"] == reading.tokens
    weights = torch.cat(reading.weights).numpy()  # (layers, h, L, L)
    assert np.abs(np.array(data["attn"]) - weights).max() <= 0.5001e-4
    assert all(len(str(w)) <= 6 for w in data["attn"][2][1][47])
    assert view.document.count('"left_text"') == 1
    assert len(view.frame()) < 700_000


@pytest.mark.parametrize("draw", [attnvis.head_view, attnvis.model_view])
def test_a_view_asks_for_nothing_outside(reading, draw):
    tags = []
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(draw(reading).document)
    assert {"html", "head", "body", "script", "div"} <= {tag for tag, _ in tags}
    assert not [tag for tag, attributes in tags if tag == "link" or {"src", "href"} & set(attributes)]
    frame = draw(reading).frame()
    assert frame.count("<iframe") == frame.count("srcdoc=") == 1 and "<script" not in frame


def test_no_token_ends_the_script(reading):
    nasty = ["</script>", "</SCRIPT >", "<!--", "<script src=x></script>", "]]>", "; // HACK: ", "PYTHON_PARAMS"]
    nasty += ['"', "'", "&quot;", "\\", "\u2028"]
    view = attnvis.head_view(replace(reading, tokens=[*nasty, *reading.tokens[len(nasty) :]]))
    assert parameters(view)["attention"][0]["left_text"][: len(nasty)] == nasty
    assert len(re.findall(r"</script", view.document, re.IGNORECASE)) == view.document.count("<script>") == 4
    assert view.document.count("<!--") == 0


def test_layers_and_heads_that_the_model_lacks_are_refused(reading):
    for wrong in (
        lambda: attnvis.head_view(reading, layer=3),
        lambda: attnvis.head_view(reading, heads=[9]),
        lambda: attnvis.head_view(reading, heads=[]),
        lambda: attnvis.model_view(reading, include_layers=[-1]),
        lambda: attnplots.heatmaps(reading, layer=3),
    ):
        with pytest.raises(UserError, match="quansongci has the"):
            wrong()


def test_a_view_shows_the_layer_and_heads_that_are_asked_for(reading):
    data = parameters(attnvis.head_view(reading, layer=2, heads=[1]))
    assert data["layer"] == 2 and data["heads"] == [1]
    data = parameters(attnvis.model_view(reading, include_layers=[1]))
    assert data["include_layers"] == [1] and data["total_heads"] == 12


def test_without_the_libraries_a_line_says_what_to_install(reading, monkeypatch):
    monkeypatch.setattr(attnvis, "LIBRARIES", (("no_such_package", "js/d3.v5.min.js"),))
    with pytest.raises(UserError, match="no_such_package is missing: pip install"):
        attnvis.head_view(reading)


# The command line


def test_a_page_of_a_large_model_leaves_the_model_view_out_and_says_so(reading, monkeypatch):
    monkeypatch.setattr(attnvis, "MANY_LINES", 3 * 2 * 48**2 - 1)
    page = attnvis.page(reading, {})
    assert page.count("<iframe") == 1 and "include_layers" in page
    monkeypatch.setattr(attnvis, "MANY_LINES", 3 * 2 * 48**2)
    assert attnvis.page(reading, {}).count("<iframe") == 2


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("𠀋", [], ["not in the vocabulary", "U+2000B"]),
        ("", [], ["the text is empty"]),
        (b"\xff\xfe", [], ["cannot read", "UTF-8"]),
        (POEM, ["--out", "page.pdf"], ["page.pdf", ".html"]),
        (POEM, ["--out", "nowhere/page.html"], ["no folder nowhere"]),
        (POEM, ["--out", ""], ["--out ''", ".html"]),
        (POEM, ["--ckpt_path", "nowhere"], ["no checkpoint", "train.py"]),
        (POEM, ["--data_root", "nowhere"], ["no data folder nowhere"]),
        (POEM, ["--text", "nowhere.txt"], ["cannot read nowhere.txt as UTF-8 text: No such file or directory"]),
        (POEM, ["--num_windows", "0"], ["num_windows"]),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(folder, tmp_path, assert_user_error, monkeypatch, text, flags, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    paths = ["--data_root", folder / DATA, "--ckpt_path", folder / RUN, "--text", "text.txt", "--out", "page.html"]
    assert_user_error(attnvis, *paths, *flags, words=words)
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


def test_a_text_that_was_cut_is_told_of_in_the_terminal_and_on_the_page(folder, tmp_path, call, monkeypatch):
    monkeypatch.setattr(attnvis, "draw", lambda *args: {})  # its pictures take long
    (tmp_path / "text.txt").write_text(POEM * 2, encoding="utf-8")
    paths = ["--text", tmp_path / "text.txt", "--out", tmp_path / "page.html"]
    status, out, err = call(attnvis, "--data_root", folder / DATA, "--ckpt_path", folder / RUN, *paths)
    note, *_ = out.splitlines()
    assert (status, err) == (0, "") and note.startswith("The text has 96 characters")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count(note) == 2
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["page.html", "page.png"])
def test_a_folder_where_the_page_or_its_picture_would_go_is_refused_before_any_work(tmp_path, assert_user_error, name):
    (tmp_path / name).mkdir()
    flags = ["--out", tmp_path / "page.html", "--ckpt_path", tmp_path / "no_run"]
    assert_user_error(attnvis, *flags, words=["--out", f"{name} is a folder"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_model_of_another_vocabulary_is_refused(folder, ckpt_path):
    with pytest.raises(UserError, match="another vocabulary"):
        attnvis.load(folder / DATA, ckpt_path, POEM)
