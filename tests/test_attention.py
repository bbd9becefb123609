"""The attention room: numbers against values worked out by hand, what the pictures show, and the page."""

import copy
import html.parser
import io
import json
import re
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hostile import ANY_TEXT, NEAR_TEXT, POEMS, case, fuzz
from hypothesis import given
from opencc import OpenCC
from PIL import Image
from readings import DATA, POEM, RUN, make_project, read_corpus

from songci import attention, fonts
from songci.attention import __main__ as command
from songci.attention import page, plots, stats
from songci.cli import UserError
from songci.corpus.vocabulary import Vocabulary
from songci.forms.templates import Forms
from songci.runs import as_gpt, load_trained
from songci.text import read_text

CLAUSES = "+++调\n甲乙丙丁，子丑寅。"  # places: 0-3 title, 4 line end, 5-8, 9 comma, 10-12, 13
every_glyph = pytest.mark.filterwarnings("error:Glyph")  # matplotlib warns of each that its fonts lack


@pytest.fixture(scope="module")
def reading(data_root, ckpt_path):
    return read_corpus(data_root, ckpt_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("attention"), "no_pos")


@pytest.fixture(scope="module")
def poem(folder):
    """The poem of the notebook, as a tiny model of three layers reads it."""
    return attention.load(folder / DATA, folder / RUN, POEM)


# Numbers


def test_the_statistics_of_heads_worked_out_by_hand():
    """Heads that look at the previous character, the first, the same place of the clause before, and at all alike."""
    places = ([0, *range(13)], [0] * 14, [*range(10), 5, 6, 7, 13])  # character i looks at places[i] only
    previous, first, same = (torch.eye(14)[row] for row in places)
    alike = torch.ones(14, 14).tril() / torch.arange(1, 15)[:, None]
    values = stats.head_statistics([torch.stack(layer)[None] for layer in ((previous, first), (same, alike))], CLAUSES)
    choices = np.arange(2, 15)
    entropy = [[0, 0], [0, np.log(choices).mean()]]
    distance = [[1, 7], [15 / 13, 3.5]]
    before = [[1, 1 / 13], [0, (1 / choices).mean()]]
    clause = [[0, 0], [1, (1 / 11 + 1 / 12 + 1 / 13) / 3]]
    np.testing.assert_allclose(values, [entropy, distance, before, clause], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(stats.uniform_statistics(CLAUSES), values[:, 1, 1])
    assert np.isnan(stats.uniform_statistics("一二三")).tolist() == [False] * 3 + [True]  # there is one clause


def test_same_places_pairs_clauses_and_leaves_the_title_out():
    assert stats.same_places(CLAUSES) == [(10, 5), (11, 6), (12, 7)]
    assert stats.same_places("一二三。四五、六七八九") == [(4, 0), (5, 1), (7, 4), (8, 5)]
    assert stats.same_places("") == []


def test_predictions_and_losses_are_those_of_the_model(reading):
    log_probs = torch.log_softmax(reading.model(reading.ids)[0][0].detach(), dim=-1).numpy()
    best, probs = stats.top_predictions(reading, k=5)
    assert len(best) == 14 and probs.shape == (14, 5) and (np.diff(probs) <= 0).all()
    for chars, row, all_probs in zip(best, probs, np.exp(log_probs), strict=True):
        assert np.allclose(all_probs[reading.vocabulary.encode(chars)], row, atol=1e-6)
        assert row[0] == pytest.approx(all_probs.max(), abs=1e-6)
    losses = stats.character_losses(reading)
    expected = [np.nan, *-log_probs[range(13), reading.ids[0, 1:]]]
    assert losses == pytest.approx(np.array(expected), abs=1e-5, nan_ok=True)
    assert stats.text_loss(reading) == pytest.approx(losses[1:].mean(), abs=1e-5)


@pytest.mark.parametrize("head", [0, 1])
def test_a_head_that_is_switched_off_adds_nothing_and_is_back_afterwards(reading, head):
    """W^O gets zeros for the channels of this head, and the channels of the other as they were."""
    model, seen = reading.model, []
    with model.layers[1].attention.out.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0])):
        model(reading.ids)
        with stats.without_head(model, 1, head):
            model(reading.ids)
    whole, without = (channels.split(8, dim=-1) for channels in seen)
    assert whole[head].any() and not without[head].any() and torch.equal(whole[1 - head], without[1 - head])
    assert torch.equal(model(reading.ids, need_weights=True)[0][0], reading.logits)


def test_ablation_measures_each_head_by_itself_on_the_text_or_on_validation_text(reading, data_root):
    whole, rises = stats.head_ablation(reading.model, lambda: stats.text_loss(reading))
    assert rises.shape == (2, 2) and whole == pytest.approx(stats.text_loss(reading))
    with stats.without_head(reading.model, 0, 1):
        assert whole + rises[0, 1] == pytest.approx(stats.text_loss(reading))
    assert len(set(rises.flat)) == 4
    [axes] = plots.ablation(reading).axes
    assert np.allclose(axes.images[0].get_array(), rises) and axes.get_title() == f"rise of the loss\nfrom {whole:.3f}"
    on_validation = stats.validation_loss(data_root, reading.model, reading.title, num_windows=2)()
    [axes] = plots.ablation(reading, data_root=data_root, num_windows=2).axes
    assert axes.get_title().endswith(f"from {on_validation:.3f}") and on_validation != pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("num_windows", [1, 5, 10_000])
def test_validation_loss_is_the_same_each_time_and_of_so_many_windows(reading, data_root, num_windows, monkeypatch):
    used = []
    real = stats.mean_loss
    monkeypatch.setattr(stats, "mean_loss", lambda *args, **kw: used.append(args[2]) or real(*args, **kw))
    loss = stats.validation_loss(data_root, reading.model, reading.title, num_windows)
    assert loss() == loss() > 0 and len(used[0]) == len(used[1]) <= num_windows
    assert len(used[0]) == num_windows or num_windows == 10_000  # more than there are
    assert not used[0].scored.any()  # each begins with a title


def test_a_row_of_the_lens_is_what_a_model_that_ended_there_would_predict(reading):
    best, probs, losses = stats.logit_lens(reading)
    assert [len(row) for row in best] == [14] * 3 and probs.shape == (3, 14) and losses.shape == (3,)
    model = copy.deepcopy(reading.model)
    for depth in (2, 1, 0):  # the last is the model itself
        model.layers = model.layers[:depth]
        logits, _ = model(reading.ids)
        ended = replace(reading, logits=logits[0].detach())
        top, top_probs = stats.top_predictions(ended, k=1)
        assert best[depth] == "".join(top) and np.allclose(probs[depth], top_probs[:, 0], atol=1e-6)
        assert losses[depth] == pytest.approx(np.nanmean(stats.character_losses(ended)), abs=1e-5)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in reading.model.layers)


# Pictures


def framed(picture) -> list:
    return [patch for axes in picture.axes for patch in axes.patches if patch.get_edgecolor()[3] > 0]


def texts(picture) -> list[str]:
    return [text.get_text() for axes in picture.axes for text in axes.texts]


def labels(axes) -> list[list[str]]:
    return [[label.get_text() for label in side.get_ticklabels()] for side in (axes.xaxis, axes.yaxis)]


def test_a_heatmap_a_head_whose_rows_sum_to_1_and_whose_upper_triangle_is_empty(reading):
    *panels, _colorbar = plots.heatmaps(reading, layer=None).axes
    alone, _colorbar = plots.heatmaps(reading, layer=1, heads=[1]).axes
    for (layer, head), axes in zip([*np.ndindex(2, 2), (1, 1)], [*panels, alone], strict=True):
        [image] = axes.images
        shown = image.get_array()
        assert (shown.mask == np.triu(np.ones((14, 14)), 1)).all()
        assert np.allclose(shown.sum(1), 1, atol=1e-6)
        assert (shown.filled(0) == reading.weights[layer][0, head].numpy()).all()
        assert labels(axes) == [reading.tokens] * 2 and "↵" in reading.tokens
        assert axes.get_title() == f"layer {layer}, head {head}"
        assert image.norm(0.25) == 0.5, "the square root, so that small weights can be seen"


def test_predictions_frame_the_character_that_comes(reading):
    picture = plots.predictions(reading, k=3)
    best, _ = stats.top_predictions(reading, k=3)
    assert len(framed(picture)) == sum(reading.text[i + 1] in best[i] for i in range(13))
    assert {fonts.label(char) for char in best[0]} <= set(texts(picture))


def test_losses_stand_below_their_characters_and_a_line_ends_its_row(reading):
    picture = plots.losses(reading)
    losses = stats.character_losses(reading)
    notes = ["–", *(f"{loss:.1f}" for loss in losses[1:])]
    shown = [text for text in texts(picture) if text]
    assert shown == [part for pair in zip(reading.tokens, notes, strict=True) for part in pair]
    assert picture.axes[0].get_title(loc="left") == f"{np.nanmean(losses):.2f} nats a character"
    assert plots.lines("+++\n" + "字" * 30) == [range(0, 4), range(4, 28), range(28, 34)]


def test_statistics_are_matrices_layers_by_heads(reading):
    values = stats.head_statistics(reading.weights, reading.text)
    for axes, value in zip(plots.statistics(reading).axes, values, strict=True):
        assert np.array_equal(axes.images[0].get_array(), value, equal_nan=True)


def test_the_lens_has_a_row_a_depth_and_the_text_below(reading):
    best, _, losses = stats.logit_lens(reading)
    picture = plots.lens(reading)
    shown = texts(picture)
    assert len(framed(picture)) == sum(row[i] == reading.text[i + 1] for row in best for i in range(13)) > 0
    names = map("{}, loss {:.2f}".format, ("embeddings", "layer 0", "layer 1"), losses)
    for name, chars in zip([*names, "text"], [*best, reading.text], strict=True):
        start = shown.index(name)
        assert [text for text in shown[start + 1 : start + 29] if text] == list(map(fonts.label, chars))


def test_pictures_of_several_runs_name_them_and_the_runs_may_differ_in_size(reading, monkeypatch):
    weights = torch.rand(3, 1, 5, 14, 14).tril()
    other = replace(reading, weights=list(weights / weights.sum(-1, keepdim=True)), name="other")
    *heatmaps, _colorbar = plots.heatmaps(reading, reading, layer=0, labels=False).axes
    assert [axes.get_title() for axes in heatmaps] == ["small\nlayer 0, head 0", "small\nlayer 0, head 1"] * 2
    titles = [axes.get_title().split("\n")[0] for axes in plots.statistics(reading, other).axes]
    assert titles == ["small"] * 4 + ["other"] * 4
    monkeypatch.setattr(plots, "ROW", 10)  # a text in two rows of the lens, the first of which has the name
    titles = [axes.get_title(loc="left") for axes in plots.lens(reading, other).axes]
    assert titles == ["small", "", "other", ""]


@pytest.mark.filterwarnings("error")
def test_tones_and_rhymes_are_drawn_above_and_beside_the_characters(reading, tuned_root, tmp_path):
    forms = Forms.load(tuned_root)
    [template] = forms.tunes["清平乐"]
    level = {"一": 0.99, "二": 0.01}
    known = Forms({"清平乐": [replace(template, tones="平仄" + "中" * 14)]}, forms.classes, level)
    known.save(tmp_path / "forms.json")

    def drawn(text: str) -> tuple[str, int, int]:
        picture = plots.tones(replace(reading, text=text), tmp_path)
        texts = [text.get_text() for text in picture.axes[0].texts]
        framed = sum(patch.get_edgecolor()[3] > 0 for patch in picture.axes[0].patches)
        assert picture.png()
        return picture.axes[0].get_title(), texts.count("●") + texts.count("○"), framed

    assert drawn("+++清平乐\n二二三四。一二三四五。一二三，一二三四。") == (
        f"清平乐: template 1 of {template.support} poems",
        2,
        1,
    )
    assert drawn("+++清平乐\n二二三四。")[0].endswith("out of form") and drawn("+++清平乐\n二二三四。")[1:] == (0, 0)
    assert drawn("春")[0].startswith("no form") and drawn("+++清平乐")[1:] == (0, 0)


@pytest.mark.parametrize("draw", [plots.heatmaps, plots.predictions, plots.losses, plots.lens, plots.statistics])
def test_the_shortest_text_has_its_pictures(reading, draw):
    shortest = stats.read(reading.model, reading.vocabulary, reading.text[5])
    assert Image.open(io.BytesIO(draw(shortest)._repr_png_())).mode == "P"


@every_glyph
def test_odd_characters_are_drawn_by_labels_that_can_be_seen(reading):
    odd = " \u3000\t\u200b\ue000\u0301$\U0003134a"
    vocabulary = Vocabulary("".join(sorted({*reading.vocabulary.chars[: -len(odd)], *odd})))
    read = stats.read(reading.model, vocabulary, "\n" + odd)
    shown = ["↵", "␣", "␣", "U+0009", "U+200B", "U+E000", "◌\u0301", "$"]
    assert read.tokens == [*shown, "\U0003134a"]
    picture = plots.heatmaps(read)
    assert labels(picture.axes[0])[0][:-1] == shown
    for drawing in (picture, plots.losses(read)):
        drawing.png()


def test_a_reading_holds_what_the_model_computes(poem):
    with torch.inference_mode():
        logits, weights = poem.model(poem.ids, need_weights=True)
    assert poem.tokens == list(POEM.replace("\n", "↵")) and torch.equal(poem.logits, logits[0]) and len(weights) == 3
    for ours, theirs in zip(poem.weights, weights, strict=True):
        assert ours.shape == (1, 2, 48, 48) and torch.equal(ours, theirs)


def test_runs_that_do_not_exist_are_named_with_the_command_that_makes_them(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    [run] = stats.load_existing(DATA, [f"{RUN}_no_pos", "workdirs/other_no_res"], POEM)
    assert run.name == "quansongci_no_pos" and run.model.config.no_pos
    said = "no run workdirs/other_no_res: python train.py --ckpt_path workdirs/other_no_res --no_res makes it\n"
    assert capsys.readouterr().out == said


def parameters(view: page.View) -> dict:
    """The data in a view's script."""
    _, data = view.document.split("const params = readable(")
    return json.JSONDecoder().raw_decode(data)[0]


@pytest.mark.parametrize("draw", [page.head_view, page.model_view])
def test_a_view_holds_the_models_weights_once_and_rounded_and_asks_for_nothing_outside(poem, draw):
    view, tags = draw(poem), []
    [data] = parameters(view)["attention"]
    assert data["left_text"] == data["right_text"] == poem.tokens
    weights = torch.cat(poem.weights).numpy()  # (layers, h, L, L)
    assert np.abs(np.array(data["attn"]) - weights).max() <= 0.5001e-4
    assert all(len(str(w)) <= 6 for w in data["attn"][2][1][47])
    assert view.document.count('"left_text"') == 1 and len(view.frame()) < 700_000
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(view.document)
    assert {"html", "head", "body", "script", "div"} <= {tag for tag, _ in tags}
    assert not [tag for tag, attributes in tags if tag == "link" or {"src", "href"} & set(attributes)]
    frame = view.frame()
    assert frame.count("<iframe") == frame.count("srcdoc=") == 1 and "<script" not in frame and "<p>" not in frame


def test_no_token_ends_the_script(poem):
    nasty = ["</script>", "</SCRIPT >", "<!--", "<script src=x></script>", "]]>", "; // HACK: ", "PYTHON_PARAMS"]
    nasty += ['"', "'", "&quot;", "\\", "\u2028"]
    view = page.head_view(replace(poem, tokens=[*nasty, *poem.tokens[len(nasty) :]]))
    assert parameters(view)["attention"][0]["left_text"][: len(nasty)] == nasty
    assert len(re.findall(r"</script", view.document, re.IGNORECASE)) == view.document.count("<script>") == 4
    assert view.document.count("<!--") == 0


def test_a_view_shows_the_layer_and_heads_that_are_asked_for_and_refuses_those_that_the_model_lacks(poem):
    data = parameters(page.head_view(poem, layer=2, heads=[1]))
    assert data["layer"] == 2 and data["heads"] == [1]
    data = parameters(page.model_view(poem, include_layers=[1]))
    assert data["include_layers"] == [1] and data["total_heads"] == 12
    head, model, maps = page.head_view, page.model_view, plots.heatmaps
    wrong = [(head, {"layer": 3}), (head, {"heads": [9]}), (head, {"heads": []}), (model, {"include_layers": [-1]})]
    for draw, asked in [*wrong, (maps, {"layer": 3}), (maps, {"heads": [2]})]:
        with pytest.raises(UserError, match="quansongci has the"):
            draw(poem, **asked)


def test_without_the_libraries_a_line_says_what_to_install(poem, monkeypatch):
    monkeypatch.setattr(page, "LIBRARIES", (("no_such_package", "js/d3.v5.min.js"),))
    with pytest.raises(UserError, match="no_such_package is missing: pip install"):
        page.head_view(poem)


def test_a_page_of_a_large_model_leaves_the_model_view_out_and_says_so(poem, monkeypatch):
    monkeypatch.setattr(page, "MANY_LINES", 3 * 2 * 48**2 - 1)
    written = page.offline_page(poem, {})
    assert written.count("<iframe") == 1 and "include_layers" in written
    monkeypatch.setattr(page, "MANY_LINES", 3 * 2 * 48**2)
    assert page.offline_page(poem, {}).count("<iframe") == 2


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("𠀋", [], ["not in the vocabulary", "U+2000B"]),
        ("", [], ["the text is empty"]),
        (b"\xff\xfe\x00", [], ["is not UTF-16"]),
        (POEM, ["--out", "page.pdf"], ["page.pdf", ".html"]),
        (POEM, ["--out", "nowhere/page.html"], ["no folder nowhere"]),
        (POEM, ["--out", ""], ["--out ''", ".html"]),
        # Before any work: else the missing run would be told of
        (POEM, ["--out", "folder.html", "--ckpt_path", "nowhere"], ["--out folder.html: it is a folder"]),
        (POEM, ["--out", "picture.html", "--ckpt_path", "nowhere"], ["--out picture.png: it is a folder"]),
        (POEM, ["--ckpt_path", "nowhere"], ["no model", "train.py"]),
        (POEM, ["--ckpt_path", "other"], ["another vocabulary"]),
        (POEM, ["--data_root", "nowhere"], ["no data folder nowhere"]),
        (POEM, ["--text", "nowhere.txt"], ["cannot read nowhere.txt: No such file or directory"]),
        (POEM, ["--num_windows", "0"], ["num_windows"]),
    ],
)
def test_what_users_get_wrong_is_one_line(folder, ckpt_path, file, assert_user_error, monkeypatch, text, flags, words):
    here = file("text.txt", text).parent
    monkeypatch.chdir(here)
    for name in ("folder.html", "picture.png"):
        (here / name).mkdir()
    (here / "other").symlink_to(ckpt_path)
    before = sorted(here.iterdir())
    paths = ["--data_root", folder / DATA, "--ckpt_path", folder / RUN, "--text", "text.txt", "--out", "page.html"]
    assert_user_error(command, *paths, *flags, words=words)
    assert sorted(here.iterdir()) == before


def test_marks_and_traditional_characters_are_read_as_those_of_the_corpus(folder, tmp_path, file, call, monkeypatch):
    drawn = []
    monkeypatch.setattr(command, "draw", lambda reading, *args: drawn.append(reading) or {})  # that would take long
    text = OpenCC("s2t").convert(POEM).replace("，", ",").replace("。", ".")
    paths = ["--text", file("text.txt", text), "--out", tmp_path / "page.html"]
    status, _, err = call(command, "--data_root", folder / DATA, "--ckpt_path", folder / RUN, *paths)
    assert status == 0 and drawn[0].text == POEM and len(set(text) - set(POEM)) > 5
    assert "marks that the corpus lacks: . → 。, , → ，" in err and "spellings that the corpus lacks:" in err


def test_a_long_text_is_cut_and_the_terminal_and_the_page_say_so(folder, tmp_path, file, call, monkeypatch):
    drawn = []
    monkeypatch.setattr(command, "draw", lambda reading, *args: drawn.append(reading) or {})  # that would take long
    paths = ["--text", file("text.txt", POEM * 2), "--out", tmp_path / "page.html"]
    status, out, err = call(command, "--data_root", folder / DATA, "--ckpt_path", folder / RUN, *paths)
    [long], [note, *_] = drawn, out.splitlines()
    assert long.text == (POEM * 2)[:64] and len(long.tokens) == 64 == long.weights[0].size(-1)
    assert (status, err) == (0, "") and note.startswith("The text has 96 characters") and note.endswith("first 64.")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count(note) == 2  # at each view
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@fuzz(150)
@given(content=st.one_of(st.binary(), ANY_TEXT, NEAR_TEXT, POEMS))
def test_any_text_to_look_at(tuned_ckpt, file, content):
    trained = load_trained(tuned_ckpt)
    model = as_gpt(trained)
    path = file("text.txt", content)
    reading = case("text", lambda: stats.read(model, trained.vocabulary, read_text(path)))
    if reading:
        case("text", lambda: stats.head_statistics(reading.weights, reading.text))
